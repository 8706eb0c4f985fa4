"""Images of a user's own `torch.utils.data.Dataset` or `DataLoader`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from blockdrop.data.batching import Augment, batch_sizes, derived_seed, evenly_spaced, part_of_epoch, split_rows
from blockdrop.data.checks import Wanted
from blockdrop.data.randomness import seeded
from blockdrop.data.reading import Reading, read_batches
from blockdrop.data.samplers import LoaderBatches
from blockdrop.data.sets import Normalisation
from blockdrop.errors import DataError
from blockdrop.progress import progress

LOOKED_AT = 3
READ_AT_ONCE = 256
"""Items of a batch where only labels are wanted."""


class OwnImages:
    """Images of a map-style data set whose items are (image, label): a float tensor (3, H, W), normalised as the
    network wants it, and a class number. Or of a DataLoader of one, whose batches are (images, labels).

    Training shuffles a data set as the others here are shuffled. A loader keeps its sampler or batch_sampler, its
    batch size, collate_fn and workers; what its sampler draws comes from seed and epoch (`LoaderBatches`). Tests
    read all items in order: of a loader those that its sampler can draw, in batches of the tests' size.

    What reading an item draws at random, from the global generators of torch (on the CPU), numpy and Python, comes
    from seed, epoch and the item's number, so pixels are the same wherever an epoch goes on and however many
    processes read; without `augment` they are always the same. A generator that the data set keeps for itself is
    left alone: what it draws isn't repeated when a run goes on.

    Args:
        data: a Dataset, or whatever else has `__len__` and `__getitem__`; or a DataLoader.
        image_size: side in pixels.
        num_classes: labels are below it.
        workers: processes that read; 0: this one. A loader has its own `num_workers`.
        name: for messages.
    Raises:
        DataError: data without length, without items, or that can't be read item by item.
    """

    def __init__(self, data: Any, image_size: int, num_classes: int, *, workers: int = 0, name: str = "own data"):
        self.wanted = Wanted(image_size, num_classes, name)
        dataset: Any = data.dataset if isinstance(data, DataLoader) else data
        self.dataset = dataset
        _check_map_style(dataset, name)
        self.loader: LoaderBatches | None = None
        self.collate: Callable[[list[Any]], Any] | None = None
        self.reading = Reading(workers, setting="workers")
        self.rows = torch.arange(len(dataset))
        if isinstance(data, DataLoader):
            self.loader = LoaderBatches(data, name)
            self.collate = None if data.collate_fn is default_collate else data.collate_fn
            self.reading = Reading(
                data.num_workers,
                None if data.worker_init_fn is None else _OwnStart(data.worker_init_fn),
                data.pin_memory,
                data.timeout,
                data.prefetch_factor,
                data.multiprocessing_context,
                "num_workers",
            )
            self.rows = self.loader.items()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.wanted.image_size

    @cached_property
    def labels(self) -> Tensor:
        """int64 (M,): the data set's `targets` or `labels` where it has them for all items, and where a few items
        that are read have the same; else of all items, read once."""
        known = known_labels(self.dataset)
        if known is not None:
            looked_at = evenly_spaced(len(self), LOOKED_AT)
            if known[self.rows[looked_at]].equal(self._read_labels(looked_at, "")):
                labels = known[self.rows]
                for row in torch.nonzero((labels < 0) | (labels >= self.wanted.num_classes)).flatten()[:1]:
                    self.wanted.check_range(labels[row : row + 1], f"item {self.rows[row]}")
                return labels
        return self._read_labels(torch.arange(len(self)), "reading labels")

    def look(self) -> OwnImages:
        """Itself, after a look at a few items, and at all labels if the data set has them ready.

        Raises:
            DataError: what is seen is not what the network takes.
        """
        if known_labels(self.dataset) is None:
            self._read_labels(evenly_spaced(len(self), LOOKED_AT), "")
        else:
            _ = self.labels
        return self

    def subset(self, rows: Tensor) -> OwnImages:
        """The images of these rows, int64 (S,). In training it is shuffled as a data set is, without the loader's
        sampler."""
        some = copy.copy(self)
        some.rows, some.loader = self.rows[rows], None
        if "labels" in self.__dict__:
            some.labels = self.labels[rows]
        return some

    def count_batches(self, batch_size: int) -> int:
        """Training batches of an epoch; a loader's own number, whatever `batch_size`."""
        return len(batch_sizes(len(self), batch_size)) if self.loader is None else self.loader.count

    def smallest_batch(self, batch_size: int) -> int:
        """Images of the smallest of them."""
        return min(batch_sizes(len(self), batch_size)) if self.loader is None else self.loader.smallest

    def batches(
        self,
        batch_size: int,
        normalisation: Normalisation | None = None,
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        channels_last: bool = True,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, float32 (N, 3, H, W), and labels, int64 (N,); all in order without `augment`.

        Args:
            batch_size: in training, of a loader, its own instead.
            normalisation: unused, as the images are normalised already.
            augment: what is drawn at random.
            start, share: leave out the first so many batches, and of the others what belongs to other processes.
        Raises:
            DataError: an image or label that the network can't take, named with its item or batch; a training
                batch of fewer images than processes; a reading process that is killed.
        """
        plan = self._plan(batch_size, augment)
        if augment is not None and (least := min(map(len, plan))) < share[1]:
            raise DataError(
                f"{self.wanted.name}: one of the batches would be of {least} images, too few for {share[1]} "
                "processes; choose another batch size"
            )
        parts = part_of_epoch(plan, start, share)
        yield from self._read(parts, device, channels_last, augment, start, share[0])

    def _plan(self, batch_size: int, augment: Augment | None) -> list[Tensor]:
        """Of each batch the items, and which time of the epoch it is that they come, int64 (N, 2)."""
        if augment is None:
            batches = split_rows(self.rows, batch_size, keep_single=True)
        elif self.loader is None:
            generator = torch.Generator().manual_seed(derived_seed(*augment))
            order = torch.randperm(len(self), generator=generator)
            batches = split_rows(self.rows[order], batch_size, keep_single=False)
        else:
            batches = self.loader.draw(augment)
        items = torch.cat(batches)
        return list(torch.stack([items, repetitions(items)], dim=1).split([len(batch) for batch in batches]))

    def _read(
        self,
        plan: list[Tensor],
        device: torch.device | str,
        channels_last: bool,
        augment: Augment | None = None,
        start: int = 0,
        rank: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a plan, the first of them number `start` of the epoch."""
        reader = _Reader(self.dataset, self.collate, self.wanted, augment, rank)
        on_gpu = torch.device(device).type == "cuda"
        reading = replace(self.reading, pin_memory=on_gpu and (self.loader is None or self.reading.pin_memory))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        requests = ((number, rows.tolist()) for number, rows in enumerate(plan, start))
        for images, labels in read_batches(reader, requests, reading):
            yield (
                images.to(device, non_blocking=True, memory_format=layout),
                labels.to(device, non_blocking=True),
            )

    def _read_labels(self, rows: Tensor, title: str) -> Tensor:
        """int64 (S,), of some rows, from their items; with a progress bar if it has a title."""
        some = self.subset(rows)
        count = -(-len(rows) // READ_AT_ONCE)
        some.reading = replace(self.reading, num_workers=min(self.reading.num_workers, count))
        batches: Any = some.batches(READ_AT_ONCE, channels_last=False)
        if title:
            batches = progress(batches, title, count)
        labels = torch.cat([labels for _, labels in batches])
        if len(labels) != len(rows):
            raise DataError(
                f"{self.wanted.name}: its collate_fn makes {len(labels)} images of {len(rows)} items; it must "
                "keep all"
            )
        return labels


class _Reader(Dataset[Any]):
    """Batches, float32 (N, 3, H, W) and int64 (N,), by number and [[item, repetition], …]."""

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any] | None,
        wanted: Wanted,
        augment: Augment | None,
        rank: int,
    ):
        self.dataset, self.collate, self.wanted = dataset, collate, wanted
        self.numbers, self.rank = augment or (), rank

    def __getitem__(self, request: tuple[int, list[list[int]]]) -> tuple[Tensor, Tensor] | DataError:
        number, items = request
        try:
            if not items:
                side = self.wanted.image_size
                return torch.empty(0, 3, side, side), torch.empty(0, dtype=torch.int64)
            samples = [self._item(item, repetition) for item, repetition in items]
            if self.collate is None:
                images, labels = zip(*map(self._checked, samples, (item for item, _ in items)), strict=True)
                return torch.stack(images), torch.tensor(labels)
            with seeded(derived_seed(*self.numbers, number, self.rank, 1)):
                batch = self.collate(samples)
            return self._checked_batch(batch, f"batch {number}")
        except DataError as error:
            return error  # raised by the main process, where it stays one line

    def _item(self, item: int, repetition: int) -> Any:
        with seeded(derived_seed(*self.numbers, item, repetition)):
            try:
                return self.dataset[item]
            except Exception as error:
                error.add_note(f"while reading item {item} of {self.wanted.name}")
                raise

    def _checked(self, sample: Any, item: int) -> tuple[Tensor, int]:
        where = f"item {item}"
        image, label = self.wanted.pair(sample, where)
        return self.wanted.pixels(image, where), self.wanted.label(label, where)

    def _checked_batch(self, batch: Any, where: str) -> tuple[Tensor, Tensor]:
        images, labels = self.wanted.pair(batch, where, "(images, labels)")
        count = len(images) if isinstance(images, Tensor | np.ndarray) and images.ndim else 0
        images = self.wanted.pixels(images, where, count)
        if count == 0:
            raise DataError(f"{self.wanted.name}, {where}: no images; the collate_fn must keep some")
        return images, self.wanted.labels(labels, where, (count,))


