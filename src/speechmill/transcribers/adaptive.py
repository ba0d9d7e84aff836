"""Whisper in windows as long as the speech needs: decode batches of them, and retry outcomes that
are suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from numpy.typing import NDArray

from speechmill.records import Segment, Speech, Transcript
from speechmill.text.figures import can_be_said, compression_ratio, is_slow
from speechmill.text.transcripts import NO_SPACES, join_transcripts
from speechmill.transcribers import ctranslate, results
from speechmill.transcribers.attention import Attention
from speechmill.transcribers.base import OnEncoded, TranscriberOptions
from speechmill.transcribers.coverage import cuts_around, longest_pause, pauses, split_at
from speechmill.transcribers.encoder import FRAME_RATE, SAMPLE_RATE, SpeechEncoder
from speechmill.transcribers.full_window import FullWindow
from speechmill.transcribers.language_check import LanguageCheck
from speechmill.transcribers.languages import SpokenLanguage
from speechmill.transcribers.whisper_tokens import WhisperTokens
from speechmill.transcribers.windows import FULL_WINDOW_S, DecodedWindow

__all__ = ["AdaptiveWindows"]

MAX_TOKENS: Final = 448
"""Prompt and text together: the positions of Whisper's decoder."""

HEARD_IN_PARTS: Final = "heard_in_parts"

