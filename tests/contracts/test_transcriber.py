"""What the Protocol ``Transcriber`` promises, held to by every transcriber."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speechmill.errors import JobError, MissingExtraError, ModelError
from speechmill.records import Speech, Transcript
from speechmill.transcribers import TRANSCRIBERS, TranscriberOptions, open_transcriber
from speechmill.transcribers.base import Transcriber
from tests.support.ct2_weights import whisper_folder
from tests.support.ctc_checkpoint import write_ctc_checkpoint
from tests.support.weights import speech, whisper

# Every transcriber, and each kind of model that it takes; the smallest that there is of each.
KINDS = ("fake", "whisper", "openai-whisper", "transformers/whisper", "transformers/ctc")
CLIPS = (
    "speech/367/367-130732-0000.flac",
    "speech/p225/p225_001_mic1.flac",
    "speech/1688/1688-142285-0002.flac",
)


@pytest.fixture(scope="session")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ctc_checkpoint(tmp_path_factory.mktemp("ctc"))


def model_of(kind: str, ctc_folder: Path) -> str:
    if kind == "fake":
        return "fake"
    if kind == "whisper":
        return whisper("tiny.en").name
    return str(ctc_folder if kind == "transformers/ctc" else whisper_folder())


@cache
def opened(kind: str, ctc_folder: Path, *, words: bool = False) -> Transcriber:
    return open_transcriber(
        kind.partition("/")[0],
        model_of(kind, ctc_folder),
        TranscriberOptions(language="en", device="cpu", cpu_threads=1, words=words),
    )


@pytest.fixture(params=KINDS)
def transcriber(request: pytest.FixtureRequest, ctc_folder: Path) -> Transcriber:
    return opened(request.param, ctc_folder)


@cache
def clips() -> tuple[Speech, ...]:
    return tuple(Speech(speech(clip)) for clip in CLIPS)


_heard: dict[int, list[Transcript]] = {}


def heard(transcriber: Transcriber) -> list[Transcript]:
    """The clips, in one call; remembered."""
    if id(transcriber) not in _heard:  # those that are opened here are kept for good
        _heard[id(transcriber)] = transcriber.transcribe(clips())
    return _heard[id(transcriber)]


def silence(seconds: float) -> Speech:
    return Speech(np.zeros(int(seconds * 16_000), np.float32))


def duration_s(one: Speech) -> float:
    return len(one.samples) / 16_000


def letters(text: str) -> str:
    return "".join(text.split())


def check(transcript: Transcript, duration_s: float) -> None:
    """What holds for every transcript of a stretch that long."""
    assert transcript.text == transcript.text.strip()
    if not transcript.text:
        assert transcript.segments == ()
        assert not transcript.words
        assert transcript.avg_logprob is None
        assert transcript.compression_ratio is None
        assert transcript.no_speech_prob is None or 0 <= transcript.no_speech_prob <= 1
        return
    assert transcript.language == "en"
    assert transcript.avg_logprob is not None
    assert transcript.avg_logprob <= 0
    assert transcript.compression_ratio is not None
    assert transcript.compression_ratio > 0
    assert transcript.no_speech_prob is not None
    assert 0 <= transcript.no_speech_prob <= 1
    assert letters("".join(s.text for s in transcript.segments)) == letters(transcript.text)
    check_times([(s.start_s, s.end_s) for s in transcript.segments], duration_s)


def check_times(spans: Sequence[tuple[float, float]], duration_s: float) -> None:
    last_s = 0.0
    for start_s, end_s in spans:
        assert last_s <= start_s <= end_s <= duration_s
        last_s = end_s


def test_every_transcriber_is_held_to_this() -> None:
    assert {kind.partition("/")[0] for kind in KINDS} == set(TRANSCRIBERS)


def test_no_speech_gives_no_transcripts(transcriber: Transcriber) -> None:
    assert transcriber.transcribe([]) == []
    assert transcriber.detect_language([]) is None


def test_speech_has_a_text_of_its_own_with_figures_and_times_within_it(
    transcriber: Transcriber,
) -> None:
    transcripts = heard(transcriber)
    assert len({transcript.text for transcript in transcripts}) == len(CLIPS)
    for one, transcript in zip(clips(), transcripts, strict=True):
        assert transcript.text
        check(transcript, duration_s(one))


def test_silence_has_no_words_where_no_voice_is_needed(transcriber: Transcriber) -> None:
    if transcriber.needs_voice:
        pytest.skip("it is never given silence")
    for seconds in (0, 0.5, 29):
        (transcript,) = transcriber.transcribe([silence(seconds)])
        assert transcript.text == ""
        check(transcript, seconds)


def test_tiny_stretches_are_no_trouble(transcriber: Transcriber) -> None:
    stretches = [Speech(np.full(n, 0.1, np.float32)) for n in (0, 1, 2, 159, 160, 800, 1_700)]
    for one, transcript in zip(stretches, transcriber.transcribe(stretches), strict=True):
        check(transcript, duration_s(one))


def test_more_than_max_speech_s_is_refused(transcriber: Transcriber) -> None:
    if transcriber.max_speech_s is None:
        pytest.skip("it takes any length")
    with pytest.raises(ModelError, match=r"at most 30 s at once, not 30\.1 s: cut it"):
        transcriber.transcribe([silence(transcriber.max_speech_s + 0.1)])


def test_neighbours_and_order_do_not_matter(transcriber: Transcriber) -> None:
    first, *_, last = clips()
    assert transcriber.transcribe([last, first]) == heard(transcriber)[::-2]


def test_two_threads_at_once_hear_the_same_as_one(transcriber: Transcriber) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(transcriber.transcribe, [clips()[:1], clips()[1:2]]))
    assert [transcript for one in both for transcript in one] == heard(transcriber)[:2]


def test_speech_is_left_as_it_was(transcriber: Transcriber) -> None:
    samples: NDArray[np.float32] = speech(CLIPS[0])
    assert not samples.flags.writeable  # so that writing to it raises
    kept = samples.copy()
    heard(transcriber)
    assert np.array_equal(samples, kept)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fake"])
def test_words_are_in_order_and_join_to_the_text(kind: str, ctc_folder: Path) -> None:
    assert all(t.words is None for t in heard(opened(kind, ctc_folder)))
    for one, transcript in zip(clips(), heard(opened(kind, ctc_folder, words=True)), strict=True):
        assert transcript.words
        check(transcript, duration_s(one))
        check_times([(w.start_s, w.end_s) for w in transcript.words], duration_s(one))
        assert letters("".join(w.word for w in transcript.words)) == letters(transcript.text)
        assert all(w.word == w.word.strip() != "" for w in transcript.words)
        assert all(0 <= w.probability <= 1 for w in transcript.words)
        assert len({w.start_s for w in transcript.words}) > 1


def test_recipe_and_provenance_are_json_and_stay_the_same(transcriber: Transcriber) -> None:
    recipe = json.dumps(dict(transcriber.recipe), allow_nan=False)
    transcriber.transcribe([silence(0)])
    assert json.dumps(dict(transcriber.recipe)) == recipe
    assert json.loads(recipe)["transcriber"] in TRANSCRIBERS
    assert all(isinstance(value, str) for value in transcriber.provenance.values())


def test_no_language_is_detected_where_it_was_told(transcriber: Transcriber) -> None:
    assert transcriber.detect_language(clips()[:1]) is None


def test_language_shapes_the_recipe(ctc_folder: Path) -> None:
    for kind in ("fake", "transformers/ctc"):
        model = model_of(kind, ctc_folder)
        told, untold = (
            open_transcriber(
                kind.partition("/")[0], model, TranscriberOptions(language=language, cpu_threads=1)
            ).recipe
            for language in ("en", None)
        )
        assert told != untold


def test_unknown_names_say_what_there_is() -> None:
    there = "there are: fake, openai-whisper, transformers, whisper"
    with pytest.raises(JobError, match=rf"did you mean 'whisper'\? {there}"):
        open_transcriber("wisper", "base")


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 0},
        {"cpu_threads": -1},
        {"batch_size": -1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="greater than or equal"):
        TranscriberOptions(**options)


def test_fake_takes_the_time_it_is_told() -> None:
    with pytest.raises(JobError, match="seconds"):
        open_transcriber("fake", "fake:slow")
    slow = open_transcriber("fake", "fake:0.0")
    assert slow.transcribe([Speech(np.ones(16_000, np.float32))])[0].text


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("openai-whisper", "whisper", "openai-whisper"),
        ("transformers", "transformers", "transformers"),
        ("transformers", "torch", "transformers"),
    ],
)
def test_a_missing_extra_is_named(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what makes its import fail
    with pytest.raises(MissingExtraError) as caught:
        open_transcriber(name, "base")
    assert f"pip install 'speechmill[{extra}]'" in str(caught.value)


def test_fakes_and_names_import_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from speechmill.tokenizers import open_tokenizer\n"
        "from speechmill.transcribers import open_transcriber\n"
        "open_tokenizer('fake', {}), open_tokenizer('mfcc', {})\n"
        "open_transcriber('fake', 'fake')\n"
        "heavy = {'av', 'ctranslate2', 'faster_whisper', 'huggingface_hub', 'librosa', 'numba',"
        " 'onnxruntime', 'safetensors', 'scipy', 'torch', 'transformers', 'whisper'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == "[]"
