"""Book-keeping of an epoch of policy training: what was sampled, then the test and the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.deciders import Decider, Look
from agents.policy_network import Glance, PolicyNetwork
from agents.rewards import Reward
from blockdrop.data import Data
from blockdrop.dynamic import DynamicNetwork
from blockdrop.figures import usage_per_block
from blockdrop.flops import FlopTable
from blockdrop.inference.executor import Executor
from blockdrop.measure import evaluate_images
from blockdrop.policy_stats import Outcomes, losses_and_margins
from blockdrop.processes import Processes
from blockdrop.training.config import PolicyTrainingConfig
from blockdrop.training.means import Means
from blockdrop.training.policies import OperatingPoint
from blockdrop.training.session import Session


def make_reward(config: PolicyTrainingConfig, flops: FlopTable) -> Reward:
    """The reward that `--reward` names: it is trained on, logged and stored."""
    return Reward(config.reward, config.penalty, torch.tensor(flops.blocks))


def gathered(policy_network: PolicyNetwork, processes: Processes) -> Look:
    """The policy network as deciders take it: this process's images to what it makes of all processes', with
    gradient."""

    def look(images: Tensor) -> Glance:
        keep_probs, values, answer = policy_network.glance(images)
        assert values is not None
        answer = None if answer is None else processes.gather(answer)
        return Glance(processes.gather(keep_probs), processes.gather(values), answer)

    return look


class SampledEpoch:
    """Collects the sampled policies of an epoch, their predictions, and sums of per-batch means."""

    def __init__(self, flops: FlopTable):
        self.flops = flops
        self.rows: list[tuple[Tensor, ...]] = []
        self.means = Means()
        self.block_executions = 0
        """How many times a block has run for a row since the run began; a backward pass counts twice."""

    def add(
        self, policy: Tensor, logits: Tensor, labels: Tensor, answered: Tensor | None = None, **means: Tensor
    ) -> None:
        """One batch: bool (N, K), (N, classes), (N,), bool (N,) or None, and scalars that are means over the
        batch."""
        losses, _ = losses_and_margins(logits, labels)
        flops = self.flops.per_image(policy, answered)
        rows = (policy, logits.argmax(-1), labels, losses, flops)
        self.rows.append(tuple(part.cpu() for part in rows))
        self.means.add(len(labels), **{name: value.item() for name, value in means.items()})

    def metrics(self, reward: Reward, lr: float) -> dict[str, float]:
        """Accuracy, reward, blocks, … of the sampled policies, means, learning rate, images/s."""
        policy, predictions, labels, losses, flops = self._joined()
        outcomes = Outcomes(policy, predictions, labels, flops, losses=losses)
        metrics = outcomes.metrics(reward)
        return {
            **metrics,
            "flops_share": metrics["flops"] / self.flops.full,
            **self.means.means(),
            "lr": lr,
            "block_executions": self.block_executions,
            "images_per_second": len(labels) / self.means.seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {"rows": list(self._joined()) if self.rows else [], "means": self.means.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was called."""
        rows = tuple(state_dict["rows"])
        if len(rows) not in (0, 5):
            raise ValueError("rows of another version")
        self.rows = [rows] if rows else []
        self.means.load_state_dict(state_dict["means"])

    def _joined(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(parts) for parts in zip(*self.rows, strict=True))


@dataclass(frozen=True)
class Test:
    """What is tested at the end of an epoch."""

    __test__ = False  # no test class

    run: Executor
    decider: Decider
    point: OperatingPoint
    """Of the decider's policies."""
    facts: Mapping[str, float]
    """To be stored beside the metrics."""


def finish_epoch(
    session: Session[Any],
    dynamic: DynamicNetwork,
    data: Data,
    epoch: int,
    train: dict[str, float],
    *,
    reward: Reward,
    test: Test | None,
    stage: str = "",
) -> None:
    """Logs and prints the epoch; with a test, tests the policies and saves a checkpoint.

    Args:
        train: metrics of the epoch's training.
        test: None: no test after this epoch.
        stage: what to say of the epoch beside its number.
    """
    run = session.run
    run.log(epoch, "train", train)
    print(f"epoch {epoch}{stage}: {_line(train)}, {train['images_per_second']:.0f} images/s")
    session.report_bad_images(data)
    if test is not None:
        test_policies(session, dynamic, data, epoch, reward, test)


def test_policies(
    session: Session[Any], dynamic: DynamicNetwork, data: Data, epoch: int, reward: Reward, test: Test
) -> None:
    """Tests policies, logs and prints what they do, and saves a checkpoint."""
    run = session.run
    compute = session.compute.in_float32()
    outcomes = evaluate_images(dynamic, data.test, compute, decider=test.decider, run=test.run)
    metrics = {**outcomes.metrics(reward), **test.facts}
    metrics["flops_share"] = metrics["flops"] / dynamic.flop_table().full
    if test.point.found:
        metrics["threshold"] = test.point.threshold
    run.log(epoch, "test", metrics)
    figure = usage_per_block(outcomes.usage_per_block.tolist(), dynamic.network.stage_sizes)
    run.log_figure(epoch, "test/usage_per_block", figure)
    session.save(dynamic, epoch, metrics, test.point.recorded())
    print(
        f"    test: {_line(metrics)}, {metrics['flops']:.3E} FLOPs/img"
        + (f" at threshold {test.point.threshold:.4g}" if test.point.found else "")
    )


test_policies.__test__ = False  # type: ignore[attr-defined]  # no test


def _line(metrics: dict[str, float]) -> str:
    return (
        f"accuracy {metrics['accuracy']:.4f}, reward {metrics['reward']:.4f}, blocks {metrics['blocks']:.2f} "
        f"± {metrics['blocks_std']:.2f}, {metrics['unique_policies']:.0f} policies"
    )
