"""``units fit``: k-means over the frames of some of a corpus (MiniBatchKMeans of scikit-learn).

What is heard is spread over the folders and drawn by hashes of the seed and the names, so that the
same corpus, options and seed give the same file. Of the frames, only as many are kept as fit into
a given amount of memory, each with the same chance.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speechmill import audio
from speechmill._version import __version__
from speechmill.ahead import ahead
from speechmill.dataset.layout import folder_rule
from speechmill.errors import (
    AudioError,
    DatasetError,
    JobError,
    MissingExtraError,
    NoRoomError,
    StorageError,
    UnavailableError,
)
from speechmill.job import Selection
from speechmill.pipeline.listing import HEAD_BYTES, told_by_content, unlike_recording
from speechmill.pipeline.selection import estimate_s, selection
from speechmill.records import Recording, Waveform
from speechmill.storage import Store, StoreOptions, fetch, open_store
from speechmill.tokenizers.features import FeatureOptions, Features, open_features
from speechmill.tokenizers.nearest import Nearest
from speechmill.tokenizers.units_file import MAX_CLUSTERS, UnitsFile, check_target, write_units
from speechmill.units.cluster import Quality, kmeans, quality_of
from speechmill.units.sample import Draw, Reservoir, share_s

__all__ = ["FitObserver", "FitOptions", "FitReport", "fit_units"]

HELD_OUT_EVERY: Final = 20
"""One recording of so many is not trained on, but tells how well the units fit others."""

MIN_STRETCH_S: Final = 60.0
"""So much is taken of a long recording at least: it has to be fetched and decoded anyway."""

STRETCH_SLACK: Final = 1.5  # estimates of durations are rough: what is too much is not heard
SAMPLE_BYTES: Final = 2**30  # of frames that are kept, where max_frames does not say
HELD_OUT_SHARE: Final = 8  # so much less is kept of the held-out recordings
FETCHERS: Final = 8
GROUP: Final = 8  # pieces whose features are computed together
PIECE_S: Final = 300  # a longer stretch is several pieces
MAX_AHEAD_S: Final = 1200.0  # audio that is read ahead, unless one recording alone is longer
LISTED_EVERY: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What ``fit_units`` is told. ``max_frames`` of 0 is what one GiB holds.

    ``standardize`` divides each dimension by its standard deviation; None does so for MFCC alone,
    where loudness would outweigh the rest. ``include`` and ``exclude`` are globs, ``folder`` is
    the rule of ``Job.folder``.
    """

    source: str
    out: Path
    features: FeatureOptions
    clusters: int = 500
    hours: float = 10.0
    seed: int = 0
    folder: str = "parent"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    standardize: bool | None = None
    max_frames: int = 0
    overwrite: bool = False
    store: StoreOptions = field(default_factory=StoreOptions)


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit heard, and how well the units fit. ``held_out`` is None for want of recordings.

    ``skipped`` are the file names of recordings that could not be read, and why. ``frames`` are
    those that were heard, of which ``trained.frames`` were kept.
    """

    out: Path
    sha256: str
    clusters: int
    recordings: int
    folders: int
    audio_s: float
    frames: int
    trained: Quality
    held_out: Quality | None
    skipped: tuple[tuple[str, str], ...]
    wall_s: float


class FitObserver:
    """Who is told how a fit gets on."""

    def listed(self, count: int) -> None:
        """So many files have been listed."""

    def heard(self, audio_s: float, target_s: float, recordings: int, skipped: int) -> None:
        """So much audio has been heard, of about so much."""

    def clustering(self, frames: int, clusters: int) -> None:
        """Everything has been heard: k-means begins."""


def fit_units(options: FitOptions, observer: FitObserver | None = None) -> FitReport:
    """Fit units to a corpus, and write them to ``options.out``.

    Raises:
        DatasetError: there are no recordings, or none that can be read.
        JobError: an option makes no sense, or there is too little audio for so many clusters.
        MissingExtraError: scikit-learn is not installed, or what the features need.
        ModelError: the features' model cannot be found or run.
        StorageError: the source cannot be listed, or stays down.
    """
    started = time.monotonic()
    _check(options)
    features = open_features(options.features)
    store = open_store(options.source, options.store)
    return _Fit(options, features, store, observer or FitObserver()).run(started)


def _check(options: FitOptions) -> None:
    if find_spec("sklearn") is None or find_spec("safetensors") is None:
        raise MissingExtraError("units fit", "units")
    if not 2 <= options.clusters <= MAX_CLUSTERS:
        raise JobError(f"clusters must be between 2 and {MAX_CLUSTERS}, not {options.clusters}")
    if not options.hours > 0:
        raise JobError(f"hours must be above 0, not {options.hours:g}")
    if not 0 <= options.seed < 2**32:
        raise JobError(f"seed must be between 0 and {2**32 - 1}, not {options.seed}")
    if options.max_frames and options.max_frames < options.clusters:
        raise JobError(
            f"max_frames must be at least the number of clusters, {options.clusters}, "
            f"or 0, not {options.max_frames}"
        )
    check_target(options.out, overwrite=options.overwrite)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A piece of a recording; ``rng`` is the recording's."""

    samples: NDArray[np.float32]
    is_held_out: bool
    rng: np.random.Generator


