"""Recordings that do to a decoder what a fault in a native library could, on every runner and both
queues: all others have their rows, and these are failures."""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from speechmill.dataset.summary import failed_recordings
from speechmill.storage import open_store
from tests.support.harness import Command, Place, corpus, fill_folder
from tests.support.hostile_decoder import ENDLESS, ENDS, HUNGRY, hostile_path
from tests.support.weights import missing

GOOD = corpus(2, 2)
DEADLY = {"p00/ends.wav": ENDS % 11, "p01/endless.wav": ENDLESS, "p01/hungry.wav": HUNGRY}
FAKE = ("--transcriber", "fake")


@pytest.fixture
def source(tmp_path: Path) -> Place:
    return fill_folder(tmp_path / "source", {**GOOD, **DEADLY})


def assert_only_the_deadly_failed(finished: Command, sink: Place) -> None:
    done = finished.finish(300)
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    assert sink.names() == sorted(GOOD)
    failed = {f.file_name: (f.stage, f.error) for f in failed_recordings(open_store(sink.url))}
    assert failed == {
        "p00/ends.wav": ("decode", "DecoderDiedError"),
        "p01/endless.wav": ("decode", "DecoderDiedError"),
        "p01/hungry.wav": ("decode", "MemoryError"),
    }


@pytest.mark.parametrize("engine", ["local", "dask", "ray", "spark"])
def test_a_build_goes_on(source: Place, tmp_path: Path, engine: str) -> None:
    if engine == "spark" and shutil.which("java") is None:
        missing("Spark needs Java: apt-get install default-jre-headless")
    sink = Place(str(tmp_path / "sink"))
    where = () if engine == "local" else ("--engine", engine, "--workers", "1")
    build = Command("build", source.url, sink.url, *FAKE, *where, env=hostile())
    assert_only_the_deadly_failed(build, sink)


@pytest.mark.parametrize("broker", ["tansu", "rabbitmq"])
def test_a_worker_of_a_queue_goes_on(
    source: Place, tmp_path: Path, broker: str, request: pytest.FixtureRequest
) -> None:
    sink = Place(str(tmp_path / "sink"))
    url = request.getfixturevalue(broker).url(f"deadly-{uuid4().hex[:6]}")
    assert Command("enqueue", source.url, url).finish().code == 0
    told = (url, sink.url, "--source", source.url, "--until-empty", "--metrics", "none")
    assert_only_the_deadly_failed(Command("work", *told, *FAKE, env=hostile()), sink)


def hostile() -> dict[str, str]:
    return {"PYTHONPATH": hostile_path()}
