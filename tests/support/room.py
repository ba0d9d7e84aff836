"""Little room: a temporary folder as this process sees it, and a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from speechmill import audio, machine

__all__ = ["Disk", "limited_room", "small_disk"]


def limited_room(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """The temporary folder has so many bytes that may be claimed; what is written takes of them.
    Decoders are this process, too, or they would see the real folder."""
    monkeypatch.setattr(audio, "decode_isolated", audio.decode)

    def free_bytes() -> int:
        written = sum(share.written for share in list(machine._shares))
        return machine.SPARE_BYTES + num_bytes - written

    monkeypatch.setattr(machine, "_free_bytes", free_bytes)


@dataclass(frozen=True)
class Disk:
    """A small file system in memory, at a path."""

    path: Path

    def grow(self, num_bytes: int) -> None:
        """Give it another size; no less than it holds."""
        used = psutil.disk_usage(str(self.path)).used
        size = f"remount,size={max(used, num_bytes)}"
        subprocess.run(["mount", "-o", size, str(self.path)], check=True)


@contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[Disk]:
    """Mount one; where that is not allowed, the test is skipped."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs leave to mount one")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
