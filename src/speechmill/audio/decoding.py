"""Bytes → waveform, by FFmpeg's decoders, with what FFmpeg passes over in silence made an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from speechmill.audio.formats import boxes, flac, mpeg, ogg, riff
from speechmill.audio.formats.anatomy import Anatomy, Problem
from speechmill.audio.formats.octets import Octets, Piece
from speechmill.audio.mixing import Mixer, Weights
from speechmill.audio.resampling import resample
from speechmill.audio.sniffing import Kind, describe, recognise
from speechmill.audio.spilling import Spool, pieces
from speechmill.audio.tally import Tally, as_error, find_problem, has_gap, nothing_decoded
from speechmill.errors import (
    DamagedError,
    EmptyAudioError,
    NotAudioError,
)
from speechmill.records import Waveform

__all__ = ["Decoded", "decode"]

_INSPECTORS: dict[Kind, Callable[[Octets, int], Anatomy]] = {
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
_MIN_RATE, _MAX_RATE = 1_000, 1_000_000
_SKIP_MANUAL = int(av.codec.context.Flags2.skip_manual)
_MAX_PADDING = 4096  # samples
_WILD = 2.0**31  # no integer stored as a float is larger
_OVER = 1.122  # 1 dB above full scale; lossy codecs overshoot by less
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
    """A recording's waveform, and what is to be known about its source.

    ``waveform`` is mono, at the source's rate. ``sample_rate`` (Hz) and ``channels`` are the
    source's, at its start. ``flags`` are sorted and name what is suspicious; docs/audio.md lists
    them. The samples of a long recording cannot be written to.
    """

    waveform: Waveform
    sample_rate: int
    channels: int
    flags: tuple[str, ...]


def decode(data: Octets, *, keep_damaged: bool = False) -> Decoded:
    """Decode a whole recording to mono.

    The format is told by the content, never by a name. Several audio tracks: the default one,
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
    anatomy = _INSPECTORS[kind](data, start)
    tally = _read(data, anatomy, None)
    problem = find_problem(anatomy, tally)
    if not tally.samples:
        raise nothing_decoded(anatomy, tally)
    if problem is not None and not keep_damaged:
        raise as_error(problem, anatomy, tally)
    flags = set(anatomy.flags)
    if problem is not None:
        flags.add(problem.kind)
    if has_gap(anatomy, tally):
        flags.add("gap")
    return _finish(data, anatomy, tally, flags, keep_damaged=keep_damaged)


def _finish(
    data: Octets, anatomy: Anatomy, tally: Tally, flags: set[str], *, keep_damaged: bool
) -> Decoded:
    """Mono at last: choose the channels, join the runs, scale; and flag what is odd."""
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
        mixed = _read(data, anatomy, [weights for weights, _ in chosen])
    samples = _join(mixed, first.sample_rate)
    samples = samples[: _without_padding(anatomy, tally)]
    peak = max(float(samples.max()), -float(samples.min()))
    if peak > _WILD:
        raise DamagedError(f"a sample of {peak:.3g} is no sound: full scale is 1.0")
    if peak > 1.0:
        samples = _scaled(samples, peak)
        if peak > _OVER:
            flags.add("scaled")
    waveform = Waveform(samples, first.sample_rate)
    return Decoded(waveform, first.sample_rate, first.channels, tuple(sorted(flags)))


def _join(tally: Tally, sample_rate: int) -> NDArray[np.float32]:
    """One waveform, float32 [num_samples], of all runs; runs of another rate are resampled."""
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


