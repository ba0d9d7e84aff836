"""Whisper in windows as long as the speech needs: decode batches of them, and retry outcomes that
are suspicious."""

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
from speechmill.transcribers.coverage import cuts_around, pauses, split_at
from speechmill.transcribers.encoder import FRAME_RATE, SAMPLE_RATE, SpeechEncoder
from speechmill.transcribers.full_window import FullWindow
from speechmill.transcribers.languages import SpokenLanguage
from speechmill.transcribers.whisper_tokens import WhisperTokens
from speechmill.transcribers.windows import FULL_WINDOW_S, DecodedWindow

__all__ = ["AdaptiveWindows"]

MAX_TOKENS: Final = 448
"""Prompt and text together: the positions of Whisper's decoder."""

# Punctuation that belongs to the word after it, or before it: as in faster-whisper.
PREPENDED: Final = "\"'“¿([{-"
APPENDED: Final = "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True)
class WindowOutcome:
    """The outcome of an adaptive window: ``transcript`` is None if it is suspicious; ``untold`` is
    a span of voice that it leaves out, (start_s, end_s) from the first sample."""

    spoken: SpokenLanguage
    transcript: Transcript | None
    untold: tuple[float, float] | None = None


class AdaptiveWindows:
    """Transcribes batches of stretches of speech.

    Args:
        whisper: faster-whisper's model.
        encoder: its encoder, and the options of windows.
        whisper_tokens: its prompts and tokenizers.
        full: the full window, the last resort.
        options: of the transcriber.
    """

    def __init__(
        self,
        whisper: Any,
        encoder: SpeechEncoder,
        whisper_tokens: WhisperTokens,
        full: FullWindow,
        options: TranscriberOptions,
    ) -> None:
        self._whisper = whisper
        self._encoder = encoder
        self._windows = encoder.windows
        self._placement = encoder.placement
        self._tokens = whisper_tokens
        self._full = full
        self._options = options
        self._attention = Attention(whisper.model, encoder, whisper_tokens.tokenizer)

    def transcribe(
        self, batch: Sequence[Speech], on_encoded: OnEncoded | None = None
    ) -> list[Transcript]:
        """Transcribe stretches whose windows give the decoder inputs of one length, each up to 30
        s.

        ``on_encoded`` is called with the number of a stretch and the encoder's output for its
        first window, [50 · window_s, width].
        """
        windows_s = [self._window_s(one) for one in batch]

        def outcomes_of(some: Sequence[int]) -> list[WindowOutcome]:
            listening = on_encoded and (lambda i, heard: on_encoded(some[i], heard))
            return self._decode_windows(
                [batch[i] for i in some], [windows_s[i] for i in some], listening
            )

        outcomes = ctranslate.halve_if_out_of_memory(outcomes_of, range(len(batch)))
        return [
            self._accept_or_retry(one, window_s, outcome)
            for one, window_s, outcome in zip(batch, windows_s, outcomes, strict=True)
        ]

    def _accept_or_retry(
        self, speech: Speech, window_s: float, outcome: WindowOutcome
    ) -> Transcript:
        """Accept what an adaptive window gave, or transcribe the stretch again."""
        spoken = outcome.spoken
        known = replace(speech, language=spoken.language, language_probability=spoken.probability)
        told = self._accepted(known, outcome)
        if told is not None:
            return told
        again = self._retry(known, window_s)
        little = outcome.transcript  # which is better than less
        return little if little is not None and len(again.text) < len(little.text) else again

    def _retry(self, speech: Speech, window_s: float) -> Transcript:
        """Transcribe a stretch whose window gave something suspicious: in a wider one, which is
        cheap (all 7 of 222 clips came out right in it), and if that is no better in the full
        one."""
        wider_s = window_s + self._windows.wider_s
        if wider_s < FULL_WINDOW_S:
            (outcome,) = self._decode_windows([speech], [wider_s])
            told = self._accepted(speech, outcome)
            if told is not None:
                return told
        return self._decode_full_window(speech)

    def _accepted(self, speech: Speech, outcome: WindowOutcome) -> Transcript | None:
        """Accept what a window gave, or the parts of its stretch where it leaves something out;
        None where the text is suspicious, or far too short."""
        transcript = outcome.transcript
        if transcript is None:
            return None
        if outcome.untold is not None:
            parts = self._transcribe_parts(speech, outcome.untold)
            if parts is not None and self._say_more(parts, transcript, speech):
                return parts
        voiced_s = _voiced_s(speech)
        if transcript.text and self._windows.says_too_little(transcript.text, voiced_s):
            return None
        return transcript

    def _transcribe_parts(self, speech: Speech, untold: tuple[float, float]) -> Transcript | None:
        """Transcribe a stretch in parts, one of which is what a transcript of it left out; None
        where it has no pause to cut at."""
        voiced = speech.voiced or ()
        cuts_s = cuts_around(untold, voiced, pauses(voiced, self._windows.untold_pause_s))
        if not cuts_s:
            return None
        parts = split_at(speech, cuts_s, SAMPLE_RATE)
        told = [self.transcribe([part])[0] for _, part in parts]
        joined = join_transcripts([start_s for start_s, _ in parts], told)
        return replace(joined, flags=tuple(sorted({*joined.flags, "heard_in_parts"})))

    def _say_more(self, parts: Transcript, whole: Transcript, speech: Speech) -> bool:
        """Whether the parts say more than the whole, and do not loop: one of them may come from the
        full window, which is not asked twice."""
        most = self._windows.max_chars_per_s * max(_voiced_s(speech), 1.0)
        loops = repetition(parts.text) >= self._windows.max_repetition
        return len(whole.text) < len(parts.text) <= most and not loops

    def _window_s(self, speech: Speech) -> float:
        return self._windows.window_s(len(speech.samples), SAMPLE_RATE)

    def _decode_windows(
        self,
        batch: Sequence[Speech],
        windows_s: Sequence[float],
        on_encoded: OnEncoded | None = None,
    ) -> list[WindowOutcome]:
        """Decode each stretch in its window."""
        seen = self._encoder.encode_windows(batch, windows_s)
        if on_encoded is not None:
            for i, one_heard in enumerate(seen):
                on_encoded(i, one_heard)
        encoded = self._encoder.with_silence(seen, windows_s)
        output = ctranslate.to_storage(encoded, self._placement)
        spoken = self._encoder.languages_of(batch, windows_s, output)
        prompts = [self._tokens.prompt(one.language) for one in spoken]
        rooms = [self._max_tokens(windows_s[0], len(prompts[0]), one.language) for one in spoken]
        found = self._generate(encoded, output, prompts, rooms)
        outcomes = []
        for i, (one, said) in enumerate(zip(batch, spoken, strict=True)):
            transcript = self._to_transcript(
                one, said, found[i], windows_s[i], rooms[i], encoded[i : i + 1]
            )
            untold = None
            if transcript is not None and transcript.text:
                untold = self._attention.untold(
                    one, found[i].sequences_ids[0], said.language, encoded[i : i + 1]
                )
                if self._options.words:
                    transcript = self._with_words(transcript, found[i], encoded[i : i + 1], one)
            outcomes.append(WindowOutcome(said, transcript, untold))
        return outcomes

    def _generate(
        self,
        encoded: NDArray[Any],
        output: Any,
        prompts: Sequence[list[int]],
        rooms: Sequence[int],
    ) -> list[Any]:
        """Generate the tokens of each stretch. Those with the same limit of tokens, most often all,
        are one batch; ``output`` is the whole of ``encoded``, stored on the device."""
        found: dict[int, Any] = {}
        for room in sorted(set(rooms)):
            some = [i for i, one in enumerate(rooms) if one == room]
            if len(some) < len(rooms):
                output = ctranslate.to_storage(encoded[some], self._placement)
            results_of_some = self._whisper.model.generate(
                output,
                [prompts[i] for i in some],
                beam_size=self._options.beam_size,
                patience=results.DECODING["patience"],
                max_length=max(2 * room, len(prompts[0]) + room),  # the text gets half at most
                suppress_tokens=self._tokens.suppressed,
                return_scores=True,
                return_no_speech_prob=True,
            )
            found |= zip(some, results_of_some, strict=True)
        return [found[i] for i in range(len(rooms))]

    def _max_tokens(self, window_s: float, prompt: int, language: str) -> int:
        """Limit the tokens of a text in a window, after a prompt of ``prompt`` tokens: half of the
        decoder's positions at most, as with Whisper itself."""
        wanted = self._windows.max_tokens(self._windows.decoder_s(window_s), language)
        return min(MAX_TOKENS // 2, MAX_TOKENS - prompt, wanted)

    def _to_transcript(
        self,
        speech: Speech,
        spoken: SpokenLanguage,
        result: Any,
        window_s: float,
        room: int,
        encoded: NDArray[Any],
    ) -> Transcript | None:
        """Make the transcript of the decoder's result for a stretch; None where it is suspicious.

        ``room`` is the limit of tokens that it had, ``encoded`` [1, frames, width] its input.
        """
        tokens = result.sequences_ids[0]
        # As Whisper counts it: the mean over the tokens and the one that ends the text.
        avg_logprob = result.scores[0] * len(tokens) / (len(tokens) + 1)
        text = self._tokens.tokenizer(spoken.language).decode(tokens).strip()
        duration_s = len(speech.samples) / SAMPLE_RATE
        heard = DecodedWindow(
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
                spoken.probability, low_confidence=avg_logprob < results.MIN_LOGPROB
            ),
        )
        return self._weigh_against_silence(transcript, heard, tokens, encoded)

    def _decode_full_window(self, speech: Speech) -> Transcript:
        """Transcribe a stretch in the full window, whose text is also compared with silence."""
        transcript = self._full.transcribe(speech)
        if transcript.text:
            heard = DecodedWindow(
                transcript.text,
                transcript.avg_logprob or 0.0,
                0,
                len(speech.samples) / SAMPLE_RATE,
                speech.voiced_s,
                transcript.no_speech_prob or 0.0,
            )
            encoded = self._encoder.encode_with_silence([speech], [self._window_s(speech)])
            space = "" if NO_SPACES.match(transcript.text) else " "
            tokenizer = self._tokens.tokenizer(transcript.language or "en")
            tokens = tokenizer.encode(space + transcript.text)
            transcript = self._weigh_against_silence(transcript, heard, tokens, encoded)
        return replace(transcript, flags=tuple(sorted((*transcript.flags, "window_fallback"))))

    def _weigh_against_silence(
        self,
        transcript: Transcript,
        heard: DecodedWindow,
        tokens: Sequence[int],
        encoded: NDArray[Any],
    ) -> Transcript:
        """Compare a text's likelihood with that given silence: flag it if the speech hardly adds to
        it, and empty it if it is made up. ``tokens`` are the text's."""
        silent = results.no_words(self._encoder.language, heard.no_speech_prob, transcript.window_s)
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
        """Add the words' times, by faster-whisper's alignment (cross-attention)."""
        duration_s = len(speech.samples) / SAMPLE_RATE
        (whole,) = transcript.segments
        segment: dict[str, Any] = {
            "tokens": result.sequences_ids[0],
            "start": whole.start_s,
            "end": whole.end_s,
            "seek": 0,
        }
        self._whisper.add_word_timestamps(
            [[segment]],
            self._tokens.tokenizer(transcript.language or "en"),
            ctranslate.to_storage(encoded, self._placement),
            max(2, round(duration_s * FRAME_RATE)),
            PREPENDED,
            APPENDED,
            0.0,
        )
        words = results.words_in_order(
            [results.decoded_word(word) for word in segment["words"]], duration_s
        )
        if words:
            whole = replace(whole, start_s=words[0].start_s, end_s=words[-1].end_s)
        return replace(transcript, words=words, segments=(whole,))


def _voiced_s(speech: Speech) -> float:
    """Seconds of voice; all of it where voice activity was not computed."""
    if speech.voiced_s is None:
        return len(speech.samples) / SAMPLE_RATE
    return speech.voiced_s
