"""Images × policies per second, when several sampled policies of every image are evaluated.

Policies are drawn as cl_train draws them, at several depths of its curriculum. The reference runs each of them
alone, with all blocks; here the policies of an image share what they agree on, and rows run only blocks that they
keep. Then whole steps of the curriculum by the reference's settings: two evaluations, and training.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, Literal

import torch
from torch import Tensor

from agents.curriculum import decide_last
from agents.estimators import draw_independent, make_estimator
from agents.policies import bound_keep_probs, entropy
from agents.policy_network import PolicyNetwork
from agents.rewards import Reward
from blockdrop.console import run_command
from blockdrop.data import DATASETS, DataSource, Normalisation
from blockdrop.errors import require
from blockdrop.inference.executor import Executor
from blockdrop.inference.openvino_engine import is_installed as openvino_is_installed
from blockdrop.measure import executor
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_checkpoint, network_from
from blockdrop.models.droppable import block_executions
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.specs import parse_model_name
from blockdrop.models.zoo import build_backbone
from blockdrop.names import EngineName, Precision
from blockdrop.output import check_writable, write_json
from blockdrop.progress import progress
from blockdrop.training.compute import Compute, choose_compute, has_fast_bfloat16

ALPHA, BETA, LR, PENALTY = 0.8, 0.1, 1e-3, -1.0
"""The reference's settings."""
WARM_UP = 3
"""Draws that run before the clock starts; by then the executor has compiled most of what it will."""
TOLERANCE = 1e-3
"""Largest difference of two ways' float32 logits, in deviations of the logits."""
PUBLISHED = 595
"""Images/s of a whole curriculum step in a port of the reference: R32, batch 256, float32, two CPU cores."""
REFERENCE, SHARED = "masked, each alone", "sparse, shared"


