"""Find where channels hold different sound at the same time: two people, whom a mix would join.

One voice makes the same pattern of energies over time and frequency in each channel that it
reaches, also late, quiet or reverberant; two voices make two patterns. So the log energies of bands
are compared in windows of a second: their correlation is near 1 for one voice, near 0 for two.
Phases, and so coherence, do not serve: reverberation alone makes them unalike. What does not
change, such as noise and hum, is no voice. docs/audio.md has what is found and missed.
"""

from __future__ import annotations

from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CHANNELS", "Activity"]

FRAME_S: Final = 0.02
WINDOW: Final = 50
"""Frames of a window: a second, some five syllables."""
HOP: Final = 25
"""Frames from one window to the next."""
LAGS: Final = 16
LAG_STEP: Final = 2
"""Frames, up to which a channel may lag behind another, as an echo does that comes by way of a
network: 0.32 s. A lag in between costs little."""
BANDS_HZ: Final = (200, 400, 700, 1100, 1700, 2500, 3600)
"""Edges of the bands, which telephones carry."""
ENOUGH_HZ: Final = 8_000
"""Rates that are twice as high and more are reduced, which halves the work each time."""
DYNAMIC: Final = 1e-4
"""What is 40 dB below a band's highest energy is as good as silence."""

LEAST_DB: Final = 4.5
"""The loudness of a voice, all bands together, deviates by so much within a second: in 95 % of
windows of speech by 6.5 dB and more, in half of those in strong reverberation (of 1 s, the direct
sound 6 dB below) by 5. Noise deviates by 1 dB; by 2 to 4 where a codec of few bits has cut it."""
BELOW_DB: Final = 15.0
"""A voice is at most so far below what is usual in its channel: the second loudest of ten windows.
"""
UNLIKE: Final = 0.35
"""Correlation of two voices, at most."""
IN_A_ROW: Final = 2
"""Windows that must say so in a row: one may be chance."""
ABOVE_DB: Final = -5.0
TOGETHER: Final = 3
"""Frames, with more than −5 dB of their window's energy in both channels at once: speakers who take
turns without a pause share windows, but at most one such frame."""
OWN: Final = 2
"""Windows in which a channel that is left out holds what the one that is taken does not, for it to
be told."""
FAINTEST_DB: Final = -66.0
"""Some −77 dBFS: below, codecs switch hiss on and off, which is like a voice, and 16 bits rasp."""

MAX_CHANNELS: Final = 8
"""Pairs of more channels are not compared: those of microphone arrays hear the same."""


