"""How noisy the reward-based gradient estimators are, against self_critical for the same work.

Variance: of one image's gradient by the policy network's logits, summed over the decisions, mean over the images.
Cost: block executions for an image, whose policies share all work up to their first difference. The mean of n
gradients costs n times as much and has an n-th of the variance, so variance × cost is what counts: relative to
self_critical's, below 1 is better.

Exact, by enumeration of every draw, for tables of rewards; with --load also measured, by repeated draws, on test
images and a trained network.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from agents.estimators import Estimator, make_estimator
from agents.names import ESTIMATORS, EstimatorName, RewardName
from agents.policies import bound_keep_probs, map_policy
from agents.rewards import Reward, blockdrop_reward
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.measure import executor
from blockdrop.models.droppable import block_executions
from blockdrop.names import Precision
from blockdrop.output import check_writable, write_json
from blockdrop.progress import progress
from blockdrop.training.config import ModelConfig
from blockdrop.training.opening import Opened, open_networks
from blockdrop.training.session import undecided_note

LARGEST_ENUMERATION = 16  # bits of a draw


@dataclass(kw_only=True)
class EstimatorVarianceConfig(ModelConfig):
    """Flags of `python -m experiments.measurements.estimator_variance`."""

    load: tuple[str, ...] = ()
    """Checkpoints or run directories with a backbone and its policy network, to measure on; default: none."""
    samples: tuple[int, ...] = (2, 4)
    """Policies for each image (even numbers); of block_credit, decisions tried both ways."""
    blocks: tuple[int, ...] = (3, 4)
    """Decisions K of the exact part; name none to leave it out."""
    tables: int = 16
    """Images of the exact part, each with keep probabilities and a reward for each of its 2^K policies."""
    images: int = 256
    """Test images to measure on, drawn from all."""
    repeats: int = 32
    """Gradients that each estimator makes for each image."""
    alpha: float = 0.8
    """Keep probabilities are bounded to [1 - alpha, alpha] before sampling."""
    penalty: float = -1.0
    """Reward of a wrong prediction."""
    precision: Precision = "float32"
    """float32, bfloat16, or auto (bfloat16 where the processor has it)."""
    json: str | None = None
    """Write the rows to this file."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""

    def check(self) -> None:
        super().check()
        for count in self.samples:
            require(
                count >= 2 and count % 2 == 0, f"--samples {count}: must be even, antithetic policies are pairs"
            )
        for blocks in self.blocks:
            bits = blocks * max(self.samples, default=1)
            require(blocks >= 1, f"--blocks {blocks}: must be at least 1")
            require(
                bits <= LARGEST_ENUMERATION,
                f"--blocks {blocks} with --samples {max(self.samples, default=1)}: 2^{bits} draws are too many to "
                f"enumerate; at most 2^{LARGEST_ENUMERATION}",
            )
        require(self.blocks != () or self.load != (), "--blocks and --load: nothing to do without both")
        require(self.tables >= 1, f"--tables {self.tables}: must be at least 1")
        require(self.images >= 1, f"--images {self.images}: must be at least 1")
        require(self.repeats >= 2, f"--repeats {self.repeats}: a variance needs at least 2")
        require(0.5 < self.alpha <= 1, f"--alpha {self.alpha}: must be above 0.5 and at most 1")
        require(math.isfinite(self.penalty), f"--penalty {self.penalty}: must be a finite number")
        if self.json is not None:
            check_writable("--json", self.json, self.overwrite)


@dataclass(frozen=True)
class Contender:
    """An estimator in the table."""

    name: EstimatorName
    samples: int

    @property
    def estimator(self) -> Estimator:
        return make_estimator(self.name, self.samples)

    def __str__(self) -> str:
        what = {"self_critical": "", "block_credit": f", {self.samples} tried"}
        note = ", the mean reward" if self.name == "value_baseline" else ""
        return f"{self.name}{what.get(self.name, f', {self.samples} policies')}{note}"


