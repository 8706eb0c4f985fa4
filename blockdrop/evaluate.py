"""Accuracy, block usage, FLOPs and speed of a dynamic network beside the full one, or of a static net.

Without a policy network (no checkpoint, or a backbone alone) every block is kept and no policy network runs
or is counted.

With --budget, half of the test images choose the threshold that meets it, and the report is about the other
half: the training images were trained on, and images that chose would flatter the report.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from agents.policies import map_policy
from agents.policy_network import PolicyNetwork
from agents.static_policies import StaticPolicy
from blockdrop.console import run_command
from blockdrop.data import Images
from blockdrop.errors import require
from blockdrop.flops import count_flops
from blockdrop.inference.executor import Executor
from blockdrop.inference.operating_point import (
    DROP_ALL,
    KEEP_ALL,
    curve_thresholds,
    held_out_halves,
    threshold_for_budget,
)
from blockdrop.measure import draw_static, evaluate_images, executor, measure_speed
from blockdrop.models.checkpoints.dialects import Checkpoint
from blockdrop.models.checkpoints.operating_points import check_operating_point
from blockdrop.models.checkpoints.saving import save_checkpoint
from blockdrop.names import DEFAULT_THRESHOLD, EngineName, Precision
from blockdrop.output import check_writable, write_json
from blockdrop.policy_stats import Outcomes, policy_statistics, statistics_lines
from blockdrop.training.config import ModelConfig
from blockdrop.training.policies import open_static_policy
from blockdrop.training.setup import Setup, open_setup
from blockdrop.version import project_version


@dataclass(kw_only=True)
class EvaluateConfig(ModelConfig):
    """Flags of `python -m blockdrop.evaluate`."""

    load: tuple[str, ...] = ()
    """Checkpoints of any dialect, or run directories; backbone and policy network in one file or in two."""
    threshold: float | None = None
    """Run a block where its keep probability is at least this; default: the checkpoint's, else 0.5."""
    policy: str | None = None
    """Run no policy network, but this policy: full, first_k:K, random_k:K, dist_k:K (K blocks drawn by the policy
    network's usage on training images; dist_k:K:FILE: by that in a file of --json) or a file with a line of 0 and
    1 for all images, or one for each."""
    budget: float | None = None
    """Find the threshold for this fraction of the full network's FLOPs, policy network included."""
    curve: bool = False
    """Also report about ten other thresholds, from all blocks to none."""
    stats: bool = False
    """Also report what policies depend on: classes, difficulty, right and wrong predictions; and the most frequent
    ones."""
    speed: bool = True
    """Measure images/s, of the curve as well."""
    save: str | None = None
    """Write the checkpoint with the threshold (and the curve) to this new file."""
    precision: Precision = "float32"
    """float32, bfloat16, or auto (bfloat16 where the processor has it)."""
    engine: EngineName = "auto"
    """What runs it: torch, openvino, or auto (openvino where it is installed and knows the network's layers)."""
    json: str | None = None
    """Write all numbers to this file."""
    overwrite: bool = False
    """Replace the files of --json and --save if there are any."""

    def check(self) -> None:
        super().check()
        require(self.threshold is None or self.budget is None, "--threshold and --budget: pass one of them")
        for flag in ("threshold", "budget", "curve", "stats", "save"):
            require(self.policy is None or not getattr(self, flag), f"--policy and --{flag}: pass one of them")
        require(
            self.threshold is None or 0 < self.threshold < 1,
            f"--threshold {self.threshold}: must be above 0 and below 1",
        )
        require(
            self.budget is None or (self.budget > 0 and math.isfinite(self.budget)),
            f"--budget {self.budget}: must be a positive number, a fraction of the full network's FLOPs",
        )
        for flag, file in (("--json", self.json), ("--save", self.save)):
            if file is not None:
                check_writable(flag, file, self.overwrite)
        require(
            self.json is None or self.save is None or os.path.abspath(self.json) != os.path.abspath(self.save),
            f"--json and --save {self.save}: two files are needed",
        )


@dataclass(frozen=True)
class Evaluation:
    """What `main` found."""

    setup: Setup
    outcomes: Outcomes
    """Of the dynamic network; with --budget, on the half of the images that didn't choose the threshold."""
    full: Outcomes
    """Of the full network on the same images."""
    numbers: dict[str, Any]
    """What `--json` writes."""


