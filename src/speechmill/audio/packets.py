"""Decode a file's packets with FFmpeg, and count what comes of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from speechmill.audio.formats import flac, mpeg
from speechmill.audio.formats.octets import Octets, SpanReader
from speechmill.audio.formats.structure import Problem, Structure
from speechmill.audio.limits import Meter
from speechmill.audio.mixing import Weights
from speechmill.audio.plain import read_samples
from speechmill.audio.tally import Tally, as_error, counted, declared_s
from speechmill.errors import ChannelError, DamagedError, NotAudioError

__all__ = ["CODECS", "WITH_PAUSES", "Taken", "decode_packets"]

_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_SKIP_MANUAL = int(av.codec.context.Flags2.skip_manual)
# Decoders that may be opened: sound only, whatever else a file holds.
# fmt: off
CODECS = {
    "aac", "aac_latm", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "amrnb",
    "amrwb", "eac3", "flac", "g722", "gsm", "gsm_ms", "libgsm", "libopus", "mp2", "mp2float", "mp3",
    "mp3float", "opus", "shorten", "speex", "vorbis", "wmalossless", "wmapro", "wmav1", "wmav2",
    "wmavoice",
} | {name for name in av.codecs_available if name.startswith("pcm_")}
# fmt: on
# FFmpeg's own decoders of AMR know no pauses (DTX); these do. Their samples are not the same bits,
# so recordings without pauses keep the one that they have always been decoded by.
WITH_PAUSES = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
_LOOK_EVERY = 64  # packets, between looks at the clock: a millisecond


@dataclass(frozen=True, slots=True)
class Taken:
    """What is taken of a file: the audio track of this number, or the default one; its channel of
    this number, or the mix of all. Both count from 0."""

    track: int | None = None
    channel: int | None = None


def decode_packets(
    data: Octets,
    structure: Structure,
    weights: list[Weights | None] | None,
    meter: Meter,
    decoder: str | None = None,
    taken: Taken = Taken(),
) -> Tally:
    """Decode every span of the file; ``weights`` has one entry per run of equal frames.

    ``decoder`` is that of FFmpeg to use, if not the one that it chooses.
    """
    tally = Tally(meter, taken.channel)
    meter.begin_pass()
    for piece in structure.pieces:
        try:
            if piece.form is not None:
                _check_track(1, taken.track)
                tally.expected_s = structure.declared_s or 0.0
                read_samples(data, piece, piece.form, tally, weights)
                continue
            span = piece.start, piece.end
            file = SpanReader(data, span, meter.check_time, piece.head)
            _decode_span(file, structure, tally, weights, decoder, taken.track)
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
    file: SpanReader,
    structure: Structure,
    tally: Tally,
    weights: list[Weights | None] | None,
    decoder: str | None,
    track: int | None,
) -> None:
    options = {
        # Nothing outside these bytes is ever opened, whatever they say.
        "protocol_whitelist": "none",
        "format_whitelist": structure.demuxer,
        "codec_whitelist": ",".join(CODECS),
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
        stream = _choose_track(streams, track)
        tally.num_tracks = max(tally.num_tracks, len(streams))
        context = stream.codec_context
        if context is None or context.name not in CODECS:
            if structure.problem is not None:
                raise as_error(structure.problem, structure, tally)
            what = "" if context is None else f" ({context.name})"
            raise NotAudioError(f"the codec of its track{what} is not supported")
        if context.name.startswith("pcm_") and not structure.packet_clock:
            # We have read the same header, and found other samples in it.
            raise NotAudioError(f"what its samples are is not clear (FFmpeg: {context.name})")
        tally.meter.check_channels(context.channels)
        check = None
        context.thread_count = 1  # the caller has threads of its own
        tally.codec = context.name
        tally.starts.append(tally.packets)
        if structure.name == "CAF" and context.name == "alac":
            # FFmpeg would cut the last packet twice: it is a short one, not a padded one.
            context.flags2 |= _SKIP_MANUAL
        tally.alone &= len(container.streams) == 1
        if context.name == "flac":
            context.options = {"err_detect": "crccheck+explode"}
            info = context.extradata or b""
            if len(info) >= 34 and weights is None:
                check = flac.FlacCheck(info)
                tally.checks.append(check)
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
            tally.stream_s = (tally.stream_s or 0.0) + seconds
        tally.expected_s = declared_s(structure, tally) or 0.0
        chosen = context if decoder is None else av.CodecContext.create(decoder, "r")
        late_s = _decode_track(container, stream, chosen, tally, weights, check)
        if structure.has_start:
            # Times of MP4 count from 0; those of WebM from wherever its first track begins.
            begin_s = (container.start_time or 0) / 1e6 if structure.name == "WebM" else 0.0
            tally.late_s = max(0.0, late_s - begin_s)


def _choose_track(streams: Any, track: int | None) -> Any:
    """The audio track of this number; else the default one, or the first."""
    if track is None:
        return next((s for s in streams if s.disposition & s.disposition.default), streams[0])
    _check_track(len(streams), track)
    return streams[track]


def _check_track(num_tracks: int, track: int | None) -> None:
    if track is not None and track >= num_tracks:
        there = counted(num_tracks, "audio track")
        raise ChannelError(
            f"it has no audio track {track}: it has {there}; choose another by --track"
        )


@dataclass(slots=True)
class _Clock:
    """The times of packets, in the track's own unit."""

    first: int | None = None
    end: int = 0

    def see(self, packet: Any) -> None:
        if packet.pts is None:
            return
        if self.first is None and not packet.is_discard:
            self.first = packet.pts
        self.end = packet.pts + (packet.duration or 0)


