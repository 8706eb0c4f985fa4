"""The torch engine: runs rows of mixed sub-policies through a segment with fused convolutions.

On CPUs each convolution comes with its ReLU, or with addition and ReLU, in one oneDNN call, as torch.compile
emits them; weights are packed once. Where torch lacks those calls, or a layer isn't a plain convolution, the
ordinary ones take their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from blockdrop.inference.plan import Range, block_ranges
from blockdrop.models.resnet import Branch, DroppableResNet, put_rows, take_rows


class _Conv:
    """A convolution followed by ReLU, or by the addition of a shortcut and ReLU."""

    def __init__(self, conv: nn.Module):
        self.conv = conv

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=True)

    def add_relu_(self, total: Tensor, x: Tensor) -> Tensor:
        """total ← relu(total + conv(x))."""
        return F.relu(total.add_(self.conv(x)), inplace=True)


class _FusedConv(_Conv):
    """The same in one oneDNN call each (`mkldnn::_convolution_pointwise`, private to torch but what its own
    compiler emits; `_fuses` looks for it)."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv)
        # Plain lists: torch's argument parser takes longer over anything else.
        self.geometry: tuple[Any, ...] = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
        self.bias = conv.bias
        self.packed: Tensor | None = None

    def _weight(self, x: Tensor) -> Tensor:
        if self.packed is None:
            weight = cast(nn.Conv2d, self.conv).weight.detach().contiguous().to_mkldnn()
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self.packed = reorder(weight, *self.geometry, x.shape)
        return self.packed

    def relu(self, x: Tensor) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise.default
        return run(x, self._weight(x), self.bias, *self.geometry, "relu", [], "")

    def add_relu_(self, total: Tensor, x: Tensor) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise_.binary
        return run(total, x, self._weight(x), self.bias, *self.geometry, "add", 1.0, "relu", [], "")


def _fuses(conv: nn.Module) -> bool:
    return (
        isinstance(conv, nn.Conv2d)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.weight.device.type == "cpu"
        and conv.weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    )


def _prepare(conv: nn.Module) -> _Conv:
    return _FusedConv(conv) if _fuses(conv) else _Conv(conv)  # type: ignore[arg-type]


class TorchEngine:
    """Runs segments of a folded network on rows that need not agree on their sub-policy.

    Args:
        net: a `DroppableResNet.folded()` copy, on its device, in its number format and layout.
    """

    def __init__(self, net: DroppableResNet):
        self.net = net
        plain_stem = isinstance(net.bn1, nn.Identity)
        self.stem = _prepare(net.conv1) if plain_stem else None
        self.blocks = [(_chain(branch), ds) for branch, ds in net.branches()]

    def run(self, blocks: Range, x: Tensor, bits: NDArray[np.bool_]) -> Tensor:
        """Runs consecutive blocks, with the stem before the first and the head after the last one.

        Args:
            blocks: first and last + 1.
            x: (m, C, H, W), written over.
            bits: bool (m, blocks).
        Returns:
            (m, C', H', W'), or logits (m, classes) after the last block.
        """
        first, last = blocks
        if first == 0:
            x = self.net.stem(x) if self.stem is None else self.net.maxpool(self.stem.relu(x))
        for (branch, ds), ranges in zip(self.blocks[first:last], block_ranges(bits), strict=True):
            x = _run_block(x, branch, ds, ranges)
        return self.net.head(x) if last == len(self.blocks) else x


AddBranch = Callable[[Tensor, Tensor], Any]
"""(total, x): total ← relu(total + F(x))."""


def _chain(branch: nn.Module) -> AddBranch:
    convs: list[_Conv] = []
    if isinstance(branch, Branch):
        parts = [
            (branch.get_submodule(f"conv{i}"), branch.get_submodule(f"bn{i}")) for i in range(1, branch.depth + 1)
        ]
        if all(isinstance(norm, nn.Identity) for _, norm in parts):
            convs = [_prepare(conv) for conv, _ in parts]
    if not convs:
        return lambda total, x: F.relu(total.add_(branch(x)), inplace=True)

    def add_branch(total: Tensor, x: Tensor) -> None:
        for conv in convs[:-1]:
            x = conv.relu(x)
        convs[-1].add_relu_(total, x)

    return add_branch


def _run_block(x: Tensor, add_branch: AddBranch, ds: nn.Module | None, ranges: list[Range]) -> Tensor:
    shortcut = x if ds is None else ds(x)
    if not ranges:
        return shortcut
    if len(ranges) == 1:  # a slice of channels-last rows is contiguous, so the block runs in place
        start, stop = ranges[0]
        add_branch(shortcut[start:stop], x[start:stop])
        return shortcut
    rows = torch.from_numpy(np.concatenate([np.arange(*r) for r in ranges])).to(x.device, non_blocking=True)
    taken = take_rows(x, rows)
    total = taken if shortcut is x else take_rows(shortcut, rows)
    add_branch(total, taken)
    return put_rows(shortcut, rows, total)
