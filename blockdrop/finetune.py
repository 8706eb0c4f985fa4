"""Joint fine-tuning of the policy network and the ResNet.

Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 3.4: REINFORCE for the policy network, cross-entropy of the
sampled policies for both. Blocks run just for the images that keep them, so a block's BatchNorm sees those images
alone, in training as at inference. The reference's recipe is the default; the others start from a plain
backbone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from agents.names import PATHWISE, EstimatorName, PathwiseName
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.names import Execution
from blockdrop.ranges import CheckpointName, Count, CountOrNone, NotNegative, Positive, Probability, Range
from blockdrop.training.config import AnswerConfig, Groups, Recipe, check_estimator
from blockdrop.training.phases import JOINT, POLICIES_ALONE, SETTLED, Phase

if TYPE_CHECKING:
    from agents.static_policies import StaticPolicy
    from blockdrop.data import Data
    from blockdrop.dynamic import DynamicNetwork
    from blockdrop.training.session import Session


FAST: Recipe = {
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
    "settle": 0.6667,
    "rewind": True,
    "recalibrate": 5000,
    "test_every": 5,
}
ANSWERS: Recipe = {
    "policy_net": "reference",
    "initial_keep": 0.9,
    "answer_epochs": 40,
    "answer_views": 8,
    "hold_out": 0.05,
    "target_flops": 0.5,
    "answer_weight": 0.3,
    "batch_size": 128,
    "max_epochs": 0,
}
"""The policy network learns to answer, and the ResNet stays as it is; see `blockdrop.training.answers`."""
GLANCE: Recipe = {**FAST, **ANSWERS, "max_epochs": 15, "target_flops": 0.35, "rest_flops": 0.45}
"""The policy network learns to answer, then the ResNet is fine-tuned under policies for what isn't answered."""
ONE_POLICY: Recipe = {**GLANCE, "one_policy": True, "target_flops": 0.45, "rest_flops": 0.59}
"""The policy network learns to answer, then the ResNet is fine-tuned under one policy, which is learned, for all
images. Answers stand in front of it."""


@dataclass(kw_only=True)
class FinetuneConfig(AnswerConfig):
    """Flags of `python -m blockdrop.finetune`."""

    RECIPES: ClassVar[dict[str, Recipe]] = {
        "reference": {}, "fast": FAST, "answers": ANSWERS, "glance": GLANCE,
        "one_policy": ONE_POLICY,
    }  # fmt: skip

    GROUPS: ClassVar[Groups] = {
        "policy learning": ("temperature", "information", "initial_keep", "one_policy", "policy"),
        "who learns when": ("freeze_epochs", "alternate", "settle", "rewind", "shuffle_policies"),
        "teaching by the full network": ("distill", "settled_distill", "distill_temperature", "keep_full"),
        "optimisation": ("bias_lr", "optimizer", "resnet_lr", "resnet_wd"),
        "execution": ("execution", "recalibrate"),
    }

    pretrained: tuple[CheckpointName, ...] = ()
    """Checkpoints or run directories of curriculum training: policy network and backbone, in one or in two. A
    backbone alone is enough with --initial_keep, and with any recipe but reference."""
    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of fine-tuning to continue from. They win over --pretrained."""
    lr: Positive = 1e-4
    """Learning rate of Adam, which trains the policy network and, with --optimizer adam, the ResNet."""
    bias_lr: Positive | None = None
    """Learning rate of the bias of the policy network's logits, by which the policies of all images move together.
    Default: --lr."""
    max_epochs: CountOrNone = 2000
    """Number of epochs, without those of --answer_epochs. 0: the policy network learns to answer and nothing else;
    the ResNet and the policies stay as they were loaded."""
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
    one_policy: bool = False
    """Learn one policy for all images that aren't answered: of the policy network's decisions the bias alone
    learns."""
    shuffle_policies: bool = False
    """Give each image the policy of another one, to measure what policies are worth that know nothing of their
    image."""
    settle: Annotated[float, Range(least=0, most=1)] = 0.0
    """Share of the batches, at the end of the run, in which only the ResNet learns. Its policies are then fixed:
    those that are used in tests. For example, 0.6667 means the last two thirds. The policy network learns in at
    least one batch, unless this is 1."""
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
        if self.estimator not in PATHWISE:
            check_estimator(self.estimator, self.samples)
        pathwise, target = self.estimator in PATHWISE, self.target_flops is not None
        require(
            self.max_epochs > 0 or self.answer_epochs > 0,
            "--max_epochs 0: nothing would be learned; pass --answer_epochs, or --recipe answers",
        )
        for flag in ("reward", "reinforce_answers"):
            self.check_meaning(flag, not pathwise, "estimators from rewards")
        require(
            not self.reinforce_answers or (self.policy is None and self.distill == 0),
            "--reinforce_answers: goes with neither --policy nor --distill",
        )
        require(
            not self.one_policy or self.policy is None, "--one_policy: learns a policy, and --policy gives one"
        )
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
            self.answer_epochs == 0 or self.policy is None,
            f"--answer_epochs {self.answer_epochs}: means nothing under --policy, where no policy network learns",
        )
        require(
            self.keep_full == 0 or self.keep_full * self.batch_size >= 1,
            f"--keep_full {self.keep_full}: not even one image of --batch_size {self.batch_size}",
        )
        require(
            self.policy is not None or self.freeze_epochs <= self.learned_epochs + 0.01,
            f"--freeze_epochs {self.freeze_epochs} and --settle {self.settle}: more than the --max_epochs "
            f"{self.max_epochs}",
        )
        has_settled = self.policy is not None or self.settle > 0
        require(
            self.patience is None or has_settled or not target,
            f"--patience {self.patience}: the threshold that meets --target_flops is chosen when policies settle; "
            "pass --settle, too",
        )
        for flag in ("rewind", "settled_distill"):
            self.check_meaning(flag, has_settled, "--settle")
        require(
            not (self.estimator in ("straight_through", "gumbel") and self.execution == "sparse"),
            f"--estimator {self.estimator}: needs what dropped blocks would do; pass --execution masked, or "
            "--estimator kept_straight_through",
        )

    @property
    def learned_epochs(self) -> float:
        """Number of epochs, and parts of one, in which the policy network learns."""
        return 0.0 if self.policy is not None else (1 - self.settle) * self.max_epochs

    @property
    def distills(self) -> bool:
        """Whether there ever is a divergence from the full network's logits."""
        return self.distill > 0 or bool(self.settled_distill)


