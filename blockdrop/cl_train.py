"""Curriculum learning: REINFORCE teaches the policy network which blocks a frozen ResNet can do without.

Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 3.4. In epoch e only the last 1 + e blocks are decided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from agents.curriculum import keep_undecided, num_decided
from agents.estimators import bound_keep_probs, entropy, map_policy, sample_policy, self_critical_loss
from agents.rewards import blockdrop_reward
from blockdrop.console import run_command
from blockdrop.data import derived_seed
from blockdrop.flops import count_flops
from blockdrop.measure import executor
from blockdrop.training.compute import Compute
from blockdrop.training.config import PolicyTrainingConfig, require
from blockdrop.training.policy_epoch import SampledEpoch, finish_epoch
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup, open_training


@dataclass(kw_only=True)
class CurriculumConfig(PolicyTrainingConfig):
    """Flags of `python -m blockdrop.cl_train`."""

    load: tuple[str, ...] = ()
    """Checkpoints or run directories: the trained backbone and, to go on training it, a policy network."""
    policy_init: str | None = None
    """Backbone to start the policy network's trunk from (for 224 px the reference takes a ResNet-18)."""
    lr: float = 1e-3
    """Learning rate (Adam)."""
    max_epochs: int = 10000
    """Epochs to train."""
    beta: float = 0.1
    """Weight of the exploration bonus."""
    cl_step: int = 1
    """Blocks that each epoch adds to those decided, from the last one on."""

    def check(self) -> None:
        super().check()
        require(len(self.load) > 0, "--load: name a trained backbone (python -m blockdrop.pretrain makes one)")
        require(self.beta >= 0 and math.isfinite(self.beta), f"--beta {self.beta}: must be zero or positive")
        require(self.cl_step >= 1, f"--cl_step {self.cl_step}: must be at least 1")


def main(config: CurriculumConfig) -> dict[str, float]:
    """Opens models, data and run directory, and trains; returns the last test's metrics."""
    config.check()
    compute = config.compute()
    setup, run = open_training(config, "cl_train", config.load, backbone=True, policy_init=config.policy_init)
    with run:
        setup.announce("cl_train", compute, run)
        return train(config, setup, compute, run)


def train(config: CurriculumConfig, setup: Setup, compute: Compute, run: RunDirectory) -> dict[str, float]:
    """The training loop; returns the last test's metrics."""
    classifier = executor(setup.resnet, None, compute, engine="torch")  # the same sums whatever ran before
    policy_network = compute.place(setup.policy_network)
    optimizer = torch.optim.Adam(policy_network.parameters(), config.lr, weight_decay=config.wd)
    flops = count_flops(setup.resnet, policy_network, setup.image_size)
    for epoch in range(config.max_epochs):
        decided = num_decided(epoch, classifier.num_blocks, config.cl_step)
        optimizer.param_groups[0]["lr"] = config.step_lr(epoch)
        policy_network.train()
        sampled_epoch = SampledEpoch(flops)
        draws = torch.Generator(compute.device).manual_seed(derived_seed(config.seed, epoch, 1))
        for batch, (images, labels) in enumerate(setup.training_batches(config, compute, epoch)):
            with compute.autocast():
                keep_probs, _ = policy_network(images)  # (N, K)
            bounded = bound_keep_probs(keep_probs, config.alpha)
            policies = torch.stack([sample_policy(bounded, draws), map_policy(keep_probs)])  # (2, N, K)
            policies = keep_undecided(policies, decided)
            logits, _ = classifier(images, policy=policies)  # (2, N, classes)
            reward, baseline = blockdrop_reward(logits.argmax(-1) == labels, policies, config.penalty)
            bonus = entropy(bounded)
            loss = self_critical_loss(bounded, policies[0], reward, baseline, decided) - config.beta * bonus
            run.check_finite(loss, epoch, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            advantage = (reward - baseline).mean()
            sampled_epoch.add(policies[0], logits[0], labels, loss=loss, entropy=bonus, advantage=advantage)
        trained = sampled_epoch.metrics(config.penalty, config.step_lr(epoch))
        tested = finish_epoch(
            setup, run, compute, epoch, trained, config.penalty, config.tests_after(epoch), decided
        )
    assert tested is not None, "the last epoch is always tested"
    metrics, path = tested
    run.finish(metrics)
    print(f"checkpoint: {path}")
    return metrics


if __name__ == "__main__":
    run_command(main, CurriculumConfig, __doc__)
