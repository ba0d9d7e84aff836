"""What both backends that run Whisper on PyTorch promise beyond the contract."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from whisper_normalizer.basic import BasicTextNormalizer

from speechmill.errors import JobError, ModelError
from speechmill.models.torch import TorchEngine
from speechmill.records import Speech
from speechmill.transcribers import TranscriberOptions, open_transcriber
from speechmill.transcribers.base import Transcriber
from speechmill.transcribers.torch_whisper import TorchWhisper
from tests.support.ct2_weights import whisper_folder
from tests.support.weights import speech, whisper

BACKENDS = ("openai-whisper", "transformers")
SHORT = "speech/367/367-130732-0000.flac"
GERMAN = "speech/fleurs_de/fleurs-de-004.ogg"
ENGLISH = (
    "speech/367/367-130732-0000.flac",
    "speech/p225/p225_001_mic1.flac",
    "speech/1688/1688-142285-0002.flac",
)

normalized = BasicTextNormalizer()
on = pytest.mark.parametrize("backend", BACKENDS)


@lru_cache(maxsize=4)  # a model is up to a gigabyte, and two processes run the tests
def opened(backend: str, model: str = "tiny.en", **options: Any) -> Transcriber:
    told: dict[str, Any] = {"device": "cpu", "cpu_threads": 1} | options
    return open_transcriber(backend, str(whisper_folder(model)), TranscriberOptions(**told))


def text(transcriber: Transcriber, clip: str = SHORT) -> str:
    return transcriber.transcribe([Speech(speech(clip))])[0].text


def copied(tmp_path: Path, *leave_out: str) -> Path:
    """A copy of tiny.en's folder, of links for what is large."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in whisper_folder().iterdir():
        if path.name == "model.safetensors" and path.name not in leave_out:
            (folder / path.name).symlink_to(path)
        elif path.name not in leave_out:
            shutil.copyfile(path, folder / path.name)
    return folder


@on
def test_text_is_that_of_faster_whisper(backend: str) -> None:
    options = TranscriberOptions(compute_type="float32", window="full", device="cpu", cpu_threads=1)
    reference = open_transcriber("whisper", whisper("tiny.en").name, options)
    clips = [Speech(speech(clip)) for clip in ENGLISH]
    expected = [normalized(t.text) for t in reference.transcribe(clips)]
    found = [normalized(t.text) for t in opened(backend).transcribe(clips)]
    assert jiwer.wer(expected, found) <= 0.1


@on
def test_half_a_minute_is_heard_to_its_end(backend: str) -> None:
    first, *others = (speech(clip) for clip in (*ENGLISH, *ENGLISH))
    pause = np.zeros(16_000, np.float32)
    pieces = [first, *(part for clip in others for part in (pause, clip))]
    samples = np.concatenate(pieces)[: 30 * 16_000]
    (transcript,) = opened(backend).transcribe([Speech(samples)])
    said = (
        "Lobsters and lobsters. Please call Stella. You don't mean that you thought me so silly. "
    )
    assert jiwer.wer(normalized(2 * said), normalized(transcript.text)) <= 0.25
    assert transcript.segments[-1].end_s > len(samples) / 16_000 - 2
    assert len(transcript.segments) > 2


@on
def test_the_language_is_detected_among_those_allowed(backend: str) -> None:
    german = Speech(speech(GERMAN))
    heard = opened(backend, "base").detect_language([german])
    assert heard is not None
    assert heard[0] == "de"
    assert 0.9 <= heard[1] <= 1
    allowed = opened(backend, "base", languages=("nl", "French"))
    found = allowed.detect_language([german])
    assert found is not None
    assert found[0] in {"nl", "fr"}
    assert found[1] >= 0.5


@on
def test_a_recordings_language_is_taken_over_with_its_probability(backend: str) -> None:
    transcriber = opened(backend, "base", temperature=(0.0,), beam_size=1)
    samples = speech(GERMAN)[: 5 * 16_000]
    given = Speech(samples, language="de", language_probability=0.4)
    (transcript,) = transcriber.transcribe([given])
    assert (transcript.language, transcript.language_probability) == ("de", 0.4)
    assert "uncertain_language" in transcript.flags
    (transcript,) = transcriber.transcribe([Speech(samples)])
    assert transcript.language == "de"
    assert transcript.language_probability is not None
    assert "uncertain_language" not in transcript.flags


@on
def test_german_is_translated_where_that_is_asked(backend: str) -> None:
    options: dict[str, Any] = {"language": "de", "beam_size": 1, "temperature": (0.0,)}
    heard = normalized(text(opened(backend, "base", **options), GERMAN))
    translated = normalized(text(opened(backend, "base", task="translate", **options), GERMAN))
    assert {"die", "und"} & set(heard.split())
    assert {"the", "and"} & set(translated.split())
    assert not {"die", "und"} & set(translated.split())


@on
def test_what_english_only_models_cannot_do_is_refused(backend: str) -> None:
    with pytest.raises(JobError, match="cannot translate: it is an English-only model"):
        opened(backend, task="translate")
    with pytest.raises(JobError, match="cannot transcribe german"):
        opened(backend, language="de")
    with pytest.raises(JobError, match="not one of those allowed: fr"):
        opened(backend, "base", language="de", languages=("fr",))


