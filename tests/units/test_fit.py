"""``units fit``: a sample that is spread, bounded and drawn again alike; and a file of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import wave
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from speechmill import audio
from speechmill.audio import spilling
from speechmill.cli.units import units_app
from speechmill.errors import DatasetError, JobError, MissingExtraError
from speechmill.records import Recording, Waveform
from speechmill.storage import StoreOptions, open_store
from speechmill.tokenizers.features import FeatureOptions
from speechmill.tokenizers.units import UnitsTokenizer
from speechmill.tokenizers.units_file import read_units
from speechmill.units import fit as fitting
from speechmill.units.fit import FitOptions, FitReport, fit_units
from speechmill.units.sample import Draw, Reservoir, share_s
from tests.support.corpus import wav, write
from tests.support.room import limited_room
from tests.support.services import SeaweedFS
from tests.support.ssl_checkpoint import write_ssl_checkpoint
from tests.support.weights import SAMPLE_RATE, whisper

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
MFCC = FeatureOptions(kind="mfcc")


def options(out: Path, **changes: object) -> FitOptions:
    plain = FitOptions(source=str(CORPUS), out=out, features=MFCC, clusters=50)
    return replace(plain, **changes)  # type: ignore[arg-type]


def read(path: Path) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return audio.resample(audio.decode(path.read_bytes()).waveform, SAMPLE_RATE).samples


@pytest.mark.parametrize("kind", ["mfcc", "logmel", "whisper", "hubert"])
def test_units_of_some_speakers_serve_others(tmp_path: Path, kind: str) -> None:
    model = ""
    if kind == "whisper":
        whisper("tiny.en")
        model = "tiny.en"
    if kind == "hubert":
        model = str(write_ssl_checkpoint("hubert", tmp_path / "hubert"))
    features = FeatureOptions(kind=kind, model=model)
    out = tmp_path / "units.safetensors"
    report = fit_units(options(out, features=features, exclude=("p905", "p906"), clusters=40))
    assert (report.folders, report.recordings, report.skipped) == (4, 24, ())
    assert report.trained.used == 40
    assert 15 < report.trained.perplexity <= 40
    assert report.held_out is not None
    assert 0 < report.held_out.perplexity <= 40
    tokenizer = UnitsTokenizer(model=str(out))
    others = [
        read(p) for folder in ("p905", "p906") for p in sorted((CORPUS / folder).glob("*.flac"))
    ]
    codes = np.concatenate([c.values[0] for c in tokenizer.encode(others)])
    shares = np.bincount(codes, minlength=40) / len(codes)
    perplexity = np.exp(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))
    assert (shares > 0).sum() >= 20
    assert perplexity > 10


def test_the_same_corpus_options_and_seed_give_the_same_file(tmp_path: Path) -> None:
    digests = [
        fit_units(options(tmp_path / name, seed=seed, hours=0.01)).sha256
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()


def test_the_same_file_on_one_core_and_on_two(tmp_path: Path) -> None:
    digests = set()
    for threads in ("1", "2"):
        out = tmp_path / threads
        limits = {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS")}
        subprocess.run(
            [
                sys.executable, "-c", "from speechmill.cli.units import units_app; units_app()",
                "fit", str(CORPUS), "--features", "mfcc", "--clusters", "50", "--out", str(out),
            ],
            env={**os.environ, **limits}, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        digests.add(out.read_bytes())
    assert len(digests) == 1


@pytest.mark.timeout(60)
def test_recordings_that_find_no_room_wait_for_it_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_units(options(tmp_path / "whole", include=("p901", "p902")))
    monkeypatch.setattr(spilling, "SPILL_SAMPLES", 1000)
    resample = audio.resample

    def in_memory(waveform: Waveform, rate: int) -> Waveform:  # as it is up to 15 minutes
        return Waveform(np.array(resample(waveform, rate).samples), rate)

    monkeypatch.setattr(audio, "resample", in_memory)
    limited_room(monkeypatch, 1_250_000)  # the longest takes that with what it is resampled to
    narrow = fit_units(options(tmp_path / "narrow", include=("p901", "p902")))
    assert (narrow.recordings, narrow.skipped, narrow.sha256) == (12, (), whole.sha256)
    limited_room(monkeypatch, 700_000)
    tight = fit_units(options(tmp_path / "tight", include=("p901", "p902")))
    assert tight.skipped
    assert all("NoRoomError" in why and "TMPDIR" in why for _, why in tight.skipped)


def test_recordings_that_cannot_be_read_are_skipped_and_named(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(CORPUS / "p901", corpus / "p901")
    write(
        corpus,
        {
            "p901/text.flac": b"This is no audio at all.",
            "p902/short.wav": wav(1)[:2000],
            "p902/empty.wav": b"",
            "p902/readme": b"not a recording, and not called one",
        },
    )
    arguments = ["fit", str(corpus), "--features", "mfcc", "--clusters", "20"]
    out = tmp_path / "units.safetensors"
    result = CliRunner().invoke(units_app, [*arguments, "--out", str(out)])
    assert result.exit_code == 3
    assert "skipped     3 recordings" in result.output
    for name in ("p901/text.flac: NotAudioError", "p902/short.wav", "p902/empty.wav"):
        assert name in result.output
    assert "readme" not in result.output
    assert read_units(str(out)).trained_on["skipped"] == 3
    shutil.rmtree(corpus / "p901")
    with pytest.raises(DatasetError, match="none of the recordings"):
        fit_units(options(out, source=str(corpus), overwrite=True))


def test_no_more_is_heard_than_was_asked_for(tmp_path: Path) -> None:
    report = fit_units(options(tmp_path / "units", hours=0.01))
    assert report.audio_s == pytest.approx(36)
    assert report.folders == 6


def test_of_a_long_recording_only_a_stretch_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "MIN_STRETCH_S", 2.0)
    corpus = tmp_path / "corpus"
    files = {f"p{i}/long.wav": wav(i, 20.0) for i in range(4)}
    write(corpus, files)
    report = fit_units(options(tmp_path / "units", source=str(corpus), hours=8 / 3600, clusters=10))
    assert report.recordings >= 3  # a share of each, and some to spare
    assert report.audio_s == pytest.approx(8, abs=0.01)


def test_memory_holds_no_more_frames_than_it_may(tmp_path: Path) -> None:
    report = fit_units(options(tmp_path / "units", max_frames=300))
    assert report.frames > 3000
    assert 100 <= report.trained.frames <= 300


@settings(deadline=None, max_examples=60)
@given(
    capacity=st.integers(1, 200),
    blocks=st.lists(st.integers(0, 300), max_size=20),
    seed=st.integers(0, 999),
)
def test_a_reservoir_is_never_over_full_nor_needlessly_empty(
    capacity: int, blocks: list[int], seed: int
) -> None:
    reservoir = Reservoir(capacity)
    rng = np.random.default_rng(seed)
    numbers = iter(range(sum(blocks)))
    for size in blocks:
        block = np.array([next(numbers) for _ in range(size)], np.float32)
        reservoir.add(block[:, None], rng)
    kept = reservoir.frames[:, 0].tolist()
    assert len(kept) <= capacity
    assert kept == sorted(set(kept))
    if sum(blocks) <= capacity:
        assert len(kept) == sum(blocks)


def test_in_a_reservoir_early_and_late_frames_have_the_same_chance() -> None:
    counts: Counter[int] = Counter()
    for seed in range(60):
        reservoir, rng = Reservoir(500), np.random.default_rng(seed)
        for block in range(10):
            reservoir.add(np.full((400, 1), block, np.float32), rng)
        counts.update(int(v) for v in reservoir.frames[:, 0])
    mean = sum(counts.values()) / 10
    assert all(abs(counts[block] - mean) < 0.2 * mean for block in range(10)), counts


def test_recordings_are_taken_from_all_folders_in_turn() -> None:
    sizes = {"large": 50, "small": 3, "single": 1}
    by_folder = {
        folder: [Recording(f"{folder}/{i}", 1, "e", 0) for i in range(size)]
        for folder, size in sizes.items()
    }
    order = Draw(0).spread(by_folder)
    assert sorted(r.key for r in order) == sorted(
        r.key for some in by_folder.values() for r in some
    )
    assert Counter(r.key.split("/")[0] for r in order[:3]) == dict.fromkeys(sizes, 1)
    assert Counter(r.key.split("/")[0] for r in order[:7]) == {"large": 3, "small": 3, "single": 1}
    others = [r.key for r in order if not r.key.startswith("small")]
    del by_folder["small"]
    assert [r.key for r in Draw(0).spread(by_folder)] == others
    assert order != Draw(1).spread({**by_folder, "small": []})


@settings(deadline=None)
@given(durations=st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30), target=st.floats(1, 1e5))
def test_shares_together_give_what_is_wanted(durations: list[float], target: float) -> None:
    share = share_s(durations, target)
    together = sum(min(d, share) for d in durations)
    assert together == pytest.approx(min(target, sum(durations)), rel=1e-6)


def test_what_cannot_be_done_is_said_before_anything_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "units.safetensors"

    def refused(match: str, error: type[Exception] = JobError, **changes: object) -> None:
        with pytest.raises(error, match=match):
            fit_units(replace(options(out), **changes))  # type: ignore[arg-type]

    refused("did you mean 'mfcc'", features=FeatureOptions(kind="mfc"))
    refused("have no layer to choose", features=FeatureOptions(kind="whisper", layer=3))
    refused("have no model to choose", features=FeatureOptions(kind="mfcc", model="base"))
    refused("n_mfcc must be", features=FeatureOptions(kind="mfcc", n_mfcc=0))
    refused("clusters must be", clusters=1)
    refused("hours must be", hours=0.0)
    refused("seed must be", seed=-1)
    refused("max_frames must be", max_frames=10)
    refused("no folder", out=tmp_path / "nowhere" / "units.safetensors")
    refused("is a folder", out=tmp_path)
    refused("too few for 100000 clusters.*fewer --clusters", clusters=100_000)
    refused("none was chosen", DatasetError, include=("p999",))
    hubert = write_ssl_checkpoint("hubert", tmp_path / "hubert")
    refused("layers 1 to 3", features=FeatureOptions(kind="hubert", model=str(hubert), layer=4))
    refused("give --features hubert", features=FeatureOptions(kind="wavlm", model=str(hubert)))
    assert list(tmp_path.glob("*units*")) == []
    fit_units(options(out, clusters=10))
    refused("--overwrite", clusters=10)
    fit_units(options(out, clusters=10, overwrite=True))
    monkeypatch.setattr(fitting, "find_spec", lambda _: None)
    refused(r"pip install 'speechmill\[units\]'", MissingExtraError, overwrite=True)


def test_a_bucket_is_sampled_through_flags(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.secret_key)
    url = "s3://src/units-fit"
    store = open_store(
        url, StoreOptions(endpoint_url=object_store.endpoint_url, region="us-east-1")
    )
    for path in sorted(CORPUS.rglob("*.flac")):
        store.put(path.relative_to(CORPUS).as_posix(), path.read_bytes())
    here, there = tmp_path / "here", tmp_path / "there"
    fit_units(options(here))
    result = CliRunner().invoke(
        units_app,
        [
            "fit", url, "--endpoint-url", object_store.endpoint_url, "--region", "us-east-1",
            "--features", "mfcc", "--clusters", "50", "--out", str(there),
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "in 36 recordings of 6 folders" in result.output
    assert re.search(r"held out +\d+ frames: inertia .*, \d+ of 50 units used", result.output)
    one, other = read_units(str(here)), read_units(str(there))
    assert np.array_equal(one.centroids, other.centroids)
    assert other.trained_on["source"] == url
    assert object_store.secret_key not in json.dumps(dict(other.trained_on))


def test_help_has_an_example_and_every_option_is_used(tmp_path: Path) -> None:
    shown = CliRunner().invoke(units_app, ["fit", "--help"], env={"COLUMNS": "200"}).output
    assert "Example: `speechmill units fit" in shown
    out = tmp_path / "units.safetensors"
    arguments = [
        "fit", str(CORPUS), "--out", str(out), "--features", "mfcc", "--n-mfcc", "13",
        "--clusters", "12", "--hours", "0.02", "--seed", "5", "--max-frames", "500",
        "--no-standardize", "--folder", "first", "--include", "p901", "--include", "p902",
        "--exclude", "*_006.flac", "--device", "cpu", "--overwrite",
    ]  # fmt: skip
    assert CliRunner().invoke(units_app, arguments).exit_code == 0
    units = read_units(str(out))
    assert units.centroids.shape == (12, 13)
    assert units.weights.tolist() == [1] * 13
    assert units.trained_on["seed"] == 5
    assert units.trained_on["recordings"] == 10
    assert units.trained_on["trained"]["frames"] <= 500


def test_real_speech_is_told_apart(shared_data: Path, tmp_path: Path) -> None:
    report = _fit_real(shared_data, tmp_path / "units")
    assert report.held_out is not None
    assert report.trained.perplexity > 50
    assert report.held_out.perplexity > 40
    assert report.held_out.inertia < 1.5 * report.trained.inertia


def _fit_real(shared_data: Path, out: Path) -> FitReport:
    whisper("tiny.en")
    features = FeatureOptions(kind="whisper", model="tiny.en")
    source = str(shared_data / "speech")
    return fit_units(
        options(
            out, source=source, features=features, clusters=100, hours=0.1, exclude=("fleurs*",)
        )
    )


def test_a_wav_is_no_units_file(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0" * 100)
    with pytest.raises(Exception, match="no safetensors file"):
        UnitsTokenizer(model=str(path))