def main(config: EvaluateConfig) -> Evaluation:
    """Prints the report, and writes its numbers where `--json` says and the checkpoint where `--save` says."""
    config.check()
    setup = open_setup(config, config.load)
    _check_inputs(config, setup)
    if config.policy is not None:
        setup.static = open_static_policy(config.policy, setup, config.compute())
        setup.has_policy = False
    bench = Bench(config, setup)
    images = setup.data.test
    print(
        f"evaluate {setup.model} on {len(images):,} test images of {setup.data.name}, {bench.compute}, "
        f"engine {bench.dynamic.engine}"
    )
    print(f"checkpoints: {', '.join(c.path for c in setup.checkpoints) or 'none, fresh weights'}")
    if not setup.resnet.droppable:
        print("a net without shortcuts: no block can be dropped")
    elif setup.static is not None:
        print(f"policy {setup.static.name}: no image is looked at, and no policy network is counted")
    elif not setup.has_policy:
        print("no policy network: every block is kept, and no policy network is counted")
    if setup.undecided:
        print(setup.undecided)

    if config.budget is None:
        point = given_operating_point(config, setup)
    else:
        choosing, reported = held_out_halves(images.labels)
        print(
            f"budget {config.budget}: {len(choosing):,} of the test images choose the threshold, the other "
            f"{len(reported):,} are reported (in order of their classes, dealt alternately)"
        )
        point = choose_operating_point(config.budget, bench, images.subset(choosing))
        images = images.subset(reported)
    threshold = point["threshold"]

    outcomes = bench.outcomes(images, threshold)
    full = bench.full_outcomes(images) if setup.decides else outcomes
    used = [threshold if setup.static is None else draw_static(setup.static, len(images))]
    full_speed, speeds = bench.speeds(images, used if setup.decides else [])
    speed = speeds[0] if speeds else full_speed
    print_report(bench, point, outcomes, full, full_speed, speed)
    statistics = None
    if config.stats:
        statistics = policy_statistics(outcomes, full, setup.data.classes, setup.resnet.stage_sizes)
        print(statistics_lines(statistics))
    curve = trace_curve(bench, images, threshold, outcomes, speed) if config.curve else []

    flops, flops_std = outcomes.flops_per_image
    numbers: dict[str, Any] = {
        "model": setup.model,
        "variant": setup.variant.numbers(),
        "parameters": sum(p.numel() for p in setup.resnet.parameters()),
        "dataset": setup.data.name,
        "images": len(outcomes.labels),
        "images_digest": images_digest(setup.data.classes, outcomes.labels),
        "checkpoints": [c.path for c in setup.checkpoints],
        "accuracy": outcomes.accuracy,
        "block_usage_mean": outcomes.block_usage[0],
        "block_usage_std": outcomes.block_usage[1],
        "num_blocks": setup.resnet.num_blocks,
        "flops_mean": flops,
        "flops_std": flops_std,
        "unique_policies": outcomes.unique_policies,
        "full_accuracy": full.accuracy,
        "full_flops": bench.table.full,
        "policy_network_flops": bench.table.policy_network,
        "flops_saved": 1 - flops / bench.table.full,
        "full_images_per_second": full_speed,
        "images_per_second": speed,
        "batch_size": config.batch_size,
        "usage_per_block": outcomes.usage_per_block.tolist(),
        "stage_sizes": list(setup.resnet.stage_sizes),
        "policy": config.policy,
        "policy_net": setup.policy_net if setup.has_policy else None,
        "threshold": threshold,
        "operating_point": {name: point[name] for name in ("budget", "flops_fraction", "held_out_images")},
        "statistics": None if statistics is None else asdict(statistics),
        "curve": curve,
        "right": right(outcomes),
        "compute": str(bench.compute),
        "version": project_version(),
        "config": asdict(config),
    }
    evaluation = Evaluation(setup, outcomes, full, numbers)
    if not bench.compute.processes.first:
        return evaluation
    if config.json is not None:
        write_json("--json", config.json, numbers)
        print(f"numbers: {config.json}")
    if config.save is not None:
        rows = [{k: v for k, v in row.items() if v is not None} for row in curve]  # --no_speed
        save_with_operating_point(config.save, setup, {**point, "curve": rows or point["curve"]})
    return evaluation


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
    """Runs the full and the dynamic network on images, as the flags say."""

    def __init__(self, config: EvaluateConfig, setup: Setup):
        self.setup, self.batch_size, self.compute = setup, config.batch_size, config.compute()
        self.measures_speed = config.speed
        self.policy_network = setup.policy_network if setup.has_policy else None
        self.table = count_flops(setup.resnet, self.policy_network, setup.image_size)
        self.dynamic = executor(setup.resnet, self.policy_network, self.compute, config.engine)
        self.full = self.dynamic  # where nothing is dropped they are the same
        if setup.decides:
            self.full = executor(setup.resnet, None, self.compute, config.engine)

    def outcomes(self, images: Images, threshold: float) -> Outcomes:
        """Of the dynamic network."""
        return self._evaluate(images, self.setup.static or self.policy_network, threshold, self.dynamic)

    def full_outcomes(self, images: Images) -> Outcomes:
        """Of the full network."""
        return self._evaluate(images, None, DEFAULT_THRESHOLD, self.full)

    def _evaluate(
        self, images: Images, policy_network: PolicyNetwork | StaticPolicy | None, threshold: float, run: Executor
    ) -> Outcomes:
        setup = self.setup
        how = (images, setup.normalisation, self.compute, self.batch_size, setup.image_size, threshold)
        return evaluate_images(setup.resnet, policy_network, *how, run=run)

    def speeds(
        self, images: Images, policies: Sequence[float | Tensor]
    ) -> tuple[float | None, Sequence[float | None]]:
        """Images per second, full and dynamic at each threshold or under each policy, bool (N, K); None with
        --no_speed."""
        if not self.measures_speed:
            return None, [None] * len(policies)
        how = (images, self.setup.normalisation, self.batch_size, policies, self.compute.channels_last)
        return measure_speed(self.full, self.dynamic, *how)


