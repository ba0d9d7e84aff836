"""Secrets that are typed wrongly are not repeated by errors."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speechmill.errors import SpeechmillError
from speechmill.queues import open_broker
from speechmill.queues.options import WorkOptions
from speechmill.storage import StoreOptions, open_store
from speechmill.storage.urls import parse_url

SECRET = "q7Xz9Kw2"
NAMES = ("sasl.password", "security.protocol", "heartbeat", "ca", "acks", "user", "verify")
SIGNS = "://@?=#&%.,[]-_ \\\n"
# Pieces of which URLs are made, and the secret anywhere behind a sign.
pieces = st.one_of(
    st.sampled_from(("amqp://", "kafka://", "s3://", "gs://", "file://", "amqpp://", "s4:/", "u")),
    st.text(alphabet=SIGNS + string.ascii_letters + string.digits, max_size=6),
    st.sampled_from(("host:9092", "user", "bucket", "password", "/q", "secret", "[::1]:5")),
)
urls = st.tuples(
    st.lists(pieces, max_size=5), st.sampled_from(":@?="), st.lists(pieces, max_size=4)
)


def typed(url: tuple[list[str], str, list[str]]) -> str:
    before, sign, after = url
    return f"{''.join(before)}{sign}{SECRET}{''.join(after)}"


def said(action: Callable[[], object]) -> str:
    """What its error says, if there is one."""
    try:
        action()
    except SpeechmillError as error:
        return str(error)
    return ""


def opened(url: str, option: object = ()) -> None:
    """Open a queue with an option as a user gives it, as far as it goes without a broker."""
    options = WorkOptions(queue=url, broker_option=option or [])
    broker = open_broker(options.queue, options.broker_option)
    if url.startswith("kafka"):
        broker.publish([])  # makes a client, which reads the settings
    broker.close()


@given(urls)
def test_no_error_of_a_queues_url_has_a_secret(url: tuple[list[str], str, list[str]]) -> None:
    assert SECRET not in said(lambda: open_broker(typed(url)))


@given(urls)
def test_no_error_of_a_stores_url_has_a_secret(url: tuple[list[str], str, list[str]]) -> None:
    assert SECRET not in said(lambda: parse_url(typed(url)))


@example("kafka://h:9092/t", ["security.protocol"], "= ", False)
@given(
    st.sampled_from(("kafka://h:9092/t", "amqp://h:5672/q", "memory://m/q")),
    st.lists(st.text(alphabet=SIGNS + "abc.", max_size=12) | st.sampled_from(NAMES), max_size=2),
    st.sampled_from((":", "@", "?", "=", "=env:", "=file:/", " =", "= ", ":x=")),
    st.booleans(),
)
def test_no_error_of_an_option_has_a_secret(
    url: str, names: list[str], sign: str, as_value: bool
) -> None:
    text = f"{''.join(names)}{sign}{SECRET}{'' if as_value else '=1'}"
    assert SECRET not in said(lambda: opened(url, [text]))


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://u:p/{SECRET}@host:9/q",
        f"amqp://u:5/{SECRET}@host:9/q",
        f"amqp://u:{SECRET}",
        f"u:{SECRET}@host/q",
        f"amqpp://u:{SECRET}@h/q",
        f"u:{SECRET}://h/q",
        f"kafka://u:{SECRET}@h/q",
        f"kafka://h/q?password={SECRET}",
        f"amqp://u:{SECRET}@h:port/q",
        f"amqp://u:{SECRET},h/q",
    ],
)
def test_queues_that_are_refused(url: str) -> None:
    with pytest.raises(SpeechmillError) as caught:
        open_broker(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://b/x?secret={SECRET}",
        f"s3://b?secret={SECRET}",
        f"s4://KEY:{SECRET}@b",
        f"s3:/KEY:{SECRET}@b",
        f"s3:KEY:{SECRET}@b",
        f"KEY:{SECRET}@b/x",
        f"7KEY/x:{SECRET}@b/x",
        f"s3:///{SECRET}",
        f"file://u:{SECRET}@h/x",
    ],
)
def test_stores_that_are_refused(url: str) -> None:
    with pytest.raises(SpeechmillError) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [f"http//u:{SECRET}@h", f"https://h:{SECRET}", f"https://[{SECRET}", f"u:{SECRET}@h"],
)
def test_endpoints_that_are_refused(endpoint: str) -> None:
    with pytest.raises(SpeechmillError) as caught:
        open_store("s3://b", StoreOptions(endpoint_url=endpoint, anonymous=True))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        [f"sasl.password {SECRET}"],
        [f"={SECRET}"],
        [f"sasl.password {SECRET}=x"],
        f"sasl.password={SECRET}",
        {"sasl.password": [SECRET]},
        {f"a:{SECRET}": "x"},
        [f"sasl.password=env:{SECRET}"],
        [f"sasl.password=file:/{SECRET}"],
        [f"heartbeat={SECRET}"],
        [f"no.such.option={SECRET}"],
    ],
)
def test_options_that_are_refused(option: object) -> None:
    with pytest.raises(SpeechmillError) as caught:
        opened("amqp://h/q", option)
    assert SECRET not in str(caught.value)


def test_a_folder_with_a_colon_has_a_way_to_be_named() -> None:
    assert parse_url("./a:b").url.endswith("/a:b")
    assert parse_url("2026-11-24T10:00").url.endswith("/2026-11-24T10:00")
    assert parse_url("s3://b/10:00/who?/x").prefix == "10:00/who?/x"
