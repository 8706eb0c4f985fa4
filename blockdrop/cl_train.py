"""Curriculum learning: REINFORCE teaches the policy network which blocks a frozen ResNet can do without.

Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 3.4. In epoch e only the last 1 + e blocks are decided. The
reference's recipe is the default; --estimator, --reward and --target_flops choose others of the same family.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.budget import BudgetPrice
from agents.curriculum import decide_last, keep_undecided, num_decided
from agents.estimators import make_estimator
from agents.names import EstimatorName
from agents.policies import bound_keep_probs, entropy, map_policy
from agents.rewards import Reward
from blockdrop.console import run_command
from blockdrop.data import derived_seed
from blockdrop.errors import require
from blockdrop.flops import count_flops
from blockdrop.measure import executor
from blockdrop.ranges import CheckpointName, Count, NotNegative, Positive
from blockdrop.training.compute import Compute
from blockdrop.training.config import Groups, PolicyTrainingConfig, Recipe, check_estimator
from blockdrop.training.policy_epoch import SampledEpoch, finish_epoch
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup, open_training
from blockdrop.training.update import Update


@dataclass(kw_only=True)
class CurriculumConfig(PolicyTrainingConfig):
    """Flags of `python -m blockdrop.cl_train`."""

    RECIPES: ClassVar[dict[str, Recipe]] = {
        "reference": {},
        "fast": {
            "policy_net": "stem",
            "estimator": "leave_one_out",
            "samples": 4,
            "cl_step": 4,
            "max_epochs": 20,
            "test_every": 5,
        },
    }
    GROUPS: ClassVar[Groups] = {"policy learning": ("policy_init", "beta"), "who learns when": ("cl_step",)}

    load: tuple[CheckpointName, ...] = ()
    """Checkpoints or run directories: the trained backbone and, to continue its training, a policy network."""
    policy_init: CheckpointName | None = None
    """Checkpoint of a backbone whose first blocks start the policy network's (for 224 px the reference takes a
    ResNet-18). Default: fresh weights."""
    lr: Positive = 1e-3
    """Learning rate of Adam."""
    max_epochs: Count = 10000
    estimator: EstimatorName = "self_critical"
    """Estimator that turns the rewards of sampled policies into a gradient."""
    beta: NotNegative = 0.1
    """Weight of the exploration bonus, the entropy of the keep probabilities."""
    cl_step: Count = 1
    """Number of blocks that each epoch adds to those that the policy network decides, from the last one on."""

    def check(self) -> None:
        super().check()
        check_estimator(self.estimator, self.samples)
        require(len(self.load) > 0, "--load: name a trained backbone (python -m blockdrop.pretrain makes one)")


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
    compute.place(setup.resnet)
    classifier = executor(setup.resnet, None, compute, engine="torch")  # the same sums whatever ran before
    policy_network = compute.place(setup.policy_network)
    optimizer = torch.optim.Adam(policy_network.own_parameters(), config.lr, weight_decay=config.wd)
    flops = count_flops(setup.resnet, policy_network, setup.image_size)
    estimator = make_estimator(config.estimator, config.samples)
    reward = Reward(config.reward, config.penalty, torch.tensor(flops.blocks))
    budget = None if config.target_flops is None else BudgetPrice(config.target_flops, config.price_rate)
    processes, networks = compute.processes, {"policy network": policy_network}
    update = Update(config, run, setup.count_batches(config), [optimizer], networks, processes)
    state = run.state
    state.track(policy_network=policy_network, optimizer=optimizer, budget=budget)
    for epoch in state.epochs(config.max_epochs):
        decided = num_decided(epoch, classifier.num_blocks, config.cl_step)
        optimizer.param_groups[0]["lr"] = config.step_lr(epoch)
        policy_network.train()
        sampled_epoch = SampledEpoch(flops)
        draws = torch.Generator(compute.device).manual_seed(derived_seed(config.seed, epoch, 1))
        state.track_epoch(sampled_epoch=sampled_epoch, draws=draws)
        load = functools.partial(setup.training_batches, config, compute, epoch)
        for batch, (images, labels) in state.batches(load):
            executed = classifier.block_executions
            with compute.autocast():
                keep_probs, values = map(processes.gather, policy_network(images))  # (N, K), (N, 1)
            labels = processes.gather(labels)
            bounded = bound_keep_probs(keep_probs, config.alpha)
            chances = decide_last(bounded, decided)
            policies = estimator.draw(chances.detach(), draws)  # (S, N, K)
            logits, _ = classifier(images, policy=policies[:, processes.rows(len(images))])
            logits = processes.gather(logits, dim=1)  # (S, N, classes)
            rewards = reward(logits, labels, policies, None if budget is None else budget.value)  # (S, N)
            value = (values.float().squeeze(1),) if estimator.wants_values else ()
            bonus = entropy(bounded)
            loss = estimator.loss(chances, policies, rewards, *value) - config.beta * bonus
            update(loss / processes.size, epoch, batch)
            means = {"loss": loss, "entropy": bonus}
            if len(rewards) > 1:
                means["advantage"] = (rewards[0] - rewards[1:].mean(0)).mean()
            if budget is not None:
                budget.target = max(config.target_after(epoch), flops.least_share(decided))
                greedy = keep_undecided(map_policy(keep_probs), decided)
                spent = flops.per_image(greedy).double().mean() / flops.full
                means |= {"spent": spent, "price": torch.tensor(budget.update(spent.item()))}
            state.counts["block_executions"] += int(processes.sum(classifier.block_executions - executed)[0])
            sampled_epoch.add(policies[0], logits[0], labels, **means)
        sampled_epoch.block_executions = state.counts["block_executions"]
        trained = sampled_epoch.metrics(config.penalty, config.step_lr(epoch))
        finish_epoch(setup, run, compute, epoch, trained, config.penalty, config.tests_after(epoch), decided)
    return run.finish_with_test()


if __name__ == "__main__":
    run_command(main, CurriculumConfig, __doc__)
