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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from agents.budget import BudgetPrice
from agents.deciders import Decider, Learned, Look, Shuffled, Static
from agents.estimators import make_estimator
from agents.names import PATHWISE, EstimatorName, PathwiseName
from agents.policy_network import PolicyNetwork
from agents.rewards import Reward
from agents.static_policies import StaticPolicy
from blockdrop.console import run_command
from blockdrop.data import Augment, Data, derived_seed
from blockdrop.distillation.hinton import kl_divergence
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import require
from blockdrop.measure import executor, look_through
from blockdrop.models.resnet import DroppableResNet
from blockdrop.names import Execution
from blockdrop.training.batchnorm import recalibrate
from blockdrop.training.compute import Compute
from blockdrop.training.config import PolicyTrainingConfig, Recipe, RecipeName, check_estimator
from blockdrop.training.joint import (
    JOINT,
    POLICIES_ALONE,
    SETTLED,
    BlockRunner,
    JointBatch,
    Learner,
    PathwiseLearner,
    Phase,
    RewardLearner,
    SettledLearner,
)
from blockdrop.training.opening import open_training
from blockdrop.training.policies import OperatingPoint
from blockdrop.training.policy_epoch import SampledEpoch, Test, finish_epoch, gathered, make_reward
from blockdrop.training.session import Session
from blockdrop.training.update import Update