def _scaled(samples: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """Samples, float32 [num_samples], divided by their peak."""
    scaled = Spool()
    for piece in pieces(samples):
        quotient = piece / np.float32(peak)
        scaled.add(np.clip(quotient, -1.0, 1.0, out=quotient))  # rounding
    return scaled.join()


def _read(data: Octets, anatomy: Anatomy, weights: list[Weights | None] | None) -> Tally:
    """Decode every piece of the file; ``weights`` has one entry a run of equal frames."""
    tally = Tally()
    for span in anatomy.pieces:
        try:
            _read_piece(Piece(data, span), anatomy, tally, weights)
        except av.error.FFmpegError as error:
            if not tally.samples:
                why = f"FFmpeg cannot read it: {error.strerror}"
                raise as_error(
                    anatomy.problem or Problem("damaged", why), anatomy, tally
                ) from error
            tally.packets += 1
            tally.bad.append(tally.packets)
        except (MemoryError, ValueError, OverflowError) as error:
            raise DamagedError(f"the {anatomy.name} file makes no sense: {error}") from error
    return tally


def _read_piece(
    file: Piece, anatomy: Anatomy, tally: Tally, weights: list[Weights | None] | None
) -> None:
    options = {
        # Nothing outside these bytes is ever opened, whatever they say.
        "protocol_whitelist": "none",
        "format_whitelist": anatomy.demuxer,
        "codec_whitelist": ",".join(_CODECS),
        **dict(anatomy.options),
    }
    with av.open(
        file, "r", format=anatomy.demuxer, options=options, metadata_errors="replace"
    ) as container:
        streams = container.streams.audio
        if not streams:
            if anatomy.problem is not None:
                raise as_error(anatomy.problem, anatomy, tally)
            raise NotAudioError(f"the {anatomy.name} file has no audio track")
        stream = next((s for s in streams if s.disposition & s.disposition.default), streams[0])
        context = stream.codec_context
        if context is None or context.name not in _CODECS:
            if anatomy.problem is not None:
                raise as_error(anatomy.problem, anatomy, tally)
            what = "" if context is None else f" ({context.name})"
            raise NotAudioError(f"the codec of its track{what} is not supported")
        check = None
        context.thread_count = 1  # the caller has threads of its own
        tally.codec = context.name
        tally.starts.append(tally.packets)
        if anatomy.name == "CAF" and context.name == "alac":
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


def _without_padding(anatomy: Anatomy, tally: Tally) -> int | None:
    """How many samples are sound, where FFmpeg leaves padding behind them; None if all are."""
    if len(tally.mixers) != 1:
        return None
    if anatomy.declared_samples is not None:
        return anatomy.declared_samples
    declared = anatomy.padded_samples
    if anatomy.name == "MP4" and tally.stream_s is not None:
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
            tally.barren.append(tally.packets)
        for frame in frames:
            _take(frame, tally, weights, check)
    if tally.mixers:
        _checked(check, tally.mixers[-1].flush())
    if first_pts is not None and stream.time_base is not None:
        tally.end_s = float(end_pts * stream.time_base)
        tally.span_s = float((end_pts - first_pts) * stream.time_base)


def _stated_samples(packet: Any, first_sample: int) -> int | None:
    """How many samples an empty packet says that there are, if it does: its time is where they end,
    less what is beyond, which it has as a negative duration, without the sign."""
    if packet.pts is None:
        return None
    beyond = 2**32 - packet.duration if packet.duration else 0
    return int(packet.pts) - beyond - first_sample


def _take(
    frame: av.AudioFrame,
    tally: Tally,
    weights: list[Weights | None] | None,
    check: flac.FlacCheck | None,
) -> None:
    """Give a frame to the mixer of its run; a new run starts where rate or channels change."""
    channels, name = frame.layout.nb_channels, frame.format.name
    planar = name.endswith("p")
    sample_format = name[:-1] if planar else name
    key = (frame.sample_rate, channels, sample_format)
    if not tally.mixers or tally.mixers[-1].key != key:
        if not _MIN_RATE <= frame.sample_rate <= _MAX_RATE:
            raise DamagedError(f"a sample rate of {frame.sample_rate} Hz makes no sense")
        if tally.mixers:
            _checked(check, tally.mixers[-1].flush())
        run = len(tally.mixers)
        chosen = weights[run] if weights is not None and run < len(weights) else None
        if weights is not None and chosen is None:
            chosen = (1.0 / channels,) * channels
        emit, over_range = tally.spool.add, tally.codec.startswith("pcm_f")
        mixer = Mixer(*key, chosen, emit, over_range=over_range)
        tally.mixers.append(mixer)
    samples = _view(frame, _DTYPES[sample_format], channels, planar=planar)
    _checked(check, tally.mixers[-1].add(samples))


def _view(frame: av.AudioFrame, dtype: str, channels: int, *, planar: bool) -> NDArray[Any]:
    """A frame's samples [num_channels, num_samples] as FFmpeg has them, without a copy."""
    count = frame.samples
    if planar:
        planes = [np.frombuffer(memoryview(plane), dtype, count) for plane in frame.planes]
        return planes[0][None, :] if channels == 1 else np.stack(planes)
    return (
        np.frombuffer(memoryview(frame.planes[0]), dtype, count * channels)
        .reshape(count, channels)
        .T
    )


def _checked(check: flac.FlacCheck | None, raw: NDArray[Any] | None) -> None:
    if raw is not None and check is not None:
        check.see_samples(raw)
