"""The dynamic network as one graph for one image, for runtimes other than Python: policy network, then a branch
a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.answers import is_sure
from agents.policy_network import PolicyNetwork
from blockdrop.models.backbone import Network
from blockdrop.models.droppable import Droppable
from blockdrop.models.policy_networks import folded_policy_network


class BranchingNetwork(nn.Module):
    """A policy network and its ResNet, for a batch of one, each block behind a `torch.cond` of its own, and, of a
    policy network that answers, the whole ResNet behind another one.

    Exported, the graph has K conditions (`If` in ONNX), and a runtime computes only the branches it takes. To run
    in Python, `DroppableResNet` is faster and takes batches.

    Args:
        resnet, policy_network: left as they are, the network droppable; copies with folded BatchNorm run.
    """

    def __init__(self, resnet: Network, policy_network: PolicyNetwork):
        super().__init__()
        assert isinstance(resnet, Droppable)
        self.resnet = resnet.folded()
        self.policy_network = folded_policy_network(policy_network)
        self.eval()

    def forward(
        self, image: Tensor, threshold: Tensor, answer_threshold: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One image's logits under the policy that a threshold gives.

        Args:
            image: float32 (1, 3, H, W), normalised.
            threshold: float32 (), a block runs where its keep probability is at least this.
            answer_threshold: float32 (), the image is answered where its largest probability is at least this;
                None for a policy network without answers.
        Returns:
            logits (1, classes), policy bool (1, K), keep probabilities (1, K); of a policy network that answers
            also bool (1,), whether the image is answered, and the answer's log-probabilities (1, classes).
        """
        keep_probs, _, answer = self.policy_network.glance(image)
        policy = keep_probs >= threshold
        if answer is None:
            return self._run(image, keep_probs, threshold), policy, keep_probs
        assert answer_threshold is not None
        weight = self.policy_network.answer_weight
        assert weight is not None

        def reply(image: Tensor, keep_probs: Tensor, threshold: Tensor, answer: Tensor, weight: Tensor) -> Tensor:
            return answer.clone()  # a branch of torch.cond may not return its input

        def go_on(image: Tensor, keep_probs: Tensor, threshold: Tensor, answer: Tensor, weight: Tensor) -> Tensor:
            return self._run(image, keep_probs, threshold) + weight * answer

        answered = is_sure(answer, answer_threshold, policy)
        logits = torch.cond(answered[0], reply, go_on, (image, keep_probs, threshold, answer, weight))
        return logits, policy & ~answered.unsqueeze(-1), keep_probs, answered, answer

    def _run(self, image: Tensor, keep_probs: Tensor, threshold: Tensor) -> Tensor:
        x = self.resnet.stem(image)
        for i, (branch, always) in enumerate(self.resnet.branches()):
            # Compared anew for each block, not read from `policy`: AOTInductor (torch 2.14) keeps one scalar for a
            # buffer, so that all conditions that are elements of one tensor would follow the first of them.
            x = _run_or_drop(keep_probs[0, i] >= threshold, x, branch, always, self.resnet)
        return self.resnet.head(x)


def trace(network: BranchingNetwork | nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """What `torch.export` makes of a graph, in strict mode where conditions stand within a condition: without it
    those of a network of tokens fail on a symbolic shape (torch 2.14)."""
    nested = isinstance(network, BranchingNetwork) and network.policy_network.answer is not None
    return torch.export.export(network, example, strict=nested)


def _run_or_drop(keep: Tensor, x: Tensor, branch: nn.Module, always: nn.Module | None, net: Droppable) -> Tensor:
    inner, shortcut = net.enter(x, always)

    def run(x: Tensor, shortcut: Tensor) -> Tensor:
        return net.kept(branch, x, shortcut)

    def drop(x: Tensor, shortcut: Tensor) -> Tensor:
        return shortcut.clone()  # a branch of torch.cond may not return its input

    return torch.cond(keep, run, drop, (shortcut if inner is None else inner, shortcut))
