"""What `evaluate` measures: the full and the dynamic network on the same images, at one threshold or many."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agents.answers import NEVER, Thresholds, is_sure, with_answers
from agents.deciders import Decider, Learned, Static, keep_all
from agents.names import DEFAULT_THRESHOLD
from agents.policies import map_policy
from blockdrop.data import Images
from blockdrop.dynamic import DynamicNetwork
from blockdrop.evaluation import CurveRow
from blockdrop.inference.executor import Executor
from blockdrop.inference.operating_point import (
    DROP_ALL,
    KEEP_ALL,
    AnswerOutcomes,
    Pair,
    RestOutcomes,
    curve_thresholds,
    front_of_pairs,
    pair_for_budget,
    threshold_for_budget,
)
from blockdrop.measure import (
    Latency,
    evaluate_images,
    executor,
    latency_words,
    look_through,
    measure_latency,
    measure_speed,
)
from blockdrop.models.checkpoints.operating_points import (
    check_operating_point,
    thresholds_of,
    thresholds_record,
)
from blockdrop.names import EngineName
from blockdrop.policy_stats import Outcomes
from blockdrop.training.answers import FEW, fit_weight, run_under
from blockdrop.training.brought import brought_accuracy
from blockdrop.training.compute import Compute
from blockdrop.training.opening import Opened


def right(outcomes: Outcomes) -> str:
    """A character for each image, in order: 1 where the prediction is right, else 0."""
    return "".join("01"[int(found)] for found in outcomes.correct)


def images_digest(classes: Sequence[str], labels: Tensor) -> str:
    """16 hexadecimal digits that tell test sets apart by their class names and the images' labels, in order.

    Two sets that agree in both look the same, whatever their images show.
    """
    names = "\n".join(classes).encode("utf-8", "surrogatepass")  # a folder's name may be undecodable
    content = names + b"\0" + labels.to(torch.int64).numpy().astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


class Bench:
    """Runs the full and the dynamic network on images.

    Args:
        opened: whose policy network or static policy decides.
    """

    def __init__(
        self, opened: Opened, compute: Compute, batch_size: int, engine: EngineName, measures_speed: bool
    ):
        self.opened, self.dynamic = opened, opened.dynamic
        self.batch_size, self.compute, self.measures_speed = batch_size, compute, measures_speed
        network, policy_network = self.dynamic.network, self.dynamic.policy_network
        self.table = self.dynamic.flop_table()
        self.run = executor(network, policy_network, compute, engine)
        self.full = self.run  # where nothing is dropped they are the same
        if opened.decides:
            self.full = executor(network, None, compute, engine)

    @property
    def answers(self) -> bool:
        """Whether the policy network can answer images."""
        network = self.dynamic.policy_network
        return network is not None and network.answer is not None

    def outcomes(self, images: Images, thresholds: Thresholds) -> Outcomes:
        """Of the dynamic network."""
        decider: Decider
        if self.opened.static is not None:
            decider = Static(self.opened.static)
        elif self.dynamic.policy_network is not None:
            look = look_through(self.run, self.compute.processes)
            decider = Learned(look, self.dynamic.num_blocks, *thresholds)
        else:
            decider = keep_all(self.dynamic.num_blocks)
        return self._evaluate(images, decider, self.run)

    def full_outcomes(self, images: Images) -> Outcomes:
        """Of the full network."""
        return self._evaluate(images, keep_all(self.dynamic.num_blocks), self.full)

    def _evaluate(self, images: Images, decider: Decider, run: Executor) -> Outcomes:
        return evaluate_images(
            self.dynamic, images, self.compute, decider=decider, run=run, batch_size=self.batch_size
        )

    def speeds(
        self, images: Images, policies: Sequence[Thresholds | Tensor]
    ) -> tuple[float | None, Sequence[float | None]]:
        """Images per second, full and dynamic at each threshold or under each policy, bool (N, K); None with
        --no_speed."""
        if not self.measures_speed:
            return None, [None] * len(policies)
        return measure_speed(
            self.full,
            self.run,
            images,
            self.dynamic.normalisation,
            batch_size=self.batch_size,
            policies=policies,
            channels_last=self.compute.channels_last,
        )

    def latencies(self, images: Images, policy: Thresholds | Tensor) -> tuple[Latency, Latency] | None:
        """Milliseconds of single images, of the full network and of the dynamic one; None with --no_speed."""
        if not self.measures_speed:
            return None
        return measure_latency(
            self.full, self.run, images, self.dynamic.normalisation, policy, self.compute.channels_last
        )


def given_operating_point(
    threshold: float | None, answer_threshold: float | None, dynamic: DynamicNetwork
) -> dict[str, Any]:
    """The thresholds that are given, else the checkpoint's with how they were chosen, else 0.5 and no answers."""
    stored = dynamic.operating_point if dynamic.policy_network is not None else None
    if threshold is not None or answer_threshold is not None or stored is None:
        own = thresholds_of(stored)
        given = Thresholds(
            (DEFAULT_THRESHOLD if answer_threshold is None else own.keep) if threshold is None else threshold,
            own.answer if answer_threshold is None else answer_threshold,
        )
        return check_operating_point(thresholds_record(given))
    answer = f" and answer threshold {stored['answer_threshold']:.9g}" if "answer_threshold" in stored else ""
    print(f"threshold {stored['threshold']:.9g}{answer}: the checkpoint's operating point", end="")
    if stored["budget"] is not None:
        print(f", chosen for a budget of {stored['budget']}", end="")
    if stored["held_out_images"] is not None:
        print(f" on {stored['held_out_images']:,} test images (which this report may count again)", end="")
    print()
    return stored


