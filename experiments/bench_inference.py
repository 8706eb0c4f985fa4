"""Do dropped blocks save seconds? The executor against the fastest ways to run the full network.

Realised efficiency = (seconds of the fastest full network ÷ seconds of the dynamic network) ÷ (FLOPs of the full
network ÷ FLOPs of the dynamic one), the policy network included in both. 1.0: every saved FLOP is a saved second.
Everything that is compared runs in turns in one process, and medians count.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import blockdrop
from agents.policy_network import PolicyNetwork
from blockdrop.console import run_command
from blockdrop.data import DATASETS, DataSource
from blockdrop.errors import require
from blockdrop.flops import FlopTable, count_flops
from blockdrop.inference.executor import Executor
from blockdrop.inference.openvino_engine import is_installed as openvino_is_installed
from blockdrop.inference.plan import plan_batch
from blockdrop.inference.signal_stack import kept_signal_stack
from blockdrop.models.resnet import DroppableResNet
from blockdrop.progress import progress
from blockdrop.training.compute import has_fast_bfloat16

Run = Callable[[], object]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MINIMUM_SECONDS = 0.05  # a measurement repeats what is shorter
PAUSE_SECONDS = 0.02  # before each, so that the threads of the contender before have gone to sleep


@dataclass(kw_only=True)
class BenchConfig:
    """Flags of `python -m experiments.bench_inference`."""

    models: tuple[str, ...] = ("R32_C10", "R56_C10", "R110_C10")
    """Networks, with fresh weights."""
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

    def check(self) -> None:
        """Raises `UserError` for values out of range and results that would be overwritten."""
        for flag in ("models", "batches", "kept", "distinct", "precisions"):
            require(len(getattr(self, flag)) > 0, f"--{flag}: name at least one")
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
    for model in config.models:
        resnet, policy_network = blockdrop.build(model)
        resnet.eval(), policy_network.eval()
        onnx = export_onnx(resnet)
        for precision in config.precisions:
            if precision == "bfloat16" and not has_fast_bfloat16(torch.device("cpu")):
                print("missing: this processor has no fast bfloat16")
                continue
            for batch in config.batches:
                rows += measure_batch(config, model, resnet, policy_network, precision, batch, onnx)
    results: dict[str, Any] = {
        "config": asdict(config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": [asdict(row) | {"images_per_second": row.images_per_second} for row in rows],
        "planning_seconds": planning_seconds(max(config.batches), config.rounds),
        "memory": [peak_memory(config.models[-1], batch) for batch in config.batches if batch >= 32],
    }
    print("peak memory above the idle process, MB:")
    for entry in results["memory"]:
        print("    " + ", ".join(f"{key} {value:.0f}" for key, value in entry.items()))
    if config.data_dir is not None:
        results["stream"] = stream(config)
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
        models=("R110_C10",), batches=(1, 256), kept=(0.315, 1.0), distinct=(50,), precisions=("float32",),
        torch_compile=False, data_dir=config.data_dir, out=config.out, overwrite=config.overwrite, quick=True,
    )  # fmt: skip


def engines() -> list[Literal["torch", "openvino"]]:
    """Engines of the executor that are installed."""
    return ["torch", "openvino"] if openvino_is_installed() else ["torch"]


def missing_peers() -> list[str]:
    """Packages of contenders that can't be imported."""
    return [name for name in ("openvino", "onnxruntime", "onnx") if importlib.util.find_spec(name) is None]


# ---- contenders


