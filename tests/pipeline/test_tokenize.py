"""Tokens of rows in a build: encoded together, checked on a sample, judged by a round trip."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import speechmill
from speechmill import tokenizers
from speechmill.dataset.reader import stored_schema
from speechmill.dataset.schema import described_tokenizers
from speechmill.errors import JobError
from speechmill.job import Job
from speechmill.pipeline.resources import forget_resources
from speechmill.records import Codes
from speechmill.storage import open_store
from speechmill.tokenizers.compare import mismatch
from tests.support.weights import whisper

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"


class Pcm:
    """A codec that loses nothing (a frame is a sample), or only keeps how loud it was."""

    name = "pcm"
    sample_rate = 16_000
    hop_length = 1
    frame_rate = 16_000.0
    num_codebooks = 1
    codebook_size = 32_768
    lossy = False
    differs_in_batches = False

    @property
    def recipe(self) -> Mapping[str, object]:
        return {"tokenizer": self.name}

    def encode(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Codes]:
        shifted = [np.clip(w * 16_000 + 16_384, 0, 32_767).astype(np.int16) for w in waveforms]
        if self.differs_in_batches and len(waveforms) > 1:
            for codes in shifted:
                codes[: len(codes) // 4] ^= 1
        if self.lossy:
            shifted = [np.full_like(codes, codes.mean()) for codes in shifted]
        return [Codes(codes[None]) for codes in shifted]

    def decode(self, codes: Sequence[Codes]) -> list[NDArray[np.float32]]:
        return [((c.values[0] - 16_384.0) / 16_000).astype(np.float32) for c in codes]

    def decoded_length(self, num_frames: int) -> int:
        return num_frames


@pytest.fixture
def pcm(monkeypatch: pytest.MonkeyPatch) -> type[Pcm]:
    class Here(Pcm):
        pass

    forget_resources()
    monkeypatch.setattr(tokenizers, "TOKENIZERS", {**tokenizers.TOKENIZERS, "pcm": lambda: Here})
    return Here


@pytest.fixture
def job(tmp_path: Path) -> Job:
    noise = np.random.default_rng(1)
    for folder, clip in itertools.product(("p1", "p2"), range(4)):
        path = tmp_path / "source" / folder / f"{clip}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise.normal(0, 0.1, 4000 + 400 * clip), 16_000)
    return Job(
        source=str(tmp_path / "source"),
        sink=str(tmp_path / "sink"),
        transcriber="fake",
        tokenizer=("mfcc", "pcm"),
    )


def stored_mismatch(job: Job) -> dict[str, list[float] | None]:
    schema = stored_schema(open_store(job.sink))
    assert schema is not None
    return {t["name"]: t.get("sample_mismatch") for t in described_tokenizers(schema)}


def test_a_build_says_that_codes_made_alone_are_the_same(job: Job, pcm: type[Pcm]) -> None:
    report = speechmill.build(job)
    assert report.token_mismatch == {"pcm": 0.0}  # mfcc gives no codes
    assert stored_mismatch(job) == {"mfcc": None, "pcm": [0.0]}
    (run,) = (Path(job.sink) / "_speechmill/runs").iterdir()
    written = json.loads((run / "report.json").read_text())
    assert written["token_mismatch"] == {"pcm": 0.0}


def test_a_build_tells_what_share_of_codes_depends_on_the_batch(job: Job, pcm: type[Pcm]) -> None:
    pcm.differs_in_batches = True
    report = speechmill.build(job)
    assert report.token_mismatch["pcm"] == pytest.approx(0.25, abs=0.001)
    (stored,) = stored_mismatch(job)["pcm"] or []
    assert stored == pytest.approx(0.25, abs=0.001)


def test_a_round_trip_needs_a_tokenizer_that_decodes(job: Job) -> None:
    with pytest.raises(JobError, match="round_trip needs a tokenizer that decodes"):
        speechmill.build(job.model_copy(update={"round_trip": True, "tokenizer": ("mfcc",)}))
    assert not (Path(job.sink) / "data").exists()


def test_without_a_round_trip_its_column_is_null(job: Job, pcm: type[Pcm]) -> None:
    speechmill.build(job)
    rows = speechmill.open_dataset(job.sink).to_table()
    assert rows["round_trip_cer"].null_count == rows.num_rows
    assert "round_trip_cer_pcm" not in rows.column_names


@pytest.mark.slow
def test_a_round_trip_tells_codes_that_keep_what_was_said_from_codes_that_do_not(
    tmp_path: Path, pcm: type[Pcm]
) -> None:
    whisper("base")
    job = Job(
        source=str(CORPUS),
        sink=str(tmp_path / "good"),
        include=("p901",),
        limit=2,
        language="en",
        tokenizer=("mfcc", "pcm"),
        round_trip=True,
    )
    speechmill.build(job)
    rows = speechmill.open_dataset(job.sink).to_table().to_pylist()
    assert all(row["round_trip_cer"] is None for row in rows)
    assert all(row["round_trip_cer_pcm"] <= 0.05 for row in rows)
    pcm.lossy = True
    forget_resources()
    speechmill.build(job.model_copy(update={"sink": str(tmp_path / "bad")}))
    rows = speechmill.open_dataset(str(tmp_path / "bad")).to_table().to_pylist()
    assert all(row["round_trip_cer_pcm"] >= 0.5 for row in rows)


def test_mismatch_counts_frames_and_codebooks_that_only_one_has() -> None:
    codes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert mismatch(codes, codes) == (0.0, 0.0)
    assert mismatch(codes, codes[:, :3]) == (0.25, 0.25)
    assert mismatch(codes[:1], codes) == (0.0, 1.0)
    assert mismatch(codes, np.array([[1, 0, 3, 0], [5, 6, 7, 8]])) == (0.5, 0.0)
    assert mismatch(codes[:, :0], codes[:, :0]) == (0.0, 0.0)
