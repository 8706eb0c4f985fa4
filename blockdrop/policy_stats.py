"""What policies did on a set of images: accuracy, block usage, unique policies, FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agents.rewards import blockdrop_reward


@dataclass(frozen=True)
class Outcomes:
    """One row per image, on the CPU."""

    policy: Tensor
    """bool (N, K), the blocks that ran."""
    predictions: Tensor
    """int64 (N,)."""
    labels: Tensor
    """int64 (N,)."""
    flops: Tensor
    """int64 (N,), policy network included where one ran."""
    keep_probs: Tensor | None = None
    """float32 (N, K), where a policy network ran."""

    @property
    def correct(self) -> Tensor:
        """bool (N,)."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return self.correct.double().mean().item()

    @property
    def blocks_used(self) -> Tensor:
        """float64 (N,)."""
        return self.policy.sum(1).double()

    @property
    def block_usage(self) -> tuple[float, float]:
        """Mean and sample deviation of the blocks used per image."""
        used = self.blocks_used
        return used.mean().item(), used.std().item() if len(used) > 1 else 0.0

    @property
    def flops_per_image(self) -> tuple[float, float]:
        """Mean and population deviation of the FLOPs per image."""
        flops = self.flops.double()
        return flops.mean().item(), flops.std(correction=0).item()

    @cached_property
    def unique_policies(self) -> int:
        """Number of distinct policies."""
        return len(torch.unique(self.policy, dim=0))

    @property
    def usage_per_block(self) -> Tensor:
        """float64 (K,), share of images that ran each block."""
        return self.policy.double().mean(0)

    def reward(self, penalty: float) -> float:
        """Mean reward."""
        return blockdrop_reward(self.correct, self.policy, penalty).double().mean().item()

    def metrics(self, penalty: float) -> dict[str, float]:
        """The numbers that training logs after a test."""
        blocks, deviation = self.block_usage
        return {
            "accuracy": self.accuracy,
            "reward": self.reward(penalty),
            "blocks": blocks,
            "blocks_std": deviation,
            "unique_policies": self.unique_policies,
            "flops": self.flops_per_image[0],
        }

    def four_lines(self) -> str:
        """Accuracy, block usage, FLOPs and unique policies in the BlockDrop reference's words."""
        blocks, blocks_std = self.block_usage
        flops, flops_std = self.flops_per_image
        return (
            f"    Accuracy: {self.accuracy:.3f}\n"
            f"    Block Usage: {blocks:.3f} ± {blocks_std:.3f}\n"
            f"    FLOPs/img: {flops:.2E} ± {flops_std:.2E}\n"
            f"    Unique Policies: {self.unique_policies}"
        )
