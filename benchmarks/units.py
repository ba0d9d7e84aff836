"""What units of Whisper's encoder cost: builds of the same recordings without tokens, with units
out of what transcription has heard, and with units that hear all of it again, in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np

import speechmill
from benchmarks.figures import command, machine, print_table
from speechmill import Job
from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.tokenizers.features import FeatureOptions
from speechmill.tokenizers.units import UnitsTokenizer
from speechmill.units.fit import FitOptions, fit_units

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
NONE, SHARED, AGAIN = "no tokens", "units, heard once", "units, heard again"


def built(job: Job, *, shared: bool) -> tuple[float, float, float]:
    """Build, and return the seconds of the wall and of the processor, and the audio's."""
    apart = mock.patch.object(UnitsTokenizer, "shares", return_value=False)
    started, used = time.perf_counter(), time.process_time()
    with nullcontext() if shared else apart:
        report = speechmill.build(job)
    if report.failed:
        raise SystemExit(f"{report.failed} recordings failed")
    return time.perf_counter() - started, time.process_time() - used, report.audio_s


def codes_of(sink: Path) -> dict[str, bytes]:
    """The codes of each recording of a dataset."""
    table = speechmill.open_dataset(str(sink)).to_table(columns=["file_name", "token"])
    arrays = tokens_to_arrays(table["token"])
    return {
        name: np.ascontiguousarray(codes).tobytes()
        for name, codes in zip(table["file_name"].to_pylist(), arrays, strict=True)
    }


def main() -> None:
    """Measure, and print."""
    parser = command("units", __doc__, "--model base --repeats 5")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder of recordings")
    parser.add_argument("--include", action="append", default=[], help="as of speechmill build")
    parser.add_argument("--model", default="base")
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    options = parser.parse_args()
    print(machine())
    taken: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        units = Path(folder) / "units.safetensors"
        fit = fit_units(
            FitOptions(
                source=str(options.corpus),
                include=tuple(options.include),
                out=units,
                features=FeatureOptions(kind="whisper", model=options.model),
                clusters=options.clusters,
                hours=0.5,
            )
        )
        for turn in range(options.repeats + 1):
            for how in (NONE, SHARED, AGAIN):
                sink = Path(folder) / f"{how} {turn}"
                job = Job(
                    source=str(options.corpus),
                    sink=str(sink),
                    include=tuple(options.include),
                    model=options.model,
                    language="en",
                    tokenizer=("none" if how == NONE else f"units:{units}",),
                )
                wall_s, processor_s, audio_s = built(job, shared=how != AGAIN)
                if turn:  # the first one loads the models
                    taken[how].append((wall_s, processor_s))
            one, other = (codes_of(Path(folder) / f"{how} {turn}") for how in (SHARED, AGAIN))
            if one != other:
                raise SystemExit("units that were heard once differ from those heard again")
    print(
        f"{len(one)} recordings, {audio_s:,.0f} s; Whisper {options.model}; {options.clusters} "
        f"clusters of {fit.trained.frames:,} frames; medians of {options.repeats}; ratios turn by "
        "turn; all codes equal"
    )
    rows = []
    for how, seconds in taken.items():
        walls, processors = zip(*seconds, strict=True)
        ratios = [
            statistics.median(a[i] / b[i] for a, b in zip(seconds, taken[NONE], strict=True))
            for i in (0, 1)
        ]
        rows.append(
            (
                how,
                f"{statistics.median(walls):.1f} s",
                f"{ratios[0]:.3f}",
                f"{statistics.median(processors):.1f} s",
                f"{ratios[1]:.3f}",
            )
        )
    print_table(("a build with", "wall", "ratio", "processor", "ratio"), rows)


if __name__ == "__main__":
    main()
