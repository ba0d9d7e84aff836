"""Local folders, with real compare-and-swap.

obstore's LocalStore has none, puts inodes into its ETags and leaves ``name#1`` beside the target
when it is killed. Here a file is staged under ``_speechmill/staged/``, and renamed to its place
while the folder's lock is held and the condition is seen to be true.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from speechmill.errors import (
    AccessDeniedError,
    ConflictError,
    NotFoundError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)
from speechmill.records import printable
from speechmill.storage.base import Blob, Object, check_store

__all__ = ["LocalStore"]

OWN = "_speechmill"
LOCK = f"{OWN}/lock"
STAGED = f"{OWN}/staged"
STAGED_HERE = re.compile(r"\.[0-9a-f]{32}\.staged")  # the names that put_file gives
LEFTOVER_S = 3600.0  # older staged files are of killed writers
LOCK_TIMEOUT_S = 60.0
"""The lock is held for a few system calls only: a process that holds it longer is stopped, or its
disk is."""
READ_ATTEMPTS = 5  # of a file that is changed while it is read
# Resolutions of modification times: nanoseconds (ext4, XFS) down to two seconds (FAT).
_TICKS_NS = (1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)


class LocalStore:
    """A folder. See ``Store``. Reading creates nothing in it.

    Symbolic links are followed, to files and to directories; a link to a directory that
    contains it is left out, because its files are listed already. So is everything that is neither
    a file nor a directory.
    """

    def __init__(self, root: str) -> None:
        self.url = root
        self._root = root.rstrip("/")  # "" for "/"
        self._lock = threading.Lock()
        self._is_tidy = False  # nothing is left of killed calls of put_file

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def list(self, prefix: str = "") -> Iterator[Object]:
        """See ``Store.list``. A directory that cannot be read is listed with an empty etag."""
        prefix = prefix.strip("/")
        if not os.path.isdir(self.url):  # noqa: PTH112 Path cannot hold every name
            raise self._no_folder()
        if prefix and not os.path.isdir(self._path(prefix)):  # noqa: PTH112 see above
            return
        # Directories still to visit, the next one last; each with those above it, to see loops.
        waiting: builtins.list[tuple[str, frozenset[tuple[int, int]]]]
        waiting = [(f"{prefix}/" if prefix else "", frozenset())]
        while waiting:
            key, above = waiting.pop()
            try:
                identity, entries = self._entries(key)
            except FileNotFoundError:
                continue  # removed since its parent was read
            except OSError as error:
                if not key:
                    raise self._translate(error, key) from None
                yield Object(key.rstrip("/"), 0, "", 0)
                continue
            if identity in above:
                continue
            above |= {identity}
            directories = []
            for entry in entries:
                found = self._classify(key + entry)
                if isinstance(found, Object):
                    yield found
                elif found and key + entry != STAGED:
                    directories.append((f"{key}{entry}/", above))
            waiting += reversed(directories)

    def get(self, key: str) -> Blob:
        """See ``Store.get``.

        Raises:
            UnavailableError: the file keeps changing while it is read.
        """
        for attempt in range(READ_ATTEMPTS):
            with self._open(key) as file:
                before = os.fstat(file.fileno())
                data = self._read(file, key, -1)
                after = os.fstat(file.fileno())
            if _version(before) == _version(after) and len(data) == after.st_size:
                return Blob(data, str(after.st_mtime_ns), after.st_mtime_ns // 1000)
            time.sleep(0.05 * 2**attempt)
        raise UnavailableError(f"{self._shown(key)} keeps changing while it is read")

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        """See ``Store.read``."""
        with self._open(key) as file:
            before = os.fstat(file.fileno())
            data = self._read(file, key, length, start)
            after = os.fstat(file.fileno())
        if _version(before) != _version(after) or str(after.st_mtime_ns) != etag:
            raise ConflictError(f"{self._shown(key)} is not as it was")
        if len(data) != length:
            raise StorageError(
                f"{self._shown(key)} has {after.st_size} bytes, not {start + length}"
            )
        return data

    def head(self, key: str) -> Object:
        """See ``Store.head``."""
        try:
            status = os.stat(self._path(key))  # noqa: PTH116 Path cannot hold every name
        except OSError as error:
            raise self._translate(error, key) from None
        if not stat.S_ISREG(status.st_mode):
            raise NotFoundError(f"{self._shown(key)} is no file")
        return _object(key, status)

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_etag: str | None = None
    ) -> str:
        """See ``Store.put``. The new etag is always greater than the old one."""
        staged = f"{self._root}/{STAGED}/{uuid.uuid4().hex}"
        with self._replacing(key, staged) as target:
            with _durable(staged) as file:
                file.write(data)
            with self._locked():
                current = None
                with contextlib.suppress(FileNotFoundError):
                    current = os.stat(target).st_mtime_ns  # noqa: PTH116 Path cannot hold every name
                if (if_absent and current is not None) or (
                    if_etag is not None and str(current) != if_etag
                ):
                    raise ConflictError(f"writing {self._shown(key)}: it is not as it was")
                etag = _set_later_mtime(staged, current or 0)
                os.replace(staged, target)  # noqa: PTH105 see above
        return str(etag)

    def put_file(self, key: str, path: Path) -> None:
        """See ``Store.put_file``. Leaves nothing else in the folder: no lock, nothing staged."""
        staged = f"{self._root}/.{uuid.uuid4().hex}.staged"
        with self._replacing(key, staged) as target:
            if not self._is_tidy:
                _remove_leftovers(self._root or "/", STAGED_HERE)
                self._is_tidy = True
            with path.open("rb") as original, _durable(staged) as file:
                shutil.copyfileobj(original, file)
            os.replace(staged, target)  # noqa: PTH105 Path cannot hold every name

    @contextlib.contextmanager
    def _replacing(self, key: str, staged: str) -> Iterator[str]:
        """Yield the path that ``staged`` is to come to. Makes folders; leaves nothing staged."""
        target = self._path(key)
        try:
            Path(staged).parent.mkdir(parents=True, exist_ok=True)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            try:
                yield target
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(staged)  # noqa: PTH108 Path cannot hold every name
            _sync_directory(os.path.dirname(target))  # noqa: PTH120 see above
        except OSError as error:
            raise self._translate(error, key) from None

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        target = self._path(key)
        if not os.path.lexists(target):
            return  # without a trace: not even a lock file
        # Without that folder nobody makes conditional puts, which the lock is for.
        own = os.path.isdir(f"{self._root}/{OWN}")  # noqa: PTH112 Path cannot hold every name
        try:
            with (
                self._locked() if own else contextlib.nullcontext(),
                contextlib.suppress(FileNotFoundError),
            ):
                os.unlink(target)  # noqa: PTH108 Path cannot hold every name
        except OSError as error:
            raise self._translate(error, key) from None

    def check(self) -> None:
        """See ``Store.check``. Also removes files that killed writers left behind."""
        check_store(self)
        _remove_leftovers(f"{self._root}/{STAGED}", re.compile(".*"))

    def _path(self, key: str) -> str:
        """Return the path of ``key``. A key cannot lead out of the folder."""
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise UnsupportedError(f"{printable(self.url)}: {key!a} cannot be a file's name")
        return f"{self._root}/{key}"

    def _shown(self, key: str) -> str:
        return printable(f"{self._root}/{key}")

    def _open(self, key: str) -> BinaryIO:
        try:
            # Opening a pipe would block, so not without O_NONBLOCK; what is no file is closed.
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._translate(error, key) from None
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(descriptor, "rb", buffering=0)
        os.close(descriptor)
        raise NotFoundError(f"{self._shown(key)} is no file")

    def _read(self, file: BinaryIO, key: str, length: int, start: int = 0) -> bytes:
        """Read so many bytes, or all. Some files of /proc and /sys say that they are ordinary ones,
        and are not."""
        try:
            if start:  # some cannot even be sought in
                file.seek(start)
            data: bytes | None = file.read(length)
        except OSError as error:
            raise self._translate(error, key) from None
        if data is None:
            raise StorageError(f"{self._shown(key)} has nothing to be read now: it is no real file")
        return data

    def _entries(self, key: str) -> tuple[tuple[int, int], builtins.list[str]]:
        path = f"{self._root}/{key}"
        status = os.stat(path)  # noqa: PTH116 Path cannot hold every name
        return (status.st_dev, status.st_ino), sorted(os.listdir(path))  # noqa: PTH208 see above

    def _classify(self, key: str) -> Object | bool:
        """Return a file as an object; True for a directory, False for what is left out."""
        path = f"{self._root}/{key}"
        try:
            status = os.stat(path)  # noqa: PTH116 Path cannot hold every name
        except OSError:
            # A link to nothing, or no permission: get() says what it is. Or removed just now.
            return Object(key, 0, "", 0) if os.path.lexists(path) else False
        if stat.S_ISREG(status.st_mode):
            return False if key == LOCK else _object(key, status)
        return stat.S_ISDIR(status.st_mode)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock, among threads and processes; a killed holder loses it.

        flock() and not an existence lock, which would outlive a killed holder.
        """
        path = f"{self._root}/{LOCK}"
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        # Threads queue here, where waiting costs nothing; other processes have to be polled.
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise UnavailableError(f"the lock {path} was not free within {LOCK_TIMEOUT_S:.0f} s")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                pause_s = 0.0005
                while not _try_lock(descriptor, path):
                    if time.monotonic() > deadline:
                        raise UnavailableError(
                            f"another process holds the lock {path} "
                            f"for more than {LOCK_TIMEOUT_S:.0f} s: is it stopped?"
                        )
                    time.sleep(pause_s)
                    pause_s = min(0.02, pause_s * 1.5)
                yield
            finally:
                os.close(descriptor)
        finally:
            self._lock.release()

    def _no_folder(self) -> StorageError:
        if os.path.lexists(self.url):
            try:
                os.stat(self.url)  # noqa: PTH116 Path cannot hold every name
            except OSError as error:
                return self._translate(error, "")
            return NotFoundError(f"{printable(self.url)} is a file, not a folder")
        return NotFoundError(f"there is no folder {printable(self.url)}")

    def _translate(self, error: OSError, key: str) -> StorageError:
        where = self._shown(key)
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return AccessDeniedError(f"{where}: {error.strerror}; check its permissions")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if os.path.islink(f"{self._root}/{key}"):  # noqa: PTH114 Path cannot hold every name
                return StorageError(f"{where} is a symbolic link to nothing")
            return NotFoundError(f"there is no file {where}")
        if error.errno == errno.ENAMETOOLONG:
            return UnsupportedError(f"{where}: the name is too long for this file system")
        return StorageError(f"{where}: {error.strerror}")


