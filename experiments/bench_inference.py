"""Do dropped blocks save seconds? The executor against the fastest ways to run the full network.

Realised efficiency = (seconds of the fastest full network ÷ seconds of the dynamic network) ÷ (FLOPs of the full
network ÷ FLOPs of the dynamic one), the policy network included in both. 1.0: every saved FLOP is a saved second.
Everything that is compared runs in turns in one process, and medians count.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

import blockdrop
from agents.policy_network import PolicyNetwork
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.flops import FlopTable, count_flops
from blockdrop.inference.plan import plan_batch
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.specs import parse_model_name
from blockdrop.progress import progress
from blockdrop.training.compute import has_fast_bfloat16
from experiments.bench_inference_contenders import (
    DTYPES,
    Run,
    build_networks,
    draw_policies,
    dynamic,
    engines,
    export_onnx,
    flops_ratio,
    full_networks,
    missing_peers,
)
from experiments.bench_inference_memory import peak_memory
from experiments.bench_inference_stream import stream

MINIMUM_SECONDS = 0.05  # a measurement repeats what is shorter
PAUSE_SECONDS = 0.02  # before each, so that the threads of the contender before have gone to sleep


@dataclass(kw_only=True)
class BenchConfig:
    """Flags of `python -m experiments.bench_inference`."""

    models: tuple[str, ...] = ("R32_C10", "R56_C10", "R110_C10")
    """Networks, with fresh weights."""
    image_size: int | None = None
    """Side of the square images, in pixels; default: each model's own, as its name says."""
    batches: tuple[int, ...] = (1, 32, 256, 1024)
    """Batch sizes."""
    kept: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
    """Fractions of the blocks that policies keep."""
    distinct: tuple[int, ...] = (1, 50, 500)
    """Distinct policies, drawn at random: in the batch, at most one per image; at batch 1 one after another."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Number formats; bfloat16 is left out where the processor lacks it."""
    rounds: int = 5
    """Measurements of each contender, in turns."""
    torch_compile: bool = True
    """Have torch.compile among the contenders; it takes half a minute for each batch size and number format."""
    data_dir: str | None = None
    """CIFAR-10 photos (see evaluate --data_dir) for the stream of 10,000; left out without."""
    out: str = "cv/bench_inference"
    """Folder for results.json, table.md and results.png."""
    overwrite: bool = False
    """Replace an earlier run's results there."""
    quick: bool = False
    """R110_C10 at batches 1 and 256, 30 % and 100 % kept, 50 policies, float32, 5 rounds, no torch.compile."""

    def image_size_of(self, model: str) -> int:
        """Pixels; raises `BlockdropError` for a model's name that is none."""
        own = parse_model_name(model).image_size
        return own if self.image_size is None else self.image_size

    def check(self) -> None:
        """Raises `BlockdropError` for values out of range and results that would be overwritten."""
        for flag in ("models", "batches", "kept", "distinct", "precisions"):
            require(len(getattr(self, flag)) > 0, f"--{flag}: name at least one")
        for model in self.models:
            self.image_size_of(model)
        require(
            self.image_size is None or self.image_size >= 8,
            f"--image_size {self.image_size}: must be at least 8",
        )
        require(min(self.batches) >= 1, "--batches: at least 1 image")
        require(min(self.distinct) >= 1, "--distinct: at least 1 policy")
        require(all(0 <= kept <= 1 for kept in self.kept), "--kept: fractions from 0 to 1")
        require(self.rounds >= 1, f"--rounds {self.rounds}: must be at least 1")
        require(
            self.overwrite or not os.path.exists(Path(self.out, "results.json")),
            f"--out {self.out}: holds an earlier run's results; pass --overwrite or name another folder",
        )


@dataclass(frozen=True)
class Row:
    """One contender's median."""

    model: str
    image_size: int
    """Pixels."""
    precision: str
    batch: int
    contender: str
    seconds: float
    kept_blocks: float | None = None
    """Mean blocks run per image; None for a full network."""
    distinct: int | None = None
    """Distinct policies in the batch, or at batch 1 in turn."""
    flops_ratio: float | None = None
    """FLOPs of the full network ÷ FLOPs of the dynamic one."""
    efficiency: float | None = None
    """Realised efficiency."""

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds


