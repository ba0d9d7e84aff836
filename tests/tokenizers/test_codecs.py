"""Neural codecs: their codes are those of the reference, and depend on nothing but the clip."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.records import Codes
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Codec, Tokenizer
from speechmill.tokenizers.exact.lanes import side_by_side
from tests.support.codec_checkpoints import CODECS, HOPS, small_codec
from tests.support.codec_references import Reference, load_reference

# What the reference's encode is asked for besides, and by what option ours is.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "encodec": ({"bandwidth": 6.0}, {"bandwidth": 6.0}),
    "encodec48": ({"bandwidth": 6.0}, {"bandwidth": 6.0}),
    "dac": ({"n_quantizers": 3}, {"num_codebooks": 3}),
    "mimi": ({"num_quantizers": 3}, {"num_codebooks": 3}),
    "xcodec": ({"bandwidth": 2.0}, {"bandwidth": 2.0}),
    "snac": ({}, {}),
}


@cache
def opened(name: str) -> Codec:
    codec = open_tokenizer(
        f"{name.removesuffix('48')}:{small_codec(name)}", OPTIONS[name][1], device="cpu"
    )
    assert isinstance(codec, Codec)
    return codec


@cache
def reference(name: str) -> Reference:
    return load_reference(name, small_codec(name), **OPTIONS[name][0])


@pytest.fixture(params=CODECS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def codec(name: str) -> Codec:
    return opened(name)


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    """The reference is called on two threads, as on a machine with more than one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def clip(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise that is loud and soft in turn, as what the codebooks were filled with."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.random(num_samples // 800 + 1), 800)[:num_samples]
    return (rng.standard_normal(num_samples) * loudness).astype(np.float32)


def codes_only(name: str, codes: Codes) -> NDArray[Any]:
    """Without the row that says how loud each frame is."""
    return codes.values[:-1] if name == "encodec48" else codes.values


@settings(max_examples=12, deadline=None)
@given(num_samples=st.integers(1, 30_000), seed=st.integers(0, 99))
def test_codes_are_those_of_the_reference(name: str, num_samples: int, seed: int) -> None:
    waveform = clip(num_samples, seed)
    (codes,) = opened(name).encode([waveform])
    assert np.array_equal(codes_only(name, codes), reference(name)(waveform))


@pytest.mark.parametrize("num_samples", [1, 2, 39, 40, 41, 7_920, 7_921, 8_000, 15_841, 32_001])
def test_codes_are_those_of_the_reference_at_the_edges(name: str, num_samples: int) -> None:
    test_codes_are_those_of_the_reference.hypothesis.inner_test(name, num_samples, 7)  # type: ignore[attr-defined]


def test_codes_of_long_clips_are_those_of_the_reference(name: str, codec: Codec) -> None:
    waveform = clip(round(28.7 * codec.sample_rate), seed=3)
    (codes,) = codec.encode([waveform])
    assert np.array_equal(codes_only(name, codes), reference(name)(waveform))


@pytest.mark.parametrize("name", ["dac", "snac"])
def test_codes_of_what_is_computed_in_pieces_are_near_those_of_the_reference(name: str) -> None:
    codec = opened(name)
    waveform = clip(65 * codec.sample_rate, seed=3)
    (codes,) = codec.encode([waveform])
    # Products of matrices may round otherwise in a piece than in the whole.
    assert (codes.values != reference(name)(waveform)).mean() < 2e-4


def test_at_least_half_of_all_codes_occur(codec: Codec) -> None:
    (codes,) = codec.encode([clip(20 * codec.sample_rate)])
    assert codec.codebook_size == 64
    loudness = [1] if codec.name == "encodec" and codec.num_codebooks == 6 else []
    rows = codes.values[: len(codes.values) - len(loudness)]
    assert min(len(np.unique(row)) for row in rows) >= 32


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20_000), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    num_threads=st.sampled_from([1, 2, 3]),
)
def test_codes_do_not_depend_on_batch_order_or_threads(
    name: str, lengths: list[int], order: Any, num_threads: int
) -> None:
    codec = opened(name)
    clips = [clip(n, seed=i) for i, n in enumerate(lengths)]
    alone = [codec.encode([one])[0].values for one in clips]
    shuffled = list(range(len(clips)))
    order.shuffle(shuffled)
    torch.set_num_threads(num_threads)
    try:
        together = codec.encode([clips[i] for i in shuffled])
    finally:
        torch.set_num_threads(2)
    for i, codes in zip(shuffled, together, strict=True):
        num_frames = -(-lengths[i] // HOPS[name])
        if name != "encodec48":  # its chunks overlap
            assert codes.values.shape == (codec.num_codebooks, num_frames)
        assert np.array_equal(codes.values, alone[i])


def test_codes_do_not_depend_on_who_else_encodes(codec: Codec) -> None:
    clips = [clip(2_000 + 311 * i, seed=i) for i in range(12)]
    alone = [codec.encode([one])[0].values for one in clips]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda one: codec.encode([one])[0].values, clips))
    assert all(np.array_equal(a, b) for a, b in zip(alone, beside, strict=True))


