"""What every store promises, checked on memory, a folder, a real object store, and the same
object store behind a proxy that breaks one request in ten."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechmill.errors import ConflictError, NotFoundError, StorageError, UnsupportedError
from speechmill.storage import Store, StoreOptions, open_store
from tests.support.faults import FaultyProxy
from tests.support.services import SeaweedFS

KINDS = ["memory", "local", "s3", "s3-faulty"]
Open = Callable[[], Store]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens one and the same new, empty place, as often as it is called."""
    name = uuid.uuid4().hex
    if kind == "memory":
        yield lambda: open_store(f"memory://{name}/deep")
    elif kind == "local":
        (tmp_path / "s %23#?").mkdir()
        yield lambda: open_store(str(tmp_path / "s %23#?"))
    else:
        server: SeaweedFS = request.getfixturevalue("object_store")
        for variable, value in server.write_profile(tmp_path / "aws").items():
            monkeypatch.setenv(variable, value)
        if kind == "s3":
            yield lambda: open_store(f"s3://dst/{name}", StoreOptions(profile="r2"))
        else:
            with FaultyProxy(server.endpoint_url, rate=0.1, seed=3) as proxy:
                options = StoreOptions(profile="r2", endpoint_url=proxy.endpoint_url)
                yield lambda: open_store(f"s3://dst/{name}", options)


@pytest.fixture
def store(open_it: Open) -> Store:
    return open_it()


KEYS = [
    "a.flac",
    "p225/p225_001.flac",
    "p225/b c.flac",
    "p2250/x.flac",
    "Zoë/ü 50%+#?'\"&<>=.flac",
    "%41/a%2Fb",
    "emoji 😀/~star*[x]{y}|^`$!.wav",
    "_speechmill/source.json",
    "data/folder=a%3Db/part-00-of-01.parquet",
    "x" * 200 + "/" + "y" * 200,
]


def test_what_is_put_is_got_under_every_key(store: Store) -> None:
    for number, key in enumerate(KEYS):
        data = bytes([number]) * number
        etag = store.put(key, data)
        blob = store.get(key)
        assert (blob.data, blob.etag) == (data, etag)
        head = store.head(key)
        assert (head.key, head.size, head.etag) == (key, number, etag)
        assert head.modified_us == blob.modified_us
    listed = {o.key: o for o in store.list()}
    assert sorted(listed) == sorted(KEYS)
    for key, found in listed.items():
        assert found == store.head(key)


def test_a_prefix_is_whole_components(store: Store) -> None:
    for key in KEYS:
        store.put(key, b"x")
    assert sorted(o.key for o in store.list("p225")) == ["p225/b c.flac", "p225/p225_001.flac"]
    assert [o.key for o in store.list("data/folder=a%3Db")] == [KEYS[8]]
    assert list(store.list("p22")) == []
    assert list(store.list("none")) == []


def test_listing_twice_gives_the_same_order(store: Store) -> None:
    for key in KEYS:
        store.put(key, b"x")
    assert list(store.list()) == list(store.list())


def test_a_large_object_comes_back_whole(store: Store) -> None:
    data = bytes(range(256)) * 40_000
    store.put("large", data)
    assert store.get("large").data == data


