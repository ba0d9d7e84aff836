"""Languages: told, detected, refused, translated."""

from __future__ import annotations

import re

import numpy as np
import pytest

from speechmill.errors import JobError
from speechmill.records import Speech
from speechmill.transcribers import TranscriberOptions
from speechmill.transcribers.languages import LANGUAGES, is_other, language_code
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
    (transcript,) = opened("base").transcribe([Speech(speech(JFK), None, "de", 1.0)])
    assert (transcript.language, transcript.language_probability) == ("de", 1.0)


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


GERMAN, SPANISH, FRENCH = (
    f"speech/fleurs_{code}/fleurs-{code}-004.ogg" for code in ("de", "es", "fr")
)


@pytest.mark.parametrize("window", ["adaptive", "full"])
def test_what_is_told_to_be_in_another_language_is_found_out(window: str) -> None:
    """Whisper translates it, and is sure of it."""
    transcriber = opened("base", language="en", window=window)
    clips = [Speech(speech(path)[: 6 * SAMPLE_RATE]) for path in (GERMAN, SPANISH, FRENCH, JFK)]
    found = transcriber.transcribe(clips)
    assert [t.language for t in found] == ["en"] * 4
    assert [t.language_heard for t in found] == ["de", "es", "fr", "en"]
    assert ["other_language" in t.flags for t in found] == [True, True, True, False]
    assert found == [transcriber.transcribe([clip])[0] for clip in clips]


def test_a_clip_of_two_languages_is_uncertain_and_one_of_two_sentences_is_not() -> None:
    german, english = speech(GERMAN)[: 7 * SAMPLE_RATE], speech(JFK)[: 7 * SAMPLE_RATE]
    pause = 1e-3 * np.random.default_rng(0).standard_normal(SAMPLE_RATE // 2).astype(np.float32)
    for both in ((german, pause, english), (english, pause, german)):
        mixed = one(opened("base"), np.concatenate(both))
        assert "uncertain_language" in mixed.flags
        assert mixed.language_heard != mixed.language
        assert "other_language" in one(opened("base", language="en"), np.concatenate(both)).flags
    plain = one(opened("base"), np.concatenate((english, pause, english)))
    assert "uncertain_language" not in plain.flags
    assert plain.language_heard == plain.language == "en"


def test_a_row_whose_language_is_surer_than_its_recordings_has_its_own() -> None:
    """A recording in English with a row in German; and one that is surely in English."""
    german = speech(GERMAN)[: 6 * SAMPLE_RATE]
    rows = [Speech(german, None, "en", 0.6), Speech(german, None, "en", 1.0)]
    own, recordings = opened("base").transcribe(rows)
    assert (own.language, own.language_heard) == ("de", "de")
    assert "höhle" in own.text.lower()
    assert "uncertain_language" not in own.flags
    assert (recordings.language, recordings.language_heard) == ("en", "de")
    assert "uncertain_language" in recordings.flags


def test_an_english_model_hears_no_other_language() -> None:
    found = one(opened("tiny.en"), speech(GERMAN)[: 3 * SAMPLE_RATE])
    assert found.language_heard is None


def test_languages_that_sound_alike_are_not_taken_for_each_other() -> None:
    assert not is_other("no", {"nn": 0.9, "no": 0.02, "en": 0.08})
    assert is_other("no", {"de": 0.9, "no": 0.02})
    assert not is_other("de", {"nl": 0.6, "de": 0.02})
