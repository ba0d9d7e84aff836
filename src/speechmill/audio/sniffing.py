"""Recognise the kind of a file by its content alone."""

from __future__ import annotations

from typing import Literal

from speechmill.audio.formats import mpeg
from speechmill.audio.formats.au import AU_MAGICS
from speechmill.audio.formats.boxes import ASF_MAGIC
from speechmill.audio.formats.caf import CAF_MAGIC
from speechmill.audio.formats.chunks import RIFF_MAGICS
from speechmill.audio.formats.octets import Octets, only_zeros, starts_with
from speechmill.audio.formats.riff import W64_MAGIC
from speechmill.audio.formats.sphere import SPHERE_MAGIC

__all__ = ["EXTENSIONS", "Kind", "describe", "is_apple_double", "looks_like_audio", "recognise"]

EXTENSIONS: tuple[str, ...] = (
    "3ga",
    "3gp",
    "aac",
    "aif",
    "aifc",
    "aiff",
    "amr",
    "asf",
    "au",
    "awb",
    "caf",
    "flac",
    "m4a",
    "m4b",
    "mka",
    "mkv",
    "mov",
    "mp2",
    "mp3",
    "mp4",
    "mpga",
    "oga",
    "ogg",
    "opus",
    "rf64",
    "snd",
    "sph",
    "spx",
    "w64",
    "wav",
    "wave",
    "weba",
    "webm",
    "wma",
)
"""Extensions that are decoded by default, lower case, without the dot."""

Kind = Literal[
    "aac",
    "aiff",
    "amr",
    "asf",
    "au",
    "caf",
    "flac",
    "mp3",
    "mp4",
    "ogg",
    "sph",
    "w64",
    "wav",
    "webm",
]

_PREFIXES: tuple[tuple[bytes, Kind], ...] = (
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"\x1a\x45\xdf\xa3", "webm"),
    (CAF_MAGIC, "caf"),
    *((magic, "au") for magic in AU_MAGICS),
    (SPHERE_MAGIC, "sph"),
    *((magic, "amr") for magic in mpeg.AMR_MAGICS),
    (ASF_MAGIC, "asf"),
    (W64_MAGIC, "w64"),
)
_APPLE_DOUBLE = b"\x00\x05\x16\x07"  # RFC 1740
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide")
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1", b"crx ")
_OTHERS = (
    (_APPLE_DOUBLE, "an AppleDouble file: what macOS keeps of another file on other disks"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"wvpk", "a WavPack file, which is not supported: convert it to FLAC"),
    (b"MAC ", "a Monkey's Audio file, which is not supported: convert it to FLAC"),
    (b"TTA", "a True Audio file, which is not supported: convert it to FLAC"),
    (b"MThd", "a MIDI file: notes, not sound"),
    (b"FLV", "a Flash video, which is not supported"),
)
_TEXTS = (
    (("version https://git-lfs",), "a Git LFS pointer: the file itself was never fetched"),
    (
        ("<!doctype", "<html", "<?xml", "<error", "<"),
        "an XML or HTML page, as stores send for errors",
    ),
    (("{", "["), "JSON text"),
    (("#extm3u",), "a playlist"),
    (("ffconcat",), "a list of files"),
)


def recognise(data: Octets) -> tuple[Kind, int] | None:
    """Find the container's kind and start (behind an ID3 tag); None if it is no audio."""
    start = mpeg.skip_id3(data, 0)
    head = data[start : start + 64]
    kind = _by_magic(head)
    if kind is not None:
        return kind, start
    return mpeg.first_frame(data, start)


def looks_like_audio(head: bytes) -> bool:
    """Whether the first bytes of a file (64 are enough) are those of audio that we decode."""
    if _by_magic(head) is not None or head.startswith(b"ID3"):
        return True
    return mpeg.adts_length(head, 0) > 0 or mpeg.mpeg_length(head, 0) > 0


def is_apple_double(head: bytes) -> bool:
    """Whether the first bytes of a file are those of AppleDouble, as macOS writes a file ``._NAME``
    beside each file NAME on a disk that cannot hold its resource fork and Finder's notes."""
    return head.startswith(_APPLE_DOUBLE)


def _by_magic(head: bytes) -> Kind | None:
    for magic, kind in _PREFIXES:
        if head.startswith(magic):
            return kind
    if head[:4] in RIFF_MAGICS and head[8:12] in {b"WAVE", b""}:
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC", b""}:
        return "aiff"
    is_image = head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS
    if head[4:8] in _MP4_BOXES and not is_image:
        return "mp4"
    return None


def describe(data: Octets) -> str:
    """Describe bytes that are no audio, for an error's text."""
    for magic, name in _OTHERS:
        if starts_with(data, magic):
            return name
    if data[:4] == b"RIFF" and data[8:11] == b"AVI":
        return "an AVI video, which is not supported"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP image"
    if data[4:8] == b"ftyp":
        return "an image (HEIF or AVIF)"
    head = data[:4096]
    if not head.strip(b"\x00"):
        if only_zeros(data):
            return "nothing but zeros, as a failed copy leaves them"
        return "zeros, and then data of an unknown kind"
    return _describe_text(head) or "data of an unknown kind"


def _describe_text(head: bytes) -> str | None:
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = head.decode(encoding, "replace").lstrip().lower()
    for prefixes, name in _TEXTS:
        if text.startswith(prefixes):
            return name
    printable = sum(char.isprintable() or char.isspace() for char in text if char != "�")
    return "plain text" if text and printable > 0.95 * len(text) else None
