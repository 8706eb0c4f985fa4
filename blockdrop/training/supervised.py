"""The loop of everything that is trained with SGD on labelled images: a backbone, a student, a stage of one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.measure import evaluate_images
from blockdrop.models.backbone import Backbone
from blockdrop.training.compute import Compute
from blockdrop.training.config import SupervisedConfig
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup


@dataclass(frozen=True)
class Step:
    """What an objective makes of a batch."""

    loss: Tensor
    """Scalar, to be minimised."""
    logits: Tensor | None = None
    """(N, classes), for the training accuracy; None where there are none."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Scalars worth logging: the terms of the loss, means over the batch."""


Objective = Callable[[Tensor, Tensor, int], Step]
"""(images (N, 3, H, W), labels (N,), epoch) to a step; called under autocast."""


def cross_entropy_objective(net: nn.Module, label_smoothing: float = 0.0) -> Objective:
    """Training with labels alone."""

    def objective(images: Tensor, labels: Tensor, epoch: int) -> Step:
        logits = net(images)
        return Step(F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits)

    return objective


def fit(
    config: SupervisedConfig,
    setup: Setup,
    compute: Compute,
    run: RunDirectory,
    objective: Objective,
    parameters: Iterable[Any],
    begin_epoch: Callable[[], object],
    end_epoch: Callable[[int, bool], str],
    epochs: int,
    first_epoch: int = 0,
    lr: float | None = None,
    phase: str = "train",
    adam: bool = False,
) -> None:
    """Minimises the objective for some epochs, logging each: by SGD with Nesterov momentum, or by Adam.

    Args:
        parameters: tensors or parameter groups, as an optimiser takes them.
        begin_epoch: puts the networks into the mode that training wants.
        end_epoch: (epoch, whether it is the last) to what its line on the terminal ends with: tests and saves.
        first_epoch: its number, for logs and for the seed of its augmentation.
        lr: peak or initial learning rate; default: the flag's.
        phase: what the metrics are logged under.
        adam: Adam without weight decay, for losses whose gradients have another scale than a cross-entropy's.
    Raises:
        NumericalError: the loss is no longer finite.
    """
    peak = config.lr if lr is None else lr
    optimizer: torch.optim.Optimizer
    if adam:
        optimizer = torch.optim.Adam(parameters, peak)
    else:
        optimizer = torch.optim.SGD(parameters, peak, config.momentum, weight_decay=config.wd, nesterov=True)
    count = len(setup.data.train)
    one_cycle = None
    if config.one_cycle:
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            peak,
            total_steps=max(8, -(-count // config.batch_size) * epochs),  # torch divides by zero at four
            pct_start=0.25,
            cycle_momentum=False,
        )
    for epoch in range(first_epoch, first_epoch + epochs):
        begin_epoch()
        if one_cycle is None:
            for group in optimizer.param_groups:
                group["lr"] = peak * config.step_factor(epoch - first_epoch)
        sums: dict[str, float] = defaultdict(float)
        start = time.perf_counter()
        for batch, (images, labels) in enumerate(setup.training_batches(config, compute, epoch)):
            with compute.autocast():
                step = objective(images, labels, epoch - first_epoch)
            run.check_finite(step.loss, epoch, batch)
            optimizer.zero_grad(set_to_none=True)
            step.loss.backward()
            optimizer.step()
            lr_used = optimizer.param_groups[0]["lr"]
            if one_cycle is not None:
                one_cycle.step()
            sums["loss"] += step.loss.item() * len(labels)
            for name, value in step.parts.items():
                sums[name] += value.item() * len(labels)
            if step.logits is not None:
                sums["accuracy"] += (step.logits.argmax(1) == labels).sum().item()
        seconds = time.perf_counter() - start
        means = {name: total / count for name, total in sums.items()}
        run.log(epoch, phase, {**means, "lr": lr_used, "images_per_second": count / seconds})
        shown = ", ".join(f"{'train accuracy' if k == 'accuracy' else k} {v:.4f}" for k, v in means.items())
        last = epoch == first_epoch + epochs - 1
        print(f"epoch {epoch}: {shown}, {seconds:.1f} s, {count / seconds:.0f} images/s{end_epoch(epoch, last)}")


class TestAndSave:
    """An `end_epoch` that tests the network every `--test_every` epochs and after the last, and saves it.

    Args:
        network: what is tested and saved.
    """

    __test__ = False  # no test class

    def __init__(
        self,
        config: SupervisedConfig,
        setup: Setup,
        compute: Compute,
        run: RunDirectory,
        network: Callable[[], Backbone],
    ):
        self.config, self.setup, self.run, self.network = config, setup, run, network
        self.compute = replace(compute, dtype=torch.float32)
        self.metrics: dict[str, float] = {}
        self.path: Path | None = None

    def __call__(self, epoch: int, last: bool) -> str:
        """Returns the end of the epoch's line."""
        if epoch % self.config.test_every and not last:
            return ""
        setup, network = self.setup, self.network()
        outcomes = evaluate_images(
            network, None, setup.data.test, setup.normalisation, self.compute, image_size=setup.image_size
        )
        self.metrics = {"accuracy": outcomes.accuracy}
        self.run.log(epoch, "test", self.metrics)
        self.path = replace(setup, resnet=network).save(self.run, epoch, self.metrics)
        return f", test accuracy {outcomes.accuracy:.4f}"
