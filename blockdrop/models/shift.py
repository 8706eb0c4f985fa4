"""Shift nets: 3×3 convolutions replaced by a shift of each channel between two 1×1 convolutions.

Wu et al. 2018, "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions", arXiv:1711.08141.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Branch, conv2d, is_channels_last
from blockdrop.models.resnet import DroppableResNet, make_resnet
from blockdrop.names import Shortcut

OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
"""Of the channel groups, in order: output (y, x) is input (y + dy, x + dx)."""
CENTRE = OFFSETS.index((0, 0))


def shift_kernels(channels: int) -> Tensor:
    """The shift as a depthwise 3×3 convolution: weight (C, 1, 3, 3) with a single one per channel."""
    groups = (torch.arange(channels) // max(channels // 9, 1)).where(
        torch.arange(channels) < channels // 9 * 9, torch.tensor(CENTRE)
    )
    return F.one_hot(groups, 9).float().view(channels, 1, 3, 3)


class Shift(nn.Module):
    """Moves each channel by one of the 9 offsets of a 3×3 window, zeros coming in at the borders.

    The channels are split in order into 9 equal groups, one for each of `OFFSETS`; what is left over when C isn't
    divisible by 9 stays in place. No parameters, no FLOPs (tools that count operations see the depthwise
    convolution below).

    One operation in either memory layout, with its gradient: with channels last, and on GPUs, a depthwise
    convolution with a fixed one-hot kernel; otherwise copied windows, which on CPUs are faster than it on most
    maps (experiments/results/static-rivals.md).
    """

    kernels: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.register_buffer("kernels", shift_kernels(channels), persistent=False)
        self._converted: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to the same shape."""
        if x.device.type in ("cpu", "meta") and not is_channels_last(x) and not torch.compiler.is_compiling():
            return _CopiedWindows.apply(x, False)
        return F.conv2d(x, self._kernels_like(x), padding=1, groups=self.channels)

    def _kernels_like(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.kernels.to(x.dtype)  # a constant of the graph
        key = (x.dtype, x.device)
        if (kernels := self._converted.get(key)) is None:
            with torch.inference_mode(False):  # or a later call couldn't take gradients through it
                kernels = self._converted[key] = self.kernels.to(x.dtype)
        return kernels

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Shift:
        self._converted.clear()  # the buffer moves
        return super()._apply(fn, recurse)

    def as_convolution(self) -> nn.Conv2d:
        """The depthwise convolution that does the same."""
        conv = nn.Conv2d(self.channels, self.channels, 3, padding=1, groups=self.channels, bias=False)
        conv.weight = nn.Parameter(self.kernels, requires_grad=False)
        return conv

    def extra_repr(self) -> str:
        return str(self.channels)


class _CopiedWindows(torch.autograd.Function):
    """The shift; its gradient is the shift by the opposite offsets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, opposite: bool) -> Tensor:
        ctx.opposite = opposite
        return _copy_windows(x, -1 if opposite else 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _CopiedWindows.apply(gradients[0], not ctx.opposite), None


def _copy_windows(x: Tensor, sign: int) -> Tensor:
    height, width = x.shape[2:]
    size = x.shape[1] // 9
    out = torch.empty_like(x)
    for group, (dy, dx) in enumerate(OFFSETS):
        dy, dx = sign * dy, sign * dx
        channels = slice(group * size, (group + 1) * size)
        to_rows, from_rows = _windows(height, dy)
        to_columns, from_columns = _windows(width, dx)
        out[:, channels, to_rows, to_columns] = x[:, channels, from_rows, from_columns]
        if dy:
            out[:, channels, 0 if dy < 0 else -1] = 0
        if dx:
            out[:, channels, :, 0 if dx < 0 else -1] = 0
    out[:, 9 * size :] = x[:, 9 * size :]
    return out


def _windows(length: int, offset: int) -> tuple[slice, slice]:
    """Where a row or column lands, and where it comes from."""
    inside = length - abs(offset)
    to, source = max(0, -offset), max(0, offset)
    return slice(to, to + inside), slice(source, source + inside)


class ShiftBranch(Branch):
    """1×1 convolution, BatchNorm, ReLU, shift, 1×1 convolution with the stride, BatchNorm, ReLU.

    Args:
        inner: channels between the two convolutions.
    """

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module

    def __init__(self, in_channels: int, out_channels: int, inner: int, stride: int):
        super().__init__(
            [conv2d(in_channels, inner, 1), conv2d(inner, out_channels, 1, stride)],
            [nn.BatchNorm2d(inner), nn.BatchNorm2d(out_channels)],
        )
        self.shift = Shift(inner)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C_in, H, W) to (N, C_out, H/stride, W/stride), not negative."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(self.shift(x))), inplace=True)


def make_shift_resnet(
    layers: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    expansion: float = 1.0,
    shortcut: Shortcut = "projection",
) -> DroppableResNet:
    """A ShiftResNet with fresh weights; its blocks, y = shortcut(x) + F(x) without a ReLU after, can be dropped.

    Args:
        expansion: inner channels of a block / its output channels, truncated to an integer.
    Raises:
        BlockdropError: an expansion that leaves a block without inner channels.
    """
    if not int(expansion * min(widths)):
        raise BlockdropError(
            f"expansion {expansion}: leaves blocks of {min(widths)} channels no inner channel; choose a larger one"
        )

    def branch(in_channels: int, width: int, stride: int) -> ShiftBranch:
        return ShiftBranch(in_channels, width, int(expansion * width), stride)

    return make_resnet(layers, widths, num_classes, shortcut, branch=branch, relu_after_sum=False)
