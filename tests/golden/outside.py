"""What users and sinks see of Speechmill, as plain values that can be written down and compared.

``python -m tests.golden.outside`` writes them anew, into files beside this one: to be done on
purpose only, with the difference read line by line.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

import speechmill
from speechmill.dataset.schema import to_parquet

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CORPUS = ROOT / "examples" / "corpus"
TIMES = ("fetch_s", "decode_s", "transcribe_s", "tokenize_s")
MODIFIED_NS = 1_700_000_000_123_456_000

COMMANDS = [
    (),
    ("build",),
    ("plan",),
    ("show",),
    ("failures",),
    ("export",),
    ("export", "parquet"),
    ("doctor",),
    ("measure",),
    ("decode",),
    ("repartition",),
    ("tokens",),
    ("tokens", "add"),
    ("tokens", "stats"),
    ("tokens", "verify"),
    ("units",),
    ("units", "fit"),
    ("enqueue",),
    ("work",),
    ("dead-letters",),
    ("dead-letters", "list"),
    ("dead-letters", "retry"),
]

DOCUMENTED = {
    "speechmill.dataset.arrays": ["tokens_to_arrays"],
    "speechmill.flattening": ["deinterleave", "delay", "interleave", "undelay"],
    "speechmill.job": ["Job"],
    "speechmill.queues.options": ["WorkOptions"],
    "speechmill.queues.run": ["work"],
    "speechmill.repartition": ["repartition"],
    "speechmill.rewriting": ["Place", "in_threads"],
    "speechmill.runners.dask": ["DaskRunner"],
    "speechmill.runners.dask_rewriting": ["on_dask"],
    "speechmill.runners.ray": ["RayRunner"],
    "speechmill.runners.spark": ["SparkRunner"],
    "speechmill.tokenizers.snac": ["from_levels", "to_levels"],
    "speechmill.tokenizers.units": ["expand_runs"],
    "speechmill.torch": ["BucketBatchSampler", "SpeechDataset", "SpeechStream", "collate"],
}
"""Names that the docs import, by module."""

JOBS: dict[str, dict[str, Any]] = {
    "fakes": {"transcriber": "fake", "tokenizer": "fake"},
    "mfcc": {"transcriber": "fake"},
    "both": {"transcriber": "fake", "tokenizer": ("fake", "mfcc"), "round_trip": True},
    "none": {"transcriber": "fake", "tokenizer": "none", "partition_by": "none"},
    "hash": {"transcriber": "fake", "tokenizer": "fake", "partition_by": "hash:3"},
    "path": {"transcriber": "fake", "tokenizer": "fake", "folder": "path", "language": "de"},
    "whole": {
        "transcriber": "fake",
        "tokenizer": "fake",
        "segment": "none",
        "keep_damaged": True,
    },
    "cut": {"transcriber": "fake", "tokenizer": "fake", "segment": "vad"},
    "13 coefficients": {"transcriber": "fake", "tokenizer_option": {"mfcc": {"n_mfcc": 13}}},
}
"""Builds of the small corpus."""

MODELS: dict[str, dict[str, Any]] = {
    "base": {"language": "en"},
    "words": {"language": "en", "words": True, "beam_size": 1},
    "full": {"window": "full", "beam_size": 1},
    "odd": {
        "beam_size": 1,
        "temperature": (0.0,),
        "initial_prompt": "Tea.",
        "hotwords": "school",
        "suppress_numerals": True,
        "languages": ("en", "de"),
    },
}
"""Builds of two clips of the demo corpus with a model."""


def make_source(folder: Path) -> Path:
    """A small corpus, the same wherever it is made: formats, silence, damage, length, odd names."""

    def sound(seed: int, seconds: float, rate: int = 16_000, channels: int = 1) -> Any:
        rng = np.random.default_rng(seed)
        noise = rng.integers(-9_000, 9_000, (round(seconds * rate), channels))
        return noise.astype(np.int16)

    def put(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def encoded(samples: Any, rate: int, kind: str) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format=kind)
        return buffer.getvalue()

    put("p1/a.wav", encoded(sound(1, 0.5), 16_000, "WAV"))
    put("p1/b.flac", encoded(sound(2, 0.7, 22_050, 2), 22_050, "FLAC"))
    put("p1/silence.wav", encoded(0 * sound(0, 0.4), 16_000, "WAV"))
    put("p1/half.wav", encoded(sound(3, 0.5), 16_000, "WAV")[:4_000])
    put("p2/text.flac", b"This is no audio at all.")
    put("p2/c.wav", encoded(sound(4, 0.3, 8_000), 8_000, "WAV"))
    put("deep/225/d.wav", encoded(sound(5, 0.2), 16_000, "WAV"))
    put("Zoë = 50%/e.wav", encoded(sound(6, 0.2), 16_000, "WAV"))
    put("root.wav", encoded(sound(7, 0.2), 16_000, "WAV"))
    put("p3/long.wav", encoded(sound(8, 33.0, 8_000), 8_000, "WAV"))
    put("p3/notes.txt", b"Not a recording.")
    return _dated(folder)


def make_speech(folder: Path) -> Path:
    """Two clips of the demo corpus."""
    for name in ("p901/p901_001.flac", "p902/p902_001.flac"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(CORPUS / name, folder / name)
    return _dated(folder)


def _dated(folder: Path) -> Path:
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            modified = MODIFIED_NS + number * 1_000_000_000
            os.utime(path, ns=(modified, modified))
    return folder


def sink_state(sink: Path) -> dict[str, Any]:
    """A sink's files: rows and failures without what they cost, and what is agreed on."""
    state: dict[str, Any] = {}
    for path in sorted(sink.rglob("*")):
        key = path.relative_to(sink).as_posix()
        if path.suffix == ".parquet":
            state[key] = part_state(path.read_bytes())
        elif key in ("_speechmill/source.json", "_speechmill/layout.json"):
            kept = json.loads(path.read_bytes())
            state[key] = {k: v for k, v in kept.items() if k not in ("source", "created")}
        elif key.startswith("_speechmill/recipes/"):
            state[key] = json.loads(path.read_bytes())["choices"]
    return state


