"""Residual networks whose blocks can be dropped per image.

ResNets: He et al. 2016, arXiv:1512.03385. Dropping blocks per image: Wu et al. 2018 (BlockDrop),
arXiv:1711.08393. State-dict keys are the BlockDrop reference's (`conv1`, `blocks.<stage>.<i>.conv1`,
`ds.<stage>.<i>`, `fc`), so checkpoints go both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Shortcut = Literal["pad_avgpool", "pad_stride", "projection"]
SHORTCUTS: tuple[Shortcut, ...] = ("pad_avgpool", "pad_stride", "projection")
Execution = Literal["sparse", "masked"]


class Branch(nn.Module):
    """The residual branch F of a block: convolutions with BatchNorm, a ReLU between but none at the end.

    The shortcut and the closing ReLU of y = relu(shortcut(x) + F(x)) belong to `DroppableResNet`.
    """

    def __init__(self, convs: Sequence[nn.Module], norms: Sequence[nn.Module]):
        super().__init__()
        self.depth = len(convs)
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True), start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", norm)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C_in, H, W) to (N, C_out, H/stride, W/stride)."""
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            if i < self.depth:
                x = F.relu(x, inplace=True)
        return x


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def basic_branch(in_channels: int, width: int, stride: int) -> Branch:
    """Two 3×3 convolutions; output channels = `width`."""
    return Branch(
        [_conv(in_channels, width, 3, stride), _conv(width, width, 3)],
        [nn.BatchNorm2d(width), nn.BatchNorm2d(width)],
    )


def bottleneck_branch(in_channels: int, width: int, stride: int) -> Branch:
    """1×1, 3×3 (carrying the stride, as torchvision does), 1×1; output channels = 4 · `width`."""
    return Branch(
        [_conv(in_channels, width, 1), _conv(width, width, 3, stride), _conv(width, 4 * width, 1)],
        [nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.BatchNorm2d(4 * width)],
    )


class PadShortcut(nn.Module):
    """A shortcut without parameters: shrink the map by the stride, fill the missing channels with zeros.

    `pad_avgpool` averages over stride × stride and appends the zeros (the BlockDrop reference on CIFAR);
    `pad_stride` takes every stride-th pixel and puts half the zeros before, half after (option A of He et al.).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, kind: Shortcut):
        super().__init__()
        self.stride, self.kind = stride, kind
        missing = out_channels - in_channels
        before = missing // 2 if kind == "pad_stride" else 0
        self.channel_padding = (before, missing - before)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C_in, H, W) to (N, C_out, ceil(H/stride), ceil(W/stride))."""
        if self.stride > 1:
            if self.kind == "pad_avgpool":
                x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
            else:
                x = x[:, :, :: self.stride, :: self.stride]
        if _is_channels_last(x):
            return F.pad(x.permute(0, 2, 3, 1), self.channel_padding).permute(0, 3, 1, 2)
        return F.pad(x, (0, 0, 0, 0, *self.channel_padding))

    def extra_repr(self) -> str:
        return f"{self.kind}, stride={self.stride}, channel_padding={self.channel_padding}"


class BlockStep(NamedTuple):
    """What one block does to the rows of a batch.

    `parents` (rows,) int64: the previous step's row that each row continues; None where rows stay as they are.
    `run` int64: the rows that run the block; None = all of them.
    """

    parents: Tensor | None
    run: Tensor | None


def plan_rows(policies: Tensor, device: torch.device | None = None) -> tuple[list[BlockStep], Tensor]:
    """Which rows run which block, so that S policies of an image share all work up to their first difference.

    A row is one prefix of decisions of one image: it splits in two at the first block that one policy of
    the image runs and another drops, and never again joins.

    Args:
        policies: bool (S, N, K), S policies for each of N images.
        device: where the index tensors go (default: that of `policies`).
    Returns:
        K steps, and the final row of each (policy, image): int64 (S, N).
    """
    device = device or policies.device
    bits = policies.cpu().numpy()
    num_policies, num_images, num_blocks = bits.shape
    rows = np.broadcast_to(np.arange(num_images), (num_policies, num_images))
    count = num_images
    steps = []

    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    for t in range(num_blocks):
        parents = None
        if num_policies == 1:
            runs = bits[0, :, t]
        else:
            # A row's new name is (old row, this block's bit), so equal prefixes keep one row between them.
            names, inverse = np.unique(2 * rows + bits[:, :, t], return_inverse=True)
            runs = (names & 1).astype(bool)
            if len(names) > count:
                parents = to_device(names >> 1)
            rows, count = inverse.reshape(rows.shape), len(names)
        steps.append(BlockStep(parents, None if runs.all() else to_device(np.flatnonzero(runs))))
    return steps, to_device(rows.copy())


