"""What is said again: words lost, and words doubled, in recordings of several sentences.

The clips of a corpus are joined by pauses of faint noise, up to half a minute at a time: sentences
of one speaker, of two or three, and sentences that come again. A second rendition is the same clip
at another speed, which changes its pitch as well: by 8 to 14 % up or down. Plain clips are there to
show that nothing is lost or doubled in them.

A word is lost if it is in the reference alone, doubled if it is in the text alone (by the alignment
of least errors), so that a word that is misheard is neither. A sentence is lost if more than half
of its words are.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jiwer
import numpy as np

from benchmarks.figures import command, machine, print_table
from benchmarks.references import SAMPLE_RATE, Clip, normalized, read_clips
from benchmarks.transcription import CORPUS, SYSTEMS, Clock, Samples, Setting, rows_of
from speechmill.audio import resample
from speechmill.records import Waveform

PATTERNS: Final = {
    "plain": ("A",),
    "other sentences": ("AB", "ABC", "ABCDE"),
    "said twice": ("AA", "ABB", "ABAB"),
    "again after another": ("ABA", "ABCB", "ABABC"),
    "three times": ("AAA", "ABACA"),
}
"""The order in which the sentences of a recording are said."""

PAUSES_S: Final = (0.3, 0.6, 1.0, 2.0)
LONGEST_S: Final = 29.5
UNSAID: Final = {"heard_in_parts", "window_fallback"}
"""Flags that say how a text was found, not that something is doubtful."""
NOISE: Final = 1e-3
"""The level of the noise in pauses: −60 dB."""


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A recording of several sentences, and the words of each, normalised."""

    kind: str
    language: str
    samples: Samples
    sentences: tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class Count:
    """What became of the words and sentences of recordings."""

    words: int = 0
    lost: int = 0
    doubled: int = 0
    sentences: int = 0
    sentences_lost: int = 0
    silent: int = 0
    """Recordings that lost a sentence, without a flag."""

    def add(self, other: Count) -> None:
        """Add what became of another recording."""
        for name in Count.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def again(samples: Samples, rng: np.random.Generator) -> Samples:
    """The second rendition of a sentence: faster and higher, or slower and lower."""
    speed = 1 + float(rng.choice([-1, 1])) * float(rng.uniform(0.08, 0.14))
    return resample(Waveform(samples, round(SAMPLE_RATE * speed)), SAMPLE_RATE).samples


def join(clips: Sequence[Clip], pattern: str, pause_s: float, rng: np.random.Generator) -> Joined:
    """Clips as one recording; a letter of the pattern that comes again is said again."""
    pieces: list[Samples] = []
    for position, letter in enumerate(pattern):
        if position:
            noise = NOISE * rng.standard_normal(round(pause_s * SAMPLE_RATE))
            pieces.append(noise.astype(np.float32))
        samples = clips[ord(letter) - ord("A")].samples
        pieces.append(again(samples, rng) if letter in pattern[:position] else samples)
    said = tuple(tuple(normalized(clips[ord(x) - ord("A")]).split()) for x in pattern)
    return Joined("", clips[0].language, np.concatenate(pieces), said)


def recordings(clips: Sequence[Clip], count: int, seed: int) -> list[Joined]:
    """So many recordings of each kind and language, and each clip alone."""
    rng = np.random.default_rng(seed)
    found = []
    by_language: defaultdict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_language[clip.language].append(clip)
    for _, some in sorted(by_language.items()):
        for kind, patterns in PATTERNS.items():
            made: list[Joined] = [join([clip], "A", 0, rng) for clip in some if kind == "plain"]
            for attempt in range(100 * count):
                if len(made) >= count:
                    break
                pattern = patterns[attempt % len(patterns)]
                order = rng.permutation(len(some))[: len(set(pattern))]
                pause_s = PAUSES_S[attempt % len(PAUSES_S)]
                if len(order) == len(set(pattern)):
                    one = join([some[i] for i in order], pattern, pause_s, rng)
                    if len(one.samples) <= LONGEST_S * SAMPLE_RATE:
                        made.append(one)
            found += [Joined(kind, one.language, one.samples, one.sentences) for one in made]
    return found