WARM_UP = 0.05
"""Share of the run in which cosine's learning rates rise."""


@dataclass(frozen=True)
class Course:
    """What happens at each step of a run; steps are its batches, counted from 0."""

    config: FinetuneConfig
    batches: int
    """Of an epoch."""

    @property
    def steps(self) -> int:
        """Of the run."""
        return self.config.max_epochs * self.batches

    @property
    def settled_from(self) -> int:
        """The first step in which the policy network doesn't learn any more; `steps` if it always learns. It isn't
        the first one, unless the policy network learns nothing at all, nor behind the last one with --settle."""
        if self.config.learned_epochs == 0:
            return 0
        wanted = round(self.config.learned_epochs * self.batches)
        epoch, batch = divmod(min(wanted, self.steps - (self.config.settle > 0)), self.batches)
        batch -= batch % self.config.accumulate  # batches whose gradients make one step stay together
        return epoch * self.batches + batch or min(self.config.accumulate, self.batches)

    @property
    def rewinds(self) -> bool:
        """Whether --rewind has anything to do."""
        return self.config.rewind and self.settled_from < self.steps

    def phase(self, step: int) -> Phase:
        """Who learns."""
        config = self.config
        if step >= self.settled_from:
            return SETTLED
        if step < config.freeze_epochs * self.batches:
            return POLICIES_ALONE
        if not config.alternate:
            return JOINT
        second = step % self.batches // config.accumulate % 2
        return POLICIES_ALONE if second else SETTLED

    def distill_weight(self, step: int) -> float:
        """Weight of the divergence from the full network's logits."""
        if self.config.settled_distill is None or step < self.settled_from:
            return self.config.distill
        return self.config.settled_distill

    def lr_factor(self, step: int) -> float:
        """What learning rates are multiplied by; a rewound ResNet's begin anew."""
        start = self.settled_from if self.rewinds and step >= self.settled_from else 0
        if self.config.schedule == "step":
            return self.config.step_factor((step - start) // self.batches)
        done = (step + 1 - start) / (self.steps - start)
        return min(1.0, done / WARM_UP) * (1 + math.cos(math.pi * done)) / 2


def _short(epochs: float) -> str:
    return f"{epochs:.2f}".rstrip("0").rstrip(".")


def main(config: FinetuneConfig) -> dict[str, float]:
    """Opens networks, data and run directory, and trains; returns the last test's metrics."""
    from blockdrop.training.brought import test_brought  # torch, which --help does without
    from blockdrop.training.closing import close, print_next
    from blockdrop.training.opening import open_training

    config.check()
    backbone_will_do = config.initial_keep is not None or config.policy is not None
    start = "that has a trained backbone" if backbone_will_do else "of curriculum training"
    require(bool(config.pretrained or config.load), f"--pretrained: name a checkpoint {start}")
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
        test_brought(opened.dynamic, opened.data, session, keep=True)
        metrics = train(opened.dynamic, opened.data, session, opened.static)
        close(session, metrics)
        static = () if config.policy is None else ("--policy", config.policy)
        print_next(config, "evaluate", "--load", config.cv_dir, *static, "--stats")
    return metrics


def train(
    dynamic: DynamicNetwork, data: Data, session: Session[FinetuneConfig], static: StaticPolicy | None = None
) -> dict[str, float]:
    """The training loop; returns the last test's metrics.

    Args:
        static: decides in place of a policy network; then only the ResNet learns.
    """
    import contextlib
    import copy
    import functools

    import torch

    from agents.budget import BudgetPrice
    from blockdrop.data import derived_seed
    from blockdrop.measure import executor
    from blockdrop.models.droppable import Droppable
    from blockdrop.training.answers import AnswerTraining
    from blockdrop.training.batchnorm import recalibrate
    from blockdrop.training.closing import MISSED, POLICY_STEPS, warn_of_few_steps, warn_of_learning
    from blockdrop.training.hinton import kl_divergence
    from blockdrop.training.joint import BlockRunner, JointBatch, SettledLearner, make_learner, make_optimizers
    from blockdrop.training.joint_policies import JointPolicies
    from blockdrop.training.policies import OperatingPoint
    from blockdrop.training.policy_epoch import SampledEpoch, finish_epoch, make_reward, test_policies
    from blockdrop.training.update import Update

    config, compute, processes = session.config, session.compute, session.processes
    answers = AnswerTraining(dynamic, data, session)
    train_images = answers.train_images
    batches = session.count_batches(train_images)
    course = Course(config, batches)
    settled_from = min(course.settled_from, course.steps)
    if config.max_epochs == 0:
        print("policies and ResNet: as they were loaded")
    elif static is None and config.settle:
        rewound = ", the ResNet from the weights as loaded" if course.rewinds else ""
        learned, rest = settled_from / batches, (course.steps - settled_from) / batches
        epochs = "epoch" if learned == 1 else "epochs"
        print(f"policies: learned for {_short(learned)} {epochs}, then settled for {_short(rest)}{rewound}")
    if config.answer_epochs:
        answers.teach()
    resnet = compute.place(dynamic.network)
    if config.one_policy:
        assert dynamic.policy_network is not None
        torch.nn.init.zeros_(dynamic.policy_network.logit.weight).requires_grad_(False)
    assert isinstance(resnet, Droppable), "checked with the flags"
    policies = JointPolicies(dynamic, compute, static, config.shuffle_policies, config.reinforce_answers)
    flops = dynamic.flop_table()
    if config.target_flops is not None:
        session.run.most_flops = (config.target_flops + MISSED) * flops.full
    reward = make_reward(config, flops)
    blocks = BlockRunner(resnet, compute, config.execution, config.keep_full)
    learn = make_learner(
        blocks, config.estimator, reward, samples=config.samples, alpha=config.alpha,
        temperature=config.temperature, information=config.information, answers=config.reinforce_answers,
    )  # fmt: skip
    settled = SettledLearner(blocks)
    teacher = executor(copy.deepcopy(resnet), None, compute, engine="torch") if config.distills else None
    optimizers = make_optimizers(
        resnet, dynamic.policy_network, optimizer=config.optimizer, lr=config.lr, wd=config.wd,
        bias_lr=config.bias_lr, resnet_lr=config.resnet_lr, resnet_wd=config.resnet_wd,
    )  # fmt: skip
    rates = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
    target = answers.policy_target(flops) if static is None else None
    budget = None if target is None else BudgetPrice(target, config.price_rate)
    if processes.first:
        warn_of_few_steps(settled_from, batches, config.max_epochs)
    learning = [parameter for parameter in resnet.parameters() if parameter.requires_grad]
    loaded = copy.deepcopy(resnet.state_dict()) if course.rewinds else None
    fixed = policies.borrowed if course.rewinds else ()
    networks = {"ResNet": resnet, **policies.modules}
    update = Update(config, session.run, batches, optimizers.values(), networks, processes)
    state, learned_before = session.run.state, int(dynamic.metrics.get(POLICY_STEPS, 0))
    if settled_from == 0 and static is None:  # the policies that were loaded are those to learn under
        policies.point = OperatingPoint(dynamic.threshold)
        if target is not None and config.max_epochs:
            policies.point.choose(target, dynamic, train_images, compute, flops)
    state.track(
        resnet=resnet, budget=budget, point=policies.point, policy_network=dynamic.policy_network, **optimizers
    )
    ready = math.ceil(settled_from / batches) if settled_from < course.steps else config.annealed_from
    for epoch in state.epochs(config.max_epochs, enough=lambda: session.run.stalled(config.patience, ready)):
        answers.begin(policies.point, flops)
        sampled_epoch = SampledEpoch(flops)
        draws = torch.Generator(compute.device).manual_seed(derived_seed(config.seed, epoch, 1))
        static_draws = torch.Generator().manual_seed(derived_seed(config.seed, epoch, 2))
        state.track_epoch(sampled_epoch=sampled_epoch, draws=draws, static_draws=static_draws)
        decide = policies.in_training(draws, static_draws)
        load = functools.partial(session.batches, train_images, dynamic.normalisation, epoch)
        for batch, (images, labels) in state.batches(load):
            now = epoch * batches + batch
            if now == settled_from and loaded is not None:
                resnet.load_state_dict(loaded)
                for optimizer in optimizers.values():
                    optimizer.state.clear()
            if now == settled_from and batch and target is not None:
                policies.point.choose(target, dynamic, train_images, compute, flops)
                decide = policies.in_training(draws, static_draws)
            factor = course.lr_factor(now)
            for name, optimizer in optimizers.items():
                for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                    group["lr"] = factor * rate
            phase = course.phase(now)
            state.counts["policy_batches"] += phase.policy
            policies.train(phase.policy)
            resnet.train(phase.resnet)  # last, as the two may share the stem
            for parameter in learning:  # the others are frozen by whoever brought the network
                parameter.requires_grad_(phase.resnet)
            for module in fixed:
                module.eval().requires_grad_(False)
            labels = processes.gather(labels)
            # settled policies are those of the tests, also where a probability is next to the threshold
            precision = contextlib.nullcontext() if now >= settled_from else compute.autocast()
            with torch.set_grad_enabled(phase.policy), precision:
                decision = decide(images, len(labels))
            images, labels, decision = answers.left_to_the_resnet(images, labels, decision, policies.point, draws)
            price = None if budget is None else budget.value
            step = (learn if phase.policy else settled)(JointBatch(images, labels, decision, draws, price))
            loss, distill_weight = step.loss, course.distill_weight(now)
            if teacher is not None and distill_weight:
                soften = config.distill_temperature
                wanted = processes.gather(teacher(images)[0])
                step.parts["divergence"] = kl_divergence(step.logits.float(), wanted, soften)
                loss = loss + distill_weight * soften**2 * step.parts["divergence"]
                state.counts["block_executions"] += len(labels) * resnet.num_blocks
            update(loss / processes.size, epoch, batch)
            if budget is not None and phase.policy:
                budget.target = config.target_after(epoch + batch / batches, target)
                spent = flops.per_image(decision.policy).double().mean() / flops.full
                step.parts |= {"spent": spent, "price": torch.tensor(budget.update(spent.item()))}
            state.counts["block_executions"] += step.executions
            sampled_epoch.add(step.policy, step.logits.detach(), labels, step.answered, loss=loss, **step.parts)
        if target is not None and (epoch + 1) * batches >= settled_from:
            policies.point.choose(target, dynamic, train_images, compute, flops)
        test = None
        if config.tests_after(epoch):
            if config.recalibrate and epoch >= config.freeze_epochs:
                state.counts["block_executions"] += recalibrate(
                    resnet,
                    policies.in_recalibration(),
                    session.some_batches(
                        train_images, dynamic.normalisation, config.recalibrate, config.max_epochs
                    ),
                    borrowed=policies.borrowed,
                    keep_full=config.keep_full,
                    execution=config.execution,
                )
            answers.choose(policies.point, flops)
            test = policies.test(learned_before + math.ceil(state.counts["policy_batches"] / config.accumulate))
        sampled_epoch.block_executions = state.counts["block_executions"]
        lr = config.lr * course.lr_factor(epoch * batches + batches - 1)
        trained = sampled_epoch.metrics(reward, lr)
        finish_epoch(session, dynamic, data, epoch, trained, reward=reward, test=test)
    if config.max_epochs == 0 and not state.finished:
        answers.begin(policies.point, flops)
        answers.choose(policies.point, flops)
        test_policies(session, dynamic, data, 0, reward, policies.test(learned_before))
    if config.one_policy and dynamic.policy_network is not None:
        dynamic.policy_network.logit.weight.requires_grad_(True)
    for parameter in (*learning, *answers.frozen):
        parameter.requires_grad_(True)
    if static is None:
        dynamic.operating_point = policies.point.recorded()
    metrics = session.run.finish_with_test()
    if static is None and config.max_epochs and processes.first:
        warn_of_learning(
            metrics, flops, target=config.target_flops, threshold=policies.point.threshold,
            same_for_all=config.one_policy or dynamic.policy_net == "constant",
        )  # fmt: skip
    return metrics


if __name__ == "__main__":
    run_command(main, FinetuneConfig, __doc__)
