"""Units: the same codes however they are computed, and a file that is checked."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

import speechmill
from speechmill import Job, audio
from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.errors import JobError, ModelError, SpeechmillError
from speechmill.records import Codes, Speech
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import TakesEncoded
from speechmill.tokenizers.features import FeatureOptions, open_features
from speechmill.tokenizers.units import UnitsTokenizer, expand_runs
from speechmill.tokenizers.units_file import UnitsFile, read_units, write_units
from speechmill.transcribers import TranscriberOptions, ctranslate, open_transcriber
from speechmill.transcribers.whisper import WhisperTranscriber
from tests.support.ssl_checkpoint import HOP_LENGTH, WINDOW, write_ssl_checkpoint
from tests.support.weights import SAMPLE_RATE, whisper

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
CLUSTERS = 64
KINDS = ("mfcc", "logmel", "whisper", "hubert", "wavlm", "wav2vec2")

Samples = NDArray[np.float32]


@cache
def clips(count: int = 8) -> tuple[Samples, ...]:
    """Recordings of the demo corpus at 16 kHz, of several speakers."""
    paths = sorted(CORPUS.rglob("*.flac"))[:: 36 // count][:count]
    return tuple(
        audio.resample(audio.decode(p.read_bytes()).waveform, SAMPLE_RATE).samples for p in paths
    )


def noise(num_samples: int, seed: int = 0) -> Samples:
    drawn = np.random.default_rng(seed).standard_normal(num_samples)
    return np.clip(drawn * 0.1, -1, 1).astype(np.float32)


def units_of(options: FeatureOptions, path: Path) -> Path:
    """A file of units whose centroids are frames of the demo corpus."""
    features = open_features(options)
    frames = np.concatenate(features.frames(clips()))
    chosen = np.random.default_rng(0).choice(len(frames), CLUSTERS, replace=False)
    units = UnitsFile(
        centroids=frames[np.sort(chosen)],
        weights=np.ones(frames.shape[1], np.float32),
        options=features.options.as_json(),
        recipe=features.recipe,
        sample_rate=features.sample_rate,
        hop_length=features.hop_length,
        trained_on={},
        libraries={},
    )
    write_units(path, units)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of units for each kind of features."""
    whisper("tiny.en")
    folder = tmp_path_factory.mktemp("units")
    found = {}
    for kind in KINDS:
        model = "tiny.en" if kind == "whisper" else ""
        if kind in ("hubert", "wavlm", "wav2vec2"):
            model = str(write_ssl_checkpoint(kind, folder / kind, stable=kind == "wavlm"))
        options = FeatureOptions(kind=kind, model=model)
        found[kind] = units_of(options, folder / f"{kind}.safetensors")
    return found


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, files: dict[str, Path]) -> UnitsTokenizer:
    return UnitsTokenizer(model=str(files[request.param]))


def kind_of(tokenizer: UnitsTokenizer) -> str:
    return str(dict(tokenizer.recipe)["features"]["features"])  # type: ignore[index]


