"""``tokens stats``: how a dataset's tokens are distributed, in one pass, part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.dataset.reader import list_parts, read_columns, stored_schema
from speechmill.dataset.schema import described_tokenizers
from speechmill.dataset.state import sink_state
from speechmill.errors import DatasetError, JobError, NotFoundError
from speechmill.storage import Store

__all__ = ["CodebookStats", "ColumnStats", "token_stats"]


@dataclass(frozen=True, slots=True)
class CodebookStats:
    """How the codes of one codebook are distributed.

    ``codes`` were counted, of which ``used`` different ones; ``dead`` of the codebook's entries
    never occur. ``entropy_bits`` is of the codes' frequencies, ``perplexity`` two to its power: so
    many entries, used evenly, say as much.
    """

    index: int
    codes: int
    size: int
    used: int
    dead: int
    usage: float
    entropy_bits: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class FeatureStats:
    """How the values of one feature are distributed, such as a coefficient of MFCC."""

    index: int
    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """The tokens of one column. ``null`` of its rows have none.

    ``tokens_per_s`` and ``bits_per_s`` are of the audio of the rows that have tokens: bits by the
    size of the codebooks, and by the entropy of the codes, each codebook for itself. Features have
    no bits.
    """

    column: str
    name: str
    rows: int
    null: int
    hours: float
    frames: int
    frame_rate: float
    tokens_per_s: float
    bits_per_s: float | None
    entropy_bits_per_s: float | None
    codebooks: tuple[CodebookStats, ...] = ()
    features: tuple[FeatureStats, ...] = ()


def token_stats(
    sink: Store,
    *,
    column: str | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[ColumnStats]:
    """Count a dataset's tokens, column by column.

    Memory holds one part and the counts. ``progress`` hears how many parts of how many are done.

    Raises:
        DatasetError: there is no dataset, or it has no tokens.
        JobError: there is no such column.
        StorageError: the sink cannot be listed or read.
    """
    sink_state(sink)
    schema = stored_schema(sink)
    described = described_tokenizers(schema) if schema is not None else []
    if not described:
        raise DatasetError(f"there are no tokens in {sink.url}; speechmill tokens add makes some")
    names = [one["column"] for one in described]
    if column is not None and column not in names:
        raise JobError(f"{sink.url} has no tokens {column!r}; there are: {', '.join(names)}")
    counts = [_Column(one) for one in described if column in (None, one["column"])]
    parts = list_parts(sink)
    wanted = ["duration_s", *(one.column for one in counts)]
    for done, part in enumerate(parts, 1):
        try:
            table = read_columns(sink, part, wanted)
        except NotFoundError:
            continue
        for one in counts:
            one.add(table)
        progress(done, len(parts))
    return [one.stats() for one in counts]


@dataclass
class _Codebook:
    """Counts of codes, from 0 on."""

    counts: NDArray[np.int64]

    def add(self, codes: NDArray[Any]) -> None:
        counts = np.bincount(codes, minlength=len(self.counts))
        if len(counts) > len(self.counts):
            self.counts = np.pad(self.counts, (0, len(counts) - len(self.counts)))
        self.counts += counts

    def stats(self, index: int, size: int) -> CodebookStats:
        total = int(self.counts.sum())
        shares = self.counts[self.counts > 0] / max(1, total)
        entropy = float(-(shares * np.log2(shares)).sum()) + 0.0
        used = len(shares)
        size = max(size, len(self.counts))
        return CodebookStats(
            index, total, size, used, size - used, used / size, entropy, float(2**entropy)
        )


@dataclass
class _Feature:
    """Count, mean and squared deviations of values, by Chan et al., "Algorithms for computing the
    sample variance" (1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, values: NDArray[Any]) -> None:
        count, mean = len(values), float(values.mean(dtype=np.float64))
        squares = float(np.square(values.astype(np.float64) - mean).sum())
        total, delta = self.count + count, mean - self.mean
        self.squares += squares + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))

    def stats(self, index: int) -> FeatureStats:
        if not self.count:
            return FeatureStats(index, 0.0, 0.0, 0.0, 0.0)
        std = (self.squares / self.count) ** 0.5
        return FeatureStats(index, self.mean, std, self.least, self.most)


@dataclass
class _Column:
    """What is counted of a column."""

    described: dict[str, Any]
    rows: int = 0
    null: int = 0
    audio_s: float = 0.0
    frames: int = 0
    kinds: list[_Codebook] | list[_Feature] = field(default_factory=list)

    @property
    def column(self) -> str:
        name: str = self.described["column"]
        return name

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        if self.column not in table.column_names:  # an older part
            self.null += table.num_rows
            return
        there = pc.is_valid(table[self.column])
        self.audio_s += pc.sum(table["duration_s"].filter(there)).as_py() or 0.0
        arrays = [a for a in tokens_to_arrays(table[self.column]) if a is not None]
        self.null += table.num_rows - len(arrays)
        self.frames += sum(a.shape[1] for a in arrays)
        for index in range(max((len(a) for a in arrays), default=0)):
            values = np.concatenate([a[index] for a in arrays if index < len(a)])
            self._add(index, values)

    def _add(self, index: int, values: NDArray[Any]) -> None:
        size = self.described["codebook_size"]
        while index >= len(self.kinds):
            fresh = _Feature() if size is None else _Codebook(np.zeros(size, np.int64))
            self.kinds.append(fresh)  # type: ignore[arg-type]
        kind = self.kinds[index]
        if isinstance(kind, _Codebook):
            values = values[values >= 0]  # what is below stands for no code
        if len(values):
            kind.add(values)

    def stats(self) -> ColumnStats:
        size = self.described["codebook_size"]
        seconds = self.audio_s or 1.0
        codebooks = tuple(
            k.stats(i, size) for i, k in enumerate(self.kinds) if isinstance(k, _Codebook)
        )
        features = tuple(k.stats(i) for i, k in enumerate(self.kinds) if isinstance(k, _Feature))
        tokens = self.frames if features else sum(c.codes for c in codebooks)
        bits = sum(c.codes * float(np.log2(c.size)) for c in codebooks) / seconds
        entropy_bits = sum(c.codes * c.entropy_bits for c in codebooks) / seconds
        return ColumnStats(
            column=self.column,
            name=self.described["name"],
            rows=self.rows,
            null=self.null,
            hours=self.audio_s / 3600,
            frames=self.frames,
            frame_rate=self.described["frame_rate"],
            tokens_per_s=tokens / seconds,
            bits_per_s=None if size is None else bits,
            entropy_bits_per_s=None if size is None else entropy_bits,
            codebooks=codebooks,
            features=features,
        )
