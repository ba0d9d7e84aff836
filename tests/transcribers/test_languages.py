"""Languages: told, detected, refused, translated."""

from __future__ import annotations

import re

import pytest

from speechmill.errors import JobError
from speechmill.records import Speech
from speechmill.transcribers import TranscriberOptions
from speechmill.transcribers.languages import LANGUAGES, language_code
from speechmill.transcribers.whisper import WhisperTranscriber
from speechmill.transcribers.windows import FULL_WINDOW_S, WindowOptions
from tests.support.weights import SAMPLE_RATE, speech, whisper
from tests.support.whispers import CHURCHYARDS, JFK, LOBSTERS, one, opened, zeros


def test_languages_are_detected_one_by_one_in_a_batch() -> None:
    paths = [f"speech/fleurs_{code}/fleurs-{code}-004.ogg" for code in ("de", "es", "fr", "pt")]
    clips = [Speech(speech(path)[: 7 * SAMPLE_RATE]) for path in paths]
    transcripts = opened("base").transcribe(clips)
    assert [t.language for t in transcripts] == ["de", "es", "fr", "pt"]
    assert all((t.language_probability or 0) > 0.8 for t in transcripts)
    assert "höhle" in one(opened("base"), speech(paths[0])).text.lower()


def test_the_language_of_a_recording_is_heard_in_several_stretches() -> None:
    german = [
        Speech(speech(f"speech/fleurs_de/fleurs-de-00{k}.ogg")[: 6 * SAMPLE_RATE]) for k in (1, 2)
    ]
    found = opened("base").detect_language(german)
    assert found is not None
    assert found[0] == "de"
    assert found[1] > 0.8
    assert opened("base", language="de").detect_language(german) is None
    assert opened("base").detect_language([]) is None
    assert opened("tiny.en").detect_language(german) is None


def test_a_recording_whose_language_is_uncertain_is_heard_in_the_full_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transcriber = opened("base")
    asked: list[float] = []
    surest = 0.0

    def probabilities(_: Speech, window_s: float) -> dict[str, float]:
        asked.append(window_s)
        return {"nn": surest, "de": 0.0} if window_s < FULL_WINDOW_S else {"nn": 0.0, "de": 0.9}

    monkeypatch.setattr(transcriber.encoder, "probabilities", probabilities)
    stretches = [Speech(zeros(2)), Speech(zeros(4))]
    surest = 0.5
    assert transcriber.detect_language(stretches) == ("de", 0.9)
    assert sorted(asked) == [3.0, 5.0, FULL_WINDOW_S, FULL_WINDOW_S]
    asked.clear()
    surest = 0.7
    assert transcriber.detect_language(stretches) == ("nn", 0.7)
    assert sorted(asked) == [3.0, 5.0]


def test_scripts_that_take_many_tokens_have_room_for_them_beside_others() -> None:
    """In Georgian a second of speech takes 30 tokens; and a batch of several languages gives each
    what it gives alone."""
    options = WindowOptions()
    assert options.max_tokens(12.0, "ka") > 448 > options.max_tokens(12.0, "de")
    transcriber = opened("base")
    batch = [
        Speech(speech(LOBSTERS), language=language, language_probability=1.0)
        for language in ("en", "hi", "de")
    ]
    together = transcriber.transcribe(batch)
    assert together == [transcriber.transcribe([one])[0] for one in batch]
    assert [t.language for t in together] == ["en", "hi", "de"]


def test_only_languages_that_are_allowed_are_detected() -> None:
    german = speech("speech/fleurs_de/fleurs-de-004.ogg")
    transcript = one(opened("base", languages=("nl", "German")), german)
    assert transcript.language == "de"
    other = one(opened("base", languages=("nl", "en")), german)
    assert other.language in ("nl", "en")
    assert 0.5 <= (other.language_probability or 0) <= 1


def test_a_language_that_is_known_of_the_recording_is_taken() -> None:
    (transcript,) = opened("base").transcribe([Speech(speech(JFK), None, "de", 0.9)])
    assert (transcript.language, transcript.language_probability) == ("de", 0.9)


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_translation_is_english(window: str) -> None:
    german = speech("speech/fleurs_de/fleurs-de-004.ogg")
    transcript = one(opened("base", task="translate", window=window), german)
    assert transcript.language == "de"
    assert {"of", "the"} < set(re.findall(r"\w+", transcript.text.lower()))


def test_a_language_that_is_given_has_no_probability() -> None:
    english = opened("base", language="English")
    transcript = one(english, speech(CHURCHYARDS))
    assert (transcript.language, transcript.language_probability) == ("en", None)
    assert english.recipe["language"] == "en"


@pytest.mark.parametrize(
    ("language", "complaint"),
    [
        ("de", r"'tiny\.en' cannot transcribe german \('de'\).*English-only.*take 'tiny'"),
        ("xx", "there is no language 'xx'"),
        ("englisch", r"did you mean 'english'\?"),
        ("", "there is no language ''"),
    ],
)
def test_languages_that_the_model_does_not_speak_are_refused(language: str, complaint: str) -> None:
    whisper("tiny.en")
    with pytest.raises(JobError, match=complaint):
        WhisperTranscriber("tiny.en", TranscriberOptions(language=language, device="cpu"))


def test_options_that_contradict_each_other_are_refused() -> None:
    whisper("tiny.en")
    whisper("base")
    with pytest.raises(JobError, match=r"cannot translate.*take 'tiny'"):
        WhisperTranscriber("tiny.en", TranscriberOptions(task="translate", device="cpu"))
    with pytest.raises(JobError, match=r"'de' is not one of those allowed: en, fr"):
        WhisperTranscriber(
            "base", TranscriberOptions(language="de", languages=("fr", "en"), device="cpu")
        )


def test_languages_go_by_code_or_english_name() -> None:
    for code, name in LANGUAGES.items():
        for word in (code, name, name.upper(), f" {name.title()} "):
            assert language_code(word, LANGUAGES, "base") == code
    assert language_code("pt-BR", LANGUAGES, "base") == "pt"
    assert language_code("pt_PT", LANGUAGES, "base") == "pt"
    assert language_code("jv", LANGUAGES, "base") == "jw"
    assert language_code("haitian creole", LANGUAGES, "base") == "ht"


def test_our_languages_are_those_of_faster_whisper() -> None:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    assert set(LANGUAGES) == set(_LANGUAGE_CODES)
