"""The layout of a sink: the parts of folders, and the keys of everything else.

A recording belongs to one part for the life of the sink. How many parts a folder has is chosen
when it is first planned, and kept in ``layout.json``. A folder that grows beyond that gets more
parts for new recordings (``growth.py``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from speechmill.dataset.schema import SCHEMA_VERSION
from speechmill.dataset.stated import json_object
from speechmill.dataset.swap import stored, update
from speechmill.errors import DatasetError
from speechmill.records import Part, number_of
from speechmill.storage import Store

__all__ = [
    "ADDING",
    "DATA",
    "FAILURES",
    "MEASURES_KEY",
    "OWN_PREFIXES",
    "ROOT_FOLDER",
    "SOURCE_KEY",
    "Layout",
    "agree_on_parts",
    "change_layout",
    "data_key",
    "directory",
    "failures_key",
    "folder_rule",
    "part_of",
    "partition_rule",
    "path_component",
    "read_layout",
    "recipe_key",
]

DATA = "data"
FAILURES = "failures"
STATE = "_speechmill"
OWN_PREFIXES = (DATA, FAILURES, STATE)
SOURCE_KEY = f"{STATE}/source.json"
LAYOUT_KEY = f"{STATE}/layout.json"
RUNS = f"{STATE}/runs"
ADDING = f"{STATE}/adding"
MEASURES_KEY = f"{STATE}/measures.json"

ROOT_FOLDER = "_root"  # the folder of recordings that lie in none

# A local name may have 255 bytes and an S3 key 1,024; this leaves room for SINK and the rest.
MAX_DIRECTORY_CHARS = 180
HASH_CHARS = 16  # hexadecimal: 64 bits
# Followed by any number of underscores, so that "225" and "225_" stay different.
LIKE_AN_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,20})_*")
PART_NUMBERS = re.compile(r"/part-(\d+)-of-(\d+)\.parquet$")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"  # as a directory key, readers take it for null


def recipe_key(recipe: str) -> str:
    """Return the key of a recipe's JSON."""
    return f"{STATE}/recipes/{recipe}.json"


def folder_rule(rule: str) -> Callable[[str], str]:
    """Make the function from a file name to its ``folder_name``.

    ``parent`` is the name of the directory that contains it, ``first`` that of the topmost one,
    ``path`` all of them, joined by "/"; anything else is a regular expression, searched in the
    file name, whose first group is the folder's name. Where there is none: ``_root``.
    """

    def directories(file_name: str) -> list[str]:
        return [d for d in file_name.split("/")[:-1] if d]

    if rule == "parent":
        return lambda name: next(reversed(directories(name)), ROOT_FOLDER)
    if rule == "first":
        return lambda name: next(iter(directories(name)), ROOT_FOLDER)
    if rule == "path":
        return lambda name: "/".join(directories(name)) or ROOT_FOLDER
    pattern = re.compile(rule)

    def matched(name: str) -> str:
        found = pattern.search(name)
        return (found and found[1]) or ROOT_FOLDER

    return matched


def partition_rule(rule: str) -> Callable[[str], str]:
    """Make the function from a ``folder_name`` to the partition of its rows.

    ``folder``: one partition per folder; ``none``: one for all; ``hash:64``: 64, and each folder in
    one of them.
    """
    if rule == "folder":
        return lambda name: name
    if rule == "none":
        return lambda _: "_all"
    count = int(rule.removeprefix("hash:"))

    def hashed(name: str) -> str:
        return f"hash-{number_of(name) % count:0{len(str(count - 1))}d}-of-{count}"

    return hashed


@lru_cache(maxsize=4096)
def path_component(folder_name: str) -> str:
    """Encode a folder's name as one safe path component: percent-encoded; over 180 characters it is
    cut, and a hash is added."""
    encoded = quote(folder_name, safe="")
    if not encoded.strip("."):  # "." and ".." would lead elsewhere
        encoded = encoded.replace(".", "%2E")
    if len(encoded) > MAX_DIRECTORY_CHARS or folder_name == HIVE_NULL:
        digest = hashlib.sha256(folder_name.encode()).hexdigest()[:HASH_CHARS]
        encoded = f"{_truncate(encoded, MAX_DIRECTORY_CHARS - HASH_CHARS - 1)}-{digest}"
    return encoded


