"""Book-keeping of an epoch of policy training: what was sampled, then the test and the checkpoint."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from blockdrop.figures import usage_per_block
from blockdrop.flops import FlopTable
from blockdrop.measure import evaluate_images
from blockdrop.policy_stats import Outcomes
from blockdrop.training.compute import Compute
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup


class SampledEpoch:
    """Collects the sampled policies of an epoch, their predictions, and sums of per-batch means."""

    def __init__(self, flops: FlopTable):
        self.flops = flops
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.block_executions = 0
        """How many times a block has run for a row since the run began; a backward pass counts twice."""
        self.start = time.perf_counter()

    def add(self, policy: Tensor, logits: Tensor, labels: Tensor, **means: Tensor) -> None:
        """One batch: bool (N, K), (N, classes), (N,), and scalars that are means over the batch."""
        self.rows.append((policy.cpu(), logits.argmax(-1).cpu(), labels.cpu()))
        for name, value in means.items():
            self.sums[name] += value.item() * len(labels)
            self.counts[name] += len(labels)

    def metrics(self, penalty: float, lr: float) -> dict[str, float]:
        """Accuracy, reward, blocks, … of the sampled policies, means, learning rate, images/s."""
        policy, predictions, labels = (torch.cat(parts) for parts in zip(*self.rows, strict=True))
        outcomes = Outcomes(policy, predictions, labels, self.flops.per_image(policy))
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        speed = len(labels) / (time.perf_counter() - self.start)
        return {
            **outcomes.metrics(penalty),
            **means,
            "lr": lr,
            "block_executions": self.block_executions,
            "images_per_second": speed,
        }


def finish_epoch(
    setup: Setup,
    run: RunDirectory,
    compute: Compute,
    epoch: int,
    train: dict[str, float],
    penalty: float,
    test: bool,
    decided: int | None = None,
    shuffle_policies: bool = False,
) -> tuple[dict[str, float], Path] | None:
    """Logs and prints the epoch; if `test`, tests the MAP policies and saves a checkpoint.

    Returns:
        the test's metrics and the checkpoint's path, or None.
    """
    run.log(epoch, "train", train)
    stage = "" if decided is None else f", {decided} of {setup.resnet.num_blocks} blocks decided"
    print(f"epoch {epoch}{stage}: {_line(train)}, {train['images_per_second']:.0f} images/s")
    if not test:
        return None
    outcomes = evaluate_images(
        setup.resnet,
        setup.policy_network,
        setup.data.test,
        setup.normalisation,
        replace(compute, dtype=torch.float32),
        image_size=setup.image_size,
        decided=decided,
        shuffle_policies=shuffle_policies,
    )
    metrics = outcomes.metrics(penalty)
    if decided is not None:
        metrics["decided"] = decided
    run.log(epoch, "test", metrics)
    figure = usage_per_block(outcomes.usage_per_block.tolist(), setup.resnet.stage_sizes)
    run.log_figure(epoch, "test/usage_per_block", figure)
    path = setup.save(run, epoch, metrics)
    print(f"    test: {_line(metrics)}, {metrics['flops']:.3E} FLOPs/img")
    return metrics, path


def _line(metrics: dict[str, float]) -> str:
    return (
        f"accuracy {metrics['accuracy']:.4f}, reward {metrics['reward']:.4f}, blocks {metrics['blocks']:.2f} "
        f"± {metrics['blocks_std']:.2f}, {metrics['unique_policies']:.0f} policies"
    )
