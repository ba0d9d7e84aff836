"""Room in the temporary folder: never more is claimed than there is, and all is given back."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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


# What other processes have claimed, and not written yet.

CLAIMING = """
import sys
from speechmill import machine
machine.join_ledger(int(sys.argv[1]), int(sys.argv[2]))
machine._free_bytes = lambda: machine.SPARE_BYTES + 1000
with open("/dev/null", "wb", buffering=0) as file:
    sys.stdin.readline()
    claim = machine.Claim()
    try:
        claim.write(file, bytes(100), expected=int(sys.argv[3]))
        print("has room", flush=True)
    except OSError:
        print("has none", flush=True)
    sys.stdin.readline()
    claim.release()
    print("gone", flush=True)
    sys.stdin.readline()
"""


class Claiming:
    """A process that claims so many bytes, of which it writes 100, once it is told to."""

    def __init__(self, num_bytes: int) -> None:
        fd, self.place = machine.lend_ledger()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIMING, str(fd), str(self.place), str(num_bytes)],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        machine.take_back_ledger(self.place)


@pytest.fixture
def claiming(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Claiming]]:
    monkeypatch.setattr(machine, "_ledger", machine._Ledger())
    monkeypatch.setattr(machine, "_free_bytes", lambda: machine.SPARE_BYTES + 1000)
    processes: list[Claiming] = []

    def start(num_bytes: int) -> Claiming:
        processes.append(Claiming(num_bytes))
        return processes[-1]

    yield start
    for one in processes:
        one.end()


def has_room(num_bytes: int) -> bool:
    claim = Claim()
    with NULL.open("wb", buffering=0) as file:
        try:
            claim.write(file, bytes(1), expected=num_bytes)
        except OSError:
            return False
        finally:
            claim.release()
    return True


def test_what_another_process_has_claimed_is_not_there_until_it_lets_go_or_ends(
    claiming: Callable[[int], Claiming],
) -> None:
    first, second = claiming(700), claiming(300)
    assert has_room(1000)
    for one in (first, second):
        one.tell()
        assert one.hear() == "has room"
    assert (has_room(201), has_room(200)) == (False, True)  # 600 and 200 are still to be written
    second.tell()
    assert second.hear() == "gone"
    assert (has_room(401), has_room(400)) == (False, True)
    first.process.kill()
    first.process.wait()
    assert not has_room(401)
    first.end()
    assert has_room(1000)


def test_what_this_process_has_claimed_is_not_there_for_another(
    claiming: Callable[[int], Claiming],
) -> None:
    one, claim = claiming(600), Claim()
    with NULL.open("wb", buffering=0) as file:
        claim.write(file, bytes(10), expected=500)
    one.tell()
    assert one.hear() == "has none"
    claim.release()


def test_of_many_processes_at_once_no_more_have_room_than_there_is(
    claiming: Callable[[int], Claiming],
) -> None:
    some = [claiming(400) for _ in range(5)]  # 100 of it are written elsewhere, and not missed
    for one in some:
        one.tell()
    assert sorted(one.hear() for one in some) == ["has none"] * 2 + ["has room"] * 3
