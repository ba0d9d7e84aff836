"""``fetch``: large objects of one version, in a file without a name, whatever happens meanwhile."""

from __future__ import annotations

import mmap
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from speechmill.errors import NotFoundError, StorageError, UnavailableError
from speechmill.storage import Fetched, Store, StoreOptions, fetch, large, open_store
from speechmill.storage.single import SingleWriter

LARGE, RANGE = 1000, 300
ROOT = Path(__file__).parents[2]
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "file":
        (tmp_path / "source").mkdir()
        return open_store(str(tmp_path / "source"))
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}")
    server = request.getfixturevalue("object_store")
    for variable, value in server.write_profile(tmp_path / "aws").items():
        monkeypatch.setenv(variable, value)
    return open_store(f"s3://src/{uuid.uuid4().hex}", StoreOptions(profile="r2"))


@pytest.fixture
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE_BYTES", LARGE)
    monkeypatch.setattr(large, "RANGE_BYTES", RANGE)


def _octets(size: int, seed: int = 0) -> bytes:
    return bytes((seed + n * n // 7) % 256 for n in range(size))


class _Meddling(SingleWriter):
    """A real store in which something happens after each range that is read."""

    def __init__(self, store: Store, meddle: Callable[[int], object]) -> None:
        super().__init__(store)
        self._meddle = meddle
        self.reads = 0

    def read(self, key: str, start: int, length: int, *, etag: str) -> bytes:
        data = super().read(key, start, length, etag=etag)
        self.reads += 1
        self._meddle(self.reads)
        return data


@pytest.mark.parametrize("size", [0, 1, LARGE, LARGE + 1, 4 * RANGE - 1, 4 * RANGE, 4 * RANGE + 1])
@pytest.mark.usefixtures("_small_limits")
def test_what_is_fetched_is_what_get_gives_and_in_memory_only_if_small(
    store: Store, size: int
) -> None:
    store.put("a b/ü", _octets(size))
    blob, fetched = store.get("a b/ü"), fetch(store, "a b/ü", size)
    assert Fetched(fetched.data[:], fetched.etag, fetched.modified_us) == Fetched(
        blob.data, blob.etag, blob.modified_us
    )
    assert isinstance(fetched.data, mmap.mmap if size > LARGE else bytes)


@pytest.mark.usefixtures("_small_limits")
def test_an_object_replaced_in_between_is_never_torn(store: Store) -> None:
    new = _octets(1500, seed=9)

    def replace(reads: int) -> None:
        if reads == 2:
            store.put("a", new)

    store.put("a", _octets(1500))
    meddling = _Meddling(store, replace)
    fetched = fetch(meddling, "a", 1500)
    assert fetched.data[:] == new
    assert fetched.etag == store.head("a").etag
    assert meddling.reads == 2 + 5


@pytest.mark.usefixtures("_small_limits")
def test_an_object_that_became_small_in_between_is_fetched_as_it_is(store: Store) -> None:
    store.put("a", _octets(1500))
    fetched = fetch(_Meddling(store, lambda _: store.put("a", b"small")), "a", 1500)
    assert fetched.data == b"small"


@pytest.mark.usefixtures("_small_limits")
def test_the_listed_size_may_be_wrong(store: Store) -> None:
    store.put("a", b"small")
    assert fetch(store, "a", 10**9).data == b"small"
    store.put("a", _octets(1500))
    assert fetch(store, "a", 1001).data[:] == _octets(1500)


@pytest.mark.usefixtures("_small_limits")
def test_an_object_that_keeps_changing_is_given_up(store: Store) -> None:
    store.put("a", _octets(1500))

    def replace(reads: int) -> None:
        store.put("a", _octets(1500, seed=reads))

    meddling = _Meddling(store, replace)
    with pytest.raises(UnavailableError, match="keeps changing"):
        fetch(meddling, "a", 1500)
    assert meddling.reads == large.MAX_RESTARTS


@pytest.mark.usefixtures("_small_limits")
def test_an_object_deleted_in_between_is_not_found(store: Store) -> None:
    store.put("a", _octets(1500))
    with pytest.raises(NotFoundError):
        fetch(_Meddling(store, lambda _: store.delete("a")), "a", 1500)
    with pytest.raises(NotFoundError):
        fetch(store, "a", 1500)


@pytest.mark.usefixtures("_small_limits")
def test_the_temporary_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    store.put("a", _octets(1500))
    names: list[Path] = []
    meddling = _Meddling(store, lambda _: names.extend((tmp_path / "tmp").iterdir()))
    fetched = fetch(meddling, "a", 1500)
    assert [*names, *(tmp_path / "tmp").iterdir()] == []
    assert len(fetched.data) == 1500


@pytest.mark.usefixtures("_small_limits")
def test_without_a_temporary_folder_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    store.put("a", _octets(1500))
    with pytest.raises(StorageError, match=r"/a \(1500 bytes\).*/gone.*No such file.*TMPDIR"):
        fetch(store, "a", 1500)


def test_without_room_for_the_file_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(large.LARGE_BYTES + 1))
    code = (
        "import resource, sys; from speechmill import errors\n"
        "from speechmill.storage import fetch, open_store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7))\n"
        "try: fetch(open_store(sys.argv[1]), 'a', 10**8)\n"
        "except errors.StorageError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True, text=True
    )
    assert "TMPDIR" in run.stdout
    assert f"{tmp_path}/a" in run.stdout
    assert run.stderr == ""


@NEEDS_PROC
def test_memory_does_not_hold_a_large_object(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(200_000_000)
    code = (
        "import sys; from speechmill.storage import fetch, open_store\n"
        "from tests.support.memory import AnonymousPeak\n"
        "store = open_store(sys.argv[1])\n"
        "with AnonymousPeak() as peak: fetched = fetch(store, 'a', 200_000_000)\n"
        "print(len(fetched.data), peak.grown_bytes)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        check=True,
        text=True,
        cwd=ROOT,
    )
    size, grown = map(int, run.stdout.split())
    assert size == 200_000_000
    assert grown < 60_000_000
