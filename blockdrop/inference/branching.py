"""The dynamic network as one graph for one image, for runtimes other than Python: policy network, then a branch
a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.models.backbone import Backbone
from blockdrop.models.policy_networks import folded_policy_network


class BranchingNetwork(nn.Module):
    """A policy network and its ResNet, for a batch of one, each block behind a `torch.cond` of its own.

    Exported, the graph has K conditions (`If` in ONNX), and a runtime computes only the branches it takes. To run
    in Python, `DroppableResNet` is faster and takes batches.

    Args:
        resnet, policy_network: left as they are, the ResNet droppable; copies with folded BatchNorm run.
    """

    def __init__(self, resnet: Backbone, policy_network: PolicyNetwork):
        super().__init__()
        self.resnet = resnet.folded()
        self.policy_network = folded_policy_network(policy_network)
        self.eval()

    def forward(self, image: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One image's logits under the policy that a threshold gives.

        Args:
            image: float32 (1, 3, H, W), normalised.
            threshold: float32 (), a block runs where its keep probability is at least this.
        Returns:
            logits (1, classes), policy bool (1, K), keep probabilities (1, K).
        """
        keep_probs, _ = self.policy_network(image)
        x = self.resnet.stem(image)
        for i, (branch, ds) in enumerate(self.resnet.branches()):
            # Compared anew for each block, not read from `policy`: AOTInductor (torch 2.14) keeps one scalar for a
            # buffer, so that all conditions that are elements of one tensor would follow the first of them.
            x = _run_or_drop(keep_probs[0, i] >= threshold, x, branch, ds, self.resnet.relu_after_sum)
        return self.resnet.head(x), keep_probs >= threshold, keep_probs


def _run_or_drop(keep: Tensor, x: Tensor, branch: nn.Module, ds: nn.Module | None, relu: bool) -> Tensor:
    def run(x: Tensor, shortcut: Tensor) -> Tensor:
        return F.relu(shortcut + branch(x)) if relu else shortcut + branch(x)

    def drop(x: Tensor, shortcut: Tensor) -> Tensor:
        return shortcut.clone()  # a branch of torch.cond may not return its input

    return torch.cond(keep, run, drop, (x, x if ds is None else ds(x)))
