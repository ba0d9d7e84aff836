"""Python programs that run to their end, each in a process of its own, many of them in little time.

A process with the slow imports is forked for each of them, so that it ends as any interpreter does
(multiprocessing's children leave without that). Started as a program, this is that process.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LIMIT_S = 60  # a program that takes longer hangs, and is ended by SIGALRM


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit status (negative: by a signal), and what it wrote."""

    status: int
    text: str


@dataclass
class Interpreter:
    """What programs are run by; ``modules`` are imported already."""

    modules: Sequence[str] = ("speechmill", "pyarrow.dataset", "pandas")
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Interpreter:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.ends", *self.modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        with self.process:
            self.process.kill()

    def run(self, program: str, folder: Path, times: int = 1) -> list[Ended]:
        """Run it in a folder, to its end, as often as that at once, so that all are disturbed."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps([program, str(folder), times]), file=process.stdin, flush=True)
        return [Ended(status, text) for status, text in json.loads(process.stdout.readline())]


def _serve() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        program, folder, times = json.loads(line)
        running: dict[int, IO[bytes]] = {}
        for _ in range(times):
            written = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
            child = os.fork()
            if child == 0:
                _begin(program, folder, written)
                return  # to the interpreter's end
            running[child] = written
        print(json.dumps([_end(*one) for one in running.items()]), file=answers, flush=True)


def _begin(program: str, folder: str, written: IO[bytes]) -> None:
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(written.fileno(), 1)
    os.dup2(written.fileno(), 2)
    signal.alarm(LIMIT_S)
    main = sys.modules["__main__"].__dict__
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]
    exec(compile(program, "program", "exec"), main)


def _end(child: int, written: IO[bytes]) -> tuple[int, str]:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with written:
        written.seek(0)
        return status, written.read().decode(errors="replace")


if __name__ == "__main__":
    _serve()