# Punctuation that belongs to the word after it, or before it: as in faster-whisper.
PREPENDED: Final = "\"'“¿([{-"
APPENDED: Final = "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True)
class WindowOutcome:
    """The outcome of an adaptive window: ``transcript`` is None if it is suspicious, ``repeats`` if
    that is for nothing but saying something again; ``untold`` is a span of voice that it leaves
    out, (start_s, end_s) from the first sample."""

    spoken: SpokenLanguage
    transcript: Transcript | None
    untold: tuple[float, float] | None = None
    repeats: bool = False


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
        self._check = LanguageCheck(encoder)

    def transcribe(
        self,
        batch: Sequence[Speech],
        on_encoded: OnEncoded | None = None,
        *,
        check_languages: bool = True,
    ) -> list[Transcript]:
        """Transcribe stretches whose windows give the decoder inputs of one length, each up to 30
        s.

        ``on_encoded`` is called with the number of a stretch and the encoder's output for its
        first window, [50 · window_s, width]. ``check_languages`` asks for the languages that are
        heard, besides those that are transcribed.
        """
        windows_s = [self._window_s(one) for one in batch]

        def outcomes_of(some: Sequence[int]) -> list[WindowOutcome]:
            listening = on_encoded and (lambda i, heard: on_encoded(some[i], heard))
            return self._decode_windows(
                [batch[i] for i in some],
                [windows_s[i] for i in some],
                listening,
                check_languages=check_languages,
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
        told = self._heard_again(known) if outcome.repeats else self._accepted(known, outcome)
        if told is None:
            told = self._retry(known, window_s)
            little = outcome.transcript  # which is better than less
            if little is not None and len(told.text) < len(little.text):
                told = little
        if HEARD_IN_PARTS not in told.flags and is_slow(told.text, _voiced_s(known)):
            parts = self._transcribe_parts(known, self._longest_pause(known))
            if parts is not None and self._say_more(parts, told, known):
                told = parts
        if not told.text or spoken.heard is None:
            return told
        flags = tuple(sorted({*told.flags, *spoken.flags}))
        return replace(told, language_heard=spoken.heard, flags=flags)

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
            voiced = speech.voiced or ()
            between = pauses(voiced, self._windows.untold_pause_s)
            parts = self._transcribe_parts(speech, cuts_around(outcome.untold, voiced, between))
            if parts is not None and self._say_more(parts, transcript, speech):
                return parts
        voiced_s = _voiced_s(speech)
        if transcript.text and self._windows.says_too_little(transcript.text, voiced_s):
            return None
        return transcript

    def _heard_again(self, speech: Speech) -> Transcript | None:
        """Transcribe a stretch whose text repeats itself in two parts: what each says by itself was
        said, where what both say together may be a loop. None where it has no pause to cut at."""
        parts = self._transcribe_parts(speech, self._longest_pause(speech))
        return parts if parts is not None and self._is_plausible(parts, speech) else None

    def _longest_pause(self, speech: Speech) -> list[float]:
        """Choose the cut of a stretch in two, in seconds, that leaves enough voice on either side;
        none where it has no such pause."""
        voiced = speech.voiced or ()
        return longest_pause(voiced, self._windows.untold_pause_s, self._windows.least_part_s)

    def _transcribe_parts(self, speech: Speech, cuts_s: Sequence[float]) -> Transcript | None:
        """Transcribe a stretch in parts, between these cuts; None where there are none."""
        if not cuts_s:
            return None
        parts = split_at(speech, cuts_s, SAMPLE_RATE)
        told = [self.transcribe([part], check_languages=False)[0] for _, part in parts]
        joined = join_transcripts([start_s for start_s, _ in parts], told)
        return replace(joined, flags=tuple(sorted({*joined.flags, HEARD_IN_PARTS})))

    def _say_more(self, parts: Transcript, whole: Transcript, speech: Speech) -> bool:
        """Whether the parts say more than the whole, and no more than can be said.

        That they say the same is no loop, as each was heard by itself. One that loops by itself
        may come from the full window, which is not asked twice.
        """
        return len(whole.text) < len(parts.text) and self._is_plausible(parts, speech)

    def _is_plausible(self, parts: Transcript, speech: Speech) -> bool:
        most = self._windows.max_chars_per_s * max(_voiced_s(speech), 1.0)
        loops = (parts.repetition or 0.0) >= self._windows.max_repetition
        return 0 < len(parts.text) <= most and not loops

    def _window_s(self, speech: Speech) -> float:
        return self._windows.window_s(len(speech.samples), SAMPLE_RATE)

    def _decode_windows(
        self,
        batch: Sequence[Speech],
        windows_s: Sequence[float],
        on_encoded: OnEncoded | None = None,
        *,
        check_languages: bool = False,
    ) -> list[WindowOutcome]:
        """Decode each stretch in its window."""
        seen = self._encoder.encode_windows(batch, windows_s)
        if on_encoded is not None:
            for i, one_heard in enumerate(seen):
                on_encoded(i, one_heard)
        encoded = self._encoder.with_silence(seen, windows_s)
        output = ctranslate.to_storage(encoded, self._placement)
        spoken = self._encoder.languages_of(batch, windows_s, output)
        if check_languages:
            spoken = self._check.check(batch, spoken, seen)
        prompts = [self._tokens.prompt(one.language) for one in spoken]
        rooms = [self._max_tokens(windows_s[0], len(prompts[0]), one.language) for one in spoken]
        found = self._generate(encoded, output, prompts, rooms)
        outcomes = []
        for i, (one, said) in enumerate(zip(batch, spoken, strict=True)):
            heard = self._heard(one, said, found[i], rooms[i])
            if self._windows.is_suspicious(heard):
                outcomes.append(
                    WindowOutcome(said, None, repeats=self._windows.only_repeats(heard))
                )
                continue
            transcript = self._to_transcript(
                one, said, heard, found[i], windows_s[i], encoded[i : i + 1]
            )
            untold = None
            if transcript.text:
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

    def _heard(
        self, speech: Speech, spoken: SpokenLanguage, result: Any, room: int
    ) -> DecodedWindow:
        """Read the decoder's result for a stretch, for which it had at most ``room`` tokens."""
        tokens = result.sequences_ids[0]
        return DecodedWindow(
            self._tokens.tokenizer(spoken.language).decode(tokens).strip(),
            # As Whisper counts it: the mean over the tokens and the one that ends the text.
            result.scores[0] * len(tokens) / (len(tokens) + 1),
            len(tokens),
            len(speech.samples) / SAMPLE_RATE,
            speech.voiced_s,
            result.no_speech_prob,
            room,
        )

    def _to_transcript(
        self,
        speech: Speech,
        spoken: SpokenLanguage,
        heard: DecodedWindow,
        result: Any,
        window_s: float,
        encoded: NDArray[Any],
    ) -> Transcript:
        """Make the transcript of the decoder's result for a stretch, which it has ``heard``.

        ``encoded`` [1, frames, width] is its input.
        """
        text, avg_logprob, duration_s = heard.text, heard.avg_logprob, heard.duration_s
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
            flags=results.flags(spoken, low_confidence=avg_logprob < results.MIN_LOGPROB),
        )
        return self._weigh_against_silence(transcript, heard, result.sequences_ids[0], encoded)

    def _decode_full_window(self, speech: Speech) -> Transcript:
        """Transcribe a stretch in the full window, whose text is also compared with silence."""
        transcript = self._full.transcribe(speech, check_language=False)
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