class _OwnStart:
    """A `worker_init_fn` of the user's, which finds the user's data set where it looks for it."""

    def __init__(self, start: Callable[[int], Any]):
        self.start = start

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.reader.dataset)
        self.start(worker)


def repetitions(items: Tensor) -> Tensor:
    """How often each was there before, int64 (N,).

    >>> repetitions(torch.tensor([3, 1, 3, 3, 1])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = items.argsort(stable=True)
    ranked = items[order]
    found = torch.empty_like(items)
    found[order] = torch.arange(len(items)) - torch.searchsorted(ranked, ranked)
    return found


def known_labels(dataset: Any) -> Tensor | None:
    """What a data set says its labels are without reading items, int64 (M,); None if it doesn't."""
    if isinstance(dataset, Subset):
        inner = known_labels(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [part for part in map(known_labels, dataset.datasets) if part is not None]
        return torch.cat(parts) if len(parts) == len(dataset.datasets) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, TensorDataset):
        values = dataset.tensors[1] if len(dataset.tensors) == 2 else None
    else:
        values = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        labels = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return labels.cpu().long() if integers and labels.shape == (len(dataset),) else None


def _check_map_style(dataset: Any, name: str) -> None:
    """Raises `DataError` for what isn't a set of numbered items."""
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"{name}: an IterableDataset, which can't be shuffled from a seed; give a data set with __getitem__ "
            "and __len__"
        )
    if isinstance(dataset, Tensor | tuple | np.ndarray):
        raise DataError(f"{name}: {type(dataset).__name__}; give a TensorDataset(images, labels)")
    if isinstance(dataset, dict | str) or not hasattr(dataset, "__getitem__"):
        kind = type(dataset).__name__
        raise DataError(f"{name}: {kind}; give a torch.utils.data.Dataset or DataLoader, or a DataSource's part")
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError):
        raise DataError(f"{name}: {type(dataset).__name__} has no length; give it __len__") from None
    if count == 0:
        raise DataError(f"{name}: {type(dataset).__name__} without items; see that the data are all there")