def judged(recording: Joined, text: str, flags: set[str]) -> Count:
    """Count what is lost and doubled in a text."""
    wanted = [word for sentence in recording.sentences for word in sentence]
    said = normalized(Clip("", "", recording.samples, text, recording.language)).split()
    owner = [i for i, sentence in enumerate(recording.sentences) for _ in sentence]
    missing = [0] * len(recording.sentences)
    lost = doubled = 0
    if not said:
        lost, missing = len(wanted), [len(s) for s in recording.sentences]
    else:
        for chunk in jiwer.process_words(" ".join(wanted), " ".join(said)).alignments[0]:
            if chunk.type == "insert":
                doubled += chunk.hyp_end_idx - chunk.hyp_start_idx
            elif chunk.type == "delete":
                lost += chunk.ref_end_idx - chunk.ref_start_idx
                for i in range(chunk.ref_start_idx, chunk.ref_end_idx):
                    missing[owner[i]] += 1
    gone = sum(2 * m > len(s) for m, s in zip(missing, recording.sentences, strict=True))
    silent = int(gone > 0 and not flags)
    return Count(len(wanted), lost, doubled, len(recording.sentences), gone, silent)


def hearing(
    name: str, setting: Setting
) -> Callable[[Sequence[tuple[Samples, str]]], list[tuple[str, set[str]]]]:
    """A system, which gives each recording's text and flags; peers have no flags."""
    if not name.startswith("speechmill"):
        plain = SYSTEMS[name](setting, Clock())
        return lambda some: [(text, set()) for text in plain(some)]
    rows = rows_of(setting, Clock(), "full" if name.endswith("full") else "adaptive")

    def hear(some: Sequence[tuple[Samples, str]]) -> list[tuple[str, set[str]]]:
        told = rows(some)
        texts = (" ".join(row.text for row in found).strip() for found in told)
        flags = (
            {flag for row in found for flag in row.flags} - {"heard_in_parts"} for found in told
        )
        return list(zip(texts, flags, strict=True))

    return hear


def main(arguments: Sequence[str] | None = None) -> None:
    """Transcribe what was joined with each system, and print what each lost and doubled."""
    parser = command("repeated", __doc__, "--count 8 --half 1 ~/vctk")
    parser.add_argument(
        "corpus", nargs="*", type=Path, help="folders; see benchmarks.transcription"
    )
    parser.add_argument("--model", default="base")
    parser.add_argument("--compute-type", default="int8")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--count", type=int, default=8, help="recordings of a kind and language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=15.0, help="seconds of a clip")
    parser.add_argument("--half", type=int, choices=(0, 1), help="every other clip")
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="leave the others out")
    told: Any = parser.parse_args(arguments)
    print(machine(), flush=True)
    clips = read_clips(told.corpus or [CORPUS], longest_s=told.longest)
    if told.half is not None:
        clips = clips[told.half :: 2]
    setting = Setting(told.model, told.compute_type, told.beam_size, told.threads)
    found = recordings(clips, told.count, told.seed)
    print(f"{len(clips)} clips; {len(found)} recordings, seed {told.seed}\n")
    table = []
    for name in told.system or [name for name in SYSTEMS if name != "openai-whisper"]:
        heard = hearing(name, setting)([(one.samples, one.language) for one in found])
        counts: defaultdict[str, Count] = defaultdict(Count)
        for one, (text, flags) in zip(found, heard, strict=True):
            count = judged(one, text, flags)
            counts[one.kind].add(count)
            if one.kind != "plain":
                counts[f"all joined, {one.language}"].add(count)
        table += [
            (
                f"{name}: {kind}",
                c.words,
                f"{100 * c.lost / c.words:.1f} %",
                f"{100 * c.doubled / c.words:.1f} %",
                f"{c.sentences_lost} of {c.sentences}",
                c.silent,
            )
            for kind, c in counts.items()
        ]
    header = ("system: recordings", "words", "lost", "doubled", "sentences lost", "unflagged")
    print_table(header, table)


if __name__ == "__main__":
    main()
