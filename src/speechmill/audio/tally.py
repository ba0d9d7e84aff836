"""Counts of a recording's packets, and the judgement whether all of it was decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from speechmill.audio.formats.flac import FlacCheck
from speechmill.audio.formats.structure import Problem, Structure
from speechmill.audio.limits import Meter
from speechmill.audio.mixing import Mixer, Weights
from speechmill.audio.spilling import Spool
from speechmill.errors import (
    AudioError,
    ChannelError,
    DamagedError,
    EmptyAudioError,
    TruncatedError,
)

__all__ = [
    "Tally",
    "as_error",
    "counted",
    "declared_s",
    "find_problem",
    "has_gap",
    "nothing_decoded",
]

# Hz. Telephony has 8 kHz, studios 192 kHz: a rate beyond these limits comes of a damaged header.
_MIN_RATE, _MAX_RATE = 1_000, 1_000_000
_TOLERANCE_S = 0.15  # lossy codecs start and end a frame (up to 128 ms) early or late
_WIDER = 1.2  # less than 4/3: samples of 32 bits that are taken for those of 24
_WMA_GAP_S = 0.1  # WMA has no pauses; its first frame, up to 46 ms, only primes the decoder
_GAP_S = 0.3  # a hole in the packets' times that deserves a flag; clocks of containers jitter less
_SILENT_PEAK = 1e-3  # −60 dBFS: hiss of a microphone that is off; the quietest speech is above
# One packet in, one frame out: a packet without a frame is a loss …
_STEADY = {"aac", "flac", "mp2float", "mp3float", "opus"}
_EDGE_PACKETS = 4  # … but not at the edges, where the encoder's padding is cut away
# Streams of bare frames may have been cut out of longer ones: then the first frame lacks what
# the frame before it would have carried.
_CUT_ANYWHERE = {"mp3", "aac", "amr"}


@dataclass(slots=True)
class Tally:
    """Counts made while a file is decoded. Packets are numbered from 1."""

    meter: Meter
    channel: int | None = None  # the one that is taken; all are mixed where there is none
    mixers: list[Mixer] = field(default_factory=list)  # one per run of equal frames
    spool: Spool = field(default_factory=Spool)  # the mixed samples, one run after another
    packets: int = 0
    bad: list[int] = field(default_factory=list)  # packets that could not be decoded
    pauses: list[int] = field(default_factory=list)  # packets of AMR that hold pauses, likewise
    starts: list[int] = field(default_factory=list)  # packets before each span
    last_good: int = 0
    frameless: list[int] = field(default_factory=list)  # packets that gave no frame
    end_s: float = 0.0  # of the last packet, by its own time
    skipped_s: float = 0.0  # that Opus begins with, and that is not played
    span_s: float = 0.0  # from the start of the first packet to there
    stated_samples: int | None = None  # what an empty last packet of the last span states
    expected_s: float = 0.0  # as far as the file says
    stream_s: float | None = None  # length of the tracks, as FFmpeg has read it
    codec: str = ""
    num_tracks: int = 1  # of sound
    alone: bool = True  # the file holds nothing but this one track
    late_s: float = 0.0  # before the first sound, as the packets' times say
    checks: list[FlacCheck] = field(default_factory=list)  # one per span, FLAC only

    def begin_run(
        self,
        key: tuple[int, int, str],
        weights: list[Weights | None] | None,
        *,
        over_range: bool,
    ) -> Mixer:
        """Begin a run of samples of one rate (Hz), number of channels and format, the ``key``.

        ``weights`` has one entry per run, None for equal ones; without it, they are to be found.
        Raises LimitError for too many channels, DamagedError for a rate that makes no sense,
        ChannelError where it lacks the channel that is to be taken.
        """
        sample_rate, channels, _ = key
        self.meter.check_channels(channels)
        if not _MIN_RATE <= sample_rate <= _MAX_RATE:
            raise DamagedError(f"a sample rate of {sample_rate} Hz makes no sense")
        if self.channel is not None and self.channel >= channels:
            since = f" from {self.decoded_s:.2f} s on" if self.mixers else ""
            there = counted(channels, "channel")
            raise ChannelError(
                f"it has no channel {self.channel}: it has {there}{since}; choose another by "
                "--channels, or mix"
            )
        run = len(self.mixers)
        chosen = weights[run] if weights is not None and run < len(weights) else None
        if weights is not None and chosen is None:
            chosen = (1.0 / channels,) * channels
        longest_s = min(self.expected_s, self.meter.limits.max_duration_s)
        self.spool.expected_samples = self.samples + int(longest_s * sample_rate)
        mixer = Mixer(*key, chosen, self.spool.add, over_range=over_range, channel=self.channel)
        self.mixers.append(mixer)
        return mixer

    @property
    def decoded_s(self) -> float:
        """Seconds decoded."""
        return sum(mixer.samples / mixer.sample_rate for mixer in self.mixers)

    @property
    def is_silent(self) -> bool:
        """Whether nothing can be heard."""
        return all(mixer.peak < _SILENT_PEAK for mixer in self.mixers)

    @property
    def samples(self) -> int:
        """Samples decoded per channel."""
        return sum(mixer.samples for mixer in self.mixers)


def counted(count: int, what: str) -> str:
    """So many, in words, and their numbers, which count from 0."""
    return f"one {what}, 0" if count == 1 else f"{count} {what}s, 0 to {count - 1}"


def find_problem(structure: Structure, tally: Tally) -> Problem | None:
    """Find what is missing from a recording or wrong with it; None if nothing is."""
    if structure.problem is not None:
        return structure.problem
    if tally.checks:
        problem, sure = _flac_problem(tally)
        if problem is not None or sure:
            return problem
    return _packet_problem(structure, tally) or _length_problem(structure, tally)


def _flac_problem(tally: Tally) -> tuple[Problem | None, bool]:
    """Judge by FLAC's own checks. Also returns whether they prove that all is there."""
    for check in tally.checks:
        if check.total and check.samples < check.total:
            if check.reaches_end and not _breaks_off(tally):
                return Problem("damaged", "some of its frames cannot be decoded"), False
            return Problem("truncated", "the last frames are missing"), False
        if check.total and check.samples > check.total:
            return Problem("damaged", "it holds more samples than it declares"), False
        if check.matches is False:
            text = "the samples are not those that were encoded (MD5)"
            return Problem("damaged", text), False
        if check.out_of_order:
            return Problem("damaged", "some of its frames are missing"), False
    complete = all(check.total for check in tally.checks)
    known = all(check.matches for check in tally.checks)
    # Whatever could not be decoded behind the last of the declared samples is no part of it.
    trailing = complete and all(packet > tally.last_good for packet in tally.bad)
    return None, known or trailing


