"""Plain nets: residual networks without their shortcuts, as students of their residual teachers.

- `make_plain`: no shortcut at all, or just the downsampling ones (JointRD: Li et al., "Residual Distillation:
  Towards Portable Deep Neural Networks without Shortcuts", NeurIPS 2020).
- `use_dirac`: convolutions that start near the identity (Zagoruyko and Komodakis 2017, arXiv:1706.00388).
- `remove_shortcuts`: the plain net with the same logits as a trained ResNet (the RM operation: Meng et al. 2021,
  RMNet, arXiv:2111.00687).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import (
    Backbone,
    Branch,
    BranchMaker,
    DiracConv2d,
    NoShortcut,
    PadShortcut,
    backbone_parts,
    basic_branch,
    bottleneck_branch,
    initialise,
)
from blockdrop.models.resnet import make_shortcut
from blockdrop.names import Shortcut


class PlainNet(Backbone):
    """A network whose blocks compute y = relu(F(x)); all blocks always run. Arguments as for `Backbone`.

    The first blocks of the later stages may keep their downsampling shortcuts.
    """


def make_plain(
    layers: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    shortcut: Shortcut | None = None,
    bottleneck: bool = False,
    large_images: bool = False,
    branch: BranchMaker | None = None,
) -> PlainNet:
    """A `PlainNet` with fresh weights (He initialisation, fan out): `make_resnet`'s without its shortcuts.

    Args:
        shortcut: kind of the downsampling shortcuts that the first block of every stage but the first keeps;
            None = no shortcut anywhere.
    """
    expansion = 4 if bottleneck else 1

    def make_ds(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if shortcut is None or stride == 1:
            return NoShortcut()
        return make_shortcut(in_channels, out_channels, stride, shortcut)

    branch = branch or (bottleneck_branch if bottleneck else basic_branch)
    parts = backbone_parts(layers, widths, num_classes, branch, make_ds, expansion, large_images)
    return initialise(PlainNet(**parts, shortcut=shortcut, inner_shortcut=NoShortcut()))


def use_dirac(net: PlainNet, alpha: float = 1.0, beta: float = 0.1) -> None:
    """Replaces every convolution of every branch by a `DiracConv2d`, in place."""
    for branch, _ in net.branches():
        for name, conv in list(branch.named_children()):
            if isinstance(conv, nn.Conv2d):
                setattr(branch, name, DiracConv2d(conv, alpha, beta))


def fold_dirac(net: PlainNet) -> PlainNet:
    """A copy with plain convolutions in the places of `DiracConv2d`; same logits."""
    net = copy.deepcopy(net)
    for branch, _ in net.branches():
        for name, conv in list(branch.named_children()):
            if isinstance(conv, DiracConv2d):
                setattr(branch, name, conv.folded())
    return net


# ---- exact removal


def widened(branch: Branch, carried: int) -> Branch:
    """The branch of an exactly converted block: no BatchNorm, biases, and room to carry `carried` channels of the
    input around every inner ReLU. Fresh weights."""
    convs: list[Any] = [conv for conv, _ in branch.layers()]
    wide = []
    for i, conv in enumerate(convs):
        wide.append(
            nn.Conv2d(
                conv.in_channels + (carried if i > 0 else 0),
                conv.out_channels + (carried if i < len(convs) - 1 else 0),
                conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            )
        )  # fmt: skip
    return Branch(wide, [nn.Identity() for _ in wide])


def make_exact_plain(
    layers: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    bottleneck: bool = False,
    large_images: bool = False,
    branch: BranchMaker | None = None,
) -> PlainNet:
    """The `PlainNet` that `remove_shortcuts` makes of `make_resnet`'s network, with fresh weights."""
    make_branch = branch or (bottleneck_branch if bottleneck else basic_branch)

    def make_wide(in_channels: int, width: int, stride: int) -> Branch:
        return widened(make_branch(in_channels, width, stride), in_channels)

    net = make_plain(layers, widths, num_classes, None, bottleneck, large_images, make_wide)
    stem = net.conv1
    assert isinstance(stem, nn.Conv2d)
    stem.bias = nn.Parameter(torch.zeros(stem.out_channels))  # BatchNorm is folded into it
    net.bn1 = nn.Identity()
    return net


@torch.no_grad()
def remove_shortcuts(resnet: Backbone, image_size: int = 32) -> PlainNet:
    """The plain net with the logits of a trained ResNet, made without training (the RM operation).

    What a shortcut brings from a block's input to its sum is carried beside the branch's own maps: by identity
    (Dirac) filters appended to the convolutions before, unharmed by their ReLUs because a block's input is never
    negative, and added up by the last convolution. BatchNorm is folded first. A block's convolutions grow by its
    input's channels: FLOPs about double with basic blocks, and grow ten times and more with bottlenecks.

    Args:
        resnet: in eval mode or not; left as it is. The plain net comes on its device.
        image_size: side of the images, in pixels (average-pooling shortcuts need even maps).
    Raises:
        BlockdropError: a block can't be converted; the message says which and why.
    """
    if not resnet.relu_after_sum:
        raise BlockdropError("exact removal: its blocks end without a ReLU, so their maps may be negative")
    like = next(resnet.parameters())
    net = resnet.folded().cpu().float()
    sizes = _input_sizes(net, image_size)
    blocks: list[list[nn.Module]] = [[] for _ in net.stage_sizes]
    index = 0
    for stage in range(len(net.stage_sizes)):
        for branch, shortcut in net.stage_branches(stage):
            try:
                blocks[stage].append(_convert(branch, shortcut, sizes[index]))
            except _CannotConvertError as reason:
                raise BlockdropError(f"exact removal: block {index} can't be converted: {reason}") from None
            index += 1
    ds = [NoShortcut() for _ in blocks]
    plain = PlainNet(
        net.conv1, net.bn1, net.maxpool, blocks, ds, net.fc,
        shortcut=None, avgpool=net.avgpool, inner_shortcut=NoShortcut(),
    )  # fmt: skip
    plain.image_size = image_size
    return plain.to(like).eval().requires_grad_(False)


