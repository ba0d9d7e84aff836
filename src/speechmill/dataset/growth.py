"""Growth of folders beyond their parts: more parts for new recordings, while others write.

Rows never move: a reader would meet them twice, or not at all. Instead the parts of a folder are
sealed, one compare-and-swap each: from then on they accept changes of the recordings that they
hold, and no others. Only when all are sealed does the layout state the new number of parts. So a
writer that knows it can look into the sealed parts, which no recording can be added to, and puts a
recording that is in none of them into one of the new parts. A writer that does not know it yet is
refused by the sealed part, reads the layout again, and looks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.commit import Version, read_part, remove, versions
from speechmill.dataset.layout import (
    Layout,
    change_layout,
    data_key,
    directory,
    failures_key,
    part_of,
    read_layout,
)
from speechmill.dataset.reader import read_columns, scan
from speechmill.dataset.schema import (
    FAILURE_SCHEMA,
    IDENTITY_COLUMNS,
    is_sealed,
    sort_rows,
    to_parquet,
    with_seal,
)
from speechmill.dataset.swap import stored, update
from speechmill.errors import NotFoundError
from speechmill.records import Part
from speechmill.storage import Store

__all__ = ["OUTGROWN", "grow", "outgrown", "place", "place_anew", "read_versions"]

OUTGROWN = 3.0  # times the intended seconds of a part: its folder then gets more parts
GROWTH_FACTOR = 4  # times the parts, at each step: few steps, and parts of similar size


def place(
    layout: Layout,
    folder_name: str,
    file_names: Collection[str],
    known: Mapping[Part, Mapping[str, Version]],
) -> dict[str, Part]:
    """Find the part of each recording. ``known``: the recordings of the folder's earlier parts."""
    placed = {}
    for name in file_names:
        earlier = layout.earlier_parts(folder_name, name)
        holder = next((part for part in earlier if name in known.get(part, ())), None)
        placed[name] = holder or layout.part(folder_name, name)
    return placed


def grow(store: Store, folder_name: str, count: int, schema: pa.Schema) -> Layout:
    """Give a folder of ``count`` parts more parts. Returns the layout after it.

    Where the folder has another number of parts by now, this only completes a growth that another
    process began. ``schema`` is for parts that nothing was written to yet.

    Raises:
        StorageError: the sink cannot be read or written.
    """

    def begin(layout: Layout) -> Layout:
        if layout.folders.get(folder_name) != count or folder_name in layout.growing:
            return layout
        return replace(layout, growing={**layout.growing, folder_name: GROWTH_FACTOR * count})

    layout = change_layout(store, begin)
    if folder_name not in layout.growing:
        return layout
    old, new = layout.folders[folder_name], layout.growing[folder_name]
    for index in range(old):
        _seal(store, Part(folder_name, index, old), schema)
    for index in range(old):
        _move_failures(store, Part(folder_name, index, old), new)

    def end(layout: Layout) -> Layout:
        if layout.growing.get(folder_name) != new:
            return layout
        return Layout(
            {**layout.folders, folder_name: new},
            {**layout.earlier, folder_name: (*layout.earlier.get(folder_name, ()), old)},
            {name: n for name, n in layout.growing.items() if name != folder_name},
        )

    return change_layout(store, end)


def place_anew(
    store: Store, part: Part, file_names: Collection[str], schema: pa.Schema
) -> dict[str, Part]:
    """Find the parts of recordings that a sealed part has refused. See ``grow``."""
    layout = grow(store, part.folder_name, part.count, schema)
    earlier = {p for name in file_names for p in layout.earlier_parts(part.folder_name, name)}
    known = {p: read_versions(store, p) for p in earlier}
    return place(layout, part.folder_name, file_names, known)


def read_versions(store: Store, part: Part) -> Mapping[str, Version]:
    """Read the version of each recording of a part; empty where there is no such part."""
    try:
        return versions(read_columns(store, store.head(data_key(part)), IDENTITY_COLUMNS))
    except NotFoundError:
        return {}


def outgrown(store: Store, full_s: float) -> dict[str, int]:
    """Find the folders whose parts hold more than ``OUTGROWN`` times ``full_s`` seconds of audio on
    average, with the number of their parts.

    Raises:
        StorageError: the sink cannot be read.
    """
    layout = read_layout(store)
    names = {directory(name): name for name in layout.folders}
    held: defaultdict[str, float] = defaultdict(float)
    for part, table in scan(store, ["duration_s"]):
        name = names.get(part.key.split("/")[1], "")
        if name and part_of(part.key, name).count == layout.folders[name]:
            held[name] += float(pc.sum(table["duration_s"]).as_py() or 0.0)
    return {
        name: layout.folders[name]
        for name, audio_s in held.items()
        if audio_s > OUTGROWN * full_s * layout.folders[name]
    }


def _seal(store: Store, part: Part, schema: pa.Schema) -> None:
    key = data_key(part)

    def change(data: bytes | None) -> bytes | None:
        table = read_part(key, data) if data is not None else schema.empty_table()
        if is_sealed(table.schema):
            return None
        return to_parquet(table.replace_schema_metadata(with_seal(table.schema).metadata))

    update(store, key, change)


def _move_failures(store: Store, part: Part, count: int) -> None:
    """Move the failures of recordings without a row here to where their rows will be."""
    key = failures_key(part)
    if (data := stored(store, key)) is None:
        return
    table = read_part(key, data)
    rows = versions(read_part(data_key(part), store.get(data_key(part)).data))
    groups: defaultdict[Part, list[int]] = defaultdict(list)
    for i, name in enumerate(table["file_name"].to_pylist()):
        if name not in rows:
            groups[Part.of(part.folder_name, name, count)].append(i)
    moved: dict[str, Version] = {}
    for target, indices in groups.items():
        some = table.take(indices)
        _merge_failures(store, failures_key(target), some)
        moved |= versions(some)
    if moved:
        remove(store, key, lambda name, version: moved.get(name) == version)


def _merge_failures(store: Store, key: str, table: pa.Table) -> None:
    """Add failures of recordings that have none there yet."""

    def change(data: bytes | None) -> bytes | None:
        old = read_part(key, data) if data is not None else FAILURE_SCHEMA.empty_table()
        there = set(old["file_name"].to_pylist())
        new = [i for i, name in enumerate(table["file_name"].to_pylist()) if name not in there]
        return to_parquet(sort_rows(pa.concat_tables([old, table.take(new)]))) if new else None

    update(store, key, change)
