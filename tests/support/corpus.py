"""A small corpus of synthetic recordings, built into a dataset without a model."""

from __future__ import annotations

import io
import itertools
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import speechmill
from speechmill import BuildReport, Job
from speechmill.storage import open_store

__all__ = ["build", "memory", "plan", "rows_of", "samples", "wav", "write"]

_numbers = itertools.count()


def samples(seed: int = 0, seconds: float = 0.2) -> NDArray[np.int16]:
    """A noisy hum, int16 [num_samples], at 16 kHz; each seed has its own."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(16_000 * seconds)) / 16_000
    hum = np.sin(2 * np.pi * (100 + seed % 100) * t) + 0.1 * rng.normal(size=len(t))
    return (8_000 * hum).astype(np.int16)


def wav(seed: int = 0, seconds: float = 0.2, *, silent: bool = False) -> bytes:
    """``samples`` as a mono 16-bit WAV file, or as many zeros."""
    data = samples(seed, seconds)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((data * (not silent)).astype("<i2").tobytes())
    return buffer.getvalue()


def write(root: Path, files: Mapping[str, bytes]) -> str:
    """Write files below a folder. Returns the folder's path."""
    for key, data in files.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root)


def memory(files: Mapping[str, bytes] | None = None) -> str:
    """A new store in memory that holds these files. Returns its URL."""
    url = f"memory://corpus-{next(_numbers)}"
    store = open_store(url)
    for key, data in (files or {}).items():
        store.put(key, data)
    return url


def build(source: str, sink: str, **options: Any) -> BuildReport:
    """Build with the fake transcriber and the fake tokenizer, or as ``options`` say."""
    return speechmill.build(Job(**_with_fakes(source, sink, options)))


def plan(source: str, sink: str, **options: Any) -> speechmill.Plan:
    """What ``build`` would do."""
    return speechmill.plan(Job(**_with_fakes(source, sink, options)))


def _with_fakes(source: str, sink: str, options: Mapping[str, Any]) -> dict[str, Any]:
    fakes = {"transcriber": "fake", "tokenizer": ("fake",)}
    return {"source": source, "sink": sink, **fakes, **options}


def rows_of(sink: str) -> dict[str, dict[str, Any]]:
    """The rows by file name; a recording that has two is an error."""
    rows = speechmill.open_dataset(sink).to_table().to_pylist()
    found = {row["file_name"]: row for row in rows}
    assert len(found) == len(rows), "a recording is there twice"
    return found
