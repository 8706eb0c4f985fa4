"""Whether it pays to look again: early exits after each stage, beside a policy network that answers.

An exit is a linear head on the mean-pooled map after a stage, fitted by logistic regression to what the frozen
network makes of training images (internal classifiers: Kaya et al. 2019, Shallow-Deep Networks, arXiv:1810.07052).
An image that the policy network doesn't answer leaves there, if the head's largest probability reaches the exit
threshold. For each budget the best pair of answer threshold and exit threshold is chosen on one half of the test
images and reported on the other, beside the best answer threshold without an exit.

To try it: --model R8_Digits --load cv/digits-glance --images 500
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from agents.answers import NEVER, with_answers
from agents.policies import map_policy
from blockdrop.console import run_command
from blockdrop.data import Images, evenly_spaced
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import require
from blockdrop.flops import FlopTable, count_module_flops
from blockdrop.inference.operating_point import (
    AnswerOutcomes,
    RestOutcomes,
    held_out_halves,
    pair_for_budget,
)
from blockdrop.models.droppable import Droppable
from blockdrop.output import check_writable, write_json
from blockdrop.progress import progress
from blockdrop.ranges import CheckpointName, Count, Probability
from blockdrop.tables import table
from blockdrop.training.compute import Compute
from blockdrop.training.config import ModelConfig, Share
from blockdrop.training.opening import open_networks

EXIT_THRESHOLDS = 100
"""Tried of each exit, spread evenly over the images by their confidence."""


@dataclass(kw_only=True)
class ExitsConfig(ModelConfig):
    """Flags of `python -m experiments.measurements.exits`."""

    load: tuple[CheckpointName, ...] = ()
    """Checkpoints or run directories with a backbone and a policy network that answers."""
    images: Count = 20_000
    """Training images to fit the exits' heads to, drawn from all."""
    threshold: Probability | None = None
    """Threshold of the policies. Default: the checkpoint's."""
    all_blocks: bool = False
    """Run all blocks for images that aren't answered, whatever the threshold."""
    budgets: tuple[Share, ...] = (0.6, 0.45, 0.3)
    """Mean costs, as fractions of the full network's FLOPs, everything included."""
    json: str | None = None
    """Write the rows to this file."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""

    def check(self) -> None:
        super().check()
        require(len(self.load) > 0, "--load: name a checkpoint or run directory")
        require(len(self.budgets) > 0, "--budgets: name at least one")
        require(not (self.all_blocks and self.threshold), "--threshold: means nothing with --all_blocks")
        if self.json is not None:
            check_writable("--json", self.json, self.overwrite)


class Seen(NamedTuple):
    """What the network makes of images that aren't answered; tensors are on the CPU."""

    pooled: list[Tensor]
    """Mean-pooled maps after each stage but the last, (N, C)."""
    logits: Tensor
    """(N, classes), the answers added with their weight."""
    answer: Tensor
    """(N, classes)."""
    policy: Tensor
    """bool (N, K)."""
    labels: Tensor
    """int64 (N,)."""


def main(config: ExitsConfig) -> dict[str, Any]:
    """Fits the heads, prints the table; returns the numbers."""
    config.check()
    opened, compute = open_networks(config, config.load), config.compute()
    dynamic, files = opened.dynamic, " ".join(config.load)
    require(opened.has_backbone, f"--load {files}: a policy network without its backbone; name that too")
    answers = dynamic.policy_network is not None and dynamic.policy_network.answer is not None
    require(answers, f"--load {files}: no policy network that answers; finetune --recipe answers makes one")
    threshold = dynamic.threshold if config.threshold is None else config.threshold
    keep = 0.0 if config.all_blocks else threshold
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(opened.data.train), generator=generator)[: config.images]
    learned = see(dynamic, opened.data.train.subset(chosen), compute, keep, config.batch_size)
    seen = see(dynamic, opened.data.test, compute, keep, config.batch_size)
    flops = dynamic.flop_table()
    rows = rows_without_exit(seen, flops, config.budgets)
    for stage in range(len(seen.pooled)):
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        head.fit(learned.pooled[stage].numpy(), learned.labels.numpy())
        chances = torch.zeros(seen.logits.shape)
        chances[:, head.classes_] = torch.from_numpy(head.predict_proba(seen.pooled[stage].numpy())).float()
        costs = costs_of_exit(dynamic, flops, stage, seen)
        rows += rows_of_exit(stage, chances, costs, seen, flops, config.budgets)
    print(markdown(rows))
    numbers = {"rows": rows, "config": asdict(config)}
    if config.json is not None:
        write_json("--json", config.json, numbers)
    return numbers