def _decode_track(
    container: Any,
    stream: Any,
    context: Any,
    tally: Tally,
    weights: list[Weights | None] | None,
    check: flac.FlacCheck | None,
) -> float:
    """Decode one track. Returns when its first packet is played, in seconds."""
    clock = _Clock()
    first_sample: int | None = None
    skipped = _pre_skip(tally.codec, context.extradata)
    tally.skipped_s += skipped / 48_000
    for packet in container.demux(stream):
        if tally.codec == "vorbis" and not packet.size and packet.buffer_ptr:
            # Some encoders end with an empty packet, which FFmpeg refuses.
            tally.stated_samples = _stated_samples(packet, first_sample or 0)
            continue
        if packet.size:
            tally.packets += 1
            tally.stated_samples = None
            if not tally.packets % _LOOK_EVERY:
                tally.meter.check_time()
            clock.see(packet)
            if check is not None:
                check.see_packet(memoryview(packet))
        try:
            frames = context.decode(packet)
        except av.error.FFmpegError:
            _note_bad(packet, tally)
            continue
        if frames:
            tally.last_good = tally.packets
            first_sample = frames[0].pts if first_sample is None else first_sample
        elif packet.size and not packet.is_discard and skipped <= 0:
            tally.frameless.append(tally.packets)
        skipped -= packet.duration or 0
        for frame in frames:
            _mix_frame(frame, tally, weights, check)
    if tally.mixers:
        _check_samples(check, tally.mixers[-1].flush())
    if clock.first is None or stream.time_base is None:
        return 0.0
    tally.end_s += float(clock.end * stream.time_base)  # files that were joined each begin at 0
    tally.span_s += float((clock.end - clock.first) * stream.time_base)
    return float(clock.first * stream.time_base)


def _note_bad(packet: Any, tally: Tally) -> None:
    """Note a packet that cannot be decoded; by itself where that is only for pauses in AMR."""
    wide = tally.codec == "amrwb"
    is_pause = tally.codec in WITH_PAUSES and mpeg.amr_pauses(bytes(packet), wide=wide)
    (tally.pauses if is_pause else tally.bad).append(tally.packets)


def _pre_skip(codec: str, header: bytes | None) -> int:
    """Count the samples, at 48 kHz, that an Opus track begins with and that are not played (RFC
    7845): the packets that they cover give no sound."""
    if codec != "opus" or header is None or not header.startswith(b"OpusHead"):
        return 0
    return int.from_bytes(header[10:12], "little")


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
        if tally.mixers:
            _check_samples(check, tally.mixers[-1].flush())
        tally.begin_run(key, weights, over_range=tally.codec.startswith("pcm_f"))
    tally.meter.sound(frame.samples, frame.sample_rate)
    samples = _frame_samples(frame, _DTYPES[sample_format], channels, planar=planar)
    _check_samples(check, tally.mixers[-1].add(samples))


def _frame_samples(
    frame: av.AudioFrame, dtype: str, channels: int, *, planar: bool
) -> NDArray[Any]:
    """View a frame's samples, [num_channels, num_samples] in FFmpeg's format, without a copy."""
    count = frame.samples
    if planar:
        # From eight channels on PyAV 18 also gives planes that are none: what lies behind the last.
        found = frame.planes[:channels]
        planes = [np.frombuffer(memoryview(plane), dtype, count) for plane in found]
        return planes[0][None, :] if channels == 1 else np.stack(planes)
    return (
        np.frombuffer(memoryview(frame.planes[0]), dtype, count * channels)
        .reshape(count, channels)
        .T
    )


def _check_samples(check: flac.FlacCheck | None, raw: NDArray[Any] | None) -> None:
    if raw is not None and check is not None:
        check.see_samples(raw)
