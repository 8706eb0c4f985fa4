"""Do dropped blocks save seconds? The executor against the fastest ways to run the full network.

Realised efficiency = (seconds of the fastest full network ÷ seconds of the dynamic network) ÷ (FLOPs of the full
network ÷ FLOPs of the dynamic one), the policy network included in both. 1.0: every saved FLOP is a saved second.
Program efficiency = seconds of straight-line programs of the policies' own blocks and of the policy network (see
`StraightPrograms`) ÷ seconds of the dynamic network. 1.0: mixing policies costs nothing.
Everything that is compared runs in turns in one process, and medians count. Executors don't look for changes of
weights (`follow=False`): no other contender does.
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
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import blockdrop
from agents.policy_network import PolicyNetwork
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.flops import FlopTable, count_flops
from blockdrop.inference.executor import Executor
from blockdrop.inference.plan import plan_batch
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.specs import parse_model_name
from blockdrop.progress import progress
from blockdrop.training.compute import has_fast_bfloat16
from experiments.bench_inference_contenders import (
    DTYPES,
    Run,
    StraightPrograms,
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


class Grid(NamedTuple):
    """See `BenchConfig`."""

    batches: tuple[int, ...]
    kept: tuple[float, ...]
    distinct: tuple[int, ...]
    always: float


@dataclass(kw_only=True)
class BenchConfig:
    """Flags of `python -m experiments.bench_inference`."""

    models: tuple[str, ...] = ("R32_C10", "R110_C10", "R50_ImgNet", "R101_ImgNet")
    """Networks, with fresh weights."""
    image_size: int | None = None
    """Side of the square images, in pixels; default: each model's own, as its name says."""
    batches: tuple[int, ...] | None = None
    """Batch sizes; default: 1, 32 and 256, for images of more than 64 px 1 and 8."""
    kept: tuple[float, ...] | None = None
    """Fractions of the blocks that policies keep; default: 0.1, 0.315, 0.6 and 1.0, for images of more than 64 px
    0.75, as BlockDrop's published ResNet-101 (25 of 33)."""
    distinct: tuple[int, ...] | None = None
    """Distinct policies: in the batch, at most one per image; at batch 1 one after another. Default: 1, 50 and
    500, for images of more than 64 px 10."""
    always: float | None = None
    """Share of the kept blocks that all policies keep; the others are drawn at random. Default: 0, for images of
    more than 64 px 0.8, as learned policies do."""
    equal: bool = False
    """Have all policies equally often; default: policy number n 1/n times as often as the first one."""
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
    """R110_C10 at batches 1 and 256, 31.5 % kept, 50 policies, float32, 5 rounds, no torch.compile, no memory; one
    line of verdict at the end."""

    def grid_of(self, model: str) -> Grid:
        """What is measured of a model."""
        small = self.image_size_of(model) <= 64
        usual = Grid((1, 32, 256), (0.1, 0.315, 0.6, 1.0), (1, 50, 500), 0.0)
        usual = usual if small else Grid((1, 8), (0.75,), (10,), 0.8)
        own = {name: getattr(self, name) for name in Grid._fields if getattr(self, name) is not None}
        return usual._replace(**own)

    def image_size_of(self, model: str) -> int:
        """Pixels; raises `BlockdropError` for a model's name that is none."""
        own = parse_model_name(model).image_size
        return own if self.image_size is None else self.image_size

    def check(self) -> None:
        """Raises `BlockdropError` for values out of range and results that would be overwritten."""
        for flag in ("models", "batches", "kept", "distinct", "precisions"):
            require(getattr(self, flag) is None or len(getattr(self, flag)) > 0, f"--{flag}: name at least one")
        for model in self.models:
            self.image_size_of(model)
        require(
            self.image_size is None or self.image_size >= 8,
            f"--image_size {self.image_size}: must be at least 8",
        )
        require(min(self.batches or [1]) >= 1, "--batches: at least 1 image")
        require(min(self.distinct or [1]) >= 1, "--distinct: at least 1 policy")
        require(all(0 <= kept <= 1 for kept in self.kept or ()), "--kept: fractions from 0 to 1")
        require(self.always is None or 0 <= self.always <= 1, f"--always {self.always}: a fraction from 0 to 1")
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
    program_efficiency: float | None = None
    """None without OpenVINO."""
    spread: float | None = None
    """Of the rounds: their interquartile range ÷ their median."""
    ran: str = ""
    """What ran how, in words; empty for a full network."""

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
    print(f"bench_inference on {', '.join(processor())}, {torch.get_num_threads()} threads")
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
            for batch in config.grid_of(model).batches:
                rows += measure_batch(config, network, precision, batch, onnx)
    results: dict[str, Any] = {
        "config": asdict(config),
        "processor": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "networks": networks,
        "rows": [asdict(row) | {"images_per_second": row.images_per_second} for row in rows],
        "planning_seconds": planning_seconds(256, config.rounds),
        "memory": [] if config.quick else [entry for model in config.models for entry in memory(config, model)],
    }
    for entry in results["memory"]:
        print("    " + ", ".join(f"{k} {v}" if isinstance(v, str) else f"{k} {v:.0f}" for k, v in entry.items()))
    if config.data_dir is not None:
        results["stream"] = stream(config.data_dir, config.precisions)
    results["seconds"] = time.perf_counter() - start
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(table(rows))
    for line in verdict(rows):
        print(line)
    figure(rows).savefig(out / "results.png", dpi=110)
    print(
        f"{results['seconds']:.0f} s; results: {out / 'results.json'}, {out / 'table.md'}, {out / 'results.png'}"
    )
    return rows