def choose_operating_point(budget: float, bench: Bench, choosing: Images) -> dict[str, Any]:
    """The threshold whose cost on the choosing images comes nearest to the budget from below; of a policy network
    that answers the pair of thresholds within the budget that gets most of these images right.

    Raises:
        BlockdropError: no threshold meets the budget.
    """
    if bench.answers:
        return _choose_pair(budget, bench, choosing)
    keep_probs = bench.outcomes(choosing, Thresholds()).keep_probs
    assert keep_probs is not None
    threshold = threshold_for_budget(keep_probs, bench.table, budget)
    flops = bench.table.per_image(map_policy(keep_probs, threshold)).double().mean().item()
    note = {
        KEEP_ALL: " (the budget pays for all blocks)",
        DROP_ALL: " (the highest there is: it drops all it can)",
    }
    print(f"threshold {threshold:.9g} meets the budget{note.get(threshold, '')}")
    return check_operating_point(
        {
            "threshold": threshold,
            "budget": budget,
            "flops_fraction": flops / bench.table.full,
            "held_out_images": len(choosing),
        }
    )


def _choose_pair(budget: float, bench: Bench, choosing: Images) -> dict[str, Any]:
    rests = outcomes_of_the_rest(bench, choosing)
    answers = answers_of(rests)
    pair = pair_for_budget(rests_of(rests), answers, bench.table, budget)
    rest = rests[pair.threshold]
    weight, right = fit_answer_weight(bench, choosing, pair, rest)
    same_threshold = RestOutcomes(pair.threshold, right, rest.flops)
    fitted = pair_for_budget([same_threshold], answers, bench.table, budget)
    network = bench.dynamic.policy_network
    assert network is not None
    assert network.answer_weight is not None
    if fitted.right > pair.right:
        pair, why = fitted, "which fits these images best"
        with torch.no_grad():
            network.answer_weight.fill_(weight)
    else:
        why = f"the checkpoint's: with {weight:.3f}, which fits these images best, no more of them are right"
    print(f"weight of answers beside the ResNet's logits: {network.answer_weight.item():.3f}, {why}")
    print(
        f"threshold {pair.threshold:.9g} and answer threshold {pair.answer_threshold:.9g}: the best pair within "
        f"the budget, with {pair.answered / len(choosing):.1%} of these images answered"
    )
    return check_operating_point(
        {
            **thresholds_record(Thresholds(pair.threshold, pair.answer_threshold)),
            "budget": budget,
            "flops_fraction": pair.flops / len(choosing) / bench.table.full,
            "held_out_images": len(choosing),
        }
    )


