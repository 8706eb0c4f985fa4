"""What `evaluate` measures: the full and the dynamic network on the same images, at one threshold or many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    curve_thresholds,
    threshold_for_budget,
)
from blockdrop.measure import evaluate_images, executor, look_through, measure_speed
from blockdrop.models.checkpoints.operating_points import check_operating_point
from blockdrop.names import EngineName
from blockdrop.policy_stats import Outcomes
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

    def outcomes(self, images: Images, threshold: float) -> Outcomes:
        """Of the dynamic network."""
        decider: Decider
        if self.opened.static is not None:
            decider = Static(self.opened.static)
        elif self.dynamic.policy_network is not None:
            decider = Learned(look_through(self.run, self.compute.processes), self.dynamic.num_blocks, threshold)
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
        self, images: Images, policies: Sequence[float | Tensor]
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


def given_operating_point(threshold: float | None, dynamic: DynamicNetwork) -> dict[str, Any]:
    """The threshold that is given, else the checkpoint's with how it was chosen, else 0.5."""
    stored = dynamic.operating_point if dynamic.policy_network is not None else None
    if threshold is not None or stored is None:
        return check_operating_point({"threshold": threshold or DEFAULT_THRESHOLD})
    print(f"threshold {stored['threshold']:.9g}: the checkpoint's operating point", end="")
    if stored["budget"] is not None:
        print(f", chosen for a budget of {stored['budget']}", end="")
    if stored["held_out_images"] is not None:
        print(f" on {stored['held_out_images']:,} test images (which this report may count again)", end="")
    print()
    return stored


def choose_operating_point(budget: float, bench: Bench, choosing: Images) -> dict[str, Any]:
    """The threshold whose cost on the choosing images comes nearest to the budget from below.

    Raises:
        BlockdropError: no threshold meets the budget.
    """
    keep_probs = bench.outcomes(choosing, DEFAULT_THRESHOLD).keep_probs
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


def print_report(
    bench: Bench,
    point: dict[str, Any],
    outcomes: Outcomes,
    full: Outcomes,
    full_speed: float | None,
    speed: float | None,
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
    print(f"full network: accuracy {full.accuracy:.4f}, {table.full:,} FLOPs/img")
    included = f"{table.policy_network:,} FLOPs, {table.policy_network / table.full:.1%} of the full network"
    note = f" (policy network included: {included})" if bench.dynamic.policy_network is not None else ""
    print(f"FLOPs saved: {1 - flops / table.full:.1%}{note}")
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
    print("usage per block, stage by stage:")
    usage = outcomes.usage_per_block.split(list(bench.dynamic.network.stage_sizes))
    for stage, shares in enumerate(usage):
        print(f"    stage {stage + 1}: {' '.join(f'{share:.3f}' for share in shares.tolist())}")


def trace_curve(
    bench: Bench, images: Images, threshold: float, outcomes: Outcomes, speed: float | None
) -> list[CurveRow]:
    """Prints and returns what other thresholds give on the same images, and 0.5, and the report's own."""
    assert outcomes.keep_probs is not None
    thresholds = curve_thresholds(outcomes.keep_probs, bench.table, include=(DEFAULT_THRESHOLD, threshold))
    print(f"{'threshold':>11}  accuracy  {'blocks':>14}  {'FLOPs/img (of full)':>19}  policies  images/s")
    others = [other for other in thresholds if other != threshold]
    speeds = {threshold: speed, **dict(zip(others, bench.speeds(images, others)[1], strict=True))}
    shown = {other: "-" if found is None else f"{found:.0f}" for other, found in speeds.items()}
    curve = []
    for other in thresholds:
        found = outcomes if other == threshold else bench.outcomes(images, other)
        blocks, blocks_std = found.block_usage
        flops = found.flops_per_image[0]
        share = flops / bench.table.full
        print(
            f"{other:>11.9g}  {found.accuracy:>8.4f}  {blocks:>6.2f} ± {blocks_std:>5.2f}  "
            f"{flops:>10.2E} ({share:>6.1%})  {found.unique_policies:>8}  {shown[other]:>8}"
            f"{'  < reported above' if other == threshold else ''}"
        )
        curve.append(
            CurveRow(
                threshold=other,
                accuracy=found.accuracy,
                block_usage_mean=blocks,
                block_usage_std=blocks_std,
                flops_mean=flops,
                flops_fraction=share,
                unique_policies=found.unique_policies,
                images_per_second=speeds[other],
            )
        )
    return curve


def save_with_operating_point(path: str, dynamic: DynamicNetwork, point: dict[str, Any]) -> None:
    """Writes both networks, and what the policy network's checkpoint says, to a file of our dialect."""
    dynamic.operating_point = point
    dynamic.save(path, overwrite=True)  # the flag is checked
    print(f"checkpoint with threshold {point['threshold']:.9g}: {path}")
