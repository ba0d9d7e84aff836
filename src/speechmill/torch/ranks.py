"""The rank of this process in a distributed training."""

from __future__ import annotations

import os

import torch

from speechmill.dataset.epochs import Share
from speechmill.errors import JobError

__all__ = ["own_share"]


def own_share(rank: int | None, world_size: int | None) -> Share:
    """Find rank and world size: as given, else torch.distributed's, else the environment's, else
    there is one rank.

    Raises:
        JobError: only one of them is given, they are no numbers, or there is no such rank.
    """
    if (rank is None) != (world_size is None):
        raise JobError(f"rank={rank}, world_size={world_size}: give both, or none")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = _environment("RANK", 0), _environment("WORLD_SIZE", 1)
    return Share(rank, world_size)


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise JobError(f"{name}={text!r} in the environment is no number")
    return int(text)
