"""Accuracy, block usage, FLOPs and speed of a dynamic network beside the full one, or of a static net.

Without a policy network (no checkpoint, or a backbone alone) every block is kept and no policy network runs
or is counted.

With --budget, half of the test images choose the threshold that meets it, and the report is about the other
half: the training images were trained on, and images that chose would flatter the report.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from blockdrop.calls import speaking_of_arguments
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.evaluation import Evaluation, ThresholdChoice
from blockdrop.lazy import make_callable
from blockdrop.names import EngineName, Precision
from blockdrop.output import check_writable, write_json
from blockdrop.ranges import CheckpointName, Folder, Positive, Probability, Range
from blockdrop.training.config import Groups, ModelConfig
from blockdrop.version import project_version

if TYPE_CHECKING:
    from blockdrop.policy_stats import Outcomes
    from blockdrop.report.table import Report
    from blockdrop.training.opening import Opened


Budget = Annotated[float, Range(above=0, most=2, meaning="a fraction of the full network's FLOPs")]


@dataclass(kw_only=True)
class EvaluateConfig(ModelConfig):
    """Flags of `python -m blockdrop.evaluate`."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "data_dir", "load", "budget", "threshold", "answer_threshold", "policy", "stats", "curve", "json",
        "save",
    )  # fmt: skip
    GROUPS: ClassVar[Groups] = {
        "report": ("speed", "overwrite"),
        "device and seed": ("batch_size", "engine"),
        "data": ("cv_dir",),
    }

    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of any dialect, or run directories: backbone and policy network, in one or in two. Default:
    fresh weights, and no policy network."""
    cv_dir: Folder = "cv/tmp/"
    """Folder for decoded images, if they can't be kept beside the data."""
    threshold: Probability | None = None
    """Threshold of the policy: a block runs if its keep probability is at least this. Default: the checkpoint's,
    else 0.5."""
    answer_threshold: Positive | None = None
    """Answer threshold: an image is answered by the policy network alone if its largest probability is at least
    this; above 1 none is. Default: the checkpoint's, else none is answered."""
    policy: str | None = None
    """Policy that takes the policy network's place: full, first_k:K, random_k:K, dist_k:K (K blocks drawn by the
    policy network's usage on training images; dist_k:K:FILE: by that in a file of --json) or a file with a line of
    0 and 1 for all images, or one for each. Default: the policy network decides."""
    budget: Annotated[float, Range(above=0, most=2, meaning="a fraction of the full network's FLOPs")] | None = (
        None
    )
    """Mean cost to find the threshold for, as a fraction of the full network's FLOPs, policy network included. For
    a policy network that answers, the best pair of both thresholds within it is found."""
    curve: bool = False
    """Also report about ten other thresholds, from all blocks to none; for a policy network that answers, the
    front of pairs of both thresholds."""
    stats: bool = False
    """Also report what policies depend on (classes, difficulty, right and wrong predictions), and the most
    frequent policies."""
    speed: bool = True
    """Measure images per second, with --curve at every threshold."""
    save: str | None = None
    """New file to write the checkpoint to, with the threshold (and the curve). Default: none is written."""
    precision: Precision = "float32"
    """Number format of the networks: float32, bfloat16, or auto (bfloat16 where the processor has it)."""
    engine: EngineName = "auto"
    """Engine that runs the networks: torch, openvino, or auto (openvino if it is installed and knows the network's
    layers)."""
    json: str | None = None
    """File to write all numbers to. Default: none is written."""
    overwrite: bool = False
    """Replace the files of --json and --save if they exist."""

    def check(self) -> None:
        super().check()
        for flag in ("threshold", "answer_threshold"):
            require(getattr(self, flag) is None or self.budget is None, f"--{flag} and --budget: pass one of them")
        for flag in ("threshold", "answer_threshold", "budget", "curve", "stats", "save"):
            require(self.policy is None or not getattr(self, flag), f"--policy and --{flag}: pass one of them")
        for flag, file in (("--json", self.json), ("--save", self.save)):
            if file is not None:
                check_writable(flag, file, self.overwrite)
        require(
            self.json is None or self.save is None or os.path.abspath(self.json) != os.path.abspath(self.save),
            f"--json and --save {self.save}: two files are needed",
        )


