"""The C library keeps what is free."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Four blocks of 20 MB at a time, on a thread, as a model's workers have them.
FAULTS = """
import ctypes, resource, threading
if {kept}:
    from speechmill.machine import keep_memory
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def work():
    for _ in range(20):
        blocks = [libc.malloc(20 * 2**20) for _ in range(4)]
        for block in blocks:
            libc.memset(block, 1, 20 * 2**20)
        for block in blocks:
            libc.free(block)
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
