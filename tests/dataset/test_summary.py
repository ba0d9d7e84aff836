"""What ``show`` and ``failures`` count."""

from __future__ import annotations

import pytest

from speechmill.dataset.summary import FailedRecording, failed_recordings, summarize
from speechmill.storage import open_store
from tests.support.corpus import build, memory, wav


def test_a_summary_counts_each_row_and_failure_once() -> None:
    files = {
        "p1/a.wav": wav(1, 1.0),
        "p1/b.wav": wav(2, 2.0),
        "p1/silent.wav": wav(3, 1.0, silent=True),
        "p2/c.wav": wav(4, 0.5),
        "p2/bad.wav": b"no audio at all",
        "p2/empty.wav": b"",
    }
    sink = memory()
    report = build(memory(files), sink, part_minutes=0.01)
    found = summarize(open_store(sink))
    assert (found.rows, found.empty) == (4, 1)
    assert found.audio_s == pytest.approx(4.5)
    assert found.folders == {"p1": 3, "p2": 1}
    assert found.folder_audio_s == pytest.approx({"p1": 4.0, "p2": 0.5})
    assert found.languages == {"en": 3, "(none)": 1}
    assert found.recipes == {report.recipe: 4}
    assert found.failures == {"NotAudioError": 1, "EmptyAudioError": 1}
    parts = list(open_store(sink).list("data"))
    assert (found.parts, found.num_bytes) == (len(parts), sum(o.size for o in parts))
    assert sorted(name for _, name in found.slowest) == sorted(
        name for name in files if "bad" not in name and "empty" not in name
    )
    assert found.slowest == sorted(found.slowest, reverse=True)


def test_failed_recordings_say_why() -> None:
    sink = memory()
    build(memory({"p/bad.wav": b"no audio at all", "p/good.wav": wav()}), sink)
    (failed,) = failed_recordings(open_store(sink))
    assert failed == FailedRecording("p/bad.wav", "decode", "NotAudioError", failed.message, 1)
    assert failed.message


def test_an_empty_sink_is_summed_up_as_nothing() -> None:
    found = summarize(open_store(memory()))
    assert (found.rows, found.audio_s, found.parts, found.slowest) == (0, 0.0, 0, [])
    assert failed_recordings(open_store(memory())) == []
