"""Figures that tell made-up text from speech, which confidence alone does not
(SYSTRAN/faster-whisper issue 506)."""

from __future__ import annotations

import re
import unicodedata
import zlib
from typing import Final

__all__ = [
    "can_be_said",
    "compression_ratio",
    "doubts",
    "is_said_again",
    "is_slow",
    "letter_compression_ratio",
    "repetition",
    "speech_rate",
]

PHRASE_WORDS: Final = 3
PHRASE_CHARACTERS: Final = 6
"""Length of a phrase: shorter ones come again in plain speech."""
MAX_MEAN_WORD: Final = 15
"""Mean characters per word, above which a script is taken to be written without spaces."""

MIN_REPETITIVE: Final = 0.4
"""The least ``repetition`` of a text that loops; people stay below 0.3."""

MAX_CHARS_PER_S: Final = 30.0
"""Characters per second, spaces included, above which nobody speaks in an alphabet …"""
MAX_SYLLABIC_CHARS_PER_S: Final = 15.0
"""… and in scripts whose characters are syllables or words."""
MIN_CHARS_PER_S: Final = 2.0
"""Characters per second, below which most of what was said is missing …"""
MIN_CHARS_VOICE_S: Final = 3.0
"""… in this many seconds of voice or more."""
SLOW_CHARS_PER_S: Final = 10.0
"""Characters per second below which part of what was said may be missing, …"""
SLOW_VOICE_S: Final = 3.0
"""… in this many seconds of voice or more. Recordings in five languages are above 12 where all is
there, and at 7 to 12 where one of two sentences is missing."""
MIN_VOICE_S: Final = 0.25
"""Rates are those of at least this much voice: shorter ones say nothing."""

SPOKEN_SIGNS: Final = "%&@#+"
"""Signs, besides currencies, that Whisper writes for a word said alone."""

MAX_NO_SPEECH_PROB: Final = 0.6
"""Whisper's own threshold, above which it takes a window for silence. It keeps words there if it is
sure of them; chimes and jingles show that it may be sure of "you"."""

_VOWELS_BELOW: Final = "\u0590"
"""The scripts before it, Latin, Greek, Cyrillic and Armenian, write vowels as letters."""

_SYLLABIC: Final = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]"
)


def compression_ratio(text: str) -> float:
    """Divide a text's size in UTF-8 (not 0) by that under zlib: high where it repeats itself.

    It is Whisper's own figure (Radford et al., 2022, section 4.5).
    """
    return _compression(text.encode())


def letter_compression_ratio(text: str) -> float:
    """Compute the compression ratio with one byte per letter.

    UTF-8 takes two or three in most scripts; as the first ones are always the same, plain Tamil
    looks like a loop (2.57 for a sentence whose ratio here is 1.3).
    """
    return _compression(bytes(ord(letter) & 0xFF for letter in text))


def _compression(encoded: bytes) -> float:
    return len(encoded) / len(zlib.compress(encoded))


def _words(text: str) -> list[str]:
    """Split into words in lower case. Vowel signs, as of Devanagari, are part of a word, which
    regular expressions do not know."""
    letters = (
        letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else " "
        for letter in text.lower()
    )
    return "".join(letters).split()


def repetition(text: str) -> float:
    """Compute the share of a text that repeats an earlier phrase of it: 0 to 1, 0.5 where all is
    said twice.

    A phrase is three words, or six characters in scripts without spaces; case and punctuation do
    not count.
    """
    words = _words(text)
    length = PHRASE_WORDS
    if sum(map(len, words)) > MAX_MEAN_WORD * len(words):
        words, length = list("".join(words)), PHRASE_CHARACTERS
    seen: set[tuple[str, ...]] = set()
    repeats = [False] * len(words)
    for i in range(len(words) - length + 1):
        phrase = tuple(words[i : i + length])
        if phrase in seen:
            repeats[i : i + length] = [True] * length
        seen.add(phrase)
    return sum(repeats) / len(words) if words else 0.0


def is_said_again(text: str) -> bool:
    """Whether a text is nothing but one word or phrase, twice or more: "July. July"."""
    words = _words(text)
    return any(
        len(words) % length == 0 and words == words[:length] * (len(words) // length)
        for length in range(1, len(words) // 2 + 1)
    )


def can_be_said(text: str) -> bool:
    """Whether a text holds a letter, a digit or a sign that is read out, as "%" and "$"; dots and
    notes of music are not."""
    return any(
        character.isalnum() or character in SPOKEN_SIGNS or unicodedata.category(character) == "Sc"
        for character in text
    )


def speech_rate(text: str, voiced_s: float | None) -> float | None:
    """Compute characters per second of voice; None where there is no text or no voice to count."""
    return len(text) / voiced_s if text and voiced_s else None


def is_slow(text: str, voiced_s: float | None) -> bool:
    """Whether a text is so short for its seconds of voice that something may be missing.

    Scripts without vowels count double, those whose characters are syllables or words, and digits,
    four times: where in doubt a text is not slow.
    """
    if not text or voiced_s is None or voiced_s < SLOW_VOICE_S:
        return False
    length = sum(map(_spoken_length, text))
    return length < SLOW_CHARS_PER_S * voiced_s


def _spoken_length(character: str) -> int:
    if character.isdecimal() or _SYLLABIC.match(character):
        return 4
    return 1 if character < _VOWELS_BELOW or not character.isalpha() else 2


def doubts(
    text: str, voiced_s: float | None, repeated: float, no_speech_prob: float | None
) -> set[str]:
    """Find the flags of a row's text: ``repetitive``, ``too_fast``, ``too_slow``,
    ``maybe_incomplete``, ``maybe_no_speech``.

    ``repeated`` is its ``repetition``. How fast is too fast depends on the script: the limits of
    Chinese, Japanese and Korean are half of those of alphabets, and a mixture has a mixed one.
    """
    found = set()
    if repeated >= MIN_REPETITIVE:
        found.add("repetitive")
    if text and no_speech_prob is not None and no_speech_prob > MAX_NO_SPEECH_PROB:
        found.add("maybe_no_speech")
    if not text or not voiced_s:
        return found
    dense = len(_SYLLABIC.findall(text)) / len(text)
    scale = dense * MAX_CHARS_PER_S / MAX_SYLLABIC_CHARS_PER_S + 1 - dense
    rate = scale * len(text) / max(voiced_s, MIN_VOICE_S)
    if rate > MAX_CHARS_PER_S:
        found.add("too_fast")
    if rate < MIN_CHARS_PER_S and voiced_s >= MIN_CHARS_VOICE_S:
        found.add("too_slow")
    elif is_slow(text, voiced_s):
        found.add("maybe_incomplete")
    return found
