"""Dropping blocks per image: what any network of residual blocks needs to run under policies.

Wu et al. 2018 (BlockDrop), arXiv:1711.08393. Images are rows along dimension 0 and nothing else is asked of the
maps between blocks, so feature maps (N, C, H, W) and tokens (N, T, C) are alike.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Network, is_channels_last

Execution = Literal["sparse", "masked"]


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


class Droppable(Network):
    """A network that runs, for each image, the blocks its policy keeps.

    A subclass says what its stem, branches and head are (`Network`) and what a kept block makes of its rows.
    """

    droppable = True

    def enter(self, x: Tensor, always: nn.Module | None) -> tuple[Tensor | None, Tensor]:
        """What a block is given, from the output (N, …) of the block before: the branch's input (None: the second
        of the two), and the output where the block is dropped."""
        return (None, x) if always is None else (x, always(x))

    def kept(self, branch: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
        """The output (n, …) of a kept block, from rows of both that `enter` gives; x may be `shortcut` itself, and
        neither is written to."""
        raise NotImplementedError

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
            BlockdropError: policy of another shape or dtype, unknown execution, gates without such a policy.
        """
        if execution not in ("sparse", "masked"):
            raise BlockdropError(f'execution: got {execution!r}; choose "sparse" or "masked"')
        if gates is not None and (policy is None or gates.shape != policy.shape or policy.dim() != 2):
            raise BlockdropError("gates: go with a policy (N, K) and have its shape")
        if policy is None:
            return self._forward_whole(images)
        self.check_policy(policy, images)
        if execution == "masked":
            if policy.dim() == 3:
                return torch.stack([self(images, p, execution) for p in policy])
            return self._forward_masked(images, policy.to(images.device), gates)

        steps, rows = plan_rows(policy if policy.dim() == 3 else policy[None], images.device)
        x = self.stem(images)
        for k, ((branch, always), step) in enumerate(zip(self.branches(), steps, strict=True)):
            x = self._run_block(x, branch, always, step, None if gates is None else gates[:, k])
        logits = self.head(x)
        return logits[rows] if policy.dim() == 3 else logits

    def _forward_whole(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for branch, always in self.branches():
            inner, shortcut = self.enter(x, always)
            x = self.kept(branch, shortcut if inner is None else inner, shortcut)
        return self.head(x)

    def _forward_masked(self, images: Tensor, policy: Tensor, gates: Tensor | None) -> Tensor:
        x = self.stem(images)
        for k, (branch, always) in enumerate(self.branches()):
            inner, shortcut = self.enter(x, always)
            run = self.kept(branch, shortcut if inner is None else inner, shortcut)
            per_image = (-1, *[1] * (run.dim() - 1))
            if gates is not None:
                x = torch.lerp(shortcut.to(run.dtype), run, gates[:, k].to(run.dtype).view(per_image))
            else:
                x = torch.where(policy[:, k].view(per_image), run, shortcut)
        return self.head(x)

    def _run_block(
        self, x: Tensor, branch: nn.Module, always: nn.Module | None, step: BlockStep, gate: Tensor | None = None
    ) -> Tensor:
        inner, shortcut = self.enter(x, always)
        if step.run is None and step.parents is None:
            y = self.kept(branch, shortcut if inner is None else inner, shortcut)
            return y if gate is None else _OpenGate.apply(y, shortcut, gate)
        dropped = shortcut if step.parents is None else take_rows(shortcut, step.parents)
        assert step.run is not None, "rows split only where one of the two drops the block"
        if len(step.run) == 0:
            return dropped
        # The row whose map a running row continues; two rows of one parent differ in this block, so F runs once.
        source = step.run if step.parents is None else step.parents[step.run]
        before = take_rows(shortcut, source)
        y = self.kept(branch, before if inner is None else take_rows(inner, source), before)
        if gate is not None:
            y = _OpenGate.apply(y, before, gate[step.run])
        return put_rows(dropped, step.run, y)


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
        per_image = tuple(range(1, y.dim()))
        gate_gradient = (gradients[0] * (y - shortcut)).sum(
            per_image, dtype=torch.promote_types(y.dtype, torch.float32)
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
