"""Codes of several codebooks as what a language model reads, and back.

Codes are [num_codebooks, num_frames], the coarsest codebook first. ``start`` and ``end`` put a
special token ahead of and behind them. The schemes are those that Copet et al., "Simple and
controllable music generation" (arXiv 2306.05284), compare:

- ``parallel``: a step has the codes of one frame. [num_codebooks, num_frames]
- ``delay``: codebook k comes k steps later. [num_codebooks, num_frames + num_codebooks − 1]
- ``interleave``: one code a step, frame after frame. [num_codebooks × num_frames]

The inverses go by place: they take away what the same arguments have added, and do not look at
it, since a model may have written anything there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError

__all__ = ["deinterleave", "delay", "interleave", "parallel", "undelay", "unparallel"]

IntArray = NDArray[np.int64]


def parallel(codes: NDArray[Any], *, start: int | None = None, end: int | None = None) -> IntArray:
    """The frames as they are, between a step of ``start`` and one of ``end`` where given.

    Returns int64 [num_codebooks, num_frames], and a step more for each of ``start`` and ``end``.

    Raises:
        JobError: the codes are not integers [num_codebooks, num_frames], or a special token is
            also a code.
    """
    return _with_ends(_checked(codes, start, end), start, end)


def unparallel(
    tokens: NDArray[Any], *, start: int | None = None, end: int | None = None
) -> IntArray:
    """What ``parallel`` made of these with the same arguments: int64 [num_codebooks, num_frames].

    Raises:
        JobError: the tokens are not integers [num_codebooks, num_steps], or too few.
    """
    return _without_ends(_matrix(tokens), 0, start, end)


def delay(
    codes: NDArray[Any], *, pad: int, start: int | None = None, end: int | None = None
) -> IntArray:
    """Codebook k comes k steps later than the first, so that it can be told from all coarser ones.

    ``pad`` stands where a codebook has nothing. ``start`` and ``end`` are delayed like the codes,
    and ``start`` stands instead of ``pad`` ahead of them. MusicGen's own layout has the codebook's
    size for ``pad`` and ``start``.

    Returns int64 [num_codebooks, num_steps]: num_steps = num_frames + num_codebooks − 1, and one
    more for each of ``start`` and ``end``.

    Raises:
        JobError: as ``parallel``.
    """
    codes = _with_ends(_checked(codes, pad, start, end), start, end)
    num_codebooks, num_frames = codes.shape
    steps = np.full((num_codebooks, num_frames + num_codebooks - 1), pad, np.int64)
    for k in range(num_codebooks):
        if start is not None:
            steps[k, :k] = start
        steps[k, k : k + num_frames] = codes[k]
    return steps


def undelay(tokens: NDArray[Any], *, start: int | None = None, end: int | None = None) -> IntArray:
    """What ``delay`` made of these with the same arguments: int64 [num_codebooks, num_frames].

    Raises:
        JobError: the tokens are not integers [num_codebooks, num_steps], or too few.
    """
    tokens = _matrix(tokens)
    num_codebooks, num_steps = tokens.shape
    num_frames = num_steps - num_codebooks + 1
    if num_frames < 0:
        raise _too_few(tokens)
    aligned = [tokens[k, k : k + num_frames] for k in range(num_codebooks)]
    return _without_ends(np.stack(aligned), num_codebooks - 1, start, end)


def interleave(
    codes: NDArray[Any],
    *,
    codebook_size: int | None = None,
    start: int | None = None,
    end: int | None = None,
) -> IntArray:
    """One code a step: all codebooks of the first frame, the coarsest first, then the next frame.

    With ``codebook_size`` each codebook has numbers of its own: code c of codebook k is
    k × codebook_size + c.

    Returns int64 [num_codebooks × num_frames], and one more for each of ``start`` and ``end``.

    Raises:
        JobError: as ``parallel``; or a code is not below ``codebook_size``.
    """
    codes = _matrix(codes)
    if codebook_size is not None:
        if ((codes < 0) | (codes >= codebook_size)).any():
            raise JobError(
                f"codes from {codes.min()} to {codes.max()} do not fit codebook_size="
                f"{codebook_size}: give the size that the sink's metadata tells"
            )
        num_tokens = codebook_size * len(codes)
        for special in (start, end):
            if special is not None and 0 <= special < num_tokens:
                raise JobError(f"the special token {special} is a code's, too: take {num_tokens}")
        codes = codes + codebook_size * np.arange(len(codes))[:, None]
    codes = _checked(codes, start, end)
    flat: IntArray = _with_ends(codes.T.reshape(1, -1), start, end)[0]
    return flat


def deinterleave(
    tokens: NDArray[Any],
    *,
    num_codebooks: int,
    codebook_size: int | None = None,
    start: int | None = None,
    end: int | None = None,
) -> IntArray:
    """What ``interleave`` made of these with the same arguments: int64 [num_codebooks, num_frames].

    Raises:
        JobError: the tokens are not integers [num_steps], are no whole number of frames, or one is
            of another codebook than its place is.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or num_codebooks < 1:
        raise JobError(
            f"tokens of shape {tokens.shape} for {num_codebooks} codebooks: "
            "[num_steps] and one codebook at least are wanted"
        )
    flat = _without_ends(_matrix(tokens[None]), 0, start, end)[0]
    if len(flat) % num_codebooks:
        raise JobError(
            f"{len(flat)} tokens are no whole number of frames of {num_codebooks} codes: "
            "cut the last frame off, or say whether there are start and end"
        )
    codes = np.ascontiguousarray(flat.reshape(-1, num_codebooks).T)
    if codebook_size is not None:
        codes = codes - codebook_size * np.arange(num_codebooks)[:, None]
        wrong = np.argwhere((codes.T < 0) | (codebook_size <= codes.T))
        if len(wrong):
            frame, k = wrong[0]
            raise JobError(
                f"the token of frame {frame} at the place of codebook {k} is not one of its "
                f"{codebook_size} codes: it cannot be decoded"
            )
    return codes


def _matrix(values: NDArray[Any]) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 2 or not len(array) or not np.issubdtype(array.dtype, np.integer):
        raise JobError(
            f"{array.dtype} of shape {array.shape}: integers [num_codebooks, num_frames] are "
            "wanted (features have no codes)"
        )
    return array.astype(np.int64)


def _checked(codes: NDArray[Any], *specials: int | None) -> IntArray:
    """The codes, if none of them is also a special token."""
    codes = _matrix(codes)
    for special in specials:
        if special is not None and (codes == special).any():
            raise JobError(
                f"the special token {special} is among the codes, and could not be told from "
                "them: take a number that is no code, such as the codebook's size"
            )
    return codes


def _with_ends(codes: IntArray, start: int | None, end: int | None) -> IntArray:
    before = [] if start is None else [np.full((len(codes), 1), start, np.int64)]
    after = [] if end is None else [np.full((len(codes), 1), end, np.int64)]
    return np.concatenate([*before, codes, *after], axis=1)


def _without_ends(tokens: IntArray, more: int, start: int | None, end: int | None) -> IntArray:
    first, after = int(start is not None), int(end is not None)
    if tokens.shape[1] < first + after:
        raise _too_few(tokens, more)
    return tokens[:, first : tokens.shape[1] - after].copy()


def _too_few(tokens: IntArray, more: int = 0) -> JobError:
    return JobError(
        f"{tokens.shape[1] + more} steps of {len(tokens)} codebooks are too few for this scheme "
        "with these special tokens: was it another one?"
    )