def given_operating_point(config: EvaluateConfig, setup: Setup) -> dict[str, Any]:
    """The flag's threshold, else the checkpoint's with how it was chosen, else 0.5."""
    stored = _policy_checkpoint(setup).operating_point if setup.has_policy else None
    if config.threshold is not None or stored is None:
        return check_operating_point({"threshold": config.threshold or DEFAULT_THRESHOLD})
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
        UserError: no threshold meets the budget.
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
    if not bench.setup.decides:
        parameters = sum(p.numel() for p in bench.setup.resnet.parameters())
        print(f"every block runs: {table.full:,} FLOPs/img, {parameters:,} parameters")
        if speed is not None:
            print(f"images/s at batch {bench.batch_size}: {speed:.0f}")
        return
    print(f"full network: accuracy {full.accuracy:.4f}, {table.full:,} FLOPs/img")
    included = f"{table.policy_network:,} FLOPs, {table.policy_network / table.full:.1%} of the full network"
    note = f" (policy network included: {included})" if bench.policy_network is not None else ""
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
    usage = outcomes.usage_per_block.split(list(bench.setup.resnet.stage_sizes))
    for stage, shares in enumerate(usage):
        print(f"    stage {stage + 1}: {' '.join(f'{share:.3f}' for share in shares.tolist())}")


def trace_curve(
    bench: Bench, images: Images, threshold: float, outcomes: Outcomes, speed: float | None
) -> list[dict[str, Any]]:
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
            {
                "threshold": other,
                "accuracy": found.accuracy,
                "block_usage_mean": blocks,
                "block_usage_std": blocks_std,
                "flops_mean": flops,
                "flops_fraction": share,
                "unique_policies": found.unique_policies,
                "images_per_second": speeds[other],
            }
        )
    return curve


def save_with_operating_point(path: str, setup: Setup, point: dict[str, Any]) -> None:
    """Writes both networks, and what the policy network's checkpoint says, to a file of our dialect."""
    source = _policy_checkpoint(setup)
    save_checkpoint(
        path,
        model=setup.model,
        variant=setup.variant,
        resnet=setup.resnet,
        normalisation=setup.normalisation,
        policy_network=setup.policy_network,
        policy_net=setup.policy_net,
        classes=source.classes or setup.data.classes,
        epoch=source.epoch or 0,
        metrics=source.metrics,
        config=source.config,
        operating_point=point,
    )
    print(f"checkpoint with threshold {point['threshold']:.9g}: {path}")


def _policy_checkpoint(setup: Setup) -> Checkpoint:
    return [c for c in setup.checkpoints if c.policy_network is not None][-1]


def _check_inputs(config: EvaluateConfig, setup: Setup) -> None:
    files = " ".join(config.load)
    require(
        setup.has_backbone or not config.load,
        f"--load {files}: a policy network without its backbone; name that checkpoint too",
    )
    for flag, wanted in (
        ("--budget", config.budget is not None), ("--curve", config.curve), ("--stats", config.stats),
        ("--save", config.save is not None),
    ):  # fmt: skip
        require(
            setup.has_policy or not wanted,
            f"{flag}: needs a policy network, which it is about; "
            + (f"--load {files} holds none" if config.load else "--load a checkpoint that has one"),
        )
    require(
        config.budget is None or len(setup.data.test) > 1,
        "--budget: needs at least two test images, one to choose the threshold and one to report",
    )
    for flag, file in (("--json", config.json), ("--save", config.save)):
        for checkpoint in setup.checkpoints:
            require(
                file is None or not os.path.exists(file) or not os.path.samefile(file, checkpoint.path),
                f"{flag} {file}: is the checkpoint that --load reads; name another file",
            )


if __name__ == "__main__":
    run_command(main, EvaluateConfig, __doc__)
