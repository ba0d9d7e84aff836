"""The former name of ``speechmill.tokens.patterns``, kept for those who import it."""

from speechmill.tokens.patterns import (
    deinterleave,
    delay,
    interleave,
    parallel,
    undelay,
    unparallel,
)

__all__ = ["deinterleave", "delay", "interleave", "parallel", "undelay", "unparallel"]
