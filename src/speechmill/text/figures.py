"""Figures that tell a made-up text from speech, which confidence alone does not
(SYSTRAN/faster-whisper issue 506), and codes from others."""

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
    "letter_compression_ratio",
    "repetition",
    "speech_rate",
]

PHRASE_WORDS: Final = 3
PHRASE_CHARACTERS: Final = 6
LONGEST_WORDS: Final = 15
"""Characters a word, above which a script is taken to be written without spaces."""

REPETITIVE: Final = 0.4
"""The least ``repetition`` of what a model has begun to loop on; people stay below 0.3."""

FASTEST: Final = 30.0
"""Characters a second, spaces included, that nobody speaks in an alphabet …"""
FASTEST_DENSE: Final = 15.0
"""… and in scripts whose characters are syllables or words."""
SLOWEST: Final = 2.0
"""Characters a second, below which most of what was said is missing …"""
SLOWEST_OF_S: Final = 3.0
"""… where there are so many seconds of voice."""
LEAST_VOICE_S: Final = 0.25
"""Of less voice no rate is to be told."""

SPOKEN_SIGNS: Final = "%&@#+"
"""Besides currencies. Whisper writes them for a word alone."""

RATHER_NO_SPEECH: Final = 0.6
"""Whisper's own threshold, above which it holds a window for one without speech. It believes words
there if it is sure of them; chimes and jingles show that it may be sure of "you"."""

_DENSE: Final = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]"
)


def compression_ratio(text: str) -> float:
    """UTF-8 bytes of a text (not empty) by their size under zlib: high where it repeats itself."""
    return _compression(text.encode())


def letter_compression_ratio(text: str) -> float:
    """The same with one byte a letter. UTF-8 takes two or three in most scripts, and as those that
    come first are always the same, plain Tamil looks like a loop."""
    return _compression(bytes(ord(letter) & 0xFF for letter in text))


def _compression(encoded: bytes) -> float:
    return len(encoded) / len(zlib.compress(encoded))


def _words(text: str) -> list[str]:
    """The words in lower case. Vowel signs, as of Devanagari, are of the word, other than for
    regular expressions."""
    letters = (
        letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else " "
        for letter in text.lower()
    )
    return "".join(letters).split()


def repetition(text: str) -> float:
    """The share of a text that repeats a phrase said before in it: 0 to 1, 0.5 when all is said
    twice.

    A phrase is three words, or six characters in scripts without spaces; case and punctuation do
    not count.
    """
    words = _words(text)
    length = PHRASE_WORDS
    if sum(map(len, words)) > LONGEST_WORDS * len(words):
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
    """Whether there is a letter in a text, a digit or a sign that is read out, as "%" and "$". Dots
    and notes of music are none."""
    return any(
        character.isalnum() or character in SPOKEN_SIGNS or unicodedata.category(character) == "Sc"
        for character in text
    )


def speech_rate(text: str, voiced_s: float | None) -> float | None:
    """Characters of a text a second of voice; None where there is no text, or no voice to count."""
    return len(text) / voiced_s if text and voiced_s else None


def doubts(
    text: str, voiced_s: float | None, repeated: float, no_speech_prob: float | None
) -> set[str]:
    """The flags that a row's text deserves: ``repetitive``, ``too_fast``, ``too_slow``,
    ``maybe_no_speech``.

    ``repeated`` is its ``repetition``. How fast is too fast depends on the script: the limits of
    Chinese, Japanese and Korean are half of those of alphabets, and a mixture has a mixed one.
    """
    found = set()
    if repeated >= REPETITIVE:
        found.add("repetitive")
    if text and no_speech_prob is not None and no_speech_prob > RATHER_NO_SPEECH:
        found.add("maybe_no_speech")
    if not text or not voiced_s:
        return found
    dense = len(_DENSE.findall(text)) / len(text)
    scale = dense * FASTEST / FASTEST_DENSE + 1 - dense
    rate = scale * len(text) / max(voiced_s, LEAST_VOICE_S)
    if rate > FASTEST:
        found.add("too_fast")
    if rate < SLOWEST and voiced_s >= SLOWEST_OF_S:
        found.add("too_slow")
    return found
