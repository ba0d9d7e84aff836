"""Programs end as they should, whatever Arrow's threads still do when the interpreter ends.

One that asked for Python's lock at that moment aborted the process, or was waited for without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.corpus import build, memory, wav
from tests.support.ends import Interpreter

TIMES = 8  # at once: one that is alone hardly ever showed it

FOLDER = {
    "all": "speechmill.open_dataset(SINK).to_table()",
    "kept": "kept = speechmill.open_dataset(SINK); kept.to_table()",
    "head": "speechmill.open_dataset(SINK).head(1)",
    "let go": "next(iter(speechmill.open_dataset(SINK).to_batches()))",
    "chosen": (
        "from speechmill.dataset.index import open_index\n"
        "open_index(open_store(SINK), \"file_name != 'x'\")"
    ),
    "parts": (
        "from speechmill.dataset.reader import scan\n"
        "list(scan(open_store(SINK), ['file_name', 'token']))"
    ),
}
# What is true of a bucket is true of a store in memory: Arrow's threads call into Python.
IN_MEMORY = """
copy = open_store("memory://copy")
for one in open_store(SINK).list():
    copy.put(one.key, open_store(SINK).get(one.key).data)
SINK = "memory://copy"
"""
BEGIN = "import speechmill\nfrom speechmill.storage import open_store\nSINK = {sink!r}\n"


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("sink"))
    build(memory({f"p{i}/{k}.wav": wav(i + k) for i in range(12) for k in range(3)}), root)
    return root


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    modules = ("speechmill", "pyarrow.dataset", "speechmill.dataset.index")
    with Interpreter(modules) as found:
        yield found


@pytest.mark.parametrize("where", ["folder", "memory"])
@pytest.mark.parametrize("what", list(FOLDER))
def test_a_program_that_reads_ends_as_it_should(
    interpreter: Interpreter, sink: str, tmp_path: Path, where: str, what: str
) -> None:
    if where == "memory" and what in ("chosen", "parts"):
        pytest.skip("Arrow reads bytes then, wherever they come from")
    copied = IN_MEMORY if where == "memory" else ""
    program = f"{BEGIN.format(sink=sink)}{copied}{FOLDER[what]}\n"
    ended = interpreter.run(program, tmp_path, TIMES)
    assert {(one.status, one.text) for one in ended} == {(0, "")}
