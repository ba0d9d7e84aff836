"""Publishing a sink's rows in other layouts."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import pyarrow as pa

from speechmill.dataset.commit import read_part
from speechmill.dataset.conform import conform
from speechmill.dataset.layout import DATA, OWN_PREFIXES, directory, path_component, read_layout
from speechmill.dataset.reader import list_parts, stored_schema
from speechmill.dataset.schema import parquet_writer
from speechmill.dataset.state import read_state
from speechmill.errors import DatasetError, JobError
from speechmill.storage import Object, Store, inside
from speechmill.storage.lookalikes import check_distinct

__all__ = ["Exported", "export_parquet"]


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written."""

    key: str
    rows: int


def export_parquet(store: Store, out: Store, template: str) -> Iterator[Exported]:
    """Write the rows as one Parquet file for each path that ``template`` gives.

    ``{folder_name}`` stands for the folder's name, percent-encoded where it is no plain path
    component. Without it all rows come into one file. Files that are there are replaced.

    Raises:
        JobError: the template has other placeholders, is no relative path, or leads into the
            sink's own files, or two of the files would be one there.
        DatasetError: the sink has no rows, or a part cannot be read.
        StorageError: a store cannot be read or written.
    """
    _check(template)
    state = read_state(store) or {}
    if "{folder_name}" in template and state.get("partition_by", "folder") != "folder":
        raise JobError(
            f"a part of {store.url} holds rows of many folders (--partition-by "
            f"{state['partition_by']}): write them by folder with speechmill repartition "
            "SINK OUT --by folder_name, or take a template without {folder_name}"
        )
    names = {directory(name): name for name in read_layout(store).folders}
    files: defaultdict[str, list[Object]] = defaultdict(list)
    for part in list_parts(store):
        folder = part.key.removeprefix(f"{DATA}/").partition("/")[0]
        name = names.get(folder, folder.removeprefix("folder="))
        files[template.format(folder_name=path_component(name))].append(part)
    schema = stored_schema(store)
    if schema is None:
        raise DatasetError(f"there are no rows in {store.url} to export")
    for key in files:
        below = inside(store.url, f"{out.url}/{key}")
        if below is not None and below.partition("/")[0] in OWN_PREFIXES:
            raise JobError(f"{key!r} below {out.url} lies among the dataset's own files")
    check_distinct(out, files, "export to a bucket, or to a disk that tells them apart")
    for key, parts in files.items():
        if rows := _write(store, parts, schema, out, key):
            yield Exported(key, rows)


def _check(template: str) -> None:
    try:
        parsed = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise JobError(f"the template {template!r} is malformed: {error}") from None
    unknown = {name for _, name, spec, how in parsed if name != "folder_name" or spec or how}
    if unknown:
        raise JobError(
            f"the template {template!r} has placeholders that are not known, or not plain "
            f"({', '.join(sorted(map(str, unknown)))}); there is {{folder_name}}"
        )
    components = template.split("/")
    if not template.endswith(".parquet") or {"", ".", ".."} & set(components):
        raise JobError(
            f"the template {template!r} must be a relative path that ends in .parquet, "
            "such as {folder_name}/data.parquet"
        )


def _write(store: Store, parts: Sequence[Object], schema: pa.Schema, out: Store, key: str) -> int:
    """Write parts one after another into one file; no more than one of them is held."""
    rows = 0
    with tempfile.TemporaryDirectory(prefix="speechmill-") as folder:
        path = Path(folder) / "data.parquet"
        with parquet_writer(path, schema) as writer:
            for part in parts:
                table = read_part(part.key, store.get(part.key).data)
                if table.num_rows:  # not pruned
                    writer.write_table(conform(table, schema, strictly=part.key))
                    rows += table.num_rows
        if rows:
            out.put_file(key, path)
    return rows
