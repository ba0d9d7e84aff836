"""Texts that Speechmill and its peers write down where nobody speaks.

The corpus is of music, sounds and noise: whatever is written down is made up, unless words are said
in it after all (--show lists the texts, so that one can look). A recording of up to 30 s is
transcribed whole; of a longer one three excerpts of 3 to 25 s are. All decode with the same model,
number format and beam size, and are told that the language is English.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.figures import command, machine, print_table
from benchmarks.references import SAMPLE_RATE, Clip
from benchmarks.transcription import Setting, measure
from speechmill import SpeechmillError, audio

SYSTEMS = ("speechmill", "faster-whisper", "faster-whisper, batched pipeline")
SHORTEST_S = 0.1
WHOLE_S = 30.0
EXCERPTS = 3
EXCERPT_S = (3.0, 25.0)


def excerpts(folders: Sequence[Path], every: int) -> Iterator[Clip]:
    """The recordings of these folders, of long ones three excerpts."""
    rng = np.random.default_rng(0)
    paths = sorted(
        path
        for folder in folders
        for path in folder.resolve().rglob("*")
        if path.suffix.lower() in {".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}
    )
    for path in paths[::every]:
        try:
            waveform = audio.decode(path.read_bytes()).waveform
        except SpeechmillError as error:
            print(f"left out: {path.name}: {error}")
            continue
        samples = audio.resample(waveform, SAMPLE_RATE).samples
        if len(samples) < SHORTEST_S * SAMPLE_RATE:
            continue
        if len(samples) <= WHOLE_S * SAMPLE_RATE:
            yield Clip(path.name, path.parent.name, samples, "", "en")
            continue
        for number in range(EXCERPTS):
            length = round(rng.uniform(*EXCERPT_S) * SAMPLE_RATE)
            start = int(rng.integers(0, len(samples) - length))
            part = samples[start : start + length]
            yield Clip(f"{path.name} #{number}", path.parent.name, part, "", "en")


def main() -> None:
    """Run the systems and print the table."""
    parser = command("no_speech", __doc__, "--corpus ~/musan/music --corpus ~/musan/noise --show")
    parser.add_argument(
        "--corpus", type=Path, action="append", required=True, help="a folder without speech"
    )
    parser.add_argument("--model", default="base")
    parser.add_argument("--compute-type", default="int8")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--every", type=int, default=1, help="take each so many-th recording")
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="leave the others out")
    parser.add_argument("--show", action="store_true", help="list what Speechmill writes down")
    arguments: argparse.Namespace = parser.parse_args()
    print(machine(), flush=True)
    setting = Setting(
        arguments.model, arguments.compute_type, arguments.beam_size, arguments.threads
    )
    clips = list(excerpts(arguments.corpus, arguments.every))
    if not clips:
        where = ", ".join(map(str, arguments.corpus))
        raise SystemExit(f"no recordings are in {where}: see --help")
    clips, outcomes = measure(arguments.system or SYSTEMS, setting, clips, 64)
    print(
        f"\nWhisper {setting.model}, {setting.compute_type}, beam size {setting.beam_size}; "
        f"{len(clips)} recordings and excerpts, {sum(clip.duration_s for clip in clips):.0f} s\n"
    )
    print_table(
        ("system", "with a text", "share", "characters", "each"),
        [
            (
                name,
                str(sum(map(bool, outcome.texts))),
                f"{100 * sum(map(bool, outcome.texts)) / len(clips):.1f} %",
                f"{sum(map(len, outcome.texts)):,}",
                f"{sum(outcome.wall_s) / len(clips):.3f} s",
            )
            for name, outcome in outcomes.items()
        ],
    )
    if arguments.show and "speechmill" in outcomes:
        print()
        for clip, text in zip(clips, outcomes["speechmill"].texts, strict=True):
            if text:
                print(f"{clip.corpus}/{clip.name}: {text}")


if __name__ == "__main__":
    main()