def contenders(samples: Sequence[int], num_blocks: int) -> list[Contender]:
    """self_critical, then all others with each number of samples, block_credit also with all blocks."""
    found = [Contender("self_critical", 2)]
    for name in ESTIMATORS[1:]:
        counts = {min(n, num_blocks) for n in (*samples, num_blocks)} if name == "block_credit" else set(samples)
        found += [Contender(name, n) for n in sorted(counts)]
    return found


def main(config: EstimatorVarianceConfig) -> dict[str, Any]:
    """Prints a table for each K, and for each reward on the trained network; returns the numbers."""
    config.check()
    numbers: dict[str, Any] = {"exact": [], "measured": [], "config": asdict(config)}
    opened = None
    if config.load:
        opened = open_networks(config, config.load)
        files = " ".join(config.load)
        require(opened.has_backbone, f"--load {files}: a policy network without its backbone; name that too")
        require(
            opened.has_policy,
            f"--load {files}: no policy network in it; run blockdrop.cl_train first",
        )
    for num_blocks in config.blocks:
        rows = exact_rows(config, num_blocks)
        print_table(f"exact, {num_blocks} blocks, {config.tables} tables of rewards", rows)
        numbers["exact"] += rows
    if opened is not None:
        if note := undecided_note(opened.dynamic):
            print(note)
        count = min(config.images, len(opened.data.test))
        for name, rows in measured_rows(config, opened, count).items():
            print_table(
                f"{opened.dynamic.model}, reward {name}, {count} test images, {config.repeats} draws each", rows
            )
            numbers["measured"] += rows
    if config.json is not None:
        write_json("--json", config.json, numbers)
    return numbers


# ---- exact


def exact_rows(config: EstimatorVarianceConfig, num_blocks: int) -> list[dict[str, Any]]:
    """A row per estimator: moments over every draw it can make, mean over the tables."""
    images = list(zip(*draw_tables(config, num_blocks), strict=True))
    rows = []
    for contender in contenders(config.samples, num_blocks):
        moments = torch.stack([exact_moments(contender, *image, config.alpha) for image in images])  # (T, 2)
        variance, cost = moments.mean(0).tolist()
        rows.append({"blocks": num_blocks, **row_of(contender, variance, cost)})
    return relative(rows)


