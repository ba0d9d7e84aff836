"""``decode``: the sound of a dataset's codes as WAV files."""

from __future__ import annotations

import re
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from speechmill.ahead import together
from speechmill.dataset.arrays import tokens_to_arrays
from speechmill.dataset.conform import conform
from speechmill.dataset.layout import OWN_PREFIXES
from speechmill.dataset.native import matching
from speechmill.dataset.reader import read_columns, scan
from speechmill.dataset.state import sink_state
from speechmill.dataset.where import where_expression
from speechmill.errors import (
    DatasetError,
    JobError,
    ModelError,
    NotFoundError,
    SpeechmillError,
    UnsupportedError,
)
from speechmill.pipeline.isolate import Breaker, all_or_each
from speechmill.pipeline.selection import extension_of
from speechmill.records import Codes, number_of
from speechmill.storage import Object, Store, inside
from speechmill.storage.lookalikes import alike, folded, tells_apart
from speechmill.tokenizers.base import Codec
from speechmill.tokens.column import column_of
from speechmill.tokens.decode import can_decode, codec_of, trimmed

__all__ = ["DecodeObserver", "DecodeReport", "decode_dataset"]

CALL_S: Final = 120.0  # audio that the codec is given in one call
CALL_ROWS: Final = 32
WRITERS: Final = 8
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
PCM: Final = 32_767
"""What 1.0 is in 16 bits."""


@dataclass
class DecodeReport:
    """What ``decode_dataset`` did: of the ``rows`` that were chosen, so many were ``written``, were
    there already (``existing``) or have no tokens (``null``). ``failed`` says why, by path."""

    out: str
    column: str
    rows: int = 0
    written: int = 0
    existing: int = 0
    null: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    audio_s: float = 0.0
    wall_s: float = 0.0
    stopped: bool = False

    @property
    def done(self) -> int:
        """Rows that need no more work."""
        return self.written + self.existing + self.null + len(self.failed)

    @property
    def complete(self) -> bool:
        """Whether every row that has tokens has its file."""
        return not (self.failed or self.stopped)


class DecodeObserver:
    """Who watches a decoding. Called from one thread."""

    def planned(self, rows: int, audio_s: float) -> None:
        """So much is to be decoded."""

    def progress(self, report: DecodeReport) -> None:
        """So much is done. Called often."""