def test_a_file_of_any_size_is_put(store: Store, tmp_path: Path) -> None:
    for size in (0, 100, 12_000_000):
        (tmp_path / "file").write_bytes(bytes(range(100)) * (size // 100))
        store.put_file("d/file", tmp_path / "file")
        assert store.get("d/file").data == (tmp_path / "file").read_bytes()
    assert [o.key for o in store.list()] == ["d/file"]


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.get("empty").data == b""
    assert [o.size for o in store.list()] == [0]


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for ask in (store.get, store.head, lambda k: store.read(k, 0, 1, etag="0")):
        with pytest.raises(NotFoundError):
            ask("a/none")


def test_deleting_twice_is_no_error(store: Store) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    with pytest.raises(NotFoundError):
        store.get("a/b")
    assert list(store.list()) == []


def test_a_range_is_of_the_version_asked_for(store: Store) -> None:
    first = store.put("a", b"0123456789")
    assert store.read("a", 2, 3, etag=first) == b"234"
    assert store.read("a", 0, 10, etag=first) == b"0123456789"
    assert store.read("a", 10, 0, etag=first) == b""
    with pytest.raises(StorageError):
        store.read("a", 8, 5, etag=first)
    second = store.put("a", b"ABCDEFGHIJ")
    assert second != first
    with pytest.raises(ConflictError):
        store.read("a", 2, 3, etag=first)
    with pytest.raises(ConflictError):
        store.read("a", 2, 0, etag=first)
    assert store.read("a", 2, 3, etag=second) == b"CDE"


def test_create_only_once(store: Store, kind: str) -> None:
    key = "a/once"
    try:
        store.put(key, b"1", if_absent=True)
    except ConflictError:
        assert kind == "s3-faulty"  # the reply was lost; the object is there
    with pytest.raises(ConflictError):
        store.put(key, b"2", if_absent=True)
    assert store.get(key).data == b"1"
    store.delete(key)
    with pytest.raises(ConflictError):
        store.put(key, b"3", if_etag="0")
    with pytest.raises(NotFoundError):
        store.get(key)


def test_a_stale_etag_conflicts(store: Store, kind: str) -> None:
    first = store.put("a", b"1")
    try:
        second = store.put("a", b"2", if_etag=first)
    except ConflictError:
        assert kind == "s3-faulty"
        second = store.head("a").etag
    with pytest.raises(ConflictError):
        store.put("a", b"3", if_etag=first)
    assert store.get("a").data == b"2"
    assert store.head("a").etag == second


def _append(store: Store, line: str) -> None:
    """A commit as the dataset does it: read, add, put back on condition; repeat on conflict."""
    while True:
        try:
            blob = store.get("log")
            lines, condition = blob.data.decode().split(), blob.etag
        except NotFoundError:
            lines, condition = [], None
        if line in lines:
            return  # a retry that met its own success
        data = " ".join([*lines, line]).encode()
        try:
            store.put("log", data, if_absent=condition is None, if_etag=condition)
        except ConflictError:
            continue
        return


def test_no_update_of_many_writers_is_lost(open_it: Open) -> None:
    stores = [open_it() for _ in range(4)]
    lines = [f"{writer}.{number}" for writer in range(4) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_append, itertools.cycle(stores), lines))
    assert sorted(stores[0].get("log").data.decode().split()) == sorted(lines)


def test_one_of_many_creators_wins(open_it: Open, kind: str) -> None:
    if kind == "s3-faulty":
        pytest.skip("a lost reply may leave no winner who knows")
    store, start = open_it(), threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        try:
            store.put("once", b"%d" % number, if_absent=True)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert store.get("once").data == b"%d" % won.index(True)


def test_many_threads_share_a_store(store: Store) -> None:
    def work(number: int) -> bool:
        data = bytes([number]) * 1000
        store.put(f"f/{number}", data)
        return store.get(f"f/{number}").data == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert len(list(store.list("f"))) == 40


def test_listing_goes_past_one_page(store: Store, kind: str) -> None:
    count = 1_050 if kind != "s3-faulty" else 120
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put(f"d/{n:05}", b""), range(count)))
    assert sorted(o.key for o in store.list()) == [f"d/{n:05}" for n in range(count)]


def test_check_passes_and_leaves_nothing_listed(store: Store) -> None:
    store.check()
    assert list(store.list()) == []


def test_keys_that_cannot_be_written_are_refused(store: Store) -> None:
    for key in ("", "a//b", "../a", "a/./b", "/a", "a/", "a\0b"):
        with pytest.raises(UnsupportedError):
            store.put(key, b"x")


def test_two_stores_at_one_url_see_the_same(open_it: Open) -> None:
    one, two = open_it(), open_it()
    assert one.url == two.url
    assert not one.url.endswith("/")
    etag = one.put("a", b"1")
    assert two.head("a").etag == etag


@pytest.mark.parametrize("kind", ["memory", "local"], indirect=False)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cc", "Cs"]),
        min_size=1,
        max_size=50,
    ).filter(lambda key: key not in (".", ".."))
)
def test_any_name_makes_the_round_trip(open_it: Open, key: str) -> None:
    store = open_it()
    store.put(f"h/{key}", key.encode())
    assert store.get(f"h/{key}").data == key.encode()
    assert f"h/{key}" in {o.key for o in store.list("h")}