@dataclass(kw_only=True)
class BenchPoliciesConfig:
    """Flags of `python -m experiments.measurements.bench_policies`."""

    model: str = "R32_C10"
    """R<depth>_<dataset>."""
    load: str | None = None
    """Checkpoint of the backbone and, if it holds one, the policy network; default: fresh weights."""
    data_dir: str | None = None
    """Image tree or torchvision's CIFAR files, to take test images from; default: noise of their size."""
    batch_size: int = 256
    """Images."""
    policies: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Policies of each image."""
    decided: tuple[int, ...] | None = None
    """Depths of the curriculum, as blocks that are decided; default: 3, half of them, all."""
    engines: tuple[Literal["torch", "openvino"], ...] = ("torch", "openvino")
    """Of the executor; what isn't installed is left out."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Number formats; bfloat16 is left out where the processor lacks it."""
    rounds: int = 5
    """Draws that are timed, all ways in turns; the median counts."""
    seed: int = 0
    """Of fresh weights, noise and draws."""
    json: str | None = None
    """Write all numbers to this file."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""

    def check(self) -> None:
        """Raises `BlockdropError` for a value out of range."""
        if self.json is not None:
            check_writable("--json", self.json, self.overwrite)
        for flag in ("policies", "decided", "engines", "precisions"):
            require(getattr(self, flag) != (), f"--{flag}: name at least one")
        for flag in ("batch_size", "rounds"):
            require(getattr(self, flag) >= 1, f"--{flag} {getattr(self, flag)}: must be at least 1")
        require(min(self.policies) >= 1, f"--policies {min(self.policies)}: must be at least 1")
        spec = parse_model_name(self.model)
        require(spec.droppable, f"{self.model}: {spec.architecture} has no blocks that a policy could drop")


@dataclass(frozen=True)
class Way:
    """A way to evaluate several policies of every image."""

    name: str
    precision: Precision
    run: Callable[[Tensor, Tensor], Tensor]
    """(images (N, 3, H, W), policies bool (S, N, K)) to logits (S, N, classes)."""
    executor: Executor | None = None

    def executions(self, images: Tensor, policies: Tensor) -> int:
        """How many times it runs a block for a row."""
        if self.executor is not None:
            before = self.executor.block_executions
            self.run(images, policies)
            return self.executor.block_executions - before
        return policies.numel() if self.name == REFERENCE else block_executions(policies)


def main(config: BenchPoliciesConfig) -> dict[str, Any]:
    """Measures and prints; returns the numbers."""
    config.check()
    torch.manual_seed(config.seed)
    resnet, policy_network, normalisation = open_networks(config)
    depths = config.decided or tuple(
        sorted({min(3, resnet.num_blocks), resnet.num_blocks // 2, resnet.num_blocks})
    )
    for depth in depths:
        require(1 <= depth <= resnet.num_blocks, f"--decided {depth}: must be from 1 to {resnet.num_blocks}")
    images, labels = open_images(config, normalisation, resnet)
    ways = make_ways(config, resnet)
    print(
        f"{config.model}, {config.load or 'fresh weights'}, {len(images)} "
        f"{'test images' if config.data_dir else 'images of noise'}, {torch.get_num_threads()} threads"
    )
    with torch.no_grad():
        keep_probs = policy_network(images)[0]  # (N, K)
    print("\nseveral policies of each image, of which the last blocks are decided:\n")
    rows: list[dict[str, Any]] = []
    for decided in depths:
        for samples in config.policies:
            found = measure(config, ways, images, keep_probs, decided, samples)
            print(table(found, head=not rows), flush=True)
            rows += found
    print("\nwhole steps of the curriculum by the reference's settings, two policies of each image:\n")
    steps: list[dict[str, Any]] = []
    for decided in depths:
        found = measure_steps(config, ways, policy_network, images, labels, decided)
        print(table(found, head=not steps), flush=True)
        steps += found
    print(f"\n{beside_the_published(rows, steps)}")
    report = {
        "config": dataclasses.asdict(config), "threads": torch.get_num_threads(), "rows": rows, "steps": steps
    }  # fmt: skip
    if config.json is not None:
        write_json("--json", config.json, report)
        print(f"numbers: {config.json}")
    return report


def open_networks(config: BenchPoliciesConfig) -> tuple[DroppableResNet, PolicyNetwork, Normalisation]:
    """Both networks in eval mode, filled as far as the checkpoint goes; and the images' normalisation."""
    spec = parse_model_name(config.model)
    checkpoint = None if config.load is None else read_checkpoint(config.load)
    resnet = build_backbone(spec) if checkpoint is None else network_from(checkpoint, spec)
    assert isinstance(resnet, DroppableResNet)
    policy_net = "reference" if checkpoint is None else checkpoint.policy_net
    policy_network = build_policy_network(resnet.num_blocks, spec.large_images, policy_net, backbone=resnet)
    if checkpoint is not None and checkpoint.policy_network is not None:
        load_checkpoint(checkpoint, policy_network=policy_network)
    recorded = None if checkpoint is None else checkpoint.normalisation
    return resnet.eval(), policy_network.eval(), recorded or DATASETS[spec.dataset].normalisation


def open_images(
    config: BenchPoliciesConfig, normalisation: Normalisation, resnet: DroppableResNet
) -> tuple[Tensor, Tensor]:
    """A batch from all over the test images, or of noise: (N, 3, H, W) and labels (N,)."""
    spec = parse_model_name(config.model)
    if config.data_dir is None:
        assert isinstance(resnet.fc, torch.nn.Linear)
        size = (config.batch_size, 3, spec.image_size, spec.image_size)
        return torch.randn(size), torch.randint(resnet.fc.out_features, size[:1])
    test = DataSource(spec.dataset, config.data_dir, spec.image_size).test
    require(
        len(test) >= config.batch_size,
        f"--batch_size {config.batch_size}: {config.data_dir} has no more than {len(test)} test images",
    )
    chosen = test.subset(torch.randperm(len(test))[: config.batch_size])
    return next(iter(chosen.batches(config.batch_size, normalisation, channels_last=False)))


# ---- several policies of every image


