"""Book-keeping of an epoch of policy training: what was sampled, then the test and the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blockdrop.figures import usage_per_block
from blockdrop.flops import FlopTable
from blockdrop.measure import evaluate_images
from blockdrop.policy_stats import Outcomes
from blockdrop.training.compute import Compute
from blockdrop.training.means import Means
from blockdrop.training.policies import OperatingPoint
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup


class SampledEpoch:
    """Collects the sampled policies of an epoch, their predictions, and sums of per-batch means."""

    def __init__(self, flops: FlopTable):
        self.flops = flops
        self.rows: list[tuple[Tensor, ...]] = []
        self.means = Means()
        self.block_executions = 0
        """How many times a block has run for a row since the run began; a backward pass counts twice."""

    def add(self, policy: Tensor, logits: Tensor, labels: Tensor, **means: Tensor) -> None:
        """One batch: bool (N, K), (N, classes), (N,), and scalars that are means over the batch."""
        self.rows.append((policy.cpu(), logits.argmax(-1).cpu(), labels.cpu()))
        self.means.add(len(labels), **{name: value.item() for name, value in means.items()})

    def metrics(self, penalty: float, lr: float) -> dict[str, float]:
        """Accuracy, reward, blocks, … of the sampled policies, means, learning rate, images/s."""
        policy, predictions, labels = self._joined()
        outcomes = Outcomes(policy, predictions, labels, self.flops.per_image(policy))
        return {
            **outcomes.metrics(penalty),
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
        self.rows = [tuple(state_dict["rows"])] if state_dict["rows"] else []
        self.means.load_state_dict(state_dict["means"])

    def _joined(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(parts) for parts in zip(*self.rows, strict=True))


def finish_epoch(
    setup: Setup,
    run: RunDirectory,
    compute: Compute,
    epoch: int,
    train: dict[str, float],
    penalty: float,
    test: bool,
    decided: int | None = None,
    point: OperatingPoint | None = None,
    shuffle_policies: bool = False,
) -> None:
    """Logs and prints the epoch; if `test`, tests the MAP policies and saves a checkpoint."""
    run.log(epoch, "train", train)
    stage = "" if decided is None else f", {decided} of {setup.resnet.num_blocks} blocks decided"
    print(f"epoch {epoch}{stage}: {_line(train)}, {train['images_per_second']:.0f} images/s")
    setup.report_bad_images(compute.processes)
    if not test:
        return
    point = point or OperatingPoint()
    outcomes = evaluate_images(
        setup.resnet,
        setup.policy_network if setup.static is None else setup.static,
        setup.data.test,
        setup.normalisation,
        replace(compute, dtype=torch.float32),
        image_size=setup.image_size,
        threshold=point.threshold,
        decided=decided,
        shuffle_policies=shuffle_policies,
    )
    metrics = outcomes.metrics(penalty)
    if decided is not None:
        metrics["decided"] = decided
    if point.found:
        metrics["threshold"] = point.threshold
    run.log(epoch, "test", metrics)
    figure = usage_per_block(outcomes.usage_per_block.tolist(), setup.resnet.stage_sizes)
    run.log_figure(epoch, "test/usage_per_block", figure)
    setup.save(run, epoch, metrics, point.recorded())
    print(
        f"    test: {_line(metrics)}, {metrics['flops']:.3E} FLOPs/img"
        + (f" at threshold {point.threshold:.4g}" if point.found else "")
    )


def _line(metrics: dict[str, float]) -> str:
    return (
        f"accuracy {metrics['accuracy']:.4f}, reward {metrics['reward']:.4f}, blocks {metrics['blocks']:.2f} "
        f"± {metrics['blocks_std']:.2f}, {metrics['unique_policies']:.0f} policies"
    )
