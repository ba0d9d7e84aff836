"""Each extra by itself: pip installs it into an environment of its own, and the docs' command runs.

``make extras`` runs these tests; ``make test`` does not, as pip takes minutes. The plain package is
installed once. An extra's environment is a copy of that one, of hard links, to which pip adds what
the extra asks for, so that no extra meets a package of another. Those that ask for torch are copies
of the environment of the extra ``torch``: unpacking torch is half of all the time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
import venv
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement

from tests.support.brokers import RabbitMQ, Tansu
from tests.support.codec_checkpoints import small_codec
from tests.support.ct2_weights import whisper_folder
from tests.support.weights import missing

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".extras"
CLIPS = ("p901/p901_001.flac", "p902/p902_001.flac")
OURS = ("PYTHON", "COVERAGE", "SPARK", "PYSPARK")  # variables that a fresh shell has not
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("EXTRAS_ALONE" not in os.environ, reason="make extras runs them"),
]


@dataclass(frozen=True)
class Environment:
    """An installed Speechmill, in a folder with two recordings, ``corpus``."""

    folder: Path
    work: Path

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python as a fresh shell would: no path of ours, no model's cache of this machine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
        fresh = {"HF_HUB_OFFLINE": "1", "HF_HOME": "hub", "XDG_CACHE_HOME": "cache"}
        return subprocess.run(
            [self.folder / "bin" / "python", *arguments],
            env={**kept, **fresh, "PYTHONNOUSERSITE": "1", "COLUMNS": "200"},
            cwd=self.work,
            text=True,
            capture_output=True,
            check=False,
            timeout=300,
        )

    def run(self, *arguments: str) -> str:
        """What a command prints that must do its work."""
        return _done(self.python("-m", "speechmill", *arguments))

    def build(self, *arguments: str) -> list[dict[str, object]]:
        """The rows of a build of the two recordings."""
        shutil.rmtree(self.work / "out", ignore_errors=True)
        self.run("build", "corpus", "out", *arguments)
        return self.rows()

    def rows(self) -> list[dict[str, object]]:
        """The rows of ``out``, in order of their files."""
        parts = sorted((self.work / "out" / "data").glob("*/*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]

    def copy(self, name: str) -> Environment:
        """Another environment with the same packages: hard links, which pip never writes into."""
        folder = self.folder.parent / name
        shutil.copytree(self.folder, folder, symlinks=True, copy_function=os.link)
        return _with_corpus(folder)


def _with_corpus(folder: Path) -> Environment:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    for clip in CLIPS:
        (work / "corpus" / clip).parent.mkdir(parents=True)
        shutil.copy(ROOT / "examples" / "corpus" / clip, work / "corpus" / clip)
    return Environment(folder, work)


def _done(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


class Environments:
    """The plain environment, and those of the extras, made one by one while tests run."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor, extras: Iterable[str]) -> None:
        self._wheels = folder / "wheels"
        self.plain = self._plain(folder / "plain")
        (self._wheel,) = self._wheels.glob("speechmill-*.whl")
        self._of: dict[str, Future[Environment]] = {}
        for extra in extras:
            if _begins_with_torch(extra) and "torch" not in self._of:
                self._of["torch"] = pool.submit(self._install, "torch")
            if extra not in self._of:
                self._of[extra] = pool.submit(self._install, extra)

    def __getitem__(self, extra: str) -> Environment:
        return self._of[extra].result()

    def _plain(self, folder: Path) -> Environment:
        venv.create(folder, with_pip=True)
        plain = _with_corpus(folder)
        made = plain.python(*PIP, "wheel", "--no-deps", "--wheel-dir", str(self._wheels), str(ROOT))
        if made.returncode:
            missing(f"pip cannot build the package here:\n{made.stderr}")
        _done(plain.python(*self._pip_install(*map(str, self._wheels.glob("speechmill-*.whl")))))
        plain.build("--transcriber", "fake")  # and what it imports is compiled for all copies
        return plain

    def _install(self, extra: str) -> Environment:
        environment = (self["torch"] if _begins_with_torch(extra) else self.plain).copy(extra)
        _done(environment.python(*self._pip_install(f"{self._wheel}[{extra}]")))
        if extra == "torch":
            _done(environment.python("-c", "import torch"))  # likewise compiled once
        return environment

    def _pip_install(self, *what: str) -> tuple[str, ...]:
        constraints = str(ROOT / "constraints.txt")
        return (*PIP, "install", "--no-compile", "--constraint", constraints, *what)


def _begins_with_torch(extra: str) -> bool:
    return extra != "torch" and "torch" in {Requirement(one).name for one in EXTRAS[extra]}


def _tested(test: str) -> str:
    """The extra that a test is about."""
    return test.removeprefix("test_alone_").replace("_", "-")


