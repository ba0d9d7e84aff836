"""Ceilings on what one recording may cost, and the meter that stops it there.

A few bytes can ask for hours of silence, or for millions of empty frames. What a recording costs is
counted while it is read, and reading ends as soon as a ceiling is passed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from speechmill.errors import LimitError

__all__ = ["DEFAULT_LIMITS", "NO_LIMITS", "Limits", "Meter"]

MAX_RATE: Final = 192_000
"""Hz. The highest rate of studios. Decoded bytes may be those of the longest recording at it (33 GB
for 12 hours): more comes of a header's rate that nobody has recorded at."""

RATIO_FROM_BYTES: Final = 1 << 30
"""Decoded bytes from which their ratio to the stored ones counts: 93 minutes at 48 kHz, 4.7 hours
at 16 kHz. What is smaller can do no harm, however small it is stored."""

ELEMENTS_PER_S: Final = 400
"""Boxes, pages and frames that a second may have: the shortest packets, of Opus, have 2.5 ms."""
MIN_ELEMENTS: Final = 100_000
"""Always allowed: chunks, tags and tables do not depend on the length."""

GRACE_S: Final = 10.0
"""Processor seconds that any recording may take; usual ones take some milliseconds."""
STORED_S: Final = 0.1e-6
"""… and for each stored byte: a walk from frame to frame takes less than 0.05 µs a byte, a search
for frames among crafted bytes 1 µs."""

_STEPS = 4096  # of a walk through a file, between looks at the clock: some milliseconds


@dataclass(frozen=True, slots=True)
class Limits:
    """What one recording may cost.

    ``max_duration_s`` is its length in seconds; bytes decoded, and boxes, pages and frames are
    limited with it. ``ratio`` is that of decoded bytes (float32, mono) to stored ones: silence has
    up to 1,900 as FLAC, Vorbis or Opus are usually written, and 18,700 in the largest blocks that
    FLAC can have. ``load`` is processor seconds a second of sound: usual ones take 0.0005 to 0.003.
    ``channels`` has room for the largest arrays of microphones that are usual.
    """

    max_duration_s: float = 12 * 3600.0
    ratio: float = 5000.0
    load: float = 1.0
    channels: float = 64


DEFAULT_LIMITS: Final = Limits()
"""Those of a job that says nothing else."""

NO_LIMITS: Final = Limits(1e9, 1e9, 1e9, 1e9)
"""For recordings that have passed those of the job that made their rows."""


class Meter:
    """Counts what reading a recording costs, in the thread that reads it.

    Args:
        limits: what it may cost.
        stored_bytes: the size of the file.
    """

    def __init__(self, limits: Limits, stored_bytes: int) -> None:
        self.limits = limits
        self._stored_bytes = max(1, stored_bytes)
        self._max_elements = max(MIN_ELEMENTS, int(limits.max_duration_s * ELEMENTS_PER_S))
        self._elements = self._steps = 0
        self.begin_pass()

    def begin_pass(self) -> None:
        """Begin to decode, perhaps again: sound and time are counted anew."""
        self._seconds = self._decoded_bytes = 0.0
        self._rate = 0
        self._began = time.thread_time()

    def step(self, elements: int = 1) -> None:
        """Count a box, page or frame of a walk through the file; none for a search.

        Raises LimitError where these are too many, or have taken too long.
        """
        self._elements += elements
        if self._elements > self._max_elements:
            raise self._over(
                f"it has more than {self._max_elements:,} boxes, pages or frames, "
                f"{ELEMENTS_PER_S} a second of the longest recording",
                "max_duration_s",
            )
        self._steps += max(1, elements)
        if self._steps >= _STEPS:
            self._steps = 0
            self.check_time()

    def check_time(self) -> None:
        """Raise LimitError where it has taken more processor time than it may."""
        allowed = GRACE_S + STORED_S * self._stored_bytes + self.limits.load * self._seconds
        if time.thread_time() - self._began > allowed:
            raise self._over(
                f"reading it has taken more than {allowed:.0f} s of processor time, for "
                f"{self._seconds:.0f} s of sound",
                "load",
            )

    def check_duration(self, seconds: float) -> None:
        """Raise LimitError where it is longer than it may be."""
        if seconds > self.limits.max_duration_s:
            raise self._over(
                f"it is longer than {self.limits.max_duration_s:,.0f} s "
                f"({self.limits.max_duration_s / 3600:.1f} hours)",
                "max_duration_s",
            )

    def check_channels(self, channels: int) -> None:
        """Raise LimitError where it has too many channels."""
        if channels > self.limits.channels:
            raise self._over(
                f"it has {channels} channels, more than {self.limits.channels:.0f}", "channels"
            )

    def sound(self, num_samples: int, sample_rate: int) -> None:
        """Count decoded samples (of each channel), at ``sample_rate`` Hz.

        Raises LimitError where there is more than there may be.
        """
        self._rate = self._rate or sample_rate
        self._seconds += num_samples / sample_rate
        # Runs of another rate are resampled to that of the first.
        self._decoded_bytes += 4 * num_samples * max(1.0, self._rate / sample_rate)
        self.check_duration(self._seconds)
        most = 4 * MAX_RATE * self.limits.max_duration_s
        if self._decoded_bytes > most:
            raise self._over(
                f"it decodes to more than {most / 1e9:.1f} GB, those of the longest recording at "
                f"{MAX_RATE:,} Hz",
                "max_duration_s",
            )
        ratio = self._decoded_bytes / self._stored_bytes
        if self._decoded_bytes > RATIO_FROM_BYTES and ratio > self.limits.ratio:
            raise self._over(
                f"it decodes to more than {self.limits.ratio:,.0f} times its "
                f"{self._stored_bytes} bytes",
                "ratio",
            )

    def _over(self, what: str, name: str) -> LimitError:
        number = getattr(self.limits, name)
        flag = "--max-duration-s N" if name == "max_duration_s" else f"--decode-limit {name}=N"
        return LimitError(
            f"{what} (limit {name}: {number:g}): to have it all the same, raise the limit by "
            f"{flag}, and give --retry-failed"
        )
