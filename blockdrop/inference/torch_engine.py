"""The torch engine: runs rows of mixed sub-policies through a segment with fused convolutions.

On CPUs each convolution comes with its ReLU, or with addition and ReLU, in one oneDNN call, as torch.compile
emits them; weights are packed once. Where torch lacks those calls, or a layer isn't a plain convolution, the
ordinary ones take their place.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from blockdrop.inference.plan import Range, block_ranges
from blockdrop.models.backbone import Backbone, Branch, Network, NoShortcut, is_plain_conv
from blockdrop.models.droppable import Droppable, put_rows, take_rows


class _Conv:
    """A convolution followed by ReLU, or by the addition of a shortcut and ReLU."""

    def __init__(self, conv: nn.Module):
        self.conv = conv

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=True)

    def add_relu_(self, total: Tensor, x: Tensor) -> Tensor:
        """total ← relu(total + conv(x))."""
        return F.relu(total.add_(self.conv(x)), inplace=True)


class PackedConv(nn.Module, _Conv):
    """The same in one oneDNN call each (`mkldnn::_convolution_pointwise`, private to torch but what its own
    compiler emits; `_fuses` looks for it).

    Args:
        conv: whose weights are packed when it first runs, and not copied before.
        dtype: number format of the arithmetic.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        # Plain lists: torch's argument parser takes longer over anything else.
        self.geometry: tuple[Any, ...] = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.dtype = dtype
        self._unpacked = [conv.weight]  # in a list, so that it is no parameter of this module's
        self._packed: Tensor | None = None
        self._lock = threading.Lock()

    def _weight(self, x: Tensor) -> Tensor:
        if self._packed is None:
            with self._lock:
                if self._unpacked:
                    weight = self._unpacked[0].detach().to(self.dtype).contiguous().to_mkldnn()
                    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
                    self._packed = reorder(weight, *self.geometry, x.shape)
                    self._unpacked.clear()
        assert self._packed is not None
        return self._packed

    def relu(self, x: Tensor) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise.default
        return run(x, self._weight(x), self.bias, *self.geometry, "relu", [], "")

    def add_relu_(self, total: Tensor, x: Tensor) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise_.binary
        return run(total, x, self._weight(x), self.bias, *self.geometry, "add", 1.0, "relu", [], "")