def num_frames(kind: str, num_samples: int) -> int:
    if kind in ("mfcc", "logmel"):
        return 1 + num_samples // 512
    if kind == "whisper":
        return -(-num_samples // 320)
    return 0 if num_samples == 0 else 1 + max(0, num_samples - WINDOW) // HOP_LENGTH


def values(tokenizer: UnitsTokenizer, waveforms: Sequence[Samples]) -> list[NDArray[Any]]:
    return [codes.values for codes in tokenizer.encode(waveforms)]


@settings(deadline=None, max_examples=8)
@given(lengths=st.lists(st.integers(0, 70_000), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_codes_have_a_frame_for_each_of_the_clip_and_do_not_depend_on_neighbours(
    tokenizer: UnitsTokenizer, lengths: list[int], seed: int
) -> None:
    waveforms = [noise(n, seed + i) for i, n in enumerate(lengths)]
    together = values(tokenizer, waveforms)
    for waveform, codes in zip(waveforms, together, strict=True):
        assert codes.dtype == np.int16
        assert codes.shape == (1, num_frames(kind_of(tokenizer), len(waveform)))
        assert codes.size == 0 or 0 <= codes.min() <= codes.max() < CLUSTERS
    order = np.random.default_rng(seed).permutation(len(lengths))
    for i, codes in zip(order, values(tokenizer, [waveforms[i] for i in order]), strict=True):
        assert np.array_equal(codes, together[i])
    assert np.array_equal(values(tokenizer, waveforms[:1])[0], together[0])


def test_threads_do_not_matter_and_units_differ(tokenizer: UnitsTokenizer) -> None:
    together = values(tokenizer, clips())
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda w: values(tokenizer, [w])[0], clips()))
    assert all(np.array_equal(a, b) for a, b in zip(together, threaded, strict=True))
    with threadpool_limits(1):
        limited = values(tokenizer, clips())
    assert all(np.array_equal(a, b) for a, b in zip(together, limited, strict=True))
    assert len(np.unique(np.concatenate(together, axis=1))) > CLUSTERS / 2


ON_OTHER_PROCESSORS = """
import hashlib, sys
import numpy as np
from speechmill.tokenizers.units import UnitsTokenizer
rng = np.random.default_rng(0)
waveforms = [(rng.standard_normal(n) * 0.1).astype(np.float32) for n in (16_000, 40_000, 61_234)]
codes = UnitsTokenizer(model=sys.argv[1]).encode(waveforms)
frames = UnitsTokenizer(model=sys.argv[1])._features.frames(waveforms)
print(*(hashlib.sha256(np.ascontiguousarray(f).tobytes()).hexdigest() for f in frames))
"""


def test_on_a_kernel_that_rounds_by_threads_units_of_whisper_are_the_same(
    files: dict[str, Path],
) -> None:
    # OpenBLAS's kernels for Haswell and Zen do, those for newer Intel do not.
    digests = {
        subprocess.run(
            [sys.executable, "-c", ON_OTHER_PROCESSORS, str(files["whisper"])],
            env={**os.environ, "OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(digests) == 1


def test_a_longer_waveform_is_heard_in_chunks_of_30_s(files: dict[str, Path]) -> None:
    waveform = np.tile(np.concatenate(clips()), 3)[: 61 * SAMPLE_RATE + 123]
    chunks = [waveform[i : i + 30 * SAMPLE_RATE] for i in range(0, len(waveform), 30 * SAMPLE_RATE)]
    for kind in ("whisper", "hubert"):
        tokenizer = UnitsTokenizer(model=str(files[kind]))
        (codes,) = values(tokenizer, [waveform])
        assert codes.shape[1] == num_frames(kind, len(waveform))
        if kind == "whisper":
            assert np.array_equal(codes, np.concatenate(values(tokenizer, chunks), axis=1))


@settings(deadline=None, max_examples=60)
@given(num_samples=st.integers(0, 400_000), chunk_s=st.integers(1, 8))
def test_chunks_have_the_frames_of_the_whole(
    files: dict[str, Path], num_samples: int, chunk_s: int
) -> None:
    from speechmill.tokenizers.features import ssl

    features = UnitsTokenizer(model=str(files["hubert"]))._features
    assert isinstance(features, ssl.SslFeatures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "CHUNK_S", chunk_s)
        chunks = features._chunks(np.arange(num_samples, dtype=np.float32))
    assert sum(features._num_frames(len(c)) for c in chunks) == num_frames("hubert", num_samples)
    if num_samples >= WINDOW:
        first = 0
        for chunk in chunks:  # each frame sees what it would see in the whole
            assert chunk[0] == first * HOP_LENGTH
            first += features._num_frames(len(chunk))


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2"])
def test_a_layer_is_that_of_transformers(tmp_path: Path, kind: str, stable: bool) -> None:
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    folder = write_ssl_checkpoint(kind, tmp_path / "model", stable=stable)
    model = AutoModel.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    heard = {}
    for layer in (1, 2, 3):
        features = open_features(FeatureOptions(kind=kind, model=str(folder), layer=layer))
        for clip in clips(2):
            given_one = extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            with torch.inference_mode():
                wanted = model(given_one.input_values, output_hidden_states=True)
            (found,) = features.frames([clip])
            assert found.shape == tuple(wanted.hidden_states[layer][0].shape)
            assert np.allclose(found, wanted.hidden_states[layer][0].numpy(), atol=1e-4)
            heard[layer] = found
    assert not np.allclose(heard[1], heard[2], atol=0.1)
    assert not np.allclose(heard[2], heard[3], atol=0.1)


# What transcription has heard


@pytest.fixture(scope="module")
def transcriber() -> WhisperTranscriber:
    whisper("tiny.en")
    quick = TranscriberOptions(language="en", beam_size=1, temperature=(0.0,))
    opened = open_transcriber("whisper", "tiny.en", quick)
    assert isinstance(opened, WhisperTranscriber)
    return opened


def test_units_out_of_transcription_are_those_of_the_clip_alone(
    files: dict[str, Path], transcriber: WhisperTranscriber
) -> None:
    tokenizer = UnitsTokenizer(model=str(files["whisper"]))
    assert isinstance(tokenizer, TakesEncoded)
    assert tokenizer.shares(transcriber)
    waveforms = [*clips(), np.concatenate(clips(12))[: 30 * SAMPLE_RATE]]
    found: dict[int, NDArray[Any]] = {}

    def on_encoded(number: int, encoded: NDArray[Any]) -> None:
        assert number not in found
        codes = tokenizer.from_encoded(encoded, len(waveforms[number]))
        found[number] = codes.values

    texts = transcriber.transcribe([Speech(w) for w in waveforms], on_encoded=on_encoded)
    assert sorted(found) == list(range(len(waveforms)))
    for number, waveform in enumerate(waveforms):
        assert np.array_equal(found[number], values(tokenizer, [waveform])[0])
    assert [t.text for t in texts] == [
        t.text for t in transcriber.transcribe([Speech(w) for w in waveforms])
    ]


def test_a_batch_that_does_not_fit_gives_each_stretch_its_own(
    files: dict[str, Path], transcriber: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = UnitsTokenizer(model=str(files["whisper"]))
    hear = type(transcriber.encoder).encode_windows

    def small(self: Any, batch: Sequence[Speech], windows_s: Sequence[float]) -> list[NDArray[Any]]:
        if len(batch) > 1:
            raise RuntimeError("CUDA failed with error out of memory")
        return hear(self, batch, windows_s)

    monkeypatch.setattr(type(transcriber.encoder), "encode_windows", small)
    waveforms = [clips()[0][: 16_000 + 100 * i] for i in range(5)]  # one window, one batch
    found: dict[int, NDArray[Any]] = {}
    transcriber.transcribe(
        [Speech(w) for w in waveforms],
        on_encoded=lambda i, e: found.update(
            {i: tokenizer.from_encoded(e, len(waveforms[i])).values}
        ),
    )
    for number, codes in enumerate(values(tokenizer, waveforms)):
        assert np.array_equal(found[number], codes)


def test_units_share_only_with_what_gives_the_same(
    files: dict[str, Path], transcriber: WhisperTranscriber
) -> None:
    tokenizer = UnitsTokenizer(model=str(files["whisper"]))

    def other(model: str, **options: Any) -> Any:
        return open_transcriber("whisper", model, TranscriberOptions(**options))

    assert tokenizer.shares(transcriber)
    assert not tokenizer.shares(other("tiny.en", window="full"))
    assert not tokenizer.shares(other("tiny.en", compute_type="float32"))
    whisper("base")
    assert not tokenizer.shares(other("base"))
    assert not tokenizer.shares(open_transcriber("fake", "fake"))
    assert not UnitsTokenizer(model=str(files["mfcc"])).shares(transcriber)
    with pytest.raises(JobError, match="not of an encoder"):
        UnitsTokenizer(model=str(files["mfcc"])).from_encoded(np.zeros((50, 384)), 16_000)


def test_units_use_the_transcribers_model_instead_of_loading_it_again(
    files: dict[str, Path], transcriber: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> Any:
        raise AssertionError("the weights were loaded twice")

    before = values(UnitsTokenizer(model=str(files["whisper"])), clips(2))
    monkeypatch.setattr(ctranslate, "load", load)
    tokenizer = UnitsTokenizer(model=str(files["whisper"]))
    tokenizer.attach(transcriber)
    assert all(
        np.array_equal(a, b) for a, b in zip(values(tokenizer, clips(2)), before, strict=True)
    )


def test_with_float32_windows_are_computed_alone() -> None:
    whisper("base")  # in which a batch makes a difference
    options = FeatureOptions(kind="whisper", model="base", compute_type="float32")
    features = open_features(options)
    of_one_window = [clip[24_000:48_000] for clip in clips(9)]
    together = features.frames(of_one_window)
    for clip, frames in zip(of_one_window, together, strict=True):
        assert np.array_equal(features.frames([clip])[0], frames)


def test_a_build_has_the_units_of_each_recording_alone(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"units:{files['whisper']}"
    built, again = {}, Counter[str]()
    encode = UnitsTokenizer.encode

    def counted(self: UnitsTokenizer, waveforms: Sequence[Samples]) -> list[Codes]:
        again[name] += len(waveforms)
        return encode(self, waveforms)

    monkeypatch.setattr(UnitsTokenizer, "encode", counted)
    for name, more in {
        "shared": {},
        "alone": {"window": "full"},
        "merged": {"tokenizer_option": {"units": {"merge": True}}},
    }.items():
        job = Job(
            source=str(CORPUS),
            sink=str(tmp_path / name),
            tokenizer=("mfcc", spec),
            include=("p90[15]*_00[12].flac",),
            language="en",
            model="tiny.en",
            beam_size=1,
            temperature=(0.0,),
            **more,  # type: ignore[arg-type]
        )
        assert speechmill.build(job).failed == 0
        table = speechmill.open_dataset(job.sink).to_table().sort_by("file_name")
        built[name] = dict(
            zip(
                table["file_name"].to_pylist(),
                tokens_to_arrays(table["token_units"]),
                strict=True,
            )
        )
        described = json.loads(table.schema.metadata[b"speechmill"])["tokenizers"][1]
        assert described["sample_mismatch"] == [0.0] * described["num_codebooks"]
    assert len(built["shared"]) == 4
    # The first row of a shard is checked; what was transcribed in full windows is heard again.
    assert again == {"shared": 1, "alone": 5, "merged": 1}
    tokenizer = UnitsTokenizer(model=str(files["whisper"]))
    for name, codes in built["shared"].items():
        waveform = audio.decode((CORPUS / name).read_bytes()).waveform
        samples = audio.resample(waveform, SAMPLE_RATE).samples
        assert np.array_equal(codes, values(tokenizer, [samples])[0])
        assert np.array_equal(codes, built["alone"][name])
        merged = built["merged"][name]
        assert merged.shape[1] < codes.shape[1]
        assert np.array_equal(expand_runs(merged), codes)


# The file


def test_the_recipe_holds_all_that_shapes_the_codes(files: dict[str, Path]) -> None:
    path = str(files["whisper"])
    one, other = UnitsTokenizer(model=path), UnitsTokenizer(model=path, merge=True)
    assert one.recipe != other.recipe
    assert one.recipe["units"] == read_units(path).sha256
    features: Any = one.recipe["features"]
    assert features["model"]["model.bin"] == whisper("tiny.en").digests["model.bin"]
    assert features["compute_type"] == "int8"
    assert (one.codebook_size, one.num_codebooks, one.frame_rate) == (CLUSTERS, 1, 50.0)
    assert (other.codebook_size, other.num_codebooks) == (256, 2)
    json.dumps(one.recipe)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_refused_in_words(files: dict[str, Path], data: st.DataObject) -> None:
    whole = files["mfcc"].read_bytes()
    path = files["mfcc"].with_name("damaged.safetensors")
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:  # a byte of the header; one of the numbers would be another number
        at = data.draw(st.integers(0, 8 + int.from_bytes(whole[:8], "little") - 1))
        bad = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
        path.write_bytes(whole[:at] + bad + whole[at + 1 :])
    with contextlib.suppress(SpeechmillError):  # and no other error
        UnitsTokenizer(model=str(path))


def test_what_is_wrong_with_a_file_is_said(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["mfcc"])
    text = read_metadata(files["mfcc"])
    metadata = json.loads(text)
    path = tmp_path / "changed.safetensors"

    def refused(match: str, tensors: Any = tensors, **changes: Any) -> None:
        save_file(tensors, path, {"speechmill_units": json.dumps({**metadata, **changes})})
        with pytest.raises(SpeechmillError, match=match):
            UnitsTokenizer(model=str(path))

    refused("not finite", {**tensors, "centroids": tensors["centroids"] * np.float32("nan")})
    refused(r"not float32 \[64, 20\]", {**tensors, "centroids": tensors["centroids"][:5]})
    refused("centroids", {"weights": tensors["weights"]})
    refused("weights of 0", {**tensors, "weights": tensors["weights"] * 0})
    refused("newer Speechmill", format=2)
    refused("rates are not", hop_length=160)
    refused("n_mfcc differ", recipe={**metadata["recipe"], "n_mfcc": 13})
    refused("no features 'mfccs'.*'mfcc'", features={**metadata["features"], "kind": "mfccs"})
    refused("newer Speechmill", features={**metadata["features"], "mels": 3})
    save_file(tensors, path)
    with pytest.raises(ModelError, match="holds no units"):
        UnitsTokenizer(model=str(path))
    with pytest.raises(ModelError, match="No such file"):
        open_tokenizer(f"units:{tmp_path}/none.safetensors", {})
    with pytest.raises(JobError, match="needs a file"):
        open_tokenizer("units", {})
    with pytest.raises(JobError, match="no weights to choose"):
        open_tokenizer(f"units:{files['mfcc']}", {"weights": "base"})
    with pytest.raises(JobError, match="merge must be of type bool"):
        open_tokenizer(f"units:{files['mfcc']}", {"merge": 1})


def read_metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "np") as opened:
        return str(opened.metadata()["speechmill_units"])


def test_another_model_than_that_of_the_fit_is_refused(files: dict[str, Path]) -> None:
    whisper("base")
    with pytest.raises(ModelError, match=r"model differ.*units\.weights"):
        open_tokenizer(f"units:{files['whisper']}", {"weights": "base"})
    with pytest.raises(ModelError, match=r"no model folder.*units\.weights"):
        open_tokenizer(f"units:{files['whisper']}", {"weights": "./nowhere"})
    folder = whisper("tiny.en").folder
    opened = open_tokenizer(f"units:{files['whisper']}", {"weights": str(folder)})
    assert opened.recipe == UnitsTokenizer(model=str(files["whisper"])).recipe
