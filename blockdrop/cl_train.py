"""Curriculum learning: REINFORCE teaches the policy network which blocks a frozen ResNet can do without.

Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 3.4. In epoch e only the last 1 + e blocks are decided. The
reference's recipe is the default; --estimator, --reward and --target_flops choose others of the same family.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agents.names import EstimatorName
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.ranges import CheckpointName, Count, NotNegative, Positive
from blockdrop.training.config import Groups, PolicyTrainingConfig, Recipe, check_estimator

if TYPE_CHECKING:
    from blockdrop.data import Data
    from blockdrop.dynamic import DynamicNetwork
    from blockdrop.training.session import Session


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


def main(config: CurriculumConfig) -> dict[str, float]:
    """Opens networks, data and run directory, and trains; returns the last test's metrics."""
    from blockdrop.training.brought import test_brought  # torch, which --help does without
    from blockdrop.training.closing import beside, close, print_next
    from blockdrop.training.opening import open_training

    config.check()
    require(len(config.load) > 0, "--load: name a trained backbone (python -m blockdrop.pretrain makes one)")
    opened, session = open_training(
        config, "cl_train", config.load, needs_backbone=True, policy_init=config.policy_init
    )
    with session.run:
        session.announce("cl_train", opened.dynamic, opened.data, opened.origins)
        test_brought(opened.dynamic, opened.data, session, keep=True)
        metrics = train(opened.dynamic, opened.data, session)
        close(session, metrics)
        print_next(config, "finetune", "--pretrained", config.cv_dir, "--cv_dir", beside(config.cv_dir, "ft"))
    return metrics


def train(dynamic: DynamicNetwork, data: Data, session: Session[CurriculumConfig]) -> dict[str, float]:
    """The training loop: teaches the policy network, the network stays; returns the last test's metrics."""
    import torch

    from agents.answers import NEVER, confidence, split_decisions, with_answers
    from agents.budget import BudgetPrice
    from agents.curriculum import decide_last, num_decided
    from agents.deciders import LastDecided, Learned
    from agents.estimators import make_estimator, values_for
    from agents.names import DEFAULT_THRESHOLD
    from agents.policies import bound_keep_probs, entropy
    from blockdrop.data import derived_seed
    from blockdrop.measure import executor, look_through
    from blockdrop.training.closing import MISSED
    from blockdrop.training.policies import OperatingPoint
    from blockdrop.training.policy_epoch import SampledEpoch, Test, finish_epoch, gathered, make_reward
    from blockdrop.training.update import Update

    config, compute, processes = session.config, session.compute, session.processes
    assert dynamic.policy_network is not None
    if config.reinforce_answers and dynamic.policy_network.answer is None:
        dynamic.policy_network.add_answer(dynamic.num_classes)
    answer_threshold = DEFAULT_THRESHOLD if config.reinforce_answers else NEVER
    compute.place(dynamic.network)
    classifier = executor(dynamic.network, None, compute, engine="torch")  # the same sums whatever ran before
    policy_network = compute.place(dynamic.policy_network)
    optimizer = torch.optim.Adam(policy_network.own_parameters(), config.lr, weight_decay=config.wd)
    flops = dynamic.flop_table()
    estimator = make_estimator(config.estimator, config.samples)
    reward = make_reward(config, flops)
    budget = None
    if config.target_flops is not None:
        budget = BudgetPrice(config.target_flops, config.price_rate)
        session.run.most_flops = (config.target_flops + MISSED) * flops.full
    update = Update(
        config, session.run, session.count_batches(data.train), [optimizer], {"policy network": policy_network},
        processes,
    )  # fmt: skip
    state = session.run.state
    state.track(policy_network=policy_network, optimizer=optimizer, budget=budget)
    all_decided = -(-dynamic.num_blocks // config.cl_step) - 1
    enough = functools.partial(session.run.stalled, config.patience, max(all_decided, config.annealed_from))
    for epoch in state.epochs(config.max_epochs, enough=enough):
        decided = num_decided(epoch, classifier.num_blocks, config.cl_step)
        optimizer.param_groups[0]["lr"] = config.step_lr(epoch)
        policy_network.train()
        sampled_epoch = SampledEpoch(flops)
        draws = torch.Generator(compute.device).manual_seed(derived_seed(config.seed, epoch, 1))
        state.track_epoch(sampled_epoch=sampled_epoch, draws=draws)
        learned = Learned(gathered(policy_network, processes), dynamic.num_blocks)
        decide = LastDecided(learned, decided)
        load = functools.partial(session.batches, data.train, dynamic.normalisation, epoch)
        for batch, (images, labels) in state.batches(load):
            executed = classifier.block_executions
            labels = processes.gather(labels)
            with compute.autocast():
                decision = decide(images, len(labels))
            bounded = bound_keep_probs(decision.keep_probs, config.alpha)
            chances = decide_last(bounded, decided)
            answer, answered = decision.answer if config.reinforce_answers else None, None
            if answer is not None:
                chances = torch.cat(
                    [chances, bound_keep_probs(confidence(answer).unsqueeze(-1), config.alpha)], -1
                )
            decisions = estimator.draw(chances.detach(), draws)  # (S, N, K), or (S, N, K + 1)
            policies = decisions
            if answer is not None:
                policies, answered = split_decisions(decisions)
            logits, _ = classifier(images, policy=policies[:, processes.rows(len(images))])
            logits = processes.gather(logits, dim=1)  # (S, N, classes)
            logits = with_answers(logits, answer, answered, 0.0).detach()
            rewards = reward(logits, labels, policies, None if budget is None else budget.value)  # (S, N)
            bonus = entropy(bounded)
            values = values_for(estimator, decision)
            loss = estimator.loss(chances, decisions, rewards, *values) - config.beta * bonus
            update(loss / processes.size, epoch, batch)
            means = {"loss": loss, "entropy": bonus}
            if answered is not None:
                means["answers"] = answered[0].double().mean()
            if len(rewards) > 1:
                means["advantage"] = (rewards[0] - rewards[1:].mean(0)).mean()
            if budget is not None:
                budget.target = max(config.target_after(epoch), flops.least_share(decided))
                spent = flops.per_image(decision.policy).double().mean() / flops.full
                means |= {"spent": spent, "price": torch.tensor(budget.update(spent.item()))}
            state.counts["block_executions"] += int(processes.sum(classifier.block_executions - executed)[0])
            sampled_epoch.add(policies[0], logits[0], labels, None if answered is None else answered[0], **means)
        sampled_epoch.block_executions = state.counts["block_executions"]
        test = None
        if config.tests_after(epoch):
            run = executor(dynamic.network, policy_network, compute.in_float32())
            look = look_through(run, processes)
            learner = Learned(look, dynamic.num_blocks, answer_threshold=answer_threshold)
            point = OperatingPoint(answer_threshold=answer_threshold)
            test = Test(run, LastDecided(learner, decided), point, {"decided": decided})
        finish_epoch(
            session, dynamic, data, epoch, sampled_epoch.metrics(reward, config.step_lr(epoch)),
            reward=reward, test=test, stage=f", {decided} of {dynamic.num_blocks} blocks decided",
        )  # fmt: skip
    return session.run.finish_with_test()


if __name__ == "__main__":
    run_command(main, CurriculumConfig, __doc__)