def draw_tables(config: EstimatorVarianceConfig, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Logits (T, K) and rewards (T, 2^K), in the order of `every_policy`, float64, from the seed.

    Logits are normal with a deviation of 2; a policy's prediction is right with probability ½ + half the share of
    its blocks, and earns what BlockDrop pays.
    """
    generator = torch.Generator().manual_seed(config.seed)
    policies = every_policy(num_blocks)
    logits = 2 * torch.randn(config.tables, num_blocks, dtype=torch.float64, generator=generator)
    chance = (1 + policies.double().mean(-1)) / 2
    correct = torch.rand(config.tables, len(policies), generator=generator) < chance
    return logits, blockdrop_reward(correct, policies, config.penalty).double()


def every_policy(num_blocks: int) -> Tensor:
    """bool (2^K, K), from none kept to all, the first block counting most."""
    return torch.tensor(list(itertools.product([False, True], repeat=num_blocks)))


def exact_moments(contender: Contender, logits: Tensor, table: Tensor, alpha: float) -> Tensor:
    """Variance of the gradient, summed over the decisions, and mean block executions: float64 (2,).

    Args:
        logits: (K,).
        table: rewards (2^K,).
    """
    keep_probs = bound_keep_probs(logits.sigmoid(), alpha)
    policies, chances = all_draws(contender, keep_probs)
    rewards = table[_numbers(policies)]
    every = every_policy(len(logits))
    mean_reward = torch.where(every, keep_probs, 1 - keep_probs).prod(-1) @ table
    count = len(chances)
    found = gradients(contender, logits.expand(count, -1), alpha, policies, rewards, mean_reward.expand(count))
    variance = (chances @ (found - chances @ found).square()).sum()
    return torch.stack([variance, chances @ executions(policies)])


def all_draws(contender: Contender, keep_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Every draw of an estimator for one image: (K,) to policies bool (S, M, K) and their probabilities (M,)."""
    num_blocks = len(keep_probs)
    every = every_policy(num_blocks)
    chances = torch.where(every, keep_probs, 1 - keep_probs).prod(-1)
    if contender.name == "self_critical":
        return torch.stack([every, map_policy(keep_probs).expand_as(every)]), chances
    if contender.name == "antithetic":
        # p and 1 - p cut the uniform numbers in three: one kept, both alike, the other kept.
        less = torch.minimum(keep_probs, 1 - keep_probs)
        lengths = torch.stack([less, 1 - 2 * less, less])  # (3, K)
        cells = torch.cartesian_prod(*[torch.arange(3)] * num_blocks).view(-1, num_blocks)
        alike = map_policy(keep_probs)
        pair = torch.stack([torch.where(cells == 1, alike, cells == side) for side in (0, 2)])
        return _repeated(pair, lengths[cells, torch.arange(num_blocks)].prod(-1), contender.samples // 2)
    if contender.name == "block_credit":
        flips = torch.tensor(list(itertools.combinations(range(num_blocks), contender.samples)))  # (F, flips)
        one = torch.eye(num_blocks, dtype=torch.bool)[flips].transpose(0, 1)  # (flips, F, K)
        turned = (every[:, None] ^ one[:, None]).flatten(1, 2)  # (flips, 2^K · F, K)
        policies = torch.cat([every.repeat_interleave(len(flips), 0)[None], turned])
        return policies, chances.repeat_interleave(len(flips)) / len(flips)
    return _repeated(every[None], chances, contender.samples)


def _repeated(policies: Tensor, chances: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Several independent ones of the draws (S, M, K): (times · S, M^times, K) and (M^times,)."""
    chosen = torch.cartesian_prod(*[torch.arange(len(chances))] * times).view(-1, times)
    return policies[:, chosen.T].transpose(0, 1).flatten(0, 1), chances[chosen].prod(-1)


def _numbers(policies: Tensor) -> Tensor:
    """Rows in `every_policy`: (…, K) to int64 (…,)."""
    return (policies * 2 ** torch.arange(policies.shape[-1] - 1, -1, -1)).sum(-1)


def executions(policies: Tensor) -> Tensor:
    """Block executions for each image: bool (S, M, K) to float64 (M,)."""
    draws, which = _numbers(policies).sort(0).values.unique(dim=1, return_inverse=True)  # their order is all one
    counts = [_executions(tuple(draw), policies.shape[-1]) for draw in draws.T.tolist()]
    return torch.tensor(counts, dtype=torch.float64)[which]


@functools.cache
def _executions(numbers: tuple[int, ...], num_blocks: int) -> int:
    return block_executions(every_policy(num_blocks)[list(numbers)].unsqueeze(1))


# ---- measured


def measured_rows(
    config: EstimatorVarianceConfig, opened: Opened, count: int
) -> dict[RewardName, list[dict[str, Any]]]:
    """For each reward a row per estimator, over repeated draws for `count` test images."""
    compute = config.compute()
    dynamic = opened.dynamic
    classifier = executor(dynamic.network, dynamic.policy_network, compute, engine="torch")
    costs = torch.tensor(dynamic.flop_table().blocks)
    rewards: dict[RewardName, Reward] = {
        name: Reward(name, config.penalty, costs) for name in ("blockdrop", "log_likelihood")
    }
    names = contenders(config.samples, classifier.num_blocks)
    variances = {name: torch.zeros(len(names), dtype=torch.float64) for name in rewards}
    executed = torch.zeros(len(names), dtype=torch.float64)
    chosen = torch.randperm(len(opened.data.test), generator=torch.Generator().manual_seed(config.seed))[:count]
    batches = opened.data.test.subset(chosen).batches(
        config.batch_size, opened.dynamic.normalisation, compute.device, channels_last=compute.channels_last
    )
    draws = torch.Generator(compute.device).manual_seed(config.seed)
    for images, labels in progress(batches, "drawing", -(-count // config.batch_size)):
        logits = classifier.keep_probs(images).double().logit()
        keep_probs = bound_keep_probs(logits.sigmoid(), config.alpha)  # (N, K)
        for row, contender in enumerate(names):
            policies = torch.stack([contender.estimator.draw(keep_probs, draws) for _ in range(config.repeats)])
            outputs = [classifier(images, policy=each)[0] for each in policies]  # R of (S, N, classes)
            executed[row] += sum(map(block_executions, policies)) / config.repeats
            for name, reward in rewards.items():
                paid = [reward(*each) for each in zip(outputs, itertools.repeat(labels), policies)]
                variance = sampled_variance(contender, logits, config.alpha, policies, torch.stack(paid).double())
                variances[name][row] += variance.sum().cpu()
    found = {}
    for name in rewards:
        each = zip(names, (variances[name] / count).tolist(), (executed / count).tolist(), strict=True)
        found[name] = relative([{"reward": name, **row_of(*row)} for row in each])
    return found


def sampled_variance(
    contender: Contender, logits: Tensor, alpha: float, policies: Tensor, rewards: Tensor
) -> Tensor:
    """Variance of the gradient over R repeats, summed over the decisions: (N,).

    value_baseline gets each image's mean reward over all the repeats. That each is among them itself makes it look
    better than it is, by about one part in the number of rewards.

    Args:
        logits: (N, K).
        policies, rewards: (R, S, N, K) and (R, S, N).
    """
    repeats = len(policies)
    mean_reward = rewards.mean((0, 1)).repeat(repeats)
    policies, rewards = (x.transpose(0, 1).flatten(1, 2) for x in (policies, rewards))  # (S, R · N, …)
    found = gradients(contender, logits.repeat(repeats, 1), alpha, policies, rewards, mean_reward)
    return found.unflatten(0, (repeats, -1)).var(0).sum(-1)


# ---- both


def gradients(
    contender: Contender, logits: Tensor, alpha: float, policies: Tensor, rewards: Tensor, values: Tensor
) -> Tensor:
    """Of each image's loss by its logits: (N, K).

    Args:
        logits: (N, K), before the keep probabilities are bounded.
        policies, rewards: (S, N, K) and (S, N).
        values: (N,), for value_baseline.
    """
    logits = logits.clone().requires_grad_()
    estimator = contender.estimator
    value = (values,) if estimator.wants_values else ()
    loss = estimator.loss(bound_keep_probs(logits.sigmoid(), alpha), policies, rewards, *value)
    return torch.autograd.grad(loss * len(logits), logits)[0]  # the loss is the mean over the images


def row_of(contender: Contender, variance: float, cost: float) -> dict[str, Any]:
    """A row of the table, without `relative`."""
    return {**asdict(contender), "title": str(contender), "variance": variance, "executions": cost}


def relative(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their variance × cost relative to the first one's."""
    first = rows[0]["variance"] * rows[0]["executions"]
    require(
        first > 0, "self_critical's gradient has no variance: every policy earns the same, or none is left open"
    )
    return [{**row, "relative": row["variance"] * row["executions"] / first} for row in rows]


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """The rows for the terminal."""
    width = max(len(row["title"]) for row in rows)
    print(f"\n{title}\n{'':{width}}   variance  block executions  variance × cost, of self_critical's")
    for row in rows:
        print(
            f"{row['title']:{width}}  {row['variance']:9.4g}  {row['executions']:16.2f}  {row['relative']:35.3f}"
        )


if __name__ == "__main__":
    run_command(main, EstimatorVarianceConfig, __doc__)
