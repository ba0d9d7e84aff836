"""What came of a recording's packets, and whether that is all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from speechmill.audio.formats.anatomy import Anatomy, Problem
from speechmill.audio.formats.flac import FlacCheck
from speechmill.audio.mixing import Mixer
from speechmill.audio.spilling import Spool
from speechmill.errors import AudioError, DamagedError, EmptyAudioError, TruncatedError

__all__ = ["Tally", "as_error", "find_problem", "has_gap", "nothing_decoded"]

_TOLERANCE_S = 0.15  # lossy codecs start and end a frame early or late
_WMA_GAP_S = 0.1  # WMA has no pauses; its first frame, up to 46 ms, only primes the decoder
_GAP_S = 0.3  # a hole in the packets' times that is worth a flag
# One packet in, one frame out: a packet without a frame is a loss …
_STEADY = {"aac", "flac", "mp2float", "mp3float", "opus"}
_EDGE_PACKETS = 4  # … but not at the edges, where the encoder's padding is cut away
# Streams of bare frames may have been cut out of longer ones: then the first frame lacks what
# the frame before it would have carried.
_CUT_ANYWHERE = {"mp3", "aac", "amr"}


@dataclass(slots=True)
class Tally:
    """Counts of one reading of a file. Packets are numbered from 1."""

    mixers: list[Mixer] = field(default_factory=list)  # one a run of equal frames
    spool: Spool = field(default_factory=Spool)  # what they have mixed, one run after the other
    packets: int = 0
    bad: list[int] = field(default_factory=list)  # packets that could not be decoded
    starts: list[int] = field(default_factory=list)  # packets before each piece
    last_good: int = 0
    barren: list[int] = field(default_factory=list)  # packets that gave no frame
    end_s: float = 0.0  # of the last packet, by its own time
    span_s: float = 0.0  # from the start of the first packet to there
    stated_samples: int | None = None  # what the last piece's last packet says, without sound
    stream_s: float | None = None  # length of the track, as FFmpeg has read it
    codec: str = ""
    alone: bool = True  # the file holds nothing but this one track
    checks: list[FlacCheck] = field(default_factory=list)  # one a piece, FLAC only

    @property
    def decoded_s(self) -> float:
        """Seconds of sound."""
        return sum(mixer.samples / mixer.sample_rate for mixer in self.mixers)

    @property
    def samples(self) -> int:
        """Samples per channel."""
        return sum(mixer.samples for mixer in self.mixers)


def find_problem(anatomy: Anatomy, tally: Tally) -> Problem | None:
    """What is missing of a recording or wrong with it, None if nothing is."""
    if anatomy.problem is not None:
        return anatomy.problem
    if tally.checks:
        problem, sure = _flac_problem(tally)
        if problem is not None or sure:
            return problem
    return _packet_problem(anatomy, tally) or _length_problem(anatomy, tally)


def _flac_problem(tally: Tally) -> tuple[Problem | None, bool]:
    """What FLAC's own checks say; and whether they are sure that all is well."""
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
    """Whether nothing came of the last packet."""
    return tally.last_good < tally.packets


def _packet_problem(anatomy: Anatomy, tally: Tally) -> Problem | None:
    bad = tally.bad
    if anatomy.demuxer in _CUT_ANYWHERE:
        bad = [packet for packet in bad if packet > 1]
    if bad:
        if tally.codec == "flac" and _breaks_off(tally):
            return Problem("truncated", "its last frame cannot be decoded")
        return Problem("damaged", f"{len(bad)} of {tally.packets} packets cannot be decoded")
    if tally.codec in _STEADY:
        edges = [*tally.starts, tally.packets]
        lost = sum(
            all(abs(packet - edge) > _EDGE_PACKETS for edge in edges) for packet in tally.barren
        )
        if lost:
            return Problem("damaged", f"{lost} of {tally.packets} packets hold no sound")
    return None


def _length_problem(anatomy: Anatomy, tally: Tally) -> Problem | None:
    if anatomy.name == "WMA" and tally.span_s - tally.decoded_s > _WMA_GAP_S:
        return Problem("damaged", "some of its packets are missing")
    expected = anatomy.declared_samples
    if expected is not None and tally.samples < expected:
        return Problem("damaged", f"{tally.samples} of {expected} samples could be decoded")
    declared_s = _declared_s(anatomy, tally)
    if anatomy.packet_clock and declared_s is not None:
        seen_s = max(tally.decoded_s, tally.end_s)
        if declared_s - seen_s > _TOLERANCE_S:
            return Problem("truncated", "its end is missing")
    return None


def _declared_s(anatomy: Anatomy, tally: Tally) -> float | None:
    """Seconds that the file says it has; a picture's track may be longer than the sound's."""
    if anatomy.declared_s is not None:
        return anatomy.declared_s if tally.alone else None
    return tally.stream_s if anatomy.name == "MP4" else None


def has_gap(anatomy: Anatomy, tally: Tally) -> bool:
    """Whether the packets' times have a hole: a pause of the recorder, or lost packets."""
    return anatomy.packet_clock and tally.span_s - tally.decoded_s > _GAP_S


def as_error(problem: Problem, anatomy: Anatomy, tally: Tally) -> AudioError:
    """The problem as an error that says how much is there."""
    declared_s = _declared_s(anatomy, tally)
    if declared_s is None or declared_s <= tally.decoded_s:
        there = f"{tally.decoded_s:.2f} s could be decoded"
    else:
        there = f"{tally.decoded_s:.2f} of {declared_s:.2f} s are there"
    text = f"the {anatomy.name} file is {problem.kind}: {problem.text}; {there}"
    return TruncatedError(text) if problem.kind == "truncated" else DamagedError(text)


def nothing_decoded(anatomy: Anatomy, tally: Tally) -> AudioError:
    """The error for a file of which no sample came."""
    if anatomy.problem is not None and anatomy.problem.kind == "damaged":
        return as_error(anatomy.problem, anatomy, tally)
    if tally.bad:
        problem = find_problem(anatomy, tally)
        return as_error(problem or Problem("damaged", "it cannot be decoded"), anatomy, tally)
    if anatomy.problem is not None:
        return TruncatedError(
            f"the {anatomy.name} file is truncated before its first sample: {anatomy.problem.text}"
        )
    return EmptyAudioError(f"header only: the {anatomy.name} file holds no samples")