def full_networks(
    config: BenchConfig, resnet: DroppableResNet, images: Tensor, dtype: torch.dtype, onnx: bytes | None
) -> dict[str, Run]:
    """The static ways to run all blocks, by name; each already compiled and run once."""
    raw = copy.deepcopy(resnet).to(dtype)
    folded = resnet.folded()
    last: Any = torch.channels_last
    fast = copy.deepcopy(folded).to(dtype).to(memory_format=last)
    x, x_last = images.to(dtype), images.to(dtype).to(memory_format=last)
    runs: dict[str, Run] = {
        "eager": lambda: raw(x),
        "eager, folded, channels_last": lambda: fast(x_last),
    }
    if config.torch_compile:
        import torch._inductor.config as inductor

        torch._dynamo.reset()
        with inductor.patch(freezing=True), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(copy.deepcopy(fast))
            compiled(x_last)
        runs["torch.compile, freezing"] = lambda: compiled(x_last)
    if onnx is not None and dtype == torch.float32:
        runs["ONNX Runtime"] = onnxruntime_full(onnx, images)
    if openvino_is_installed():
        runs["OpenVINO"] = functools.partial(openvino_network(folded, dtype, len(images)), images)
    return runs


def openvino_network(folded: DroppableResNet, dtype: torch.dtype, batch: int = -1) -> Callable[[Tensor], object]:
    """The full network converted by OpenVINO itself, performance hint LATENCY; -1: for any batch size."""
    import openvino as ov

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(folded, example_input=torch.zeros(1, 3, 32, 32), input=[batch, 3, 32, 32])
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    with kept_signal_stack():
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer([images.numpy()], share_inputs=True, share_outputs=True)


def export_onnx(resnet: DroppableResNet) -> bytes | None:
    """The full network, folded, as ONNX for any batch size; None where a package is missing."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        return None
    example = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("n")},)
        program = torch.onnx.export(resnet.folded(), (example,), dynamic_shapes=shapes, dynamo=True, verbose=False)
        assert program is not None
        program.save(f"{folder}/full.onnx")
        return Path(folder, "full.onnx").read_bytes()


def onnxruntime_full(onnx: bytes, images: Tensor) -> Run:
    """The full network in ONNX Runtime, float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def draw_policies(images: int, blocks: int, kept: float, distinct: int, seed: int = 0) -> Tensor:
    """Random policies bool (N, K), `distinct` of them, each keeping round(kept · K) blocks, equally frequent."""
    generator = np.random.default_rng(seed)
    keep = round(kept * blocks)
    pool = np.zeros((min(distinct, images), blocks), dtype=bool)
    for policy in pool:
        policy[generator.choice(blocks, keep, replace=False)] = True
    return torch.from_numpy(pool[generator.permutation(np.arange(images) % len(pool))])


def dynamic(run: Executor, images: Tensor, policies: Tensor) -> Run:
    """Policy network and network under policies (M, K): those of the batch's images, or for one image in turn."""
    turns = itertools.cycle(policies.split(len(images)))

    def call() -> object:
        policy = next(turns)
        return run(images, policy=lambda _: policy)

    return call


# ---- measuring


def measure_batch(
    config: BenchConfig,
    model: str,
    resnet: DroppableResNet,
    policy_network: PolicyNetwork,
    precision: str,
    batch: int,
    onnx: bytes | None,
) -> list[Row]:
    """All contenders of one model, number format and batch size, in turns."""
    dtype = DTYPES[precision]
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    flops = count_flops(resnet, policy_network, 32)
    full = full_networks(config, resnet, images, dtype, onnx)
    runs: dict[str, Run] = dict(full)
    cells: dict[str, tuple[str, Tensor]] = {}
    for engine in engines():
        static = blockdrop.compile(resnet, dtype=dtype, engine=engine)
        everything = torch.ones(batch, resnet.num_blocks, dtype=torch.bool)
        static.warm(everything, batch_size=batch)
        runs[f"blockdrop {engine}, all blocks, no policy network"] = lambda run=static: run(images)  # type: ignore[misc]
        for kept in config.kept:
            for distinct in config.distinct:
                policy = draw_policies(max(batch, distinct * (batch == 1)), resnet.num_blocks, kept, distinct)
                name = f"blockdrop {engine}, {kept:.0%} kept, {len(torch.unique(policy, dim=0))} policies"
                if name in runs:
                    continue
                run = blockdrop.compile(resnet, policy_network, dtype=dtype, engine=engine)
                run.warm(policy, batch_size=batch)
                runs[name] = dynamic(run, images, policy)
                cells[name] = (f"blockdrop {engine}", policy)
    seconds = measure(runs, config.rounds, f"{model} {precision} batch {batch}")
    best = min(seconds[name] for name in full)
    rows = [Row(model, precision, batch, name, seconds[name]) for name in runs if name not in cells]
    for name, (contender, policy) in cells.items():
        ratio = flops_ratio(flops, policy)
        efficiency = best / seconds[name] / ratio
        kept_blocks = policy.sum(1).double().mean().item()
        distinct = len(torch.unique(policy, dim=0))
        rows.append(
            Row(model, precision, batch, contender, seconds[name], kept_blocks, distinct, ratio, efficiency)
        )
    print(table(rows))
    runs.clear()
    gc.collect()
    return rows


