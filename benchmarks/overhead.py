"""What a build takes beyond the work itself: bucket to bucket, against a loop over the same bytes.

Both sides use the same code on the same recordings in the same process, the model loaded before
the clock starts. The loop holds all of them in memory: it decodes and resamples them, listens for
voices, has all transcribed in one call, makes the tokens, and keeps the results. The build lists,
plans, fetches, commits and logs besides, from and to a real object store (SeaweedFS, which runs on
the same cores). They take turns; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.support.services import SeaweedFS

from benchmarks.figures import command, machine, print_table
from benchmarks.isolation import processor_s
from speechmill import Job, audio, build
from speechmill.pipeline.resources import Resources, open_resources
from speechmill.pipeline.row_recipe import VOICE
from speechmill.records import Codes, Speech, Transcript
from speechmill.speech.voice import listen
from speechmill.storage import StoreOptions, open_store

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
PROFILE = "benchmark"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one turn took, in seconds. Processor time is this process's and its decoders', not the
    store's."""

    wall_s: float
    cpu_s: float


def measured(action: Callable[[], object]) -> Cost:
    """Run it, and take the time."""
    wall_s, cpu_s = time.perf_counter(), processor_s()
    action()
    return Cost(time.perf_counter() - wall_s, processor_s() - cpu_s)


def read_corpus(folder: Path, limit: int | None) -> dict[str, bytes]:
    """The recordings of a folder by path: what has a name that we decode, and does decode."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower().lstrip(".") in audio.EXTENSIONS and path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
            if len(found) == limit:
                break
    if not found:
        raise SystemExit(f"there are no recordings in {folder}")
    return found


def _between(samples: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
    return samples[first:last]


def loop(tools: Resources, recordings: Sequence[bytes]) -> list[tuple[Transcript, list[Codes]]]:
    """Decode and resample all, listen to each, transcribe all at once, tokenize each."""
    rates = {tools.transcriber.sample_rate, *(t.sample_rate for t in tools.tokenizers)}
    heard = []
    for data in recordings:
        decoded = audio.decode(data)
        heard.append({rate: audio.resample(decoded.waveform, rate).samples for rate in rates})
    speech = []
    for at in heard:
        samples = at[tools.transcriber.sample_rate]
        listen(partial(_between, samples), len(samples), VOICE)
        speech.append(Speech(samples))
    transcripts = tools.transcriber.transcribe(speech)
    return [
        (transcript, [code for t in tools.tokenizers for code in t.encode([at[t.sample_rate]])])
        for transcript, at in zip(transcripts, heard, strict=True)
    ]


def upload(url: str, recordings: Mapping[str, bytes]) -> None:
    """Put the recordings into the bucket."""
    store = open_store(url, StoreOptions(profile=PROFILE))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.put, recordings.keys(), recordings.values()))


def take_turns(
    recordings: Mapping[str, bytes], options: argparse.Namespace
) -> tuple[list[Cost], list[Cost], float]:
    """Build and loop, in turn. Returns what each cost, and the seconds of audio."""
    builds: list[Cost] = []
    loops: list[Cost] = []
    audio_s = 0.0
    data = list(recordings.values())
    for turn in range(options.repeats):
        job = Job(
            source="s3://src",
            sink=f"s3://dst/turn{turn}",  # an empty one each time
            profile=PROFILE,
            transcriber=options.transcriber,
            model=options.model,
            threads=options.threads,
        )
        tools = open_resources(job)  # the build finds them open
        loop(tools, data[:1])  # the first call of a model is slower than the others

        def one_build(job: Job = job) -> None:
            nonlocal audio_s
            report = build(job)
            if report.rows != len(recordings):
                raise SystemExit(f"{report.rows} rows of {len(recordings)} recordings")
            audio_s = report.audio_s

        def one_loop(tools: Resources = tools) -> None:
            loop(tools, data)

        sides: list[tuple[list[Cost], Callable[[], None]]]
        sides = [(builds, one_build), (loops, one_loop)]
        if turn % 2:
            sides.reverse()
        for costs, action in sides:
            costs.append(measured(action))
    return builds, loops, audio_s


def main() -> None:
    """Measure, and print."""
    parser = command("overhead", __doc__, "--model tiny.en --repeats 5")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder of speech")
    parser.add_argument("--limit", type=int, help="take so many recordings")
    parser.add_argument("--transcriber", default="whisper", help="whisper or fake")
    parser.add_argument("--model", default="tiny.en", help="tiny.en, base, or fake:SECONDS")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 0 is one a core")
    options = parser.parse_args()
    recordings = read_corpus(options.corpus, options.limit)
    print(machine())
    with SeaweedFS() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(server.write_profile(Path(folder), PROFILE))
        upload("s3://src", recordings)
        builds, loops, audio_s = take_turns(recordings, options)
    print(f"{len(recordings)} recordings, {audio_s:.0f} s of audio; medians of {options.repeats}")
    rows = []
    for name, seconds in (
        ("wall time", attrgetter("wall_s")),
        ("processor time", attrgetter("cpu_s")),
    ):
        pairs = [(seconds(b), seconds(o)) for b, o in zip(builds, loops, strict=True)]
        built, looped = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = sorted(b / o for b, o in pairs)
        rows.append(
            (
                name,
                f"{looped:.2f} s",
                f"{built:.2f} s",
                f"{built / looped:.3f}",
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
            )
        )
    print_table(("", "loop in memory", "build", "ratio", "ratios of the turns"), rows)


if __name__ == "__main__":
    main()