class DroppableResNet(nn.Module):
    """A ResNet that runs, for each image, the blocks its policy keeps.

    Blocks are numbered 0 … K-1 from the input. A kept block computes y = relu(shortcut(x) + F(x)); a dropped
    one y = shortcut(x): the identity within a stage, the downsampling shortcut (and no ReLU after it) at a
    stage's first block.

    Args:
        conv1, bn1: stem, followed by a ReLU and `maxpool`.
        maxpool: `nn.MaxPool2d`, or `nn.Identity()` for small images.
        blocks: one list of branches per stage.
        ds: the first shortcut of each stage (`nn.Identity()` where shapes agree); the other blocks of a stage
            have identity shortcuts.
        fc: head on the globally average-pooled features.
        shortcut: the kind of `ds`, for checkpoints.
        avgpool: pooling before the head.
    """

    def __init__(
        self,
        conv1: nn.Module,
        bn1: nn.Module,
        maxpool: nn.Module,
        blocks: Sequence[Sequence[nn.Module]],
        ds: Sequence[nn.Module],
        fc: nn.Module,
        shortcut: Shortcut,
        avgpool: nn.Module | None = None,
    ):
        super().__init__()
        self.conv1 = conv1
        self.bn1 = bn1
        self.maxpool = maxpool
        self.blocks = nn.ModuleList(nn.ModuleList(stage) for stage in blocks)
        self.ds = nn.ModuleList(ds)
        self.avgpool = avgpool or nn.AdaptiveAvgPool2d(1)
        self.fc = fc
        self.shortcut: Shortcut = shortcut
        self.stage_sizes: tuple[int, ...] = tuple(len(stage) for stage in blocks)

    @property
    def num_blocks(self) -> int:
        """K, the number of blocks that a policy decides on."""
        return sum(self.stage_sizes)

    def branches(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(branch, shortcut) per block in running order; shortcut is None where it is the identity."""
        return [
            (branch, ds if i == 0 else None)
            for stage, ds in zip(self.blocks, self.ds, strict=True)
            for i, branch in enumerate(cast(nn.ModuleList, stage))
        ]

    def stem(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to the first block's input (N, C, H', W')."""
        return self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))

    def head(self, x: Tensor) -> Tensor:
        """Last feature map (N, C, H, W) to logits (N, classes)."""
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, images: Tensor, policy: Tensor | None = None, execution: Execution = "sparse") -> Tensor:
        """Logits of the images under a policy.

        Sparse execution runs a block just for the rows that need it, and skips it where none does; masked
        execution runs every block for every image and selects. Both give the same logits in eval mode. Both
        train; in train mode under sparse execution a block's BatchNorm sees (and averages into its running
        statistics) just the images routed to it, as it will at inference, while under masked execution it
        sees all images.

        Args:
            images: float (N, 3, H, W), normalised.
            policy: bool (N, K), True = run that block for that image; or bool (S, N, K), S policies for each
                image, which share the work up to their first difference. None runs all blocks.
            execution: "sparse" or "masked".
        Returns:
            (N, classes), or (S, N, classes) for a policy of shape (S, N, K).
        Raises:
            ValueError: policy of another shape or dtype, unknown execution.
        """
        if execution not in ("sparse", "masked"):
            raise ValueError(f'execution: got {execution!r}; choose "sparse" or "masked"')
        if policy is None:
            x = self.stem(images)
            for branch, ds in self.branches():
                x = _run_block(x, branch, ds, BlockStep(None, None))
            return self.head(x)
        self.check_policy(policy, images)
        if execution == "masked":
            if policy.dim() == 3:
                return torch.stack([self(images, p, execution) for p in policy])
            return self._forward_masked(images, policy.to(images.device))

        steps, rows = plan_rows(policy if policy.dim() == 3 else policy[None], images.device)
        x = self.stem(images)
        for (branch, ds), step in zip(self.branches(), steps, strict=True):
            x = _run_block(x, branch, ds, step)
        logits = self.head(x)
        return logits[rows] if policy.dim() == 3 else logits

    def _forward_masked(self, images: Tensor, policy: Tensor) -> Tensor:
        x = self.stem(images)
        for (branch, ds), keep in zip(self.branches(), policy.T, strict=True):
            shortcut = x if ds is None else ds(x)
            x = torch.where(keep.view(-1, 1, 1, 1), F.relu(shortcut + branch(x)), shortcut)
        return self.head(x)

    def check_policy(self, policy: Tensor, images: Tensor) -> None:
        """Raises `ValueError` unless `policy` is bool (N, K) or (S, N, K) for images (N, 3, H, W)."""
        expected = (len(images), self.num_blocks)
        if policy.dtype != torch.bool or policy.dim() not in (2, 3) or policy.shape[-2:] != expected:
            raise ValueError(
                f"policy: got {policy.dtype} of shape {tuple(policy.shape)}; "
                f"expected torch.bool of shape (N, K) = {expected} or (S, N, K)"
            )

    def folded(self) -> DroppableResNet:
        """A copy for inference with each BatchNorm folded into the convolution before it; same logits.

        The copy is in eval mode and doesn't follow later changes of this module.
        """
        net = copy.deepcopy(self).eval()
        net.conv1, net.bn1 = _fold(net.conv1, net.bn1)
        for branch, ds in net.branches():
            if isinstance(branch, Branch):
                for i in range(1, branch.depth + 1):
                    conv, norm = _fold(branch.get_submodule(f"conv{i}"), branch.get_submodule(f"bn{i}"))
                    branch.add_module(f"conv{i}", conv)
                    branch.add_module(f"bn{i}", norm)
            if isinstance(ds, nn.Sequential) and len(ds) == 2:
                ds[0], ds[1] = _fold(ds[0], ds[1])
        return net.requires_grad_(False)


