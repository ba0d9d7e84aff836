"""What it costs that recordings are decoded in processes of their own: a build with and without.

The same build, folder to folder, in turns: once as it is, once with the decoder called in the
process itself. Processor time is this process's and its decoders'. The model is loaded, and the
decoders are started, before the clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.figures import command, machine, print_table
from speechmill import Job, audio, build

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
SIDES = {"in processes of their own": audio.decode_isolated, "in this process": audio.decode}


def processor_s() -> float:
    """Processor time of this process and its decoders so far, in seconds."""
    me = psutil.Process()
    decoders = [p for p in me.children() if "decoder_process" in " ".join(p.cmdline())]
    times = [p.cpu_times() for p in (me, *decoders)]
    return float(sum(one.user + one.system for one in times))


def turn(job: Job) -> tuple[float, float]:
    """Build; seconds by the clock and of the processor."""
    wall_s, cpu_s = time.perf_counter(), processor_s()
    report = build(job)
    if not report.rows or report.failed:
        raise SystemExit(f"{report.rows} rows, {report.failed} failed")
    return time.perf_counter() - wall_s, processor_s() - cpu_s


def main() -> None:
    """Measure, and print."""
    parser = command("isolation", __doc__, "--model base --repeats 7")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder of speech")
    parser.add_argument("--transcriber", default="whisper", help="whisper or fake")
    parser.add_argument("--model", default="base", help="tiny.en, base, or fake:SECONDS")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    options: argparse.Namespace = parser.parse_args()
    print(machine())
    costs: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repeats + 1):
            for side in list(SIDES)[:: 1 if number % 2 else -1]:
                audio.decode_isolated = SIDES[side]
                job = Job(
                    source=str(options.corpus),
                    sink=f"{folder}/{number}-{len(side)}",
                    transcriber=options.transcriber,
                    model=options.model,
                )
                if number:  # the first turn loads and starts what the others find
                    costs[side].append(turn(job))
                else:
                    turn(job)
    rows = []
    for index, name in enumerate(("wall time", "processor time")):
        there, here = ([cost[index] for cost in costs[side]] for side in SIDES)
        ratios = sorted(a / b for a, b in zip(there, here, strict=True))
        of_sides = [f"{statistics.median(side):.2f} s" for side in (here, there)]
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        rows.append((name, *of_sides, f"{statistics.median(ratios):.3f}", spread))
    print_table(("", *reversed(SIDES), "ratio", "ratios of the turns"), rows)


if __name__ == "__main__":
    main()
