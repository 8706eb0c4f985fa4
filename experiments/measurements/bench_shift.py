"""The shift against a depthwise 3×3 convolution of the same width: milliseconds, forward and with the gradient.

Each pair takes turns in one process, in another order each round (who comes second finds its input in the cache);
the median counts. The depthwise convolution has weights to
train, hence their gradient too; the shift has none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.models.shift import Shift
from blockdrop.output import check_writable, write_json

MAPS = ((48, 32), (96, 32), (96, 16), (192, 16), (192, 8))
"""(channels, side) of the shifted maps in shiftresnet20 with expansion 3."""


@dataclass(kw_only=True)
class BenchShiftConfig:
    """Flags of `python -m experiments.measurements.bench_shift`."""

    batch_size: int = 128
    """Images per batch."""
    rounds: int = 15
    """Turns that each of a pair takes."""
    json: str | None = None
    """Write the rows to this file."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""


def main(config: BenchShiftConfig) -> list[dict[str, Any]]:
    """Prints a row per map, number format and memory layout; returns them."""
    if config.json is not None:
        check_writable("--json", config.json, config.overwrite)
    require(config.batch_size >= 1 and config.rounds >= 1, "--batch_size and --rounds: must be at least 1")
    threads = torch.get_num_threads()
    print(f"batch {config.batch_size}, {threads} threads, milliseconds (shift / depthwise = ratio)")
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.channels_last, torch.contiguous_format):
            for channels, side in MAPS:
                rows.append(compare(config, channels, side, dtype, layout))
                print(line(rows[-1]), flush=True)
    if config.json is not None:
        write_json("--json", config.json, rows)
    return rows


def compare(
    config: BenchShiftConfig, channels: int, side: int, dtype: torch.dtype, layout: torch.memory_format
) -> dict[str, Any]:
    """Milliseconds of both, forward alone and with the gradient."""
    x = torch.randn(config.batch_size, channels, side, side, dtype=dtype).to(memory_format=layout)
    shift = Shift(channels)
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    depthwise = depthwise.to(dtype).to(memory_format=layout)

    def forward(layer: nn.Module) -> Callable[[], object]:
        def run() -> Tensor:
            with torch.no_grad():
                return layer(x)

        return run

    def with_gradient(layer: nn.Module) -> Callable[[], object]:
        gradient = torch.ones_like(x)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()

        def run() -> None:
            layer(leaf).backward(gradient)

        return run

    times = milliseconds(
        [forward(shift), forward(depthwise), with_gradient(shift), with_gradient(depthwise)], config.rounds
    )
    names = ("shift", "depthwise", "shift_with_gradient", "depthwise_with_gradient")
    return {
        "channels": channels,
        "side": side,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "channels_last" if layout == torch.channels_last else "contiguous",
        **dict(zip(names, times, strict=True)),
    }


def milliseconds(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median of each, taking turns in a shuffled order."""
    for run in runs:
        run()
    found: list[list[float]] = [[] for _ in runs]
    turns, shuffle = list(zip(runs, found, strict=True)), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(turns)
        for run, times in turns:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
    return [median(times) for times in found]


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    pairs = [
        f"{row[f'shift{end}']:7.2f} / {row[f'depthwise{end}']:7.2f} = "
        f"{row[f'shift{end}'] / row[f'depthwise{end}']:4.2f}"
        for end in ("", "_with_gradient")
    ]
    return (
        f"{row['channels']:4} × {row['side']}² {row['dtype']:9} {row['layout']:14} forward {pairs[0]}, "
        f"with gradient {pairs[1]}"
    )


if __name__ == "__main__":
    run_command(main, BenchShiftConfig, __doc__)