def fit_answer_weight(bench: Bench, images: Images, pair: Pair, rest: Outcomes) -> tuple[float, Tensor]:
    """The weight of answers beside the ResNet's logits that fits those images best that a pair of thresholds gives
    to the ResNet (all images, if these are few); and which images the ResNet gets right with it, bool (N,).

    Args:
        rest: of the images at the pair's threshold, none of them answered.
    """
    assert rest.answer is not None
    logits = run_under(bench.dynamic, rest.policy, images, bench.compute)
    left = ~is_sure(rest.answer, pair.answer_threshold, rest.policy)
    left = left if int(left.sum()) >= FEW else torch.ones_like(left)
    weight = fit_weight(logits[left], rest.answer[left], rest.labels[left])
    return weight, with_answers(logits, rest.answer, None, weight).argmax(1) == rest.labels


def outcomes_of_the_rest(bench: Bench, images: Images, include: Sequence[float] = ()) -> dict[float, Outcomes]:
    """What images get if none is answered, under the policy network's own threshold and about nine others."""
    first = Thresholds(bench.dynamic.threshold)
    own = bench.outcomes(images, first)
    assert own.keep_probs is not None
    thresholds = curve_thresholds(own.keep_probs, bench.table, include=(first.keep, *include))
    return {at: own if at == first.keep else bench.outcomes(images, Thresholds(at)) for at in thresholds}


def rests_of(rests: Mapping[float, Outcomes]) -> list[RestOutcomes]:
    """As `pair_for_budget` takes them."""
    return [RestOutcomes(threshold, found.correct, found.flops) for threshold, found in rests.items()]


def answers_of(rests: Mapping[float, Outcomes]) -> AnswerOutcomes:
    """As `pair_for_budget` takes them."""
    found = next(iter(rests.values()))
    assert found.answer is not None
    return AnswerOutcomes.of(found.answer, found.labels)


def print_report(
    bench: Bench,
    point: dict[str, Any],
    outcomes: Outcomes,
    full: Outcomes,
    full_speed: float | None,
    speed: float | None,
    latencies: tuple[Latency, Latency] | None = None,
) -> None:
    """What the dynamic network does and costs, beside the full one."""
    table = bench.table
    flops = outcomes.flops_per_image[0]
    print(outcomes.four_lines())
    if not bench.opened.decides:
        parameters = sum(p.numel() for p in bench.dynamic.network.parameters())
        print(f"every block runs: {table.full:,} FLOPs/img, {parameters:,} parameters")
        if speed is not None:
            print(f"images/s at batch {bench.batch_size}: {speed:.0f}")
        return
    brought = brought_accuracy(bench.dynamic, len(bench.opened.data.test))
    if brought is not None:
        same = len(outcomes.labels) == len(bench.opened.data.test)  # --budget reports on half of the images
        change = f"; {100 * (outcomes.accuracy - brought):+.2f} points since" if same else ""
        print(f"network as brought: accuracy {brought:.4f} before it was trained to drop blocks{change}")
    print(f"full network: accuracy {full.accuracy:.4f}, {table.full:,} FLOPs/img")
    included = f"{table.policy_network:,} FLOPs, {table.policy_network / table.full:.1%} of the full network"
    note = f" (policy network included: {included})" if bench.dynamic.policy_network is not None else ""
    print(f"FLOPs saved: {1 - flops / table.full:.1%}{note}")
    if outcomes.answered_share is not None:
        rights = {"them": outcomes.answered_accuracy, "the others": outcomes.rest_accuracy}
        shown = ", ".join(f"among {who} {share:.4f}" for who, share in rights.items() if share is not None)
        print(f"answered by the policy network: {outcomes.answered_share:.1%} of the images; accuracy {shown}")
    if point["flops_fraction"] is not None:
        print(
            f"FLOPs used, of a budget of {point['budget']:.2%}: {point['flops_fraction']:.2%} on the images that "
            f"chose the threshold, {flops / table.full:.2%} on those reported"
        )
    if speed is not None and full_speed is not None:
        print(
            f"images/s at batch {bench.batch_size}: full {full_speed:.0f}, dynamic {speed:.0f} "
            f"({speed / full_speed:.2f} ×)"
        )
    if latencies is not None:
        print(f"one image at a time: {latency_words(*latencies)}")
    print("usage per block, stage by stage:")
    usage = outcomes.usage_per_block.split(list(bench.dynamic.network.stage_sizes))
    for stage, shares in enumerate(usage):
        print(f"    stage {stage + 1}: {' '.join(f'{share:.3f}' for share in shares.tolist())}")


