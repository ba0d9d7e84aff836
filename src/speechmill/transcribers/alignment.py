"""Times of words, by the cross-attention of Whisper's decoder to the audio.

The method is openai-whisper's (``timing.py``): some heads follow the speech; dynamic time warping
finds the best path through their mean that is monotonic in tokens and in time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNSPACED", "first_frames", "smoothed", "split_words"]

UNSPACED: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages written without spaces: there a word is a character."""

MEDIAN_WIDTH: Final = 7
"""Frames, as in openai-whisper."""
LONGEST_CHARACTER: Final = 4
"""Tokens that one character may take: its bytes in UTF-8."""


def smoothed(weights: Any) -> NDArray[np.float64]:
    """Normalise attention over tokens, filter it by a median over time, and average the heads.

    Args:
        weights: a tensor [heads, tokens, frames] of attention, of any scale along frames.

    Returns:
        [tokens, frames].
    """
    import torch

    weights = weights.float()
    weights = weights / weights.sum(-1, keepdim=True)
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / std.clamp(min=1e-12)
    if weights.shape[-1] > MEDIAN_WIDTH // 2:
        padded = torch.nn.functional.pad(weights, (MEDIAN_WIDTH // 2,) * 2, mode="reflect")
        weights = padded.unfold(-1, MEDIAN_WIDTH, 1).median(-1).values
    return np.asarray(weights.mean(0).cpu().numpy(), np.float64)


def first_frames(gain: NDArray[np.float64]) -> list[int]:
    """Find the frame at which each token begins, on the best path through ``gain``.

    A path begins at the first token and frame, ends at the last ones, and goes on by a token, a
    frame or both at a time; its gain is the sum over its places.

    Args:
        gain: [tokens, frames], neither of them 0.

    Returns:
        A frame a token, never decreasing.
    """
    num_tokens, num_frames = gain.shape
    costs = -gain
    frames = np.arange(num_frames)
    total = np.cumsum(costs[0])
    totals, entries = [total], [np.zeros(num_frames, np.int64)]
    for cost in costs[1:]:
        # The cheapest path into this token at each frame: from the token before, at the same frame
        # or the one before it. Then some frames on within the token: a running sum.
        above = totals[-1]
        entry = np.minimum(above, np.concatenate(([np.inf], above[:-1])))
        spent = np.cumsum(cost)
        value = entry - (spent - cost)
        best = np.minimum.accumulate(value)
        totals.append(best + spent)
        entries.append(np.maximum.accumulate(np.where(value == best, frames, 0)))
    begins = [0] * num_tokens
    frame = num_frames - 1
    for token in range(num_tokens - 1, 0, -1):
        frame = begins[token] = int(entries[token][frame])
        above = totals[token - 1]
        if frame and above[frame - 1] <= above[frame]:
            frame -= 1
    return begins


def split_words(
    tokens: Sequence[int], decode: Callable[[list[int]], str], *, spaced: bool
) -> list[tuple[str, int]]:
    """Split a text into words and their numbers of tokens; joined, the words are the text.

    Args:
        tokens: of text alone.
        decode: tokens → text, where an incomplete character becomes U+FFFD.
        spaced: whether words begin with a space; else each character is a word. Punctuation goes
            with the word before it.
    """
    words: list[tuple[str, int]] = []
    pending: list[int] = []
    for i, token in enumerate(tokens):
        pending.append(token)
        text = decode(pending)
        incomplete = text.endswith("\N{REPLACEMENT CHARACTER}")
        if incomplete and len(pending) < LONGEST_CHARACTER and i + 1 < len(tokens):
            continue
        goes_on = not text.startswith(" ") if spaced else _is_punctuation(text)
        if words and goes_on:
            word, count = words.pop()
            words.append((word + text, count + len(pending)))
        else:
            words.append((text, len(pending)))
        pending = []
    return words


def _is_punctuation(text: str) -> bool:
    return bool(text.strip()) and all(unicodedata.category(c).startswith("P") for c in text.strip())
