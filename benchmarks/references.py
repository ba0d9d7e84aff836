"""Recordings with what is said in them, and how wrong a transcription is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jiwer
import numpy as np
from numpy.typing import NDArray
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from speechmill import audio

__all__ = ["Clip", "bootstrap", "errors", "normalized", "read_clips"]

SAMPLE_RATE = 16_000


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A recording (float32 [num_samples] at 16 kHz), its reference, and where it is from."""

    name: str
    corpus: str
    samples: NDArray[np.float32]
    reference: str
    language: str

    @property
    def duration_s(self) -> float:
        """Its length in seconds."""
        return len(self.samples) / SAMPLE_RATE


def _references(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Path, text, language of each recording: of a manifest.jsonl (path, transcript, language),
    else of LibriSpeech's *.trans.txt, else of a .txt beside the recording, as in VCTK."""
    above = (folder, *folder.parents[:2])
    manifest = next((p for p in above if (p / "manifest.jsonl").exists()), None)
    if manifest is not None:
        for line in (manifest / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            path = manifest / entry["path"]
            if entry.get("transcript") and path.is_relative_to(folder):
                yield path, entry["transcript"], entry.get("language") or "en"
        return
    for listing in sorted(folder.rglob("*.trans.txt")):
        for line in listing.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield listing.with_name(f"{name}.flac"), text, "en"
    for beside in sorted(folder.rglob("*.txt")):
        for extension in ("flac", "wav"):
            path = beside.with_suffix(f".{extension}")
            if path.exists():
                yield path, beside.read_text(encoding="utf-8").strip(), "en"


def read_clips(
    folders: Sequence[Path], *, shortest_s: float = 0.0, longest_s: float = 30.0
) -> list[Clip]:
    """The recordings of these folders that have a reference and such a length."""
    clips = []
    for folder in folders:
        for path, text, language in _references(folder.resolve()):
            decoded = audio.decode(path.read_bytes())
            samples = audio.resample(decoded.waveform, SAMPLE_RATE).samples
            clip = Clip(str(path), folder.name, samples, text, language)
            if shortest_s <= clip.duration_s <= longest_s:
                clips.append(clip)
    if not clips:
        where = ", ".join(map(str, folders))
        raise SystemExit(f"no recordings with references are in {where}: see --help")
    return clips


@cache
def _normalizers() -> tuple[EnglishTextNormalizer, BasicTextNormalizer]:
    return EnglishTextNormalizer(), BasicTextNormalizer()


def normalized(clip: Clip, text: str | None = None) -> str:
    """A text of a clip after Whisper's normalisation; its reference where none is given."""
    english, basic = _normalizers()
    normal = english if clip.language == "en" else basic
    return str(normal(clip.reference if text is None else text))


def errors(clip: Clip, text: str) -> tuple[int, int]:
    """Wrong words, and words of the reference, after Whisper's normalisation of both; (0, 0) where
    nobody knows what is said."""
    if not clip.reference:
        return 0, 0
    found = jiwer.process_words(normalized(clip), normalized(clip, text))
    wrong = found.substitutions + found.deletions + found.insertions
    return wrong, found.hits + found.substitutions + found.deletions


def bootstrap(
    ours: Sequence[int], theirs: Sequence[int], words: Sequence[int], rounds: int = 10_000
) -> tuple[float, float]:
    """The 95 % interval of the difference of pooled WER (ours − theirs, percentage points), over
    recordings drawn with replacement, both systems' outcomes of each together."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(words), (rounds, len(words)))
    difference = (np.asarray(ours) - np.asarray(theirs))[drawn].sum(axis=1)
    low, high = np.percentile(100 * difference / np.asarray(words)[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)
