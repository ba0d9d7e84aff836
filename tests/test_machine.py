"""Room in the temporary folder: never more is claimed than there is, and all is given back."""

from __future__ import annotations

import errno
import gc
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill import machine
from speechmill.machine import Claim, alone, is_no_room
from tests.support.room import limited_room

NULL = Path("/dev/null")


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    gc.collect()
    assert not machine._shares
    yield
    gc.collect()
    assert not machine._shares


def test_what_is_expected_is_claimed_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    limited_room(monkeypatch, 1000)
    first, second = Claim(), Claim()
    with tempfile.TemporaryFile(buffering=0) as file:
        first.write(file, bytes(10), expected=700)
        with pytest.raises(OSError, match=r"it needs 0.00 GB, has 0.00 GB.* are free") as caught:
            second.write(file, bytes(10), expected=301)
        assert is_no_room(caught.value)
        second.write(file, bytes(300))
        first.write(file, bytes(690), expected=700)
        with pytest.raises(OSError, match="GB are free"):
            first.write(file, bytes(1), expected=700)
        second.release()
        first.write(file, bytes(300), expected=700)


def test_room_is_given_back_with_what_it_was_kept_for(monkeypatch: pytest.MonkeyPatch) -> None:
    limited_room(monkeypatch, 1000)

    class Map:
        pass

    kept = Map()
    claim = Claim()
    with tempfile.TemporaryFile(buffering=0) as file:
        claim.write(file, bytes(900))
        claim.keep_for(kept)
        del claim
        gc.collect()
        with pytest.raises(OSError, match="GB are free"):
            Claim().write(file, bytes(200))
        del kept
        Claim().write(file, bytes(200))


def test_a_folder_that_is_gone_is_no_lack_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with NULL.open("wb", buffering=0) as file, pytest.raises(FileNotFoundError):
        Claim().write(file, bytes(10))


def test_a_full_disk_says_how_much_is_missing() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as file,
        pytest.raises(OSError, match="GB are free") as caught,
    ):
        Claim().write(file, bytes(10))
    assert caught.value.errno == errno.ENOSPC


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 120)), max_size=40
    ),
    room=st.integers(0, 200),
)
@settings(deadline=None)
def test_claims_never_exceed_the_room(steps: list[tuple[int, int, int]], room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        limited_room(patch, room)
        claims = [Claim() for _ in range(4)]
        with NULL.open("wb", buffering=0) as file:
            for who, count, expected in steps:
                if not count:
                    claims[who].release()
                    claims[who] = Claim()
                    continue
                with suppress(OSError):
                    claims[who].write(file, bytes(count), expected)
                assert sum(share.claimed for share in machine._shares) <= room
                assert all(share.written <= share.claimed for share in machine._shares)
        del claims
        assert not machine._shares


def test_who_waits_to_be_alone_begins_when_the_others_are_done() -> None:
    other, order = Claim(), []
    with NULL.open("wb", buffering=0) as file:
        other.write(file, bytes(10))

    def wait(name: str) -> None:
        with alone(lambda: False) as may_begin:
            assert may_begin
            order.append(name)
            assert not machine._shares
            time.sleep(0.01)
            order.append(name)

    waiting = [threading.Thread(target=wait, args=(name,)) for name in "abc"]
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert order == []
    other.release()
    for thread in waiting:
        thread.join(20)
    assert [*zip(order[::2], order[::2], strict=True)] == [
        *zip(order[::2], order[1::2], strict=True)
    ]
    assert sorted(order[::2]) == ["a", "b", "c"]


def test_a_stop_ends_the_waiting() -> None:
    other = Claim()
    with NULL.open("wb", buffering=0) as file:
        other.write(file, bytes(10))
    with alone(lambda: True) as may_begin:
        assert not may_begin
        with alone(lambda: True) as another:
            assert not another
    other.release()


def test_what_a_caller_keeps_for_ever_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "STILL_S", 0.1)
    kept = Claim()
    with NULL.open("wb", buffering=0) as file:
        kept.write(file, bytes(10))
    with alone(lambda: False) as may_begin:
        assert may_begin
    kept.release()
