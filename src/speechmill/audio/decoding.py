"""Decode bytes to a waveform with FFmpeg, and raise errors where FFmpeg silently drops audio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from speechmill.audio.formats import boxes, flac, mpeg, ogg, riff
from speechmill.audio.formats.octets import Octets, SpanReader
from speechmill.audio.formats.structure import Problem, Structure
from speechmill.audio.mixing import Mixer, Weights
from speechmill.audio.resampling import resample
from speechmill.audio.sniffing import Kind, describe, recognise
from speechmill.audio.spilling import Spool, pieces
from speechmill.audio.tally import Tally, as_error, find_problem, has_gap, nothing_decoded
from speechmill.errors import DamagedError, EmptyAudioError, NotAudioError
from speechmill.records import Waveform

__all__ = ["Decoded", "decode"]

_INSPECTORS: dict[Kind, Callable[[Octets, int], Structure]] = {
    "aac": mpeg.inspect_aac,
    "aiff": riff.inspect_aiff,
    "amr": mpeg.inspect_amr,
    "asf": boxes.inspect_asf,
    "au": riff.inspect_au,
    "caf": riff.inspect_caf,
    "flac": flac.inspect_flac,
    "mp3": mpeg.inspect_mp3,
    "mp4": boxes.inspect_mp4,
    "ogg": ogg.inspect_ogg,
    "sph": riff.inspect_sph,
    "w64": riff.inspect_w64,
    "wav": riff.inspect_wav,
    "webm": boxes.inspect_webm,
}
_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
# Hz. Telephony has 8 kHz, studios 192 kHz: a rate beyond these limits comes of a damaged header.
_MIN_RATE, _MAX_RATE = 1_000, 1_000_000
_SKIP_MANUAL = int(av.codec.context.Flags2.skip_manual)
# Samples. Encoders pad by a frame or two (AAC: 1,024 or 2,048 a frame); a stated length that is
# shorter by more is taken for wrong, so that it cuts no sound away.
_MAX_PADDING = 4096
_LARGEST_PEAK = 2.0**31  # of 32-bit integers that a file stores as floats; more is no sound
_CLEAR_OVERSHOOT = 1.122  # 1 dB above full scale; what lossy codecs add stays below it
# Decoders that may be opened: sound only, whatever else a file holds.
# fmt: off
_CODECS = {
    "aac", "aac_latm", "ac3", "adpcm_g722", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac",
    "amrnb", "amrwb", "eac3", "flac", "gsm", "gsm_ms", "libgsm", "libopencore_amrnb",
    "libopencore_amrwb", "libopus", "mp2", "mp2float", "mp3", "mp3float", "opus", "shorten",
    "speex", "vorbis", "wmalossless", "wmapro", "wmav1", "wmav2", "wmavoice",
} | {name for name in av.codecs_available if name.startswith("pcm_")}
# fmt: on


@dataclass(frozen=True, slots=True)
class Decoded:
    """A recording's waveform, and the facts about its source that a row states.

    ``waveform`` is mono, at the source's rate. ``sample_rate`` (Hz) and ``channels`` are the
    source's, at its start. ``flags`` are sorted and name what is suspicious; docs/audio.md lists
    them. The samples of a long recording are
    read-only.
    """

    waveform: Waveform
    sample_rate: int
    channels: int
    flags: tuple[str, ...]


def decode(data: Octets, *, keep_damaged: bool = False) -> Decoded:
    """Decode a whole recording to mono, at its own sample rate.

    The content tells the format, never a name. Of several audio tracks the default one is taken,
    else the first. With ``keep_damaged`` a truncated or damaged recording gives what could be
    decoded of it, flagged ``truncated``, ``damaged`` or ``non_finite``.

    Memory does not grow with the length of a long recording: its waveform is held in a temporary
    file, and ``data`` may be a map of one.

    Raises EmptyAudioError, NotAudioError, TruncatedError or DamagedError; StorageError where the
    temporary folder has no room.
    """
    if not data:
        raise EmptyAudioError("the file is empty (0 bytes)")
    found = recognise(data)
    if found is None:
        raise NotAudioError(f"this is no audio but {describe(data)}")
    kind, start = found
    structure = _INSPECTORS[kind](data, start)
    tally = _decode_file(data, structure, None)
    problem = find_problem(structure, tally)
    if not tally.samples:
        raise nothing_decoded(structure, tally)
    if problem is not None and not keep_damaged:
        raise as_error(problem, structure, tally)
    flags = set(structure.flags)
    if problem is not None:
        flags.add(problem.kind)
    if has_gap(structure, tally):
        flags.add("gap")
    return _to_mono(data, structure, tally, flags, keep_damaged=keep_damaged)


def _to_mono(
    data: Octets, structure: Structure, tally: Tally, flags: set[str], *, keep_damaged: bool
) -> Decoded:
    """Choose the channels to mix, join the runs, scale to full scale, and flag what is odd."""
    first = tally.mixers[0]
    non_finite = sum(mixer.non_finite for mixer in tally.mixers)
    if non_finite:
        if not keep_damaged:
            raise DamagedError(f"{non_finite} samples are not finite (NaN or infinite)")
        flags.add("non_finite")
    if any(mixer.clipped for mixer in tally.mixers):
        flags.add("clipped")
    chosen = [mixer.choose() for mixer in tally.mixers]
    flags.update(flag for _, flag in chosen if flag is not None)
    mixed = tally
    if any(weights is not None for weights, _ in chosen):
        tally.spool.clear()  # the mix that is not wanted, before the next one is made
        mixed = _decode_file(data, structure, [weights for weights, _ in chosen])
    samples = _join_runs(mixed, first.sample_rate)
    samples = samples[: _unpadded_length(structure, tally)]
    peak = max(float(samples.max()), -float(samples.min()))
    if peak > _LARGEST_PEAK:
        raise DamagedError(f"a sample of {peak:.3g} is no sound: full scale is 1.0")
    if peak > 1.0:
        samples = _scale_to_peak(samples, peak)
        if peak > _CLEAR_OVERSHOOT:
            flags.add("scaled")
    waveform = Waveform(samples, first.sample_rate)
    return Decoded(waveform, first.sample_rate, first.channels, tuple(sorted(flags)))


def _join_runs(tally: Tally, sample_rate: int) -> NDArray[np.float32]:
    """Join all runs to one waveform, float32 [num_samples]; resample runs of another rate."""
    for mixer in tally.mixers:
        mixer.flush()
    samples = tally.spool.join()
    if all(mixer.sample_rate == sample_rate for mixer in tally.mixers):
        return samples
    joined, at = Spool(), 0
    for mixer in tally.mixers:
        run = samples[at : at + mixer.samples]
        at += mixer.samples
        if mixer.sample_rate != sample_rate and len(run):
            run = resample(Waveform(run, mixer.sample_rate), sample_rate).samples
        for piece in pieces(run):
            joined.add(piece)
    return joined.join()


def _scale_to_peak(samples: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """Divide samples, float32 [num_samples], by their peak."""
    scaled = Spool()
    for piece in pieces(samples):
        quotient = piece / np.float32(peak)
        scaled.add(np.clip(quotient, -1.0, 1.0, out=quotient))  # rounding
    return scaled.join()


def _decode_file(data: Octets, structure: Structure, weights: list[Weights | None] | None) -> Tally:
    """Decode every span of the file; ``weights`` has one entry per run of equal frames."""
    tally = Tally()
    for span in structure.pieces:
        try:
            _decode_span(SpanReader(data, span), structure, tally, weights)
        except av.error.FFmpegError as error:
            if not tally.samples:
                why = f"FFmpeg cannot read it: {error.strerror}"
                raise as_error(
                    structure.problem or Problem("damaged", why), structure, tally
                ) from error
            tally.packets += 1
            tally.bad.append(tally.packets)
        except (MemoryError, ValueError, OverflowError) as error:
            raise DamagedError(f"the {structure.name} file makes no sense: {error}") from error
    return tally


def _decode_span(
    file: SpanReader, structure: Structure, tally: Tally, weights: list[Weights | None] | None
) -> None:
    options = {
        # Nothing outside these bytes is ever opened, whatever they say.
        "protocol_whitelist": "none",
        "format_whitelist": structure.demuxer,
        "codec_whitelist": ",".join(_CODECS),
        **dict(structure.options),
    }
    with av.open(
        file, "r", format=structure.demuxer, options=options, metadata_errors="replace"
    ) as container:
        streams = container.streams.audio
        if not streams:
            if structure.problem is not None:
                raise as_error(structure.problem, structure, tally)
            raise NotAudioError(f"the {structure.name} file has no audio track")
        stream = next((s for s in streams if s.disposition & s.disposition.default), streams[0])
        context = stream.codec_context
        if context is None or context.name not in _CODECS:
            if structure.problem is not None:
                raise as_error(structure.problem, structure, tally)
            what = "" if context is None else f" ({context.name})"
            raise NotAudioError(f"the codec of its track{what} is not supported")
        check = None
        context.thread_count = 1  # the caller has threads of its own
        tally.codec = context.name
        tally.starts.append(tally.packets)
        if structure.name == "CAF" and context.name == "alac":
            # FFmpeg would cut the last packet twice: it is a short one, not a padded one.
            context.flags2 |= _SKIP_MANUAL
        tally.alone = len(container.streams) == 1
        if context.name == "flac":
            context.options = {"err_detect": "crccheck+explode"}
            info = context.extradata or b""
            if len(info) >= 34 and weights is None:
                check = flac.FlacCheck(info)
                tally.checks.append(check)
        if stream.duration is not None and stream.time_base is not None:
            tally.stream_s = float(stream.duration * stream.time_base)
        _decode_packets(container, stream, tally, weights, check)


def _unpadded_length(structure: Structure, tally: Tally) -> int | None:
    """Count the samples before the padding that FFmpeg leaves in place; None if there is none."""
    if len(tally.mixers) != 1:
        return None
    if structure.declared_samples is not None:
        return structure.declared_samples
    declared = structure.padded_samples
    if structure.name == "MP4" and tally.stream_s is not None:
        declared = round(tally.stream_s * tally.mixers[0].sample_rate)
    if len(tally.starts) == 1 and tally.stated_samples is not None:
        declared = tally.stated_samples
    # Padding is at most a frame or two: a wrong number must not cut sound away.
    return declared if declared and 0 < tally.samples - declared < _MAX_PADDING else None


def _decode_packets(
    container: Any,
    stream: Any,
    tally: Tally,
    weights: list[Weights | None] | None,
    check: flac.FlacCheck | None,
) -> None:
    first_pts: int | None = None
    first_sample: int | None = None
    end_pts = 0
    for packet in container.demux(stream):
        if tally.codec == "vorbis" and not packet.size and packet.buffer_ptr:
            # Some encoders end with an empty packet, which FFmpeg refuses.
            tally.stated_samples = _stated_samples(packet, first_sample or 0)
            continue
        if packet.size:
            tally.packets += 1
            tally.stated_samples = None
            pts = packet.pts
            if pts is not None:
                first_pts = pts if first_pts is None else first_pts
                end_pts = pts + (packet.duration or 0)
            if check is not None:
                check.see_packet(bytes(memoryview(packet)[:12]))
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            tally.bad.append(tally.packets)
            continue
        if frames:
            tally.last_good = tally.packets
            first_sample = frames[0].pts if first_sample is None else first_sample
        elif packet.size:
            tally.frameless.append(tally.packets)
        for frame in frames:
            _mix_frame(frame, tally, weights, check)
    if tally.mixers:
        _check_samples(check, tally.mixers[-1].flush())
    if first_pts is not None and stream.time_base is not None:
        tally.end_s = float(end_pts * stream.time_base)
        tally.span_s = float((end_pts - first_pts) * stream.time_base)


def _stated_samples(packet: Any, first_sample: int) -> int | None:
    """Read the number of samples that an empty last packet states; None where it states none.

    Its time is the end of the samples, its duration (stored as if unsigned) minus the padding.
    """
    if packet.pts is None:
        return None
    beyond = 2**32 - packet.duration if packet.duration else 0
    return int(packet.pts) - beyond - first_sample


def _mix_frame(
    frame: av.AudioFrame,
    tally: Tally,
    weights: list[Weights | None] | None,
    check: flac.FlacCheck | None,
) -> None:
    """Mix a frame into its run; a change of rate, channels or sample format starts a new run."""
    channels, name = frame.layout.nb_channels, frame.format.name
    planar = name.endswith("p")
    sample_format = name[:-1] if planar else name
    key = (frame.sample_rate, channels, sample_format)
    if not tally.mixers or tally.mixers[-1].key != key:
        if not _MIN_RATE <= frame.sample_rate <= _MAX_RATE:
            raise DamagedError(f"a sample rate of {frame.sample_rate} Hz makes no sense")
        if tally.mixers:
            _check_samples(check, tally.mixers[-1].flush())
        run = len(tally.mixers)
        chosen = weights[run] if weights is not None and run < len(weights) else None
        if weights is not None and chosen is None:
            chosen = (1.0 / channels,) * channels
        emit, over_range = tally.spool.add, tally.codec.startswith("pcm_f")
        mixer = Mixer(*key, chosen, emit, over_range=over_range)
        tally.mixers.append(mixer)
    samples = _frame_samples(frame, _DTYPES[sample_format], channels, planar=planar)
    _check_samples(check, tally.mixers[-1].add(samples))


def _frame_samples(
    frame: av.AudioFrame, dtype: str, channels: int, *, planar: bool
) -> NDArray[Any]:
    """View a frame's samples, [num_channels, num_samples] in FFmpeg's format, without a copy."""
    count = frame.samples
    if planar:
        planes = [np.frombuffer(memoryview(plane), dtype, count) for plane in frame.planes]
        return planes[0][None, :] if channels == 1 else np.stack(planes)
    return (
        np.frombuffer(memoryview(frame.planes[0]), dtype, count * channels)
        .reshape(count, channels)
        .T
    )


def _check_samples(check: flac.FlacCheck | None, raw: NDArray[Any] | None) -> None:
    if raw is not None and check is not None:
        check.see_samples(raw)