@pytest.fixture(scope="module")
def environments(request: pytest.FixtureRequest) -> Iterator[Environments]:
    """Beside the package, and not in /tmp, which may be in memory: they take 4 GB."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    extras = [_tested(item.name) for item in request.session.items if _tested(item.name) in EXTRAS]
    with ThreadPoolExecutor(1) as pool:
        yield Environments(FOLDER, pool, extras)
        pool.shutdown(cancel_futures=True)
    shutil.rmtree(FOLDER)


def test_every_extra_is_tested_alone() -> None:
    assert set(EXTRAS) <= set(map(_tested, globals()))


def test_without_an_extra_the_package_builds(environments: Environments) -> None:
    rows = environments.plain.build("--transcriber", "fake")
    assert [row["file_name"] for row in rows] == list(CLIPS)


BUILD = ("build", "corpus", "not-built")
FAKE = (*BUILD, "--transcriber", "fake")
WITHOUT = {
    "codecs": (*FAKE, "--tokenizer", "mimi"),
    "dask": (*FAKE, "--engine", "dask"),
    "kafka": ("enqueue", "corpus", "kafka://127.0.0.1:1/recordings"),
    "openai-whisper": (*BUILD, "--transcriber", "openai-whisper"),
    "rabbitmq": ("enqueue", "corpus", "amqp://127.0.0.1:1/recordings"),
    "ray": (*FAKE, "--engine", "ray"),
    "spark": (*FAKE, "--engine", "spark"),
    "transformers": (*BUILD, "--transcriber", "transformers"),
    "units": ("units", "fit", "corpus", "--features", "mfcc", "--out", "units.safetensors"),
    "weights": BUILD,
}


@pytest.mark.parametrize("extra", sorted(WITHOUT))
def test_without_an_extra_its_command_says_which_one_to_install(
    environments: Environments, extra: str
) -> None:
    ended = environments.plain.python("-m", "speechmill", *WITHOUT[extra])
    assert ended.returncode in (1, 2)
    assert f"pip install 'speechmill[{extra}]'" in ended.stderr


def test_without_torch_its_import_says_which_extra_to_install(environments: Environments) -> None:
    ended = environments.plain.python("-c", "import speechmill.torch")
    assert ended.stderr.endswith(
        "speechmill.torch needs the extra 'torch': pip install 'speechmill[torch]'\n"
    )


def test_alone_torch(environments: Environments) -> None:
    environment = environments["torch"]
    environment.build("--transcriber", "fake")
    script = """
from torch.utils.data import DataLoader
from speechmill.torch import SpeechStream, collate

stream = SpeechStream("out", columns=("transcription", "token"),
                      where="duration_s < 20", max_frames=20_000)
for batch in DataLoader(stream, batch_size=None, collate_fn=collate, num_workers=2):
    print(batch["token"].shape[1:], len(batch["transcription"]))
"""
    printed = _done(environment.python("-c", script))
    assert printed.count("20])") == len(CLIPS)


def test_alone_transformers(environments: Environments) -> None:
    model = str(whisper_folder())
    rows = environments["transformers"].build("--transcriber", "transformers", "--model", model)
    assert "leaves at a quarter" in str(rows[0]["transcription"])


def test_alone_openai_whisper(environments: Environments) -> None:
    model = str(whisper_folder())
    rows = environments["openai-whisper"].build("--transcriber", "openai-whisper", "--model", model)
    assert "leaves at a quarter" in str(rows[0]["transcription"])


def test_alone_codecs(environments: Environments) -> None:
    codecs = [f"{name}:{small_codec(name)}" for name in ("mimi", "snac")]
    tokenizers = [flag for codec in codecs for flag in ("--tokenizer", codec)]
    rows = environments["codecs"].build("--transcriber", "fake", *tokenizers, "--round-trip")
    assert all(row["token"] and row["token_snac"] for row in rows)
    assert all(row["round_trip_cer"] is not None for row in rows)


def test_alone_dask(environments: Environments) -> None:
    _builds_on(environments["dask"], "dask")


def test_alone_ray(environments: Environments) -> None:
    _builds_on(environments["ray"], "ray")


def test_alone_spark(environments: Environments) -> None:
    if shutil.which("java") is None:
        missing("Spark needs Java: apt-get install default-jre-headless")
    _builds_on(environments["spark"], "spark")


def _builds_on(environment: Environment, engine: str) -> None:
    rows = environment.build("--transcriber", "fake", "--engine", engine, "--workers", "1")
    assert [row["file_name"] for row in rows] == list(CLIPS)


def test_alone_kafka(environments: Environments, tansu: Tansu) -> None:
    _is_fed_by(environments["kafka"], tansu.url("extras"), "--group", "mill")


def test_alone_rabbitmq(environments: Environments, rabbitmq: RabbitMQ) -> None:
    _is_fed_by(environments["rabbitmq"], rabbitmq.url("extras"))


def _is_fed_by(environment: Environment, queue: str, *options: str) -> None:
    environment.run("enqueue", "corpus", queue, "--sink", "out")
    told = ("--source", "corpus", "--transcriber", "fake", "--until-empty")
    environment.run("work", queue, "out", *options, *told)
    assert [row["file_name"] for row in environment.rows()] == list(CLIPS)


def test_alone_units(environments: Environments) -> None:
    environment = environments["units"]
    fit = ("units", "fit", "corpus", "--features", "mfcc", "--clusters", "4")
    environment.run(*fit, "--out", "units.safetensors")
    rows = environment.build("--transcriber", "fake", "--tokenizer", "units:units.safetensors")
    assert all(row["token"] for row in rows)


def test_alone_weights(environments: Environments) -> None:
    rows = environments["weights"].build("--language", "en")
    assert "leaves at a quarter" in str(rows[0]["transcription"])
