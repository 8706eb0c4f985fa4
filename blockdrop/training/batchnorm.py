"""BatchNorm statistics of the policies that are used, in place of those that training happened to sample."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from agents.policies import map_policy
from agents.policy_network import PolicyNetwork
from agents.static_policies import StaticPolicy
from blockdrop.models.resnet import DroppableResNet
from blockdrop.names import Execution


def recalibrate(
    resnet: DroppableResNet,
    policy_network: PolicyNetwork | StaticDecider,
    batches: Iterable[Tensor],
    keep_full: float = 0.0,
    execution: Execution = "sparse",
    shuffle_policies: bool = False,
    threshold: float = 0.5,
) -> int:
    """Sets the running statistics of the ResNet to their means over batches under MAP policies.

    In training a block sees the images that sampled policies route to it, at inference those of the MAP policies.
    A block that no image of the batches runs keeps its statistics; so do modules that the policy network borrows,
    whose statistics it decides by. The policy network is left as it is.

    Args:
        batches: normalised images (N, 3, H, W).
        keep_full, execution, shuffle_policies: as in training; see `blockdrop.finetune`.
        threshold: MAP policies keep a block from this keep probability on.
    Returns:
        how many times a block ran for a row.
    """
    running = _UnderMapPolicies(
        resnet, copy.deepcopy(policy_network).eval(), keep_full, execution, shuffle_policies, threshold
    )
    norms = [module for module in resnet.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    update_bn(batches, running)
    borrowed = {part for module in policy_network.borrowed for part in module.modules()}
    for norm, buffers in zip(norms, before, strict=True):
        if norm.num_batches_tracked == 0 or norm in borrowed:
            for buffer, old in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(old)
    return running.executions


class StaticDecider(nn.Module):
    """A static policy in a policy network's place: always the same draws, batch after batch."""

    borrowed: tuple[nn.Module, ...] = ()

    def __init__(self, policy: StaticPolicy):
        super().__init__()
        self.policy, self.batches = policy, 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (N, C, H, W) to keep probabilities (N, K), each 0 or 1, and values (N, 1)."""
        policy = self.policy.draw(len(images), torch.Generator().manual_seed(self.batches))
        self.batches += 1
        return policy.to(images), images.new_zeros(len(images), 1)


def rows_kept_whole(keep_full: float, policy: Tensor) -> int:
    """How many of a (shuffled) batch's first images run all blocks, and teach no policy; never all of them.

    Args:
        policy: or keep probabilities, (N, K).
    """
    return math.floor(keep_full * len(policy))


class _UnderMapPolicies(nn.Module):
    """The ResNet as a function of images alone. The policy network stands in a list, which keeps it out of
    `modules()`: its own statistics stay."""

    def __init__(
        self,
        resnet: DroppableResNet,
        policy_network: PolicyNetwork | StaticDecider,
        keep_full: float,
        execution: Execution,
        shuffle_policies: bool,
        threshold: float,
    ):
        super().__init__()
        self.resnet, self.policy_network = resnet, [policy_network]
        self.keep_full, self.execution, self.shuffle_policies = keep_full, execution, shuffle_policies
        self.threshold = threshold
        self.executions = 0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        policy = map_policy(self.policy_network[0](images)[0], self.threshold)
        if self.shuffle_policies:
            policy = policy.roll(1, dims=0)
        policy[: rows_kept_whole(self.keep_full, policy)] = True
        self.executions += policy.numel() if self.execution == "masked" else int(policy.sum())
        return self.resnet(images, policy, self.execution)