@dataclass(frozen=True)
class Evaluated:
    """What `main` found."""

    opened: Opened
    outcomes: Outcomes
    """Of the dynamic network; with --budget, on the half of the images that didn't choose the threshold."""
    full: Outcomes
    """Of the full network on the same images."""
    evaluation: Evaluation
    """What `--json` writes."""


def main(config: EvaluateConfig) -> Evaluated:
    """Prints the report, and writes its numbers where `--json` says and the checkpoint where `--save` says."""
    from blockdrop import bench as benches  # torch, which --help does without
    from blockdrop.inference.operating_point import held_out_halves
    from blockdrop.models.checkpoints.operating_points import thresholds_of
    from blockdrop.policy_stats import policy_statistics, statistics_lines
    from blockdrop.training.brought import brought_accuracy
    from blockdrop.training.opening import open_networks
    from blockdrop.training.policies import open_static_policy
    from blockdrop.training.session import undecided_note

    config.check()
    opened = open_networks(config, config.load)
    _check_inputs(config, opened)
    dynamic, data = opened.dynamic, opened.data
    if config.policy is not None:
        opened.static = open_static_policy(config.policy, dynamic, data, config.compute())
        dynamic.policy_network = None
    bench = benches.Bench(opened, config.compute(), config.batch_size, config.engine, config.speed)
    images = data.test
    print(
        f"evaluate {dynamic.model} on {len(images):,} test images of {data.name}, {bench.compute}, "
        f"engine {bench.run.engine}"
    )
    print(f"checkpoints: {', '.join(opened.origins) or 'none, fresh weights'}")
    if not opened.origins:
        print("warning: without --load the weights are fresh, and what is measured is chance", file=sys.stderr)
    if not dynamic.network.droppable:
        print("a net without shortcuts: no block can be dropped")
    elif opened.static is not None:
        print(f"policy {opened.static.name}: no image is looked at, and no policy network is counted")
    elif dynamic.policy_network is None:
        print("no policy network: every block is kept, and no policy network is counted")
    if note := undecided_note(dynamic):
        print(note)

    choosers = None
    if config.budget is None:
        point = benches.given_operating_point(config.threshold, config.answer_threshold, dynamic)
    else:
        choosing, reported = held_out_halves(images.labels)
        print(
            f"budget {config.budget}: {len(choosing):,} of the test images choose the threshold, the other "
            f"{len(reported):,} are reported (in order of their classes, dealt alternately)"
        )
        choosers = images.subset(choosing)
        point = benches.choose_operating_point(config.budget, bench, choosers)
        images = images.subset(reported)
    thresholds = thresholds_of(point)

    outcomes = bench.outcomes(images, thresholds)
    full = bench.full_outcomes(images) if opened.decides else outcomes
    used = [thresholds if opened.static is None else outcomes.policy]
    full_speed, speeds = bench.speeds(images, used if opened.decides else [])
    speed = speeds[0] if speeds else full_speed
    latencies = bench.latencies(images, used[0]) if opened.decides else None
    benches.print_report(bench, point, outcomes, full, full_speed, speed, latencies)
    statistics = None
    if config.stats:
        statistics = policy_statistics(outcomes, full, data.classes, dynamic.network.stage_sizes)
        print(statistics_lines(statistics))
    curve = []
    if config.curve:
        curve = benches.trace_curve(bench, images, thresholds, outcomes, speed, choosers)

    flops, flops_std = outcomes.flops_per_image
    evaluation = Evaluation(
        model=dynamic.model,
        variant=dynamic.variant.numbers(),
        parameters=sum(p.numel() for p in dynamic.network.parameters()),
        dataset=data.name,
        images=len(outcomes.labels),
        images_digest=benches.images_digest(data.classes, outcomes.labels),
        checkpoints=opened.origins,
        accuracy=outcomes.accuracy,
        block_usage_mean=outcomes.block_usage[0],
        block_usage_std=outcomes.block_usage[1],
        num_blocks=dynamic.num_blocks,
        flops_mean=flops,
        flops_std=flops_std,
        unique_policies=outcomes.unique_policies,
        full_accuracy=full.accuracy,
        brought_accuracy=brought_accuracy(dynamic, len(data.test)),
        full_flops=bench.table.full,
        policy_network_flops=bench.table.policy_network,
        flops_saved=1 - flops / bench.table.full,
        full_images_per_second=full_speed,
        images_per_second=speed,
        full_latency_ms=None if latencies is None else asdict(latencies[0]),
        latency_ms=None if latencies is None else asdict(latencies[1]),
        batch_size=config.batch_size,
        usage_per_block=outcomes.usage_per_block.tolist(),
        stage_sizes=list(dynamic.network.stage_sizes),
        policy=config.policy,
        policy_net=dynamic.policy_net,
        threshold=thresholds.keep,
        answer_threshold=point.get("answer_threshold"),
        answered=outcomes.answered_share,
        answered_accuracy=outcomes.answered_accuracy,
        rest_accuracy=outcomes.rest_accuracy,
        operating_point=ThresholdChoice(point["budget"], point["flops_fraction"], point["held_out_images"]),
        statistics=statistics,
        curve=curve,
        right=benches.right(outcomes),
        compute=str(bench.compute),
        version=project_version(),
        config=asdict(config),
    )
    found = Evaluated(opened, outcomes, full, evaluation)
    if not bench.compute.processes.first:
        return found
    if config.json is not None:
        write_json("--json", config.json, evaluation.to_json())
        print(f"numbers: {config.json}")
    if config.save is not None:
        rows = [{k: v for k, v in asdict(row).items() if v is not None} for row in curve]  # --no_speed
        benches.save_with_operating_point(config.save, dynamic, {**point, "curve": rows or point["curve"]})
    return found