def _object(key: str, status: os.stat_result) -> Object:
    modified_ns = status.st_mtime_ns
    return Object(key, status.st_size, str(modified_ns), modified_ns // 1000)


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _remove_leftovers(folder: str, names: re.Pattern[str]) -> None:
    """Remove files that killed writers have staged, by the clock of the disk: this machine's may be
    hours ahead, and what it then takes for old is of a writer that is at work."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        now = os.fstat(file.fileno()).st_mtime
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    age_s = now - entry.stat(follow_symlinks=False).st_mtime
                    if names.fullmatch(entry.name) and age_s > LEFTOVER_S:
                        os.unlink(entry.path)  # noqa: PTH108 Path cannot hold every name


@contextlib.contextmanager
def _durable(path: str) -> Iterator[BinaryIO]:
    """A new file that is on the disk when it is closed."""
    with Path(path).open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _set_later_mtime(path: str, older_ns: int) -> int:
    """Give the file a modification time after ``older_ns``. Returns it, in ns."""
    for tick in _TICKS_NS:
        now = max(time.time_ns(), older_ns + tick)
        os.utime(path, ns=(now, now))
        kept = os.stat(path).st_mtime_ns  # noqa: PTH116 like its callers
        if kept > older_ns:
            return kept
    raise UnsupportedError(f"{path}: this file system does not keep modification times")


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UnsupportedError(
            f"{path}: this file system has no locks ({error.strerror}): use another for the sink"
        ) from None
    return True
