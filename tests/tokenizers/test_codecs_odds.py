"""Neural codecs at their edges: devices, checkpoints that will not do, odd models, long clips."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.dataset.schema import row_schema
from speechmill.errors import AudioError, JobError, MissingExtraError, ModelError
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.columns import column_of
from speechmill.tokenizers.encodec import LOUDEST_DB, QUIETEST_DB, EncodecTokenizer
from speechmill.tokenizers.exact.lanes import side_by_side
from speechmill.tokenizers.exact.pointwise import as_on_threads
from speechmill.tokenizers.exact.seanet import padded
from speechmill.tokenizers.mimi import MimiTokenizer
from speechmill.tokenizers.snac import SnacTokenizer, from_levels, to_levels
from tests.support.codec_checkpoints import CODECS, small_codec, write_snac
from tests.support.codec_references import load_snac
from tests.tokenizers.test_codecs import clip


def opened(name: str, **options: Any) -> Any:
    return open_tokenizer(f"{name.removesuffix('48')}:{small_codec(name)}", options, device="cpu")


# A GPU computes clips of one length together; here the CPU is made to.


@pytest.fixture(params=CODECS)
def in_batches(request: pytest.FixtureRequest) -> Any:
    codec = opened(request.param)
    codec._in_batches = True
    return codec


def test_batches_give_what_clips_give_alone_up_to_rounding(in_batches: Any) -> None:
    clips = [clip(n, seed=i) for i, n in enumerate([5_000, 0, 9_000, 5_000, 1, 5_000, 9_000])]
    together = in_batches.encode(clips)
    in_batches._in_batches = False
    for one, codes in zip(clips, together, strict=True):
        (alone,) = in_batches.encode([one])
        assert codes.values.shape == alone.values.shape
        assert (codes.values != alone.values).sum() <= 0.02 * alone.values.size
    (waveform,) = in_batches.decode(together[:1])
    assert np.isfinite(waveform).all()


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = opened("dac")
    codec._in_batches = True
    clips = [clip(3_000, seed=i) for i in range(7)]
    expected = [codes.values for codes in codec.encode(clips)]
    sizes: list[int] = []
    compute = codec._codes

    def little_memory(waveforms: Any) -> Any:
        sizes.append(len(waveforms))
        if len(waveforms) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(waveforms)

    monkeypatch.setattr(codec, "_codes", little_memory)
    found = codec.encode(clips)
    assert sizes[0] == 7
    assert max(size for size in sizes if size <= 2) == 2
    for codes, values in zip(found, expected, strict=True):
        assert codes.values.shape == values.shape
        assert (codes.values != values).mean() <= 0.02

    def no_memory(waveforms: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(codec, "_codes", no_memory)
    with pytest.raises(ModelError, match="cannot run on cpu: CUDA out of memory"):
        codec.encode(clips)


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(JobError, match="'tpu'"):
        open_tokenizer(f"dac:{small_codec('dac')}", {}, device="tpu")


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("encodec", {"bandwidth": 7.0}, "bandwidth must be one of 2.4, 6, not 7"),
        ("xcodec", {"bandwidth": 7.0}, "bandwidth must be one of 0.6, 2, not 7"),
        ("dac", {"num_codebooks": 5}, "between 1 and 4, or 0 for all, not 5"),
        ("mimi", {"num_codebooks": -1}, "between 1 and 4"),
        ("snac", {"num_codebooks": 3}, "no option 'num_codebooks'"),
        ("mimi", {"num_codebooks": "all"}, "must be of type int"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(JobError, match=complaint):
        opened(name, **options)


def test_fewer_codebooks_are_the_first_ones() -> None:
    waveform = clip(20_000)
    for name, few, all_of_them in (
        ("dac", {"num_codebooks": 2}, {}),
        ("mimi", {"num_codebooks": 2}, {}),
        ("encodec", {"bandwidth": 2.4}, {"bandwidth": 6.0}),
        ("xcodec", {"bandwidth": 0.6}, {"bandwidth": 2.0}),
    ):
        less, more = opened(name, **few), opened(name, **all_of_them)
        assert less.num_codebooks < more.num_codebooks
        (a,), (b,) = less.encode([waveform]), more.encode([waveform])
        assert np.array_equal(a.values, b.values[: less.num_codebooks])
        assert less.recipe != more.recipe


@pytest.mark.parametrize("name", [name for name in CODECS if name != "encodec48"])
def test_another_kind_of_checkpoint_is_refused(name: str) -> None:
    other = small_codec("dac" if name != "dac" else "mimi")
    with pytest.raises(JobError, match="is a checkpoint of"):
        open_tokenizer(f"{name}:{other}", {})


@pytest.mark.parametrize("name", ["mimi", "snac"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((small_codec(name) / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(JobError, match=r"a pickle, which may run code.*convert it"):
        open_tokenizer(f"{name}:{tmp_path}", {})


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    config = json.loads((small_codec("snac") / "config.json").read_text(encoding="utf-8"))
    weights = (small_codec("snac") / "model.safetensors").read_bytes()
    for text, data in (
        (json.dumps(config), weights[:-10]),
        (json.dumps({**config, "codebook_size": 32}), weights),
        (json.dumps({**config, "unheard_of": 1}), weights),
    ):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(ModelError, match="cannot be loaded"):
            open_tokenizer(f"snac:{tmp_path}", {})


@pytest.mark.parametrize(("name", "library"), [("snac", "snac"), ("mimi", "transformers")])
def test_a_missing_library_names_its_extra(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # what import takes for missing
    with pytest.raises(MissingExtraError, match="codecs"):
        open_tokenizer(name, {})


def test_what_is_too_long_for_a_codec_is_the_recordings_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MimiTokenizer, "max_s", 2.0)
    codec = opened("mimi")
    codec.encode([clip(2 * codec.sample_rate)])
    with pytest.raises(AudioError, match="mimi takes 2 s at a time, not 3 s"):
        codec.encode([clip(3 * codec.sample_rate)])


def test_the_recipe_holds_the_digests_of_the_weights(tmp_path: Path) -> None:
    recipe = opened("snac").recipe
    assert set(recipe["weights"]) == {"config.json", "model.safetensors"}
    assert open_tokenizer(f"snac:{write_snac(tmp_path, attention=8)}", {}).recipe != recipe


# SNAC: codebooks of different rates.


@settings(deadline=None)
@given(
    num_frames=st.integers(0, 9),
    codes_per_frame=st.sampled_from([(1, 2, 4), (1, 2, 4, 8), (1,), (1, 1, 2)]),
)
def test_levels_are_taken_apart_and_joined_without_loss(
    num_frames: int, codes_per_frame: Sequence[int]
) -> None:
    rng = np.random.default_rng(num_frames)
    levels = [rng.integers(0, 4096, num_frames * count) for count in codes_per_frame]
    stored = from_levels(levels, codes_per_frame)
    assert stored.shape == (sum(codes_per_frame), num_frames)
    for level, again in zip(levels, to_levels(stored, codes_per_frame), strict=True):
        assert np.array_equal(level, again)


def snac_reference(folder: Path, waveform: NDArray[np.float32]) -> tuple[list[Any], Any]:
    """SNAC's own codes of a clip, and what it decodes them to."""
    model = load_snac(folder)
    for module in model.modules():
        if type(module).__name__ == "NoiseBlock":
            module.forward = lambda hidden: hidden  # its noise is another one each time
    with torch.inference_mode():
        levels = model.encode(torch.tensor(waveform)[None, None])
        return [level[0].numpy() for level in levels], model.decode(levels)[0, 0].numpy()