def make_ways(config: BenchPoliciesConfig, resnet: DroppableResNet) -> list[Way]:
    """The reference's, then plain torch and the executor in each number format."""

    def masked(images: Tensor, policies: Tensor) -> Tensor:
        return torch.stack([resnet(images, policy, execution="masked") for policy in policies])

    ways = [Way(REFERENCE, "float32", masked)]
    for precision in config.precisions:
        if precision == "bfloat16" and not has_fast_bfloat16(torch.device("cpu")):
            print("left out: bfloat16, which this processor lacks")
            continue
        compute = choose_compute("cpu", precision)
        network = compute.place(copy.deepcopy(resnet)).to(compute.dtype)
        ways.append(Way(SHARED, precision, functools.partial(run_sparse, network, compute.dtype)))
        for engine in config.engines:
            if engine == "openvino" and not openvino_is_installed():
                print("left out: openvino, which is not installed")
                continue
            run = executor(resnet, None, compute, engine)
            ways.append(Way(executor_name(engine), precision, functools.partial(run_executor, run), run))
    return ways


def executor_name(engine: EngineName) -> str:
    return f"executor, {engine}"


def run_sparse(network: DroppableResNet, dtype: torch.dtype, images: Tensor, policies: Tensor) -> Tensor:
    """Plain torch; the policies of an image share rows up to the block in which they differ."""
    return network(images.to(dtype, memory_format=torch.channels_last), policies)


def run_executor(run: Executor, images: Tensor, policies: Tensor) -> Tensor:
    """The executor; the policies of an image share rows up to the stage in which they differ."""
    return run(images, policy=policies)[0]


@torch.no_grad()
def measure(
    config: BenchPoliciesConfig, ways: list[Way], images: Tensor, keep_probs: Tensor, decided: int, samples: int
) -> list[dict[str, Any]]:
    """A row for each way, at one depth of the curriculum, of so many policies of each image.

    Args:
        images: (N, 3, H, W).
        keep_probs: (N, K).
    Raises:
        RuntimeError: the ways disagree.
    """
    chances = decide_last(bound_keep_probs(keep_probs, ALPHA), decided)
    generator = torch.Generator().manual_seed(config.seed)
    drawn = [
        draw_independent(chances, generator, samples) for _ in range(WARM_UP + config.rounds)
    ]  # each bool (S, N, K)
    check_agreement(ways, images, drawn[0])
    runs: list[Callable[[Tensor], object]] = [functools.partial(way.run, images) for way in ways]
    for policies in drawn[:WARM_UP]:
        for run in runs[1:]:
            run(policies)
    seconds = seconds_in_turns(runs, drawn[WARM_UP:])
    kept = sum(int(policies.sum()) for policies in drawn[WARM_UP:])
    rows = []
    for way, found in zip(ways, seconds, strict=True):
        executions = sum(way.executions(images, policies) for policies in drawn[WARM_UP:])
        rows.append(
            {
                "decided": decided,
                "policies": samples,
                "way": way.name,
                "precision": way.precision,
                "seconds": found,
                "per_second": samples * len(images) / found,
                "speedup": seconds[0] / found,
                "block_executions": executions / config.rounds,
                "saved_by_sharing": None if way.name == REFERENCE else 1 - executions / kept,
            }
        )
    return rows


def check_agreement(ways: list[Way], images: Tensor, policies: Tensor) -> None:
    """Raises `RuntimeError` unless all float32 ways give the reference's logits for policies (S, N, K)."""
    expected = ways[0].run(images, policies)
    for way in ways[1:]:
        if way.precision == "float32":
            difference = (way.run(images, policies) - expected).abs().max() / expected.std()
            if not difference <= TOLERANCE:
                raise RuntimeError(f"{way.name}: logits differ by {difference:.2g} of their deviation")


