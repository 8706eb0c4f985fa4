"""Residual networks whose blocks can be dropped per image.

ResNets: He et al. 2016, arXiv:1512.03385. Dropping blocks per image: Wu et al. 2018 (BlockDrop),
arXiv:1711.08393.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from blockdrop.models.backbone import (
    Backbone,
    Branch,
    BranchMaker,
    PadShortcut,
    backbone_parts,
    basic_branch,
    bottleneck_branch,
    conv2d,
    initialise,
    is_channels_last,
)
from blockdrop.names import Execution, Shortcut


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


def block_executions(policies: Tensor) -> int:
    """How many times a block runs for a row, when the policies of an image share all work up to their first
    difference.

    Args:
        policies: bool (S, N, K), or (N, K).

    >>> block_executions(torch.tensor([[[True, True, False]], [[True, False, True]]]))
    3
    """
    if policies.dim() == 2 or len(policies) == 0:
        return int(policies.sum())
    steps, rows = plan_rows(policies.cpu())
    count, executed = rows.shape[1], 0
    for step in steps:
        count = count if step.parents is None else len(step.parents)
        executed += count if step.run is None else len(step.run)
    return executed


class DroppableResNet(Backbone):
    """A ResNet that runs, for each image, the blocks its policy keeps.

    A kept block computes y = relu(shortcut(x) + F(x)); a dropped one y = shortcut(x): the identity within a stage,
    the downsampling shortcut (and no ReLU after it) at a stage's first block. Arguments as for `Backbone`.
    """

    droppable = True

    def forward(
        self,
        images: Tensor,
        policy: Tensor | None = None,
        execution: Execution = "sparse",
        gates: Tensor | None = None,
    ) -> Tensor:
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
            gates: (N, K), the policy (N, K) as zeros and ones with a gradient (`agents.estimators.draw_gates`):
                y = shortcut(x) + gate · (what the block makes of x - shortcut(x)). Sparse execution gives only the
                gates of kept blocks a gradient.
        Returns:
            (N, classes), or (S, N, classes) for a policy of shape (S, N, K).
        Raises:
            ValueError: policy of another shape or dtype, unknown execution, gates without such a policy.
        """
        if execution not in ("sparse", "masked"):
            raise ValueError(f'execution: got {execution!r}; choose "sparse" or "masked"')
        if gates is not None and (policy is None or gates.shape != policy.shape or policy.dim() != 2):
            raise ValueError("gates: go with a policy (N, K) and have its shape")
        if policy is None:
            return super().forward(images)
        self.check_policy(policy, images)
        if execution == "masked":
            if policy.dim() == 3:
                return torch.stack([self(images, p, execution) for p in policy])
            return self._forward_masked(images, policy.to(images.device), gates)

        steps, rows = plan_rows(policy if policy.dim() == 3 else policy[None], images.device)
        x = self.stem(images)
        for k, ((branch, ds), step) in enumerate(zip(self.branches(), steps, strict=True)):
            x = self._run_block(x, branch, ds, step, None if gates is None else gates[:, k])
        logits = self.head(x)
        return logits[rows] if policy.dim() == 3 else logits

    def _forward_masked(self, images: Tensor, policy: Tensor, gates: Tensor | None) -> Tensor:
        x = self.stem(images)
        for k, (branch, ds) in enumerate(self.branches()):
            shortcut = x if ds is None else ds(x)
            run = self.close(shortcut + branch(x))
            if gates is not None:
                x = torch.lerp(shortcut, run, gates[:, k].to(run.dtype).view(-1, 1, 1, 1))
            else:
                x = torch.where(policy[:, k].view(-1, 1, 1, 1), run, shortcut)
        return self.head(x)

    def _run_block(
        self, x: Tensor, branch: nn.Module, ds: nn.Module | None, step: BlockStep, gate: Tensor | None = None
    ) -> Tensor:
        shortcut = x if ds is None else ds(x)
        if step.run is None and step.parents is None:
            y = self.close(shortcut + branch(x))
            return y if gate is None else _OpenGate.apply(y, shortcut, gate)
        kept = shortcut if step.parents is None else take_rows(shortcut, step.parents)
        assert step.run is not None, "rows split only where one of the two drops the block"
        if len(step.run) == 0:
            return kept
        # The row whose map a running row continues; two rows of one parent differ in this block, so F runs once.
        source = step.run if step.parents is None else step.parents[step.run]
        before = take_rows(shortcut, source)
        y = self.close(before + branch(before if ds is None else take_rows(x, source)))
        if gate is not None:
            y = _OpenGate.apply(y, before, gate[step.run])
        return put_rows(kept, step.run, y)


class _OpenGate(torch.autograd.Function):
    """y = shortcut + gate · (y - shortcut) where the gate is one: y itself, and the gate's derivative."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, shortcut: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(y, shortcut)
        ctx.gate_dtype = gate.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        y, shortcut = ctx.saved_tensors
        gate_gradient = (gradients[0] * (y - shortcut)).sum(
            (1, 2, 3), dtype=torch.promote_types(y.dtype, torch.float32)
        )
        return gradients[0], None, gate_gradient.to(ctx.gate_dtype)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], (N, …) to (len(rows), …), keeping channels_last (where plain indexing is 20 × slower)."""
    if is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def put_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """x with x[rows] = values; in place where autograd isn't recording, keeping channels_last."""
    if is_channels_last(x):
        return put_rows(x.permute(0, 2, 3, 1), rows, values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    values = values.to(x.dtype)
    return x.index_copy(0, rows, values) if torch.is_grad_enabled() else x.index_copy_(0, rows, values)


def make_shortcut(in_channels: int, out_channels: int, stride: int, kind: Shortcut) -> nn.Module:
    """The first shortcut of a stage: identity where shapes agree, else of the kind asked for."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if kind == "projection":
        return nn.Sequential(conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    return PadShortcut(in_channels, out_channels, stride, kind)


def make_resnet(
    layers: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    shortcut: Shortcut,
    bottleneck: bool = False,
    large_images: bool = False,
    branch: BranchMaker | None = None,
    relu_after_sum: bool = True,
) -> DroppableResNet:
    """A `DroppableResNet` with fresh weights (He initialisation, fan out).

    Args:
        layers: blocks per stage. Every stage but the first halves the map.
        widths: channels per stage (of the inner convolutions if `bottleneck`).
        large_images: stem of a 7×7 convolution of stride 2 and max-pooling (224 px) instead of a 3×3
            convolution (32 px).
        branch: (input channels, width, stride) to a branch of as many output channels as the usual one.
    """
    branch = branch or (bottleneck_branch if bottleneck else basic_branch)
    ds = functools.partial(make_shortcut, kind=shortcut)
    parts = backbone_parts(layers, widths, num_classes, branch, ds, 4 if bottleneck else 1, large_images)
    return initialise(DroppableResNet(**parts, shortcut=shortcut, relu_after_sum=relu_after_sum))


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
