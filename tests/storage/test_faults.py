"""What a failing store does to its caller: nothing, or a clear error, never wrong data."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import speechmill.storage.faults
from speechmill.errors import (
    AccessDeniedError,
    ConflictError,
    NotFoundError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)
from speechmill.storage import StoreOptions, open_store
from speechmill.storage.base import check_store
from speechmill.storage.faults import error_of_reply
from speechmill.storage.single import SingleWriter
from tests.support.faults import FaultyProxy
from tests.support.services import SeaweedFS


@pytest.fixture
def proxy(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    for variable, value in object_store.write_profile(tmp_path / "aws").items():
        monkeypatch.setenv(variable, value)
    with FaultyProxy(object_store.endpoint_url, rate=0.0) as proxy:
        yield proxy


@pytest.fixture
def url() -> str:
    return f"s3://dst/{uuid.uuid4().hex}"


def _options(proxy: FaultyProxy, retry_s: float) -> StoreOptions:
    return StoreOptions(profile="r2", endpoint_url=proxy.endpoint_url, retry_s=retry_s)


@pytest.mark.parametrize("kind", ["500", "503", "reset_before", "reset_after", "cut", "slow"])
def test_each_fault_alone_is_survived(object_store: SeaweedFS, url: str, kind: str) -> None:
    with FaultyProxy(object_store.endpoint_url, rate=0.5, seed=1, kinds=[kind]) as faulty:
        store = open_store(
            url, StoreOptions(profile="r2", endpoint_url=faulty.endpoint_url, retry_s=30)
        )
        data = bytes(range(256)) * 100
        for number in range(4):
            store.put(f"a/{number}", data)
            assert store.get(f"a/{number}").data == data
        etag = store.head("a/0").etag
        assert store.read("a/0", 256, 256, etag=etag) == data[:256]
        assert [o.key for o in store.list()] == [f"a/{n}" for n in range(4)]
        store.delete("a/0")
        assert faulty.faults[kind] > 0


@pytest.fixture(autouse=True)
def _profile(proxy: FaultyProxy) -> None:
    """Every test here has the profile r2."""


def test_a_cut_body_is_never_returned(proxy: FaultyProxy, url: str) -> None:
    store = open_store(url, _options(proxy, 1.0))
    etag = store.put("a", b"0123456789" * 1000)
    store.head("a")
    cutting = FaultyProxy(proxy.endpoint_url, rate=1.0, kinds=["cut"])
    with cutting:
        cut = open_store(url, _options(cutting, 1.0))
        with pytest.raises(UnavailableError):
            cut.get("a")
        with pytest.raises(UnavailableError):
            cut.read("a", 0, 10_000, etag=etag)
        with pytest.raises(UnavailableError):
            list(cut.list())


def test_a_short_outage_is_waited_for(proxy: FaultyProxy, url: str) -> None:
    store = open_store(url, _options(proxy, 30))
    store.put("a", b"x")
    proxy.down = True
    timer = threading.Timer(1.0, lambda: setattr(proxy, "down", False))
    timer.start()
    assert store.get("a").data == b"x"
    assert proxy.faults["reset_before"] >= 2


def test_a_store_that_stays_down_is_given_up_in_time_and_used_again_later(
    proxy: FaultyProxy, url: str
) -> None:
    store = open_store(url, _options(proxy, 1.0))
    store.put("a", b"x")
    proxy.down = True
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:\d+; tried \d+ times"):
        store.get("a")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        list(store.list())
    assert time.monotonic() - started < 6
    proxy.down = False
    assert store.get("a").data == b"x"


def test_a_host_that_never_answers_is_given_up_soon(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speechmill.storage.faults, "FIRST_CONTACT_S", 0.5)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        options = StoreOptions(profile="r2", endpoint_url=f"http://127.0.0.1:{port}")
        for ask in (
            lambda: open_store(url, options).get("a"),
            lambda: list(open_store(url, options).list()),
        ):
            started = time.monotonic()
            with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}"):
                ask()
            assert time.monotonic() - started < 3


def test_a_lost_reply_to_a_conditional_put_shows_as_a_conflict(
    object_store: SeaweedFS, url: str
) -> None:
    with FaultyProxy(object_store.endpoint_url, rate=1.0, kinds=["reset_after"]) as faulty:
        store = open_store(url, _options(faulty, 30))
        recover = threading.Timer(0.05, lambda: setattr(faulty, "rate", 0.0))
        recover.start()
        with pytest.raises(ConflictError):
            store.put("a", b"mine", if_absent=True)
        assert store.get("a").data == b"mine"


def test_refusals_are_not_tried_again(proxy: FaultyProxy, url: str) -> None:
    store = open_store(url, _options(proxy, 60))
    before = proxy.requests
    with pytest.raises(NotFoundError):
        store.get("none")
    assert proxy.requests == before + 1


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (500, "InternalError", UnavailableError),
        (502, "", UnavailableError),
        (503, "SlowDown", UnavailableError),
        (429, "", UnavailableError),
        (400, "RequestTimeout", UnavailableError),
        (501, "NotImplemented", UnsupportedError),
        (404, "NoSuchKey", NotFoundError),
        (404, "NoSuchBucket", NotFoundError),
        (412, "PreconditionFailed", ConflictError),
        (409, "ConditionalRequestConflict", ConflictError),
        (403, "SignatureDoesNotMatch", AccessDeniedError),
        (403, "", AccessDeniedError),
        (401, "Unauthorized", AccessDeniedError),
        (400, "ExpiredToken", AccessDeniedError),
        (301, "PermanentRedirect", StorageError),
        (400, "InvalidArgument", StorageError),
    ],
)
def test_each_reply_has_its_error(status: int, code: str, expected: type[StorageError]) -> None:
    fault = error_of_reply(status, code, "what the store says", what="reading x", bucket="b")
    assert type(fault) is expected
    assert "reading x" in str(fault)


def test_a_store_that_ignores_conditions_is_refused_unless_vouched_for() -> None:
    careless = SingleWriter(open_store(f"memory://{uuid.uuid4().hex}"))
    with pytest.raises(UnsupportedError, match="--single-writer"):
        check_store(careless)
    careless.check()
    assert list(careless.list()) == []
    etag = careless.put("a", b"1")
    careless.put("a", b"2", if_absent=True)
    careless.put("a", b"3", if_etag=etag)
    assert careless.get("a").data == b"3"


def test_a_store_that_refuses_true_conditions_is_refused() -> None:
    class Stubborn(SingleWriter):
        def put(
            self, key: str, data: bytes, *, if_absent: bool = False, if_etag: str | None = None
        ) -> str:
            if if_etag is not None or (if_absent and list(self.list())):
                raise ConflictError(key)
            return super().put(key, data)

    with pytest.raises(UnsupportedError, match="unchanged"):
        check_store(Stubborn(open_store(f"memory://{uuid.uuid4().hex}")))
