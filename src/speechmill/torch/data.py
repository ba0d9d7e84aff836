"""The two kinds of dataset: map-style ``SpeechDataset``, iterable ``SpeechStream``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from speechmill.dataset.epochs import Even, Order, Share, windows, windows_of_batches
from speechmill.storage import StoreOptions
from speechmill.torch.ranks import own_share
from speechmill.torch.rows import Part, RowReader, Transform

__all__ = ["SpeechDataset", "SpeechStream"]


class SpeechDataset(Dataset):  # type: ignore[misc]  # torch is not typed
    """Rows by number: a map-style dataset.

    A sample is a dict of the chosen ``columns``. Of a token column it has a tensor: features as
    float32 [num_frames, num_features], codes as int64 [num_codebooks, num_frames]; None where the
    row has no tokens. ``transform`` is given each sample, and its result taken instead.

    ``where`` chooses rows: text such as ``"folder_name = 'p225' and duration_s < 10"``
    (see ``speechmill.dataset.where``), or a pyarrow expression.

    The rows are those that the sink had when it was opened. A part is read whole (the chosen
    columns of it), and kept as long as ``cache_mb`` MB of them suffice, in each process: ask for
    rows in an order that stays in a part for a while, as ``BucketBatchSampler`` does.

    Raises:
        StorageError: the sink cannot be listed or read.
        DatasetError: there is no dataset, or a part cannot be read.
        ReplacedError: (when rows are read) some are gone since it was opened.
        JobError: there is no such column, or ``where`` is no condition on the rows.
    """

    def __init__(
        self,
        sink: str,
        *,
        columns: Sequence[str] = ("transcription", "token"),
        where: str | pc.Expression | None = None,
        transform: Transform | None = None,
        cache_mb: float = 256.0,
        profile: str | None = None,
        endpoint_url: str | None = None,
        region: str | None = None,
        anonymous: bool = False,
        request_payer: bool = False,
    ) -> None:
        options = StoreOptions(
            profile, endpoint_url, region, anonymous=anonymous, request_payer=request_payer
        )
        self.reader = RowReader(sink, columns, where, options)
        self._transform = transform
        self._cache_bytes = cache_mb * 1e6
        self._cache: OrderedDict[int, Part] = OrderedDict()

    @property
    def schema(self) -> pa.Schema:
        """All columns of the sink, and its metadata."""
        return self.reader.index.schema

    @property
    def frames(self) -> NDArray[np.int64]:
        """About how many frames each row has, from its duration: int64 [num_rows]."""
        return self.reader.frames()

    def __len__(self) -> int:
        return self.reader.index.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __getitem__(self, row: int) -> Any:
        (sample,) = self.__getitems__([row])
        return sample

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Several rows, in their order; each part is asked for once. DataLoader calls this.

        Raises:
            IndexError: there is no such row.
        """
        places = [(self.reader.index.part_of(n), n) for n in map(self._checked, rows)]
        samples: list[Any] = [None] * len(places)
        for at in sorted(range(len(places)), key=lambda i: places[i]):
            number, row = places[at]
            first = int(self.reader.index.offsets[number])
            sample = self._part(number).sample(row - first)
            samples[at] = self._transform(sample) if self._transform else sample
        return samples

    def _checked(self, row: int) -> int:
        number = int(row)
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no row {number}: there are {len(self)}")
        return number % len(self)

    def _part(self, number: int) -> Part:
        part = self._cache.get(number)
        if part is None:
            part = self._cache[number] = self.reader.parts([number])[0]
            size = sum(p.num_bytes for p in self._cache.values())
            while size > self._cache_bytes and len(self._cache) > 1:
                size -= self._cache.popitem(last=False)[1].num_bytes
        self._cache.move_to_end(number)
        return part


