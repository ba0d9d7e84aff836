"""How many cores are ours: the system's, the container's quota, and what the job says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechmill import machine
from speechmill.machine import limit_cores, num_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    yield
    limit_cores(None)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("", 8)],
)
def test_a_containers_quota_counts(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert num_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3)])
def test_so_does_a_quota_of_the_first_version(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert num_cores() == expected


def test_a_limit_is_kept_until_it_is_lifted() -> None:
    assert num_cores() == 8
    limit_cores(3)
    assert num_cores() == 3
    limit_cores(20)
    assert num_cores() == 8
    limit_cores(None)
    assert num_cores() == 8
