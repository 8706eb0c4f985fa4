"""ResNets made smaller: the rivals of shift nets at equal size (Wu et al. 2018, arXiv:1711.08141, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Branch, BranchMaker, basic_branch, bottleneck_branch, conv2d
from blockdrop.names import ReductionMode


def reduced_widths(widths: Sequence[int], reduction: float) -> tuple[int, ...]:
    """All widths / √reduction, truncated to integers.

    >>> reduced_widths((16, 32, 64), 2)
    (11, 22, 45)
    """
    return tuple(_truncated(width, math.sqrt(reduction), reduction) for width in widths)


def reduced_branch(mode: ReductionMode, reduction: float, bottleneck: bool) -> BranchMaker:
    """Makes a block's branch under a reduction.

    Args:
        mode: block = as usual but with inner widths / reduction; net = as usual (its widths are `reduced_widths`);
            depthwise = a 1×1, a depthwise 3×3 (with the stride) and a 1×1 convolution, of inner width / reduction.
    """
    usual = bottleneck_branch if bottleneck else basic_branch
    if mode == "net":
        return usual

    def branch(in_channels: int, width: int, stride: int) -> Branch:
        inner = _truncated(width, reduction, reduction)
        if mode == "block":
            return usual(in_channels, width, stride, inner)
        return depthwise_branch(in_channels, width * (4 if bottleneck else 1), stride, inner)

    return branch


def depthwise_branch(in_channels: int, out_channels: int, stride: int, inner: int) -> Branch:
    """1×1, depthwise 3×3 carrying the stride, 1×1; BatchNorm after each."""
    return Branch(
        [
            conv2d(in_channels, inner, 1),
            conv2d(inner, inner, 3, stride, groups=inner),
            conv2d(inner, out_channels, 1),
        ],
        [nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(out_channels)],
    )


def _truncated(width: int, divisor: float, reduction: float) -> int:
    reduced = int(width / divisor)
    if reduced < 1:
        raise BlockdropError(f"reduction {reduction}: leaves nothing of a width of {width}; choose a smaller one")
    return reduced
