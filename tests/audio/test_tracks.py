"""Files with several audio tracks: which one is read, and what is said of the others."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from speechmill.audio import decode
from speechmill.dataset.summary import failed_recordings
from speechmill.enrich.add import add_tokens
from speechmill.errors import ChannelError
from speechmill.storage import open_store
from speechmill.tokens.verify import verify_tokens
from tests.support import corpus
from tests.support.audio_files import encoded, pcm_wav, speech

RATE = 48_000  # which AC-3 has, too
SOUND = speech(1.0, RATE, seed=1)
OTHER = speech(1.0, RATE, seed=2)
SILENCE = np.zeros_like(SOUND)
DEFAULT = int(av.stream.Disposition.default)


def tracks(
    container: str, codec: str, sounds: Sequence[NDArray[np.float32]], default: int | None = None
) -> bytes:
    """A file with a mono track of each sound, [1, num_samples], of which one may be the default."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        streams: list[Any] = [out.add_stream(codec, rate=RATE, layout="mono") for _ in sounds]
        for number, stream in enumerate(streams):
            stream.disposition = DEFAULT if number == default else 0
        for stream, samples in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            context = stream.codec_context
            resampler = av.AudioResampler(context.format.name, "mono", RATE, context.frame_size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(stream.encode(part))
            out.mux(stream.encode(None))
    return file.getvalue()


KINDS = [
    ("matroska", "flac"),
    ("mp4", "aac"),
    ("mov", "pcm_s16le"),
    ("mp4", "ac3"),
    ("mp4", "eac3"),
    ("matroska", "ac3"),
    ("matroska", "eac3"),
]


@pytest.fixture(params=KINDS, ids=" ".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


def alike(data: bytes, sound: NDArray[np.float32], **choices: Any) -> bool:
    samples = decode(data, **choices).waveform.samples
    length = min(len(samples), sound.shape[1])
    return bool(np.corrcoef(samples[:length], sound[0, :length])[0, 1] > 0.9)


def test_each_track_can_be_taken_by_its_number(kind: tuple[str, str]) -> None:
    data = tracks(*kind, [SOUND, OTHER])
    assert alike(data, SOUND, track=0)
    assert alike(data, OTHER, track=1)
    assert not alike(data, SOUND, track=1)
    assert decode(data, track=1).flags == ("several_tracks",)


def test_without_a_choice_the_default_track_is_taken() -> None:
    data = tracks("matroska", "flac", [SOUND, OTHER], default=1)
    assert alike(data, OTHER)
    assert decode(data).flags == ("several_tracks",)
    assert alike(tracks("mp4", "aac", [SOUND, OTHER]), SOUND)


def test_who_lacks_the_track_is_told_how_many_there_are(kind: tuple[str, str]) -> None:
    problem = "it has no audio track 2: it has 2 audio tracks, 0 to 1"
    with pytest.raises(ChannelError, match=problem):
        decode(tracks(*kind, [SOUND, OTHER]), track=2)
    with pytest.raises(ChannelError, match="no audio track 1: it has one audio track, 0"):
        decode(pcm_wav(SOUND), track=1)


def test_a_silent_default_track_beside_one_with_sound_is_told(kind: tuple[str, str]) -> None:
    data = tracks(*kind, [SILENCE, OTHER])
    assert decode(data).flags == ("several_tracks", "silent_track")
    assert decode(data, track=0).flags == ("several_tracks",)  # as it was asked for
    assert decode(data, track=1).flags == ("several_tracks",)


def test_silence_is_told_only_where_another_track_has_sound() -> None:
    hiss = np.random.default_rng(1).uniform(-2e-4, 2e-4, SOUND.shape).astype(np.float32)
    assert decode(tracks("matroska", "flac", [SILENCE, hiss])).flags == ("several_tracks",)
    assert decode(tracks("matroska", "flac", [hiss, SOUND])).flags == (
        *("several_tracks", "silent_track"),
    )
    quiet = tracks("matroska", "flac", [SOUND * np.float32(0.01), OTHER])
    assert decode(quiet).flags == ("several_tracks",)


def test_a_file_with_one_track_has_no_flag_of_tracks() -> None:
    for data in (
        pcm_wav(SOUND),
        encoded("matroska", "flac", 16_000),
        encoded("mp4", "aac", 16_000),
    ):
        assert decode(data).flags == ()


def test_a_build_takes_the_track_and_keeps_it_for_what_is_added() -> None:
    source = corpus.memory(
        {"p1/a.mka": tracks("matroska", "flac", [SOUND, OTHER]), "p1/b.wav": pcm_wav(SOUND)}
    )
    sink, at_once = corpus.memory(), corpus.memory()
    report = corpus.build(source, sink, track=1)
    corpus.build(source, at_once, track=1, tokenizer=("fake", "mfcc"))
    assert (report.rows, report.failed) == (1, 1)
    (failed,) = failed_recordings(open_store(sink))
    assert (failed.file_name, failed.error) == ("p1/b.wav", "ChannelError")
    assert add_tokens(open_store(sink), "mfcc").complete
    rows, wanted = corpus.rows_of(sink), corpus.rows_of(at_once)
    assert rows["p1/a.mka"]["token_mfcc"] == wanted["p1/a.mka"]["token_mfcc"]
    assert rows["p1/a.mka"]["flags"] == ["several_tracks"]
    assert verify_tokens(open_store(sink), column="token_mfcc").rate == 0.0


def test_a_channel_that_ends_within_a_recording_is_an_error_that_says_when() -> None:
    """Ogg files that were joined may have channels of their own."""
    joined = b"".join(encoded("ogg", "libopus", RATE, channels=count) for count in (2, 1))
    assert decode(joined).channels == 2
    assert decode(joined, channel=0).waveform.duration_s == pytest.approx(4.0, abs=0.1)
    problem = r"it has no channel 1: it has one channel, 0 from 2\.0\d s on; choose another"
    with pytest.raises(ChannelError, match=problem):
        decode(joined, channel=1)