def flops_ratio(flops: FlopTable, policy: Tensor) -> float:
    """FLOPs of the full network ÷ mean FLOPs under the policy, policy network included."""
    return flops.full / flops.per_image(policy).double().mean().item()


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


# ---- memory


def peak_memory(model: str, batch: int) -> dict[str, float]:
    """Peak resident memory (MB) of contenders, each in a process of its own, above the process before it runs."""
    kinds = ["eager", "OpenVINO"] if openvino_is_installed() else ["eager"]
    kinds += [f"blockdrop {engine}" for engine in engines()]
    context = multiprocessing.get_context("spawn")
    found: dict[str, float] = {"batch": batch}
    for kind in kinds:
        with context.Pool(1) as pool:
            found[kind] = pool.apply(_peak_of, (kind, model, batch))
    return found


def _peak_of(kind: str, model: str, batch: int) -> float:
    resnet, policy_network = blockdrop.build(model)
    resnet.eval(), policy_network.eval()
    images = torch.randn(batch, 3, 32, 32)
    policy = draw_policies(batch, resnet.num_blocks, 0.315, 50)
    if openvino_is_installed():
        import openvino  # noqa: F401
    gc.collect()
    before = peak = _resident_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident_mb())

    run: Run
    if kind == "eager":
        last: Any = torch.channels_last
        run = functools.partial(resnet.folded().to(memory_format=last), images)
    elif kind == "OpenVINO":
        run = functools.partial(openvino_network(resnet.folded(), torch.float32, batch), images)
    else:
        engine: Any = kind.removeprefix("blockdrop ")
        executor = blockdrop.compile(resnet, policy_network, engine=engine)
        executor.warm(policy)
        run = dynamic(executor, images, policy)
    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.no_grad():
        for _ in range(3):
            run()
    done.set()
    watcher.join()
    return peak - before


