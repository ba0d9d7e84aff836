"""A run's logs: written as they grow, and not held."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from speechmill.dataset.run_log import PIECE_BYTES, RunLog
from speechmill.errors import UnavailableError
from speechmill.records import RecordingDone
from speechmill.storage import open_store
from tests.support.corpus import memory

COUNT = 20_000


def log_all(log: RunLog) -> None:
    for i in range(COUNT):
        log.recording(RecordingDone(f"p1/{i:07d}.wav", 100, 3.0, 1, 0.1, 0.1, 0.2, 0.1))
        log.flush()


def test_a_log_that_grows_fast_is_written_instead_of_held() -> None:
    store = open_store(memory())
    log = RunLog(store, "run")
    log_all(log)
    assert sum(o.size for o in store.list(log.folder)) > 3 * PIECE_BYTES
    log.flush(now=True)
    pieces = sorted((o.key for o in store.list(log.folder)), key=lambda key: (len(key), key))
    lines = [json.loads(x) for key in pieces for x in store.get(key).data.splitlines()]
    assert [line["file_name"] for line in lines] == [f"p1/{i:07d}.wav" for i in range(COUNT)]


@given(text=st.text(st.characters(categories=("L", "C", "P"))))
def test_whatever_a_message_says_is_logged_as_it_is(text: str) -> None:
    store = open_store(memory())
    log = RunLog(store, "run")
    log.event("dead letter", reason=text)
    log.flush(now=True)
    log.report({"reason": text})
    (line,) = (o.key for o in store.list(log.folder) if "application" in o.key)
    for key in (line, f"{log.folder}/report.json"):
        assert json.loads(store.get(key).data)["reason"] == text


def test_a_store_that_is_down_is_not_asked_for_every_recording() -> None:
    class Down:
        asked = 0

        def put(self, key: str, data: bytes) -> None:
            self.asked += 1
            raise UnavailableError("down")

    store: Any = Down()
    log_all(RunLog(store, "run"))
    assert 1 <= store.asked <= 3
