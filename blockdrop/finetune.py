"""Joint fine-tuning: REINFORCE for the policy network, cross-entropy of the sampled policies for both.

Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 3.4. Blocks run just for the images that keep them, so a
block's BatchNorm sees those images alone, in training as at inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from agents.estimators import bound_keep_probs, entropy, map_policy, sample_policy, self_critical_loss
from agents.rewards import blockdrop_reward
from blockdrop.console import run_command
from blockdrop.data import derived_seed
from blockdrop.flops import count_flops
from blockdrop.models.resnet import Execution
from blockdrop.training.compute import Compute
from blockdrop.training.config import PolicyTrainingConfig, require
from blockdrop.training.policy_epoch import SampledEpoch, finish_epoch
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup, open_training


@dataclass(kw_only=True)
class FinetuneConfig(PolicyTrainingConfig):
    """Flags of `python -m blockdrop.finetune`."""

    pretrained: tuple[str, ...] = ()
    """Checkpoints or run directories of curriculum training: policy network and backbone, in one or in two."""
    load: tuple[str, ...] = ()
    """Checkpoints of fine-tuning to go on from; they win over --pretrained."""
    lr: float = 1e-4
    """Learning rate (Adam)."""
    max_epochs: int = 2000
    """Epochs to train."""
    epoch_step: int = 1600
    """Multiply the learning rate by lr_decay_ratio every so many epochs."""
    penalty: float = -5.0
    """Reward of a wrong prediction: it sets the trade-off of accuracy and blocks."""
    execution: Execution = "sparse"
    """sparse runs just the blocks that are kept; masked runs all and selects, as the reference does (slower)."""

    def check(self) -> None:
        super().check()
        require(bool(self.pretrained or self.load), "--pretrained: name a checkpoint of curriculum training")


def main(config: FinetuneConfig) -> dict[str, float]:
    """Opens models, data and run directory, and trains; returns the last test's metrics."""
    config.check()
    compute, paths = config.compute(), (*config.pretrained, *config.load)
    setup, run = open_training(config, "finetune", paths, backbone=True, policy=True)
    with run:
        setup.announce("finetune", compute, run)
        return train(config, setup, compute, run)


def train(config: FinetuneConfig, setup: Setup, compute: Compute, run: RunDirectory) -> dict[str, float]:
    """The training loop; returns the last test's metrics."""
    resnet, policy_network = compute.place(setup.resnet), compute.place(setup.policy_network)
    parameters = [*resnet.parameters(), *policy_network.parameters()]
    optimizer = torch.optim.Adam(parameters, config.lr, weight_decay=config.wd)
    flops = count_flops(resnet, policy_network, setup.image_size)
    for epoch in range(config.max_epochs):
        optimizer.param_groups[0]["lr"] = config.step_lr(epoch)
        resnet.train()
        policy_network.train()
        sampled_epoch = SampledEpoch(flops)
        draws = torch.Generator(compute.device).manual_seed(derived_seed(config.seed, epoch, 1))
        for batch, (images, labels) in enumerate(setup.training_batches(config, compute, epoch)):
            with compute.autocast():
                keep_probs, _ = policy_network(images)  # (N, K)
            bounded = bound_keep_probs(keep_probs, config.alpha)
            policy, greedy = sample_policy(bounded, draws), map_policy(keep_probs)  # (N, K)
            with torch.no_grad(), compute.autocast():
                greedy_logits = resnet(images, greedy, config.execution)
            with compute.autocast():
                logits = resnet(images, policy, config.execution)  # (N, classes)
            reward = blockdrop_reward(logits.argmax(1) == labels, policy, config.penalty)
            baseline = blockdrop_reward(greedy_logits.argmax(1) == labels, greedy, config.penalty)
            cross_entropy = F.cross_entropy(logits.float(), labels)
            loss = self_critical_loss(bounded, policy, reward, baseline) + cross_entropy
            run.check_finite(loss, epoch, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            sampled_epoch.add(
                policy,
                logits.detach(),
                labels,
                loss=loss,
                cross_entropy=cross_entropy,
                entropy=entropy(bounded.detach()),
                advantage=(reward - baseline).mean(),
            )
        trained = sampled_epoch.metrics(config.penalty, config.step_lr(epoch))
        tested = finish_epoch(setup, run, compute, epoch, trained, config.penalty, config.tests_after(epoch))
    assert tested is not None, "the last epoch is always tested"
    metrics, path = tested
    run.finish(metrics)
    print(f"checkpoint: {path}")
    return metrics


if __name__ == "__main__":
    run_command(main, FinetuneConfig, __doc__)
