"""Makes recordings for the audio tests: something like speech, encoded in every format."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from tests.support.crafted_audio import shorten
from tests.support.crafted_headers import aiff, au, chunk, fmt, packed, sphere, wav

__all__ = [
    "CONTAINERS", "ENCODED", "amr_wb", "encoded", "mp4_with_video", "of_container", "pcm_wav",
    "remuxed", "sf_bytes", "speech",
]  # fmt: skip

# Name → FFmpeg's container, codec, sample rate (Hz), bit rate (0: the encoder's own).
ENCODED: dict[str, tuple[str, str, int, int]] = {
    "aac": ("adts", "aac", 16000, 0),
    "alac": ("ipod", "alac", 16000, 0),
    "amr": ("amr", "libopencore_amrnb", 8000, 12200),
    "flac": ("flac", "flac", 16000, 0),
    "m4a": ("ipod", "aac", 16000, 0),
    "mka": ("matroska", "flac", 16000, 0),
    "mp2": ("mp2", "mp2", 16000, 0),
    "mp3": ("mp3", "libmp3lame", 16000, 0),
    "mp3_mka": ("matroska", "libmp3lame", 16000, 0),
    "mp4": ("mp4", "aac", 44100, 0),
    "ogg_flac": ("ogg", "flac", 16000, 0),
    "opus": ("ogg", "libopus", 48000, 0),
    "webm": ("webm", "libopus", 48000, 0),
    "wma": ("asf", "wmav2", 44100, 64000),
}

# What docs/audio.md lists, by names of ENCODED, of libsndfile, or of ``of_container``. There is no
# encoder of Speex here.
CONTAINERS = [
    *ENCODED,
    *("amr_wb", "fast_m4a", "fragments", "mov", "3gp", "video", "piped_flac", "piped_webm"),
    *("mka_aac", "g722", "adpcm", "mp3_wav", "wmav1"),
    *("rifx", "valid_bits", "sample_list", "sowt", "little_au", "shorten"),
    *("FLAC:PCM_24", "OGG:VORBIS", "WAV:PCM_16", "WAV:PCM_U8", "WAV:FLOAT", "WAV:ULAW", "WAV:ALAW"),
    *("WAV:IMA_ADPCM", "WAV:MS_ADPCM", "WAV:GSM610", "WAVEX:PCM_24", "RF64:PCM_16", "W64:PCM_16"),
    *("AIFF:PCM_24", "AIFF:ULAW", "AU:PCM_16", "CAF:PCM_16", "CAF:ALAC_16", "NIST:PCM_16"),
]


# Samples of 16 kHz, in headers that no library here writes.
_CRAFTED: dict[str, Callable[[NDArray[np.float32]], bytes]] = {
    "rifx": lambda sound: wav(
        chunk(b"fmt ", fmt(16, 2, order=">"), order=">"),
        chunk(b"data", packed(sound, 2, 16, order=">"), order=">"),
        magic=b"RIFX",
    ),
    "valid_bits": lambda sound: wav(
        chunk(b"fmt ", fmt(24, 3, valid_bits=16)), chunk(b"data", packed(sound, 3, 16))
    ),
    "sample_list": lambda sound: wav(
        chunk(b"fmt ", fmt(16, 2)),
        chunk(
            b"LIST",
            b"wavl"
            + chunk(b"data", packed(sound, 2, 16))
            + chunk(b"slnt", b"\x00\x10\x00\x00")
            + chunk(b"data", packed(sound, 2, 16)),
        ),
    ),
    "sowt": lambda sound: aiff(packed(sound, 2, 16), 16, kind=b"sowt"),
    "little_au": lambda sound: au(packed(sound, 2, 16), 3, order="<"),
    "shorten": lambda sound: sphere(
        shorten([round(float(sample) * 32767) for sample in sound[0]]),
        sample_coding="pcm,embedded-shorten-v2.00",
        sample_count=sound.shape[1],
    ),
}


def speech(
    seconds: float = 2.0, sample_rate: int = 16000, channels: int = 1, seed: int = 0
) -> NDArray[np.float32]:
    """A voiced sound with a moving pitch and syllables, float32 [num_channels, num_samples]."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t + seed)) / sample_rate
    voice = sum((np.sin(k * phase) / k for k in range(1, 9)), np.zeros(len(t)))
    voice *= 0.15 * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * t))
    voice += rng.normal(0, 0.003, len(t))
    return np.stack([voice * (1 - 0.2 * channel) for channel in range(channels)]).astype(np.float32)


