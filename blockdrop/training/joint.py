"""The steps of joint fine-tuning: what a batch teaches the policy network and the ResNet in each phase (see
`phases`).

- from rewards: REINFORCE for the policy network, cross-entropy of the sampled policies for both (Wu et al. 2018,
  BlockDrop, arXiv:1711.08393, section 3.4);
- pathwise: the cross-entropy's own gradient for both, through the gates of kept blocks;
- settled: cross-entropy for the ResNet alone, under the policies that are decided.

The first two also serve while the policy network learns alone, with the ResNet frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.answers import split_decisions, with_answer_chance, with_answers
from agents.deciders import Decision
from agents.estimators import Estimator, draw_gates, make_estimator, values_for
from agents.names import PATHWISE, EstimatorName, PathwiseName
from agents.policies import bound_keep_probs, entropy, policy_information
from agents.policy_network import PolicyNetwork
from agents.rewards import Reward
from blockdrop.models.droppable import Droppable, block_executions
from blockdrop.names import Execution
from blockdrop.training.batchnorm import rows_kept_whole
from blockdrop.training.compute import Compute


class JointBatch(NamedTuple):
    """What a step is given. All are of the whole batch, but the images, which are this process's share."""

    images: Tensor
    """(N', 3, H, W)."""
    labels: Tensor
    """(N,)."""
    decision: Decision
    draws: torch.Generator
    """Of policies, on the networks' device."""
    price: float | None = None
    """Of all blocks' FLOPs; None: the reward's own trade-off."""


@dataclass
class JointStep:
    """What a batch gave."""

    loss: Tensor
    """Scalar."""
    policy: Tensor
    """bool (N, K), the one whose logits count."""
    logits: Tensor
    """(N, classes), with gradient."""
    parts: dict[str, Tensor]
    """Scalars worth logging, means over the batch."""
    executions: int
    """How many times a block ran for a row; a backward pass counts twice."""
    answered: Tensor | None = None
    """bool (N,), images whose logits are the answer's; None: there are none."""


class Learner(Protocol):
    """A way of learning from a batch."""

    def __call__(self, batch: JointBatch) -> JointStep: ...


@dataclass(frozen=True)
class BlockRunner:
    """Runs the ResNet under policies, as the flags say."""

    resnet: Droppable
    compute: Compute
    execution: Execution = "sparse"
    keep_full: float = 0.0
    """Share of each batch, from its start, for which all blocks run."""

    def kept_whole(self, policy: Tensor) -> int:
        """How many of a batch's first images run all blocks. policy: or keep probabilities, (N, K)."""
        return rows_kept_whole(self.keep_full, policy)

    def logits(self, images: Tensor, policy: Tensor, gates: Tensor | None = None) -> Tensor:
        """Logits of the whole batch, of which this process runs its share.

        Args:
            images: this process's, (N', 3, H, W).
            policy, gates: of the whole batch, (…, N, K).
        Returns:
            (…, N, classes).
        """
        processes = self.compute.processes
        rows = processes.rows(len(images))
        own_gates = None if gates is None else gates[rows]
        with self.compute.autocast():
            logits = self.resnet(images, policy[..., rows, :], self.execution, own_gates)
        return processes.gather(logits, dim=policy.dim() - 2)

    def executions(self, policies: Tensor) -> int:
        """How many times a block runs for a row in one forward pass under policies (…, N, K)."""
        return policies.numel() if self.execution == "masked" else block_executions(policies)


@dataclass(frozen=True)
class RewardLearner:
    """REINFORCE for the policy network, cross-entropy of the sampled policies for the ResNet."""

    blocks: BlockRunner
    estimator: Estimator
    reward: Reward
    alpha: float
    """Keep probabilities are bounded to [1 - alpha, alpha] before sampling."""
    information: float = 0.0
    """Weight of a bonus for policies that tell images apart."""
    answers: bool = False
    """Whether to answer is one more decision."""

    def __call__(self, batch: JointBatch) -> JointStep:
        blocks, estimator, keep_probs = self.blocks, self.estimator, batch.decision.keep_probs
        answer, answered = batch.decision.answer if self.answers else None, None
        chances = keep_probs if answer is None else with_answer_chance(keep_probs, answer)
        bounded = bound_keep_probs(chances, self.alpha)
        decisions = estimator.draw(bounded.detach(), batch.draws)  # (S, N, K), or (S, N, K + 1)
        whole = blocks.kept_whole(keep_probs)
        decisions[:, :whole] = True
        policies = decisions
        if answer is not None:
            decisions[:, :whole, -1] = False
            policies, answered = split_decisions(decisions)
        sampled, others = policies[: estimator.samples], policies[estimator.samples :]
        found = []
        if len(others):
            with torch.no_grad():
                found.append(blocks.logits(batch.images, others))
        logits = blocks.logits(batch.images, sampled)  # (samples, N, classes)
        outcomes = with_answers(torch.cat([logits.detach(), *found]), answer, answered, 0.0)
        rewards = self.reward(outcomes.detach(), batch.labels, policies, batch.price)  # (S, N)
        learned = logits.float().flatten(0, 1), batch.labels.repeat(len(sampled))
        if answered is not None:  # the ResNet learns from what isn't answered
            rest = ~answered[: estimator.samples].flatten()
            learned = learned[0][rest], learned[1][rest]
        cross_entropy = F.cross_entropy(*learned) if len(learned[1]) else logits.sum() * 0
        deciding = slice(whole, None)
        values = values_for(estimator, batch.decision, deciding)
        loss = estimator.loss(bounded[deciding], decisions[:, deciding], rewards[:, deciding], *values)
        loss = loss + cross_entropy
        parts = {"cross_entropy": cross_entropy, "entropy": entropy(bounded.detach())}
        if self.information:
            parts["information"] = policy_information(keep_probs[deciding])
            loss = loss - self.information * parts["information"]
        if len(rewards) > 1:
            parts["advantage"] = (rewards[0] - rewards[1:].mean(0)).mean()
        if answered is not None:
            parts["answers"] = answered[0].double().mean()
        passes = 3 if logits.requires_grad else 1
        executions = passes * blocks.executions(sampled) + blocks.executions(others)
        first = None if answered is None else answered[0]
        shown = with_answers(logits[0], answer, first, 0.0)
        return JointStep(loss, sampled[0], shown, parts, executions, first)


