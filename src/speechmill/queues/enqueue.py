"""``enqueue``: publish a message for each recording of a source that a dataset lacks.

Messages are published part by part, so that a worker that receives consecutive ones rewrites few
parts. On Kafka a part's messages share a partition, and so a worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from speechmill.dataset.layout import STATE
from speechmill.dataset.state import read_state
from speechmill.errors import JobError, NotFoundError, SourceChangedError
from speechmill.job import Job
from speechmill.pipeline.planner import Plan, make_plan
from speechmill.pipeline.resources import open_sink, open_source
from speechmill.queues.base import Broker
from speechmill.queues.notices import encode
from speechmill.records import Part, Recording
from speechmill.storage import Store, open_store

__all__ = ["NO_SINK", "EnqueueReport", "Observer", "enqueue"]

NO_SINK = "memory://none"
"""The sink of a job without one: then every recording is published."""

CLOCK_SKEW_US = 300_000_000  # that the store's clock, with its whole seconds, and ours may differ
CHUNK = 5_000  # messages confirmed together; after each the position is stored


class Observer:
    """Observer of ``enqueue``. Called from one thread."""

    def listed(self, count: int) -> None:
        """``count`` objects of the source have been listed."""

    def planned(self, plan: Plan) -> None:
        """The plan is made; publishing begins."""

    def progress(self, published: int) -> None:
        """``published`` messages are confirmed, those of an earlier run included."""


@dataclass(frozen=True, slots=True)
class EnqueueReport:
    """Counts of a run. ``resumed`` messages were published by an earlier run that was cut short."""

    queue: str
    listed: int
    published: int
    resumed: int
    done: int
    failed: int
    left_out: int
    wall_s: float
    publish_s: float
    stopped: bool = False


class _Bookmark:
    """The position up to which a run has published. It is stored in the sink or, without one, in
    the user's XDG_STATE_HOME."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._started_us, self._count = time.time_ns() // 1000, 0
        self._place: tuple[str, int, str] | None = None  # folder, index of the part, recording
        with suppress(NotFoundError, ValueError, KeyError, TypeError):
            kept = json.loads(store.get(key).data)
            folder_name, index, last = kept["place"]
            self._started_us, self._count = int(kept["started_us"]), int(kept["count"])
            self._place = folder_name, index, last

    def is_behind(self, part: Part, recording: Recording) -> bool:
        """Whether the recording was published, and has not changed since."""
        if self._place is None or recording.modified_us >= self._started_us - CLOCK_SKEW_US:
            return False
        if part.folder_name == self._place[0] and part.count != self._count:
            return False  # the folder is cut into parts otherwise by now
        return (part.folder_name, part.index, recording.key) <= self._place

    def keep(self, part: Part, recording: Recording) -> None:
        """Store that all up to this recording is confirmed."""
        place = [part.folder_name, part.index, recording.key]
        told = {"place": place, "count": part.count, "started_us": self._started_us}
        self._store.put(self._key, json.dumps(told).encode())

    def close(self) -> None:
        """Remove the position: all is published, and the next run starts at the beginning."""
        with suppress(NotFoundError):
            self._store.delete(self._key)


def enqueue(
    job: Job,
    broker: Broker,
    *,
    partitions: int = 12,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> EnqueueReport:
    """Publish a message for each recording of the job's source that its sink lacks.

    ``job.sink`` may be ``NO_SINK``: then the whole source is published. The same call again
    continues where the last one was cut short.

    Raises:
        JobError: an option makes no sense.
        SourceChangedError: the sink's rows come from another source.
        DatasetError: there are no recordings in the source.
        BrokerError: the broker cannot be reached, refuses, or does not confirm.
        StorageError: a store cannot be listed or read.
    """
    started = time.monotonic()
    observer = observer or Observer()
    if job.prune or job.shard_count > 1:
        raise JobError("--prune and --shard-count are for builds")
    job, source, sink, recipe = _open_stores(job)
    broker.prepare(partitions)
    made = make_plan(
        job,
        source,
        sink,
        recipe,
        settle=(lambda: None) if job.sink != NO_SINK else None,
        on_listed=observer.listed,
    )
    observer.planned(made)
    bookmark = _bookmark(job, source, sink, broker)
    publishing = time.monotonic()
    published, resumed, stopped = _publish(made, source.url, broker, bookmark, observer, stop)
    if not stopped:
        bookmark.close()
    return EnqueueReport(
        queue=broker.url,
        listed=made.listed,
        published=published,
        resumed=resumed,
        done=made.done,
        failed=made.failed,
        left_out=sum(made.left_out.values()),
        wall_s=time.monotonic() - started,
        publish_s=time.monotonic() - publishing,
        stopped=stopped,
    )


def _publish(
    plan: Plan,
    source_url: str,
    broker: Broker,
    bookmark: _Bookmark,
    observer: Observer,
    stop: Callable[[], bool],
) -> tuple[int, int, bool]:
    """Publish what the plan lacks, behind the bookmark. Returns how many messages were published,
    how many had been before, and whether ``stop`` ended it."""
    published = resumed = 0
    stopped = False
    chunk: list[tuple[Part, Recording]] = []

    def send() -> None:
        nonlocal published
        if chunk:
            broker.publish([encode(source_url, recording, part) for part, recording in chunk])
            published += len(chunk)
            bookmark.keep(*chunk[-1])
            chunk.clear()
            observer.progress(published + resumed)

    for part, recording in _in_order(plan):
        if bookmark.is_behind(part, recording):
            resumed += 1
            continue
        chunk.append((part, recording))
        if len(chunk) == CHUNK:
            send()
            if stopped := stop():
                break
    send()
    return published, resumed, stopped


def _open_stores(job: Job) -> tuple[Job, Store, Store, str]:
    """Open the job's stores. Returns the job with the sink's rules, both stores, and its recipe."""
    source = open_source(job)
    if job.sink == NO_SINK:
        return job, source, open_store(f"memory://{uuid4().hex}"), ""
    sink = open_sink(job)
    state = read_state(sink)
    if state is None:
        return job, source, sink, ""
    if state["source"] != source.url:
        raise SourceChangedError(
            f"the sink {sink.url} holds recordings of {state['source']}, not of {source.url}: "
            "give that source, or another sink"
        )
    rules = {"folder": state["folder"], "partition_by": state.get("partition_by", "folder")}
    return job.model_copy(update=rules), source, sink, str(state["recipe"])


def _in_order(plan: Plan) -> Iterator[tuple[Part, Recording]]:
    """Yield the recordings of a plan by folder, part and key."""
    for shard in plan.shards:
        for part, recordings in shard.parts:
            for recording in sorted(recordings, key=lambda r: r.key):
                yield part, recording


def _bookmark(job: Job, source: Store, sink: Store, broker: Broker) -> _Bookmark:
    """Open the bookmark that runs with the same selection of recordings share."""
    choice: dict[str, Any] = job.model_dump(
        mode="json", include={"extension", "include", "exclude", "limit", "folder", "partition_by"}
    )
    told = [source.url, job.sink, broker.url, choice]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    if job.sink != NO_SINK:
        return _Bookmark(sink, f"{STATE}/enqueue/{digest}.json")
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return _Bookmark(open_store(f"{home}/speechmill/enqueue"), f"{digest}.json")