class _Pipe(io.RawIOBase):
    """A file that cannot seek, as a streaming encoder has it."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, octets: Any) -> int:
        self.data += octets
        return len(octets)


@cache
def encoded(
    container: str,
    codec: str,
    sample_rate: int,
    bit_rate: int = 0,
    *,
    seconds: float = 2.0,
    channels: int = 1,
    pipe: bool = False,
    options: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """``speech`` in a container, by FFmpeg."""
    file: Any = _Pipe() if pipe else io.BytesIO()
    layout = "mono" if channels == 1 else "stereo"
    with av.open(file, "w", format=container, options=dict(options)) as out:
        stream: Any = out.add_stream(codec, rate=sample_rate, layout=layout)
        if bit_rate:
            stream.bit_rate = bit_rate
        samples = np.ascontiguousarray(speech(seconds, sample_rate, channels))
        frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
        frame.sample_rate, frame.pts = sample_rate, 0
        resampler = av.AudioResampler(stream.codec_context.format.name, layout, sample_rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return bytes(file.data) if pipe else bytes(file.getvalue())


def amr_wb(seconds: float = 2.0, seed: int = 0) -> bytes:
    """AMR-WB at 6.6 kbit/s, of which any bits are some sound."""
    rng = np.random.default_rng(seed)
    return b"#!AMR-WB\n" + b"".join(b"\x04" + rng.bytes(17) for _ in range(round(seconds * 50)))


@cache
def of_container(name: str, seconds: float = 2.0) -> bytes:
    """``speech`` as one of ``CONTAINERS``."""
    if name in ENCODED:
        return encoded(*ENCODED[name], seconds=seconds)
    if ":" in name:
        container, _, subtype = name.partition(":")
        rate = 8000 if subtype == "GSM610" else 16000
        return sf_bytes(container, subtype, speech(seconds, rate), rate)
    if name == "amr_wb":
        return amr_wb(seconds)
    if name == "video":
        return mp4_with_video(seconds)
    if name == "fast_m4a":
        return remuxed(of_container("m4a", seconds), "ipod", {"movflags": "faststart"})
    if name in _CRAFTED:
        return _CRAFTED[name](speech(seconds))
    fragments = (("movflags", "frag_keyframe+empty_moov"), ("frag_duration", "100000"))
    container, codec, rate, pipe, options = {
        "fragments": ("mp4", "aac", 16000, True, fragments),
        "mov": ("mov", "pcm_s16le", 16000, False, ()),
        "3gp": ("3gp", "libopencore_amrnb", 8000, False, ()),
        "piped_flac": ("flac", "flac", 16000, True, ()),
        "piped_webm": ("webm", "libopus", 48000, True, ()),
        "mka_aac": ("matroska", "aac", 16000, False, ()),
        "g722": ("wav", "g722", 16000, False, ()),
        "adpcm": ("wav", "adpcm_ima_wav", 16000, False, ()),
        "mp3_wav": ("wav", "libmp3lame", 16000, False, ()),
        "wmav1": ("asf", "wmav1", 44100, False, ()),
    }[name]
    bit_rate = 12200 if name == "3gp" else 64000 if name == "wmav1" else 0
    return encoded(container, codec, rate, bit_rate, seconds=seconds, pipe=pipe, options=options)


def remuxed(data: bytes, container: str, options: dict[str, str]) -> bytes:
    """The same packets in another container, which is written as a real file."""
    source: Any
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        with (
            av.open(io.BytesIO(data)) as source,
            av.open(str(path), "w", format=container, options=options) as out,
        ):
            stream = source.streams.audio[0]
            copy = out.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)
        return path.read_bytes()


def mp4_with_video(
    seconds: float = 1.0, *, sound: bool = True, container: str = "mp4", late_s: float = 0.0
) -> bytes:
    """An MP4 whose first track is a picture, and whose two others are sound (if asked for)."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        tracks = [out.add_stream("aac", rate=16000, layout="mono") for _ in range(2 * sound)]
        for index in range(int(seconds * 10)):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            picture.pts = index
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        for number, track in enumerate(tracks):
            samples = speech(seconds, 16000) * (1.0 - 0.9 * number)
            for at in range(0, samples.shape[1], 1024):
                block = np.ascontiguousarray(samples[:, at : at + 1024])
                frame = av.AudioFrame.from_ndarray(block, "fltp", "mono")
                frame.sample_rate, frame.pts = 16000, at + round(late_s * 16000)
                out.mux(track.encode(frame))
            out.mux(track.encode(None))
    return file.getvalue()


def sf_bytes(
    container: str,
    subtype: str,
    samples: NDArray[Any] | None = None,
    sample_rate: int = 16000,
    endian: str = "FILE",
) -> bytes:
    """Samples [num_channels, num_samples] (``speech`` if None) in a container, by libsndfile."""
    file = io.BytesIO()
    samples = speech(sample_rate=sample_rate) if samples is None else samples
    soundfile.write(file, samples.T, sample_rate, subtype, endian, container)
    return file.getvalue()


def pcm_wav(samples: NDArray[np.float32], sample_rate: int = 16000) -> bytes:
    """Samples [num_channels, num_samples] as a WAV of floats, whatever their values are."""
    return sf_bytes("WAV", "FLOAT", samples, sample_rate)
