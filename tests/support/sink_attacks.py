"""Sinks with something wrong in them, and commands that are given them, in a process of its own.

Started as a program it reads numbers, and answers each with what was wrong, as JSON lines.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

import speechmill
from speechmill.cli.app import app
from speechmill.dataset.schema import METADATA_KEY
from speechmill.errors import SpeechmillError
from tests.cli.test_hostile_sinks import COMMANDS
from tests.support.chaos import Chaos
from tests.support.mutants import mutant, mutated_json

__all__ = ["Attacker"]

MEMORY_BYTES = 6 * 2**30
LONGEST_S = 120.0
OPEN = "open_dataset"
_FAILURES = {"failures": ("failures", "SINK")}


class Attacker:
    """A process that attacks copies of ``ROOT/sink``, made of ``ROOT/in``."""

    def __init__(self, root: Path, seed: int) -> None:
        self._told = str(root), str(seed)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def attack(self, number: int) -> tuple[dict[str, str], list[str]]:
        """What came of it, by command, and what was wrong with that."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.sink_attacks", *self._told],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        print(number, file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], LONGEST_S)[0]:
            self._end()
            return {}, [f"attack {number}: no end within {LONGEST_S:.0f} s"]
        line = process.stdout.readline()
        if not line:
            code = process.wait(LONGEST_S)
            self._end()
            return {}, [f"attack {number}: the process has ended with {code}"]
        outcomes: dict[str, str] = json.loads(line)
        wrong = [f"attack {number}, {c}: {o}" for c, o in outcomes.items() if " " in o]
        return outcomes, wrong

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()


def _spoil(sink: Path, draw: Random) -> None:
    """Spoil one or two files of a sink."""
    files = sorted(path for path in sink.rglob("*") if path.is_file() and path.stat().st_size)
    for path in draw.sample(files, draw.choice((1, 1, 2))):
        data = path.read_bytes()
        if path.suffix == ".parquet" and draw.random() < 0.6:
            _spoil_table(path, draw)
        elif path.suffix == ".json" and draw.random() < 0.6:
            path.write_text(json.dumps(mutated_json(json.loads(data), draw)))
        else:
            others = [one.read_bytes() for one in files if one != path]
            path.write_bytes(mutant(data, draw, others))
        if path.suffix == ".json":  # no test asks for what lies in other buckets
            path.write_bytes(path.read_bytes().replace(b"s3:", b"no:"))


def _spoil_table(path: Path, draw: Random) -> None:
    table = pq.read_table(path, partitioning=None)
    kind = draw.randrange(6)
    at = draw.randrange(table.num_columns)
    name, count = table.column_names[at], table.num_rows
    if kind == 0:
        told = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
        metadata = {METADATA_KEY: json.dumps(mutated_json(told, draw))}
        table = table.replace_schema_metadata(metadata)
    elif kind == 1:
        table = table.drop_columns([name])
    elif kind == 2:
        table = table.rename_columns([n if n != name else f"{n}x" for n in table.column_names])
    elif kind == 3:
        table = pa.concat_tables([table] * draw.choice((0, 2, 3)) or [table.slice(0, 0)])
    else:
        odd = (pa.nulls(count, table.schema.types[at]), pa.nulls(count), pa.array(range(count)))
        bits, texts = pa.array([b"\xff\0"] * count), pa.array(["\x1b[2J/../\0"] * count)
        numbers = pa.array([draw.choice((math.nan, math.inf, -1e300, 1e300))] * count)
        table = table.set_column(at, name, draw.choice((*odd, bits, texts, numbers)))
    pq.write_table(table, path)


def _attack(root: Path, draw: Random) -> dict[str, str]:
    outcomes = {}
    commands = {**COMMANDS, **_FAILURES}
    with tempfile.TemporaryDirectory() as folder:
        spoilt = Path(folder) / "spoilt"
        shutil.copytree(root / "sink", spoilt)
        _spoil(spoilt, draw)
        for name in (OPEN, *draw.sample(list(commands), 3)):
            sink = Path(folder) / name
            shutil.copytree(spoilt, sink)
            if name == OPEN:
                outcomes[name] = _opened(sink)
                continue
            places = {"SINK": str(sink), "SOURCE": str(root / "in"), "OUT": f"{folder}/out {name}"}
            outcomes[name] = _run([places.get(word, word) for word in commands[name]])
    return outcomes


def _opened(sink: Path) -> str:
    try:
        opened = speechmill.open_dataset(str(sink))
        with suppress(OSError, pa.ArrowException):  # of pages: it is Arrow's dataset that is read
            opened.to_table()
    except SpeechmillError as error:
        return type(error).__name__
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        return f"raised {error!r}"[:2_000]
    return ""


def _run(words: list[str]) -> str:
    result = CliRunner().invoke(app, words)
    error = result.exception
    if error is not None and not isinstance(error, SpeechmillError | SystemExit):
        return f"raised {error!r}"[:2_000]
    if any(sign in result.output for sign in ("Traceback", "internal error", "\x1b[2J")):
        return f"said {result.output[-2_000:]}"
    return type(error).__name__ if error is not None else ""


def _serve(root: Path, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        outcomes = _attack(root, Chaos(seed).draw("sink", int(line)))
        print(json.dumps(outcomes), file=answers, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