@on
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "PyTorch sees no such CUDA device"),
        ({"device": "gpu"}, "there is no device 'gpu'; there are: auto, cpu"),
        ({"compute_type": "int8"}, "'int8' is not supported on 'cpu'.*there are: auto, float32"),
        ({"batch_size": 2}, "one stretch of speech at a time.*batch_size must be 0 or 1, not 2"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(
    backend: str, options: dict[str, Any], message: str
) -> None:
    if torch.cuda.is_available() and "cuda" in str(options):
        pytest.skip("there are CUDA devices here")
    with pytest.raises(JobError, match=message):
        opened(backend, **options)


@on
def test_unwanted_tokens_are_not_said(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TorchWhisper._is_numeral(" 6")
    assert TorchWhisper._is_numeral("½")
    assert TorchWhisper._is_numeral("%")
    assert not TorchWhisper._is_numeral(" six")
    # No recording at hand holds a number; so another class of tokens takes their place.
    monkeypatch.setattr(TorchWhisper, "_is_numeral", staticmethod(lambda token: "o" in token))
    options: dict[str, Any] = {"beam_size": 1, "temperature": (0.0,)}
    assert "o" in text(opened(backend, **options))
    assert "o" not in text(opened(backend, suppress_numerals=True, **options))


@on
@pytest.mark.parametrize("option", ["initial_prompt", "hotwords"])
def test_prompts_set_the_spelling(backend: str, option: str) -> None:
    clip = ENGLISH[1]
    options: dict[str, Any] = {"beam_size": 1, "temperature": (0.0,)}
    assert "Stella" in text(opened(backend, **options), clip)
    told = opened(backend, **options, **{option: "Zdella"})
    assert "Zdella" in text(told, clip)


@on
def test_prompts_that_would_steer_the_decoder_are_refused(backend: str) -> None:
    with pytest.raises(JobError, match="must be plain text"):
        opened(backend, hotwords="<|translate|>")


@on
def test_a_prompt_of_any_length_is_no_trouble(backend: str) -> None:
    told = opened(backend, beam_size=1, temperature=(0.0,), initial_prompt="Stella called. " * 400)
    (transcript,) = told.transcribe([Speech(speech(SHORT))])
    assert transcript.text


@on
def test_sampling_depends_on_the_samples_alone(backend: str) -> None:
    transcriber = opened(backend, temperature=(0.9,))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = transcriber.transcribe([Speech(speech(SHORT))])
    assert torch.equal(torch.get_rng_state(), state)  # the process's own numbers are left alone
    torch.manual_seed(2)
    assert transcriber.transcribe([Speech(speech(SHORT))]) == first
    assert first[0].temperature == 0.9
    assert "temperature_fallback" in first[0].flags


@on
def test_what_shapes_the_text_is_in_the_recipe_and_the_machine_is_not(backend: str) -> None:
    recipe = dict(opened(backend).recipe)
    digests = recipe["model"]
    assert isinstance(digests, dict)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= digests.keys()
    assert recipe["window"] == "full"
    assert dict(opened(backend, cpu_threads=2, window="full").recipe) == recipe
    shaping: dict[str, Any] = {
        "beam_size": 1,
        "temperature": (0.0,),
        "words": True,
        "initial_prompt": "Hm.",
        "hotwords": "Stella",
        "suppress_numerals": True,
        "language": "en",
    }
    other = dict(opened(backend, **shaping).recipe)
    assert [name for name in shaping if other[name] == recipe[name]] == []


@on
def test_words_of_a_model_that_cannot_time_them_are_refused(backend: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "generation_config.json")
    said = json.loads((whisper_folder() / "generation_config.json").read_text())
    del said["alignment_heads"]
    (folder / "generation_config.json").write_text(json.dumps(said))
    options = TranscriberOptions(cpu_threads=1)
    assert open_transcriber(backend, str(folder), options)
    with pytest.raises(JobError, match="no alignment_heads; build without words"):
        open_transcriber(backend, str(folder), TranscriberOptions(cpu_threads=1, words=True))


@on
@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_never_opened(backend: str, pickle: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "model.safetensors")
    (folder / pickle).write_bytes(b"cposix\nsystem\n(S'false'\ntR.")  # runs when it is opened
    for model in (folder, folder / pickle):
        with pytest.raises(JobError, match=rf"in {pickle}, a pickle, .*convert it: "):
            open_transcriber(backend, str(model))


@on
def test_damaged_weights_are_a_model_error(backend: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(ModelError, match=f"in {folder} cannot be loaded: "):
        open_transcriber(backend, str(folder))


@on
def test_weights_that_are_missing_are_not_made_up(backend: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(tmp_path, "model.safetensors")
    weights = load_file(whisper_folder() / "model.safetensors")
    del weights["model.decoder.layers.3.fc1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot be loaded: .*(layers|blocks)\.3\.(fc1|mlp\.0)"):
        open_transcriber(backend, str(folder))


@on
def test_a_config_that_is_no_json_is_a_model_error(backend: str, tmp_path: Path) -> None:
    folder = copied(tmp_path, "config.json")
    for broken in ("{", "[]"):
        (folder / "config.json").write_text(broken)
        with pytest.raises(ModelError, match=r"config\.json.*get the checkpoint anew"):
            open_transcriber(backend, str(folder))


def test_what_pytorch_raises_while_it_runs_is_a_model_error() -> None:
    engine = TorchEngine.place("cpu", "auto", 1, what="a test", extra="transformers")
    with (
        pytest.raises(ModelError, match=r"'m' cannot run on cpu with float32: .*shapes"),
        engine.running("m", np.zeros(1, np.float32)),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)
