"""A repartition on Dask: the same files, whoever dies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner

from speechmill.cli.repartition import repartition as command
from speechmill.dataset.layout import data_key
from speechmill.errors import EngineError, JobError, ReplacedError
from speechmill.export import repartition as module
from speechmill.export.dask import on_dask
from speechmill.export.files import Place, Unit
from speechmill.records import Part
from speechmill.storage import open_store
from tests.support.corpus import memory
from tests.support.repartitions import (
    FOLDERS,
    files,
    make_sink,
    run,
)


@pytest.fixture
def on_disk(tmp_path: Path) -> str:
    """A sink that other processes can read."""
    url = str(tmp_path / "sink")
    make_sink(url, [(folder, index, 12) for folder in FOLDERS for index in (0, 1)])
    return url


def dask_workers() -> set[psutil.Process]:
    """The worker processes of Dask below this one."""
    found = set()
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
            if "spawn_main" in " ".join(one.cmdline()):
                found.add(one)
    return found


def test_dask_writes_the_same_files_also_when_its_workers_are_killed(
    on_disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "UNIT_BYTES", 2_000)  # many units
    expected = memory()
    run(on_disk, expected, ["language"], rows_per_file=2)
    before = dask_workers()
    killed: set[psutil.Process] = set()

    def kill_once(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
        assert len(units) > 20
        for rows in on_dask(workers=2)(units, stop):
            if rows and not killed:
                killed.update(dask_workers() - before)
                for worker in killed:
                    worker.kill()
            yield rows

    out = str(tmp_path / "out")
    report = run(on_disk, out, ["language"], rows_per_file=2, run=kill_once)
    assert len(killed) == 2
    assert (report.rows, report.stopped) == (240, False)
    assert files(open_store(out)) == files(open_store(expected))
    assert capfd.readouterr() == ("", "")
    assert dask_workers() == before


def test_the_command_tells_dask_from_threads(on_disk: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    given = [on_disk, str(tmp_path / "out"), "--by", "language"]
    result = CliRunner().invoke(app, [*given, "--workers", "2"])
    assert (result.exit_code, "for --engine dask" in result.output) == (2, True)
    result = CliRunner().invoke(app, [*given, "--engine", "dask", "--address", "ray://127.0.0.1:1"])
    assert isinstance(result.exception, JobError)
    assert "is no Dask scheduler's" in str(result.exception)


def test_errors_on_dask_are_those_of_the_work_and_an_end_of_dask_is_one_line(
    on_disk: str, tmp_path: Path
) -> None:
    from distributed import Client, LocalCluster

    here = LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        silence_logs=logging.CRITICAL,
    )
    with here, Client(here, set_as_default=False) as client:
        write_there = on_dask(client)

        def meddle(units: Sequence[Unit], stop: Callable[[], bool]) -> Iterator[int]:
            store = open_store(on_disk)
            store.put(data_key(Part("p225", 0, 99)), b"something else")
            yield from write_there(units, stop)

        with pytest.raises(ReplacedError, match="empty OUT and begin anew"):
            run(on_disk, str(tmp_path / "out"), ["language"], run=meddle)
        assert client.status == "running"
        client.close()
        with pytest.raises(EngineError, match="the Dask scheduler has gone"):
            list(write_there([Unit(Place(""), Place(""), (), (), (), b"")], lambda: False))
