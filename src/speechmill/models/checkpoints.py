"""Checkpoints in the format of transformers: a folder, or a repository on the hub.

Weights are read from safetensors only. The other format there is (``.bin``, ``.pt``) is a pickle,
which may run code when it is opened.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from speechmill.errors import JobError, ModelError
from speechmill.models.weights import HUB_TIMEOUT_S, Model, file_digests, without_progress_bars

__all__ = [
    "alignment_heads",
    "cannot_load",
    "load_pretrained",
    "read_json",
    "resolve_checkpoint",
    "weight_files",
]

_log = logging.getLogger(__name__)

WEIGHTS: Final = "model.safetensors"
SHARDS: Final = "model.safetensors.index.json"
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# Files that shape values besides the weights; a folder may hold much else.
_SHAPING: Final = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)


def resolve_checkpoint(name: str, repositories: Mapping[str, str]) -> Model:
    """Find a checkpoint: folder, the hub's local cache, the hub, in this order.

    Args:
        name: a folder, a hub id ``org/name``, or a short name among ``repositories``.
        repositories: the hub ids of short names.

    Returns:
        Its folder, and the SHA-256 of every file in it that shapes values.

    Raises:
        JobError: its weights are not in safetensors.
        ModelError: there is no such checkpoint, it cannot be found or downloaded, or lacks files.
    """
    path = Path(name).expanduser()
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.endswith("/")
    if path.is_file():
        _refuse_pickle(name, [path.name])
        raise ModelError(
            f"{name!r} is a file: give the folder that holds config.json and {WEIGHTS}"
        )
    if looks_like_path or (name and path.is_dir() and name not in repositories):
        if not path.is_dir():
            raise ModelError(f"there is no model folder {name!r}")
        weight_files(path, name)
        return Model(name, path.resolve(), _digests(path), "folder")
    repository = repositories.get(name, name)
    if repository.count("/") != 1:
        raise ModelError(
            f"there is no model {name!r}; there are: {', '.join(repositories)}; a hub id such as "
            f"{next(iter(repositories.values()))}; or a folder that holds config.json and {WEIGHTS}"
        )
    if cached := _from_cache(repository):
        weight_files(cached, name)
        return Model(name, cached, _digests(cached), "cache")
    downloaded = _from_hub(name, repository)
    weight_files(downloaded, name)
    return Model(name, downloaded, _digests(downloaded), "hub")


def weight_files(folder: Path, name: str) -> list[Path]:
    """List the files that hold a checkpoint's weights.

    Raises:
        JobError: the weights are there, but not in safetensors.
        ModelError: there are none, or some of them are missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {str(folder)!r} holds no checkpoint: it lacks config.json")
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    found = [path.name for path in folder.iterdir()]
    if SHARDS not in found:
        _refuse_pickle(name, found)
        raise ModelError(f"the folder {str(folder)!r} holds no checkpoint: it lacks {WEIGHTS}")
    shards = sorted(set(read_json(folder / SHARDS).get("weight_map", {}).values()))
    # A name with a folder in it could lead anywhere.
    if missing := [s for s in shards if Path(s).name != s or not (folder / s).is_file()]:
        raise ModelError(f"the checkpoint {name!r} in {folder} lacks {', '.join(missing)}")
    return [folder / shard for shard in shards]


def read_json(path: Path) -> dict[str, Any]:
    """Read a checkpoint's JSON file; {} where there is none.

    Raises:
        ModelError: it is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}; get the checkpoint anew") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object; get the checkpoint anew")
    return value


def alignment_heads(weights: Model, *, words: bool) -> list[tuple[int, int]]:
    """Read the decoder's heads, (layer, head), whose attention follows the speech; there may be
    none.

    Raises:
        JobError: words are asked for, and there are none.
        ModelError: the checkpoint's generation_config.json cannot be read.
    """
    heads = read_json(weights.folder / "generation_config.json").get("alignment_heads") or []
    if words and not heads:
        raise JobError(
            f"the model {weights.name!r} cannot tell the times of words: its "
            "generation_config.json has no alignment_heads; build without words, or take those of "
            "the model that it was made from"
        )
    return [(int(layer), int(head)) for layer, head in heads]


def load_pretrained(kind: Any, weights: Model, **options: Any) -> Any:
    """Call ``kind.from_pretrained`` on a local checkpoint: no hub, no code of it, no pickle.

    Raises:
        ModelError: its files are damaged, or lack weights, which transformers would make up.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # it must not write to the terminal
    transformers_logging.disable_progress_bar()
    is_model = hasattr(kind, "from_config") or hasattr(kind, "generate")
    if is_model:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        loaded = kind.from_pretrained(
            os.fspath(weights.folder), local_files_only=True, trust_remote_code=False, **options
        )
    # What transformers, tokenizers and safetensors raise for a damaged file is not of one class.
    except Exception as error:
        raise cannot_load(weights, error) from error
    if not is_model:
        return loaded
    model, info = loaded
    if lacking := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise cannot_load(weights, f"it lacks {len(lacking)} weights, such as {lacking[0]}")
    return model.eval()


