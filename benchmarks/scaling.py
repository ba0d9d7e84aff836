"""What a build costs besides the work itself, from ten thousand to a million recordings.

The runner only pretends: it writes each part as workers would, with rows of text, and reports every
recording as done. What is left is listing, planning, reports, logs: the process that a build is
started in. Then the same build again, which finds nothing to do, and ``show``. Source and sink are
folders; the source's files have a size, but no bytes. Each size runs in a process of its own;
memory is that process's peak above the start of each step, and in brackets in all.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

import speechmill
from benchmarks.figures import command, machine, peak_rss_mb, print_table, rss_mb
from speechmill import Job
from speechmill.dataset.layout import data_key
from speechmill.dataset.schema import sort_rows, to_parquet, utterances_to_table
from speechmill.dataset.summary import summarize
from speechmill.pipeline.resources import open_resources
from speechmill.records import Recording, RecordingDone, Shard, ShardReport, Transcript, Utterance
from speechmill.storage import open_store

RECORDING_S = 3.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step: wall time, and the peak of memory above its start and in all."""

    name: str
    wall_s: float
    memory_mb: float
    peak_mb: float


class PretendRunner:
    """Reports every recording as done, after writing the parts. See ``Runner``."""

    def __init__(self) -> None:
        self.working_s = 0.0

    def run(
        self,
        job: Job,
        shards: Iterable[Shard],
        *,
        stop: Callable[[], bool],
        on_done: Callable[[RecordingDone], None],
    ) -> Iterator[ShardReport]:
        """See ``Runner.run``. ``working_s`` is what workers would do elsewhere."""
        del stop
        tools = open_resources(job)
        for shard in shards:
            started = time.monotonic()
            for part, recordings in shard.parts:
                rows = [_utterance(r, tools.folder_of(r.file_name)) for r in recordings]
                table = utterances_to_table(rows, tools.schema, tools.recipe.id)
                tools.sink.put(data_key(part), to_parquet(sort_rows(table)))
            done = tuple(
                RecordingDone(r.file_name, r.size, RECORDING_S, 1, 0.01, 0.01, 0.2, 0.01)
                for _, recordings in shard.parts
                for r in recordings
            )
            self.working_s += time.monotonic() - started
            for one in done:
                on_done(one)
            yield ShardReport(shard.index, done, wall_s=1.0)


def _utterance(recording: Recording, folder_name: str) -> Utterance:
    text = f"What {recording.etag} said, in about as many words as three seconds hold."
    return Utterance(
        recording, folder_name, 0.0, RECORDING_S, 16_000, 1, Transcript(text, language="en")
    )


def write_source(source: Path, recordings: int, folders: int) -> None:
    """Files of two to six seconds of FLAC, as far as their size tells."""
    per_folder = -(-recordings // folders)
    for index in range(recordings):
        folder, number = divmod(index, per_folder)
        if not number:
            (source / f"s{folder:06d}").mkdir(parents=True)
        with (source / f"s{folder:06d}" / f"s{folder:06d}_{number:07d}.flac").open("wb") as file:
            file.truncate(80_000 + index * 7_919 % 160_000)


def measure(recordings: int, folders: int, root: Path, partition_by: str) -> list[Step]:
    """Build, build again and show, in this process, which must be a fresh one."""
    source, sink = root / "source", root / "sink"
    write_source(source, recordings, folders)
    job = Job(
        source=str(source),
        sink=str(sink),
        transcriber="fake",
        tokenizer="none",
        partition_by=partition_by,
    )
    steps, runner = [], PretendRunner()
    for name in ("build", "again"):
        before_mb, started = _settled_rss_mb(), time.monotonic()
        report = speechmill.build(job, runner=runner)
        wall_s = time.monotonic() - started
        if name == "build":
            steps.append(_step("plan", report.plan_s, before_mb))
            wall_s -= report.plan_s + runner.working_s
            name = "bookkeeping"  # noqa: PLW2901
        steps.append(_step(name, wall_s, before_mb))
    before_mb, started = _settled_rss_mb(), time.monotonic()
    summarize(open_store(str(sink)))
    steps.append(_step("show", time.monotonic() - started, before_mb))
    return steps


def _step(name: str, wall_s: float, before_mb: float) -> Step:
    return Step(name, wall_s, peak_rss_mb() - before_mb, peak_rss_mb())


def _settled_rss_mb() -> float:
    """Resident memory, once what is free was given back and the peak was forgotten."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError):  # only Linux can; the peak is then the whole process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)
    return rss_mb()


def main() -> None:
    """Measure, and print."""
    parser = command("scaling", __doc__, "--corpus 10000:20 --corpus 100000:100000")
    parser.add_argument(
        "--corpus",
        action="append",
        metavar="RECORDINGS:FOLDERS[:PARTITION_BY]",
        help="default: 10000:20, 100000:200 and 1000000:2000",
    )
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    corpora = [
        [*corpus.split(":", 2), "folder"][:3]
        for corpus in options.corpus or ("10000:20", "100000:200", "1000000:2000")
    ]
    if options.here:
        ((recordings, folders, partition_by),) = corpora
        steps = measure(int(recordings), int(folders), Path(options.here), partition_by)
        print(json.dumps([asdict(step) for step in steps]))
        return
    print(machine())
    table = []
    for recordings, folders, partition_by in corpora:
        with tempfile.TemporaryDirectory(prefix="scaling-") as root:
            corpus = f"{recordings}:{folders}:{partition_by}"
            printed = subprocess.run(
                [sys.executable, "-m", "benchmarks.scaling", "--corpus", corpus, "--here", root],
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
            parts = sum(1 for _ in Path(root, "sink", "data").rglob("*.parquet"))
        steps = [Step(**step) for step in json.loads(printed)]
        table.append(
            (
                f"{int(recordings):,}",
                f"{int(folders):,}",
                partition_by,
                f"{parts:,}",
                *(
                    f"{step.wall_s:.1f} s, {step.memory_mb:.0f} MB ({step.peak_mb:.0f})"
                    for step in steps
                ),
            )
        )
        print(*table[-1], sep="  ", file=sys.stderr, flush=True)  # the large ones take long
    print_table(
        ("recordings", "folders", "by", "parts", "plan", "bookkeeping", "again", "show"), table
    )


if __name__ == "__main__":
    main()