ON_ONE_CORE = """
import hashlib, os, sys
os.environ["OMP_NUM_THREADS"] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from speechmill.tokenizers import open_tokenizer
from tests.tokenizers.test_codecs import digest
for line in sys.argv[1:]:
    name, _, spec = line.partition("=")
    print(name, digest(open_tokenizer(spec, {}, device="cpu")))
"""


def digest(codec: Tokenizer) -> str:
    """Of the codes of a few clips."""
    codes = codec.encode([clip(n, seed=n) for n in (1, 5_000, 70_001)])
    return hashlib.sha256(b"".join(one.values.tobytes() for one in codes)).hexdigest()


def test_codes_do_not_depend_on_the_number_of_cores() -> None:
    specs = {name: f"{name.removesuffix('48')}:{small_codec(name)}" for name in CODECS}
    ended = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, *(f"{name}={spec}" for name, spec in specs.items())],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    found = dict(line.split() for line in ended.stdout.splitlines())
    wanted = {name: digest(open_tokenizer(spec, {})) for name, spec in specs.items()}
    assert found == wanted


@settings(max_examples=6, deadline=None)
@given(num_samples=st.integers(0, 30_000))
def test_codes_decode_to_the_length_that_is_announced(name: str, num_samples: int) -> None:
    codec = opened(name)
    (codes,) = codec.encode([clip(num_samples)])
    (waveform,) = codec.decode([codes])
    assert waveform.dtype == np.float32
    assert waveform.shape == (codec.decoded_length(codes.values.shape[1]),)
    assert np.isfinite(waveform).all()
    # DAC's decoder gives a few samples less than whole frames where its ratios are odd.
    assert len(waveform) > num_samples - (HOPS[name] if name == "dac" else 0) - 1


def test_what_is_decoded_does_not_depend_on_neighbours(codec: Codec) -> None:
    codes = codec.encode([clip(n, seed=n) for n in (1, 9_000, 20_000, 3_001)])
    alone = [codec.decode([one])[0] for one in codes]
    together = codec.decode(codes[::-1])[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_decoding_takes_codes_only(codec: Codec) -> None:
    from speechmill.errors import JobError

    (codes,) = codec.encode([clip(4_000)])
    for wrong in (codes.values[:-1], codes.values.astype(np.float32), codes.values + 64):
        with pytest.raises(JobError, match="codes must be"):
            codec.decode([Codes(wrong)])


def test_each_clip_is_computed_on_one_thread() -> None:
    def num_threads(_: int) -> int:
        torch.randn(200, 200).matmul(torch.randn(200, 200))
        return int(torch.get_num_threads())

    assert set(side_by_side(num_threads, range(6), [1.0] * 6)) == {1}
