"""A file of units: the centroids of k-means, and what they are centroids of.

It is safetensors with two tensors, ``centroids`` (float32 [clusters, width]) and ``weights``
(float32 [width], by which the differences in each dimension are multiplied), and JSON in its
metadata under ``speechmill_units``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speechmill.errors import JobError, MissingExtraError, ModelError

__all__ = ["MAX_CLUSTERS", "UnitsFile", "check_target", "read_units", "write_units"]

FORMAT: Final = 1
METADATA_KEY: Final = "speechmill_units"
MAX_CLUSTERS: Final = 2**20
EXTRA: Final = "units"
_REMEDY: Final = "make it anew with speechmill units fit"


@dataclass(frozen=True, slots=True, eq=False)
class UnitsFile:
    """Centroids, and what they are of.

    ``options`` and ``recipe`` are those of the features (``FeatureOptions.as_json``,
    ``Features.recipe``); ``trained_on`` tells of the audio, ``libraries`` of what computed.
    ``sha256`` is the file's.
    """

    centroids: NDArray[np.float32]
    weights: NDArray[np.float32]
    options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    sample_rate: int
    hop_length: int
    trained_on: Mapping[str, Any]
    libraries: Mapping[str, str]
    sha256: str = ""

    @property
    def num_clusters(self) -> int:
        """Number of units."""
        return len(self.centroids)


def write_units(path: Path, units: UnitsFile) -> None:
    """Write the file, whole or not at all.

    Raises:
        JobError: it cannot be written there.
        MissingExtraError: safetensors is not installed.
    """
    save = _safetensors().numpy.save
    clusters, width = units.centroids.shape
    metadata = {
        "format": FORMAT,
        "features": dict(units.options),
        "recipe": dict(units.recipe),
        "clusters": clusters,
        "width": width,
        "sample_rate": units.sample_rate,
        "hop_length": units.hop_length,
        "trained_on": dict(units.trained_on),
        "libraries": dict(units.libraries),
    }
    tensors = {
        "centroids": np.ascontiguousarray(units.centroids, np.float32),
        "weights": np.ascontiguousarray(units.weights, np.float32),
    }
    data = save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as staged:
            try:
                staged.write(data)
                staged.flush()
                os.fsync(staged.fileno())
                Path(staged.name).chmod(0o666 & ~_umask())
                Path(staged.name).replace(path)
            except BaseException:
                Path(staged.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}") from error


def check_target(path: Path, *, overwrite: bool) -> None:
    """Check beforehand that the file can be written.

    Raises:
        JobError: it is there already, or its folder is not, or cannot be written to.
    """
    if path.is_dir():
        raise JobError(f"{path} is a folder: give the name of a file, such as units.safetensors")
    if path.exists() and not overwrite:
        raise JobError(
            f"{path} is there already, and datasets may have been made with it: choose another "
            "name, or give --overwrite"
        )
    if not path.parent.is_dir():
        raise JobError(f"there is no folder {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK):
        raise JobError(f"cannot write to the folder {path.parent}")


def read_units(path: str) -> UnitsFile:
    """Read the file, and check that all of it fits together.

    Raises:
        ModelError: there is no such file, it is broken, or holds something else.
        MissingExtraError: safetensors is not installed.
    """
    safetensors = _safetensors()
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the units in {path!r}: {error.strerror}; give the file that speechmill "
            "units fit has written"
        ) from error
    try:
        tensors = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    # What safetensors raises for a damaged file is not of one class.
    except Exception as error:
        said = " ".join(str(error).split())
        raise ModelError(
            f"{path!r} is no safetensors file, or damaged ({said}): {_REMEDY}"
        ) from error
    text = header.get("__metadata__", {}).get(METADATA_KEY)
    if text is None:
        raise ModelError(
            f"{path!r} holds no units of Speechmill (its metadata has no {METADATA_KEY!r}): "
            f"{_REMEDY}"
        )
    try:
        metadata = json.loads(text)
        if metadata["format"] > FORMAT:
            raise ModelError(
                f"{path!r} was written by a newer Speechmill (format {metadata['format']}): "
                f"update, or {_REMEDY}"
            )
        shape = (int(metadata["clusters"]), int(metadata["width"]))
        units = UnitsFile(
            centroids=_tensor(tensors, "centroids", shape),
            weights=_tensor(tensors, "weights", shape[1:]),
            options=dict(metadata["features"]),
            recipe=dict(metadata["recipe"]),
            sample_rate=int(metadata["sample_rate"]),
            hop_length=int(metadata["hop_length"]),
            trained_on=dict(metadata["trained_on"]),
            libraries=dict(metadata["libraries"]),
            sha256=hashlib.sha256(data).hexdigest(),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path!r} is damaged ({error!r}): {_REMEDY}") from error
    if not 1 <= units.num_clusters <= MAX_CLUSTERS or units.weights.min() <= 0:
        raise ModelError(f"{path!r} is damaged (no clusters, or weights of 0): {_REMEDY}")
    if units.sample_rate < 1 or units.hop_length < 1:
        raise ModelError(f"{path!r} is damaged (a rate or hop below 1): {_REMEDY}")
    return units


def _tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """The tensor, as announced; ValueError says what is wrong with it."""
    tensor = tensors[name]
    if tensor.shape != shape or tensor.dtype != np.float32 or not tensor.size:
        raise ValueError(
            f"{name} are {tensor.dtype} {list(tensor.shape)}, not float32 {list(shape)}"
        )
    if not np.isfinite(tensor).all():
        raise ValueError(f"{name} are not finite")
    return tensor


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise MissingExtraError("the tokenizer 'units'", EXTRA) from None
    return safetensors