class SpeechStream(IterableDataset):  # type: ignore[misc]  # torch is not typed
    """Rows one after another: an iterable dataset that reads each part once an epoch.

    Samples, ``columns``, ``where``, ``transform``, errors: as ``SpeechDataset``.

    With ``batch_size`` (rows) or ``max_frames`` (frames with padding) it gives lists of samples of
    like length: then the DataLoader's own ``batch_size`` must be None. Without, samples.

    Each row comes once an epoch, over all ranks and DataLoader workers together. ``rank`` and
    ``world_size`` are those of torch.distributed where that is initialised, else of the environment
    (RANK, WORLD_SIZE), else there is one. All ranks need the same seed, options and number of
    workers. They get as many rows as each other but for one, and as many batches as each other
    only with ``even``: "drop" leaves some out, "repeat" takes some twice.

    ``shuffle`` puts the parts into another order each epoch, and shuffles the rows of windows of
    ``window`` rows, or a few more: that many are in memory. ``set_epoch`` must be called, or all
    epochs are alike; it reaches the workers, also persistent ones.
    """

    def __init__(
        self,
        sink: str,
        *,
        columns: Sequence[str] = ("transcription", "token"),
        where: str | pc.Expression | None = None,
        transform: Transform | None = None,
        shuffle: bool = True,
        seed: int = 0,
        window: int = 4_096,
        batch_size: int | None = None,
        max_frames: int | None = None,
        even: Even | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        profile: str | None = None,
        endpoint_url: str | None = None,
        region: str | None = None,
        anonymous: bool = False,
        request_payer: bool = False,
    ) -> None:
        self._share = own_share(rank, world_size)
        self._order = Order(shuffle, seed, window, batch_size, max_frames, even=even)
        options = StoreOptions(
            profile, endpoint_url, region, anonymous=anonymous, request_payer=request_payer
        )
        self.reader = RowReader(sink, columns, where, options)
        self._transform = transform
        # In shared memory: workers that are there already must see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._done = self._skip = 0

    @property
    def schema(self) -> pa.Schema:
        """All columns of the sink, and its metadata."""
        return self.reader.index.schema

    @property
    def num_rows(self) -> int:
        """The rows of an epoch, over all ranks."""
        return self.reader.index.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is: another order of the same rows."""
        if epoch != int(self._epoch):
            self._epoch.fill_(epoch)
            self._skip = 0

    def state_dict(self) -> dict[str, int]:
        """Where this process is: the epoch, and how many samples (or batches) of it were given.

        With workers it is each worker's own: torchdata's StatefulDataLoader asks them.
        """
        return {"epoch": int(self._epoch), "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on behind what ``state_dict`` had seen."""
        self._epoch.fill_(state["epoch"])
        self._skip = self._done = state["done"]

    def __iter__(self) -> Iterator[Any]:
        share, worker = self._share, get_worker_info()
        if worker:
            share = replace(share, worker=worker.id, num_workers=worker.num_workers)
        skip, self._skip = self._skip, 0
        self._done = skip
        for item in self._items(share, skip):
            self._done += 1
            yield item

    def _items(self, share: Share, skip: int) -> Iterator[Any]:
        index, order, epoch = self.reader.index, self._order, int(self._epoch)
        batched = order.batch_size is not None or order.max_frames is not None
        found: Iterable[Sequence[NDArray[np.int64]]]
        if batched:
            found = windows_of_batches(index, self.reader.frames(), order, epoch, share)
        else:
            found = ([row[None] for row in w] for w in windows(index, order, epoch, share))
        for window in found:
            items = window[skip:]
            skip -= len(window) - len(items)
            if not items:
                continue
            sample = self._read(np.concatenate(items))
            for rows in items:
                samples = [sample(int(row)) for row in rows]
                yield samples if batched else samples[0]

    def _read(self, rows: NDArray[np.int64]) -> Callable[[int], Any]:
        """Read the parts of these rows. Returns the function from a row number to its sample."""
        offsets = self.reader.index.offsets
        numbers = np.unique(np.searchsorted(offsets, rows, side="right") - 1).tolist()
        parts = dict(zip(numbers, self.reader.parts(numbers), strict=True))

        def sample(row: int) -> Any:
            number = self.reader.index.part_of(row)
            found = parts[number].sample(row - int(offsets[number]))
            return self._transform(found) if self._transform else found

        return sample