def main(config: BenchConfig) -> list[Row]:
    """Measures, prints the tables, and writes them with a figure."""
    if config.quick:
        config = quick(config)
    config.check()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print(f"bench_inference on {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    for name in missing_peers():
        print(f"missing: {name} is not installed, so it is not among the contenders")
    rows: list[Row] = []
    networks = []
    for model in config.models:
        size = config.image_size_of(model)
        network = Network(model, size, *build_networks(model, size))
        networks.append({"model": model, "image_size": size, "full_flops": network.flops.full})
        print(f"{model} on images of {size} × {size} px, {network.flops.full:,} FLOPs")
        onnx = export_onnx(network.resnet, size)
        for precision in config.precisions:
            if precision == "bfloat16" and not has_fast_bfloat16(torch.device("cpu")):
                print("missing: this processor has no fast bfloat16")
                continue
            for batch in config.batches:
                rows += measure_batch(config, network, precision, batch, onnx)
    model, size = config.models[-1], config.image_size_of(config.models[-1])
    results: dict[str, Any] = {
        "config": asdict(config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "networks": networks,
        "rows": [asdict(row) | {"images_per_second": row.images_per_second} for row in rows],
        "planning_seconds": planning_seconds(max(config.batches), config.rounds),
        "memory": [peak_memory(model, size, batch) for batch in config.batches if batch >= 32],
    }
    print(f"peak memory of {model} at {size} px above the idle process, MB:")
    for entry in results["memory"]:
        print("    " + ", ".join(f"{key} {value:.0f}" for key, value in entry.items()))
    if config.data_dir is not None:
        results["stream"] = stream(config.data_dir, config.precisions)
    results["seconds"] = time.perf_counter() - start
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(table(rows))
    figure(rows).savefig(out / "results.png", dpi=110)
    print(
        f"{results['seconds']:.0f} s; results: {out / 'results.json'}, {out / 'table.md'}, {out / 'results.png'}"
    )
    return rows


def quick(config: BenchConfig) -> BenchConfig:
    """The few cells that say most."""
    return BenchConfig(
        models=("R110_C10",), image_size=config.image_size, batches=(1, 256), kept=(0.315, 1.0), distinct=(50,),
        precisions=("float32",), torch_compile=False, data_dir=config.data_dir, out=config.out,
        overwrite=config.overwrite, quick=True,
    )  # fmt: skip


# ---- measuring


@dataclass(frozen=True)
class Network:
    """A model, see `build_networks`."""

    model: str
    image_size: int
    resnet: DroppableResNet
    policy_network: PolicyNetwork

    @property
    def flops(self) -> FlopTable:
        return count_flops(self.resnet, self.policy_network, self.image_size)


def measure_batch(
    config: BenchConfig, network: Network, precision: str, batch: int, onnx: bytes | None
) -> list[Row]:
    """All contenders of one model, number format and batch size, in turns."""
    dtype, size = DTYPES[precision], network.image_size
    resnet, policy_network, flops = network.resnet, network.policy_network, network.flops
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    full = full_networks(resnet, images, dtype, onnx, config.torch_compile)
    runs: dict[str, Run] = dict(full)
    cells: dict[str, tuple[str, Tensor]] = {}
    for engine in engines():
        static = blockdrop.compile(resnet, dtype=dtype, engine=engine)
        everything = torch.ones(batch, resnet.num_blocks, dtype=torch.bool)
        static.warm(everything, size, batch)
        runs[f"blockdrop {engine}, all blocks, no policy network"] = lambda run=static: run(images)  # type: ignore[misc]
        for kept in config.kept:
            for distinct in config.distinct:
                policy = draw_policies(max(batch, distinct * (batch == 1)), resnet.num_blocks, kept, distinct)
                name = f"blockdrop {engine}, {kept:.0%} kept, {len(torch.unique(policy, dim=0))} policies"
                if name in runs:
                    continue
                run = blockdrop.compile(resnet, policy_network, dtype=dtype, engine=engine)
                run.warm(policy, size, batch)
                runs[name] = dynamic(run, images, policy)
                cells[name] = (f"blockdrop {engine}", policy)
    seconds = measure(runs, config.rounds, f"{network.model} at {size} px, {precision}, batch {batch}")
    best = min(seconds[name] for name in full)
    row = functools.partial(Row, network.model, size, precision, batch)
    rows = [row(name, seconds[name]) for name in runs if name not in cells]
    for name, (contender, policy) in cells.items():
        ratio = flops_ratio(flops, policy)
        efficiency = best / seconds[name] / ratio
        kept_blocks = policy.sum(1).double().mean().item()
        distinct = len(torch.unique(policy, dim=0))
        rows.append(row(contender, seconds[name], kept_blocks, distinct, ratio, efficiency))
    print(table(rows))
    runs.clear()
    gc.collect()
    return rows


@torch.no_grad()
def measure(runs: dict[str, Run], rounds: int, title: str) -> dict[str, float]:
    """Median seconds of one call of each, all in turns."""
    repeats = {}
    for name, run in progress(runs.items(), f"{title}, first calls", len(runs), "contenders"):
        for _ in range(2):
            run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(MINIMUM_SECONDS / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in progress(range(rounds), title, rounds, "rounds"):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            run()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: median(values) for name, values in seconds.items()}


def planning_seconds(batch: int, rounds: int) -> list[dict[str, float]]:
    """How the planner's time grows with images, blocks and distinct policies."""
    found = []
    for images, stage, distinct in [
        (batch, 18, 50), (batch // 4, 18, 50), (batch, 5, 50), (batch, 18, 1), (batch, 18, batch),
    ]:  # fmt: skip
        blocks = 3 * stage
        bits = draw_policies(max(images, 1), blocks, 0.3, distinct).numpy()[None]
        segments = [(0, stage), (stage, 2 * stage), (2 * stage, blocks)]
        plan = functools.partial(plan_batch, bits, segments)
        seconds = measure({"plan": plan}, rounds, "planning")
        found.append({"images": images, "blocks": blocks, "distinct": distinct, "seconds": seconds["plan"]})
    return found


# ---- reporting


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | px | precision | batch | contender | blocks | policies | images/s | FLOPs ÷ | efficiency |",
        "| --- | ---: | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row.efficiency is not None:
            dynamic_part = f" | {row.flops_ratio:.2f} | {row.efficiency:.2f} |"
        else:
            dynamic_part = " | | |"
        blocks = "all" if row.kept_blocks is None else f"{row.kept_blocks:.1f}"
        policies = "" if row.distinct is None else str(row.distinct)
        lines.append(
            f"| {row.model} | {row.image_size} | {row.precision} | {row.batch} | {row.contender} | {blocks} "
            f"| {policies} | {row.images_per_second:.0f}{dynamic_part}"
        )
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Row]) -> Figure:
    """Realised speed-up against the FLOPs' promise, a panel for each number format."""
    precisions = sorted({row.precision for row in rows}, reverse=True)
    fig = Figure(figsize=(6.4 * len(precisions), 5.2), layout="constrained")
    axes = fig.subplots(1, len(precisions), squeeze=False)[0]
    markers = {1: "o", 32: "^", 256: "s", 1024: "D"}
    colours = {"blockdrop openvino": "#0072B2", "blockdrop torch": "#D55E00"}
    for axis, precision in zip(axes, precisions, strict=True):
        cells = [row for row in rows if row.precision == precision and row.efficiency and row.flops_ratio]
        limit = max((row.flops_ratio or 1) for row in cells) * 1.15
        axis.plot([0.5, limit], [0.5, limit], color="black", lw=1, label="every saved FLOP a saved second")
        axis.axhline(1, color="grey", lw=1, ls=":", label="fastest full network")
        for contender, colour in colours.items():
            for batch in sorted({row.batch for row in cells}):
                chosen = [row for row in cells if row.contender == contender and row.batch == batch]
                axis.scatter(
                    [row.flops_ratio for row in chosen],
                    [(row.efficiency or 0) * (row.flops_ratio or 0) for row in chosen],
                    s=34, marker=markers.get(batch, "P"), facecolors="none", edgecolors=colour,
                    label=f"{contender}, batch {batch}" if chosen else None,
                )  # fmt: skip
        axis.set(xlabel="FLOPs of the full network ÷ FLOPs of the dynamic one", title=precision)
        axis.set(ylabel="speed-up over the fastest full network", xscale="log", yscale="log")
        ticks = [0.5, 1, 2, 3, 5, 8]
        axis.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axis.set_yticks(ticks, [str(t) for t in ticks], minor=False)
        axis.minorticks_off()
        axis.legend(fontsize=8, loc="upper left")
    return fig


if __name__ == "__main__":
    run_command(main, BenchConfig, __doc__)