@pytest.mark.parametrize("attention", [None, 8])
@pytest.mark.usefixtures("two_threads")  # as the reference is called everywhere
def test_snac_keeps_each_codebook_at_its_own_rate(attention: int | None, tmp_path: Path) -> None:
    folder = write_snac(tmp_path, attention=attention)
    codec = SnacTokenizer(model=str(folder), device="cpu")
    for num_samples in (1, 240, 960, 5_000, 24_000, 24_001):
        waveform = clip(num_samples)
        (codes,) = codec.encode([waveform])
        assert codes.values.shape == (7, -(-num_samples // 120))
        levels, _ = snac_reference(folder, waveform)
        for ours, theirs in zip(to_levels(codes.values), levels, strict=True):
            assert np.array_equal(ours, theirs[: len(ours)])
            assert len(theirs) - len(ours) < (1 if attention is None else 8)
        (decoded,) = codec.decode([codes])
        assert decoded.shape == (codes.values.shape[1] * 120,)


def test_snac_decodes_the_same_each_time_in_spite_of_its_noise() -> None:
    codec = opened("snac")
    (codes,) = codec.encode([clip(9_000)])
    torch.manual_seed(1)
    (once,) = codec.decode([codes])
    torch.manual_seed(2)
    again = codec.decode([codes, codes])
    assert all(np.array_equal(once, one) for one in again)


# EnCodec at 48 kHz: chunks, and how loud each is.


def chunks_of(codec: EncodecTokenizer, waveform: NDArray[np.float32]) -> Any:
    """What ``EncodecModel`` decodes a clip to, on one channel."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(small_codec("encodec48")).eval()
    with torch.inference_mode():
        encoded = model.encode(torch.tensor(waveform)[None, None].expand(1, 2, -1), bandwidth=6.0)
        decoded = model.decode(
            encoded.audio_codes,
            encoded.audio_scales,
            last_frame_pad_length=encoded.last_frame_pad_length,
        )
    return decoded.audio_values[0].mean(0).numpy()


@pytest.mark.parametrize("num_samples", [40, 3_000, 7_920, 8_001, 16_000, 23_000])
def test_48_khz_decodes_as_the_reference_but_for_a_step_of_loudness(num_samples: int) -> None:
    codec = opened("encodec48", bandwidth=6.0)
    waveform = clip(num_samples)
    (codes,) = codec.encode([waveform])
    (decoded,) = codec.decode([codes])
    expected = chunks_of(codec, waveform)
    assert decoded.shape == expected.shape == (codec.decoded_length(codes.values.shape[1]),)
    step = 10 ** ((LOUDEST_DB - QUIETEST_DB) / 63 / 2 / 20) - 1  # half of one of 64
    assert np.abs(decoded - expected).max() <= 1.01 * step * np.abs(expected).max() + 1e-6


@settings(max_examples=200, deadline=None)
@given(num_samples=st.integers(1, 60_000))
def test_48_khz_finds_its_chunks_again_from_the_number_of_frames(num_samples: int) -> None:
    codec = opened_48()
    frames = codec._chunk_frames(num_samples)
    assert sum(frames) == codec.num_frames(num_samples)
    assert codec._split(sum(frames)) == frames


_OPENED: list[Any] = []


def opened_48() -> Any:
    if not _OPENED:
        _OPENED.append(opened("encodec48"))
    return _OPENED[0]


def test_48_khz_silence_is_silent() -> None:
    codec = opened_48()
    (decoded,) = codec.decode(codec.encode([np.zeros(20_000, np.float32)]))
    assert np.abs(decoded).max() < 1e-4


def test_the_metadata_say_all_that_decoding_needs() -> None:
    codec = opened("snac")
    spec = f"snac:{small_codec('snac')}"
    metadata = row_schema([column_of(codec, spec)]).metadata[b"speechmill"]
    (told,) = json.loads(metadata)["tokenizers"]
    again = open_tokenizer(told["spec"], told["options"])
    assert json.loads(json.dumps(again.recipe)) == told["recipe"]
    assert told["bitrate_bps"] == pytest.approx(7 * 6 * 8_000 / 120)


# What is done to compute the same in less time.


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_samples", [100, 5_000, 24_000])
def test_convolutions_of_kernel_1_do_on_one_thread_what_they_do_on_two(
    num_samples: int, one_thread: None
) -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(64, 48, 1), torch.nn.Conv1d(48, 64, 1, bias=False))
    hidden = torch.randn(1, 64, num_samples, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.set_num_threads(2)
        expected = model(hidden)
        torch.set_num_threads(1)
        as_on_threads(model)
        assert torch.equal(model(hidden), expected)


@settings(deadline=None)
@given(
    length=st.integers(1, 12),
    paddings=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    mode=st.sampled_from(["reflect", "constant"]),
)
def test_reflections_are_copied_as_encodec_has_them(
    length: int, paddings: tuple[int, int], mode: str
) -> None:
    from transformers.models.encodec.modeling_encodec import EncodecConv1d

    hidden = torch.arange(1.0, 2 * length + 1).reshape(1, 2, length)
    assert torch.equal(padded(hidden, paddings, mode), EncodecConv1d._pad1d(hidden, paddings, mode))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_a_lane(function: Any, item: Any) -> Any:
    return side_by_side(function, [item], [1.0])[0]


@pytest.mark.parametrize("channels", [2, 16, 30])
@pytest.mark.parametrize("num_samples", [1_000, 16_387, 40_001])
@pytest.mark.parametrize("inplace", [False, True])
def test_elu_does_on_one_thread_what_it_does_on_two(
    channels: int, num_samples: int, inplace: bool, two_threads: None
) -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1), torch.nn.ELU(inplace=inplace))
    hidden = torch.randn(1, channels, num_samples, generator=torch.Generator().manual_seed(0))
    for laid_out in (hidden, hidden.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        expected = torch.nn.functional.elu(laid_out)
        as_on_threads(model)
        assert torch.equal(in_a_lane(model[1], laid_out.clone()), expected)


@settings(max_examples=10, deadline=None)
@given(num_samples=st.integers(1, 70_000), seed=st.integers(0, 99))
def test_encodecs_latents_are_those_of_the_reference_to_the_last_bit(
    num_samples: int, seed: int
) -> None:
    """Computed whole or in windows, and whatever lies between two codes."""
    whole, streamed = encodec_reference(), opened("encodec")._encoder
    samples = torch.tensor(clip(num_samples, seed))[None, None]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            expected = whole(samples)
        found = torch.cat(in_a_lane(lambda s: list(streamed(s)), samples), dim=-1)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


@cache
def encodec_reference() -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(small_codec("encodec")).eval().encoder


def test_encodecs_latents_of_stretches_are_those_of_the_whole(two_threads: None) -> None:
    streamed = opened("encodec")._encoder
    streamed._stretch = 2 * streamed._window  # two minutes take long to compute
    samples = torch.tensor(clip(7 * streamed._window * 40 + 3))[None, None]
    with torch.inference_mode():
        expected = encodec_reference()(samples)
    pieces = in_a_lane(lambda s: list(streamed(s)), samples)
    assert len(pieces) == 3
    found = torch.cat(pieces, dim=-1)
    assert found.shape == expected.shape
    # In another stretch the last layer may round otherwise.
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