def _run_block(x: Tensor, branch: nn.Module, ds: nn.Module | None, step: BlockStep) -> Tensor:
    shortcut = x if ds is None else ds(x)
    if step.run is None and step.parents is None:
        return F.relu(shortcut + branch(x), inplace=True)
    kept = shortcut if step.parents is None else take_rows(shortcut, step.parents)
    assert step.run is not None, "rows split only where one of the two drops the block"
    if len(step.run) == 0:
        return kept
    # The row whose map a running row continues; two rows of one parent differ in this block, so F runs once.
    source = step.run if step.parents is None else step.parents[step.run]
    y = F.relu(take_rows(shortcut, source) + branch(take_rows(x, source)), inplace=True)
    return put_rows(kept, step.run, y)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], (N, …) to (len(rows), …), keeping channels_last (where plain indexing is 20 × slower)."""
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def put_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """x with x[rows] = values; in place where autograd isn't recording, keeping channels_last."""
    if _is_channels_last(x):
        return put_rows(x.permute(0, 2, 3, 1), rows, values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    values = values.to(x.dtype)
    return x.index_copy(0, rows, values) if torch.is_grad_enabled() else x.index_copy_(0, rows, values)


def _fold(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        return fuse_conv_bn_eval(conv, norm), nn.Identity()
    return conv, norm


def make_shortcut(in_channels: int, out_channels: int, stride: int, kind: Shortcut) -> nn.Module:
    """The first shortcut of a stage: identity where shapes agree, else of the kind asked for."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if kind == "projection":
        return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    return PadShortcut(in_channels, out_channels, stride, kind)


def make_resnet(
    layers: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    shortcut: Shortcut,
    bottleneck: bool = False,
    large_images: bool = False,
) -> DroppableResNet:
    """A `DroppableResNet` with fresh weights (He initialisation, fan out).

    Args:
        layers: blocks per stage. Every stage but the first halves the map.
        widths: channels per stage (of the inner convolutions if `bottleneck`).
        large_images: stem of a 7×7 convolution of stride 2 and max-pooling (224 px) instead of a 3×3
            convolution (32 px).
    """
    make_branch, expansion = (bottleneck_branch, 4) if bottleneck else (basic_branch, 1)
    channels = widths[0]
    if large_images:
        conv1 = _conv(3, channels, 7, 2)
        maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
    else:
        conv1, maxpool = _conv(3, channels, 3), nn.Identity()
    bn1 = nn.BatchNorm2d(channels)

    blocks: list[list[nn.Module]] = []
    ds: list[nn.Module] = []
    for stage, (depth, width) in enumerate(zip(layers, widths, strict=True)):
        stride = 1 if stage == 0 else 2
        ds.append(make_shortcut(channels, width * expansion, stride, shortcut))
        blocks.append([])
        for i in range(depth):
            blocks[-1].append(make_branch(channels, width, stride if i == 0 else 1))
            channels = width * expansion
    net = DroppableResNet(conv1, bn1, maxpool, blocks, ds, nn.Linear(channels, num_classes), shortcut)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


BLOCK_PARTS = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "relu", "downsample"}


def from_torchvision(model: Any) -> DroppableResNet:
    """Any torchvision ResNet, ResNeXt or wide ResNet as a `DroppableResNet` with the same logits.

    The modules are copied, so weights, dilation, groups, norm layers and a replaced `fc` come along, and the
    model handed in stays as it is.

    Args:
        model: a `torchvision.models.ResNet` (any depth, width, groups), trained or not.
    Raises:
        TypeError: anything that isn't built like one.

    >>> import torchvision
    >>> from_torchvision(torchvision.models.resnext50_32x4d()).num_blocks
    16
    """
    parts = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
    missing = [name for name in parts if not hasattr(model, name)]
    if missing:
        raise TypeError(f"{type(model).__name__} has no {missing[0]}; expected a torchvision ResNet")
    model = copy.deepcopy(model)
    blocks: list[list[nn.Module]] = []
    ds: list[nn.Module] = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        if any(block.downsample is not None for block in list(stage)[1:]):
            raise TypeError("a block that isn't the first of its stage has a downsampling shortcut")
        unknown = {name for block in stage for name, _ in block.named_children()} - BLOCK_PARTS
        if unknown:
            raise TypeError(f"a block has a part that no torchvision ResNet has: {sorted(unknown)[0]}")
        ds.append(stage[0].downsample or nn.Identity())
        names = ("1", "2", "3") if hasattr(stage[0], "conv3") else ("1", "2")
        blocks.append(
            [Branch([getattr(b, f"conv{i}") for i in names], [getattr(b, f"bn{i}") for i in names]) for b in stage]
        )
    net = DroppableResNet(
        model.conv1, model.bn1, model.maxpool, blocks, ds, model.fc, "projection", avgpool=model.avgpool
    )
    return net.train(model.training)
