"""What killed builds have left over is taken away by the next one."""

from __future__ import annotations

import os
import time
from pathlib import Path

from speechmill.pipeline.cleanup import SCRATCH_S
from tests.support.corpus import build, wav, write


def test_scratch_objects_that_are_older_than_a_day_are_removed(tmp_path: Path) -> None:
    source, sink = write(tmp_path / "source", {"p/1.wav": wav()}), tmp_path / "sink"
    build(source, str(sink))
    own = sink / "_speechmill"
    kept = {path.name for path in own.iterdir()}
    now = time.time()
    for name, age_s in (("check-old", SCRATCH_S + 60), ("check-new", 60), ("checks", 1e6)):
        (own / name).write_bytes(b"first")
        os.utime(own / name, (now - age_s,) * 2)
    build(source, str(sink))
    assert {path.name for path in own.iterdir()} == {*kept, "check-new", "checks"}
