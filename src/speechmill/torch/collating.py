"""Collate samples of different lengths to batches of padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from speechmill.errors import DatasetError, JobError
from speechmill.torch.rows import Sample

__all__ = ["collate"]


def collate(
    samples: Sequence[Sample], *, pad_code: int = 0, pad_feature: float = 0.0
) -> dict[str, Any]:
    """Collate samples to a batch, column by column.

    A column of tensors (or numpy arrays) becomes one padded tensor: features float32
    [batch, max_frames, num_features], codes int64 [batch, num_codebooks, max_frames], plain
    sequences [batch, max_frames]. With it come ``<column>_lengths`` (int64 [batch], frames) and
    ``<column>_mask`` (bool [batch, max_frames], true where there is a frame). ``pad_code`` and
    ``pad_feature`` fill the rest.

    A column of numbers becomes a tensor [batch], float64 or int64, and any other, as text, a list.

    Raises:
        DatasetError: a row has no tokens where others have some, or tokens are of different kinds.
        JobError: these are no samples, but a single one, or batches of them.
    """
    if isinstance(samples, dict) or not samples or not isinstance(samples[0], dict):
        raise JobError(
            "collate takes a list of samples: a SpeechStream with batch_size or max_frames gives "
            "such lists to DataLoader(…, batch_size=None), any other to DataLoader(…, batch_size=N)"
        )
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if any(isinstance(v, torch.Tensor | np.ndarray) for v in values):
            tensors = _tensors(values, name, samples)
            batch[name], lengths = _padded(tensors, name, pad_code, pad_feature)
            batch[f"{name}_lengths"] = lengths
            batch[f"{name}_mask"] = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        elif all(type(v) is int for v in values) or all(type(v) is bool for v in values):
            batch[name] = torch.tensor(values)
        elif all(type(v) is float for v in values):
            batch[name] = torch.tensor(values, dtype=torch.float64)
        else:
            batch[name] = values
    return batch


def _tensors(values: Sequence[Any], name: str, samples: Sequence[Sample]) -> list[torch.Tensor]:
    for value, sample in zip(values, samples, strict=True):
        if value is None:
            which = sample.get("file_name", "a row")
            raise DatasetError(
                f"{which} has no {name}, and others have: leave such rows out with "
                f"where={f'{name} IS NOT NULL'!r}"
            )
    return [torch.as_tensor(value) for value in values]


def _padded(
    tensors: Sequence[torch.Tensor], name: str, pad_code: int, pad_feature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad tensors to one. Also returns their lengths: features have frames first, codes last."""
    first = tensors[0]
    features = first.is_floating_point()
    time = 0 if features else -1
    others = {(t.dtype, t.shape[1:] if features else t.shape[:-1]) for t in tensors}
    if len(others) > 1 or not first.ndim:
        raise DatasetError(
            f"the {name} of a batch's rows do not go together: "
            + ", ".join(sorted({f"{t.dtype} {list(t.shape)}" for t in tensors})[:4])
        )
    lengths = torch.tensor([t.shape[time] for t in tensors])
    shape = list(first.shape)
    shape[time] = int(lengths.max())
    pad = pad_feature if features else pad_code
    padded = torch.full((len(tensors), *shape), pad, dtype=first.dtype)
    for row, tensor in zip(padded, tensors, strict=True):
        row.narrow(time, 0, tensor.shape[time]).copy_(tensor)
    return padded, lengths
