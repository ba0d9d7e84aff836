"""Whisper in windows as long as the speech needs: batches of them, and what becomes of outcomes
that cannot be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from numpy.typing import NDArray

from speechmill.records import Segment, Speech, Transcript
from speechmill.text.figures import can_be_said, compression_ratio, repetition
from speechmill.text.transcripts import NO_SPACES, join_transcripts
from speechmill.transcribers import ctranslate, results
from speechmill.transcribers.attention import Attention
from speechmill.transcribers.base import OnEncoded, TranscriberOptions
from speechmill.transcribers.coverage import cuts_around, divided, pauses
from speechmill.transcribers.full_window import FullWindow
from speechmill.transcribers.hearing import FRAME_RATE, SAMPLE_RATE, Hearing, Spoken
from speechmill.transcribers.windows import FULL_WINDOW_S, Heard
from speechmill.transcribers.wording import Wording

__all__ = ["AdaptiveWindows"]

MAX_TOKENS: Final = 448
"""Prompt and text together: what Whisper's decoder has places for."""

PREPENDED: Final = "\"'“¿([{-"
APPENDED: Final = "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an adaptive window gave: ``transcript`` is None if it is suspicious; ``untold`` is where
    it leaves out voice, (start_s, end_s) from the first sample."""

    spoken: Spoken
    transcript: Transcript | None
    untold: tuple[float, float] | None = None


class AdaptiveWindows:
    """Transcribes batches of stretches of speech.

    Args:
        whisper: faster-whisper's model.
        hearing: its encoder, and the rule for windows.
        wording: its tokens.
        full: the full window, for what no other gives.
        options: what the transcriber was told.
    """

    def __init__(
        self,
        whisper: Any,
        hearing: Hearing,
        wording: Wording,
        full: FullWindow,
        options: TranscriberOptions,
    ) -> None:
        self._whisper = whisper
        self._hearing = hearing
        self._windows = hearing.windows
        self._placement = hearing.placement
        self._wording = wording
        self._full = full
        self._options = options
        self._attention = Attention(whisper.model, hearing, wording.tokenizer)

    def transcribe(
        self, batch: Sequence[Speech], on_encoded: OnEncoded | None = None
    ) -> list[Transcript]:
        """Transcribe stretches of which the decoder is given equally much, none longer than 30 s.

        ``on_encoded`` is called with the number of a stretch and what the encoder made of it in
        its first window, [50 · window_s, width].
        """
        windows_s = [self._window_s(one) for one in batch]

        def outcomes_of(some: Sequence[int]) -> list[Outcome]:
            listening = on_encoded and (lambda i, heard: on_encoded(some[i], heard))
            return self._heard([batch[i] for i in some], [windows_s[i] for i in some], listening)

        outcomes = ctranslate.halving(outcomes_of, range(len(batch)))
        return [
            self._settled(one, window_s, outcome)
            for one, window_s, outcome in zip(batch, windows_s, outcomes, strict=True)
        ]

    def _settled(self, speech: Speech, window_s: float, outcome: Outcome) -> Transcript:
        """What an adaptive window gave, or what is heard instead where that cannot be believed."""
        known = _known(speech, outcome.spoken)
        told = self._told(known, outcome)
        if told is not None:
            return told
        again = self._again(known, window_s)
        little = outcome.transcript  # which is better than less
        return little if little is not None and len(again.text) < len(little.text) else again

    def _again(self, speech: Speech, window_s: float) -> Transcript:
        """Transcribe a stretch whose window gave something suspicious: in a wider one, which most
        often will do and is cheap, and if that is no better in the full one."""
        wider_s = window_s + self._windows.wider_s
        if wider_s < FULL_WINDOW_S:
            (outcome,) = self._heard([speech], [wider_s])
            told = self._told(speech, outcome)
            if told is not None:
                return told
        return self._in_full(speech)

    def _told(self, speech: Speech, outcome: Outcome) -> Transcript | None:
        """What a window gave, or the parts of its stretch where it leaves something out; None where
        that is suspicious, or next to nothing."""
        transcript = outcome.transcript
        if transcript is None:
            return None
        if outcome.untold is not None:
            parts = self._in_parts(speech, outcome.untold)
            if parts is not None and self._say_more(parts, transcript, speech):
                return parts
        voiced_s = _voiced_s(speech)
        if transcript.text and self._windows.says_too_little(transcript.text, voiced_s):
            return None
        return transcript

    def _in_parts(self, speech: Speech, untold: tuple[float, float]) -> Transcript | None:
        """Transcribe a stretch in parts, so that what a transcript of it leaves out is one of them;
        None where it cannot be parted."""
        voiced = speech.voiced or ()
        cuts_s = cuts_around(untold, voiced, pauses(voiced, self._windows.untold_pause_s))
        if not cuts_s:
            return None
        parts = divided(speech, cuts_s, SAMPLE_RATE)
        told = [self.transcribe([part])[0] for _, part in parts]
        joined = join_transcripts([start_s for start_s, _ in parts], told)
        return replace(joined, flags=tuple(sorted({*joined.flags, "heard_in_parts"})))

    def _say_more(self, parts: Transcript, whole: Transcript, speech: Speech) -> bool:
        """Whether parts say more than the whole, and do not loop: the full window, which one may
        have come to, is not asked again."""
        most = self._windows.max_chars_per_s * max(_voiced_s(speech), 1.0)
        loops = repetition(parts.text) >= self._windows.max_repetition
        return len(whole.text) < len(parts.text) <= most and not loops

    def _window_s(self, speech: Speech) -> float:
        return self._windows.window_s(len(speech.samples), SAMPLE_RATE)

    def _heard(
        self,
        batch: Sequence[Speech],
        windows_s: Sequence[float],
        on_encoded: OnEncoded | None = None,
    ) -> list[Outcome]:
        """What each stretch gives in its window."""
        seen = self._hearing.heard(batch, windows_s)
        if on_encoded is not None:
            for i, one_heard in enumerate(seen):
                on_encoded(i, one_heard)
        encoded = self._hearing.with_silence(seen, windows_s)
        output = ctranslate.stored(encoded, self._placement)
        spoken = self._hearing.spoken(batch, windows_s, output)
        prompts = [self._wording.prompt(one.language) for one in spoken]
        rooms = [self._room(windows_s[0], len(prompts[0]), one.language) for one in spoken]
        found = self._generated(encoded, output, prompts, rooms)
        outcomes = []
        for i, (one, said) in enumerate(zip(batch, spoken, strict=True)):
            transcript = self._believed(
                one, said, found[i], windows_s[i], rooms[i], encoded[i : i + 1]
            )
            untold = None
            if transcript is not None and transcript.text:
                untold = self._attention.untold(
                    one, found[i].sequences_ids[0], said.language, encoded[i : i + 1]
                )
                if self._options.words:
                    transcript = self._with_words(transcript, found[i], encoded[i : i + 1], one)
            outcomes.append(Outcome(said, transcript, untold))
        return outcomes

    def _generated(
        self,
        encoded: NDArray[Any],
        output: Any,
        prompts: Sequence[list[int]],
        rooms: Sequence[int],
    ) -> list[Any]:
        """What the decoder makes of each stretch. Those that have as much room, most often all, are
        computed together; ``output`` is all that is encoded, stored on the device."""
        found: dict[int, Any] = {}
        for room in sorted(set(rooms)):
            some = [i for i, one in enumerate(rooms) if one == room]
            if len(some) < len(rooms):
                output = ctranslate.stored(encoded[some], self._placement)
            results_of_some = self._whisper.model.generate(
                output,
                [prompts[i] for i in some],
                beam_size=self._options.beam_size,
                patience=results.DECODING["patience"],
                max_length=max(2 * room, len(prompts[0]) + room),  # the text gets half at most
                suppress_tokens=self._wording.suppressed,
                return_scores=True,
                return_no_speech_prob=True,
            )
            found |= zip(some, results_of_some, strict=True)
        return [found[i] for i in range(len(rooms))]

    def _room(self, window_s: float, prompt: int, language: str) -> int:
        """How many tokens the text may have that is heard in such a window, after a prompt of so
        many: half of the decoder's places at most, as with Whisper itself."""
        wanted = self._windows.max_tokens(self._windows.decoder_s(window_s), language)
        return min(MAX_TOKENS // 2, MAX_TOKENS - prompt, wanted)

    def _believed(
        self,
        speech: Speech,
        spoken: Spoken,
        result: Any,
        window_s: float,
        room: int,
        encoded: NDArray[Any],
    ) -> Transcript | None:
        """What the decoder gave for a stretch, None where it is suspicious; ``room`` is how many
        tokens it could give, of what ``encoded`` holds."""
        tokens = result.sequences_ids[0]
        # As Whisper counts it: the mean over the tokens and the one that ends the text.
        avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
        text = self._wording.tokenizer(spoken.language).decode(tokens).strip()
        duration_s = len(speech.samples) / SAMPLE_RATE
        heard = Heard(
            text,
            avg_logprob,
            len(tokens),
            duration_s,
            speech.voiced_s,
            result.no_speech_prob,
            room,
        )
        if self._windows.is_suspicious(heard):
            return None
        start_s, end_s = 0.0, duration_s
        if speech.voiced:
            start_s, end_s = speech.voiced[0][0], min(speech.voiced[-1][1], duration_s)
        transcript = Transcript(
            text,
            language=spoken.language,
            language_probability=spoken.probability,
            avg_logprob=avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=compression_ratio(text),
            segments=(Segment(start_s, end_s, text, avg_logprob, result.no_speech_prob),),
            temperature=0.0,
            window_s=window_s,
            flags=results.flags(
                spoken.probability,
                low_confidence=avg_logprob < results.DECODING["log_prob_threshold"],
            ),
        )
        return self._weighed(transcript, heard, tokens, encoded)

    def _in_full(self, speech: Speech) -> Transcript:
        """Transcribe a stretch in the full window, which is not believed in everything either."""
        transcript = self._full.transcribe(speech)
        if transcript.text:
            heard = Heard(
                transcript.text,
                transcript.avg_logprob or 0.0,
                0,
                len(speech.samples) / SAMPLE_RATE,
                speech.voiced_s,
                transcript.no_speech_prob or 0.0,
            )
            encoded = self._hearing.encoded([speech], [self._window_s(speech)])
            space = "" if NO_SPACES.match(transcript.text) else " "
            tokenizer = self._wording.tokenizer(transcript.language or "en")
            tokens = tokenizer.encode(space + transcript.text)
            transcript = self._weighed(transcript, heard, tokens, encoded)
        return replace(transcript, flags=tuple(sorted((*transcript.flags, "window_fallback"))))

    def _weighed(
        self,
        transcript: Transcript,
        heard: Heard,
        tokens: Sequence[int],
        encoded: NDArray[Any],
    ) -> Transcript:
        """A transcript with text, flagged if the speech hardly makes it likelier than silence
        does; one without words if nobody says them. ``tokens`` are the text's."""
        silent = results.no_words(self._hearing.language, heard.no_speech_prob, transcript.window_s)
        if not can_be_said(heard.text) or self._windows.is_no_speech(heard):
            return silent
        if not self._windows.is_doubtful(heard):
            return transcript
        language = transcript.language or "en"
        gain = self._attention.gain(tokens, language, encoded, heard.duration_s)
        if self._windows.is_made_up(heard, gain, language):
            return silent
        if gain >= self._windows.low_gain:
            return transcript
        return replace(transcript, flags=tuple(sorted((*transcript.flags, "maybe_made_up"))))

    def _with_words(
        self, transcript: Transcript, result: Any, encoded: NDArray[Any], speech: Speech
    ) -> Transcript:
        """The transcript with its words' times, by faster-whisper's alignment (cross-attention)."""
        duration_s = len(speech.samples) / SAMPLE_RATE
        (whole,) = transcript.segments
        segment = {
            "tokens": result.sequences_ids[0],
            "start": whole.start_s,
            "end": whole.end_s,
            "seek": 0,
        }
        self._whisper.add_word_timestamps(
            [[segment]],
            self._wording.tokenizer(transcript.language or "en"),
            ctranslate.stored(encoded, self._placement),
            max(2, round(duration_s * FRAME_RATE)),
            PREPENDED,
            APPENDED,
            0.0,
        )
        words = results.words_in_order(segment["words"], duration_s)
        if words:
            whole = replace(whole, start_s=words[0].start_s, end_s=words[-1].end_s)
        return replace(transcript, words=words, segments=(whole,))


def _voiced_s(speech: Speech) -> float:
    """Seconds of voice; all of it where nothing listened."""
    if speech.voiced_s is None:
        return len(speech.samples) / SAMPLE_RATE
    return speech.voiced_s


def _known(speech: Speech, spoken: Spoken) -> Speech:
    return replace(speech, language=spoken.language, language_probability=spoken.probability)
