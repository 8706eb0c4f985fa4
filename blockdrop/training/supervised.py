"""The loop of everything that is trained with SGD on labelled images: a backbone, a student, a stage of one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.data import Data, Normalisation
from blockdrop.dynamic import DynamicNetwork
from blockdrop.measure import evaluate_images
from blockdrop.models.backbone import Backbone
from blockdrop.training.means import Means
from blockdrop.training.session import Session
from blockdrop.training.update import Update


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
    session: Session[Any],
    data: Data,
    normalisation: Normalisation,
    objective: Objective,
    *,
    module: nn.Module,
    parameters: Iterable[Any],
    begin_epoch: Callable[[], object],
    end_epoch: Callable[[int, bool], str],
    epochs: int,
    first_epoch: int = 0,
    lr: float | None = None,
    phase: str = "train",
    adam: bool = False,
    views: int = 0,
) -> None:
    """Minimises the objective for some epochs, logging each: by SGD with Nesterov momentum, or by Adam.

    Of a resumed run, epochs that are over are not run again.

    Args:
        session: whose flags are a `SupervisedConfig`.
        module: holds all that changes.
        parameters: tensors or parameter groups, as an optimiser takes them.
        begin_epoch: puts the networks into the mode that training wants.
        end_epoch: (epoch, whether it is the last) to what its line on the terminal ends with: tests and saves.
        first_epoch: its number, for logs and for the seed of its augmentation.
        lr: peak or initial learning rate; default: the flag's.
        phase: what the metrics are logged under.
        adam: Adam without weight decay, for losses whose gradients have another scale than a cross-entropy's.
        views: epochs after which the same augmented batches come again; 0: never.
    Raises:
        NumericalError: the loss is no longer finite.
    """
    config, compute, run = session.config, session.compute, session.run
    peak = config.lr if lr is None else lr
    optimizer: torch.optim.Optimizer
    if adam:
        optimizer = torch.optim.Adam(parameters, peak)
    else:
        optimizer = torch.optim.SGD(parameters, peak, config.momentum, weight_decay=config.wd, nesterov=True)
    batches = session.count_batches(data.train)
    processes = compute.processes
    update = Update(config, run, batches, [optimizer], {"network": module}, processes)
    one_cycle = None
    if config.one_cycle:
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            peak,
            total_steps=max(8, batches * epochs),  # torch divides by zero at four
            pct_start=0.25,
            cycle_momentum=False,
        )
    state = run.state
    state.track(module=module, optimizer=optimizer, one_cycle=one_cycle)
    enough = functools.partial(run.stalled, config.patience, first_epoch)
    for epoch in state.epochs(first_epoch + epochs, first_epoch, enough):
        begin_epoch()
        if one_cycle is None:
            for group in optimizer.param_groups:
                group["lr"] = peak * config.step_factor(epoch - first_epoch)
        means = Means()
        state.track_epoch(means=means)
        view = epoch if views == 0 else epoch % views
        load = functools.partial(session.batches, data.train, normalisation, epoch, view=view)
        for batch, (images, labels) in state.batches(load):
            with compute.autocast():
                step = objective(images, labels, epoch - first_epoch)
            parts = {"loss": step.loss, **step.parts}
            if step.logits is not None:
                parts["accuracy"] = (step.logits.argmax(1) == labels).double().mean()
            rows, *sums = processes.sum(len(labels), *(len(labels) * value.item() for value in parts.values()))
            update(step.loss * (len(labels) / rows), epoch, batch)
            means.add(int(rows), **{name: total / rows for name, total in zip(parts, sums, strict=True)})
            means.last["lr"] = optimizer.param_groups[0]["lr"]
            if one_cycle is not None:
                with warnings.catch_warnings():  # with --accumulate the first steps come before the optimiser's
                    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                    one_cycle.step()
        found, seconds = means.means(), means.seconds
        run.log(epoch, phase, {**found, **means.last, "images_per_second": means.images / seconds})
        shown = ", ".join(f"{'train accuracy' if k == 'accuracy' else k} {v:.4f}" for k, v in found.items())
        line = f"epoch {epoch}: {shown}, {seconds:.1f} s, {means.images / seconds:.0f} images/s"
        session.report_bad_images(data)
        print(f"{line}{end_epoch(epoch, epoch == first_epoch + epochs - 1)}")


class TestAndSave:
    """An `end_epoch` that tests a network every `--test_every` epochs and after the last, and saves it.

    Args:
        dynamic: what is known of the network; has no policy network.
        network: what is tested and saved in place of `dynamic`'s own, if that isn't trained as it is.
    """

    __test__ = False  # no test class

    def __init__(
        self,
        session: Session[Any],
        dynamic: DynamicNetwork,
        data: Data,
        network: Callable[[], Backbone] | None = None,
    ):
        self.session, self.dynamic, self.data, self.network = session, dynamic, data, network

    def __call__(self, epoch: int, last: bool) -> str:
        """Returns the end of the epoch's line."""
        if epoch % self.session.config.test_every and not last:
            return ""
        dynamic = self.dynamic if self.network is None else self.dynamic.with_network(self.network())
        return test_and_save(dynamic, self.data, self.session, epoch)


def test_and_save(dynamic: DynamicNetwork, data: Data, session: Session[Any], epoch: int) -> str:
    """Tests a network in float32, logs and saves it; returns what there is to say."""
    outcomes = evaluate_images(dynamic, data.test, session.compute.in_float32())
    metrics = {"accuracy": outcomes.accuracy}
    session.run.log(epoch, "test", metrics)
    session.save(dynamic, epoch, metrics)
    return f", test accuracy {outcomes.accuracy:.4f}"


test_and_save.__test__ = False  # type: ignore[attr-defined]  # no test
