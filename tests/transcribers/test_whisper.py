"""Whisper on CTranslate2: the same in any company, on any cores; devices, recipe, weights."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechmill.errors import JobError, ModelError
from speechmill.records import Speech, Transcript
from speechmill.transcribers import TranscriberOptions, ctranslate, resolve_compute_type
from speechmill.transcribers import results as results_module
from speechmill.transcribers.whisper import WhisperTranscriber
from tests.support.weights import SAMPLE_RATE, speech, whisper
from tests.support.whispers import CHURCHYARDS, CLIPS, JFK, LOBSTERS, one, opened, zeros


@pytest.fixture
def tiny() -> WhisperTranscriber:
    """Whisper tiny.en."""
    return opened("tiny.en")


@settings(max_examples=6, deadline=None)
@given(
    chosen=st.lists(st.integers(0, len(CLIPS) - 1), min_size=1, max_size=8), size=st.integers(1, 9)
)
def test_text_and_figures_do_not_depend_on_the_company(chosen: list[int], size: int) -> None:
    alone = _alone()
    transcriber = opened("tiny.en", words=True, batch_size=size)
    # Cut to two lengths: two windows, of which the decoder is given equally much, in one batch.
    got = transcriber.transcribe([Speech(_cut(i)) for i in chosen])
    assert got == [alone[i] for i in chosen]


def _cut(i: int) -> NDArray[np.float32]:
    return speech(CLIPS[i])[: (2 + i % 2) * SAMPLE_RATE]


@cache
def _alone() -> list[Transcript]:
    transcriber = opened("tiny.en", words=True)
    return [one(transcriber, _cut(i)) for i in range(len(CLIPS))]


def test_many_threads_get_the_same(tiny: WhisperTranscriber) -> None:
    expected = tiny.transcribe([Speech(speech(path)) for path in CLIPS])
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda path: one(tiny, speech(path)), CLIPS)) == expected


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = ctranslate.encode

    def small(model: Any, features: NDArray[np.float32]) -> NDArray[Any]:
        sizes.append(len(features))
        if len(features) > 2:
            raise RuntimeError("CUDA failed with error out of memory")
        return encode(model, features)

    samples = [Speech(speech(path)[: 2 * SAMPLE_RATE]) for path in CLIPS]
    expected = tiny.transcribe(samples)
    monkeypatch.setattr(ctranslate, "encode", small)
    assert tiny.transcribe(samples) == expected
    assert max(sizes) == 4  # eight, shared out between two workers
    assert sizes.count(2) >= 4


def test_what_does_not_fit_alone_is_a_model_error(
    tiny: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(model: Any, features: NDArray[np.float32]) -> NDArray[Any]:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(ctranslate, "encode", never)
    with pytest.raises(ModelError, match=r"'tiny\.en' cannot run on cpu with int8: std::bad_alloc"):
        one(tiny, speech(LOBSTERS))


def test_thousands_of_crumbs_and_one_long_stretch_come_back_in_order(
    tiny: WhisperTranscriber,
) -> None:
    crumbs = [Speech(speech(JFK)[k * 4_800 : (k + 1) * 4_800]) for k in range(30)]
    long = Speech(np.tile(speech(JFK), 3)[: int(29.9 * SAMPLE_RATE)])
    got = tiny.transcribe([*crumbs, long])
    assert len(got) == 31
    assert len(got[-1].text) > 200
    assert got[:3] == tiny.transcribe(crumbs[:3])


def test_a_rerun_gives_the_same_text_though_the_fallback_draws_lots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No text is sure enough and none is silence, so every temperature is tried.
    monkeypatch.setitem(results_module.DECODING, "log_prob_threshold", 0.0)
    monkeypatch.setitem(results_module.DECODING, "no_speech_threshold", 1.0)
    monkeypatch.setitem(results_module.DECODING, "best_of", 1)
    whisper("tiny.en")
    options = TranscriberOptions(device="cpu", cpu_threads=2, window="full", temperature=(1.0,))
    lots = WhisperTranscriber("tiny.en", options)
    clips = [Speech(speech(LOBSTERS)), Speech(speech(CHURCHYARDS))]
    once = lots.transcribe(clips)
    assert once == lots.transcribe(clips[::-1])[::-1]
    assert WhisperTranscriber("tiny.en", options).transcribe(clips[:1]) == once[:1]
    assert all("temperature_fallback" in transcript.flags for transcript in once)
    assert all(transcript.temperature == 1.0 for transcript in once)
    assert not ctranslate.SeededModel._seed_lock.locked()


@given(st.integers(1, 400))
def test_no_more_cores_are_idle_than_one_worker_would_take(cores: int) -> None:
    placement = ctranslate.place("cpu", "int8", cores)
    assert 1 <= placement.workers <= 16
    assert placement.threads >= 1
    assert 0 <= cores - placement.workers * placement.threads < placement.threads
    if cores <= 16:
        assert placement.threads == 1


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, ["0", "1"]),
        ("", ["0", "1"]),
        ("3,5", ["3", "5"]),
        ("GPU-a1, GPU-b2", ["GPU-a1", "GPU-b2"]),
    ],
)
def test_the_memory_of_the_gpus_that_are_visible_is_asked_for(
    visible: str | None, asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\necho "12000 MiB"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    placement = ctranslate.Placement("cuda", (0, 1), "float16", 1, 0)
    assert ctranslate.choose_batch_size(placement, 512, 5) == 64
    assert (tmp_path / "asked").read_text().split() == [f"--id={name}" for name in asked]


def test_auto_is_int8_on_a_processor() -> None:
    assert resolve_compute_type("cpu", "auto") == ("cpu", "int8")
    assert resolve_compute_type("cpu", "float32") == ("cpu", "float32")


@pytest.mark.parametrize(
    ("device", "compute_type", "complaint"),
    [
        ("cpu", "float61", r"did you mean 'float(16|32)'\? there are: auto, .*int8"),
        ("cpu", "double", "'double' is not supported on 'cpu' here; there are: auto, .*float32"),
        ("cuda:99", "auto", r"'cuda:99' is not here.*use the device 'cpu'"),
        ("tpu", "auto", "there is no device 'tpu'; there are: auto, cpu, cuda"),
        ("cpu:1", "auto", "there is no device 'cpu:1'"),
    ],
)
def test_devices_and_formats_that_are_not_here_are_refused(
    device: str, compute_type: str, complaint: str
) -> None:
    with pytest.raises(JobError, match=complaint):
        resolve_compute_type(device, compute_type)


def test_recipe_holds_what_shapes_the_text_and_nothing_else(
    tiny: WhisperTranscriber, tmp_path: Path
) -> None:
    copy = tmp_path / "copied"
    shutil.copytree(whisper("tiny.en").folder, copy)
    elsewhere = WhisperTranscriber(
        str(copy), TranscriberOptions(device="cpu", cpu_threads=1, batch_size=3)
    )
    assert elsewhere.recipe == tiny.recipe
    assert elsewhere.provenance != tiny.provenance
    text = json.dumps(tiny.recipe)
    assert whisper("tiny.en").digests["model.bin"] in text
    assert "cpu" not in text
    assert str(copy) not in text
    greedy = opened("tiny.en", beam_size=1, compute_type="float32", temperature=(0.0,))
    assert greedy.recipe["beam_size"] == 1
    assert greedy.recipe["compute_type"] == "float32"
    assert greedy.recipe["temperature"] == [0.0]
    assert isinstance(tiny.recipe["window"], dict)
    assert opened("tiny.en", window="full").recipe["window"] == "full"


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.json", "config.json"])
def test_damaged_weights_are_a_model_error(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(whisper("tiny.en").folder, copy)
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        WhisperTranscriber(str(copy), TranscriberOptions(device="cpu"))


def test_features_of_the_wrong_size_are_a_model_error(tmp_path: Path) -> None:
    copy = tmp_path / "wrong"
    shutil.copytree(whisper("tiny.en").folder, copy)
    (copy / "preprocessor_config.json").write_text('{"feature_size": 128}')
    with pytest.raises(ModelError, match=r"wants 80 mel bands.*says 128"):
        WhisperTranscriber(str(copy), TranscriberOptions(device="cpu"))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    whisper("tiny.en")
    fresh = WhisperTranscriber("tiny.en", TranscriberOptions(device="cpu"))
    fresh.transcribe([Speech(speech(LOBSTERS)), Speech(zeros(1))])
    assert capfd.readouterr() == ("", "")
