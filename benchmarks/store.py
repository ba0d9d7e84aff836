"""Listing and fetching from an object store: Speechmill's store against boto3, in the same run.

boto3 one object after the other is what scripts do today; boto3 in as many threads as Speechmill
uses is what they could do. The object store is SeaweedFS on this machine's own cores.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.services import SeaweedFS

from benchmarks.figures import command, machine, print_table
from speechmill import Job
from speechmill.storage import Store, StoreOptions, open_store

BUCKET = "src"
PROFILE = "benchmark"
THREADS: int = Job.model_fields["fetchers"].default


def fill(store: Store, count: int, size: int) -> list[str]:
    """Put ``count`` objects of ``size`` random bytes. Returns their keys."""
    data = random.Random(0).randbytes(size)
    keys = [f"p{i // 100:03d}/p{i // 100:03d}_{i % 100:03d}.flac" for i in range(count)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: store.put(key, data), keys))
    return keys


def listed_by_boto3(client: Any) -> Iterable[str]:
    """The keys of the bucket, page by page."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", ()):
            yield item["Key"]


def in_threads(get: Callable[[str], int], keys: Sequence[str]) -> int:
    """Fetch all keys in ``THREADS`` threads. Returns the bytes."""
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(get, keys))


def sides(
    store: Store, client: Any, keys: Sequence[str]
) -> dict[tuple[str, str], Callable[[], int]]:
    """What is measured: (what, how) → an action that says how many objects or bytes it had."""

    def ours(key: str) -> int:
        return len(store.get(key).data)

    def theirs(key: str) -> int:
        return len(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    return {
        ("list", "Speechmill"): lambda: sum(1 for _ in store.list()),
        ("list", "boto3"): lambda: sum(1 for _ in listed_by_boto3(client)),
        ("fetch", f"Speechmill, {THREADS} threads"): lambda: in_threads(ours, keys),
        ("fetch", "boto3, one by one"): lambda: sum(map(theirs, keys)),
        ("fetch", f"boto3, {THREADS} threads"): lambda: in_threads(theirs, keys),
    }


def main() -> None:
    """Measure, and print."""
    parser = command("store", __doc__, "--objects 2000 --kilobytes 100")
    parser.add_argument("--objects", type=int, default=2_000, help="objects in the bucket")
    parser.add_argument("--kilobytes", type=int, default=100, help="size of an object")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    options = parser.parse_args()
    size = options.kilobytes * 1_000
    print(machine())
    seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with SeaweedFS() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(server.write_profile(Path(folder), PROFILE))
        store = open_store(f"s3://{BUCKET}", StoreOptions(profile=PROFILE))
        keys = fill(store, options.objects, size)
        expected = {"list": len(keys), "fetch": len(keys) * size}
        for _ in range(options.repeats):
            for (what, how), action in sides(store, server.client(), keys).items():
                started = time.perf_counter()
                found = action()
                seconds[what, how].append(time.perf_counter() - started)
                if found != expected[what]:
                    raise SystemExit(f"{how}: {found} of {expected[what]}")
    rows = []
    for (what, how), taken in seconds.items():
        rate = len(keys) / statistics.median(taken)
        rows.append((what, how, f"{rate:,.0f}/s", f"{rate * size / 1e6:,.0f} MB/s"))
    print(f"{len(keys):,} objects of {options.kilobytes} kB; medians of {options.repeats}")
    rows = [(*row[:3], row[3] if row[0] == "fetch" else "") for row in rows]
    print_table(("", "how", "objects", "bytes"), rows)


if __name__ == "__main__":
    main()
