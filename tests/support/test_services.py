"""The real services that tests start go away with them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.services import SeaweedFS


def test_the_object_store_dies_with_a_killed_parent(object_store: SeaweedFS) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.support.services", "voices"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().strip().rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port)).close()
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("the object store is still there")


def test_a_new_bucket_can_be_used_at_once(object_store: SeaweedFS) -> None:
    assert object_store.make_bucket("made-later") == "s3://made-later"
    object_store.client().put_object(Bucket="made-later", Key="a", Body=b"x")


def test_tests_that_share_a_server_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """What xdist sends by is what it adds to a test's name: pytest 9.2 keeps it from that."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@support/test_services.py")
