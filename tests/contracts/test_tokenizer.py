"""What the Protocol ``Tokenizer`` promises, held to by every tokenizer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.errors import JobError
from speechmill.tokenizers import TOKENIZERS, open_tokenizer
from speechmill.tokenizers.base import Codec, Tokenizer
from speechmill.tokenizers.encodec import EncodecTokenizer
from tests.support.codec_checkpoints import CODECS, small_codec

# Every tokenizer that is registered, codecs with small checkpoints; units are fitted first, and
# tested for themselves.
KINDS = tuple(sorted({*TOKENIZERS, *CODECS} - {"units"}))


def spec(kind: str) -> str:
    return f"{kind.removesuffix('48')}:{small_codec(kind)}" if kind in CODECS else kind


def frames(tokenizer: Tokenizer, num_samples: int) -> set[int]:
    """How many frames so many samples may give."""
    if isinstance(tokenizer, EncodecTokenizer):  # where chunks overlap, there are more
        return {tokenizer.num_frames(num_samples)}
    covering = -(-num_samples // tokenizer.hop_length)
    if isinstance(tokenizer, Codec):
        return {covering}
    return {covering, 1 + num_samples // tokenizer.hop_length}  # or centred, as those of mfcc


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(kind: str) -> Tokenizer:
    return open_tokenizer(spec(kind), {}, device="cpu")


def waveform(num_samples: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, num_samples).astype(np.float32)


def test_no_waveforms_give_no_codes(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]) == []


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 20_000), min_size=1, max_size=4))
def test_shape_and_type_are_as_announced(tokenizer: Tokenizer, lengths: list[int]) -> None:
    codes = tokenizer.encode([waveform(n, seed=i) for i, n in enumerate(lengths)])
    assert len(codes) == len(lengths)
    for num_samples, code in zip(lengths, codes, strict=True):
        num_codebooks, num_frames = code.values.shape
        assert num_codebooks == tokenizer.num_codebooks
        assert num_frames in frames(tokenizer, num_samples)
        if tokenizer.codebook_size is None:
            assert code.values.dtype == np.float32
            assert np.isfinite(code.values).all()
        else:
            wide = tokenizer.codebook_size > 32_768
            assert code.values.dtype == (np.int32 if wide else np.int16)
            if code.values.size:
                assert 0 <= code.values.min() <= code.values.max() < tokenizer.codebook_size


def test_neighbours_do_not_matter(tokenizer: Tokenizer) -> None:
    waveforms = [waveform(n, seed=n) for n in (1, 700, 16_000, 5_000)]
    together = tokenizer.encode(waveforms)
    for one, code in zip(waveforms, together, strict=True):
        assert np.array_equal(tokenizer.encode([one])[0].values, code.values)


def test_threads_do_not_matter(tokenizer: Tokenizer) -> None:
    waveforms = [waveform(3_000 + n, seed=n) for n in range(20)]
    alone = [tokenizer.encode([w])[0].values for w in waveforms]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda w: tokenizer.encode([w])[0].values, waveforms))
    assert all(np.array_equal(a, b) for a, b in zip(alone, threaded, strict=True))


def test_input_is_left_as_it_was(tokenizer: Tokenizer) -> None:
    given_one = waveform(4_000)
    given_one.setflags(write=False)
    kept = given_one.copy()
    tokenizer.encode([given_one])
    assert np.array_equal(given_one, kept)


def test_different_audio_gives_different_codes(tokenizer: Tokenizer) -> None:
    one, other = tokenizer.encode([waveform(4_000, seed=1), waveform(4_000, seed=2)])
    assert not np.array_equal(one.values, other.values)


def test_frame_rate_is_sample_rate_by_hop_length(tokenizer: Tokenizer) -> None:
    assert tokenizer.frame_rate == tokenizer.sample_rate / tokenizer.hop_length


def test_recipe_is_json_and_stays_the_same(kind: str, tokenizer: Tokenizer) -> None:
    again = open_tokenizer(spec(kind), {})
    assert json.loads(json.dumps(tokenizer.recipe)) == again.recipe
    assert tokenizer.recipe["tokenizer"] == tokenizer.name


def test_options_shape_the_recipe() -> None:
    assert open_tokenizer("mfcc", {"n_mfcc": 13}).recipe != open_tokenizer("mfcc", {}).recipe
    assert open_tokenizer("mfcc", {"n_mfcc": 20}).recipe == open_tokenizer("mfcc", {}).recipe


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("mfc", r"did you mean 'mfcc'\? there are: .*mfcc"),
        ("wav2vec", "there are: .*dac, encodec, fake"),
        ("mfcc:some/model", "has no models"),
    ],
)
def test_unknown_names_say_what_there_is(spec: str, complaint: str) -> None:
    with pytest.raises(JobError, match=complaint):
        open_tokenizer(spec, {})


def test_the_device_is_no_option_and_no_part_of_the_recipe(kind: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(JobError, match="no option 'device'"):
        open_tokenizer(spec(kind), {"device": "cpu"})
    assert "device" not in json.dumps(tokenizer.recipe)
