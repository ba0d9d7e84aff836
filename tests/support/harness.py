"""Builds as a user runs them, in processes of their own; and looks at what has become of a sink."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np
import pyarrow as pa

import speechmill
from speechmill.dataset.commit import read_part
from speechmill.dataset.layout import DATA, FAILURES
from speechmill.dataset.reader import list_parts
from speechmill.dataset.schema import FAILURE_SCHEMA
from speechmill.errors import DatasetError
from speechmill.storage import Store, StoreOptions, open_store
from tests.support.faults import FaultyProxy
from tests.support.services import SeaweedFS

TIMINGS = ("fetch_s", "decode_s", "transcribe_s", "tokenize_s")
SAMPLE_RATE = 8_000
LONGEST_BUILD_S = 120.0


def recording(seed: int, seconds: float = 0.5) -> bytes:
    """A WAV file of noise, 8 kHz mono."""
    noise = np.random.default_rng(seed).standard_normal(int(SAMPLE_RATE * seconds)) * 3_000
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE)
        wav.writeframes(noise.astype("<i2").tobytes())
    return file.getvalue()


def corpus(folders: int, each: int, *, broken: int = 0) -> dict[str, bytes]:
    """Recordings by file name; in ``broken`` of the folders one that ends too early, and one that
    is no audio."""
    files = {
        f"p{f:02d}/p{f:02d}_{i:03d}.wav": recording(1_000 * f + i, 0.3 + 0.02 * (f % 7))
        for f in range(folders)
        for i in range(each)
    }
    for f in list(range(folders))[:: folders // broken] if broken else []:
        files[f"p{f:02d}/short.wav"] = recording(f)[:3_000]
        files[f"p{f:02d}/text.flac"] = b"This is no audio at all."
    return files


@dataclass(frozen=True)
class Finished:
    """How a build ended. ``code``: as subprocess has it, negative when a signal killed it."""

    code: int
    out: str
    err: str
    seconds: float


class Command:
    """``speechmill …`` in its own process."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._out: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 as long as the build
        self._err: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 see above
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "speechmill", *arguments],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def said(self) -> str:
        """What it has written to standard error so far."""
        return os.pread(self._err.fileno(), 1 << 20, 0).decode(errors="replace")

    def finish(self, timeout_s: float = LONGEST_BUILD_S) -> Finished:
        """Wait for its end."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(
                f"not ended after {timeout_s} s:\n{self._text(self._err)}"
            ) from None
        seconds = self.age_s
        return Finished(code, self._text(self._out), self._text(self._err), seconds)

    def finish_after(self, delay_s: float) -> None:
        """Return after so many seconds of its life, or when it has ended."""
        try:
            self._process.wait(max(0.0, delay_s - self.age_s))
        except subprocess.TimeoutExpired:
            return

    @staticmethod
    def _text(file: BinaryIO) -> str:
        file.seek(0)
        return file.read().decode(errors="replace")


class Build(Command):
    """``speechmill build SOURCE SINK …`` with the fake transcriber."""

    def __init__(
        self,
        source: str,
        sink: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        seconds: float = 0.0,
        transcriber: tuple[str, ...] = (),
    ) -> None:
        model = transcriber or ("--transcriber", "fake", "--model", f"fake:{seconds}")
        super().__init__(
            *("build", source, sink), *model, *("--part-minutes", "0.02"), *options, env=env
        )


class Watched(FaultyProxy):
    """A proxy that shows every request to ``hear`` before it is passed on, and once it is done.

    ``hear`` gets "PUT /dst/x/data/…" and "before" or "after", on the connection's thread: the
    client waits meanwhile.
    """

    def __init__(self, target: str, *, rate: float = 0.0, seed: int = 0) -> None:
        super().__init__(target, rate=rate, seed=seed)
        self.hear: Callable[[str, str], None] = lambda request, when: None
        self.log: list[tuple[float, str]] = []

    def _exchange(
        self,
        client: socket.socket,
        upstream: socket.socket,
        replies: BinaryIO,
        head: bytes,
        body: bytes,
    ) -> bool:
        request = b" ".join(head.split(b" ", 2)[:2]).decode(errors="replace")
        self.log.append((time.monotonic(), request))
        self.hear(request, "before")
        telling = cast("socket.socket", _Telling(client, lambda: self.hear(request, "after")))
        return super()._exchange(telling, upstream, replies, head, body)


class _Telling:
    """A socket that calls ``tell`` before the first bytes are sent."""

    def __init__(self, client: socket.socket, tell: Callable[[], None]) -> None:
        self._client = client
        self._tell: Callable[[], None] | None = tell

    def sendall(self, data: bytes) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()
        self._client.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@dataclass(frozen=True)
class Place:
    """A bucket or folder with the way to it."""

    url: str
    endpoint_url: str | None = None
    profile: str | None = None

    @property
    def store(self) -> Store:
        return open_store(self.url, StoreOptions(self.profile, self.endpoint_url))

    def dataset_rows(self) -> pa.Table:
        """The rows as ``speechmill.open_dataset`` gives them, by file name, without timings."""
        dataset = speechmill.open_dataset(
            self.url, profile=self.profile, endpoint_url=self.endpoint_url
        )
        return dataset.to_table().drop_columns(list(TIMINGS)).sort_by("file_name")

    def failures(self, *, attempts: bool = True) -> pa.Table:
        """The failures, by file name, without the time at which they were found."""
        return _failures(self.store, ["failed_at", *([] if attempts else ["attempts"])])

    def names(self) -> list[str]:
        """The file names of all rows, sorted."""
        names: list[str] = self.dataset_rows()["file_name"].to_pylist()
        return names

    def objects(self) -> dict[str, bytes]:
        """Every object below it, whole."""
        store = self.store
        return {o.key: store.get(o.key).data for o in store.list()}


def _failures(store: Store, without: list[str]) -> pa.Table:
    tables = [read_part(p.key, store.get(p.key).data) for p in list_parts(store, FAILURES)]
    table = pa.concat_tables([FAILURE_SCHEMA.empty_table(), *tables])
    return table.drop_columns(without).sort_by("file_name")


def part_keys(place: Place) -> set[str]:
    """The keys of all parts with rows."""
    return {o.key for o in list_parts(place.store, DATA)}


def assert_same_dataset(one: Place, other: Place, *, attempts: bool = True) -> None:
    """Row for row the same, timings excepted; the same failures; each recording accounted once."""
    rows, expected = one.dataset_rows(), other.dataset_rows()
    twice = [n for n, count in Counter(rows["file_name"].to_pylist()).items() if count > 1]
    assert not twice
    assert rows["file_name"].to_pylist() == expected["file_name"].to_pylist()
    assert rows.equals(expected), [
        name for name in rows.column_names if not rows[name].equals(expected[name])
    ]
    assert part_keys(one) == part_keys(other)
    failures, expected = (p.failures(attempts=attempts) for p in (one, other))
    assert failures.to_pylist() == expected.to_pylist()
    assert not set(failures["file_name"].to_pylist()) & set(rows["file_name"].to_pylist())


class Poller:
    """Reads a sink over and over, as another program would, and notes whatever is wrong.

    Wrong is: a recording missing that was there before, one that is there twice, an older version
    of one than was seen before, and any exception once the sink exists.
    """

    def __init__(self, sink: Place, *, pause_s: float = 0.1) -> None:
        self._sink, self._pause_s = sink, pause_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seen: dict[str, tuple[str, int]] = {}  # etag and time of each recording
        self.polls = 0
        self.growth: list[int] = []
        self.versions: Counter[str] = Counter()
        self.recipes: set[frozenset[str]] = set()
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        exists = False
        while not self._end.wait(self._pause_s):
            try:
                table = speechmill.open_dataset(
                    self._sink.url,
                    profile=self._sink.profile,
                    endpoint_url=self._sink.endpoint_url,
                ).to_table(columns=["file_name", "source_etag", "source_modified", "recipe"])
            except DatasetError as error:
                if exists or "there is no dataset" not in str(error):
                    self.wrong.append(f"{type(error).__name__}: {error}")
                continue
            except Exception as error:  # noqa: BLE001 whatever it is, the test fails by it
                self.wrong.append(f"{type(error).__name__}: {error}")
                continue
            exists = True
            self._look(table)

    def _look(self, table: pa.Table) -> None:
        self.polls += 1
        names = table["file_name"].to_pylist()
        if len(set(names)) != len(names):
            self.wrong.append(f"twice: {[n for n, c in Counter(names).items() if c > 1]}")
        if missing := self._seen.keys() - set(names):
            self.wrong.append(f"missing: {sorted(missing)}")
        times = table["source_modified"].cast(pa.int64()).to_pylist()
        for name, etag, at in zip(names, table["source_etag"].to_pylist(), times, strict=True):
            if name in self._seen and self._seen[name][0] != etag:
                self.versions[name] += 1
                if self._seen[name][1] > at:
                    self.wrong.append(f"older than before: {name}")
            self._seen[name] = etag, at
        self.growth.append(len(names))
        self.recipes.add(frozenset(table["recipe"].to_pylist()))


class Bucket:
    """A real object store with a profile for it, as tests of builds use it."""

    def __init__(self, server: SeaweedFS, folder: Path) -> None:
        self.server = server
        self.env = {**server.write_profile(folder / "aws"), "AWS_PROFILE": "r2"}

    def place(self, url: str) -> Place:
        return Place(url, self.server.endpoint_url, "r2")

    def fill(self, prefix: str, files: Mapping[str, bytes]) -> Place:
        """Put files below ``s3://src/PREFIX``."""
        client = self.server.client()
        for name, data in files.items():
            client.put_object(Bucket="src", Key=f"{prefix}/{name}", Body=data)
        return self.place(f"s3://src/{prefix}")


def fill_folder(folder: Path, files: Mapping[str, bytes]) -> Place:
    """Write files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Place(str(folder))


@contextmanager
def ended(*builds: Command) -> Iterator[None]:
    """Let no build outlive a test that fails."""
    try:
        yield
    finally:
        for build in builds:
            if build.running:
                build.kill()
                build.finish()
