"""Operations on images and maps by the calling thread alone.

torch spreads an operation on more than 32,768 values over its OpenMP threads, and these go on looking for work for
some milliseconds. They take a core from the program that runs next: a sixth of the time of ResNet-101 in bfloat16
on two cores. NumPy leaves them asleep.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def write(x: Tensor, out: NDArray[Any]) -> None:
    """Writes a tensor, on the CPU and in any memory layout, to an array of the same shape and number format."""
    np.copyto(out, array_of(x), casting="no")


def write_rows(x: Tensor, rows: Tensor, out: NDArray[Any]) -> None:
    """Writes x[rows], of x (n, …) and rows int64 (m,), to `out` (m, …); see `write`."""
    source = array_of(x)
    for number, row in enumerate(rows.tolist()):
        np.copyto(out[number], source[row], casting="no")


def average_pool(images: Tensor, factor: int) -> Tensor:
    """What `F.avg_pool2d(images, factor)` gives: (N, C, H, W) to (N, C, H // factor, W // factor)."""
    if images.device.type != "cpu" or min(images.shape[2:]) < factor:  # what torch refuses
        return F.avg_pool2d(images, factor)
    pixels = array_of(images)
    height, width = (side // factor * factor for side in pixels.shape[2:])
    lines = pixels[:, :, 0:height:factor].copy(order="K")
    for start in range(1, factor):
        lines += pixels[:, :, start:height:factor]
    total = lines[..., 0:width:factor].copy(order="K")
    for start in range(1, factor):
        total += lines[..., start:width:factor]
    return torch.from_numpy(total / np.float32(factor**2))


def all_finite(x: Tensor) -> bool:
    """Whether the sum of all values, float32 on the CPU, is finite. It isn't if one of them is NaN or infinite, or
    if it passes 3e38."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array_of(x).sum()))


def array_of(x: Tensor) -> NDArray[Any]:
    """Shares the tensor's memory; bfloat16, which NumPy lacks, as int16."""
    x = x.detach()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
