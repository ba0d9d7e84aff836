"""Length of the window for a stretch of speech, and the rules for suspicious outcomes.

Whisper was trained on windows of 30 s. Its encoder takes shorter ones, at a cost that falls with
the window (OpenNMT/CTranslate2 pull request 1446), but its decoder tells the end of the speech by
the silence that follows, and without it goes on: it loops, or says the sentence twice (issue 2100
there). So the window holds a little silence, and the encoder's output is followed by its output
for silence at those positions, which is computed once. Of 76 clips (LibriSpeech, VCTK, FLEURS;
base, beam 5) 2, 5 and 3 were said twice or looped with 1, 2 and 3 s of padding alone; with 1 s and
six seconds of encoded silence, none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from speechmill.text.figures import is_said_again, letter_compression_ratio, repetition

__all__ = ["FULL_WINDOW_S", "DecodedWindow", "WindowOptions"]

FULL_WINDOW_S: Final = 30.0

SPELLED_OUT: Final = frozenset(
    "am as bn bo gu hi hy ka km kn lo ml mr my ne pa sa si ta te th".split()  # noqa: SIM905 - short
)
"""Languages in whose scripts a letter takes Whisper a token and up to three: Ethiopic, Georgian,
those of India and around. English has a fifth of a token a letter."""


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """The decoder's text for a stretch of speech in a window, and its confidence."""

    text: str
    avg_logprob: float
    num_tokens: int
    duration_s: float
    voiced_s: float | None
    no_speech_prob: float = 0.0
    max_tokens: int = 10**6
    """The limit at which the decoder was stopped."""

    @property
    def voice_s(self) -> float:
        """Seconds of voice; all of it where voice activity was not computed."""
        return self.duration_s if self.voiced_s is None else self.voiced_s


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """The options of windows, and the limits of suspicion. All of them shape the text.

    What the limits of gain were set by (101 clips of five languages, clean and in noise; 1,040
    single words) is in docs/decisions.md, "Adaptive windows".
    """

    grid_s: float = 0.5
    """Windows are multiples of this, so that many stretches share one. A grid of 1 s fills batches
    better and computes more: the time is the same."""
    min_s: float = 3.0
    """No window is shorter."""
    pad_s: float = 1.0
    """Silence after the last sample, at least."""
    wider_s: float = 4.0
    """How much wider the window of the second try is."""
    silence_s: float = 5.5
    """Seconds of encoded silence that the decoder is given after the window, at least, and …"""
    decoder_grid_s: float = 2.0
    """… as much more as makes it and the window a multiple of this: the decoder's inputs in a batch
    are equally long, and more stretches share a length than share a window. On 222 clips the word
    errors were the same within chance, and the time a tenth less."""
    silence_level: float = -0.7
    """The log mel energy of that silence, after Whisper's scaling: its median over recordings. −1.5
    (digital zeros) and −0.3 do worse."""
    tokens_per_s: float = 12.0
    """More tokens than this per second of audio, and …"""
    tokens_more: int = 20
    """… this many on top, are no speech, except in languages that are ``SPELLED_OUT``."""
    sure_language: float = 0.6
    """A language that is detected with less is detected in the full window, too."""
    max_repetition: float = 0.3
    max_compression_ratio: float = 2.4
    min_logprob: float = -1.0
    crumb_s: float = 1.5
    """In less speech than this, no words and low confidence are believed: the full window is not
    surer of it, and is more given to loops. Whisper's own rule for silence is applied to it here,
    as the full window would: words below ``min_logprob`` are none above …"""
    max_no_speech_prob: float = 0.6
    """… this."""
    word_s: float = 0.25
    """Less voice than this is hardly a word, and none above …"""
    word_no_speech_prob: float = 0.5
    """… this, however sure of it Whisper is."""
    doubted_no_speech_prob: float = 0.25
    """Words above this probability of no speech, …"""
    doubted_logprob: float = -0.9
    """… or of which Whisper is less sure than this, …"""
    doubted_voice: float = 0.3
    """… or where less of the stretch than this is voice, are compared with silence."""
    min_gain: float = 0.5
    """They are made up if the speech makes them likelier than silence does by less than this, in
    nats a token: "you" and "Thank you." are what Whisper hears in nothing at all."""
    pausing_voice: float = 0.75
    """Where less of the stretch than this is voice, …"""
    pausing_gain: float = 1.0
    """… they have to gain this much. In noise as loud as itself speech gains little, too, but
    there all of the stretch is taken for voice."""
    brief_gain: float = 3.0
    """Where there is less voice than ``crumb_s``, words that are doubted by their probability of no
    speech and by Whisper's have to gain this much, as real words of a second do, …"""
    brief_voice: float = 0.5
    """… or, where no less of the stretch than this is voice, …"""
    brief_voice_gain: float = 2.0
    """… this much."""
    low_gain: float = 2.0
    """Most texts that gain less than this are made up, though not all: they are flagged as
    ``maybe_made_up``. Plain speech gains 4."""
    untold_pause_s: float = 0.2
    """A stretch with a pause of at least this is searched for voice that its text leaves out …"""
    max_untold_s: float = 1.3
    """… and where that is more, it is cut at a pause, and each part transcribed by itself. Between
    two tokens lay at most 1.2 s of voice where nothing was missing (150 clips and pieces of long
    recordings, 5 languages), and 1.6 to 18 s where something was."""
    least_part_s: float = 1.0
    """Where a stretch is cut in two because its text repeats itself, or is too short for the voice
    there is, this much voice is in each part, at least."""
    max_chars_per_s: float = 30.0
    """Characters per second of voice, at most, …"""
    min_chars_per_s: float = 2.0
    """… and at least, …"""
    min_chars_of_s: float = 2.0
    """… in this many seconds of voice or more."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """The options as JSON values."""
        return asdict(self)

    def window_s(self, num_samples: int, sample_rate: int) -> float:
        """Choose the window for a stretch of speech, in seconds, by its length alone."""
        steps = math.ceil(round((num_samples / sample_rate + self.pad_s) / self.grid_s, 6))
        return min(max(steps * self.grid_s, self.min_s), FULL_WINDOW_S)

    def decoder_s(self, window_s: float) -> float:
        """Compute the length of the decoder's input for a window, silence included, in seconds."""
        steps = math.ceil(round((window_s + self.silence_s) / self.decoder_grid_s, 6))
        return min(steps * self.decoder_grid_s, FULL_WINDOW_S)

    def max_tokens(self, decoder_s: float, language: str = "en") -> int:
        """Limit the tokens of a window whose decoder's input has ``decoder_s`` seconds."""
        if language in SPELLED_OUT:
            return 10**6
        return self.tokens_more + math.ceil(self.tokens_per_s * (decoder_s - self.silence_s))

    def is_no_speech(self, heard: DecodedWindow) -> bool:
        """Whether a stretch is too short for words of which Whisper itself doubts that they are
        speech."""
        is_crumb = heard.duration_s < self.crumb_s and heard.avg_logprob < self.min_logprob
        return (is_crumb and heard.no_speech_prob > self.max_no_speech_prob) or (
            heard.voice_s < self.word_s and heard.no_speech_prob > self.word_no_speech_prob
        )

    def is_doubtful(self, heard: DecodedWindow) -> bool:
        """Whether a text's likelihood should be compared with that given silence."""
        return (
            heard.no_speech_prob > self.doubted_no_speech_prob
            or heard.avg_logprob < self.doubted_logprob
            or heard.voice_s < self.doubted_voice * heard.duration_s
        )

    def is_made_up(self, heard: DecodedWindow, gain: float, language: str = "en") -> bool:
        """Whether a doubtful text is made up; the speech makes it likelier than silence does by
        ``gain``, in nats per token. Languages that are ``SPELLED_OUT`` gain less per token."""
        least = self.min_gain
        if heard.voice_s < self.pausing_voice * heard.duration_s:
            least = self.pausing_gain
        if (
            heard.voice_s < self.crumb_s
            and heard.no_speech_prob > self.doubted_no_speech_prob
            and heard.avg_logprob < self.doubted_logprob
            and language not in SPELLED_OUT
        ):
            is_voice = heard.voice_s >= self.brief_voice * heard.duration_s
            least = self.brief_voice_gain if is_voice else self.brief_gain
        return gain < least

    def is_suspicious(self, heard: DecodedWindow) -> bool:
        """Whether the stretch should be decoded in a wider window."""
        is_crumb = heard.duration_s < self.crumb_s
        if not heard.text:
            return not is_crumb
        return (
            heard.num_tokens >= heard.max_tokens
            or (heard.avg_logprob < self.min_logprob and not is_crumb)
            or letter_compression_ratio(heard.text) > self.max_compression_ratio
            or self._repeats(heard)
            or self._is_too_fast(heard)
        )

    def only_repeats(self, heard: DecodedWindow) -> bool:
        """Whether nothing is suspicious about a text but that it says something again, which the
        speech may do as well."""
        return (
            self._repeats(heard)
            and heard.num_tokens < heard.max_tokens
            and heard.avg_logprob >= self.min_logprob
            and not self._is_too_fast(heard)
        )

    def _repeats(self, heard: DecodedWindow) -> bool:
        return repetition(heard.text) >= self.max_repetition or is_said_again(heard.text)

    def _is_too_fast(self, heard: DecodedWindow) -> bool:
        return len(heard.text) > self.max_chars_per_s * max(heard.voice_s, 1.0)

    def says_too_little(self, text: str, voiced_s: float) -> bool:
        """Whether a text must lack most of what was said in ``voiced_s`` seconds of voice."""
        return voiced_s >= self.min_chars_of_s and len(text) < self.min_chars_per_s * voiced_s
