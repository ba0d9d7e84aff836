"""Planning a large listing: seconds, and memory above the start.

The source is listed from memory, so that what is measured is ours; the sink is in memory, too, and
holds the rows of none, half or all of the recordings as real parts. ``--source DIR`` plans a
folder of your own instead, with nothing done. Each state is planned in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks.figures import command, machine, peak_rss_mb, print_table, rss_mb
from speechmill import Job
from speechmill.dataset.layout import agree_on_parts, data_key
from speechmill.dataset.schema import row_schema, sort_rows, to_parquet
from speechmill.pipeline.planner import Plan, make_plan
from speechmill.records import Part
from speechmill.storage import Object, Store, open_store

RECIPE = "0123456789abcdef"
RECORDING_BYTES = 120_000  # three seconds of FLAC
PART_RECORDINGS = 600  # half an hour of them
MODIFIED_US = 1_750_000_000_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """One planning in its own process. ``memory_mb`` is the peak above what was there before."""

    listed: int
    done: int
    to_do: int
    wall_s: float
    cpu_s: float
    memory_mb: float


def listing(count: int, folders: int) -> Iterator[Object]:
    """``count`` recordings in so many folders, as a bucket would list them."""
    per_folder = -(-count // folders)
    for index in range(count):
        folder, number = divmod(index, per_folder)
        key = f"speakers/s{folder:05d}/s{folder:05d}_{number:07d}.flac"
        etag = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
        yield Object(key, RECORDING_BYTES + index % 1_000, etag, MODIFIED_US + index)


class ListedStore:
    """A source that lists ``count`` recordings which it does not have. See ``Store``."""

    def __init__(self, count: int, folders: int) -> None:
        self._store = open_store("memory://benchmark-source")
        self._count, self._folders = count, folders
        self.url = self._store.url
        self.get, self.read, self.head = self._store.get, self._store.read, self._store.head
        self.put, self.put_file = self._store.put, self._store.put_file
        self.delete = self._store.delete
        self.check = self._store.check

    def list(self, prefix: str = "") -> Iterator[Object]:
        """See ``Store.list``."""
        del prefix
        return listing(self._count, self._folders)


def fill(sink: Store, count: int, folders: int, every: int) -> None:
    """Put the rows of every ``every``-th recording into the sink, as a build would have."""
    per_folder = -(-count // folders)
    num_parts = max(1, round(per_folder / PART_RECORDINGS))
    by_part: defaultdict[Part, list[Object]] = defaultdict(list)
    names: set[str] = set()
    folder_name = ""

    def put() -> None:
        for part, objects in by_part.items():
            sink.put(data_key(part), to_parquet(sort_rows(_rows(part.folder_name, objects))))
        by_part.clear()

    for index, listed in enumerate(listing(count, folders)):
        name = listed.key.split("/")[-2]
        if name != folder_name:
            put()
            folder_name = name
            names.add(name)
        if index % every == 0:
            by_part[Part.of(name, listed.key, num_parts)].append(listed)
    put()
    agree_on_parts(sink, dict.fromkeys(names, num_parts))


def _rows(folder_name: str, objects: list[Object]) -> pa.Table:
    """Rows that hold what planning reads, and some text."""
    schema = row_schema(())
    known = {
        "folder_name": [folder_name] * len(objects),
        "file_name": [o.key for o in objects],
        "transcription": [f"What {o.etag} said." for o in objects],
        "source_size": [o.size for o in objects],
        "source_etag": [o.etag for o in objects],
        "source_modified": [o.modified_us for o in objects],
        "recipe": [RECIPE] * len(objects),
    }
    seconds = {f.name: [1.0] * len(objects) for f in schema if f.name.endswith("_s")}
    known |= {**seconds, "sample_rate": [16_000] * len(objects), "channels": [1] * len(objects)}
    arrays = [
        pa.array(known[f.name], f.type) if f.name in known else pa.nulls(len(objects), f.type)
        for f in schema
    ]
    return pa.table(arrays, schema=schema)


def plan_here(count: int, folders: int, state: str, source_url: str | None) -> Measured:
    """Plan in this process, which must be a fresh one."""
    sink = open_store("memory://benchmark-sink")
    source: Store = ListedStore(count, folders)
    if source_url:
        source = open_store(source_url)
    if state != "none done":
        fill(sink, count, folders, every=1 if state == "all done" else 2)
    job = Job(source=source.url, sink=sink.url, transcriber="fake")
    before_mb = _settled_rss_mb()
    started, cpu_s = time.monotonic(), time.process_time()
    made: Plan = make_plan(job, source, sink, RECIPE)
    wall_s, cpu_s = time.monotonic() - started, time.process_time() - cpu_s
    return Measured(
        made.listed, made.done, made.num_recordings, wall_s, cpu_s, peak_rss_mb() - before_mb
    )


def _settled_rss_mb() -> float:
    """Resident memory, once what is free was given back and the peak was forgotten."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError):  # only Linux can; the peak is then the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)
    return rss_mb()


def main() -> None:
    """Measure, and print."""
    parser = command("planning", __doc__, "--recordings 1000000 --folders 2000")
    parser.add_argument("--recordings", type=int, default=1_000_000, help="how many are listed")
    parser.add_argument("--folders", type=int, default=2_000, help="in so many folders")
    parser.add_argument("--source", help="plan this folder or bucket instead, with nothing done")
    parser.add_argument("--plan-here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan_here:
        measured = plan_here(options.recordings, options.folders, options.plan_here, options.source)
        print(json.dumps(asdict(measured)))
        return
    print(machine())
    rows = []
    for state in ("none done",) if options.source else ("none done", "half done", "all done"):
        printed = subprocess.run(
            [sys.executable, "-m", "benchmarks.planning", *sys.argv[1:], "--plan-here", state],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        measured = Measured(**json.loads(printed))
        rows.append(
            (
                state,
                f"{measured.listed:,}",
                f"{measured.done:,}",
                f"{measured.to_do:,}",
                f"{measured.wall_s:.1f} s",
                f"{measured.cpu_s:.1f} s",
                f"{measured.memory_mb:.0f} MB",
            )
        )
    print_table(
        (
            "state",
            "listed",
            "done",
            "to be done",
            "wall time",
            "processor time",
            "memory above start",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