class _Fit:
    """The state of one fit."""

    def __init__(
        self, options: FitOptions, features: Features, store: Store, observer: FitObserver
    ) -> None:
        self.options, self.features, self.store = options, features, store
        self.observer = observer
        self.draw = Draw(options.seed)
        self.folder_of = folder_rule(options.folder)
        self.trained: Reservoir | None = None
        self.held_out: Reservoir | None = None
        self.skipped: list[tuple[str, str]] = []
        self.folders: set[str] = set()
        self.recordings = self.frames = 0
        self.audio_s = 0.0

    def run(self, started: float) -> FitReport:
        chosen = self._chosen()
        estimates = [estimate_s(r) for r in chosen]
        target_s = self.options.hours * 3600
        stretch_s = max(MIN_STRETCH_S, STRETCH_SLACK * share_s(estimates, target_s))
        self._hear(chosen, stretch_s, min(target_s, sum(estimates)))
        frames = self._enough()
        self.observer.clustering(len(frames), self.options.clusters)
        weights = self._weights(frames)
        centroids = kmeans(frames * weights, self.options.clusters, self.options.seed) / weights
        nearest = Nearest(centroids, weights)
        trained = quality_of(nearest, frames, self.options.clusters)
        others = self.held_out.frames if self.held_out else frames[:0]
        held_out = quality_of(nearest, others, self.options.clusters) if len(others) else None
        units = UnitsFile(
            centroids=centroids,
            weights=weights,
            options=self.features.options.as_json(),
            recipe=self.features.recipe,
            sample_rate=self.features.sample_rate,
            hop_length=self.features.hop_length,
            trained_on={
                "source": self.store.url,
                "seed": self.options.seed,
                "recordings": self.recordings,
                "folders": len(self.folders),
                "skipped": len(self.skipped),
                "audio_s": round(self.audio_s, 3),
                "frames": self.frames,
                "trained": asdict(trained),
                "held_out": asdict(held_out) if held_out else None,
            },
            libraries={
                "speechmill": __version__,
                **{name: version(name) for name in ("numpy", "scikit-learn")},
            },
        )
        write_units(self.options.out, units)
        return FitReport(
            out=self.options.out,
            sha256=hashlib.sha256(self.options.out.read_bytes()).hexdigest(),
            clusters=self.options.clusters,
            recordings=self.recordings,
            folders=len(self.folders),
            audio_s=self.audio_s,
            frames=self.frames,
            trained=trained,
            held_out=held_out,
            skipped=tuple(self.skipped),
            wall_s=time.monotonic() - started,
        )

    def _chosen(self) -> list[Recording]:
        """The recordings in the order in which they are heard: one of each folder, and so on."""
        options = self.options
        reason = selection(Selection(include=options.include, exclude=options.exclude))
        by_folder: defaultdict[str, list[Recording]] = defaultdict(list)
        listed = 0
        for listed, found in enumerate(self.store.list(), 1):
            if listed % LISTED_EVERY == 0:
                self.observer.listed(listed)
            recording = Recording(found.key, found.size, found.etag, found.modified_us)
            if reason(recording.file_name) is None:
                by_folder[self.folder_of(recording.file_name)].append(recording)
        self.observer.listed(listed)
        if not by_folder:
            raise DatasetError(
                f"no recordings found in {self.store.url}: of {listed} files none was chosen; "
                "check the path, and --include and --exclude"
            )
        return self.draw.spread(by_folder)

    def _hear(self, chosen: Sequence[Recording], stretch_s: float, target_s: float) -> None:
        """Compute the features of recordings until there is enough audio."""
        rate, most_s = self.features.sample_rate, self.options.hours * 3600
        group: list[_Piece] = []
        for recording, stretch in self._stretches(chosen, stretch_s):
            if isinstance(stretch, str):
                self.skipped.append((recording.file_name, stretch))
            elif stretch is not None:
                taken = stretch[: max(1, round((most_s - self.audio_s) * rate))]
                self.audio_s += len(taken) / rate
                for piece in self._pieces(recording, taken):
                    group.append(piece)
                    if len(group) == GROUP or sum(len(p.samples) for p in group) >= PIECE_S * rate:
                        self._keep(group)
                        group = []
            self.observer.heard(self.audio_s, target_s, self.recordings, len(self.skipped))
            if self.audio_s >= most_s:
                break
        self._keep(group)

    def _pieces(self, recording: Recording, samples: NDArray[np.float32]) -> Iterator[_Piece]:
        """Cut what is taken of a recording, so that its frames need not be held all at once."""
        seed = self.draw.number(recording.file_name)
        # The second one is held out in any case, the first one never.
        drawn = self.recordings > 1 and seed % HELD_OUT_EVERY == 0
        is_held_out = self.recordings == 1 or drawn
        self.recordings += 1
        self.folders.add(self.folder_of(recording.file_name))
        rng = np.random.default_rng(seed)
        step = PIECE_S * self.features.sample_rate
        for first in range(0, len(samples), step):
            yield _Piece(samples[first : first + step], is_held_out, rng)

    def _stretches(
        self, chosen: Sequence[Recording], stretch_s: float
    ) -> Iterator[tuple[Recording, NDArray[np.float32] | str | None]]:
        """Each recording with what ``_read_or_reason`` gives, in order. Some are read ahead; one
        that finds no room for its temporary files is read again when these are done."""
        reading: set[Future[NDArray[np.float32] | str | None]] = set()

        def begin(recording: Recording) -> Future[NDArray[np.float32] | str | None]:
            future = pool.submit(self._read_or_reason, recording, stretch_s)
            reading.add(future)
            future.add_done_callback(reading.discard)
            return future

        with ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch") as pool:
            for recording, read in ahead(
                chosen, begin, most=2 * FETCHERS, cost=estimate_s, most_cost=MAX_AHEAD_S
            ):
                found = read
                if isinstance(read, str) and read.startswith(NoRoomError.__name__):
                    wait(reading.copy())
                    found = self._read_or_reason(recording, stretch_s)
                yield recording, found

    def _read_or_reason(
        self, recording: Recording, stretch_s: float
    ) -> NDArray[np.float32] | str | None:
        """What ``_read`` gives; why, for a recording that cannot be read."""
        try:
            return self._read(recording, stretch_s)
        except UnavailableError:
            raise
        except (AudioError, StorageError) as error:
            return f"{type(error).__name__}: {error}"

    def _read(self, recording: Recording, stretch_s: float) -> NDArray[np.float32] | None:
        """A stretch of the recording, at the features' rate; None where it is no recording."""
        blob = fetch(self.store, recording.key, recording.size)
        head = bytes(blob.data[:HEAD_BYTES])
        if told_by_content(recording, Selection()) and unlike_recording(recording, head):
            return None
        whole = audio.decode_isolated(blob.data).waveform
        length = int(stretch_s * whole.sample_rate)
        first = 0
        if len(whole.samples) > length:
            first = self.draw.number(recording.file_name) % (len(whole.samples) - length)
        part = Waveform(whole.samples[first : first + length].copy(), whole.sample_rate)
        return audio.resample(part, self.features.sample_rate).samples

    def _keep(self, group: Sequence[_Piece]) -> None:
        """Put some of the pieces' frames to the samples."""
        for piece, frames in zip(
            group, self.features.frames([piece.samples for piece in group]), strict=True
        ):
            if self.trained is None or self.held_out is None:
                capacity = self.options.max_frames or SAMPLE_BYTES // (4 * frames.shape[1])
                self.trained = Reservoir(capacity)
                self.held_out = Reservoir(max(1, capacity // HELD_OUT_SHARE))
            sample = self.held_out if piece.is_held_out else self.trained
            sample.add(frames, piece.rng)
            self.frames += len(frames)

    def _enough(self) -> NDArray[np.float32]:
        """The frames to train on."""
        if self.trained is None:
            name, why = self.skipped[0] if self.skipped else ("", "no file is audio")
            raise DatasetError(
                f"none of the recordings in {self.store.url} can be read: {name} {why}"
            )
        frames = self.trained.frames
        if len(frames) < self.options.clusters:
            raise JobError(
                f"{len(frames)} frames are too few for {self.options.clusters} clusters "
                f"({self.audio_s / 60:.1f} minutes of audio were heard): give more audio, more "
                "--hours, or fewer --clusters"
            )
        return frames

    def _weights(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        wanted = self.options.standardize
        if wanted is None:
            wanted = self.features.options.kind == "mfcc"
        if not wanted:
            return np.ones(frames.shape[1], np.float32)
        deviations = frames.std(axis=0, dtype=np.float64)
        return np.where(deviations > 0, 1 / np.maximum(deviations, 1e-12), 1.0).astype(np.float32)