def decode_dataset(
    sink: Store,
    out: Store,
    *,
    column: str | None = None,
    where: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    model: str | None = None,
    device: str = "auto",
    observer: DecodeObserver | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> DecodeReport:
    """Write the sound of a dataset's codes below ``out``, a WAV file a row: 16 bits, mono, at the
    codec's rate, as long as the row.

    A file is called as its recording, with the extension .wav; a row of several has its span in
    the name, too: ``p225/long_12.340-15.870.wav``. Of two recordings that differ in the extension
    only, each keeps it: ``p225/one.flac.wav``. Files that are there are left as they are, unless
    ``overwrite``. ``limit``: at most so many of the rows that ``where`` chooses, in order.

    Raises:
        DatasetError: there is no dataset, no tokens, or no row that ``where`` chooses.
        JobError: ``where`` makes no sense; there are several columns; these cannot be turned back
            into sound; ``out`` lies in the dataset or in its source, or takes two names for one.
        ModelError: the weights cannot be found, or are not those that made the codes.
        StorageError: a store cannot be read or written.
    """
    started = time.monotonic()
    state = sink_state(sink)
    _check_out(sink, out, state["source"])
    schema, described = column_of(sink, column, can_decode)
    rows = _Rows(sink, schema, described["column"], where)
    codec = codec_of(described, model, device)
    rows.choose(limit)
    if not rows.count:
        raise DatasetError(f"no row of {sink.url} is chosen by {where!r}")
    rows.check_distinct(out)
    report = DecodeReport(out.url, described["column"], rows.count)
    observer = observer or DecodeObserver()
    observer.planned(rows.count, rows.audio_s)
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as pool:
        writing = _Writing(codec, out, report, pool, overwrite)
        for batch in rows.batches():
            if stop():
                report.stopped = True
                break
            writing.write(batch)
            observer.progress(report)
    report.wall_s = time.monotonic() - started
    return report


def _check_out(sink: Store, out: Store, source_url: str) -> None:
    below = inside(sink.url, out.url)
    if below is not None and below.partition("/")[0] in ("", *OWN_PREFIXES):
        raise JobError(f"{out.url} is where the dataset itself lies; choose another folder")
    if inside(source_url, out.url) is not None:
        raise JobError(
            f"{out.url} lies in the dataset's source, {source_url}: the next build would take the "
            "files for recordings; choose another folder"
        )


_Signal = tuple[str, int | None]
"""A recording by its file name, and which of its channels."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that is to be decoded, and where to."""

    key: str
    codes: NDArray[Any] | None
    duration_s: float


class _Rows:
    """The rows of a sink that a condition chooses, part by part."""

    def __init__(self, sink: Store, schema: pa.Schema, column: str, where: str | None) -> None:
        self._sink, self._schema, self._column = sink, schema, column
        self._filter = None if where is None else where_expression(where, schema)
        needed = ("file_name", "start_s", "end_s", "duration_s", "channel")
        self._columns = [
            name for name in schema.names if name in needed or (where and name in where)
        ]
        self._clashing: frozenset[int] = frozenset()
        self._alike: frozenset[int] = frozenset()
        self._parts: list[Object] = []
        self.count, self.audio_s = 0, 0.0

    def choose(self, limit: int | None) -> None:
        """Find and count the rows, and the names that two recordings would share."""
        stems: list[NDArray[np.uint64]] = []
        chosen: list[NDArray[np.uint64]] = []  # [num_names, 2]: each stem's number, without case
        for part, table in scan(self._sink, self._columns):
            names = set(table["file_name"].to_pylist())
            stems.append(np.array([number_of(_stem(name)) for name in names], np.uint64))
            some = self._filtered(conform(table, self._wanted(self._columns)))
            if limit is not None:
                some = some.slice(0, limit - self.count)
            if some.num_rows:
                self._parts.append(part)
                some_stems = {_stem(name) for name in some["file_name"].to_pylist()}
                numbers = [(number_of(stem), number_of(folded(stem))) for stem in some_stems]
                chosen.append(np.array(numbers, np.uint64))
                self.count += some.num_rows
                self.audio_s += pc.sum(some["duration_s"]).as_py()
        values, counts = np.unique(
            np.concatenate(stems or [np.empty(0, np.uint64)]), return_counts=True
        )
        self._clashing = frozenset(values[counts > 1].tolist())
        pairs = np.unique(np.concatenate([*chosen, np.empty((0, 2), np.uint64)]), axis=0)
        values, counts = np.unique(pairs[:, 1], return_counts=True)
        self._alike = frozenset(values[counts > 1].tolist())

    def check_distinct(self, out: Store) -> None:
        """Make sure that ``out`` does not take two of the names for one.

        Raises:
            JobError: it does.
        """
        if not self._alike or tells_apart(out):
            return
        found: dict[str, str] = {}
        for _, table in scan(self._sink, ["file_name"]):
            for name in table["file_name"].to_pylist():
                stem = _stem(name)
                same = folded(stem)
                if number_of(same) in self._alike and found.setdefault(same, stem) != stem:
                    advice = "choose fewer with --where, or another place"
                    raise JobError(alike(out, found[same], stem, advice))

    def batches(self) -> Iterator[list[_Row]]:
        """The rows with their codes, together as the codec is given them."""
        left = self.count
        columns = list(dict.fromkeys([*self._columns, self._column]))
        for part in self._parts:
            try:
                table = conform(read_columns(self._sink, part, columns), self._wanted(columns))
            except NotFoundError:
                continue
            counts = Counter(zip(table["file_name"].to_pylist(), _channels(table), strict=True))
            table = self._filtered(table).slice(0, left)
            left -= table.num_rows
            rows = self._rows(table, counts)
            yield from together(rows, lambda row: row.duration_s, CALL_S, CALL_ROWS)

    def _rows(self, table: pa.Table, counts: Mapping[_Signal, int]) -> Iterator[_Row]:
        told = (table[c].to_pylist() for c in ("file_name", "start_s", "end_s", "duration_s"))
        codes = tokens_to_arrays(table[self._column])
        for (name, start_s, end_s, duration_s), channel, values in zip(
            zip(*told, strict=True), _channels(table), codes, strict=True
        ):
            stem = _stem(name)
            path = name if number_of(stem) in self._clashing else stem
            of = "" if channel is None else f"_channel{channel}"
            span = f"_{start_s:.3f}-{end_s:.3f}" if counts[name, channel] > 1 else ""
            yield _Row(_harmless(f"{path}{of}{span}.wav"), values, duration_s)

    def _wanted(self, columns: list[str]) -> pa.Schema:
        return pa.schema([self._schema.field(name) for name in columns])

    def _filtered(self, table: pa.Table) -> pa.Table:
        return table if self._filter is None else matching(table, self._filter)


def _channels(table: pa.Table) -> list[int | None]:
    """The channel that each row is of; older datasets have none."""
    if "channel" not in table.column_names:
        return [None] * table.num_rows
    channels: list[int | None] = table["channel"].to_pylist()
    return channels


def _stem(file_name: str) -> str:
    """The path without its extension."""
    extension = extension_of(file_name)
    return file_name[: -len(extension) - 1] if extension else file_name


def _harmless(path: str) -> str:
    """The path as one that stays below its folder: components that are empty or lead elsewhere, and
    characters that no name should have, are percent-encoded."""
    return "/".join(map(_component, path.split("/")))


def _component(name: str) -> str:
    if not name.strip("."):
        return name.replace(".", "%2E") or "%2F"
    return CONTROL.sub(lambda found: quote(found[0]), name)


@dataclass
class _Writing:
    """Decodes rows and writes them, several at a time."""

    codec: Codec
    out: Store
    report: DecodeReport
    pool: ThreadPoolExecutor
    overwrite: bool
    breaker: Breaker = field(default_factory=Breaker)

    def write(self, batch: list[_Row]) -> None:
        """Decode and write these rows, but for those that are there already."""
        report = self.report
        rows = [row for row in batch if row.codes is not None]
        report.null += len(batch) - len(rows)
        if not self.overwrite:
            there = list(self.pool.map(self._is_there, [row.key for row in rows]))
            report.existing += sum(there)
            rows = [row for row, is_there in zip(rows, there, strict=True) if not is_there]
        decoded = self._decoded(rows)
        errors = self.pool.map(self._put, [row.key for row, _ in decoded], [w for _, w in decoded])
        for (row, _), error in zip(decoded, errors, strict=True):
            if error is not None:
                report.failed[row.key] = error
                continue
            report.written += 1
            report.audio_s += row.duration_s

    def _is_there(self, key: str) -> bool:
        try:
            self.out.head(key)
        except NotFoundError:
            return False
        return True

    def _decoded(self, rows: list[_Row]) -> list[tuple[_Row, NDArray[np.float32]]]:
        """The waveforms of those rows that can be decoded."""
        decoded: list[tuple[_Row, NDArray[np.float32]]] = []

        def decode(some: Sequence[_Row]) -> None:
            codes = [Codes(cast("NDArray[Any]", row.codes)) for row in some]
            waveforms = self.codec.decode(codes)
            self.breaker.worked()
            rate = self.codec.sample_rate
            decoded.extend(
                (row, trimmed(samples, rate, row.duration_s))
                for row, samples in zip(some, waveforms, strict=True)
            )

        def failed(row: _Row, error: Exception) -> None:
            if not isinstance(error, SpeechmillError):
                raise error
            self.report.failed[row.key] = str(error)
            if isinstance(error, ModelError) and self.breaker.failed():
                raise error

        all_or_each(rows, decode, failed)
        return decoded

    def _put(self, key: str, samples: NDArray[np.float32]) -> str | None:
        """Write one file. Returns what is wrong with its name, if anything is."""
        with tempfile.NamedTemporaryFile(prefix="speechmill-", suffix=".wav") as file:
            _write_wav(Path(file.name), samples, self.codec.sample_rate)
            try:
                self.out.put_file(key, Path(file.name))
            except UnsupportedError as error:
                return str(error)
        return None


def _write_wav(path: Path, samples: NDArray[np.float32], sample_rate: int) -> None:
    """float32 [num_samples] in −1..1 as 16-bit PCM; what is beyond is clipped."""
    pcm = np.round(np.clip(np.nan_to_num(samples), -1.0, 1.0) * PCM).astype("<i2")
    with path.open("wb") as raw, wave.open(raw, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(pcm.tobytes())
