"""ResNets made smaller: the rivals of shift nets at equal size (Wu et al. 2018, arXiv:1711.08141, section 4.1).

With the blocks of other small networks, too: ShuffleNet (Zhang et al. 2018, arXiv:1707.01083) and MobileNetV2
(Sandler et al. 2018, arXiv:1801.04381).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Branch, BranchMaker, basic_branch, bottleneck_branch, conv2d
from blockdrop.names import ReductionMode

SHUFFLE_GROUPS = 4
"""Groups of the 1×1 convolutions of a shuffle block, as ShiftResNet's published code has them."""
MOBILE_EXPANSION = 6
"""Inner channels of an inverted residual block / its input channels, before any reduction (MobileNetV2's)."""


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
            depthwise = a 1×1, a depthwise 3×3 (with the stride) and a 1×1 convolution, of inner width / reduction;
            shuffle = the same with 1×1 convolutions in `SHUFFLE_GROUPS` groups and a channel shuffle after the
            first (inner widths are made divisible by the groups); mobile = the same, inverted: as many inner
            channels as `MOBILE_EXPANSION` times the input's / reduction.
    Raises:
        BlockdropError: from the branch maker: no channel is left of a width.
    """
    usual = bottleneck_branch if bottleneck else basic_branch
    if mode == "net":
        return usual

    def branch(in_channels: int, width: int, stride: int) -> Branch:
        out_channels = width * (4 if bottleneck else 1)
        if mode == "mobile":
            inner = _truncated(MOBILE_EXPANSION * in_channels, reduction, reduction)
            return depthwise_branch(in_channels, out_channels, stride, inner)
        inner = _truncated(width, reduction, reduction)
        if mode == "block":
            return usual(in_channels, width, stride, inner)
        if mode == "shuffle":
            inner = SHUFFLE_GROUPS * _truncated(inner, SHUFFLE_GROUPS, reduction)
            return ShuffleBranch(in_channels, out_channels, stride, inner)
        return depthwise_branch(in_channels, out_channels, stride, inner)

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


class ShuffleBranch(Branch):
    """1×1 convolution in groups, channel shuffle, depthwise 3×3 carrying the stride, 1×1 in groups; BatchNorm
    after each convolution.

    Args:
        inner: channels between the 1×1 convolutions; divisible by `SHUFFLE_GROUPS`, as the others are.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, inner: int):
        super().__init__(
            [
                conv2d(in_channels, inner, 1, groups=SHUFFLE_GROUPS),
                conv2d(inner, inner, 3, stride, groups=inner),
                conv2d(inner, out_channels, 1, groups=SHUFFLE_GROUPS),
            ],
            [nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(out_channels)],
        )
        self.shuffle = nn.ChannelShuffle(SHUFFLE_GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C_in, H, W) to (N, C_out, H/stride, W/stride)."""
        (conv1, bn1), (conv2, bn2), (conv3, bn3) = self.layers()
        x = self.shuffle(F.relu(bn1(conv1(x)), inplace=True))
        x = F.relu(bn2(conv2(x)), inplace=True)
        return bn3(conv3(x))


def _truncated(width: int, divisor: float, reduction: float) -> int:
    reduced = int(width / divisor)
    if reduced < 1:
        raise BlockdropError(f"reduction {reduction}: leaves nothing of a width of {width}; choose a smaller one")
    return reduced
