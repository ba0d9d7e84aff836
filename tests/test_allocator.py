"""The C library keeps what is free."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks of 40 MB, on a thread of its own, as a model's workers have them.
FAULTS = """
import resource, threading, numpy as np
if {kept}:
    from speechmill.allocator import keep_memory
    keep_memory()
def work():
    for _ in range(20):
        np.empty(5 * 2**20).fill(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, kept: bool) -> int:
    code = FAULTS.format(kept=kept)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_is_free_is_taken_again_without_page_faults() -> None:
    assert 10 * faults(kept=True) < faults(kept=False)
