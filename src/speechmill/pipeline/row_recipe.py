"""The recipe of the rows that a job makes: every choice that shapes their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from speechmill import audio
from speechmill.dataset.schema import token_column
from speechmill.job import Job
from speechmill.recipe import Recipe
from speechmill.speech.segmentation import SegmentOptions
from speechmill.speech.voice import VoiceOptions, voice_model_digests
from speechmill.tokenizers.base import Tokenizer
from speechmill.transcribers.base import Transcriber

__all__ = ["SEGMENTING", "VOICE", "row_recipe"]

ROWS_VERSION: Final = 2
"""Raised by hand when rows of the same transcripts and tokens would differ."""

ROUND_TRIP_VERSION: Final = 1
"""Raised by hand when ``round_trip_cer`` of the same rows would differ."""

SEGMENTING: Final = SegmentOptions()
VOICE: Final = VoiceOptions()
"""How every job listens to recordings and cuts them."""


def row_recipe(job: Job, transcriber: Transcriber, tokenizers: Sequence[Tokenizer]) -> Recipe:
    """Gather every choice that shapes the rows of a job, and what makes them."""
    choices = {
        "rows": {"version": ROWS_VERSION},
        "audio": {
            "version": audio.AUDIO_VERSION,
            "keep_damaged": job.keep_damaged,
            # Stated only where it is asked for: recipes of before have none.
            **({} if job.channels == "mix" else {"channels": job.channels}),
            **({} if job.track is None else {"track": job.track}),
        },
        "segmentation": {
            "mode": job.segment,
            "max_speech_s": transcriber.max_speech_s,
            "options": dict(SEGMENTING.recipe),
            "voice": dict(VOICE.recipe),
            "voice_model": dict(voice_model_digests()),
        },
        "transcriber": dict(transcriber.recipe),
        "tokenizers": {
            token_column(i, t.name): {"name": t.name, **t.recipe} for i, t in enumerate(tokenizers)
        },
    }
    if job.round_trip:
        choices["round_trip"] = {"version": ROUND_TRIP_VERSION}
    return Recipe(choices, made_by={"transcriber": job.transcriber, **transcriber.provenance})
