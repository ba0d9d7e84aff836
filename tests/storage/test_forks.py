"""Forks of a process that has used a store: obstore's threads are not there any more."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from speechmill.errors import ConflictError
from speechmill.storage import StoreOptions, open_store
from tests.support.services import SeaweedFS

numbers = itertools.count()


def in_a_fork(action: Callable[[], str]) -> str:
    """What the action says in a forked process; it is killed if it hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            said = action()
        except BaseException as error:  # noqa: BLE001 the parent shall see it
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, "it hung"
    return said


def test_a_fork_reads_a_bucket_that_its_parent_has_read(
    object_store: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in object_store.write_profile(tmp_path, "fork").items():
        monkeypatch.setenv(name, value)
    url, options = f"s3://dst/forks-{next(numbers)}", StoreOptions(profile="fork")
    store = open_store(url, options)
    etag = store.put("a b", b"0123456789")
    assert store.get("a b").data == b"0123456789"

    def child() -> str:
        own = open_store(url, options)
        (found,) = own.list()
        assert own.head("a b") == store_object
        assert own.get("a b").data == b"0123456789"
        try:
            own.read("a b", 0, 1, etag="another")
        except ConflictError:
            return own.read("a b", 2, 3, etag=found.etag).decode()
        return "the wrong version"

    store_object = store.head("a b")
    assert store_object.etag == etag
    assert in_a_fork(child) == "234"


def test_what_only_obstore_reaches_says_what_to_do_in_a_fork() -> None:
    store = open_store(f"memory://forks-{next(numbers)}")
    store.put("a", b"1")
    said = in_a_fork(lambda: str(store.get("a")))
    assert "UnsupportedError" in said
    assert "spawn" in said
