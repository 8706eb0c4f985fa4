"""From a loss to new weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from blockdrop.processes import ALONE, Processes
from blockdrop.training.config import TrainingConfig
from blockdrop.training.run_directory import RunDirectory


class Update:
    """The step that every training loop ends a batch with: backward, `--accumulate`, `--clip_grad`, optimisers.

    Args:
        batches: how many an epoch has.
        optimizers: each steps.
        modules: by name, whose parameters they hold; for the message about a gradient that isn't finite.
        processes: whose gradients are summed, and whose BatchNorm statistics are averaged after each step: so they
            are the same in all, whichever of them saves the state.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run: RunDirectory,
        batches: int,
        optimizers: Iterable[torch.optim.Optimizer],
        modules: Mapping[str, nn.Module],
        processes: Processes = ALONE,
    ):
        self.processes = processes
        self.accumulate, self.limit = config.accumulate, config.clip_grad
        self.run, self.batches, self.optimizers, self.modules = run, batches, list(optimizers), modules
        groups = itertools.chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers)
        self.parameters = [parameter for group in groups for parameter in group["params"]]

    def __call__(self, loss: Tensor, epoch: int, batch: int) -> None:
        """Takes a step, or with --accumulate adds to the gradient of the next.

        Args:
            loss: scalar, a mean over the batch; of several processes their sum is.
        Raises:
            NumericalError: the loss or a gradient isn't finite; no step is taken.
        """
        self.run.check_finite(loss, "the loss", epoch, batch)
        first = batch - batch % self.accumulate
        if batch == first:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        together = min(self.accumulate, self.batches - first)
        if loss.requires_grad:  # else all that the batch ran is frozen
            (loss / together if together > 1 else loss).backward()
        if batch + 1 < first + together:
            return
        self.processes.sum_gradients(self.parameters)
        norms = [p.grad.norm() for p in self.parameters if p.grad is not None]
        if norms and not bool(torch.isfinite(torch.stack(norms)).all()):
            self._name_the_culprit(epoch, batch)
        if self.limit is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.limit)
        for optimizer in self.optimizers:
            optimizer.step()
        self.processes.average_statistics(self.modules.values())

    def _name_the_culprit(self, epoch: int, batch: int) -> None:
        for part, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    self.run.check_finite(parameter.grad, f"the gradient of the {part}'s {name}", epoch, batch)