def quick(config: BenchConfig) -> BenchConfig:
    """The few cells that say most."""
    return BenchConfig(
        models=("R110_C10",), image_size=config.image_size, batches=(1, 256), kept=(0.315,), distinct=(50,),
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
    dtype, size, grid = DTYPES[precision], network.image_size, config.grid_of(network.model)
    resnet, policy_network, flops = network.resnet, network.policy_network, network.flops
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    full = full_networks(resnet, images, dtype, onnx, config.torch_compile)
    runs: dict[str, Run] = dict(full)
    cells: dict[str, tuple[str, Tensor]] = {}
    executors: dict[str, Executor] = {}
    limits: dict[str, StraightPrograms] = {}
    for engine in engines():
        static = blockdrop.compile(resnet, dtype=dtype, engine=engine, follow=False)
        everything = torch.ones(batch, resnet.num_blocks, dtype=torch.bool)
        static.warm(everything, size, batch)
        runs[f"blockdrop {engine}, all blocks, no policy network"] = lambda run=static: run(images)  # type: ignore[misc]
        for kept in grid.kept:
            for distinct in grid.distinct:
                policy = draw_policies(
                    max(batch, 4 * distinct * (batch == 1)), resnet.num_blocks, kept, distinct,
                    always=grid.always, zipf=not config.equal,
                )  # fmt: skip
                cell = f"{kept:.1%} kept, {len(torch.unique(policy, dim=0))} policies"
                name = f"blockdrop {engine}, {cell}"
                if name in runs:
                    continue
                if cell not in limits and "openvino" in engines():
                    limits[cell] = StraightPrograms(resnet, policy_network, dtype, size, batch, policy)
                    runs |= {f"limit, {cell}, {part}": run for part, run in limits[cell].runs.items()}
                executors[name] = blockdrop.compile(
                    resnet, policy_network, dtype=dtype, engine=engine, follow=False
                )
                executors[name].warm(policy, size, batch)
                runs[name] = dynamic(executors[name], images, policy)
                cells[name] = (f"blockdrop {engine}", policy)
    seconds, spreads = measure(runs, config.rounds, f"{network.model} at {size} px, {precision}, batch {batch}")
    best = min(seconds[name] for name in full)
    row = functools.partial(Row, network.model, size, precision, batch)
    limiting = [name for name in runs if name.startswith("limit, ")]
    whole = [name for name in runs if name not in cells and name not in limiting]
    rows = [row(name, seconds[name], spread=spreads[name]) for name in whole]
    for name, (contender, policy) in cells.items():
        ratio = flops_ratio(flops, policy)
        efficiency = best / seconds[name] / ratio
        kept_blocks = policy.sum(1).double().mean().item()
        distinct = len(torch.unique(policy, dim=0))
        limit, label = None, name.removeprefix(f"{contender}, ")
        if label in limits:
            measured = {part: seconds[f"limit, {label}, {part}"] for part in limits[label].runs}
            limit = limits[label].seconds(measured) / seconds[name]
        ran = str(executors[name].account)
        rows.append(
            row(contender, seconds[name], kept_blocks, distinct, ratio, efficiency, limit, spreads[name], ran)
        )
    print(table(rows))
    runs.clear()
    gc.collect()
    return rows


@torch.no_grad()
def measure(runs: dict[str, Run], rounds: int, title: str) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of one call of each, all in turns, and the spread of the rounds (see `Row`)."""
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
    medians = {name: median(values) for name, values in seconds.items()}
    quarters = {name: np.quantile(values, (0.25, 0.75)) for name, values in seconds.items()}
    return medians, {name: float(high - low) / medians[name] for name, (low, high) in quarters.items()}


FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


def processor() -> list[str]:
    """The processor's name, and those of its features that matter to convolutions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    name = facts.get("model name", platform.processor() or platform.machine())
    has = (facts.get("flags") or facts.get("Features") or "").split()
    return [name, *(feature for feature in FEATURES if feature in has)]


def memory(config: BenchConfig, model: str) -> list[dict[str, float | str]]:
    """`peak_memory` for each batch size, under the most policies."""
    size, grid = config.image_size_of(model), config.grid_of(model)
    print(f"peak memory of {model} at {size} px above the idle process, MB:")
    distinct = max((count for count in grid.distinct if count <= 50), default=min(grid.distinct))
    batches = [peak_memory(model, size, batch, min(grid.kept), distinct) for batch in grid.batches]
    return [{"model": model, **found} for found in batches]


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
        seconds, _ = measure({"plan": plan}, rounds, "planning")
        found.append({"images": images, "blocks": blocks, "distinct": distinct, "seconds": seconds["plan"]})
    return found


# ---- reporting


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | px | format | batch | contender | blocks | policies | images/s | FLOPs ÷ | realised | program |"
    ]
    lines.append("| --- | ---: | --- | ---: | --- |" + " ---: |" * 6)
    for row in rows:
        if row.efficiency is not None:
            limit = "" if row.program_efficiency is None else f" {row.program_efficiency:.2f}"
            dynamic_part = f" | {row.flops_ratio:.2f} | {row.efficiency:.2f} |{limit} |"
        else:
            dynamic_part = " | | | |"
        blocks = "all" if row.kept_blocks is None else f"{row.kept_blocks:.1f}"
        policies = "" if row.distinct is None else str(row.distinct)
        lines.append(
            f"| {row.model} | {row.image_size} | {row.precision} | {row.batch} | {row.contender} | {blocks} "
            f"| {policies} | {row.images_per_second:.0f}{dynamic_part}"
        )
    return "\n".join(lines) + "\n"