def _truncate(encoded: str, length: int) -> str:
    """Cut to at most ``length`` characters, and no encoded character in two: readers refuse a whole
    dataset for a directory that decodes to half of one."""
    cut = encoded[:length]
    if "%" in cut[-2:]:
        cut = cut[: cut.rindex("%")]
    return quote(unquote_to_bytes(cut).decode("utf-8", "ignore"), safe="")


def directory(folder_name: str) -> str:
    """Return the folder's directory below ``data`` and ``failures``.

    Readers take keys that look like integers for integers. Dask then finds none of them again as
    soon as another folder's key does not, so such keys get an underscore at the end.
    """
    text = "_" if LIKE_AN_INTEGER.fullmatch(folder_name) else ""
    return f"folder={path_component(folder_name)}{text}"


def _part_name(part: Part) -> str:
    return f"{directory(part.folder_name)}/part-{part.index:02d}-of-{part.count:02d}.parquet"


def data_key(part: Part) -> str:
    """Return the key of the part's rows."""
    return f"{DATA}/{_part_name(part)}"


def failures_key(part: Part) -> str:
    """Return the key of the failures of the part's recordings."""
    return f"{FAILURES}/{_part_name(part)}"


def part_of(key: str, folder_name: str) -> Part:
    """Parse the key of a part's rows or failures.

    Raises:
        DatasetError: it is not the key of a part.
    """
    numbers = PART_NUMBERS.search(key)
    if numbers is None:
        raise DatasetError(f"{key} of the sink is no part file")
    return Part(folder_name, int(numbers[1]), int(numbers[2]))


@dataclass(frozen=True, slots=True)
class Layout:
    """How many parts each folder has.

    ``folders``: for new recordings. ``earlier``: the numbers of parts before a folder grew; those
    parts keep their recordings, and accept no others. ``growing``: the next number of parts of
    folders whose present parts are being sealed.
    """

    folders: Mapping[str, int] = field(default_factory=dict)
    earlier: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    growing: Mapping[str, int] = field(default_factory=dict)

    def part(self, folder_name: str, file_name: str) -> Part:
        """Return the part of a recording that is in none of the folder's earlier parts."""
        return Part.of(folder_name, file_name, self.folders[folder_name])

    def earlier_parts(self, folder_name: str, file_name: str) -> list[Part]:
        """Return the parts that may hold a recording from before the folder grew."""
        counts = self.earlier.get(folder_name, ())
        return [Part.of(folder_name, file_name, count) for count in counts]


def read_layout(store: Store) -> Layout:
    """Read how many parts each folder has; empty for a new sink."""
    return _parse(stored(store, LAYOUT_KEY))


def agree_on_parts(store: Store, wanted: Mapping[str, int]) -> Layout:
    """Add the folders of ``wanted`` that are new, with their numbers of parts.

    Returns the layout that all builds of this sink share: the first to add a folder decides.
    """
    return change_layout(store, lambda old: replace(old, folders={**wanted, **old.folders}))


def change_layout(store: Store, change: Callable[[Layout], Layout]) -> Layout:
    """Compare-and-swap the layout. Returns the new one."""
    latest = Layout()

    def swap(data: bytes | None) -> bytes | None:
        nonlocal latest
        old = _parse(data)
        latest = change(old)
        return None if latest == old else _dump(latest)

    update(store, LAYOUT_KEY, swap)
    return latest


def _dump(layout: Layout) -> bytes:
    state: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "folders": dict(sorted(layout.folders.items())),
    }
    if layout.earlier:
        state["earlier"] = dict(sorted(layout.earlier.items()))
    if layout.growing:
        state["growing"] = dict(sorted(layout.growing.items()))
    return json.dumps(state, ensure_ascii=False, indent=0).encode()


def _count(count: object) -> int:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{count!s:.20} is no number of parts")
    return count


def _parse(data: bytes | None) -> Layout:
    if data is None:
        return Layout()
    try:
        state = json_object(data)
        if (version := state["schema_version"]) != SCHEMA_VERSION:
            raise DatasetError(
                f"{LAYOUT_KEY} of the sink is of schema version {version!s:.20}, this Speechmill "
                f"reads {SCHEMA_VERSION}: use the Speechmill that made it, or another sink"
            )
        return Layout(
            {name: _count(count) for name, count in state["folders"].items()},
            {name: tuple(map(_count, counts)) for name, counts in state.get("earlier", {}).items()},
            {name: _count(count) for name, count in state.get("growing", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{LAYOUT_KEY} of the sink cannot be read ({error}); it is needed to know which part "
            "a recording belongs to: restore it from a backup"
        ) from None
