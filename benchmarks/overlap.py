"""How often two people at once are found where channels are mixed, and one is taken for two.

The recordings of a corpus, a folder a speaker, are put into two channels: one voice in both (as it
is, late, in noise, in reverberation, faint), where nothing may be found; and two speakers on the
phone, the second of whom begins before the first has ended. Reverberation is noise that decays,
another in each channel. Everything goes through 16-bit WAV and the decoder.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.figures import command, machine, print_table
from speechmill import SpeechmillError, audio

RATE = 16_000
LONGEST_S = 12.0
PEAK = 0.3
LATE_MS = (1, 5, 20, 50, 110, 200, 300)
ROOMS = ((0.3, 0.0), (0.6, 0.0), (0.6, -6.0), (1.0, 0.0), (1.0, -6.0))
OVERLAPS_S = (0.0, 0.5, 1.0, 2.0, 3.0, LONGEST_S)
LEAKS_DB = (-90.0, -25.0, -20.0, -15.0)
FAR_DB = (-31.0, -34.0, -40.0, -50.0)

Samples = NDArray[np.float32]
Pair = tuple[Samples, Samples]
Rng = np.random.Generator


def voices(corpus: Path, every: int) -> Iterator[tuple[str, Samples]]:
    """Speakers and what they say, without the silence around it."""
    paths = sorted(p for p in corpus.rglob("*") if p.suffix in {".flac", ".wav", ".mp3", ".ogg"})
    for path in paths[::every]:
        try:
            waveform = audio.decode(path.read_bytes()).waveform
        except SpeechmillError:
            continue
        samples = audio.resample(waveform, RATE).samples
        samples = samples * np.float32(PEAK / np.abs(samples).max())
        loud = np.flatnonzero(np.abs(samples) > 0.05 * PEAK)
        cut = samples[loud[0] : loud[-1] + 1][: int(LONGEST_S * RATE)]
        if len(cut) >= RATE:
            yield path.parent.name, cut


def gain(db: float) -> np.float32:
    """What multiplies by so many decibels."""
    return np.float32(10 ** (db / 20))


def noise(length: int, db: float, rng: Rng) -> Samples:
    """White noise of this level (RMS, of full scale)."""
    return rng.standard_normal(length).astype(np.float32) * gain(db)


def late(samples: Samples, ms: float) -> Samples:
    """The same so much later."""
    return np.concatenate([np.zeros(round(ms * RATE / 1000), np.float32), samples])[: len(samples)]


def reverberant(samples: Samples, t60_s: float, direct_db: float, rng: Rng) -> Samples:
    """The same in a room: what decays by 60 dB in ``t60_s``, and the direct sound above it."""
    t = np.arange(int(t60_s * RATE)) / RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / t60_s)
    tail[: RATE // 300] = 0
    tail *= gain(-direct_db) / np.linalg.norm(tail)
    tail[0] = 1
    size = 1 << (len(samples) + len(tail)).bit_length()
    there = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return (there[: len(samples)] * 0.5).astype(np.float32)


def decoded(one: Samples, other: Samples) -> audio.Decoded:
    """What the decoder says of two channels."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([one, other], axis=1), RATE, format="WAV")
    return audio.decode(buffer.getvalue())


def of_one_voice(rng: Rng) -> dict[str, Callable[[Samples], Pair]]:
    """Ways in which one voice comes into two channels."""

    def room(t60_s: float, db: float) -> dict[str, Callable[[Samples], Pair]]:
        name = f"reverberation of {t60_s} s, direct sound {db:+.0f} dB"
        return {
            f"{name}: both": lambda x: (
                reverberant(x, t60_s, db, rng),
                reverberant(x, t60_s, db, rng),
            ),
            f"{name}: one, the other dry": lambda x: (x, reverberant(x, t60_s, db, rng)),
        }

    ways: dict[str, Callable[[Samples], Pair]] = {
        "the same, 20 dB down": lambda x: (x, x * gain(-20)),
        "noise at 20 dB below the voice, another in each": lambda x: (
            x + noise(len(x), -47, rng),
            x + noise(len(x), -47, rng),
        ),
        "noise at 5 dB below the voice, another in each": lambda x: (
            x + noise(len(x), -32, rng),
            x + noise(len(x), -32, rng),
        ),
        "noise alone in the other": lambda x: (x, noise(len(x), -50, rng)),
    }
    ways |= {f"{ms} ms late": lambda x, ms=ms: (x, late(x, ms)) for ms in LATE_MS}  # type: ignore[misc]
    for t60_s, db in ROOMS:
        ways |= room(t60_s, db)
    return ways


