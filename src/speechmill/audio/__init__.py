"""Decode recordings to mono waveforms, and resample waveforms.

Bytes are told apart by their content (``sniffing``), their structure is checked against what it
declares (``mpeg``, ``ogg``, ``riff``, ``boxes``, ``flac``), FFmpeg decodes them (``packets``),
and the channels become one (``mixing``), as long as it does not cost too much (``limits``); all of
it in processes of their own (``isolated``). A recording is right, or an AudioError says what is
wrong with it; it is never silently shorter. docs/audio.md has each odd case.
"""

from speechmill.audio.decoding import Decoded, decode
from speechmill.audio.isolated import decode_isolated
from speechmill.audio.limits import NO_LIMITS, Limits
from speechmill.audio.resampling import resample
from speechmill.audio.sniffing import EXTENSIONS, is_apple_double, looks_like_audio

__all__ = [
    "AUDIO_VERSION",
    "EXTENSIONS",
    "NO_LIMITS",
    "Decoded",
    "Limits",
    "decode",
    "decode_isolated",
    "is_apple_double",
    "looks_like_audio",
    "resample",
]

AUDIO_VERSION: int = 1
"""Part of every recipe. Raise it by hand whenever decode or resample gives other values."""
