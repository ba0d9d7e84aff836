"""Flattening schemes: their layout, and that nothing is lost on the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from speechmill.errors import JobError
from speechmill.tokens.patterns import (
    deinterleave,
    delay,
    interleave,
    parallel,
    undelay,
    unparallel,
)

SIZE = 7
CODES = np.array([[0, 1, 2], [3, 4, 5]], np.int16)

any_codes = hnp.arrays(
    st.sampled_from([np.int16, np.int32, np.int64]),
    st.tuples(st.integers(1, 9), st.integers(0, 12)),
    elements=st.integers(0, SIZE - 1),
)
special = st.none() | st.integers(9 * SIZE, 9 * SIZE + 3) | st.just(-1)


@given(any_codes, special, special)
def test_parallel_has_an_inverse(codes: NDArray[Any], start: int | None, end: int | None) -> None:
    tokens = parallel(codes, start=start, end=end)
    back = unparallel(tokens, start=start, end=end)
    np.testing.assert_array_equal(back, codes)
    assert tokens.shape[1] == codes.shape[1] + (start is not None) + (end is not None)


@given(any_codes, st.integers(SIZE, SIZE + 2), special, special)
def test_delay_has_an_inverse(
    codes: NDArray[Any], pad: int, start: int | None, end: int | None
) -> None:
    tokens = delay(codes, pad=pad, start=start, end=end)
    back = undelay(tokens, start=start, end=end)
    np.testing.assert_array_equal(back, codes)
    extra = (start is not None) + (end is not None) + len(codes) - 1
    assert tokens.shape == (len(codes), codes.shape[1] + extra)


@given(any_codes, st.sampled_from([None, SIZE]), special, special)
def test_interleave_has_an_inverse(
    codes: NDArray[Any], size: int | None, start: int | None, end: int | None
) -> None:
    tokens = interleave(codes, codebook_size=size, start=start, end=end)
    back = deinterleave(tokens, num_codebooks=len(codes), codebook_size=size, start=start, end=end)
    np.testing.assert_array_equal(back, codes)
    assert tokens.shape == (codes.size + (start is not None) + (end is not None),)


def test_parallel_keeps_frames_as_they_are() -> None:
    assert parallel(CODES, start=8, end=9).tolist() == [[8, 0, 1, 2, 9], [8, 3, 4, 5, 9]]


def test_interleaving_puts_the_coarsest_code_of_a_frame_first() -> None:
    assert interleave(CODES).tolist() == [0, 3, 1, 4, 2, 5]
    with_own_numbers = interleave(CODES, codebook_size=10, start=20, end=21).tolist()
    assert with_own_numbers == [20, 0, 13, 1, 14, 2, 15, 21]


def test_delay_is_musicgens_with_its_special_token() -> None:
    # Table and text of arXiv 2306.05284: a first step of special tokens, each codebook a step on.
    codes = np.arange(1, 9).reshape(4, 2)
    assert delay(codes, pad=9, start=9).tolist() == [
        [9, 1, 2, 9, 9, 9],
        [9, 9, 3, 4, 9, 9],
        [9, 9, 9, 5, 6, 9],
        [9, 9, 9, 9, 7, 8],
    ]


def test_start_stands_ahead_of_delayed_codes_and_end_right_behind_them() -> None:
    assert delay(CODES, pad=9, start=7, end=8).tolist() == [
        [7, 0, 1, 2, 8, 9],
        [7, 7, 3, 4, 5, 8],
    ]


def test_what_a_model_writes_in_the_place_of_padding_does_not_matter() -> None:
    tokens = delay(CODES, pad=9)
    tokens[tokens == 9] = 3
    np.testing.assert_array_equal(undelay(tokens), CODES)


@pytest.mark.parametrize("scheme", [parallel, interleave])
def test_a_special_token_that_is_also_a_code_is_an_error(scheme: Any) -> None:
    with pytest.raises(JobError, match="special token 5"):
        scheme(CODES, start=5)
    with pytest.raises(JobError, match="special token 0"):
        scheme(CODES, end=0)
    with pytest.raises(JobError, match="special token 2"):
        delay(CODES, pad=2)


def test_a_special_token_may_not_be_any_codebooks_number() -> None:
    with pytest.raises(JobError, match="take 20"):
        interleave(CODES, codebook_size=10, start=19)


def test_a_code_beyond_the_codebook_is_an_error() -> None:
    with pytest.raises(JobError, match="codebook_size=5"):
        interleave(CODES, codebook_size=5)


def test_a_token_of_another_codebook_is_an_error() -> None:
    tokens = interleave(CODES, codebook_size=10)
    tokens[3] = 4
    with pytest.raises(JobError, match="frame 1 at the place of codebook 1"):
        deinterleave(tokens, num_codebooks=2, codebook_size=10)


def test_half_a_frame_is_an_error() -> None:
    with pytest.raises(JobError, match="whole number of frames"):
        deinterleave(interleave(CODES)[:-1], num_codebooks=2)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 3), np.float32), np.zeros(3, np.int64), np.zeros((0, 3), np.int64)]
)
def test_what_is_no_codes_is_an_error(wrong: NDArray[Any]) -> None:
    for action in (parallel, unparallel, interleave, undelay, lambda c: delay(c, pad=9)):
        with pytest.raises(JobError, match=r"\[num_codebooks, num_frames\]"):
            action(wrong)


def test_too_few_steps_are_an_error() -> None:
    with pytest.raises(JobError, match="too few"):
        undelay(np.zeros((4, 2), np.int64))
    with pytest.raises(JobError, match="too few"):
        unparallel(np.zeros((4, 1), np.int64), start=1, end=2)
    with pytest.raises(JobError, match=r"\[num_steps\]"):
        deinterleave(np.zeros((4, 2), np.int64), num_codebooks=4)