def call(one: Samples, other: Samples, overlap_s: float, leak_db: float, rng: Rng) -> Pair:
    """Two who speak one after the other, the second so much before the first has ended. Each is
    heard in the other's channel, so much quieter."""
    begin = max(0, len(one) - int(overlap_s * RATE))
    first = np.zeros(max(len(one), begin + len(other)), np.float32)
    second = first.copy()
    first[: len(one)] = one
    second[begin : begin + len(other)] = other
    hiss = [noise(len(first), -60, rng) for _ in range(2)]
    leak = gain(leak_db)
    return first + leak * second + hiss[0], second + leak * first + hiss[1]


def partners(spoken: Sequence[tuple[str, Samples]]) -> list[Pair]:
    """Each recording with one of another speaker."""
    pairs = []
    for number, (speaker, samples) in enumerate(spoken):
        others = [s for name, s in spoken if name != speaker]
        pairs.append((samples, others[(7 * number + 13) % len(others)]))
    return pairs


def found_in_calls(pairs: Sequence[Pair], rng: Rng) -> Iterator[tuple[str, ...]]:
    """For each leak and overlap: calls in which it was found, and seconds found elsewhere."""
    for leak_db in LEAKS_DB:
        cells, elsewhere_s = [], 0.0
        for overlap_s in OVERLAPS_S:
            hits = 0
            for one, other in pairs:
                begin = max(0.0, len(one) / RATE - overlap_s)
                spans = decoded(*call(one, other, overlap_s, leak_db, rng)).overlaps
                hits += any(a < len(one) / RATE and b > begin for a, b in spans)
                near = begin - 1.0, len(one) / RATE + 1.0
                elsewhere_s += sum(max(0.0, near[0] - a) + max(0.0, b - near[1]) for a, b in spans)
            cells.append(f"{hits / len(pairs):.0%}".replace("%", " %"))
        leak = "none" if leak_db < -80 else f"{leak_db:.0f} dB"
        yield (leak, *cells, f"{elsewhere_s:.1f} s")


def quiet_ones(pairs: Sequence[Pair], rng: Rng) -> Iterator[tuple[str, ...]]:
    """How often a far end is left out, and that is told; and how often a leak is taken for one."""
    for db in FAR_DB:
        left_out = told = leaks = 0
        for one, other in pairs:
            near, far = call(one, other, 0.0, -90, rng)
            hiss = noise(len(near), -85, rng)
            flags = decoded(near, far * gain(db) + hiss).flags
            left_out += "one_channel" in flags
            told += "quiet_channel" in flags
            flags = decoded(one, late(one, 20) * gain(db) + hiss[: len(one)]).flags
            leaks += "quiet_channel" in flags
        count = len(pairs)
        yield (f"{db:.0f} dB", f"{left_out} of {count}", str(told), f"{leaks} of {count}")


def main() -> None:
    """Print three tables."""
    parser = command("overlap", __doc__, "--corpus ~/vctk")
    parser.add_argument("--corpus", type=Path, required=True, help="a folder a speaker")
    parser.add_argument("--every", type=int, default=1, help="take each so many-th recording")
    arguments: argparse.Namespace = parser.parse_args()
    print(machine(), flush=True)
    rng = np.random.default_rng(0)
    spoken = list(voices(arguments.corpus, arguments.every))
    if len({speaker for speaker, _ in spoken}) < 2:
        raise SystemExit(f"there are no two speakers in {arguments.corpus}: see --help")
    total_s = sum(len(samples) for _, samples in spoken) / RATE
    print(f"\n{len(spoken)} recordings of {total_s:.0f} s, {len(dict(spoken))} speakers\n")
    rows, began = [], time.process_time()
    for name, way in of_one_voice(rng).items():
        spans = [decoded(*way(samples)).overlaps for _, samples in spoken]
        seconds = sum(end - first for some in spans for first, end in some)
        rows.append((name, f"{sum(map(bool, spans))} of {len(spans)}", f"{seconds:.1f} s"))
    print_table(("one voice in two channels", "taken for two", "in all"), rows)
    took_s = (time.process_time() - began) / len(rows) / total_s
    print(f"\n{took_s:.4f} s of processor time a second, the making of the channels included\n")
    pairs = partners(spoken)
    names = [f"{s:g} s" if s < LONGEST_S else "all" for s in OVERLAPS_S]
    print_table(("leak", *names, "elsewhere"), list(found_in_calls(pairs, rng)))
    print()
    print_table(
        ("the far end", "left out", "and told", "a leak taken for one"),
        list(quiet_ones(pairs, rng)),
    )


if __name__ == "__main__":
    main()