def _fuses(conv: nn.Module, dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused convolution computes it in this number format, on this processor."""
    return (
        is_plain_conv(conv)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.weight.device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _prepare(conv: nn.Module) -> _Conv:
    return conv if isinstance(conv, PackedConv) else _Conv(conv)


Net = TypeVar("Net", bound=nn.Module)


def copy_to_run(net: Net, dtype: torch.dtype) -> Net:
    """A copy in a number format, channels last, with `PackedConv` wherever `TorchEngine` runs one; those share the
    network's weights until they are packed.

    Args:
        net: networks as `Backbone.folded` gives them, in it or as a whole; float32.
    """
    memo: dict[int, Any] = {}
    for module in net.modules():
        if isinstance(module, Backbone):
            convs = [module.conv1] if isinstance(module.bn1, nn.Identity) else []
            for branch, ds in module.branches():
                if _only_convs(branch) and (module.relu_after_sum or isinstance(ds, NoShortcut)):
                    convs += [conv for conv, _ in branch.layers()]  # type: ignore[operator]
            memo |= {id(conv): PackedConv(conv, dtype) for conv in convs if _fuses(conv, dtype)}  # type: ignore[arg-type]
    channels_last: Any = torch.channels_last
    return copy.deepcopy(net, memo).to(dtype).to(memory_format=channels_last)


class TorchEngine:
    """Runs segments of a folded network on rows that need not agree on their sub-policy.

    Args:
        net: of `copy_to_run`.
    """

    def __init__(self, net: Backbone):
        self.net = net
        plain_stem = isinstance(net.bn1, nn.Identity)
        self.stem = _prepare(net.conv1) if plain_stem else None
        self.blocks: list[Callable[[Tensor, list[Range]], Tensor]] = [
            _plain_block(branch) if isinstance(ds, NoShortcut) else _residual_block(branch, ds, net)
            for branch, ds in net.branches()
        ]

    def run(self, blocks: Range, x: Tensor, bits: NDArray[np.bool_]) -> Tensor:
        """Runs consecutive blocks, with the stem before the first and the head after the last one.

        Args:
            blocks: first and last + 1.
            x: (m, C, H, W), written over.
            bits: bool (m, blocks); blocks without shortcuts run whatever they say.
        Returns:
            (m, C', H', W'), or logits (m, classes) after the last block.
        """
        first, last = blocks
        if first == 0:
            x = self.net.stem(x) if self.stem is None else self.net.maxpool(self.stem.relu(x))
        for block, ranges in zip(self.blocks[first:last], block_ranges(bits), strict=True):
            x = block(x, ranges)
        return self.net.head(x) if last == len(self.blocks) else x


class PartsEngine:
    """Runs a network that is given by its parts, on rows that need not agree on their policy: each block for the
    rows that keep it, by the block's own module.

    Args:
        net: of `copy_to_run`.
    """

    def __init__(self, net: Droppable):
        self.net = net

    def run(self, blocks: Range, x: Tensor, bits: NDArray[np.bool_]) -> Tensor:
        """Runs the whole network, its only segment.

        Args:
            blocks: (0, K).
            x: images (m, 3, H, W).
            bits: bool (m, K).
        Returns:
            logits (m, classes).
        """
        assert blocks == (0, self.net.num_blocks)
        x = self.net.stem(x)
        for (branch, always), ranges in zip(self.net.branches(), block_ranges(bits), strict=True):
            inner, x = self.net.enter(x, always)
            assert inner is None, "blocks of parts take what a dropped one gives"
            if len(ranges) == 1:
                start, stop = ranges[0]
                some = x[start:stop]
                y = self.net.kept(branch, some, some)
                if len(y) == len(x):
                    x = y
                else:
                    x[start:stop] = y
            elif ranges:
                rows = torch.from_numpy(np.concatenate([np.arange(*r) for r in ranges])).to(x.device)
                some = take_rows(x, rows)
                x = put_rows(x, rows, self.net.kept(branch, some, some))
        return self.net.head(x)


def make_engine(net: Network) -> TorchEngine | PartsEngine:
    """The engine for a network of `copy_to_run`."""
    if isinstance(net, Backbone):
        return TorchEngine(net)
    assert isinstance(net, Droppable)
    return PartsEngine(net)


def _fused_convs(branch: nn.Module) -> list[_Conv]:
    """A branch's convolutions, if it is nothing but them and ReLUs between; else none."""
    return [_prepare(conv) for conv, _ in branch.layers()] if _only_convs(branch) else []  # type: ignore[operator]


def _only_convs(branch: nn.Module) -> bool:
    return type(branch) is Branch and all(isinstance(norm, nn.Identity) for _, norm in branch.layers())


def _plain_block(branch: nn.Module) -> Callable[[Tensor, list[Range]], Tensor]:
    """(x, ranges) to relu(F(x)); every row runs, whatever the ranges."""
    convs = _fused_convs(branch)

    def run(x: Tensor, ranges: list[Range]) -> Tensor:
        if not convs:
            return F.relu(branch(x), inplace=True)
        for conv in convs:
            x = conv.relu(x)
        return x

    return run


def _residual_block(
    branch: nn.Module, ds: nn.Module | None, net: Backbone
) -> Callable[[Tensor, list[Range]], Tensor]:
    """(x, ranges) to the block's output, where rows in the ranges run the branch and the others don't."""
    convs = _fused_convs(branch) if net.relu_after_sum else []

    def add_branch(total: Tensor, x: Tensor) -> None:
        if not convs:
            net.close(total.add_(branch(x)))
            return
        for conv in convs[:-1]:
            x = conv.relu(x)
        convs[-1].add_relu_(total, x)

    def run(x: Tensor, ranges: list[Range]) -> Tensor:
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

    return run
