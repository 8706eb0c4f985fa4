"""BatchNorm statistics of the policies that are used, in place of those that training happened to sample."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from agents.deciders import Decider
from blockdrop.models.droppable import Droppable, take_rows
from blockdrop.names import Execution


def recalibrate(
    resnet: Droppable,
    decider: Decider,
    batches: Iterable[Tensor],
    *,
    borrowed: Iterable[nn.Module] = (),
    keep_full: float = 0.0,
    execution: Execution = "sparse",
) -> int:
    """Sets the running statistics of the ResNet to their means over batches, under the policies of a decider.

    In training a block sees the images that sampled policies route to it, at inference those of the MAP policies
    that aren't answered.
    A block that no image of the batches runs keeps its statistics.

    Args:
        decider: whose policy network, if it has one, is not to change meanwhile.
        batches: normalised images (N, 3, H, W).
        borrowed: modules of the ResNet that keep their statistics, as the policy network decides by them.
        keep_full, execution: as in training; see `blockdrop.finetune`.
    Returns:
        how many times a block ran for a row.
    """
    decider.restart()
    running = _UnderPolicies(resnet, decider, keep_full, execution)
    norms = [module for module in resnet.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    update_bn(batches, running)
    kept = {part for module in borrowed for part in module.modules()}
    for norm, buffers in zip(norms, before, strict=True):
        if norm.num_batches_tracked == 0 or norm in kept:
            for buffer, old in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(old)
    return running.executions


def rows_kept_whole(keep_full: float, policy: Tensor) -> int:
    """How many of a (shuffled) batch's first images run all blocks, and teach no policy; never all of them.

    Args:
        policy: or keep probabilities, (N, K).
    """
    return math.floor(keep_full * len(policy))


class _UnderPolicies(nn.Module):
    """The ResNet as a function of images alone."""

    def __init__(self, resnet: Droppable, decider: Decider, keep_full: float, execution: Execution):
        super().__init__()
        self.resnet, self.decider = resnet, decider
        self.keep_full, self.execution = keep_full, execution
        self.executions = 0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        decision = self.decider(images)
        policy = decision.policy.clone()
        if decision.answered is not None and not bool(decision.answered.all()):
            rest = (~decision.answered).nonzero().squeeze(1)
            images, policy = take_rows(images, rest), policy[rest]
        policy[: rows_kept_whole(self.keep_full, policy)] = True
        self.executions += policy.numel() if self.execution == "masked" else int(policy.sum())
        return self.resnet(images, policy, self.execution)