NOISE = 0.1
"""Spread of the rounds from which on a run counts as noise."""


def verdict(rows: Sequence[Row]) -> list[str]:
    """For each model, precision and batch size a line on the cell of most policies; and whether to trust them."""
    lines = []
    cells: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.model, row.precision, row.batch), []).append(row)
    for (model, precision, batch), found in cells.items():
        best = min(row.seconds for row in found if not row.contender.startswith("blockdrop"))
        dynamic = [row for row in found if row.flops_ratio is not None and row.contender == found[-1].contender]
        row = min(dynamic, key=lambda row: (-(row.distinct or 0), row.kept_blocks or 0))
        limit = "" if row.program_efficiency is None else f", {row.program_efficiency:.0%} of OpenVINO's limit"
        lines.append(
            f"verdict: {model}, {precision}, batch {batch}: {row.kept_blocks:.1f} blocks under {row.distinct} "
            f"policies run {best / row.seconds:.2f} times as fast as the fastest full network; FLOPs say "
            f"{row.flops_ratio:.2f}{limit}"
        )
    noisy = [row for row in rows if (row.spread or 0) > NOISE]
    if len(noisy) > len(rows) / 4:
        worst = max(row.spread or 0 for row in noisy)
        lines.append(
            f"noise: the rounds of {len(noisy)} of {len(rows)} contenders spread by more than {NOISE:.0%} (up to "
            f"{worst:.0%}); run it again on a quieter machine"
        )
    return lines


def figure(rows: Sequence[Row]) -> Figure:
    """Realised speed-up against the FLOPs' promise, a panel for each number format."""
    precisions = sorted({row.precision for row in rows}, reverse=True)
    fig = Figure(figsize=(6.4 * len(precisions), 5.2), layout="constrained")
    axes = fig.subplots(1, len(precisions), squeeze=False)[0]
    markers = {1: "o", 32: "^", 256: "s", 1024: "D"}
    colours = {"blockdrop openvino": "#0072B2", "blockdrop torch": "#D55E00"}
    dynamic = [row for row in rows if row.efficiency and row.flops_ratio]
    ratios = [row.flops_ratio or 1 for row in dynamic]
    gains = [(row.efficiency or 1) * (row.flops_ratio or 1) for row in dynamic]
    models = list(dict.fromkeys((row.model, row.image_size) for row in dynamic))
    for axis, precision in zip(axes, precisions, strict=True):
        cells = [row for row in dynamic if row.precision == precision]
        limits = min(*gains, 0.9) * 0.65, max(*gains, *ratios) * 1.2
        axis.plot(limits, limits, color="black", lw=1, label="every saved FLOP a saved second")
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
        for model, size in models if len(models) > 1 else []:
            own = [row.flops_ratio or 1 for row in cells if (row.model, row.image_size) == (model, size)]
            if own:
                middle = float(np.exp(np.log(own).mean()))
                axis.text(middle, limits[0] * 1.08, f"{model}\n{size} px", ha="center", fontsize=8, color="grey")
        ticks = [0.2, 0.3, 0.5, 1, 2, 3, 5, 8]
        axis.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axis.set_yticks(ticks, [str(t) for t in ticks], minor=False)
        axis.minorticks_off()
        axis.set(xlim=(min(*ratios, 0.9) * 0.85, max(ratios) * 1.2), ylim=limits)
        axis.legend(fontsize=8, loc="upper left")
    return fig


if __name__ == "__main__":
    run_command(main, BenchConfig, __doc__)
