"""Mix decoded samples of any format and channel count to mono float32, and find what is odd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechmill.audio.overlap import Activity

__all__ = ["FULL_SCALE", "Choice", "Mixer", "Weights"]

Weights = tuple[float, ...]
"""The weight of each channel in the mono mix."""

FULL_SCALE = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63}
"""FFmpeg's integer sample formats → the value of one step in −1..1."""

_BLOCK = 1 << 16  # samples per channel mixed at a time: FFmpeg's frames alone are too small
_CLIP_LEVEL = 0.9995  # of full scale: clipped samples lie above
# A channel whose power is 30 dB and whose peak is 26 dB below the loudest one's carries no speech,
# only crosstalk and noise. Both are asked: one loud word in an hour has little power.
_SILENT_POWER = 1e-3
_SILENT_PEAK = 0.05
_EQUAL_POWER = 0.999  # of the loudest channel's power: equally loud, but for rounding
# A mix with less than this share of the power that unrelated channels would leave is antiphase.
_CANCELLED_POWER = 0.1


@dataclass(slots=True)
class _ChannelStats:
    """Sums over all samples, one entry a channel."""

    count: int = 0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    square: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    low: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    high: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    clipped: int = 0
    mix_total: float = 0.0
    mix_square: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run's mix should have been: its ``weights`` (None: equal); ``flags`` that name what is
    odd; and ``overlaps``, where voices of two channels are mixed: (start_s, end_s), in order."""

    weights: Weights | None = None
    flags: tuple[str, ...] = ()
    overlaps: tuple[tuple[float, float], ...] = ()


class Mixer:
    """Mixes the frames of one run (same rate, channels and format) to mono blocks.

    ``emit`` is called with each block, float32 [num_samples], in order.

    Without ``weights`` all channels count equally, and ``choose`` says which would have been right.
    With ``channel`` (from 0) that one alone is taken, as if there were no other.
    """

    def __init__(
        self,
        sample_rate: int,
        channels: int,
        sample_format: str,
        weights: Weights | None,
        emit: Callable[[NDArray[np.float32]], None],
        *,
        over_range: bool = False,
        channel: int | None = None,
    ) -> None:
        self.key = (sample_rate, channels, sample_format)
        self.sample_rate = sample_rate
        self.channels = channels if channel is None else 1
        self._taken = slice(None) if channel is None else slice(channel, channel + 1)
        self.non_finite = 0
        self.samples = 0
        self._scale = FULL_SCALE.get(sample_format)
        # Floats above full scale are as good as any; elsewhere they are clipped peaks.
        self._clip_ceiling = _CLIP_LEVEL + 2 * (1 - _CLIP_LEVEL) if over_range else np.inf
        self._offset = 128.0 if sample_format == "u8" else 0.0
        self._weights = weights
        self._pending: list[NDArray[Any]] = []
        self._num_pending = 0
        self._emit = emit
        # Looked at once, by the mixer that also says what should have been taken.
        looks = self.channels > 1 and weights is None
        self._activity = Activity(sample_rate, channels) if looks else None
        zeros = np.zeros(self.channels)
        self._stats = _ChannelStats(
            total=zeros.copy(), square=zeros.copy(), low=zeros + np.inf, high=zeros - np.inf
        )

    def add(self, samples: NDArray[Any]) -> NDArray[Any] | None:
        """Add samples, [num_channels, num_samples]. Returns those that were mixed, if any."""
        self._pending.append(samples)
        self._num_pending += samples.shape[1]
        self.samples += samples.shape[1]
        return self.flush() if self._num_pending >= _BLOCK else None

    def flush(self) -> NDArray[Any] | None:
        """Mix what is pending. Returns it as decoded, [num_channels, num_samples], or None."""
        if not self._pending:
            return None
        raw = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending, axis=1)
        self._pending, self._num_pending = [], 0
        # Wild values are found and counted below; until then they may overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            self._mix(self._to_float(raw[self._taken]))
        return raw

    def _to_float(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        # float32 holds 24 bits: integers are rounded once, then scaled by a power of two.
        floats = raw.astype(np.float32, order="C")
        if self._scale is None:
            finite = np.isfinite(floats)
            if not finite.all():
                self.non_finite += int(finite.size - finite.sum())
                floats[~finite] = 0.0
            return floats
        if self._offset:
            floats -= np.float32(self._offset)
        floats *= np.float32(self._scale)
        return floats

    def _mix(self, block: NDArray[np.float32]) -> None:
        stats = self._stats
        stats.count += block.shape[1]
        low, high = block.min(axis=1), block.max(axis=1)
        np.minimum(stats.low, low, out=stats.low)
        np.maximum(stats.high, high, out=stats.high)
        for channel, samples in enumerate(block):
            if high[channel] >= _CLIP_LEVEL or low[channel] <= -_CLIP_LEVEL:
                magnitude = np.abs(samples)
                clipped = (magnitude >= _CLIP_LEVEL) & (magnitude <= self._clip_ceiling)
                stats.clipped += int(np.count_nonzero(clipped[2:] & clipped[1:-1] & clipped[:-2]))
        if self.channels == 1:
            self._emit(block[0])
            return
        if self._weights is not None:
            self._emit(np.asarray(self._weights, np.float32) @ block)
            return
        mono = (block[0] + block[1]) * np.float32(0.5) if self.channels == 2 else block.mean(axis=0)
        stats.total += block.sum(axis=1, dtype=np.float64)
        stats.square += [float(np.dot(samples, samples)) for samples in block]
        stats.mix_total += float(mono.sum(dtype=np.float64))
        stats.mix_square += float(np.dot(mono, mono))
        self._emit(mono)
        if self._activity is not None:
            self._activity.add(block)

    def choose(self) -> Choice:
        """Choose the weights that the mix should have had, and say what is odd about it."""
        stats = self._stats
        if self.channels == 1 or not stats.count or self._weights is not None:
            return Choice()
        mean = stats.total / stats.count
        power = np.maximum(stats.square / stats.count - mean**2, 0.0)
        peak = np.maximum(stats.high - mean, mean - stats.low)
        # The first of equals: sums of floats tell them apart by the machine's rounding.
        loudest = int((power >= _EQUAL_POWER * power.max()).argmax())
        if power[loudest] <= 1e-12:  # silence
            return Choice()
        silent = (power < _SILENT_POWER * power[loudest]) & (peak < _SILENT_PEAK * peak[loudest])
        carrying = np.flatnonzero(~silent)
        alone = tuple(1.0 if channel == loudest else 0.0 for channel in range(self.channels))
        told = ("quiet_channel",) * self._holds_more(np.flatnonzero(silent), loudest)
        if len(carrying) == 1:
            return Choice(alone, ("one_channel", *told))
        share = len(carrying) / self.channels
        mix_power = stats.mix_square / stats.count - (stats.mix_total / stats.count) ** 2
        unrelated = power[carrying].mean() / len(carrying) * share**2
        if mix_power < _CANCELLED_POWER * unrelated:
            return Choice(alone, ("antiphase", *told))
        overlaps = () if self._activity is None else self._activity.overlaps(carrying)
        if len(carrying) == self.channels:
            return Choice(overlaps=overlaps)
        weight = 1.0 / len(carrying)
        return Choice(tuple(0.0 if quiet else weight for quiet in silent), told, overlaps)

    def _holds_more(self, left_out: NDArray[np.intp], taken: int) -> bool:
        """Whether a channel that is left out holds a voice of its own."""
        found = self._activity
        return found is not None and any(found.has_its_own(one, taken) for one in left_out)

    @property
    def peak(self) -> float:
        """How far the samples go from their offset, in −1..1: of the loudest channel."""
        stats = self._stats
        if not stats.count:
            return 0.0
        return float(((stats.high - stats.low) / 2).max())

    @property
    def clipped(self) -> bool:
        """Whether samples stay at full scale for longer than speech does.

        Three in a row count once; five, or one in 10,000, may be loud speech.
        """
        stats = self._stats
        return stats.clipped > max(5.0, 1e-4 * stats.count * self.channels)