@dataclass(kw_only=True)
class FinetuneConfig(PolicyTrainingConfig):
    """Flags of `python -m blockdrop.finetune`."""

    RECIPES: ClassVar[dict[RecipeName, Recipe]] = {
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

    pretrained: tuple[str, ...] = ()
    """Checkpoints or run directories of curriculum training: policy network and backbone, in one or in two; with
    --initial_keep a backbone is enough."""
    load: tuple[str, ...] = ()
    """Checkpoints of fine-tuning to go on from; they win over --pretrained."""
    lr: float = 1e-4
    """Learning rate (Adam)."""
    bias_lr: float | None = None
    """That of the bias of the policy network's logits, by which all images' policies move together; default:
    --lr."""
    max_epochs: int = 2000
    """Epochs to train."""
    epoch_step: int = 1600
    """Multiply the learning rate by lr_decay_ratio every so many epochs."""
    penalty: float = -5.0
    """Reward of a wrong prediction: it sets the trade-off of accuracy and blocks."""
    execution: Execution = "sparse"
    """sparse runs just the blocks that are kept; masked runs all and selects, as the reference does (slower)."""
    policy: str | None = None
    """Learn no policy, but fine-tune the ResNet under this one: full, first_k:K, random_k:K, dist_k:K (K blocks
    drawn by the loaded policy network's usage; dist_k:K:FILE: by that in a file of evaluate --json) or a file with
    a line of 0 and 1. Flags about learning a policy then do nothing."""
    estimator: EstimatorName | PathwiseName = "self_critical"
    """How the policy network learns: from rewards as in cl_train, or pathwise, by the gradient of the loss itself
    (straight_through, kept_straight_through, gumbel)."""
    temperature: float = 1.0
    """Of gumbel's relaxation."""
    initial_keep: float | None = None
    """Keep probability that a fresh policy network starts from, where no checkpoint holds one."""
    information: float = 0.0
    """Weight of a bonus for policies that tell images apart, nats of mutual information."""
    distill: float = 0.0
    """Weight of the divergence from the logits of the full network as it was loaded (self-distillation)."""
    settled_distill: float | None = None
    """That weight once the policies have settled (--settle, --policy), when there is no price on computation that
    has to keep up with it; default: --distill."""
    distill_temperature: float = 2.0
    """Softens both logits there; the term is multiplied by its square."""
    keep_full: float = 0.0
    """Share of each batch for which all blocks run, so that the full network keeps its accuracy."""
    freeze_epochs: int = 0
    """Epochs at the start in which the policy network learns alone."""
    alternate: bool = False
    """After them let the two networks take turns, step by step, instead of learning together."""
    shuffle_policies: bool = False
    """Give each image the policy of another one: what policies are worth that know nothing of their image."""
    settle: float = 0.0
    """Share of the epochs, at the end, in which the ResNet learns alone, under the MAP policies it will have; the
    first epoch at least is the policy network's too, unless it is 1."""
    rewind: bool = False
    """Where the policies settle, give the ResNet back the weights that it was loaded with and begin the learning
    rate's schedule anew (rewinding, Renda et al. 2020, arXiv:2003.02389); what the policy network shares with the
    ResNet doesn't learn."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam for both networks; or sgd with Nesterov momentum for the ResNet (--resnet_lr, --resnet_wd)."""
    resnet_lr: float = 0.02
    """Learning rate of sgd."""
    resnet_wd: float = 5e-4
    """Weight decay of sgd."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rates: step decay by epochs, or a cosine to zero over the run after a short rise."""
    recalibrate: int = 0
    """Training images on which BatchNorm's statistics are taken anew, under MAP policies, before each test."""

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
        for flag in ("information", "distill", "settled_distill"):
            value = getattr(self, flag)
            fine = value is None or (value >= 0 and math.isfinite(value))
            require(fine, f"--{flag} {value}: must be zero or positive")
        for flag in ("temperature", "distill_temperature", "resnet_lr", "bias_lr"):
            value = getattr(self, flag)
            fine = value is None or (value > 0 and math.isfinite(value))
            require(fine, f"--{flag} {value}: must be a positive number")
        require(
            self.resnet_wd >= 0 and math.isfinite(self.resnet_wd),
            f"--resnet_wd {self.resnet_wd}: must be zero or positive",
        )
        require(0 <= self.keep_full < 1, f"--keep_full {self.keep_full}: must be at least 0 and below 1")
        require(
            self.keep_full == 0 or self.keep_full * self.batch_size >= 1,
            f"--keep_full {self.keep_full}: not even one image of --batch_size {self.batch_size}",
        )
        require(
            self.initial_keep is None or 0 < self.initial_keep < 1,
            f"--initial_keep {self.initial_keep}: must be above 0 and below 1",
        )
        require(self.recalibrate >= 0, f"--recalibrate {self.recalibrate}: must be at least 0")
        require(self.freeze_epochs >= 0, f"--freeze_epochs {self.freeze_epochs}: must be at least 0")
        require(0 <= self.settle <= 1, f"--settle {self.settle}: must be from 0 to 1")
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

    def phase(self, epoch: int, batch: int) -> Phase:
        """Who learns from this batch."""
        if epoch >= self.settled_from:
            return SETTLED
        if epoch < self.freeze_epochs:
            return POLICIES_ALONE
        if not self.alternate:
            return JOINT
        second = batch // self.accumulate % 2  # batches of one step go to the same network
        return POLICIES_ALONE if second else SETTLED

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
    """Opens networks, data and run directory, and trains; returns the last test's metrics."""
    config.check()
    opened, session = open_training(
        config,
        "finetune",
        (*config.pretrained, *config.load),
        needs_backbone=True,
        needs_policy=config.initial_keep is None and config.policy is None,
        initial_keep=config.initial_keep,
        static=config.policy,
    )
    with session.run:
        session.announce("finetune", opened.dynamic, opened.data, opened.origins, config.policy)
        return train(opened.dynamic, opened.data, session, opened.static)


def train(
    dynamic: DynamicNetwork, data: Data, session: Session[FinetuneConfig], static: StaticPolicy | None = None
) -> dict[str, float]:
    """The training loop; returns the last test's metrics.

    Args:
        static: decides in place of a policy network; then only the ResNet learns.
    """
    config, compute, processes = session.config, session.compute, session.processes
    if static is None and config.settle:
        rewound = ", the ResNet from the weights as loaded" if config.rewinds else ""
        learned, rest = config.settled_from, config.max_epochs - config.settled_from
        print(f"policies: learned for {learned} epochs, then settled for {rest}{rewound}")
    resnet = compute.place(dynamic.network)
    assert isinstance(resnet, DroppableResNet), "checked with the flags"
    policies = Policies(config, dynamic, session, static)
    flops = dynamic.flop_table()
    reward = make_reward(config, flops)
    learn, settled = make_learners(config, resnet, compute, reward)
    teacher = executor(copy.deepcopy(resnet), None, compute, engine="torch") if config.distills else None
    optimizers = make_optimizers(config, resnet, dynamic.policy_network)
    rates = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
    target = config.target_flops if static is None else None
    budget = None if target is None else BudgetPrice(target, config.price_rate)
    batches = session.count_batches(data.train)
    loaded = copy.deepcopy(resnet.state_dict()) if config.rewinds else None
    fixed = policies.borrowed if config.rewinds else ()
    networks = {"ResNet": resnet, **policies.modules}
    update = Update(config, session.run, batches, optimizers.values(), networks, processes)
    state = session.run.state
    if config.settled_from == 0 and static is None:  # the policies that were loaded are those to learn under
        policies.point = OperatingPoint(dynamic.threshold)
        if target is not None:
            policies.point.choose(target, dynamic, data.train, compute, flops)
    state.track(
        resnet=resnet, budget=budget, point=policies.point, policy_network=dynamic.policy_network, **optimizers
    )
    for epoch in state.epochs(config.max_epochs):
        sampled_epoch = SampledEpoch(flops)
        draws = torch.Generator(compute.device).manual_seed(derived_seed(config.seed, epoch, 1))
        static_draws = torch.Generator().manual_seed(derived_seed(config.seed, epoch, 2))
        state.track_epoch(sampled_epoch=sampled_epoch, draws=draws, static_draws=static_draws)
        decide, distill_weight = policies.in_training(draws, static_draws), config.distill_weight(epoch)
        load = functools.partial(session.batches, data.train, dynamic.normalisation, epoch)
        for batch, (images, labels) in state.batches(load):
            factor = config.lr_factor(epoch, (epoch + (batch + 1) / batches) / config.max_epochs)
            for name, optimizer in optimizers.items():
                for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                    group["lr"] = factor * rate
            phase = config.phase(epoch, batch)
            policies.train(phase.policy)
            resnet.train(phase.resnet).requires_grad_(phase.resnet)  # last, as the two may share the stem
            for module in fixed:
                module.eval().requires_grad_(False)
            labels = processes.gather(labels)
            # settled policies are those of the tests, also where a probability is next to the threshold
            precision = contextlib.nullcontext() if epoch >= config.settled_from else compute.autocast()
            with torch.set_grad_enabled(phase.policy), precision:
                decision = decide(images, len(labels))
            price = None if budget is None else budget.value
            step = (learn if phase.policy else settled)(JointBatch(images, labels, decision, draws, price))
            loss = step.loss
            if teacher is not None and distill_weight:
                soften = config.distill_temperature
                wanted = processes.gather(teacher(images)[0])
                step.parts["divergence"] = kl_divergence(step.logits.float(), wanted, soften)
                loss = loss + distill_weight * soften**2 * step.parts["divergence"]
                state.counts["block_executions"] += len(labels) * resnet.num_blocks
            update(loss / processes.size, epoch, batch)
            if budget is not None and phase.policy:
                budget.target = config.target_after(epoch + batch / batches)
                spent = flops.per_image(decision.policy).double().mean() / flops.full
                step.parts |= {"spent": spent, "price": torch.tensor(budget.update(spent.item()))}
            state.counts["block_executions"] += step.executions
            sampled_epoch.add(step.policy, step.logits.detach(), labels, loss=loss, **step.parts)
        if target is not None and epoch + 1 >= config.settled_from:
            policies.point.choose(target, dynamic, data.train, compute, flops)
        test = None
        if config.tests_after(epoch):
            if config.recalibrate and epoch >= config.freeze_epochs:
                state.counts["block_executions"] += recalibrate(
                    resnet,
                    policies.in_recalibration(),
                    recalibration_images(dynamic, data, session),
                    borrowed=policies.borrowed,
                    keep_full=config.keep_full,
                    execution=config.execution,
                )
            test = policies.test()
        sampled_epoch.block_executions = state.counts["block_executions"]
        factor = config.lr_factor(epoch, (epoch + 1) / config.max_epochs)
        trained = sampled_epoch.metrics(reward, factor * config.lr)
        finish_epoch(session, dynamic, data, epoch, trained, reward=reward, test=test)
        if loaded is not None and epoch + 1 == config.settled_from:
            resnet.load_state_dict(loaded)
            for optimizer in optimizers.values():
                optimizer.state.clear()
    resnet.requires_grad_(True)
    return session.run.finish_with_test()


class Policies:
    """Who decides in training, in recalibration and in tests: the policy network, or a static policy.

    Attributes:
        point: threshold of the policy network's MAP policies.
        borrowed: modules of the ResNet that the policy network looks through.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        dynamic: DynamicNetwork,
        session: Session[FinetuneConfig],
        static: StaticPolicy | None,
    ):
        self.config, self.dynamic, self.compute, self.static = config, dynamic, session.compute, static
        self.point = OperatingPoint()
        self.borrowed: tuple[nn.Module, ...] = ()
        if dynamic.policy_network is not None:
            self.compute.place(dynamic.policy_network)
            self.borrowed = dynamic.policy_network.borrowed

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is trained beside the ResNet, by its name in messages."""
        network = self.dynamic.policy_network
        return {} if network is None else {"policy network": network}

    def train(self, learns: bool) -> None:
        """Puts the policy network into the mode of a batch."""
        if self.dynamic.policy_network is not None:
            self.dynamic.policy_network.train(learns)

    def in_training(self, draws: torch.Generator, static_draws: torch.Generator) -> Decider:
        """For an epoch's batches.

        Args:
            draws: of shuffled policies.
            static_draws: of a static policy.
        """
        if self.static is not None:
            return Static(self.static, static_draws)
        assert self.dynamic.policy_network is not None
        return self._of(gathered(self.dynamic.policy_network, self.compute.processes), draws)

    def in_recalibration(self) -> Decider:
        """For BatchNorm's statistics: the policy network is a copy, which stays as it is meanwhile."""
        if self.static is not None:
            return Static(self.static)
        policy_network = copy.deepcopy(self.dynamic.policy_network)
        assert policy_network is not None
        return self._of(policy_network.eval())

    def test(self) -> Test:
        """For the test after an epoch."""
        run = executor(self.dynamic.network, self.dynamic.policy_network, self.compute.in_float32())
        decider: Decider
        if self.static is not None:
            decider = Static(self.static)
        else:
            decider = self._of(look_through(run, self.compute.processes))
        return Test(run, decider, self.point, {})

    def _of(self, look: Look, draws: torch.Generator | None = None) -> Decider:
        learned = Learned(look, self.dynamic.num_blocks, self.point.threshold)
        return Shuffled(learned, draws) if self.config.shuffle_policies else learned


def make_learners(
    config: FinetuneConfig, resnet: DroppableResNet, compute: Compute, reward: Reward
) -> tuple[Learner, Learner]:
    """The way of learning policies that the flags ask for, and that of settled ones."""
    blocks = BlockRunner(resnet, compute, config.execution, config.keep_full)
    learn: Learner
    if config.estimator in PATHWISE:
        assert reward.costs is not None
        learn = PathwiseLearner(
            blocks,
            config.estimator,
            reward.costs.to(compute.device),
            config.alpha,
            config.penalty,
            config.temperature,
            config.information,
        )
    else:
        estimator = make_estimator(config.estimator, config.samples)
        learn = RewardLearner(blocks, estimator, reward, config.alpha, config.information)
    return learn, SettledLearner(blocks)


def make_optimizers(
    config: FinetuneConfig, resnet: DroppableResNet, policy_network: PolicyNetwork | None
) -> dict[str, torch.optim.Optimizer]:
    """One Adam for both networks, or SGD for the ResNet and Adam for the policy network; by their names."""
    groups: list[dict[str, Any]] = []
    if policy_network is not None:
        own, bias = policy_network.own_parameters(), policy_network.logit.bias
        if config.bias_lr is None:
            groups = [{"params": own}]
        else:
            rest = [parameter for parameter in own if parameter is not bias]
            groups = [{"params": rest}, {"params": [bias], "lr": config.bias_lr}]
    if config.optimizer == "adam":
        first = groups[0]["params"] if groups else []
        groups = [{"params": [*resnet.parameters(), *first]}, *groups[1:]]
    adam = torch.optim.Adam(groups, config.lr, weight_decay=config.wd) if groups else None
    optimizers: dict[str, torch.optim.Optimizer] = {} if adam is None else {"adam": adam}
    if config.optimizer == "sgd":
        optimizers["sgd"] = torch.optim.SGD(
            resnet.parameters(), config.resnet_lr, momentum=0.9, nesterov=True, weight_decay=config.resnet_wd
        )
    return optimizers


def recalibration_images(
    dynamic: DynamicNetwork, data: Data, session: Session[FinetuneConfig]
) -> Iterator[Tensor]:
    """Batches (N, 3, H, W) of --recalibrate training images, augmented as in training."""
    config, compute = session.config, session.compute
    batches = data.train.batches(
        config.batch_size,
        dynamic.normalisation,
        compute.device,
        Augment(config.seed, config.max_epochs),
        compute.channels_last,
    )
    count = min(config.recalibrate, len(data.train))
    return (batch[:count] for batch, _ in itertools.islice(batches, max(1, count // config.batch_size)))


if __name__ == "__main__":
    run_command(main, FinetuneConfig, __doc__)