@torch.no_grad()
def see(dynamic: DynamicNetwork, images: Images, compute: Compute, keep: float, batch_size: int) -> Seen:
    """Runs images, not augmented, under their policies at the threshold `keep`."""
    network, policy_network = compute.place(dynamic.network).eval(), dynamic.policy_network
    assert isinstance(network, Droppable)
    assert policy_network is not None
    compute.place(policy_network).eval()
    ends = torch.tensor(network.stage_sizes).cumsum(0).tolist()[:-1]
    normalisation = dynamic.normalisation
    batches = images.batches(batch_size, normalisation, compute.device, channels_last=compute.channels_last)
    found: list[list[Tensor]] = [[] for _ in range(4 + len(ends))]
    for batch, labels in progress(batches, "looking", -(-len(images) // batch_size)):
        glance = policy_network.glance(batch)
        policy = map_policy(glance.keep_probs, keep)
        x, pooled = network.stem(batch), []
        for k, (branch, always) in enumerate(network.branches()):
            inner, shortcut = network.enter(x, always)
            run = network.kept(branch, shortcut if inner is None else inner, shortcut)
            x = torch.where(policy[:, k].view(-1, *[1] * (run.dim() - 1)), run, shortcut)
            if k + 1 in ends:
                pooled.append(x.mean((2, 3)))
        logits = with_answers(network.head(x), glance.answer, None, policy_network.answer_weight)
        assert glance.answer is not None
        for parts, part in zip(found, (logits, glance.answer, policy, labels, *pooled), strict=True):
            parts.append(part.cpu())
    logits, answer, policy, labels, *maps = map(torch.cat, found)
    return Seen(maps, logits, answer, policy, labels)


def costs_of_exit(dynamic: DynamicNetwork, flops: FlopTable, stage: int, seen: Seen) -> tuple[Tensor, Tensor]:
    """FLOPs of images that leave after a stage, and of those that the exit's head lets go on, int64 (N,) both;
    policy network included."""
    network = dynamic.network
    end = sum(network.stage_sizes[: stage + 1])
    size = dynamic.image_size
    counts = count_module_flops(network, torch.zeros(1, 3, size, size))
    later = {module for _, always in network.branches()[end:] if always is not None for module in always.modules()}
    saved = sum(count for module, count in counts.items() if module in later or module is network.fc)
    head = 2 * seen.pooled[stage].shape[1] * seen.logits.shape[1]
    whole = flops.per_image(seen.policy)
    blocks = (seen.policy[:, end:].long() * torch.tensor(flops.blocks[end:])).sum(1)
    return whole - blocks - saved + head, whole + head


def rows_without_exit(seen: Seen, flops: FlopTable, budgets: Sequence[float]) -> list[dict[str, Any]]:
    """The rival: answers alone."""
    right = seen.logits.argmax(1) == seen.labels
    rest = RestOutcomes(NEVER, right, flops.per_image(seen.policy))
    return [_row("none", [rest], budget, seen, flops, torch.zeros(len(right))) for budget in budgets]


def rows_of_exit(
    stage: int,
    chances: Tensor,
    costs: tuple[Tensor, Tensor],
    seen: Seen,
    flops: FlopTable,
    budgets: Sequence[float],
) -> list[dict[str, Any]]:
    """Of one exit, at each budget.

    Args:
        chances: (N, classes), the head's probabilities.
        costs: of `costs_of_exit`.
    """
    sure, right = chances.amax(1), chances.argmax(1) == seen.labels
    later = seen.logits.argmax(1) == seen.labels
    spread = evenly_spaced(len(sure), EXIT_THRESHOLDS)
    rests = []
    for threshold in sorted({*sure.sort().values[spread].tolist(), NEVER}):
        leaves = sure >= threshold
        rests.append(RestOutcomes(threshold, right.where(leaves, later), costs[0].where(leaves, costs[1])))
    return [_row(f"after stage {stage + 1}", rests, budget, seen, flops, sure) for budget in budgets]


def _row(
    exit: str, rests: list[RestOutcomes], budget: float, seen: Seen, flops: FlopTable, sure: Tensor
) -> dict[str, Any]:
    """Chosen on one half, reported on the other. sure: (N,), confidence of the exit's head."""
    choosing, reported = held_out_halves(seen.labels)
    answers = AnswerOutcomes.of(seen.answer, seen.labels)
    some = [RestOutcomes(rest.threshold, rest.right[choosing], rest.flops[choosing]) for rest in rests]
    pair = pair_for_budget(some, AnswerOutcomes(*(part[choosing] for part in answers)), flops, budget)
    (rest,) = (one for one in rests if one.threshold == pair.threshold)
    answered = answers.confidence >= pair.answer_threshold
    right = answers.right.where(answered, rest.right)[reported].double()
    cost = rest.flops.where(~answered, flops.policy_network)[reported].double()
    return {
        "exit": exit,
        "budget": budget,
        "accuracy": right.mean().item(),
        "flops": cost.mean().item() / flops.full,
        "answered": answered[reported].double().mean().item(),
        "left": ((sure >= pair.threshold) & ~answered)[reported].double().mean().item(),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    shares = {
        "budget %": "budget", "accuracy %": "accuracy", "FLOPs %": "flops", "answered %": "answered",
        "left at the exit %": "left",
    }  # fmt: skip
    cells = [{title: f"{100 * row[name]:.2f}" for title, name in shares.items()} for row in rows]
    return table([{"exit": row["exit"], **own} for row, own in zip(rows, cells, strict=True)], words=1)


if __name__ == "__main__":
    run_command(main, ExitsConfig, __doc__)
