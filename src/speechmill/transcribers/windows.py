"""How much audio Whisper computes for a stretch of speech, and when the outcome is not believed.

Whisper was trained on windows of 30 s. Its encoder takes shorter ones, at a cost that falls with
the window (OpenNMT/CTranslate2 pull request 1446), but its decoder tells the end of the speech by
the silence that follows, and without it goes on: it loops, or says the sentence twice (issue 2100
there). So the window holds a little silence, and the encoder's output is followed by what the
encoder makes of silence at those places, which is computed once and for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from speechmill.text.figures import is_said_again, letter_compression_ratio, repetition

__all__ = ["FULL_WINDOW_S", "Heard", "WindowOptions"]

FULL_WINDOW_S: Final = 30.0

SPELLED_OUT: Final = frozenset(
    "am as bn bo gu hi hy ka km kn lo ml mr my ne pa sa si ta te th".split()  # noqa: SIM905 - short
)
"""Languages in whose scripts a letter takes Whisper a token and up to three: Ethiopic, Georgian,
those of India and around. English has a fifth of a token a letter."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the decoder made of a stretch of speech in an adaptive window."""

    text: str
    avg_logprob: float
    num_tokens: int
    duration_s: float
    voiced_s: float | None
    no_speech_prob: float = 0.0
    max_tokens: int = 10**6
    """Where the decoder was stopped, done or not."""

    @property
    def voice_s(self) -> float:
        """Seconds of voice; all of it where nothing listened."""
        return self.duration_s if self.voiced_s is None else self.voiced_s


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """The rule for windows, and what is suspicious. All of it shapes the text."""

    grid_s: float = 0.5
    """Windows are multiples of this, so that many stretches have the same."""
    min_s: float = 3.0
    """No window is shorter."""
    pad_s: float = 1.0
    """Silence after the last sample, at least."""
    wider_s: float = 4.0
    """How much wider the window of the second try is."""
    silence_s: float = 5.5
    """Encoded silence that the decoder is given after the window, at least, and …"""
    decoder_grid_s: float = 2.0
    """… so much more that it and the window are a multiple of this: what the decoder hears in one
    batch is equally long, and there are more such stretches than of one window."""
    silence_level: float = -0.7
    """The log mel energy of that silence, after Whisper's scaling: its median over recordings."""
    tokens_per_s: float = 12.0
    """More tokens than this a second of audio, and …"""
    tokens_more: int = 20
    """… these besides, are no speech, but in languages that are ``SPELLED_OUT``."""
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
    """A stretch with a pause at least as long is searched for voice that its text leaves out …"""
    max_untold_s: float = 1.3
    """… and where that is more, it is divided at a pause, and each part heard by itself."""
    max_chars_per_s: float = 30.0
    """Characters a second of voice, at most, …"""
    min_chars_per_s: float = 2.0
    """… and at least, …"""
    min_chars_of_s: float = 2.0
    """… which is asked of so much voice and more."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """The options as JSON values."""
        return asdict(self)

    def window_s(self, num_samples: int, sample_rate: int) -> float:
        """The window for a stretch of speech, in seconds. It depends on nothing else."""
        steps = math.ceil(round((num_samples / sample_rate + self.pad_s) / self.grid_s, 6))
        return min(max(steps * self.grid_s, self.min_s), FULL_WINDOW_S)

    def decoder_s(self, window_s: float) -> float:
        """What the decoder is given for a window, silence and all, in seconds."""
        steps = math.ceil(round((window_s + self.silence_s) / self.decoder_grid_s, 6))
        return min(steps * self.decoder_grid_s, FULL_WINDOW_S)

    def max_tokens(self, decoder_s: float, language: str = "en") -> int:
        """Tokens that a window may give before the decoder, which is given so much, is stopped."""
        if language in SPELLED_OUT:
            return 10**6
        return self.tokens_more + math.ceil(self.tokens_per_s * (decoder_s - self.silence_s))

    def is_no_speech(self, heard: Heard) -> bool:
        """Whether there is too little for words in which Whisper, too, hears no speech."""
        is_crumb = heard.duration_s < self.crumb_s and heard.avg_logprob < self.min_logprob
        return (is_crumb and heard.no_speech_prob > self.max_no_speech_prob) or (
            heard.voice_s < self.word_s and heard.no_speech_prob > self.word_no_speech_prob
        )

    def is_doubtful(self, heard: Heard) -> bool:
        """Whether words that may be said should be compared with what silence gives."""
        return (
            heard.no_speech_prob > self.doubted_no_speech_prob
            or heard.avg_logprob < self.doubted_logprob
            or heard.voice_s < self.doubted_voice * heard.duration_s
        )

    def is_made_up(self, heard: Heard, gain: float, language: str = "en") -> bool:
        """Whether nobody says doubtful words; the speech makes them likelier than silence does by
        ``gain``, in nats a token. Languages that are ``SPELLED_OUT`` gain less a token."""
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

    def is_suspicious(self, heard: Heard) -> bool:
        """Whether a wider window should be asked."""
        is_crumb = heard.duration_s < self.crumb_s
        if not heard.text:
            return not is_crumb
        num_chars = len(heard.text)
        return (
            heard.num_tokens >= heard.max_tokens
            or (heard.avg_logprob < self.min_logprob and not is_crumb)
            or letter_compression_ratio(heard.text) > self.max_compression_ratio
            or repetition(heard.text) >= self.max_repetition
            or is_said_again(heard.text)
            or num_chars > self.max_chars_per_s * max(heard.voice_s, 1.0)
        )

    def says_too_little(self, text: str, voiced_s: float) -> bool:
        """Whether most of what was said must be missing, in so many seconds of voice."""
        return voiced_s >= self.min_chars_of_s and len(text) < self.min_chars_per_s * voiced_s