class Activity:
    """What each channel of a run does, window by window.

    Args:
        sample_rate: in Hz.
        channels: how many there are; those beyond ``MAX_CHANNELS`` are not looked at.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._reduced_by = max(1, sample_rate // ENOUGH_HZ)
        rate = sample_rate / self._reduced_by
        self._length = max(1, round(rate * FRAME_S))
        self._frame_s = self._length / rate
        self._taper = np.hanning(self._length).astype(np.float32)
        bins = np.fft.rfftfreq(self._length, 1 / rate)
        self._bands = np.searchsorted(bins, [hz for hz in BANDS_HZ if hz <= bins[-1]])
        self._channels = min(channels, MAX_CHANNELS)
        self._pairs = tuple(combinations(range(self._channels), 2))
        num_bands = len(self._bands) - 1
        self._rest = np.zeros((self._channels, 0), np.float32)
        # The first window begins behind LAGS frames of silence.
        self._energies = np.zeros((self._channels, LAGS, max(0, num_bands)), np.float32)
        self._by_lag = np.zeros((len(self._pairs), 2 * LAGS // LAG_STEP + 1))
        self._levels: list[NDArray[np.float16]] = []
        self._deviations: list[NDArray[np.float16]] = []
        self._likeness: list[NDArray[np.float16]] = []
        self._together: list[NDArray[np.uint8]] = []  # frames in which both are loud, for each pair

    def add(self, samples: NDArray[np.float32]) -> None:
        """Look at samples, [num_channels, num_samples] in −1..1."""
        if len(self._bands) < 2:  # a rate that carries no speech
            return
        samples = np.concatenate([self._rest, samples[: self._channels]], axis=1)
        frame = self._length * self._reduced_by
        count = samples.shape[1] // frame
        self._rest = samples[:, count * frame :].copy()
        if not count:
            return
        shape = (self._channels, count, self._length, self._reduced_by)
        frames = samples[:, : count * frame].reshape(shape)
        frames = frames.mean(axis=3) if self._reduced_by > 1 else frames[..., 0]
        spectrum = np.fft.rfft(frames * self._taper, axis=2)
        power = spectrum.real**2 + spectrum.imag**2
        bands = np.add.reduceat(power, self._bands, axis=2)[..., :-1] / self._length
        self._energies = np.concatenate([self._energies, bands.astype(np.float32)], axis=1)
        while self._energies.shape[1] >= WINDOW + 2 * LAGS:
            self._look(self._energies[:, : WINDOW + 2 * LAGS])
            self._energies = self._energies[:, HOP:]

    def _end(self) -> None:
        """Look at what is left, once all samples have been added."""
        left = self._energies.shape[1] - LAGS
        if len(self._bands) > 1 and (left >= WINDOW // 2 or not self._levels):
            missing = max(0, WINDOW + 2 * LAGS - self._energies.shape[1])
            silence = ((0, 0), (0, missing), (0, 0))
            self._look(np.pad(self._energies, silence)[:, : WINDOW + 2 * LAGS])
        self._energies = self._energies[:, :0]

    def _look(self, energies: NDArray[np.float32]) -> None:
        """Compare the channels in the window that begins behind the first LAGS frames."""
        middle = slice(LAGS, LAGS + WINDOW)
        energy = energies[:, middle].sum(axis=2)
        level = energy.mean(axis=1)
        loud = energy > level[:, None] * np.float32(10 ** (ABOVE_DB / 10))
        pairs = [loud[one] & loud[other] for one, other in self._pairs]
        floor = DYNAMIC * energies.max(axis=1, keepdims=True) + 1e-12
        logs = 10 * np.log10(energies + floor)
        here = logs[:, middle] - logs[:, middle].mean(axis=1, keepdims=True)
        power = np.square(here).sum(axis=(1, 2))
        self._levels.append((10 * np.log10(level + 1e-12)).astype(np.float16))
        self._deviations.append(here.mean(axis=2).std(axis=1).astype(np.float16))
        self._likeness.append(self._compare(logs, here, power))
        self._together.append(np.sum(pairs, axis=1, dtype=np.uint8))

    def _compare(
        self, logs: NDArray[np.float32], here: NDArray[np.float32], power: NDArray[np.float32]
    ) -> NDArray[np.float16]:
        """The correlation of each pair, at the lag that has suited it best so far."""
        # [channel, lag, band, frame], of all channels that are the second one of a pair.
        shifted = np.lib.stride_tricks.sliding_window_view(logs[1:], WINDOW, axis=1)[:, ::LAG_STEP]
        shifted = shifted - shifted.mean(axis=3, keepdims=True)
        others = np.square(shifted).sum(axis=(2, 3))
        likeness = np.zeros(len(self._pairs), np.float16)
        for number, (one, other) in enumerate(self._pairs):
            product = np.einsum("tb,lbt->l", here[one], shifted[other - 1])
            found = product / np.sqrt(power[one] * others[other - 1] + 1e-9)
            self._by_lag[number] += found
            likeness[number] = found[int(self._by_lag[number].argmax())]
        return likeness

    def overlaps(self, carrying: NDArray[np.intp]) -> tuple[tuple[float, float], ...]:
        """Where two of these channels hold voices of their own at the same time: spans in seconds,
        in order and apart."""
        active = self._active()
        both = np.zeros(len(active), bool)
        shape = len(active), len(self._pairs)
        unlike = np.reshape(self._likeness, shape) < UNLIKE
        unlike &= np.reshape(self._together, shape) >= TOGETHER
        for number, (one, other) in enumerate(self._pairs):
            if one in carrying and other in carrying:
                both |= active[:, one] & active[:, other] & unlike[:, number]
        spans: list[tuple[float, float]] = []
        edges = np.flatnonzero(np.diff(np.concatenate([[0], both.astype(np.int8), [0]])))
        for first, end in edges.reshape(-1, 2).tolist():
            if end - first < IN_A_ROW:
                continue
            begins_s = first * HOP * self._frame_s
            if spans and begins_s <= spans[-1][1]:  # windows overlap
                begins_s = spans.pop()[0]
            spans.append((begins_s, ((end - 1) * HOP + WINDOW) * self._frame_s))
        return tuple(spans)

    def has_its_own(self, channel: int, taken: int) -> bool:
        """Whether a channel holds a voice that is not in the one that is taken."""
        active = self._active()
        pair = (min(channel, taken), max(channel, taken))
        if pair not in self._pairs:
            return False
        likeness = np.array(self._likeness)[:, self._pairs.index(pair)]
        return int((active[:, channel] & (likeness < UNLIKE)).sum()) >= OWN

    def _active(self) -> NDArray[np.bool_]:
        """Whether each channel holds something like a voice: [num_windows, num_channels]."""
        # Wild values are no voice, and are found elsewhere.
        with np.errstate(over="ignore", invalid="ignore"):
            self._end()
            if not self._levels:
                return np.zeros((0, self._channels), bool)
            levels = np.array(self._levels, np.float32)
            usual = np.percentile(levels, 90, axis=0)
        loud = (levels > usual - BELOW_DB) & (levels > FAINTEST_DB)
        active: NDArray[np.bool_] = loud & (np.array(self._deviations) > LEAST_DB)
        return active
