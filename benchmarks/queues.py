"""What a queue costs: publishing, work against a build, and rewriting parts as they grow.

Brokers run on this machine: Tansu (Kafka's protocol) and RabbitMQ, where they are installed. Each
side of the second table is a whole process, start included, in turn; the store is a folder.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path
from uuid import uuid4

from tests.support.brokers import RABBITMQ, RabbitMQ, Tansu

from benchmarks.figures import command, machine, print_table
from speechmill import audio
from speechmill.dataset.reader import list_parts
from speechmill.job import Job
from speechmill.queues import open_broker
from speechmill.queues.base import Message
from speechmill.queues.notices import encode
from speechmill.queues.options import WorkOptions
from speechmill.queues.run import work
from speechmill.records import Part, Recording
from speechmill.storage import open_store

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"


@contextmanager
def brokers() -> Iterator[dict[str, str]]:
    """Brokers that run, by name: their URLs, with ``{}`` for the queue."""
    with ExitStack() as stack:
        found = {"Kafka (Tansu)": stack.enter_context(Tansu()).url("{}")}
        if RABBITMQ.exists():
            found["RabbitMQ"] = stack.enter_context(RabbitMQ()).url("{}")
        yield found


def publishing(urls: dict[str, str], count: int) -> None:
    """Messages a second, with confirms."""
    rows = []
    part = Part("p225", 3, 8)
    for name, url in urls.items():
        broker = open_broker(url.format(f"rate{uuid4().hex[:6]}"))
        broker.prepare()
        started = time.perf_counter()
        chunk: list[Message] = []
        for i in range(count):
            recording = Recording(f"p225/p225_{i:07d}.flac", 123_456 + i, f"{i:032x}", i)
            chunk.append(encode("s3://voices/vctk", recording, part))
            if len(chunk) == 5_000:
                broker.publish(chunk)
                chunk.clear()
        broker.publish(chunk)
        seconds = time.perf_counter() - started
        rows.append((name, f"{count:,}", f"{seconds:.1f} s", f"{count / seconds:,.0f}"))
        broker.close()
    print_table(("broker", "messages", "wall time", "confirmed a second"), rows)


def run(*arguments: str) -> tuple[float, float]:
    """A command of Speechmill's: its wall and processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "speechmill", *arguments],
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu_s


def against_build(urls: dict[str, str], options: argparse.Namespace) -> None:
    """``work`` against ``build`` on the same clips."""
    paths = [
        path
        for path in sorted(options.corpus.rglob("*"))
        if path.suffix.lower().lstrip(".") in audio.EXTENSIONS
    ]
    clips = list(islice(cycle(paths), options.limit or len(paths)))
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        for number, path in enumerate(clips):
            below = path.relative_to(options.corpus)
            target = source / below.with_stem(f"{below.stem}-{number // len(paths)}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        told = ("--model", options.model, "--transcriber", options.transcriber)
        for turn in range(options.repeats):
            sides = ["build", *urls]
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                sink = f"{folder}/sink{turn}-{sides.index(side)}"
                if side == "build":
                    cost = run("build", str(source), sink, *told)
                else:
                    url = urls[side].format(f"work{uuid4().hex[:6]}")
                    run("enqueue", str(source), url, "--sink", sink)
                    flags = ("--source", str(source), "--until-empty", "--metrics", "none")
                    cost = run("work", url, sink, *flags, *told)
                taken.setdefault(side, []).append(cost)
    rows = []
    for side, costs in taken.items():
        wall = statistics.median(cost[0] for cost in costs)
        ratios = [
            [mine[i] / theirs[i] for mine, theirs in zip(costs, taken["build"], strict=True)]
            for i in (0, 1)
        ]
        rows.append(
            (
                side if side == "build" else f"work, {side}",
                f"{wall:.1f} s",
                f"{wall / len(clips):.3f} s",
                f"{statistics.median(ratios[0]):.2f}",
                f"{statistics.median(ratios[1]):.2f}",
                f"{min(ratios[0]):.2f} to {max(ratios[0]):.2f}",
            )
        )
    print(f"{len(clips)} recordings, {options.model}; medians of {options.repeats}")
    print_table(
        ("", "wall time", "a recording", "to build", "processor, to build", "wall, by turn"), rows
    )


def rewriting(options: argparse.Namespace) -> None:
    """Bytes of parts that are written for each byte that they hold in the end.

    One folder, MFCC: the recordings wait already, or come so many at a time. Each time is a commit
    of its own, as where the linger time is over when the next ones come.
    """
    from tests.support.harness import recording

    count = options.rewritten
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source" / "p1"
        source.mkdir(parents=True)
        for i in range(count):
            (source / f"{i:04d}.wav").write_bytes(recording(i, 4.0))
        for at_once in dict.fromkeys((count, 16, 4, 1)):
            sink = f"{folder}/sink{at_once}"
            url = f"memory://{uuid4().hex}/queue"
            job = Job(source=str(source.parent), sink=sink, transcriber="fake", folder="parent")
            written = batches = 0
            names = sorted(path.name for path in source.iterdir())
            store = open_store(str(source.parent))
            for first in range(0, count, at_once):
                messages = []
                for name in names[first : first + at_once]:
                    there = store.head(f"p1/{name}")
                    listed = Recording(there.key, there.size, there.etag, there.modified_us)
                    messages.append(encode(store.url, listed, Part("p1", 0, 1)))
                open_broker(url).publish(messages)
                report = work(job, WorkOptions(queue=url, until_empty=True, metrics="none"))
                written += report.written_bytes
                batches += report.batches
            held = sum(part.size for part in list_parts(open_store(sink)))
            how = "all wait" if at_once == count else f"{at_once} at a time"
            rows.append((how, f"{batches:,}", f"{written / held:.1f}"))
    print(f"{count} recordings of 4 s in one part")
    print_table(("they come", "batches", "bytes written a byte held"), rows)


def main() -> None:
    """Measure, and print."""
    parser = command("queues", __doc__, "--corpus ../speech --limit 200 --repeats 3")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder of speech")
    parser.add_argument("--limit", type=int, help="so many recordings, some again")
    parser.add_argument("--transcriber", default="whisper", help="whisper or fake")
    parser.add_argument("--model", default="base", help="base, tiny.en, or fake:SECONDS")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--messages", type=int, default=100_000, help="to publish; 0 for none")
    parser.add_argument("--rewritten", type=int, default=64, help="recordings; 0 for none")
    options = parser.parse_args()
    print(machine())
    with brokers() as urls:
        if options.messages:
            publishing(urls, options.messages)
        if options.repeats:
            against_build(urls, options)
    if options.rewritten:
        rewriting(options)


if __name__ == "__main__":
    main()
