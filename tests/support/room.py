"""A temporary folder with little room, as this process sees it."""

from __future__ import annotations

import pytest

from speechmill import audio, machine

__all__ = ["limited_room"]


def limited_room(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """The temporary folder has so many bytes that may be claimed; what is written takes of them.
    Decoders are this process, too, or they would see the real folder."""
    monkeypatch.setattr(audio, "decode_isolated", audio.decode)

    def free_bytes() -> int:
        written = sum(share.written for share in list(machine._shares))
        return machine.SPARE_BYTES + num_bytes - written

    monkeypatch.setattr(machine, "_free_bytes", free_bytes)
