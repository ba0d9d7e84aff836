"""Speed and size of the tokenizers, each against its reference implementation called clip by clip.

The codecs have their real size, and weights drawn from a fixed seed: no model hub is needed, and
what they compute costs the same. The reference runs on all cores, as its documentation calls it:
transformers, snac, and librosa for MFCC. Codes are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray
from tests.support.codec_checkpoints import CODECS, write_codec
from tests.support.codec_references import load_reference

from benchmarks.figures import command, machine, print_table
from speechmill import audio
from speechmill.dataset.schema import codes_to_array, to_parquet
from speechmill.machine import num_cores
from speechmill.records import Codes, Waveform
from speechmill.tokenizers import open_tokenizer
from speechmill.tokenizers.base import Tokenizer
from speechmill.tokenizers.columns import column_of

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
NAMES = ("mfcc", *CODECS)
ENCODE = {
    "encodec": {"bandwidth": 6.0},
    "encodec48": {"bandwidth": 6.0},
    "xcodec": {"bandwidth": 2.0},
}
"""What the references are asked for; ours have it as the default."""

Clip = NDArray[np.float32]
Encode = Callable[[Sequence[Clip]], list[NDArray[np.generic]]]


def read_clips(folder: Path, count: int) -> list[Waveform]:
    """The first ``count`` recordings of a folder, mono, over and over if there are fewer."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".flac", ".wav", ".ogg"))[:count]
    if not paths:
        raise SystemExit(f"{folder} holds no .flac, .wav or .ogg")
    clips = []
    for path in paths:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        clips.append(Waveform(np.ascontiguousarray(samples.mean(axis=1)), sample_rate))
    return [clips[i % len(clips)] for i in range(count)]


def librosa_reference(tokenizer: Tokenizer) -> Callable[[Clip], NDArray[np.generic]]:
    """MFCC by librosa."""
    import librosa

    return lambda clip: librosa.feature.mfcc(
        y=clip, sr=tokenizer.sample_rate, n_mfcc=tokenizer.num_codebooks
    )


def open_both(name: str, folder: Path, *, small: bool) -> tuple[Tokenizer, Encode]:
    """A tokenizer, and its reference for many clips."""
    if name == "mfcc":
        tokenizer = open_tokenizer(name, {})
        one = librosa_reference(tokenizer)
    else:
        import torch

        torch.set_num_threads(num_cores())  # whatever OMP_NUM_THREADS says: it is to be compared
        write_codec(name, folder, small=small)
        tokenizer = open_tokenizer(f"{name.removesuffix('48')}:{folder}", {}, device="cpu")
        one = load_reference(name, folder, **ENCODE.get(name, {}))
    return tokenizer, lambda clips: [one(clip) for clip in clips]


def share_equal(name: str, ours: Iterable[Codes], theirs: Iterable[NDArray[np.generic]]) -> float:
    """The share of values that are the same, or nearly so where they are features."""
    equal = total = 0
    for mine, yours in zip(ours, theirs, strict=True):
        values = mine.values[: len(yours)]  # but for the row of EnCodec's loudness at 48 kHz
        if name == "mfcc":
            same = np.isclose(values, yours, rtol=0, atol=1e-6 * np.abs(yours).max())
        else:
            same = values == yours
        equal, total = equal + int(same.sum()), total + same.size
    return equal / total


def bytes_an_hour(tokenizer: Tokenizer, codes: Sequence[Codes], hours: float) -> float:
    """What the column takes in a part file."""
    table = pa.table({"token": codes_to_array(codes, column_of(tokenizer).type)})
    return len(to_parquet(table)) / hours


def measure(name: str, clips: Sequence[Waveform], repeats: int, *, small: bool) -> list[str]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, reference = open_both(name, Path(folder), small=small)
    rate = tokenizer.sample_rate
    samples = [audio.resample(clip, rate).samples for clip in clips]
    hours = sum(map(len, samples)) / rate / 3600
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    tokenizer.encode(samples[:2])
    reference(samples[:1])
    for _ in range(repeats):
        started = time.perf_counter()
        ours = tokenizer.encode(samples)
        between = time.perf_counter()
        theirs = reference(samples)
        seconds["ours"].append(between - started)
        seconds["theirs"].append(time.perf_counter() - between)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    mine, yours = (hours * 3600 / statistics.median(seconds[who]) for who in ("ours", "theirs"))
    values = sum(one.values.size for one in ours) / hours / 3600
    return [
        name.replace("48", " 48 kHz"),
        f"{mine:,.1f}",
        f"{yours:,.1f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{share_equal(name, ours, theirs):.4%}",
        f"{values:,.0f}",
        f"{bytes_an_hour(tokenizer, ours, hours) / 1e6:,.1f} MB",
    ]


def main() -> None:
    """Measure, and print."""
    parser = command("tokens", __doc__, "--tokenizer encodec --tokenizer mimi --clips 32")
    parser.add_argument(
        "--tokenizer", action="append", choices=NAMES, help="measure this one; all by default"
    )
    parser.add_argument("--folder", type=Path, default=CORPUS, help="recordings to encode")
    parser.add_argument("--clips", type=int, default=16, help="how many of them")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    parser.add_argument("--small", action="store_true", help="codecs that are quick to compute")
    options = parser.parse_args()
    print(machine())
    clips = read_clips(options.folder, options.clips)
    total_s = sum(clip.duration_s for clip in clips)
    print(f"{len(clips)} clips, {total_s:.0f} s of audio; medians of {options.repeats}", flush=True)
    rows = [
        measure(name, clips, options.repeats, small=options.small)
        for name in options.tokenizer or NAMES
    ]
    print_table(
        ("", "hours an hour", "reference", "ratio", "equal", "values a second", "an hour takes"),
        rows,
    )


if __name__ == "__main__":
    main()
