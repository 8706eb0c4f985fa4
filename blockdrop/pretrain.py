"""Train a backbone, or fine-tune one from weights of any dialect.

Cross-entropy, SGD with Nesterov momentum, one-cycle or step schedule; random crops and flips.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

from blockdrop.console import run_command
from blockdrop.measure import evaluate_images
from blockdrop.training.compute import Compute
from blockdrop.training.config import TrainingConfig, require
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup, open_training


@dataclass(kw_only=True)
class PretrainConfig(TrainingConfig):
    """Flags of `python -m blockdrop.pretrain`."""

    init: tuple[str, ...] = ()
    """Checkpoint to start from: ours, the BlockDrop reference's or torchvision-style."""
    new_head: bool = False
    """Start with a fresh classifier head (other classes than the checkpoint's)."""
    lr: float = 0.1
    """Learning rate; under one_cycle its peak."""
    wd: float = 5e-4
    """Weight decay."""
    batch_size: int = 128
    """Images per batch."""
    max_epochs: int = 200
    """Epochs to train."""
    epoch_step: int = 60
    """Under step: multiply the learning rate by lr_decay_ratio every so many epochs."""
    schedule: Literal["one_cycle", "step"] = "one_cycle"
    """Learning rate: one_cycle (up for a quarter of the run, then down) or step."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    momentum: float = 0.9
    """SGD momentum (Nesterov)."""

    def check(self) -> None:
        super().check()
        require(0 <= self.label_smoothing < 1, f"--label_smoothing {self.label_smoothing}: must be in [0, 1)")
        require(0 < self.momentum < 1, f"--momentum {self.momentum}: must be in (0, 1)")


def main(config: PretrainConfig) -> dict[str, float]:
    """Opens models, data and run directory, and trains; returns the last test's metrics."""
    config.check()
    compute = config.compute()
    setup, run = open_training(config, "pretrain", config.init, config.new_head)
    with run:
        setup.has_policy = False
        setup.announce("pretrain", compute, run)
        return train(config, setup, compute, run)


def train(config: PretrainConfig, setup: Setup, compute: Compute, run: RunDirectory) -> dict[str, float]:
    """The training loop; returns the last test's metrics."""
    resnet, data = compute.place(setup.resnet), setup.data
    optimizer = torch.optim.SGD(
        resnet.parameters(), config.lr, config.momentum, weight_decay=config.wd, nesterov=True
    )
    steps = -(-len(data.train) // config.batch_size)
    one_cycle = None
    if config.schedule == "one_cycle":
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.lr,
            total_steps=max(8, steps * config.max_epochs),  # torch divides by zero at four
            pct_start=0.25,
            cycle_momentum=False,
        )

    metrics: dict[str, float] = {}
    for epoch in range(config.max_epochs):
        resnet.train()
        if one_cycle is None:
            optimizer.param_groups[0]["lr"] = config.step_lr(epoch)
        total_loss = correct = 0.0
        start = time.perf_counter()
        for batch, (images, labels) in enumerate(setup.training_batches(config, compute, epoch)):
            with compute.autocast():
                logits = resnet(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            run.check_finite(loss, epoch, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            if one_cycle is not None:
                one_cycle.step()
        seconds = time.perf_counter() - start
        trained = {
            "loss": total_loss / len(data.train),
            "accuracy": correct / len(data.train),
            "lr": optimizer.param_groups[0]["lr"],
            "images_per_second": len(data.train) / seconds,
        }
        run.log(epoch, "train", trained)
        line = (
            f"epoch {epoch}: loss {trained['loss']:.4f}, train accuracy {trained['accuracy']:.4f}, {seconds:.1f} s"
        )
        line += f", {trained['images_per_second']:.0f} images/s"
        if config.tests_after(epoch):
            outcomes = evaluate_images(
                resnet,
                None,
                data.test,
                setup.normalisation,
                replace(compute, dtype=torch.float32),
                image_size=setup.image_size,
            )
            metrics = {"accuracy": outcomes.accuracy}
            run.log(epoch, "test", metrics)
            line += f", test accuracy {outcomes.accuracy:.4f}"
            path = setup.save(run, epoch, metrics)
        print(line)
    run.finish(metrics)
    print(f"checkpoint: {path}")
    return metrics


if __name__ == "__main__":
    run_command(main, PretrainConfig, __doc__)
