"""Peak memory of a build, on few and on many recordings.

The recordings are short tones in a local folder, the transcriber is the fake one, and the tokens
are MFCC. Each build runs in a process of its own, whose peak resident memory is taken. It must not
grow with the corpus: 20,000 recordings may take 10% more than 2,000.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import command, machine, peak_rss_mb, print_table
from speechmill import Job, build

SAMPLE_RATE = 16_000
PER_FOLDER = 200
TONES = 50
"""So many different recordings: what they sound like does not matter here."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One build in its own process."""

    recordings: int
    rows: int
    peak_mb: float
    wall_s: float


def make_recordings(folder: Path, count: int, seconds: float) -> None:
    """Write ``count`` WAV files of so many seconds, 200 a folder."""
    tones = [_tone(110.0 + 20 * i, seconds) for i in range(TONES)]
    for index in range(count):
        directory = folder / f"s{index // PER_FOLDER:04d}"
        if index % PER_FOLDER == 0:
            directory.mkdir(parents=True)
        name = f"{directory.name}_{index % PER_FOLDER:03d}.wav"
        (directory / name).write_bytes(tones[index % TONES])


def _tone(hertz: float, seconds: float) -> bytes:
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    samples = np.round(8_000 * np.sin(2 * np.pi * hertz * times)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def build_here(source: str, sink: str, tokenizer: str) -> Measured:
    """Build in this process, which must be a fresh one."""
    started = time.monotonic()
    job = Job(source=source, sink=sink, transcriber="fake", tokenizer=(tokenizer,))
    report = build(job)
    return Measured(report.recordings, report.rows, peak_rss_mb(), time.monotonic() - started)


def build_apart(count: int, seconds: float, tokenizer: str) -> Measured:
    """Make the recordings, and build in a new process."""
    with tempfile.TemporaryDirectory(prefix="speechmill-memory-") as folder:
        source, sink = Path(folder) / "source", Path(folder) / "sink"
        make_recordings(source, count, seconds)
        arguments = ["--build-here", str(source), str(sink), "--tokenizer", tokenizer]
        printed = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *arguments],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    return Measured(**json.loads(printed))


def main() -> None:
    """Measure, and print."""
    parser = command("memory", __doc__, "--sizes 2000 20000")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[2_000, 20_000], help="recordings of each build"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a recording")
    parser.add_argument("--tokenizer", default="mfcc", help="mfcc, fake or none")
    parser.add_argument("--repeats", type=int, default=1, help="builds of each size")
    parser.add_argument("--build-here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build_here:
        source, sink = options.build_here
        print(json.dumps(asdict(build_here(source, sink, options.tokenizer))))
        return
    print(machine())
    rows = []
    first_mb = 0.0
    for size in options.sizes:
        runs = [
            build_apart(size, options.seconds, options.tokenizer) for _ in range(options.repeats)
        ]
        worst = max(runs, key=lambda run: run.peak_mb)
        first_mb = first_mb or worst.peak_mb
        rows.append(
            (
                f"{size:,}",
                f"{worst.rows:,}",
                f"{worst.peak_mb:.0f} MB",
                f"{worst.peak_mb / first_mb:.2f}",
                f"{worst.wall_s:.1f} s",
            )
        )
    print_table(("recordings", "rows", "peak memory", "against the first", "wall time"), rows)


if __name__ == "__main__":
    main()
