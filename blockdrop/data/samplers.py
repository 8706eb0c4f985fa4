"""The batches that a DataLoader of the user's makes of its data set, drawn again from a seed."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from blockdrop.data.batching import Augment, batch_sizes, derived_seed
from blockdrop.data.randomness import generators_of, seeded
from blockdrop.errors import DataError

FIRST = Augment(0, 0)


class LoaderBatches:
    """Which items make which batch of an epoch, as the loader's `batch_sampler` says.

    What samplers draw, from torch's, numpy's or Python's global generator or from one that they hold, comes from
    seed and epoch; all generators are left as they were. A last batch of one item joins the one before it, unless
    the `batch_sampler` is of a kind of its own.

    Args:
        loader: of a data set with a length.
        name: for messages.
    Raises:
        DataError: a loader without batches, or one whose sampler has no length or shares among processes itself.
    """

    def __init__(self, loader: DataLoader[Any], name: str):
        self.loader, self.name = loader, name
        if loader.batch_sampler is None:
            raise DataError(f"{name}: a DataLoader with batch_size=None; give it a batch_size")
        self.chain = _chain(loader.batch_sampler)
        for sampler in self.chain:
            if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
                raise DataError(
                    f"{name}: a DataLoader with a DistributedSampler; leave the sampler out, as batches are "
                    "shared among processes here"
                )
        self.plain = type(loader.batch_sampler) is BatchSampler
        try:
            count = self.count
        except TypeError:
            kind = type(self.chain[-1]).__name__
            raise DataError(f"{name}: the DataLoader's {kind} has no length; give it __len__") from None
        if count == 0:
            raise DataError(f"{name}: the DataLoader has no batch; give it more items, or drop_last=False")

    @property
    def count(self) -> int:
        """Batches of an epoch."""
        return len(self._plain_sizes() if self.plain else self._sampler())

    @property
    def smallest(self) -> int:
        """Items of the smallest batch; of a `batch_sampler` of its own kind, in one epoch."""
        return min(self._plain_sizes() if self.plain else map(len, self.draw(FIRST)))

    @property
    def summary(self) -> dict[str, Any]:
        """What another loader would differ in, as plain values."""
        own = self._sampler()
        facts = (
            {"batch_size": own.batch_size, "drop_last": own.drop_last} if self.plain else {"batches": self.count}
        )
        return {"sampler": type(self.chain[-1]).__name__, **facts}

    def draw(self, augment: Augment) -> list[Tensor]:
        """The items of each batch, int64 (N,).

        Raises:
            DataError: what the sampler gives are no batches of items of the data set, or not as many as it says.
        """
        items = len(self.loader.dataset)  # type: ignore[arg-type]
        batches: list[Tensor] = []
        with seeded(derived_seed(*augment), *generators_of(self.loader, *self.chain)):
            for sampler in self.chain:
                if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                    set_epoch(augment.epoch)
            for drawn in self._sampler():
                batches.append(self._checked(drawn, items, len(batches)))
                if len(batches) > self.count + 1:  # of a last single one, one more
                    break
        if self.plain and len(batches) > 1 and len(batches[-1]) == 1 < len(batches[-2]):
            batches[-2:] = [torch.cat(batches[-2:])]
        if len(batches) != self.count:
            made = "more" if len(batches) > self.count else len(batches)
            raise DataError(
                f"{self.name}: the DataLoader's {type(self.chain[-1]).__name__} has a length of {self.count} "
                f"batches, but makes {made}; mend its __len__"
            )
        return batches

    def items(self) -> Tensor:
        """What there is to test on, ascending, int64 (M,): the items that the sampler can draw. Of samplers that
        torch doesn't have, those that it draws in one epoch."""
        total = len(self.loader.dataset)  # type: ignore[arg-type]
        sampler = self.loader.sampler
        if self.plain and isinstance(sampler, SequentialSampler | RandomSampler):
            if len(sampler.data_source) == total:
                return torch.arange(total)
        elif self.plain and isinstance(sampler, WeightedRandomSampler) and len(sampler.weights) == total:
            return torch.nonzero(torch.as_tensor(sampler.weights) > 0).flatten()
        elif self.plain and isinstance(sampler, SubsetRandomSampler):
            return self._checked(sampler.indices, total, 0).unique()
        return torch.cat(self.draw(FIRST)).unique()

    def _sampler(self) -> Any:
        return self.loader.batch_sampler

    def _plain_sizes(self) -> list[int]:
        sampler = self._sampler()
        total, size = len(sampler.sampler), sampler.batch_size
        return [size] * (total // size) if sampler.drop_last else batch_sizes(total, size)

    def _checked(self, drawn: Any, items: int, number: int) -> Tensor:
        what = f"{self.name}: batch {number} of the DataLoader's sampler"
        try:
            batch = torch.tensor([operator.index(item) for item in drawn], dtype=torch.int64)
        except TypeError:
            raise DataError(f"{what} is {repr(drawn)[:60]}; a list of item numbers is wanted") from None
        if len(batch) == 0:
            raise DataError(f"{what} is empty; leave it out")
        outside = batch[(batch < 0) | (batch >= items)]
        if len(outside):
            raise DataError(f"{what} holds item {outside[0]}; there are 0 … {items - 1}")
        return batch


def _chain(batch_sampler: Any) -> list[Any]:
    """A sampler and those that it draws from, the innermost last."""
    chain = [batch_sampler]
    while (inner := getattr(chain[-1], "sampler", None)) is not None:
        chain.append(inner)
    return chain
