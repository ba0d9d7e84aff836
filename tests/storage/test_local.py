"""What a folder as a store promises beyond the contract: over processes, kills and clocks."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import speechmill.storage.local
from speechmill.errors import NotFoundError, StorageError, UnavailableError, UnsupportedError
from speechmill.storage import open_store
from speechmill.storage.local import LocalStore

INCREMENT = """
import sys
from speechmill.errors import ConflictError
from speechmill.storage import open_store
store = open_store(sys.argv[1])
for _ in range(25):
    while True:
        blob = store.get("count")
        try:
            store.put("count", b"%d" % (int(blob.data) + 1), if_etag=blob.etag)
        except ConflictError:
            continue
        break
"""

HOLD = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_no_update_of_several_processes_is_lost(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("count", b"0")
    command = [sys.executable, "-c", INCREMENT, str(tmp_path)]
    workers = [subprocess.Popen(command) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert store.get("count").data == b"100"
    assert list((tmp_path / "_speechmill" / "staged").iterdir()) == []


def test_a_killed_holder_loses_the_lock(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a", b"1")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "_speechmill" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    started = time.monotonic()
    store.put("a", b"2")
    assert time.monotonic() - started < 5


def test_a_lock_that_is_not_given_back_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speechmill.storage.local, "LOCK_TIMEOUT_S", 0.3)
    store = open_store(str(tmp_path))
    store.put("a", b"1")
    with (tmp_path / "_speechmill" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="_speechmill/lock"):
            store.put("a", b"2")
    assert store.get("a").data == b"1"
    assert list((tmp_path / "_speechmill" / "staged").iterdir()) == []


def test_a_tag_never_repeats(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    tags = [int(store.put("a", b"%d" % n)) for n in range(200)]
    assert tags == sorted(set(tags))
    ahead = time.time_ns() + 3600 * 10**9
    os.utime(tmp_path / "a", ns=(ahead, ahead))
    assert int(store.put("a", b"the clock was set back")) > ahead


def test_leftovers_of_killed_writers_go_after_an_hour(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a", b"1")
    staged = tmp_path / "_speechmill" / "staged"
    (staged / "old").write_bytes(b"x")
    (staged / "new").write_bytes(b"x")
    os.utime(staged / "old", (time.time() - 4000, time.time() - 4000))
    store.check()
    assert [p.name for p in staged.iterdir()] == ["new"]
    assert [o.key for o in store.list()] == ["a"]


def test_a_clock_that_is_hours_ahead_takes_no_writers_file_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = tmp_path / "_speechmill" / "staged"
    staged.mkdir(parents=True)
    (staged / "new").write_bytes(b"of another machine")
    ahead_s = time.time() + 5 * 3600
    monkeypatch.setattr(time, "time", lambda: ahead_s)
    open_store(str(tmp_path)).check()
    assert [p.name for p in staged.iterdir()] == ["new"]


def test_what_killed_writers_leave_is_removed_later(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    (tmp_path / "_speechmill" / "check").mkdir(parents=True)
    left = [tmp_path / f".{1:032x}.staged", tmp_path / "_speechmill" / "check" / "1"]
    kept = [tmp_path / f".{2:032x}.staged", tmp_path / "_speechmill" / "check" / "2"]
    kept += [tmp_path / "old", tmp_path / ".mine.staged"]
    for path in (*left, *kept):
        path.write_bytes(b"x")
    for path in (*left, tmp_path / "old", tmp_path / ".mine.staged"):
        os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    store.check()
    store.put_file("a", tmp_path / "old")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_our_own_files_are_listed_but_not_the_lock_nor_what_is_staged(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("_speechmill/source.json", b"{}")
    assert [o.key for o in store.list()] == ["_speechmill/source.json"]
    assert [o.key for o in store.list("_speechmill")] == ["_speechmill/source.json"]


def test_no_key_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    store = open_store(str(tmp_path / "in"))
    for key in ("../outside", "a/../../outside", str(tmp_path / "outside")):
        with pytest.raises(UnsupportedError):
            store.get(key)
        with pytest.raises(UnsupportedError):
            store.put(key, b"y")
        with pytest.raises(UnsupportedError):
            store.delete(key)
    assert (tmp_path / "outside").read_bytes() == b"x"


def test_names_that_the_file_system_cannot_have_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="too long"):
        open_store(str(tmp_path)).put("x" * 300, b"x")


def test_a_folder_is_no_object(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("d/a", b"x")
    for ask in (store.get, store.head):
        with pytest.raises(NotFoundError):
            ask("d")
    with pytest.raises(StorageError):
        store.put("d", b"x")
    with pytest.raises(StorageError):
        store.put("d/a/b", b"x")


def test_bytes_that_are_not_utf8_make_the_round_trip(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    key = os.fsdecode(b"p\xff/\xe9.wav")
    etag = store.put(key, b"x")
    assert [(o.key, o.etag) for o in store.list()] == [(key, etag)]
    store.delete(key)
    assert list(store.list()) == []


def test_a_file_that_only_looks_like_one_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of /proc and /sys: ordinary by their mode, but nothing is there to be read."""
    (tmp_path / "kmsg").write_bytes(b"")
    store = LocalStore(str(tmp_path))
    held = os.pipe2(os.O_NONBLOCK)
    monkeypatch.setattr(store, "_open", lambda key: os.fdopen(os.dup(held[0]), "rb", buffering=0))
    with pytest.raises(StorageError, match="no real file"):
        store.get("kmsg")
    folder = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(store, "_open", lambda key: open_raw(os.dup(folder)))
    with pytest.raises(StorageError, match="Is a directory"):
        store.get("kmsg")


def open_raw(descriptor: int) -> Any:
    """What reads a descriptor, whatever it is of."""

    class Raw:
        def __enter__(self) -> Raw:
            return self

        def __exit__(self, *_: object) -> None:
            os.close(descriptor)

        def fileno(self) -> int:
            return descriptor

        def read(self, length: int) -> bytes:
            return os.read(descriptor, max(length, 1))

    return Raw()


def test_special_files_of_a_source_are_left_out_and_fail_no_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        (tmp_path / "device").symlink_to("/dev/zero")
        (tmp_path / "loop").symlink_to(tmp_path)
        (tmp_path / "endless").symlink_to("endless")
        (tmp_path / "real").write_bytes(b"x")
        store = open_store(str(tmp_path))
        assert [o.key for o in store.list() if o.etag] == ["real"]
        for name in ("fifo", "socket", "device", "loop", "endless"):
            with pytest.raises(StorageError):
                store.get(name)
            with pytest.raises(StorageError):
                store.read(name, 0, 1, etag="1")
            with pytest.raises(StorageError):
                store.head(name)


def test_what_lies_in_a_plain_folder_is_removed_without_a_trace(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    (tmp_path / "a").write_bytes(b"x")
    store.delete("a")
    assert list(tmp_path.iterdir()) == []