class _CannotConvertError(Exception):
    """Why a block has no equivalent without a shortcut."""


def _input_sizes(net: Backbone, image_size: int) -> list[tuple[int, int]]:
    """(H, W) of every block's input."""
    sizes: list[tuple[int, int]] = []
    x = net.stem(torch.zeros(1, 3, image_size, image_size))
    for branch, shortcut in net.branches():
        sizes.append((x.shape[2], x.shape[3]))
        x = net.close(net.block_sum(x, branch, shortcut))
    return sizes


def _convert(branch: nn.Module, shortcut: nn.Module | None, size: tuple[int, int]) -> Branch:
    if type(branch) is not Branch:
        raise _CannotConvertError(f"its branch is a {type(branch).__name__}, not a chain of convolutions")
    convs = []
    for conv, norm in branch.layers():
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.Identity):
            raise _CannotConvertError(
                f"{str(norm if isinstance(conv, nn.Conv2d) else conv).splitlines()[0]} in it"
            )
        same = [d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if conv.padding_mode != "zeros" or [*conv.padding] != same or any(k % 2 == 0 for k in conv.kernel_size):
            raise _CannotConvertError("a convolution whose windows aren't centred on its outputs")
        if conv.groups != 1:
            raise _CannotConvertError("a grouped convolution, which can't carry other channels beside its groups")
        convs.append(conv)
    if len(convs) < 2 and not isinstance(shortcut, NoShortcut):
        raise _CannotConvertError("a single convolution, which has no inner maps to carry the input beside")
    carried = 0 if isinstance(shortcut, NoShortcut) else convs[0].in_channels
    merge, bias, mean_over = _merge(shortcut, convs[0].in_channels, convs[-1].out_channels, size)
    total = [math.prod(conv.stride[axis] for conv in convs) for axis in (0, 1)]
    wide = widened(branch, carried)
    averaged = False
    for i, (conv, (big, _)) in enumerate(zip(convs, wide.layers(), strict=True)):
        assert isinstance(big, nn.Conv2d)
        big.weight.zero_()
        assert big.bias is not None
        big.bias.zero_()
        out, inner = conv.weight.shape[:2]
        big.weight[:out, :inner] = conv.weight
        big.bias[:out] = 0.0 if conv.bias is None else conv.bias
        if not carried:
            continue
        row, column = (k // 2 for k in conv.kernel_size)
        source = 0 if i == 0 else inner  # where the carried channels start among the inputs
        if i < len(convs) - 1:
            taps = 1
            if mean_over > 1 and conv.stride == (mean_over, mean_over):
                if conv.dilation != (1, 1) or min(conv.kernel_size) < 2 * mean_over - 1:
                    raise _CannotConvertError("its strided convolution can't average windows as its shortcut does")
                taps, averaged = mean_over, True
            each = torch.arange(carried)
            big.weight[out + each, source + each, row : row + taps, column : column + taps] = 1 / taps**2
        else:
            big.weight[:, source:, row, column] = merge
            big.bias += bias
    if mean_over > 1 and not averaged:
        raise _CannotConvertError("no inner convolution has the stride of its average-pooling shortcut")
    expected = _shortcut_stride(shortcut)
    if carried and total != [expected, expected]:
        raise _CannotConvertError(f"its branch has stride {total}, its shortcut {expected}")
    return wide


def _merge(
    shortcut: nn.Module | None, in_channels: int, out_channels: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor, int]:
    """A shortcut as a 1×1 convolution of subsampled or averaged inputs: weight (C_out, C_in), bias (C_out,), and
    the side of the windows to average over."""
    no_bias = torch.zeros(out_channels)
    match shortcut:
        case None | nn.Identity():
            return torch.eye(in_channels), no_bias, 1
        case NoShortcut():
            return torch.zeros(out_channels, in_channels), no_bias, 1
        case PadShortcut():
            before, after = shortcut.channel_padding
            if min(before, after) < 0:
                raise _CannotConvertError("its shortcut cuts channels off")
            merge = F.pad(torch.eye(in_channels), (0, 0, before, after))
            mean_over = shortcut.stride if shortcut.kind == "pad_avgpool" else 1
            if any(side % mean_over for side in size):
                raise _CannotConvertError(f"its shortcut averages over the border of a map of {size[0]}×{size[1]}")
            return merge, no_bias, mean_over
        case nn.Sequential() if len(shortcut) == 2 and isinstance(shortcut[1], nn.Identity):
            conv = shortcut[0]
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1:
                return conv.weight[:, :, 0, 0], no_bias if conv.bias is None else conv.bias, 1
    raise _CannotConvertError(f"its shortcut is {' '.join(str(shortcut).split())[:80]}")


def _shortcut_stride(shortcut: nn.Module | None) -> int:
    match shortcut:
        case PadShortcut():
            return shortcut.stride
        case nn.Sequential():
            return shortcut[0].stride[0]  # type: ignore[index,return-value]
    return 1
