"""Peak memory of the contenders of `experiments.bench_inference`."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import resource
import threading
from pathlib import Path
from typing import Any

import torch

import blockdrop
from blockdrop.inference.openvino_engine import is_installed as openvino_is_installed
from experiments.bench_inference_contenders import (
    Run,
    build_networks,
    draw_policies,
    dynamic,
    engines,
    openvino_network,
)


def peak_memory(model: str, image_size: int, batch: int, kept: float, distinct: int) -> dict[str, float]:
    """Peak resident memory (MB) of contenders, each in a process of its own, above the process before it runs.

    Args:
        kept, distinct: see `draw_policies`.
    """
    kinds = ["eager", "OpenVINO"] if openvino_is_installed() else ["eager"]
    kinds += [f"blockdrop {engine}" for engine in engines()]
    context = multiprocessing.get_context("spawn")
    found: dict[str, float] = {"batch": batch}
    for kind in kinds:
        with context.Pool(1) as pool:
            found[kind] = pool.apply(_peak_of, (kind, model, image_size, batch, kept, distinct))
    return found


def _peak_of(kind: str, model: str, image_size: int, batch: int, kept: float, distinct: int) -> float:
    resnet, policy_network = build_networks(model, image_size)
    images = torch.randn(batch, 3, image_size, image_size)
    policy = draw_policies(max(batch, 4 * distinct * (batch == 1)), resnet.num_blocks, kept, distinct)
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
        run = functools.partial(openvino_network(resnet.folded(), torch.float32, image_size, batch), images)
    else:
        engine: Any = kind.removeprefix("blockdrop ")
        executor = blockdrop.compile(resnet, policy_network, engine=engine)
        executor.warm(policy, image_size, batch)
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
