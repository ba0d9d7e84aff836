"""Sinks of which any file may be spoilt in any way: every command does its work, or says in plain
words why it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechmill.enrich.add import measure
from speechmill.storage import open_store
from tests.support.chaos import Chaos
from tests.support.corpus import build, wav, write
from tests.support.sink_attacks import OPEN, Attacker

SINKS, MANY_SINKS = 12, 1_000_000


@pytest.mark.timeout(900)
def test_a_sink_with_anything_wrong_in_it_is_read_or_refused_and_never_a_defect(
    chaos: Chaos, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", {"p1/1.wav": wav(1), "p1/2.wav": wav(2), "p2/text.wav": b"no"})
    build(source, str(tmp_path / "sink"))
    measure(open_store(str(tmp_path / "sink")), ["level"])
    wrong: list[str] = []
    with Attacker(tmp_path, chaos.seed) as attacker:
        for number in chaos.rounds(SINKS, MANY_SINKS):
            outcomes, found = attacker.attack(number)
            wrong += found
            chaos.count("sinks")
            for outcome in outcomes.values():
                chaos.count("commands and openings")
                chaos.count("done" if not outcome else "refused" if " " not in outcome else "wrong")
    assert not wrong, "\n".join(wrong[:20])
    assert {"done", "refused"} <= set(chaos.counts)
    assert OPEN in outcomes
