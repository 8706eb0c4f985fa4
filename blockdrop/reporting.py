"""What a dynamic network does on images, as a report: Python's `blockdrop.evaluate`."""

from __future__ import annotations

from typing import Any

import torch

from agents.answers import Thresholds
from agents.deciders import Learned, keep_all
from blockdrop.calls import check_dynamic, check_whole
from blockdrop.data import Images, as_images
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import require
from blockdrop.measure import evaluate_images, executor, look_through, measure_speed
from blockdrop.names import EngineName, Precision
from blockdrop.policy_stats import Outcomes
from blockdrop.report.table import Report, Row
from blockdrop.training.compute import Compute, choose_compute

FULL, BROUGHT, TUNED, DYNAMIC = "full network", "network as brought", "fine-tuned full network", "dynamic"
"""Names of a report's rows."""


def evaluate(
    dynamic: DynamicNetwork,
    data: Any,
    *,
    threshold: float | None = None,
    answer_threshold: float | None = None,
    batch_size: int = 256,
    speed: bool = True,
    engine: EngineName = "auto",
    device: str | torch.device = "auto",
    precision: Precision = "float32",
    workers: int = 0,
) -> Report:
    """What a dynamic network does on images, beside the same network with all its blocks.

    Args:
        dynamic: left as it is.
        data: test images, as for `train`; a `DataSource` stands for its test part.
        threshold, answer_threshold: in place of the network's own.
        batch_size: images per batch; of a DataLoader its collate function and workers are kept.
        speed: whether to measure images/s.
        engine, precision: see `blockdrop.compile`.
    Raises:
        BlockdropError: data that the network doesn't take, no `DynamicNetwork`, an argument out of range.
    """
    check_dynamic(dynamic)
    check_whole("batch_size", batch_size, 1)
    check_whole("workers", workers, 0)
    require(
        threshold is None or 0 < threshold < 1,
        f"threshold: got {threshold}; expected a number above 0 and below 1",
    )
    answers = dynamic.policy_network is not None and dynamic.policy_network.answer is not None
    require(
        answer_threshold is None or (answer_threshold > 0 and answers),
        f"answer_threshold: got {answer_threshold}; expected a number above 0, and a network that answers",
    )
    images = as_images(data, dynamic.image_size, dynamic.num_classes, workers=workers)
    compute = choose_compute(str(device), precision)
    return report_on(
        dynamic,
        images,
        compute,
        None,
        speed,
        thresholds=Thresholds(
            dynamic.threshold if threshold is None else threshold,
            dynamic.answer_threshold if answer_threshold is None else answer_threshold,
        ),
        batch_size=batch_size,
        engine=engine,
    )


def report_on(
    dynamic: DynamicNetwork,
    images: Images,
    compute: Compute,
    brought: Outcomes | None,
    speed: bool,
    *,
    thresholds: Thresholds | None = None,
    batch_size: int = 256,
    engine: EngineName = "auto",
) -> Report:
    """A report on images.

    Args:
        brought: what the network did with all its blocks before it was trained; None: it wasn't.
        speed: whether to measure images/s.
        thresholds: in place of the network's own.
    """
    policy_network, num_blocks = dynamic.policy_network, dynamic.num_blocks
    full_run = executor(dynamic.network, None, compute, engine)
    run = full_run if policy_network is None else executor(dynamic.network, policy_network, compute, engine)
    full = evaluate_images(
        dynamic, images, compute, decider=keep_all(num_blocks), run=full_run, batch_size=batch_size
    )
    own, at = full, thresholds or dynamic.thresholds
    if policy_network is not None:
        decider = Learned(look_through(run, compute.processes), num_blocks, *at)
        own = evaluate_images(dynamic, images, compute, decider=decider, run=run, batch_size=batch_size)
    full_speed: float | None = None
    own_speed: float | None = None
    if speed and compute.processes.first:
        policies = [] if policy_network is None else [at]
        full_speed, speeds = measure_speed(
            full_run, run, images, dynamic.normalisation, batch_size=batch_size, policies=policies
        )
        own_speed = speeds[0] if speeds else full_speed
    rows = [Row.of(FULL, full, full_speed)]
    if brought is not None:
        rows = [Row.of(BROUGHT, brought, full_speed), Row.of(TUNED, full, full_speed)]
    if policy_network is not None:
        rows.append(Row.of(DYNAMIC, own, own_speed))
    return Report(rows)
