"""Long recordings: their utterances are rows, all of them or none, whatever is beside them."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import speechmill
from speechmill import audio, builder
from speechmill.dataset.summary import failed_recordings, summarize
from speechmill.job import Job
from speechmill.pipeline import intake
from speechmill.pipeline import pace as pacing
from speechmill.records import Speech, Transcript, Waveform
from speechmill.storage import open_store
from speechmill.tokenizers.fake import FakeTokenizer
from speechmill.transcribers.fake import FakeTranscriber
from tests.support.corpus import build, memory, wav
from tests.support.weights import whisper

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples" / "corpus"
RATE = 48_000
COSTS = ["fetch_s", "decode_s", "transcribe_s", "tokenize_s"]


def clips(*speakers: str) -> list[Path]:
    return sorted(path for s in speakers for path in (CORPUS / s).glob("*.flac"))


@cache
def joined(speakers: tuple[str, ...], gap_s: float = 0.8) -> bytes:
    """The demo corpus' sentences, with pauses between, as a FLAC file."""
    parts: list[NDArray[Any]] = []
    for path in clips(*speakers):
        parts += [soundfile.read(path, dtype="int16")[0], np.zeros(int(gap_s * RATE), np.int16)]
    buffer = io.BytesIO()
    soundfile.write(buffer, np.concatenate(parts), RATE, format="FLAC")
    return buffer.getvalue()


LONG = ("p901", "p902", "p903", "p906")


def rows_of(sink: str, **columns: Any) -> list[dict[str, Any]]:
    table = speechmill.open_dataset(sink).to_table(**columns)
    return list(table.sort_by([("file_name", "ascending"), ("start_s", "ascending")]).to_pylist())


def without_costs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in COSTS} for row in rows]


