"""Figures about a text: what repeats itself is told from what does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from speechmill.text import figures as quality
from speechmill.text.figures import (
    can_be_said,
    compression_ratio,
    is_said_again,
    letter_compression_ratio,
    repetition,
    speech_rate,
)

SENTENCE = "The norsemen considered the rainbow as a bridge over which the gods passed."


def doubts(text: str, voiced_s: float | None, no_speech_prob: float | None = None) -> set[str]:
    return quality.doubts(text, voiced_s, repetition(text), no_speech_prob)


def test_what_is_said_once_does_not_repeat() -> None:
    assert repetition(SENTENCE) == 0
    assert repetition("") == 0
    assert repetition("no") == 0


def test_a_sentence_said_twice_repeats_by_half() -> None:
    assert repetition(f"{SENTENCE} {SENTENCE.upper()}") == 0.5
    assert repetition("Lobsters and lobsters. Lobsters and lobsters.") == 0.5


def test_signs_can_be_said_and_dots_and_notes_cannot() -> None:
    for text in ("no", "3", "$", "% %", "€.", "はい", "नहीं"):
        assert can_be_said(text), text
    for text in ("", " ", ". . .", "…", "♪♪", "- -", "¿?", "!"):
        assert not can_be_said(text), text


def test_a_word_or_a_sentence_and_nothing_else_is_said_again() -> None:
    for text in ("July. July", "lower case lower case", "8 8 8", f"{SENTENCE} {SENTENCE.upper()}"):
        assert is_said_again(text), text
    for text in ("", "July", "no, no, not at all", "Lower case, upper case", SENTENCE, "…"):
        assert not is_said_again(text), text


def test_vowel_signs_are_of_their_word() -> None:
    for word in ("दादा", "पापा", "दीदी।", "বাবা", "தாத்தா", "की के"):
        assert not is_said_again(word), word
    assert is_said_again("दादा दादा")
    hindi = "की के को का कि कू कृ"  # one consonant, seven words
    assert repetition(hindi) == 0
    assert repetition(f"{hindi} {hindi}") == 0.5


def test_what_compresses_is_the_text_and_not_how_its_letters_are_written() -> None:
    tamil = (
        "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும் உரிமைகளிலும் "
        "சமமானவர்கள். அவர்கள் நியாயத்தையும் மனச்சாட்சியையும் இயற்பண்பாகப் பெற்றவர்கள்."
    )
    assert compression_ratio(tamil) > 2.4  # Whisper's own limit
    assert letter_compression_ratio(tamil) < 1.6
    assert letter_compression_ratio(tamil * 4) > 2.4
    assert letter_compression_ratio(SENTENCE) == compression_ratio(SENTENCE)


def test_scripts_without_spaces_are_told_by_their_characters() -> None:
    sentence = "今日はとても良い天気ですね散歩に行きましょう"
    assert repetition(sentence) == 0
    assert repetition(sentence * 2) == 0.5


@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=3, unique=True),
    st.integers(2, 9),
)
def test_a_loop_repeats_all_but_its_first_round(words: list[str], rounds: int) -> None:
    assert abs(repetition(" ".join(words * rounds)) - (1 - 1 / rounds)) < 1e-9


def test_speech_rate_is_characters_a_second_of_voice() -> None:
    assert speech_rate("a dozen chars", 2.0) == 6.5
    assert speech_rate("", 2.0) is None
    assert speech_rate("words", 0.0) is None
    assert speech_rate("words", None) is None


def test_people_speak_neither_too_fast_nor_too_slowly() -> None:
    assert doubts(SENTENCE, 4.0) == set()
    assert doubts(SENTENCE, 3.0) == set()  # 25 a second
    assert doubts("No.", 0.1) == set()  # of so little voice no rate is to be told
    assert doubts("Well …", 2.9) == set()
    assert doubts("今日はとても良い天気ですね散歩に行きましょう", 3.0) == set()
    assert doubts("", 9.0) == set()
    assert doubts(SENTENCE, None) == set()


def test_more_words_than_anybody_speaks_are_too_fast() -> None:
    assert doubts(SENTENCE, 2.0) == {"too_fast"}
    assert doubts("Thank you for watching this video!", 0.3) == {"too_fast"}
    assert doubts("今日はとても良い天気ですね散歩に行きましょう", 1.3) == {"too_fast"}
    assert doubts("오늘은 날씨가 아주 좋습니다 산책하러 갑시다", 1.2) == {"too_fast"}


def test_a_few_words_for_many_seconds_are_too_slow() -> None:
    assert doubts("Thank you.", 6.0) == {"too_slow"}
    assert doubts("谢谢", 6.0) == {"too_slow"}


def test_words_where_whisper_itself_hears_rather_no_speech_are_doubtful() -> None:
    assert doubts("You", 0.5, 0.9) == {"maybe_no_speech"}  # the chime of a desktop
    assert doubts("Front, left.", 1.0, 0.35) == set()
    assert doubts("", 0.5, 0.9) == set()
    assert doubts("You", None, 0.61) == {"maybe_no_speech"}


def test_a_loop_is_repetitive_and_a_refrain_is_not() -> None:
    assert doubts(f"{SENTENCE} {SENTENCE}", 10.0) == {"repetitive"}
    assert doubts("To be or not to be, that is the question, to be or not at all.", 5.0) == set()


@given(st.text())
def test_any_text_has_figures(text: str) -> None:
    assert 0 <= repetition(text) <= 1
    if text:
        assert compression_ratio(text) > 0