def _breaks_off(tally: Tally) -> bool:
    """Whether the last packet gave no samples."""
    return tally.last_good < tally.packets


def _packet_problem(structure: Structure, tally: Tally) -> Problem | None:
    bad = tally.bad
    if structure.demuxer in _CUT_ANYWHERE:
        bad = [packet for packet in bad if packet > 1]
    if bad:
        if tally.codec == "flac" and _breaks_off(tally):
            return Problem("truncated", "its last frame cannot be decoded")
        return Problem("damaged", f"{len(bad)} of {tally.packets} packets cannot be decoded")
    if tally.codec in _STEADY:
        edges = [*tally.starts, tally.packets]
        lost = sum(
            all(abs(packet - edge) > _EDGE_PACKETS for edge in edges) for packet in tally.frameless
        )
        if lost:
            return Problem("damaged", f"{lost} of {tally.packets} packets hold no sound")
    return None


def _length_problem(structure: Structure, tally: Tally) -> Problem | None:
    files = len(structure.pieces)
    if structure.name == "WMA" and tally.span_s - tally.decoded_s > _WMA_GAP_S * files:
        return Problem("damaged", "some of its packets are missing")
    expected = structure.declared_samples
    if expected is not None and tally.samples < expected:
        return Problem("damaged", f"{tally.samples} of {expected} samples could be decoded")
    least = structure.least_samples
    if least is not None and tally.samples < least:
        return Problem("truncated", f"{tally.samples} of {least} samples are there")
    stated_s = declared_s(structure, tally)
    if structure.packet_clock and stated_s is not None:
        seen_s = max(tally.decoded_s, tally.end_s - tally.late_s)
        if structure.name == "WebM":  # its duration counts from before what is skipped
            seen_s += tally.skipped_s
        is_plain = structure.name != "MP4" and tally.codec.startswith("pcm_")
        if is_plain and seen_s > _WIDER * stated_s + _TOLERANCE_S * files:
            text = (
                f"its samples last longer than its {stated_s:.2f} s: their width is not as stated"
            )
            return Problem("damaged", text)
        if stated_s - seen_s > _TOLERANCE_S * files:
            return Problem("truncated", "its end is missing")
    return None


def declared_s(structure: Structure, tally: Tally) -> float | None:
    """The length that the file states, in seconds; a video track may be longer than the sound's."""
    if structure.declared_s is not None:
        return structure.declared_s if tally.alone else None
    return tally.stream_s if structure.name == "MP4" else None


def has_gap(structure: Structure, tally: Tally) -> bool:
    """Whether the packets' times have a hole: a pause of the recorder, or lost packets."""
    return structure.packet_clock and tally.span_s - tally.decoded_s > _GAP_S


def as_error(problem: Problem, structure: Structure, tally: Tally) -> AudioError:
    """Make the error for a problem; it says how much could be decoded."""
    stated_s = declared_s(structure, tally)
    if stated_s is None or stated_s <= tally.decoded_s:
        there = f"{tally.decoded_s:.2f} s could be decoded"
    else:
        there = f"{tally.decoded_s:.2f} of {stated_s:.2f} s are there"
    text = f"the {structure.name} file is {problem.kind}: {problem.text}; {there}"
    return TruncatedError(text) if problem.kind == "truncated" else DamagedError(text)


def nothing_decoded(structure: Structure, tally: Tally) -> AudioError:
    """Make the error for a file that gave no sample."""
    if structure.problem is not None and structure.problem.kind == "damaged":
        return as_error(structure.problem, structure, tally)
    if tally.bad:
        problem = find_problem(structure, tally)
        return as_error(problem or Problem("damaged", "it cannot be decoded"), structure, tally)
    if structure.problem is not None:
        return TruncatedError(
            f"the {structure.name} file is truncated before its first sample: "
            f"{structure.problem.text}"
        )
    return EmptyAudioError(f"header only: the {structure.name} file holds no samples")