def bare(text: str) -> str:
    """Its words alone."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def failures_of(sink: str) -> dict[str, tuple[str, str]]:
    return {r.file_name: (r.stage, r.error) for r in failed_recordings(open_store(sink))}


def test_a_long_recording_becomes_a_row_for_each_utterance() -> None:
    sink = memory()
    source = memory({"talks/long.flac": joined(LONG), "talks/short.wav": wav(1)})
    report = build(source, sink)
    rows = [row for row in rows_of(sink) if row["file_name"] == "talks/long.flac"]
    assert len(rows) > 3
    assert (report.recordings, report.rows, report.failed) == (2, len(rows) + 1, 0)
    edges = [edge for row in rows for edge in (row["start_s"], row["end_s"])]
    assert edges == sorted(edges)
    for row in rows:
        assert 2 <= row["duration_s"] <= 30
        assert row["duration_s"] == pytest.approx(row["end_s"] - row["start_s"])
        assert 0 < row["voiced_s"] <= row["duration_s"]
        assert len(row["token"][0]) == pytest.approx(row["duration_s"] * 50, abs=2)
        assert (row["sample_rate"], row["channels"]) == (RATE, 1)
        (segment,) = row["segments"]  # on the recording's clock
        assert segment["start_s"] == pytest.approx(row["start_s"])
        assert segment["end_s"] == pytest.approx(row["end_s"], abs=1e-3)
        assert row["chars_per_voiced_s"] == pytest.approx(
            len(row["transcription"]) / row["voiced_s"], rel=1e-5
        )
    again = build(source, sink)
    assert (again.recordings, again.already_done) == (0, 2)
    assert summarize(open_store(sink)).rows == len(rows) + 1
    assert len(summarize(open_store(sink)).slowest) == 2


def test_no_row_is_of_two_speakers() -> None:
    speakers = ("p901", "p902", "p903", "p904", "p905", "p906")
    turns_s = [0.0]
    for speaker in speakers:
        lengths = [soundfile.info(path).duration + 0.8 for path in clips(speaker)]
        turns_s.append(turns_s[-1] + sum(lengths))
    sink = memory()
    build(memory({"talks/all.flac": joined(speakers)}), sink)
    rows = rows_of(sink)
    assert len(rows) >= len(speakers)
    for row in rows:
        middle_s = (row["start_s"] + row["end_s"]) / 2
        (turn,) = [k for k in range(len(speakers)) if turns_s[k] <= middle_s < turns_s[k + 1]]
        assert turns_s[turn] - 0.5 < row["start_s"] < row["end_s"] < turns_s[turn + 1] + 0.1


def test_what_a_recording_cost_is_shared_by_its_rows() -> None:
    sink = memory()
    report = build(
        memory({"p/long.flac": joined(LONG)}), sink, transcriber="fake", model="fake:0.01"
    )
    rows = rows_of(sink)
    for stage in COSTS:
        assert sum(row[stage] for row in rows) == pytest.approx(report.stages_s[stage], rel=1e-3)
        assert all(row[stage] > 0 for row in rows)


def test_kept_whole_it_is_one_row_of_all_its_audio() -> None:
    sink = memory()
    assert build(memory({"p/long.flac": joined(LONG)}), sink, segment="none").rows == 1
    (row,) = rows_of(sink)
    assert (row["start_s"], row["end_s"]) == (0.0, row["duration_s"])
    assert row["duration_s"] > 60
    assert row["voiced_s"] is None  # the fake takes any length, so nobody listened
    assert row["chars_per_voiced_s"] is None


def test_a_dry_run_of_short_recordings_does_not_load_the_voice_model(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(wav(1))
    code = (
        "import sys, speechmill; from speechmill import Job\n"
        "job = Job(source=sys.argv[1] + '/in', sink=sys.argv[1] + '/out', transcriber='fake')\n"
        "print(speechmill.build(job).rows, 'onnxruntime' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True, text=True
    )
    assert run.stdout.split() == ["1", "False"]


def test_where_nobody_speaks_there_is_one_row_that_says_so() -> None:
    hour = io.BytesIO()
    soundfile.write(hour, np.zeros(40 * 8000, np.int16), 8000, format="WAV")
    sink = memory()
    build(memory({"p/silence.wav": hour.getvalue()}), sink)
    (row,) = rows_of(sink)
    assert (row["transcription"], row["flags"]) == ("", ["no_voice"])
    assert (row["start_s"], row["end_s"], row["voiced_s"]) == (0.0, 40.0, 0.0)
    assert row["no_speech_prob"] > 0.6
    assert len(row["token"][0]) == 2000
    assert row["repetition"] is None


def test_rows_depend_neither_on_what_is_beside_them_nor_on_the_size_of_groups() -> None:
    long, other = joined(LONG), joined(("p903", "p904", "p905"))
    beside = {"p/a.wav": wav(1, 3.0), "p/other.flac": other, "q/b.wav": wav(2, 29.0)}
    found = []
    for files, options in (
        ({}, {"batch_size": 1, "fetchers": 1}),
        (beside, {"batch_size": 1}),
        (beside, {"batch_size": 32, "part_minutes": 0.5}),
    ):
        sink = memory()
        build(memory({"p/long.flac": long, **files}), sink, tokenizer=("fake", "mfcc"), **options)
        rows = [row for row in rows_of(sink) if row["file_name"] == "p/long.flac"]
        found.append(
            [{k: v for k, v in r.items() if k != "source_modified"} for r in without_costs(rows)]
        )
    assert len(found[0]) > 3
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("segment", ["vad", "none"])
def test_whisper_loses_and_doubles_no_words_of_a_long_recording(segment: str) -> None:
    whisper("tiny.en")
    sink = memory()
    options = {"transcriber": "whisper", "model": "tiny.en", "words": True}
    build(memory({"p/long.flac": joined(LONG)}), sink, segment=segment, **options)
    rows = rows_of(sink)
    said = " ".join(path.with_suffix(".txt").read_text().strip() for path in clips(*LONG))
    heard = " ".join(row["transcription"] for row in rows)
    words = jiwer.process_words(bare(said), bare(heard))
    assert words.wer < 0.2, heard  # the model is tiny, and may say a sentence twice by itself
    assert words.deletions <= 4, heard
    pieces = [bare(s["text"]).split() for row in rows for s in row["segments"]]
    for one, next_one in itertools.pairwise(pieces):
        assert one[-2:] != next_one[:2]
    for row in rows:
        assert row["language"] == "en"
        assert row["voiced_s"] > 1
        assert "no_words" not in row["flags"]
        times = [t for s in row["segments"] for t in (s["start_s"], s["end_s"])]
        times_of_words = [t for w in row["words"] for t in (w["start_s"], w["end_s"])]
        for some in (times, times_of_words):
            assert row["start_s"] - 1e-6 <= min(some)
            assert max(some) <= row["end_s"] + 1e-6
        assert times == sorted(times)


def test_a_piece_that_cannot_be_transcribed_fails_its_recording_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = memory()
    source = memory({"p/long.flac": joined(LONG), "p/a.wav": wav(1), "p/b.wav": wav(2)})
    transcribe, calls = FakeTranscriber.transcribe, 0

    def rough(self: FakeTranscriber, speech: Sequence[Speech]) -> list[Transcript]:
        for one in speech:
            if one.voiced and sum(b - a for a, b in one.voiced) > 0.3 and one.voiced[0][0] > 0.05:
                nonlocal calls
                calls += 1
                if calls > 2:  # not the first rows, which are done by then
                    raise ValueError("odd piece")
        return transcribe(self, speech)

    monkeypatch.setattr(FakeTranscriber, "transcribe", rough)
    report = build(source, sink, batch_size=1)
    assert (report.rows, report.failed) == (2, 1)
    assert failures_of(sink) == {"p/long.flac": ("transcribe", "ValueError")}
    monkeypatch.undo()
    report = build(source, sink)
    assert report.failed == 0
    assert report.rows == len([r for r in rows_of(sink) if r["file_name"] == "p/long.flac"]) > 3
    assert failures_of(sink) == {}


def test_a_row_that_cannot_be_tokenized_fails_its_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink, encode, odd = memory(), FakeTokenizer.encode, 0

    def rough(self: FakeTokenizer, waveforms: Sequence[NDArray[np.float32]]) -> Any:
        nonlocal odd
        odd = odd or len(waveforms[1])
        if any(len(waveform) == odd for waveform in waveforms):
            raise ArithmeticError("odd row")
        return encode(self, waveforms)

    monkeypatch.setattr(FakeTokenizer, "encode", rough)
    report = build(memory({"p/long.flac": joined(LONG)}), sink)
    assert (report.rows, report.failed) == (0, 1)
    assert failures_of(sink) == {"p/long.flac": ("tokenize", "ArithmeticError")}


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_a_stretch_is_resampled_as_if_all_of_the_recording_were(rate: int) -> None:
    noise = np.random.default_rng(rate).normal(0, 0.1, 5 * rate + 1234).astype(np.float32)
    whole = audio.resample(Waveform(noise, rate), 16_000).samples
    read = intake.reader(Waveform(noise, rate), 16_000)
    for start, end in ((0, 16_000), (1, 2), (15_999, 48_123), (70_000, len(whole) - 1)):
        np.testing.assert_allclose(read(start, end), whole[start:end], atol=2e-5)


def test_a_changed_recording_replaces_all_of_its_rows() -> None:
    sink, source = memory(), memory({"p/long.flac": joined(LONG)})
    build(source, sink)
    assert len(rows_of(sink)) > 3
    open_store(source).put("p/long.flac", wav(1, 5.0))
    build(source, sink)
    (row,) = rows_of(sink)
    assert row["end_s"] == 5.0
    open_store(source).put("p/long.flac", b"no audio")
    build(source, sink)
    assert rows_of(sink) == []


class Stopping:
    """Stops a build when told."""

    def __init__(self) -> None:
        self.now = threading.Event()

    def __call__(self) -> bool:
        return self.now.is_set()

    def listed(self, count: int) -> None: ...

    def planned(self, plan: object) -> None: ...

    def progress(self, tally: object) -> None: ...


def test_a_stop_in_the_middle_leaves_no_half_of_a_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink, source = memory(), memory({"p/long.flac": joined(LONG), "p/a.wav": wav(1)})
    stopping, transcribe = Stopping(), FakeTranscriber.transcribe

    def stop(self: FakeTranscriber, speech: Sequence[Speech]) -> list[Transcript]:
        stopping.now.set()
        return transcribe(self, speech)

    monkeypatch.setattr(pacing, "MAX_PIECES", 1)
    monkeypatch.setattr(FakeTranscriber, "transcribe", stop)
    job = Job(source=source, sink=sink, transcriber="fake", tokenizer=("fake",))
    report = builder.build(job, stop=stopping)
    assert report.stopped
    assert (report.rows, report.failed, rows_of(sink)) == (0, 0, [])
    monkeypatch.undo()
    assert build(source, sink).recordings == 2
    assert len(rows_of(sink)) > 4


def test_the_language_is_heard_once_for_all_rows_of_a_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int] = []
    given: list[tuple[str | None, float | None]] = []
    transcribe = FakeTranscriber.transcribe

    def detect(self: FakeTranscriber, speech: Sequence[Speech]) -> tuple[str, float]:
        heard.append(len(speech))
        return "de", 0.75

    def told(self: FakeTranscriber, speech: Sequence[Speech]) -> list[Transcript]:
        given.extend((s.language, s.language_probability) for s in speech)
        return transcribe(self, speech)

    monkeypatch.setattr(FakeTranscriber, "detect_language", detect)
    monkeypatch.setattr(FakeTranscriber, "transcribe", told)
    report = build(memory({"p/long.flac": joined(LONG), "p/a.wav": wav(1)}), memory(), batch_size=1)
    assert heard == [2]  # of the four rows; never more than three
    assert sorted(given, key=str) == [("de", 0.75)] * (report.rows - 1) + [(None, None)]
    build(memory({"p/long.flac": joined(LONG)}), memory(), language="en")
    assert heard == [2]
    build(memory({"p/long.flac": joined(LONG)}), memory(), segment="none")  # one piece: no need to
    assert heard == [2]


def test_the_transcriber_is_given_a_second_group_while_it_computes_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transcribe = FakeTranscriber.transcribe
    together = threading.Barrier(2)

    def wait(self: FakeTranscriber, speech: Sequence[Speech]) -> list[Transcript]:
        together.wait(timeout=30)
        return transcribe(self, speech)

    monkeypatch.setattr(FakeTranscriber, "transcribe", wait)
    monkeypatch.setattr(pacing, "MAX_PIECES", 1)
    report = build(memory({f"p/{i}.wav": wav(i) for i in range(4)}), memory())
    assert (report.rows, report.failed) == (4, 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path: Path) -> None:
    code = (
        "import sys, speechmill; from speechmill import Job\n"
        "from speechmill.pipeline import pace; from tests.support.memory import AnonymousPeak\n"
        "pace.MAX_PIECES = 8\n"  # a fake is quick: its groups would hold all of the audio
        "job = Job(source=sys.argv[1], sink=sys.argv[2], transcriber='fake', tokenizer='fake')\n"
        "with AnonymousPeak() as peak:\n"
        "    rows = speechmill.build(job).rows\n"
        "print(rows, peak.grown_bytes)"
    )
    speech, _ = soundfile.read(io.BytesIO(joined(LONG)), dtype="int16")

    def grown_bytes(minutes: int) -> int:
        path = tmp_path / f"in{minutes}" / "long.wav"
        path.parent.mkdir()
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(speech[: 60 * RATE])
        run = subprocess.run(
            [sys.executable, "-c", code, str(path.parent), str(tmp_path / f"out{minutes}")],
            capture_output=True,
            check=True,
            text=True,
            cwd=ROOT,
        )
        rows, grown = map(int, run.stdout.split())
        assert rows >= 2 * minutes
        return grown

    # 24 minutes more have 276 MB of samples.
    assert grown_bytes(30) - grown_bytes(6) < 50_000_000