def _resident_mb() -> float:
    """Resident set of this process, MB; its high-water mark where the present one can't be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# ---- a stream of photos


def stream(config: BenchConfig) -> list[dict[str, Any]]:
    """10,000 photos in random order in batches of 256, cold start included, R110_C10.

    The policy network's trunk looks at the photos; its head is drawn at random and scaled so that 469 distinct
    policies of 17 blocks on average come out, as in the reference's published run. The full network, which
    compiles within its time as well, is OpenVINO's where it is installed, else torch's.
    """
    assert config.data_dir is not None
    resnet, policy_network = blockdrop.build("R110_C10")
    resnet.eval(), policy_network.eval()
    photos = DataSource("C10", config.data_dir, 32).test
    shuffled = photos.subset(torch.randperm(len(photos), generator=torch.Generator().manual_seed(0)))
    loaded = shuffled.batches(256, DATASETS["C10"].normalisation, torch.device("cpu"))
    batches = [images.contiguous() for images, _ in loaded]
    policies = spread_policies(policy_network, batches, distinct=469, blocks=17)
    ratio = flops_ratio(count_flops(resnet, policy_network, 32), policies)
    counts = torch.unique(policies, dim=0, return_counts=True)[1].sort(descending=True)[0]

    def seconds_of(make: Callable[[], Callable[[Tensor], object]]) -> tuple[float, float]:
        """Of making it and running all batches, and of running them all again."""
        times = [time.perf_counter()]
        run = make()
        for _ in range(2):
            for images in batches:
                run(images)
            times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    found = []
    for precision in config.precisions:
        dtype = DTYPES[precision]
        makers: dict[str, Callable[[], Callable[[Tensor], object]]] = {
            "full": functools.partial(full_network, resnet, dtype)
        }
        for engine in engines():
            makers[f"blockdrop {engine}"] = functools.partial(
                blockdrop.compile, resnet, policy_network, dtype=dtype, engine=engine
            )
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
        for _ in progress(range(3), f"stream, {precision}", 3, "rounds"):
            for name, make in makers.items():
                seconds[name].append(seconds_of(make))
        medians = {name: [median(times) for times in zip(*both, strict=True)] for name, both in seconds.items()}
        for name, (first, again) in medians.items():
            found.append(
                {
                    "contender": name,
                    "precision": precision,
                    "images": len(policies),
                    "policies": len(counts),
                    "top_10_policies": counts[:10].sum().item() / len(policies),
                    "kept_blocks": policies.sum(1).double().mean().item(),
                    "flops_ratio": 1.0 if name == "full" else ratio,
                    "seconds": first,
                    "seconds_again": again,
                    "efficiency": medians["full"][0] / first / (1.0 if name == "full" else ratio),
                    "efficiency_again": medians["full"][1] / again / (1.0 if name == "full" else ratio),
                }
            )
            print(
                f"stream of {len(policies):,} photos, {len(counts)} policies, {precision}, {name}: "
                f"{first:.1f} s "
                f"from a cold start, {again:.1f} s again; realised efficiency {found[-1]['efficiency']:.2f}, "
                f"{found[-1]['efficiency_again']:.2f}"
            )
    return found


def full_network(resnet: DroppableResNet, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """The full network in OpenVINO, else in torch (folded, channels_last)."""
    if openvino_is_installed():
        return openvino_network(resnet.folded(), dtype)
    last: Any = torch.channels_last
    net = resnet.folded().to(dtype).to(memory_format=last)
    return lambda images: net(images.to(dtype).to(memory_format=last))


@torch.no_grad()
def spread_policies(
    policy_network: PolicyNetwork, batches: Sequence[Tensor], distinct: int, blocks: int
) -> Tensor:
    """Sets the policy network's head so that about `distinct` MAP policies keep `blocks` blocks on average.

    Returns:
        those policies, bool (N, K).
    """
    features = torch.cat([policy_network.features(images) for images in batches])
    centre, scale = features.mean(0), features.std()
    generator = torch.Generator().manual_seed(0)
    head = policy_network.logit
    directions = torch.randn(head.weight.shape, generator=generator) / head.in_features**0.5
    offsets = torch.randn(head.out_features, generator=generator)
    least, most = 0.0, 30.0
    for _ in range(25):
        strength = (least + most) / 2
        head.weight.copy_(strength * directions / scale)
        logits = features @ head.weight.T + offsets - head.weight @ centre
        cut = logits.flatten().sort(descending=True)[0][len(logits) * blocks]
        head.bias.copy_(offsets - head.weight @ centre - cut)
        policies = torch.sigmoid(head(features)) >= 0.5
        if len(torch.unique(policies, dim=0)) > distinct:
            most = strength
        else:
            least = strength
    return policies


# ---- reporting


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | precision | batch | contender | blocks | policies | images/s | FLOPs ÷ | efficiency |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row.efficiency is not None:
            dynamic_part = f" | {row.flops_ratio:.2f} | {row.efficiency:.2f} |"
        else:
            dynamic_part = " | | |"
        blocks = "all" if row.kept_blocks is None else f"{row.kept_blocks:.1f}"
        policies = "" if row.distinct is None else str(row.distinct)
        lines.append(
            f"| {row.model} | {row.precision} | {row.batch} | {row.contender} | {blocks} | {policies} "
            f"| {row.images_per_second:.0f}{dynamic_part}"
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
