"""Rows of the dataset out of recordings whose transcripts and tokens are made."""

from __future__ import annotations

from speechmill.errors import SpeechmillError
from speechmill.pipeline.intake import ReadyRow
from speechmill.pipeline.resources import Resources
from speechmill.records import Utterance
from speechmill.text.figures import doubts, repetition, speech_rate
from speechmill.text.transcripts import join_transcripts, no_voice

__all__ = ["make_utterance"]


def make_utterance(row: ReadyRow, resources: Resources) -> Utterance:
    """Make the dataset's row, with the figures of its text. The rows of a recording share what it
    cost.

    Raises:
        SpeechmillError: a transcript or tokens of it are still to come.
    """
    ready, cut = row.owner, row.row
    transcripts = [p.transcript for p in row.pieces if p.transcript is not None]
    if len(transcripts) < len(row.pieces) or len(row.codes) < len(resources.tokenizers):
        raise SpeechmillError(f"{ready.recording.file_name} was committed before it was done")
    if transcripts:
        transcript = join_transcripts([p.piece.start_s for p in row.pieces], transcripts)
    else:
        transcript = no_voice(resources.language, row.signal.voice_highest or 0.0)
    repeated = transcript.repetition
    if repeated is None and transcript.text:
        repeated = repetition(transcript.text)
    suspicious = doubts(transcript.text, cut.voiced_s, repeated or 0.0, transcript.no_speech_prob)
    share = row.duration_s / sum(r.duration_s for r in ready.rows)
    return Utterance(
        recording=ready.recording,
        folder_name=ready.folder_name,
        start_s=cut.start_s,
        end_s=cut.end_s,
        sample_rate=ready.sample_rate,
        channels=ready.channels,
        channel=row.signal.channel,
        transcript=transcript,
        codes=tuple(codes for _, codes in sorted(row.codes.items())),
        measured=row.measured,
        round_trip_cer=tuple(row.round_trip_cer.get(i) for i in range(len(row.codes))),
        flags=tuple(sorted({*row.flags, *transcript.flags, *suspicious})),
        voiced_s=cut.voiced_s,
        repetition=repeated,
        chars_per_voiced_s=speech_rate(transcript.text, cut.voiced_s),
        fetch_s=share * ready.fetch_s,
        decode_s=share * ready.decode_s,
        transcribe_s=row.transcribe_s,
        tokenize_s=row.tokenize_s,
    )