def cannot_load(weights: Model, reason: object) -> ModelError:
    """Make the error for weights that are there, but cannot be loaded."""
    said = " ".join(str(reason).split())
    return ModelError(f"the model {weights.name!r} in {weights.folder} cannot be loaded: {said}")


def _refuse_pickle(name: str, files: Sequence[str]) -> None:
    pickles = sorted(f for f in files if any(fnmatch(f, pattern) for pattern in PICKLES))
    if pickles:
        raise JobError(
            f"the weights of {name!r} are in {pickles[0]}, a pickle, which may run code when it "
            "is opened: only safetensors are read. If you trust it, convert it: a checkpoint of "
            "transformers by AutoModel….from_pretrained(it).save_pretrained(NEW_FOLDER), a .pt "
            "of openai-whisper by convert_openai_to_hf.py of the transformers repository; then "
            "give the new folder"
        )


def _from_cache(repository: str) -> Path | None:
    """Find the checkpoint's folder in the hub's local cache, if it is complete."""
    import huggingface_hub

    for weights in (WEIGHTS, SHARDS):
        found = huggingface_hub.try_to_load_from_cache(repository, weights)
        if isinstance(found, str) and _is_whole(Path(found).parent):
            return Path(found).parent
    return None


def _is_whole(folder: Path) -> bool:
    try:
        return bool(weight_files(folder, folder.name))
    except (JobError, ModelError):
        return False


def _from_hub(name: str, repository: str) -> Path:
    """Download the checkpoint into the hub's cache.

    Raises:
        JobError: its weights are not in safetensors.
        ModelError: the hub does not give it.
    """
    import huggingface_hub

    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        # The first request has a timeout: that of snapshot_download has none.
        info = huggingface_hub.HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
        listed = [file.rfilename for file in info.siblings or ()]
        if not {WEIGHTS, SHARDS} & set(listed):
            _refuse_pickle(name, listed)
        weights = [WEIGHTS] if WEIGHTS in listed else ["model-*.safetensors", SHARDS]
        wanted = [f for f in listed if any(fnmatch(f, p) for p in (*_SHAPING, *weights))]
        _log.info("downloading %s from %s", repository, endpoint)
        # The weights, or their index, come last, so that a cache that holds them holds it all.
        with without_progress_bars():
            for file in sorted(wanted, key=lambda file: (file in {WEIGHTS, SHARDS}, file)):
                huggingface_hub.hf_hub_download(repository, file)
    except JobError:
        raise
    # The boundary to a client whose errors are those of whichever HTTP library it uses.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"the model {name!r} is not on this machine: no folder of that name, no {repository} "
            f"in the hub cache {huggingface_hub.constants.HF_HUB_CACHE}, and the hub {endpoint} "
            f"does not give it ({reason}). Give this machine a way to the hub once (or set "
            f"HF_ENDPOINT to a mirror), or give a folder that holds config.json and {WEIGHTS}."
        ) from error
    if folder := _from_cache(repository):
        return folder
    raise ModelError(f"{repository} on the hub holds no weights in safetensors")


def _digests(folder: Path) -> Mapping[str, str]:
    """Compute the SHA-256 of each file that shapes values, by name."""
    shaping = {path for pattern in _SHAPING for path in folder.glob(pattern)}
    return file_digests(shaping | set(weight_files(folder, folder.name)))
