"""Teacher and students side by side: accuracy, size, FLOPs, seconds, and what one inference spends its time on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.profiler import ProfilerActivity, profile

from blockdrop.data import Images
from blockdrop.dynamic import DynamicNetwork
from blockdrop.measure import evaluate_images, executor, measure_passes
from blockdrop.models.backbone import Backbone
from blockdrop.names import EngineName
from blockdrop.training.compute import Compute

PROFILE_ROWS = 8


class Contender(NamedTuple):
    """A network of the comparison."""

    role: str
    """teacher, student, alone, …."""
    dynamic: DynamicNetwork
    """Without a policy network."""

    @property
    def model(self) -> str:
        """The network's name."""
        return self.dynamic.model

    @property
    def network(self) -> Backbone:
        """The network itself."""
        return cast(Backbone, self.dynamic.network)


def compare(
    contenders: Sequence[Contender],
    images: Images,
    compute: Compute,
    engine: EngineName,
    batch_size: int,
    timed_images: int,
) -> list[dict[str, Any]]:
    """A row per network: role, model, accuracy, parameters, flops, seconds, engine, eager_seconds.

    Seconds are for all test images in batches of `batch_size`, scaled from `timed_images` of them (see
    `measure_passes`), of the engine asked for and of eager torch, where a shortcut's addition isn't fused into a
    convolution.
    """
    runs = [executor(c.network, None, compute, engine) for c in contenders]
    accuracies = [
        evaluate_images(c.dynamic, images, compute, run=run).accuracy
        for c, run in zip(contenders, runs, strict=True)
    ]
    seconds = measure_passes(
        [c.network for c in contenders],
        images,
        contenders[0].dynamic.normalisation,
        compute,
        batch_size=batch_size,
        engines=(engine, "eager"),
        timed_images=timed_images,
        executors={engine: runs},
    )
    return [
        {
            "role": c.role,
            "model": c.model,
            "accuracy": accuracy,
            "parameters": sum(p.numel() for p in c.network.parameters()),
            "flops": c.dynamic.flop_table().full,
            "seconds": times[engine],
            "engine": run.engine_name,
            "eager_seconds": times["eager"],
        }
        for c, run, accuracy, times in zip(contenders, runs, accuracies, seconds, strict=True)
    ]


def print_table(rows: Sequence[dict[str, Any]], batch_size: int, images: int, timed_images: int) -> None:
    """The rows as a table, times also relative to the first."""
    width = max(len(f"{row['role']} {row['model']}") for row in rows)
    engine = f"s, {rows[0]['engine']}"
    scaled = f", seconds scaled from {timed_images:,} of them" if timed_images < images else ""
    print(f"all {images:,} test images{scaled}, at batch {batch_size}, BatchNorm folded, in turns:")
    print(f"    {'':{width}}  accuracy  parameters       FLOPs/img  {engine:>15}  {'s, eager torch':>15}")
    for row in rows:
        name = f"{row['role']} {row['model']}"
        times = [f"{row[key]:.3f} ({row[key] / rows[0][key]:.2f} ×)" for key in ("seconds", "eager_seconds")]
        print(
            f"    {name:{width}}  {row['accuracy']:>8.4f}  {row['parameters']:>10,}  {row['flops']:>14,}  "
            f"{times[0]:>15}  {times[1]:>15}"
        )


def profile_inference(contenders: Sequence[Contender], image_size: int) -> str:
    """torch.profiler's tables of one inference (one image, BatchNorm folded, CPU) of each network."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it complains of every machine without a GPU
    image = torch.zeros(1, 3, image_size, image_size)
    networks = [
        contender.network.folded().cpu().to(memory_format=torch.contiguous_format) for contender in contenders
    ]
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]):
        networks[0](image)  # the first use of the profiler takes its time
    tables = []
    for contender, network in zip(contenders, networks, strict=True):
        with torch.no_grad():
            network(image)
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                network(image)
        table = profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=PROFILE_ROWS, max_name_column_width=40
        )
        tables.append(f"one inference of {contender.role} {contender.model}:\n{table}")
    return "\n".join(tables)
