"""On the path of a process whose clock jumps by hours, forward and back: see ``jumpy_clock``."""

import os
import random
import time

_draw = random.Random(f"{os.environ['JUMPY']} {os.getpid()}")
_real, _until, _offset_s = time.time, 0.0, 0.0


def _jumping() -> float:
    global _until, _offset_s
    now = time.monotonic()
    if now > _until:
        _until, _offset_s = now + _draw.uniform(0.01, 0.3), 3600 * _draw.uniform(-12, 12)
    return _real() + _offset_s


time.time = _jumping
time.time_ns = lambda: int(_jumping() * 1e9)
