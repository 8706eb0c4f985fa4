"""Joint fine-tuning of the policy network and the ResNet.

Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 3.4: REINFORCE for the policy network, cross-entropy of the
sampled policies for both. Blocks run just for the images that keep them, so a block's BatchNorm sees those images
alone, in training as at inference. The reference's recipe is the default; --recipe fast starts from a plain
backbone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.budget import BudgetPrice
from agents.estimators import Estimator, draw_gates, make_estimator
from agents.names import PATHWISE, EstimatorName, PathwiseName
from agents.policies import bound_keep_probs, entropy, map_policy, policy_information
from agents.policy_network import PolicyNetwork
from agents.rewards import Reward
from blockdrop.console import run_command
from blockdrop.data import Augment, derived_seed
from blockdrop.distillation.hinton import kl_divergence
from blockdrop.errors import require
from blockdrop.flops import count_flops
from blockdrop.measure import executor
from blockdrop.models.resnet import DroppableResNet, block_executions
from blockdrop.names import Execution
from blockdrop.ranges import (
    CheckpointName,
    Count,
    CountOrNone,
    NotNegative,
    Positive,
    Probability,
    Range,
)
from blockdrop.training.batchnorm import StaticDecider, recalibrate, rows_kept_whole
from blockdrop.training.compute import Compute
from blockdrop.training.config import Groups, PolicyTrainingConfig, Recipe, check_estimator
from blockdrop.training.policies import OperatingPoint
from blockdrop.training.policy_epoch import SampledEpoch, finish_epoch
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.setup import Setup, open_training
from blockdrop.training.update import Update


@dataclass(kw_only=True)
class FinetuneConfig(PolicyTrainingConfig):
    """Flags of `python -m blockdrop.finetune`."""

    RECIPES: ClassVar[dict[str, Recipe]] = {
        "reference": {},
        "fast": {
            "policy_net": "stem",
            "initial_keep": 0.9,
            "estimator": "kept_straight_through",
            "alpha": 0.95,
            "target_flops": 0.59,
            "anneal": 0.2,
            "distill": 0.5,
            "settled_distill": 4.0,
            "distill_temperature": 4.0,
            "optimizer": "sgd",
            "resnet_lr": 0.01,
            "bias_lr": 1e-2,
            "schedule": "cosine",
            "batch_size": 128,
            "max_epochs": 15,
            "settle": 0.67,
            "rewind": True,
            "recalibrate": 5000,
            "test_every": 5,
        },
    }

    GROUPS: ClassVar[Groups] = {
        "policy learning": ("temperature", "information", "initial_keep", "policy"),
        "who learns when": ("freeze_epochs", "alternate", "settle", "rewind", "shuffle_policies"),
        "teaching by the full network": ("distill", "settled_distill", "distill_temperature", "keep_full"),
        "optimisation": ("bias_lr", "optimizer", "resnet_lr", "resnet_wd"),
        "execution": ("execution", "recalibrate"),
    }

    pretrained: tuple[CheckpointName, ...] = ()
    """Checkpoints or run directories of curriculum training: policy network and backbone, in one or in two. With
    --initial_keep or --recipe fast a backbone is enough."""
    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of fine-tuning to continue from. They win over --pretrained."""
    lr: Positive = 1e-4
    """Learning rate of Adam, which trains the policy network and, with --optimizer adam, the ResNet."""
    bias_lr: Positive | None = None
    """Learning rate of the bias of the policy network's logits, by which the policies of all images move together.
    Default: --lr."""
    max_epochs: Count = 2000
    epoch_step: Count = 1600
    penalty: Annotated[float, Range()] = -5.0
    execution: Execution = "sparse"
    """How blocks run in training: sparse runs only the blocks that are kept; masked runs all and selects, as the
    reference does (slower)."""
    policy: str | None = None
    """Policy under which the ResNet is fine-tuned while no policy is learned: full, first_k:K, random_k:K,
    dist_k:K (K blocks drawn by the loaded policy network's usage; dist_k:K:FILE: by that in a file of evaluate
    --json) or a file with a line of 0 and 1. Flags about learning a policy then do nothing. Default: policies are
    learned."""
    estimator: EstimatorName | PathwiseName = "self_critical"
    """How the policy network learns: from the rewards of sampled policies, as in cl_train, or pathwise
    (straight_through, kept_straight_through, gumbel), by the gradient of the loss itself."""
    temperature: Positive = 1.0
    """Temperature of the Gumbel relaxation, for --estimator gumbel."""
    initial_keep: Probability | None = None
    """Keep probability that a fresh policy network starts from, if no checkpoint holds one. Default: a checkpoint
    must hold one."""
    information: NotNegative = 0.0
    """Weight of a bonus for policies that differ between images: their mutual information with the image, in
    nats."""
    distill: NotNegative = 0.0
    """Weight of the divergence from the logits of the full network as it was loaded (self-distillation)."""
    settled_distill: NotNegative | None = None
    """Weight of the divergence of --distill once the policies have settled (--settle, --policy) and no price on
    computation has to keep up with it. Default: --distill."""
    distill_temperature: Positive = 2.0
    """Temperature that softens both networks' logits in the divergence of --distill, which is multiplied by its
    square."""
    keep_full: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of each batch for which all blocks run, so that the full network keeps its accuracy."""
    freeze_epochs: CountOrNone = 0
    """Number of epochs at the start in which the policy network learns alone."""
    alternate: bool = False
    """After --freeze_epochs let the two networks learn in turns, step by step, instead of together."""
    shuffle_policies: bool = False
    """Give each image the policy of another one, to measure what policies are worth that know nothing of their
    image."""
    settle: Annotated[float, Range(least=0, most=1)] = 0.0
    """Share of the epochs, at the end, in which the ResNet learns alone, under the policies that it will have in
    tests. The policy network learns in the first epoch at least, unless this is 1."""
    rewind: bool = False
    """When the policies settle, give the ResNet back the weights that it was loaded with and start the learning
    rate's schedule again (rewinding, Renda et al. 2020, arXiv:2003.02389). What the policy network shares with the
    ResNet doesn't learn."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the ResNet: adam (the same as the policy network's) or sgd with Nesterov momentum (--resnet_lr,
    --resnet_wd)."""
    resnet_lr: Positive = 0.02
    """Learning rate of the ResNet with --optimizer sgd."""
    resnet_wd: NotNegative = 5e-4
    """Weight decay of the ResNet with --optimizer sgd."""
    schedule: Literal["step", "cosine"] = "step"
    """Course of the learning rates: step (they fall every --epoch_step) or cosine (they rise for a short time,
    then fall to zero along a cosine)."""
    recalibrate: CountOrNone = 0
    """Number of training images that BatchNorm's statistics are computed from again, under the policies of tests,
    before each test."""

    def check(self) -> None:
        super().check()
        backbone_will_do = self.initial_keep is not None or self.policy is not None
        start = "that has a trained backbone" if backbone_will_do else "of curriculum training"
        require(bool(self.pretrained or self.load), f"--pretrained: name a checkpoint {start}")
        if self.estimator not in PATHWISE:
            check_estimator(self.estimator, self.samples)
        pathwise, target = self.estimator in PATHWISE, self.target_flops is not None
        self.check_meaning("reward", not pathwise, "estimators from rewards")
        self.check_meaning("temperature", self.estimator == "gumbel", "--estimator gumbel")
        self.check_meaning("distill_temperature", self.distills, "--distill")
        for flag in ("resnet_lr", "resnet_wd"):
            self.check_meaning(flag, self.optimizer == "sgd", "--optimizer sgd")
        for flag in ("epoch_step", "lr_decay_ratio"):
            self.check_meaning(flag, self.schedule == "step", "--schedule step")
        require(
            self.penalty != 0 or not (pathwise and not target),
            "--penalty 0: leaves a pathwise estimator without a trade-off; pass another, or --target_flops",
        )
        require(
            self.keep_full == 0 or self.keep_full * self.batch_size >= 1,
            f"--keep_full {self.keep_full}: not even one image of --batch_size {self.batch_size}",
        )
        require(
            self.policy is not None or self.freeze_epochs <= self.settled_from,
            f"--freeze_epochs {self.freeze_epochs} and --settle {self.settle}: more than the --max_epochs "
            f"{self.max_epochs}",
        )
        has_settled = self.settled_from < self.max_epochs
        for flag in ("rewind", "settled_distill"):
            self.check_meaning(flag, has_settled, "--settle")
        require(
            not (self.estimator in ("straight_through", "gumbel") and self.execution == "sparse"),
            f"--estimator {self.estimator}: needs what dropped blocks would do; pass --execution masked, or "
            "--estimator kept_straight_through",
        )

    def learners(self, epoch: int, batch: int) -> tuple[bool, bool]:
        """Whether the ResNet learns from this batch, and whether the policy network does."""
        if epoch >= self.settled_from:
            return True, False
        if epoch < self.freeze_epochs:
            return False, True
        second = bool(batch // self.accumulate % 2)  # batches of one step go to the same network
        return (not second, second) if self.alternate else (True, True)

    @property
    def settled_from(self) -> int:
        """The first epoch in which the policy network doesn't learn any more: not before the second, unless it
        learns nothing at all."""
        if self.policy is not None or self.settle == 1:
            return 0
        return max(1, round((1 - self.settle) * self.max_epochs))

    @property
    def rewinds(self) -> bool:
        """Whether --rewind has anything to do."""
        return self.rewind and self.settled_from < self.max_epochs

    def distill_weight(self, epoch: int) -> float:
        """Weight of the divergence from the full network's logits."""
        if self.settled_distill is None or epoch < self.settled_from:
            return self.distill
        return self.settled_distill

    @property
    def distills(self) -> bool:
        """Whether there ever is such a term."""
        return self.distill > 0 or bool(self.settled_distill)

    def lr_factor(self, epoch: int, progress: float) -> float:
        """What learning rates are multiplied by, `progress` of the run (0 to 1) done."""
        if self.rewind and epoch >= self.settled_from:
            start = self.settled_from / self.max_epochs
            epoch, progress = epoch - self.settled_from, (progress - start) / (1 - start)
        if self.schedule == "step":
            return self.step_factor(epoch)
        return min(1.0, progress / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2


WARM_UP = 0.05
"""Share of the run in which cosine's learning rates rise."""


def main(config: FinetuneConfig) -> dict[str, float]:
    """Opens models, data and run directory, and trains; returns the last test's metrics."""
    config.check()
    compute, paths = config.compute(), (*config.pretrained, *config.load)
    setup, run = open_training(
        config,
        "finetune",
        paths,
        backbone=True,
        policy=config.initial_keep is None and config.policy is None,
        initial_keep=config.initial_keep,
        static=config.policy,
    )
    with run:
        setup.announce("finetune", compute, run)
        if config.policy is None and config.settle:
            rewound = ", the ResNet from the weights as loaded" if config.rewinds else ""
            learned, rest = config.settled_from, config.max_epochs - config.settled_from
            print(f"policies: learned for {learned} epochs, then settled for {rest}{rewound}")
        return train(config, setup, compute, run)


def train(config: FinetuneConfig, setup: Setup, compute: Compute, run: RunDirectory) -> dict[str, float]:
    """The training loop; returns the last test's metrics."""
    resnet, policy_network = compute.place(setup.resnet), compute.place(setup.policy_network)
    assert isinstance(resnet, DroppableResNet), "checked with the flags"
    static = setup.static
    flops = count_flops(resnet, None if static else policy_network, setup.image_size)
    teacher = executor(copy.deepcopy(resnet), None, compute, engine="torch") if config.distills else None
    optimizers = make_optimizers(config, resnet, policy_network)
    rates = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
    target = config.target_flops if static is None else None
    budget = None if target is None else BudgetPrice(target, config.price_rate)
    learn = make_learner(config, resnet, compute, torch.tensor(flops.blocks, device=compute.device))
    batches = setup.count_batches(config)
    networks = {"ResNet": resnet, "policy network": policy_network}
    loaded = copy.deepcopy(resnet.state_dict()) if config.rewinds else None
    fixed = policy_network.borrowed if config.rewinds and static is None else ()
    processes = compute.processes
    update = Update(config, run, batches, optimizers.values(), networks, processes)
    state = run.state
    point = OperatingPoint()
    if config.settled_from == 0 and static is None:  # the policies that were loaded are those to learn under
        point = OperatingPoint(setup.stored_threshold)
        if target is not None:
            point.choose(target, policy_network, setup, compute, flops)
    state.track(resnet=resnet, policy_network=policy_network, budget=budget, point=point, **optimizers)
    for epoch in state.epochs(config.max_epochs):
        sampled_epoch = SampledEpoch(flops)
        draws = torch.Generator(compute.device).manual_seed(derived_seed(config.seed, epoch, 1))
        static_draws = torch.Generator().manual_seed(derived_seed(config.seed, epoch, 2))
        settled, distill_weight = epoch >= config.settled_from, config.distill_weight(epoch)
        state.track_epoch(sampled_epoch=sampled_epoch, draws=draws, static_draws=static_draws)
        load = functools.partial(setup.training_batches, config, compute, epoch)
        for batch, (images, labels) in state.batches(load):
            factor = config.lr_factor(epoch, (epoch + (batch + 1) / batches) / config.max_epochs)
            for name, optimizer in optimizers.items():
                for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                    group["lr"] = factor * rate
            train_resnet, train_policy = config.learners(epoch, batch)
            price = None if budget is None else budget.value
            policy_network.train(train_policy)
            resnet.train(train_resnet).requires_grad_(train_resnet)  # last, as the two may share the stem
            for module in fixed:
                module.eval().requires_grad_(False)
            labels = processes.gather(labels)
            if static is not None:
                keep_probs = static.draw(len(labels), static_draws).float().to(compute.device)  # (N, K)
            else:
                # settled policies are those of the tests, also where a probability is next to the threshold
                precision = contextlib.nullcontext() if settled else compute.autocast()
                with torch.set_grad_enabled(train_policy), precision:
                    keep_probs, values = map(processes.gather, policy_network(images))  # (N, K), (N, 1)
            if config.shuffle_policies and static is None:
                order = torch.randperm(len(labels), generator=draws, device=compute.device)
                keep_probs, values = keep_probs[order], values[order]
            if train_policy:
                step = learn(images, labels, keep_probs, values, draws, price)
            else:
                step = learn_settled(config, resnet, compute, images, labels, keep_probs, point.threshold)
            loss = step.loss
            if teacher is not None and distill_weight:
                soften = config.distill_temperature
                wanted = processes.gather(teacher(images)[0])
                step.parts["divergence"] = kl_divergence(step.logits.float(), wanted, soften)
                loss = loss + distill_weight * soften**2 * step.parts["divergence"]
                state.counts["block_executions"] += len(labels) * resnet.num_blocks
            update(loss / processes.size, epoch, batch)
            if budget is not None and train_policy:
                budget.target = config.target_after(epoch + batch / batches)
                spent = flops.per_image(map_policy(keep_probs)).double().mean() / flops.full
                step.parts |= {"spent": spent, "price": torch.tensor(budget.update(spent.item()))}
            state.counts["block_executions"] += step.executions
            sampled_epoch.add(step.policy, step.logits.detach(), labels, loss=loss, **step.parts)
        test = config.tests_after(epoch)
        if target is not None and epoch + 1 >= config.settled_from:
            point.choose(target, policy_network, setup, compute, flops)
        if test and config.recalibrate and epoch >= config.freeze_epochs:
            some = recalibration_images(config, setup, compute)
            how = (config.keep_full, config.execution, config.shuffle_policies, point.threshold)
            decider = policy_network if static is None else StaticDecider(static)
            state.counts["block_executions"] += recalibrate(resnet, decider, some, *how)
        sampled_epoch.block_executions = state.counts["block_executions"]
        factor = config.lr_factor(epoch, (epoch + 1) / config.max_epochs)
        trained = sampled_epoch.metrics(config.penalty, factor * config.lr)
        finish_epoch(
            setup,
            run,
            compute,
            epoch,
            trained,
            config.penalty,
            test,
            point=point,
            shuffle_policies=config.shuffle_policies,
        )
        if loaded is not None and epoch + 1 == config.settled_from:
            resnet.load_state_dict(loaded)
            for optimizer in optimizers.values():
                optimizer.state.clear()
    resnet.requires_grad_(True)
    return run.finish_with_test()


@dataclass
class JointStep:
    """What a batch gave."""

    loss: Tensor
    """Scalar."""
    policy: Tensor
    """bool (N, K), the one whose logits count."""
    logits: Tensor
    """(N, classes), with gradient."""
    parts: dict[str, Tensor]
    """Scalars worth logging, means over the batch."""
    executions: int
    """How many times a block ran for a row; a backward pass counts twice."""


Learner = Callable[[Tensor, Tensor, Tensor, Tensor, torch.Generator, float | None], JointStep]
"""(images, labels (N,), keep probabilities (N, K), values (N, 1), generator of draws, price) to a step. All are of
the whole batch, but the images, which are this process's share."""


def make_learner(config: FinetuneConfig, resnet: DroppableResNet, compute: Compute, costs: Tensor) -> Learner:
    """The way of learning that the flags ask for.

    Args:
        costs: (K,), FLOPs of each block.
    """
    if config.estimator in PATHWISE:
        return functools.partial(learn_pathwise, config, resnet, compute, costs)
    estimator = make_estimator(config.estimator, config.samples)
    return functools.partial(
        learn_from_rewards, config, resnet, compute, estimator, Reward(config.reward, config.penalty, costs)
    )


def learn_from_rewards(
    config: FinetuneConfig,
    resnet: DroppableResNet,
    compute: Compute,
    estimator: Estimator,
    reward: Reward,
    images: Tensor,
    labels: Tensor,
    keep_probs: Tensor,
    values: Tensor,
    draws: torch.Generator,
    price: float | None,
) -> JointStep:
    """REINFORCE for the policy network, cross-entropy of the sampled policies for the ResNet."""
    bounded = bound_keep_probs(keep_probs, config.alpha)
    policies = estimator.draw(bounded.detach(), draws)  # (S, N, K)
    whole = rows_kept_whole(config.keep_full, keep_probs)
    policies[:, :whole] = True
    sampled, others = policies[: estimator.samples], policies[estimator.samples :]
    found = []
    if len(others):
        with torch.no_grad(), compute.autocast():
            found.append(run_share(resnet, compute, images, others, config.execution))
    with compute.autocast():  # of its own: some versions of torch keep weights without gradient from the one above
        logits = run_share(resnet, compute, images, sampled, config.execution)  # (samples, N, classes)
    rewards = reward(torch.cat([logits.detach(), *found]), labels, policies, price)  # (S, N)
    value = (values.float().squeeze(1)[whole:],) if estimator.wants_values else ()
    cross_entropy = F.cross_entropy(logits.float().flatten(0, 1), labels.repeat(len(sampled)))
    loss = estimator.loss(bounded[whole:], policies[:, whole:], rewards[:, whole:], *value) + cross_entropy
    parts = {"cross_entropy": cross_entropy, "entropy": entropy(bounded.detach())}
    if config.information:
        parts["information"] = policy_information(keep_probs[whole:])
        loss = loss - config.information * parts["information"]
    if len(rewards) > 1:
        parts["advantage"] = (rewards[0] - rewards[1:].mean(0)).mean()
    passes = 3 if logits.requires_grad else 1
    executions = passes * count_executions(config, sampled) + count_executions(config, others)
    return JointStep(loss, sampled[0], logits[0], parts, executions)


def learn_pathwise(
    config: FinetuneConfig,
    resnet: DroppableResNet,
    compute: Compute,
    costs: Tensor,
    images: Tensor,
    labels: Tensor,
    keep_probs: Tensor,
    values: Tensor,
    draws: torch.Generator,
    price: float | None,
) -> JointStep:
    """The cross-entropy's own gradient for both networks, through the gates, and the expected cost's.

    The cost is the square of the expected share of all blocks' FLOPs over |penalty|, or price · share.
    """
    bounded = bound_keep_probs(keep_probs, config.alpha)
    policy, gates = draw_gates(config.estimator, bounded, draws, config.temperature)  # type: ignore[arg-type]
    whole = rows_kept_whole(config.keep_full, keep_probs)
    policy = torch.cat([torch.ones_like(policy[:whole]), policy[whole:]])
    gates = torch.cat([torch.ones_like(gates[:whole]), gates[whole:]])
    with compute.autocast():
        logits = run_share(resnet, compute, images, policy, config.execution, gates)
    cross_entropy = F.cross_entropy(logits.float(), labels)
    share = (keep_probs[whole:] * (costs / costs.sum())).sum(-1)
    cost = share.square().mean() / abs(config.penalty) if price is None else price * share.mean()
    information = policy_information(keep_probs[whole:])
    deciding = len(share) / len(policy)  # as much for each image as if all decided
    loss = cross_entropy + deciding * (cost - config.information * information)
    parts = {"cross_entropy": cross_entropy, "cost": cost, "information": information}
    passes = 3 if any(parameter.requires_grad for parameter in resnet.parameters()) else 2  # backward: maps alone
    return JointStep(loss, policy, logits, parts, passes * count_executions(config, policy))


def learn_settled(
    config: FinetuneConfig,
    resnet: DroppableResNet,
    compute: Compute,
    images: Tensor,
    labels: Tensor,
    keep_probs: Tensor,
    threshold: float,
) -> JointStep:
    """Cross-entropy for the ResNet alone, under the MAP policies."""
    policy = map_policy(keep_probs, threshold)
    policy[: rows_kept_whole(config.keep_full, policy)] = True
    with compute.autocast():
        logits = run_share(resnet, compute, images, policy, config.execution)
    cross_entropy = F.cross_entropy(logits.float(), labels)
    parts = {"cross_entropy": cross_entropy}
    return JointStep(cross_entropy, policy, logits, parts, 3 * count_executions(config, policy))


def run_share(
    resnet: DroppableResNet,
    compute: Compute,
    images: Tensor,
    policy: Tensor,
    execution: Execution,
    gates: Tensor | None = None,
) -> Tensor:
    """Logits of the whole batch, of which this process runs its share.

    Args:
        images: this process's, (N', 3, H, W).
        policy, gates: of the whole batch, (…, N, K).
    Returns:
        (…, N, classes).
    """
    rows = compute.processes.rows(len(images))
    logits = resnet(images, policy[..., rows, :], execution, None if gates is None else gates[rows])
    return compute.processes.gather(logits, dim=policy.dim() - 2)


def count_executions(config: FinetuneConfig, policies: Tensor) -> int:
    """How many times a block runs for a row in one forward pass under policies (…, N, K)."""
    return policies.numel() if config.execution == "masked" else block_executions(policies)


def make_optimizers(
    config: FinetuneConfig, resnet: DroppableResNet, policy_network: PolicyNetwork
) -> dict[str, torch.optim.Optimizer]:
    """One Adam for both networks, or SGD for the ResNet and Adam for the policy network; by their names."""
    own, bias = policy_network.own_parameters(), policy_network.logit.bias
    groups: list[dict[str, Any]] = [{"params": own}]
    if config.bias_lr is not None:
        rest = [parameter for parameter in own if parameter is not bias]
        groups = [{"params": rest}, {"params": [bias], "lr": config.bias_lr}]
    if config.optimizer == "adam":
        groups[0]["params"] = [*resnet.parameters(), *groups[0]["params"]]
    adam = torch.optim.Adam(groups, config.lr, weight_decay=config.wd)
    if config.optimizer == "adam":
        return {"adam": adam}
    sgd = torch.optim.SGD(
        resnet.parameters(), config.resnet_lr, momentum=0.9, nesterov=True, weight_decay=config.resnet_wd
    )
    return {"adam": adam, "sgd": sgd}


def recalibration_images(config: FinetuneConfig, setup: Setup, compute: Compute) -> Iterator[Tensor]:
    """Batches (N, 3, H, W) of --recalibrate training images, augmented as in training."""
    images = setup.data.train
    batches = images.batches(
        config.batch_size,
        setup.normalisation,
        compute.device,
        Augment(config.seed, config.max_epochs),
        compute.channels_last,
    )
    count = min(config.recalibrate, len(images))
    return (batch[:count] for batch, _ in itertools.islice(batches, max(1, count // config.batch_size)))


if __name__ == "__main__":
    run_command(main, FinetuneConfig, __doc__)