def seconds_in_turns(runs: list[Callable[[Tensor], object]], inputs: list[Tensor]) -> list[float]:
    """Median seconds that each of the runs takes for an input, all runs in turns on each."""
    seconds: list[list[float]] = [[] for _ in runs]
    for given in progress(inputs, "timing", len(inputs), "rounds"):
        for run, found in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(given)
            found.append(time.perf_counter() - start)
    return [median(found) for found in seconds]


# ---- whole steps of the curriculum


def measure_steps(
    config: BenchPoliciesConfig,
    ways: list[Way],
    policy_network: PolicyNetwork,
    images: Tensor,
    labels: Tensor,
    decided: int,
) -> list[dict[str, Any]]:
    """A row for the reference's way and for each number format of cl_train's, at one depth of the curriculum."""
    chosen = [way for way in ways if way.name in (REFERENCE, executor_name("torch"))]
    steps = [curriculum_step(config, way, policy_network, images, labels, decided) for way in chosen]
    for step in steps:
        step(labels)
    seconds = seconds_in_turns(steps, [labels] * config.rounds)
    return [
        {
            "decided": decided,
            "policies": 2,
            "way": way.name,
            "precision": way.precision,
            "seconds": found,
            "images_per_second": len(images) / found,
            "speedup": seconds[0] / found,
        }
        for way, found in zip(chosen, seconds, strict=True)
    ]


def curriculum_step(
    config: BenchPoliciesConfig,
    way: Way,
    policy_network: PolicyNetwork,
    images: Tensor,
    labels: Tensor,
    decided: int,
) -> Callable[[Tensor], object]:
    """A step of the self-critical curriculum on the images, of a copy of the policy network; takes the labels."""
    compute = Compute(torch.device("cpu"), torch.float32, channels_last=False)
    if way.name != REFERENCE:
        compute = choose_compute("cpu", way.precision)
    policy_network = compute.place(copy.deepcopy(policy_network)).train()
    if compute.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(policy_network.own_parameters(), LR)
    estimator, reward = make_estimator("self_critical"), Reward(penalty=PENALTY)
    generator = torch.Generator().manual_seed(config.seed)

    def step(labels: Tensor) -> None:
        with compute.autocast():
            keep_probs, _ = policy_network(images)
        bounded = bound_keep_probs(keep_probs, ALPHA)
        chances = decide_last(bounded, decided)
        policies = estimator.draw(chances.detach(), generator)
        with torch.no_grad():
            logits = way.run(images, policies)
        loss = estimator.loss(chances, policies, reward(logits, labels, policies)) - BETA * entropy(bounded)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


# ---- for people


def table(rows: list[dict[str, Any]], head: bool = True) -> str:
    """Rows as a table, or as more of one."""
    lines: list[list[str]] = []
    for row in rows:
        speed = row.get("per_second") or row["images_per_second"]
        cells = {
            "decided": row["decided"],
            "policies": row["policies"],
            "way": row["way"],
            "format": row["precision"],
            "ms": f"{1000 * row['seconds']:.1f}",
            "images × policies/s" if "per_second" in row else "images/s": f"{speed:,.0f}",
            "× of the first": f"{row['speedup']:.2f}",
        }
        if "saved_by_sharing" in row:
            saved = row["saved_by_sharing"]
            cells["block executions saved by sharing"] = "" if saved is None else f"{saved:.1%}"
        if head and not lines:
            lines += [list(cells), ["---:", "---:", "---", "---", *["---:"] * (len(cells) - 4)]]
        lines.append(list(map(str, cells.values())))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def beside_the_published(rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> str:
    """The reference's way as measured here, and as published."""
    alone = mean(row["per_second"] for row in rows if row["way"] == REFERENCE)
    whole = mean(row["images_per_second"] for row in steps if row["way"] == REFERENCE)
    return (
        f"the reference's way, measured here: {alone:,.0f} images × policies/s in evaluation, {whole:,.0f} "
        f"images/s in whole steps; published for a port of it: {PUBLISHED} images/s in whole steps of two "
        "evaluations (R32, batch 256, float32, two cores)"
    )


if __name__ == "__main__":
    run_command(main, BenchPoliciesConfig, __doc__)
