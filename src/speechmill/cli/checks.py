"""What is there and what is not: for ``speechmill doctor``."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution, requires
from itertools import islice

from speechmill._version import __version__
from speechmill.audio import EXTENSIONS
from speechmill.errors import DatasetError, SpeechmillError
from speechmill.models.weights import resolve_whisper
from speechmill.storage import StoreOptions, open_store
from speechmill.transcribers import resolve_compute_type

__all__ = ["Check", "examine"]

LISTED = 1000  # objects that are listed of a source


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``good`` is False where something that was asked for cannot work."""

    what: str
    good: bool
    finding: str


def examine(
    source: str | None,
    sink: str | None,
    source_options: StoreOptions,
    sink_options: StoreOptions,
    model: str,
) -> list[Check]:
    """Look at this machine, and at SOURCE and SINK where they are given. Raises nothing."""
    checks = [
        Check("speechmill", True, f"{__version__}, Python {platform.python_version()}"),
        Check("extras", True, ", ".join(_extras()) or "none"),
        _check("device", _device),
        _check(f"model {model}", lambda: _model(model)),
    ]
    if source is not None:
        checks.append(_check("source", lambda: _source(source, source_options)))
    if sink is not None:
        checks.append(_check("sink", lambda: _sink(sink, sink_options)))
    return checks


def _check(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, True, look())
    except SpeechmillError as error:
        return Check(what, False, str(error))


def _extras() -> Iterator[str]:
    """The extras of this package whose requirements are all installed."""
    needed: dict[str, list[str]] = {}
    for requirement in requires("speechmill") or []:
        if found := re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", requirement):
            needed.setdefault(found[2], []).append(found[1])
    for extra, packages in sorted(needed.items()):
        yield f"{extra}: {'yes' if all(map(_installed, packages)) else 'no'}"


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except ModuleNotFoundError:
        return False
    return True


def _device() -> str:
    device, compute_type = resolve_compute_type("auto", "auto")
    return f"{device}, {compute_type}"


def _model(name: str) -> str:
    found = resolve_whisper(name)
    return f"from {found.origin}: {found.folder}"


def _source(url: str, options: StoreOptions) -> str:
    store = open_store(url, options)
    listed = list(islice(store.list(), LISTED))
    if not listed:
        raise DatasetError(f"{store.url} can be listed, and is empty: there is nothing to build")
    first = next((o for o in listed if o.size), None)
    if first is None:
        return f"{store.url}: can be listed; nothing in it to read"
    store.read(first.key, 0, min(64, first.size), etag=first.etag)
    more = "or more " if len(listed) == LISTED else ""
    audible = sum(o.key.rpartition(".")[2].lower() in EXTENSIONS for o in listed)
    files = f"{len(listed):,} {more}files, {audible:,} of them audio by their names"
    return f"{store.url}: {files}, can be listed and read"


def _sink(url: str, options: StoreOptions) -> str:
    store = open_store(url, options)
    store.check()
    return f"{store.url}: can be written; conditional puts are honoured"
