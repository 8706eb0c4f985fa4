"""Teacher and students side by side: accuracy, size, FLOPs, seconds, and what one inference spends its time on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from blockdrop.flops import count_flops
from blockdrop.inference.executor import EngineName
from blockdrop.measure import evaluate_images, executor, measure_passes
from blockdrop.models.backbone import Backbone
from blockdrop.training.compute import Compute
from blockdrop.training.setup import Setup

PROFILE_ROWS = 8


class Contender(NamedTuple):
    """A network of the comparison."""

    role: str
    """teacher, student, alone, …."""
    model: str
    network: Backbone


def compare(
    contenders: Sequence[Contender], setup: Setup, compute: Compute, engine: EngineName, batch_size: int
) -> list[dict[str, Any]]:
    """A row per network: role, model, accuracy, parameters, flops, seconds.

    Seconds are for all test images in batches of `batch_size`, already in memory, with BatchNorm folded; the
    networks take turns and the median of several rounds counts.
    """
    runs = [executor(c.network, None, compute, engine) for c in contenders]
    how = (setup.data.test, setup.normalisation, compute)
    accuracies = [
        evaluate_images(c.network, None, *how, image_size=setup.image_size, run=run).accuracy
        for c, run in zip(contenders, runs, strict=True)
    ]
    seconds = measure_passes(runs, *how[:2], batch_size, compute.channels_last)
    return [
        {
            "role": c.role,
            "model": c.model,
            "accuracy": accuracy,
            "parameters": sum(p.numel() for p in c.network.parameters()),
            "flops": count_flops(c.network, None, setup.image_size).full,
            "seconds": time,
            "engine": run.engine_name,
        }
        for c, run, accuracy, time in zip(contenders, runs, accuracies, seconds, strict=True)
    ]


def print_table(rows: Sequence[dict[str, Any]], batch_size: int) -> None:
    """The rows as a table, times also relative to the first."""
    width = max(len(f"{row['role']} {row['model']}") for row in rows)
    print(f"all test images at batch {batch_size}, BatchNorm folded, {rows[0]['engine']}, in turns:")
    print(f"    {'':{width}}  accuracy  parameters       FLOPs/img  seconds")
    for row in rows:
        name = f"{row['role']} {row['model']}"
        print(
            f"    {name:{width}}  {row['accuracy']:>8.4f}  {row['parameters']:>10,}  {row['flops']:>14,}  "
            f"{row['seconds']:>7.3f} ({row['seconds'] / rows[0]['seconds']:.2f} ×)"
        )


def profile_inference(contenders: Sequence[Contender], image_size: int) -> str:
    """torch.profiler's tables of one inference (one image, BatchNorm folded, CPU) of each network."""
    tables = []
    for contender in contenders:
        network = copy.deepcopy(contender.network).cpu().folded()
        image = torch.zeros(1, 3, image_size, image_size)
        with torch.no_grad():
            network(image)
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                network(image)
        table = profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=PROFILE_ROWS, max_name_column_width=40
        )
        tables.append(f"one inference of {contender.role} {contender.model}:\n{table}")
    return "\n".join(tables)
