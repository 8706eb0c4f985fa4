"""Which images make which batch, of which process; and what all batches have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blockdrop.data.sets import Normalisation


def derived_seed(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers, such as (seed, epoch)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Augment(NamedTuple):
    """Shuffle, crop and flip at random, drawn from these two numbers alone."""

    seed: int
    epoch: int


def normalise(images: Tensor, normalisation: Normalisation, channels_last: bool = True) -> Tensor:
    """uint8 (N, 3, H, W) to float32 (N, 3, H, W): (x / 255 - mean) / std."""
    mean = torch.tensor(normalisation.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(normalisation.std, device=images.device).view(3, 1, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = images.to(torch.float32, memory_format=layout)
    return images.sub_(mean * 255).div_(std * 255)


def evenly_spaced(total: int, count: int) -> Tensor:
    """At most `count` of `total` rows, the first and the last among them: ascending, int64.

    >>> evenly_spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long()


def split_rows(order: Tensor, batch_size: int, keep_single: bool) -> list[Tensor]:
    """Splits row numbers (M,) into batches. Unless `keep_single`, a last batch of one image joins the one before
    it, since BatchNorm can't train on a single value.

    >>> [rows.tolist() for rows in split_rows(torch.arange(5), 2, keep_single=False)]
    [[0, 1], [2, 3, 4]]
    """
    batches = list(order.split(batch_size))
    if not keep_single and len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def batch_sizes(total: int, batch_size: int) -> list[int]:
    """Images of each training batch of an epoch, of `total` images.

    >>> batch_sizes(5, 2)
    [2, 3]
    """
    return [len(rows) for rows in split_rows(torch.arange(total), batch_size, keep_single=False)]


def plan_batches(
    order: Tensor, batch_size: int, keep_single: bool, start: int = 0, share: tuple[int, int] = (0, 1)
) -> list[Tensor]:
    """The rows that one process takes of each batch.

    Args:
        order: row numbers (M,).
        batch_size, keep_single: of the whole batches, as in `split_rows`.
        start, share: as in `part_of_epoch`.
    Raises:
        ValueError: as `part_of_epoch`.

    >>> [rows.tolist() for rows in plan_batches(torch.arange(9), 4, True, share=(1, 2))]
    [[2, 3], [6, 7], []]
    """
    return part_of_epoch(split_rows(order, batch_size, keep_single), start, share)


def part_of_epoch(batches: Sequence[Tensor], start: int, share: tuple[int, int]) -> list[Tensor]:
    """What one process takes of the rows (N,) of each batch.

    Args:
        start: leave out the first so many batches.
        share: (rank, world_size). Processes get rows that follow each other, one more or less; with fewer rows
            than processes the last ones get none.
    Raises:
        ValueError: a negative start, a rank outside 0 … world_size - 1.
    """
    rank, world_size = share
    if start < 0 or not 0 <= rank < world_size:
        raise ValueError(f"start {start}, share {share}: no such part of an epoch")
    return [rows.tensor_split(world_size)[rank] for rows in batches[start:]]
