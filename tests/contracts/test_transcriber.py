"""What the Protocol ``Transcriber`` promises, held to by every transcriber."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from speechmill.errors import JobError
from speechmill.records import Transcript
from speechmill.transcribers import TRANSCRIBERS, open_transcriber
from speechmill.transcribers.base import Transcriber
from tests.weights import speech, whisper

MODELS = {"fake": "fake", "whisper": "tiny.en"}  # the smallest that each has
CLIPS = (
    "speech/367/367-130732-0000.flac",
    "speech/p225/p225_001_mic1.flac",
    "speech/1688/1688-142285-0002.flac",
)


@cache
def opened(name: str) -> Transcriber:
    if name == "whisper":
        whisper(MODELS[name])
    return open_transcriber(
        name,
        model=MODELS[name],
        language="en",
        device="cpu",
        compute_type="auto",
        beam_size=5,
        cpu_threads=2,
    )


@pytest.fixture(params=sorted(TRANSCRIBERS))
def transcriber(request: pytest.FixtureRequest) -> Transcriber:
    return opened(request.param)


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * 16_000), np.float32)


def check(transcript: Transcript, duration_s: float) -> None:
    """What holds for every transcript of a waveform that long."""
    assert transcript.text == transcript.text.strip()
    if not transcript.text:
        assert transcript.segments == ()
        assert transcript.avg_logprob is None
        assert transcript.compression_ratio is None
    else:
        assert transcript.language == "en"
        assert transcript.avg_logprob is not None
        assert transcript.avg_logprob <= 0
        assert transcript.compression_ratio is not None
        assert transcript.compression_ratio > 0
        joined = " ".join(segment.text for segment in transcript.segments)
        assert joined.split() == transcript.text.split()
    assert transcript.no_speech_prob is not None
    assert 0 <= transcript.no_speech_prob <= 1
    last_s = 0.0
    for segment in transcript.segments:
        assert last_s <= segment.start_s <= segment.end_s <= duration_s
        last_s = segment.end_s


def test_no_waveforms_give_no_transcripts(transcriber: Transcriber) -> None:
    assert transcriber.transcribe([]) == []


def test_silence_has_no_words(transcriber: Transcriber) -> None:
    for transcript in transcriber.transcribe([silence(0), silence(0.5), silence(31)]):
        assert transcript.text == ""
        check(transcript, 31)


def test_tiny_waveforms_are_no_trouble(transcriber: Transcriber) -> None:
    waveforms = [np.full(n, 0.1, np.float32) for n in (1, 2, 159, 160, 800)]
    for waveform, transcript in zip(waveforms, transcriber.transcribe(waveforms), strict=True):
        check(transcript, len(waveform) / 16_000)


def test_neighbours_do_not_matter_and_order_is_kept(transcriber: Transcriber) -> None:
    waveforms = [speech(CLIPS[0]), silence(1), speech(CLIPS[1]), speech(CLIPS[2])]
    together = transcriber.transcribe(waveforms)
    assert len(together) == len(waveforms)
    for waveform, transcript in zip(waveforms, together, strict=True):
        check(transcript, len(waveform) / 16_000)
        assert transcriber.transcribe([waveform]) == [transcript]
    assert len({transcript.text for transcript in together}) == len(waveforms)


def test_input_is_left_as_it_was(transcriber: Transcriber) -> None:
    waveform = speech(CLIPS[0])  # read-only: writing to it raises
    kept = waveform.copy()
    transcriber.transcribe([waveform])
    assert np.array_equal(waveform, kept)


def test_recipe_and_provenance_are_json_and_stay_the_same(transcriber: Transcriber) -> None:
    recipe = json.dumps(transcriber.recipe)
    assert math.isfinite(len(json.dumps(dict(transcriber.provenance), allow_nan=False)))
    transcriber.transcribe([silence(0.1)])
    assert json.dumps(transcriber.recipe) == recipe
    assert all(isinstance(value, str) for value in transcriber.provenance.values())
    assert json.loads(recipe)["transcriber"] in TRANSCRIBERS


def test_language_shapes_the_recipe() -> None:
    recipes = [
        open_transcriber(
            "fake", model="fake", language=language, device="auto", compute_type="auto", beam_size=5
        ).recipe
        for language in (None, "en")
    ]
    assert recipes[0] != recipes[1]


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(JobError, match=r"did you mean 'whisper'\? there are: fake, whisper"):
        open_transcriber(
            "wisper", model="base", language=None, device="cpu", compute_type="auto", beam_size=5
        )


@pytest.mark.parametrize("options", [{"beam_size": 0}, {"beam_size": 1, "cpu_threads": -1}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(JobError, match="at least"):
        open_transcriber(
            "fake",
            model="fake",
            language=None,
            device="cpu",
            compute_type="auto",
            beam_size=options["beam_size"],
            cpu_threads=options.get("cpu_threads", 0),
        )


def test_fake_takes_the_time_it_is_told() -> None:
    with pytest.raises(JobError, match="seconds"):
        open_transcriber(
            "fake", model="fake:slow", language=None, device="", compute_type="", beam_size=1
        )
    slow = open_transcriber(
        "fake", model="fake:0.0", language=None, device="", compute_type="", beam_size=1
    )
    assert slow.transcribe([np.ones(16_000, np.float32)])[0].text


def test_fakes_import_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from speechmill.tokenizers import open_tokenizer\n"
        "from speechmill.transcribers import open_transcriber\n"
        "open_tokenizer('fake', {}), open_tokenizer('mfcc', {})\n"
        "open_transcriber('fake', model='fake', language=None, device='auto',"
        " compute_type='auto', beam_size=5)\n"
        "heavy = {'av', 'ctranslate2', 'faster_whisper', 'huggingface_hub', 'librosa', 'numba',"
        " 'onnxruntime', 'scipy', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == "[]"