def part_state(data: bytes) -> dict[str, Any]:
    """The rows of a part, and a digest of its bytes with the columns of time at nothing."""
    table = pq.read_table(io.BytesIO(data))
    for name in (*TIMES, "failed_at"):
        if name in table.column_names:
            index = table.column_names.index(name)
            field = table.schema.field(name)
            zeros = pa.array([0] * table.num_rows).cast(pa.int64()).cast(field.type)
            table = table.set_column(index, field, zeros)
    of_tokens = [n for n in table.column_names if n == "token" or n.startswith("token_")]
    rows = table.drop_columns(of_tokens)
    tokens = {
        name: hashlib.sha256(json.dumps(table[name].to_pylist()).encode()).hexdigest()
        for name in of_tokens
    }
    return {
        "schema": [f"{f.name}: {f.type}" for f in table.schema],
        "metadata": json.loads(table.schema.metadata[b"speechmill"]),
        "rows": json.loads(json.dumps(rows.to_pylist(), default=str)),
        "tokens": tokens,
        "bytes": hashlib.sha256(to_parquet(table)).hexdigest(),
    }


def builds(of: Mapping[str, Mapping[str, Any]], source: Path, folder: Path) -> dict[str, Any]:
    """What each of these jobs makes of a source."""
    made = {}
    for name, options in of.items():
        sink = folder / name
        report = speechmill.build(
            speechmill.Job(source=str(source), sink=str(sink), threads=1, **options)
        )
        made[name] = {"rows": report.rows, "failed": report.failed, "sink": sink_state(sink)}
    return made


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    quiet = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "speechmill", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def helps(cwd: Path) -> dict[str, str]:
    """What ``--help`` of every command says."""
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda command: run(*command, "--help", cwd=cwd).stdout, COMMANDS)
        return {" ".join(c) or "speechmill": text for c, text in zip(COMMANDS, said, strict=True)}


def exit_codes(folder: Path) -> dict[str, int]:
    """How commands end, well and badly; relative to a folder that holds ``source``."""
    (folder / "good").mkdir()
    for path in ("a.wav", "b.flac"):
        shutil.copy2(folder / "source" / "p1" / path, folder / "good" / path)
    fakes = "--transcriber fake --tokenizer fake"
    lines = [
        f"plan good out {fakes}",
        f"build good out {fakes}",
        f"build good out {fakes}",
        f"build source some {fakes}",
        "show out",
        "failures some",
        "export parquet out plain",
        "repartition out by --by language",
        "tokens add out --tokenizer mfcc",
        "tokens add out --tokenizer nothing",
        "tokens stats out",
        "tokens stats out --column none",
        "tokens verify out --rows 2",
        "decode out wavs --column token",
        "units fit good --features nothing",
        f"build good out {fakes} --language de",
        f"build nowhere none {fakes}",
        f"build good other {fakes} --beam-size 0",
        f"build good other {fakes} --no-such-flag",
        f"build source out {fakes}",
        "build",
        "show nowhere",
        "failures nowhere",
        "work memory:// out",
        "enqueue good kafka://127.0.0.1:1/q --sink out --language de",
        "dead-letters list nonsense",
        "doctor good out",
        "nonsense",
        "",
    ]
    return {
        f"{number:02} {line}": run(*line.split(), cwd=folder).returncode
        for number, line in enumerate(lines)
    }


def outside() -> dict[str, Callable[[Path], Any]]:
    """What is written down, by the name of its file: each is made in a new folder."""

    def small(folder: Path) -> Any:
        return builds(JOBS, make_source(folder / "source"), folder / "sinks")

    def speech(folder: Path) -> Any:
        return builds(MODELS, make_speech(folder / "source"), folder / "sinks")

    def codes(folder: Path) -> Any:
        make_source(folder / "source")
        return exit_codes(folder)

    return {
        "names": lambda _: {"speechmill": sorted(speechmill.__all__), **DOCUMENTED},
        "helps": helps,
        "exit_codes": codes,
        "builds": small,
        "speech": speech,
    }


def write(name: str, value: Any) -> None:
    """Keep one of them."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Write down the named ones, or all."""
    for name, make in outside().items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                write(name, make(Path(folder)))


if __name__ == "__main__":
    main()