def trace_curve(
    bench: Bench,
    images: Images,
    thresholds: Thresholds,
    outcomes: Outcomes,
    speed: float | None,
    choosing: Images | None = None,
) -> list[CurveRow]:
    """Prints and returns what other thresholds give on the same images, and 0.5, and the report's own; of a policy
    network that answers the front of pairs of thresholds, and the report's own.

    Args:
        choosing: images that choose the front; default: those that are reported.
    """
    found: dict[Thresholds, Outcomes] = {}
    if bench.answers:
        print(f"front of pairs, chosen on {'the reported' if choosing is None else 'the choosing'} images")
        chosen_by = outcomes_of_the_rest(bench, images if choosing is None else choosing)
        front = front_of_pairs(rests_of(chosen_by), answers_of(chosen_by), bench.table)
        for pair in front:
            at = Thresholds(pair.threshold, pair.answer_threshold)
            rest = chosen_by[at.keep] if choosing is None else bench.outcomes(images, Thresholds(at.keep))
            found[at] = rest.answering(at.answer, bench.table.policy_network)
    else:
        assert outcomes.keep_probs is not None
        include = (DEFAULT_THRESHOLD, thresholds.keep)
        for threshold in curve_thresholds(outcomes.keep_probs, bench.table, include=include):
            at = Thresholds(threshold)
            found[at] = outcomes if at == thresholds else bench.outcomes(images, at)
    found[thresholds] = outcomes
    answers = "  answered from  answered" if bench.answers else ""
    print(f"{'threshold':>11}{answers}  accuracy  {'blocks':>14}  {'FLOPs/img (of full)':>19}  policies  images/s")
    others = [other for other in found if other != thresholds]
    speeds = {thresholds: speed, **dict(zip(others, bench.speeds(images, others)[1], strict=True))}
    curve = []
    for at in sorted(found, key=lambda at: (-found[at].flops_per_image[0], at)):
        row = _curve_row(bench, at, found[at], speeds[at])
        _print_curve_row(row, at == thresholds)
        curve.append(row)
    return curve


def _curve_row(bench: Bench, at: Thresholds, found: Outcomes, speed: float | None) -> CurveRow:
    blocks, blocks_std = found.block_usage
    flops = found.flops_per_image[0]
    return CurveRow(
        threshold=at.keep,
        accuracy=found.accuracy,
        block_usage_mean=blocks,
        block_usage_std=blocks_std,
        flops_mean=flops,
        flops_fraction=flops / bench.table.full,
        unique_policies=found.unique_policies,
        images_per_second=speed,
        answer_threshold=None if at.answer == NEVER else at.answer,
        answered=found.answered_share,
    )


def _print_curve_row(row: CurveRow, own: bool) -> None:
    answers = ""
    if row.answered is not None:
        start = "-" if row.answer_threshold is None else f"{row.answer_threshold:.9g}"
        answers = f"  {start:>13}  {row.answered:>8.1%}"
    speed = "-" if row.images_per_second is None else f"{row.images_per_second:.0f}"
    print(
        f"{row.threshold:>11.9g}{answers}  {row.accuracy:>8.4f}  {row.block_usage_mean:>6.2f} ± "
        f"{row.block_usage_std:>5.2f}  {row.flops_mean:>10.2E} ({row.flops_fraction:>6.1%})  "
        f"{row.unique_policies:>8}  {speed:>8}{'  < reported above' if own else ''}"
    )


def save_with_operating_point(path: str, dynamic: DynamicNetwork, point: dict[str, Any]) -> None:
    """Writes both networks, and what the policy network's checkpoint says, to a file of our dialect."""
    dynamic.operating_point = point
    dynamic.save(path, overwrite=True)  # the flag is checked
    answer = f" and answer threshold {point['answer_threshold']:.9g}" if "answer_threshold" in point else ""
    print(f"checkpoint with threshold {point['threshold']:.9g}{answer}: {path}")
