"""The batch sampler of a ``SpeechDataset``: batches by length, shared out among ranks."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from speechmill.dataset.epochs import Even, Order, num_batches, windows_of_batches
from speechmill.errors import JobError
from speechmill.torch.data import SpeechDataset
from speechmill.torch.ranks import own_share

__all__ = ["BucketBatchSampler"]


class BucketBatchSampler(Sampler):  # type: ignore[misc]  # torch is not typed
    """Batches of rows of like length, for ``DataLoader(dataset, batch_sampler=…)``.

    ``batch_size`` bounds the rows of a batch, ``max_frames`` its frames with padding (the number of
    rows × the longest), by ``dataset.frames``; a row that is longer is a batch of its own. Rows are
    sorted by length within a window of ``window`` rows or a few more, which are those of a few
    parts; ``by_length=False`` leaves them in their (shuffled) order.

    Each row comes once an epoch, over all ranks. ``rank``, ``world_size``, ``shuffle``, ``even``
    and ``set_epoch``: as for ``SpeechStream``.

    Raises:
        JobError: neither bound is given, or a number makes no sense.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        *,
        batch_size: int | None = None,
        max_frames: int | None = None,
        by_length: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        window: int = 4_096,
        even: Even | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size is None and max_frames is None:
            raise JobError("how large is a batch? Give batch_size, max_frames, or both")
        self._share = own_share(rank, world_size)
        self._order = Order(shuffle, seed, window, batch_size, max_frames, by_length, even)
        self._index, self._frames = dataset.reader.index, dataset.frames
        self._epoch = self._done = self._skip = 0
        self._length: tuple[int, int] | None = None  # of which epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is: another order of the same rows."""
        if epoch != self._epoch:
            self._epoch, self._skip = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were asked for.

        A DataLoader with workers asks for some before they are used: put the number of batches
        that you have trained on in place of ``done``.
        """
        return {"epoch": self._epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on behind the first ``done`` batches of that epoch."""
        self._epoch = state["epoch"]
        self._skip = self._done = state["done"]

    def __len__(self) -> int:
        if self._length is None or self._length[0] != self._epoch:
            found = num_batches(self._index, self._frames, self._order, self._epoch, self._share)
            self._length = self._epoch, found
        return self._length[1]

    def __iter__(self) -> Iterator[list[int]]:
        skip, self._skip = self._skip, 0
        self._done = skip
        for window in windows_of_batches(
            self._index, self._frames, self._order, self._epoch, self._share
        ):
            for batch in window[skip:]:
                self._done += 1
                yield batch.tolist()
            skip = max(0, skip - len(window))
