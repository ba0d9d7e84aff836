"""A store that answers badly, and one that goes down: the same dataset, now or after the next
build."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from tests.support.chaos import Chaos
from tests.support.faults import FaultyProxy
from tests.support.harness import Bucket, Build, Place, Watched, assert_same_dataset, corpus, ended
from tests.support.services import SeaweedFS

FILES = corpus(16, 3)
MANY_ROUNDS = 10_000
RETRY_S = 3.0


@pytest.fixture(scope="module")
def bucket(object_store: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    return Bucket(object_store, tmp_path_factory.mktemp("profile"))


@pytest.fixture(autouse=True)
def _profile(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def source(bucket: Bucket) -> Place:
    # A name of its own each time: the store dates what is put again anew.
    return bucket.fill(f"faults-{secrets.token_hex(4)}", FILES)


@pytest.fixture(scope="module")
def undisturbed(bucket: Bucket, source: Place) -> Place:
    sink = bucket.place(source.url.replace("s3://src/", "s3://dst/") + "/undisturbed")
    assert Build(source.url, sink.url, env=bucket.env).finish().code == 0
    return sink


@pytest.mark.timeout(900)
def test_one_request_in_ten_goes_wrong_and_the_dataset_is_the_same(
    object_store: SeaweedFS, bucket: Bucket, source: Place, undisturbed: Place, chaos: Chaos
) -> None:
    for number in chaos.rounds(1, MANY_ROUNDS):
        draw = chaos.draw("faults", number)
        sink = bucket.place(f"s3://dst/faults/rough-{number}")
        rate, seed = chaos.choose(0.1, draw.uniform(0.1, 0.2)), draw.randrange(10**6)
        with FaultyProxy(object_store.endpoint_url, rate=rate, seed=seed) as proxy:
            finished = Build(source.url, sink.url, "--endpoint-url", proxy.endpoint_url).finish()
            print(f"{proxy.requests} requests, {dict(proxy.faults)}, {finished.seconds:.1f} s")  # noqa: T201
            assert finished.code == 0, finished.err
            assert proxy.faults.total() >= 10
            assert len(proxy.faults) >= 4
        assert_same_dataset(sink, undisturbed)
        chaos.count("builds")
        chaos.count("requests", proxy.requests)
        chaos.count("faults", proxy.faults.total())


def _at_request(proxy: Watched, sign: str, count: int, act: Callable[[], None]) -> None:
    """Call ``act`` at the ``count``-th request in whose line ``sign`` is."""
    left = count

    def hear(request: str, when: str) -> None:
        nonlocal left
        if when == "before" and sign in request:
            left -= 1
            if left == 0:
                act()

    proxy.hear = hear


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moment"), [("commit", "/data/"), ("fetch", "GET /src/"), ("list", "GET /src?")]
)
def test_a_store_that_goes_down_ends_the_build_with_one_clear_error_and_the_next_one_goes_on(
    object_store: SeaweedFS,
    bucket: Bucket,
    source: Place,
    undisturbed: Place,
    name: str,
    moment: str,
) -> None:
    """It goes down while parts are committed, while recordings are fetched, while listing."""
    sink = bucket.place(f"s3://dst/faults/down-{name}")
    went_down: list[float] = []
    with Watched(object_store.endpoint_url) as proxy:
        build = Build(
            source.url, sink.url, "--endpoint-url", proxy.endpoint_url,
            "--store-retry-s", str(RETRY_S), seconds=0.02,
        )  # fmt: skip

        def go_down() -> None:
            proxy.down = True
            went_down.append(build.age_s)

        _at_request(proxy, moment, 1 if "?" in moment else 5, go_down)
        with ended(build):
            finished = build.finish()
        print(f"ended {finished.seconds - went_down[0]:.1f} s after it went down\n{finished.err}")  # noqa: T201
        assert finished.code == 1
        assert finished.seconds - went_down[0] < 2 * RETRY_S + 5
        assert finished.err.count("error:") == 1
        assert "Traceback" not in finished.err
        said = " ".join(finished.err.split())
        assert proxy.endpoint_url.removeprefix("http://") in said
        assert "the same command goes on" in said

        proxy.down = False
        proxy.hear = lambda request, when: None
        again = Build(source.url, sink.url, "--endpoint-url", proxy.endpoint_url).finish()
        assert again.code == 0, again.err
    assert_same_dataset(sink, undisturbed)