@dataclass(frozen=True)
class PathwiseLearner:
    """The cross-entropy's own gradient for both networks, through the gates, and the expected cost's.

    The cost is the square of the expected share of all blocks' FLOPs over |penalty|, or price · share.
    """

    blocks: BlockRunner
    estimator: PathwiseName
    costs: Tensor
    """(K,), FLOPs of each block."""
    alpha: float
    penalty: float
    temperature: float = 1.0
    """Of the Gumbel relaxation."""
    information: float = 0.0
    """Weight of a bonus for policies that tell images apart."""

    def __call__(self, batch: JointBatch) -> JointStep:
        blocks, keep_probs = self.blocks, batch.decision.keep_probs
        bounded = bound_keep_probs(keep_probs, self.alpha)
        policy, gates = draw_gates(self.estimator, bounded, batch.draws, self.temperature)
        whole = blocks.kept_whole(keep_probs)
        policy = torch.cat([torch.ones_like(policy[:whole]), policy[whole:]])
        gates = torch.cat([torch.ones_like(gates[:whole]), gates[whole:]])
        logits = blocks.logits(batch.images, policy, gates)
        cross_entropy = F.cross_entropy(logits.float(), batch.labels)
        share = (keep_probs[whole:] * (self.costs / self.costs.sum())).sum(-1)
        cost = share.square().mean() / abs(self.penalty) if batch.price is None else batch.price * share.mean()
        information = policy_information(keep_probs[whole:])
        deciding = len(share) / len(policy)  # as much for each image as if all decided
        loss = cross_entropy + deciding * (cost - self.information * information)
        parts = {"cross_entropy": cross_entropy, "cost": cost, "information": information}
        learns = any(parameter.requires_grad for parameter in blocks.resnet.parameters())
        passes = 3 if learns else 2  # backward: maps alone
        return JointStep(loss, policy, logits, parts, passes * blocks.executions(policy))


@dataclass(frozen=True)
class SettledLearner:
    """Cross-entropy for the ResNet alone, under the policies that are decided."""

    blocks: BlockRunner

    def __call__(self, batch: JointBatch) -> JointStep:
        policy = batch.decision.policy.clone()
        policy[: self.blocks.kept_whole(policy)] = True
        logits = self.blocks.logits(batch.images, policy)
        cross_entropy = F.cross_entropy(logits.float(), batch.labels)
        parts = {"cross_entropy": cross_entropy}
        passes = 3 if logits.requires_grad else 1
        return JointStep(cross_entropy, policy, logits, parts, passes * self.blocks.executions(policy))


def make_learner(
    blocks: BlockRunner,
    name: EstimatorName | PathwiseName,
    reward: Reward,
    *,
    samples: int,
    alpha: float,
    temperature: float,
    information: float,
    answers: bool = False,
) -> Learner:
    """The way of learning policies by the name of an estimator.

    Args:
        reward: with each block's costs; of pathwise estimators its penalty and the costs alone matter.
        samples: of estimators from rewards; see `make_estimator`.
        alpha, temperature, information, answers: see `RewardLearner` and `PathwiseLearner`.
    """
    if name not in PATHWISE:
        return RewardLearner(blocks, make_estimator(name, samples), reward, alpha, information, answers)
    assert reward.costs is not None
    costs = reward.costs.to(blocks.compute.device)
    return PathwiseLearner(blocks, name, costs, alpha, reward.penalty, temperature, information)


def make_optimizers(
    resnet: nn.Module,
    policy_network: PolicyNetwork | None,
    *,
    optimizer: Literal["adam", "sgd"],
    lr: float,
    wd: float,
    bias_lr: float | None,
    resnet_lr: float,
    resnet_wd: float,
) -> dict[str, torch.optim.Optimizer]:
    """One Adam for both networks, or SGD for the ResNet and Adam for the policy network; by their names.

    Args:
        lr, wd: learning rate and weight decay of Adam.
        bias_lr: learning rate of the bias of the policy network's logits; None: `lr`.
        resnet_lr, resnet_wd: of SGD.
    """
    groups: list[dict[str, Any]] = []
    if policy_network is not None:
        own, bias = policy_network.own_parameters(), policy_network.logit.bias
        if bias_lr is None:
            groups = [{"params": own}]
        else:
            rest = [parameter for parameter in own if parameter is not bias]
            groups = [{"params": rest}, {"params": [bias], "lr": bias_lr}]
    if optimizer == "adam":
        first = groups[0]["params"] if groups else []
        groups = [{"params": [*resnet.parameters(), *first]}, *groups[1:]]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if groups:
        optimizers["adam"] = torch.optim.Adam(groups, lr, weight_decay=wd)
    if optimizer == "sgd":
        optimizers["sgd"] = torch.optim.SGD(
            resnet.parameters(), resnet_lr, momentum=0.9, nesterov=True, weight_decay=resnet_wd
        )
    return optimizers