def _check_inputs(config: EvaluateConfig, opened: Opened) -> None:
    files = " ".join(config.load)
    require(
        opened.has_backbone or not config.load,
        f"--load {files}: a policy network without its backbone; name that checkpoint too",
    )
    for flag, wanted in (
        ("--budget", config.budget is not None), ("--curve", config.curve), ("--stats", config.stats),
        ("--save", config.save is not None),
    ):  # fmt: skip
        require(
            opened.has_policy or not wanted,
            f"{flag}: needs a policy network, which it is about; "
            + (f"--load {files} holds none" if config.load else "--load a checkpoint that has one"),
        )
    network = opened.dynamic.policy_network
    require(
        config.answer_threshold is None or (network is not None and network.answer is not None),
        "--answer_threshold: needs a policy network that answers; finetune --recipe answers makes one",
    )
    require(
        config.budget is None or len(opened.data.test) > 1,
        "--budget: needs at least two test images, one to choose the threshold and one to report",
    )
    for flag, file in (("--json", config.json), ("--save", config.save)):
        for checkpoint in opened.checkpoints:
            require(
                file is None or not os.path.exists(file) or not os.path.samefile(file, checkpoint.path),
                f"{flag} {file}: is the checkpoint that --load reads; name another file",
            )


def _call(*args: Any, **options: Any) -> Report:
    """See `blockdrop.reporting.evaluate`."""
    from blockdrop.reporting import evaluate  # torch, which --help does without

    with speaking_of_arguments():
        return evaluate(*args, **options)


make_callable(sys.modules[__name__], _call)

if __name__ == "__main__":
    run_command(main, EvaluateConfig, __doc__)
