"""What `visualize` shows of a policy network's decisions: measured, drawn, and written as figures and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.answers import Thresholds, confidence
from agents.deciders import Learned, keep_all
from blockdrop import figures
from blockdrop.data import Images, Normalisation, evenly_spaced
from blockdrop.errors import BlockdropError
from blockdrop.flops import FlopTable
from blockdrop.measure import (
    Latency,
    evaluate_images,
    executor,
    latency_words,
    look_through,
    measure_latency,
    measure_speed,
    predict_under,
)
from blockdrop.models.checkpoints.operating_points import thresholds_of
from blockdrop.names import EngineName
from blockdrop.output import write_bytes, write_text
from blockdrop.policy_curves import (
    Curve,
    answer_curve,
    answer_outcomes,
    answer_words,
    blind_curves,
    brought_curve,
    dynamic_curve,
    full_curve,
    nested_policies,
    rest_at,
)
from blockdrop.policy_stats import Outcomes, PolicyStatistics
from blockdrop.report.page import Report, ReportFigure, report_page
from blockdrop.training.brought import brought_accuracy
from blockdrop.training.closing import POLICY_STEPS, learning_warnings
from blockdrop.training.compute import Compute
from blockdrop.training.opening import Opened
from blockdrop.version import project_version

EVENTS_SUFFIX = ".visualize"
THUMBNAIL = 64
"""Largest side of an image on the page, in pixels."""


@dataclass(frozen=True)
class Findings:
    """Everything that figures and page show of N images; tensors are on the CPU."""

    opened: Opened
    table: FlopTable
    thresholds: Thresholds
    images: Tensor
    """uint8 (N, 3, S, S)."""
    outcomes: Outcomes
    """Of the dynamic network at the thresholds."""
    full: Outcomes
    nested_predictions: Tensor
    """int64 (K + 1, N), see `nested_policies`; no image is answered."""
    curves: list[Curve]
    speed: Speed | None
    """None: not measured."""


@dataclass(frozen=True)
class Speed:
    """Of the full network and of the dynamic one, at the thresholds."""

    batch_size: int
    full_images_per_second: float
    images_per_second: float
    full_latency: Latency
    latency: Latency

    def facts(self) -> list[tuple[str, str]]:
        """For the head of a page."""
        times = self.images_per_second / self.full_images_per_second
        return [
            (
                f"images/s, batches of {self.batch_size}",
                f"full {self.full_images_per_second:,.0f}, dynamic {self.images_per_second:,.0f} ({times:.2f} ×)",
            ),
            ("one image at a time", latency_words(self.full_latency, self.latency)),
        ]


def evenly_by_class(images: Images, count: int) -> Images:
    """At most `count` of the images, of each class as large a share, in their order."""
    if count >= len(images):
        return images
    by_class = images.labels.argsort(stable=True)
    return images.subset(by_class[evenly_spaced(len(images), count)].sort().values)


def look(
    opened: Opened,
    images: Images,
    compute: Compute,
    batch_size: int,
    engine: EngineName,
    *,
    threshold: float | None = None,
    answer_threshold: float | None = None,
    speed: bool = True,
) -> Findings:
    """Runs the images under every policy that a threshold can give them, and under policies that don't look.

    Args:
        threshold, answer_threshold: default: the checkpoint's.
        speed: whether to measure seconds.
    """
    dynamic = opened.dynamic
    thresholds = Thresholds(
        dynamic.threshold if threshold is None else threshold,
        dynamic.answer_threshold if answer_threshold is None else answer_threshold,
    )
    table = dynamic.flop_table()
    run = executor(dynamic.network, dynamic.policy_network, compute, engine)
    decider = Learned(look_through(run), dynamic.num_blocks, *thresholds)
    outcomes = evaluate_images(dynamic, images, compute, decider=decider, run=run, batch_size=batch_size)
    full = evaluate_images(dynamic, images, compute, decider=keep_all(dynamic.num_blocks), batch_size=batch_size)
    keep_probs, labels, answer = outcomes.keep_probs, outcomes.labels, outcomes.answer
    assert keep_probs is not None
    assert dynamic.policy_network is not None
    given = dynamic.policy_network.answer_weight
    weight = torch.zeros(()) if given is None else given.detach().cpu()

    def predict(policies: Tensor, looks: Tensor, title: str = "blind policies") -> Tensor:
        weights = weight * looks
        return predict_under(
            run, policies, images, dynamic.normalisation, compute, batch_size, title,
            answer=answer, answer_weights=weights,
        )  # fmt: skip

    policies = nested_policies(keep_probs)
    nested = predict(policies, torch.ones(len(policies)), "every threshold")
    answers = None if answer is None else answer_outcomes(answer, labels)
    curves = [dynamic_curve(keep_probs, nested, labels, table, thresholds.keep, answers, thresholds.answer)]
    if answers is not None:
        rest = rest_at(keep_probs, nested, labels, table, thresholds.keep)
        curves.append(answer_curve(rest, answers, table, thresholds.answer))
    curves += blind_curves(keep_probs, labels, table, predict)
    brought = brought_accuracy(dynamic, len(opened.data.test))
    if brought is not None:
        curves.append(brought_curve(brought, table))
    curves.append(full_curve(full.correct, table))
    pixels = small_pixels(images, dynamic.normalisation, batch_size)
    found = None
    if speed:
        whole = executor(dynamic.network, None, compute, engine)
        together = measure_speed(
            whole, run, images, dynamic.normalisation, batch_size=batch_size, policies=[thresholds],
            channels_last=compute.channels_last,
        )  # fmt: skip
        alone = measure_latency(whole, run, images, dynamic.normalisation, thresholds, compute.channels_last)
        found = Speed(batch_size, together[0], together[1][0], *alone)
    return Findings(opened, table, thresholds, pixels, outcomes, full, nested, curves, found)


def small_pixels(images: Images, normalisation: Normalisation, batch_size: int = 256) -> Tensor:
    """The images for people: uint8 (N, 3, S, S), shrunk where they have more than 64 pixels a side."""
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalisation)
    found = []
    for batch, _ in images.batches(batch_size, normalisation):
        pixels = (batch * std + mean) * 255
        if pixels.shape[-1] > THUMBNAIL:
            pixels = F.interpolate(pixels, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
        found.append(pixels.round().clamp(0, 255).to(torch.uint8).contiguous())
    return torch.cat(found)


def draw(findings: Findings, statistics: PolicyStatistics) -> dict[str, ReportFigure]:
    """The figures by file name."""
    outcomes, stages = findings.outcomes, findings.opened.dynamic.network.stage_sizes
    assert outcomes.keep_probs is not None
    at, answered, curves = f"at threshold {findings.thresholds.keep:.4g}", "", "over thresholds"
    if outcomes.answered is not None:
        at += f" and {answer_words(findings.thresholds.answer)}"
        answered = " An answered image runs no block."
        curves = f"over thresholds at {answer_words(findings.thresholds.answer)}, and over answer thresholds"
    return {
        "usage_per_block": ReportFigure(
            "Usage per block",
            f"Share of the images that run each block, {at}.{answered} Lines are borders between stages.",
            figures.usage_per_block(statistics.usage_per_block, stages),
        ),
        "usage_per_class": ReportFigure(
            "Usage per class",
            f"Share of each class's images that run each block, {at}; classes by the blocks that they use.",
            figures.usage_per_class(statistics.classes, stages),
            photos=True,
        ),
        "blocks_histogram": ReportFigure(
            "Blocks used",
            f"How many images use how many blocks, {at}, and which of them are predicted right.{answered}",
            figures.blocks_histogram(outcomes.blocks_used, outcomes.correct, sum(stages)),
        ),
        "extremes": ReportFigure(
            "Easiest and hardest images",
            f"Of each class the images that use the fewest blocks and the most, with their number, {at}.",
            figures.extremes(
                findings.images,
                outcomes.labels,
                outcomes.policy,
                outcomes.keep_probs,
                findings.opened.data.classes,
            ),
            photos=True,
        ),
        "frequent_policies": ReportFigure(
            "Most frequent policies",
            f"The policies that most images get, {at}: filled blocks run. Beside each some of its images.",
            figures.frequent_policies(statistics.frequent, outcomes.policy, findings.images, stages),
            photos=True,
        ),
        "accuracy_against_flops": ReportFigure(
            "Accuracy against FLOPs",
            f"The learned policies {curves}, beside the full network and policies that don't look at the "
            "image, all with the same weights but the network as brought, which is of all test images. Class "
            "means are told the class. “Of another image”: the learned policies, each given to another image.",
            figures.accuracy_against_flops(findings.curves, findings.table.full),
        ),
    }


def write(folder: Path, findings: Findings, statistics: PolicyStatistics) -> None:
    """Figures, page and TensorBoard's events.

    Raises:
        BlockdropError: the folder can't be written.
    """
    drawn = draw(findings, statistics)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for events in folder.glob(f"events.*{EVENTS_SUFFIX}"):
            events.unlink()
        with SummaryWriter(str(folder), filename_suffix=EVENTS_SUFFIX) as board:
            for name, one in drawn.items():
                board.add_image(f"visualize/{name}", one.pixels, dataformats="HWC")
    except OSError as error:
        raise BlockdropError(f"--cv_dir {folder}: not writable ({error.strerror})") from None
    for name, one in drawn.items():
        write_bytes("--cv_dir", folder / "figures" / f"{name}.svg", one.svg)
        write_bytes("--cv_dir", folder / "figures" / f"{name}.png", one.png)
    write_text("--cv_dir", folder / "report.html", report_page(page_of(findings, list(drawn.values()))))
    print(f"figures: {folder / 'figures'} (.png, .svg); also: tensorboard --logdir {folder}")
    print(f"page: {folder / 'report.html'}")


def page_of(findings: Findings, drawn: list[ReportFigure]) -> Report:
    """What the page shows."""
    opened, outcomes, full = findings.opened, findings.outcomes, findings.full
    dynamic, data, stage_sizes = opened.dynamic, opened.data, opened.dynamic.network.stage_sizes
    assert outcomes.keep_probs is not None
    assert full.losses is not None
    answer = outcomes.answer
    shown, all_images = len(outcomes.labels), len(data.test)
    brought = brought_accuracy(dynamic, all_images)
    some = f"{shown:,}" if shown == all_images else f"{shown:,} of {all_images:,}, evenly of all classes"
    return Report(
        title=f"{dynamic.model}: which blocks each image runs"
        + ("" if outcomes.answered is None else ", and which it needs none for"),
        facts=[
            ("network", f"{dynamic.model}, {sum(stage_sizes)} blocks, {findings.table.full:,} FLOPs"),
            ("policy network", f"{dynamic.policy_net}, {findings.table.policy_network:,} FLOPs"),
            ("test images", f"{some} ({data.name})"),
            ("checkpoint", ", ".join(opened.origins)),
            *(() if brought is None else (("network as brought", f"accuracy {brought:.4f} on all test images"),)),
            ("with all blocks now", f"accuracy {full.accuracy:.4f} on these images"),
            *([] if findings.speed is None else findings.speed.facts()),
            ("made by", f"blockdrop {project_version()}"),
        ],
        warnings=warnings_of(findings),
        classes=data.classes,
        stage_sizes=stage_sizes,
        keep_probs=outcomes.keep_probs,
        predictions=findings.nested_predictions.T,
        labels=outcomes.labels,
        losses=full.losses,
        flops=findings.table,
        threshold=findings.thresholds.keep,
        answers=None if answer is None else answer.argmax(1),
        confidence=None if answer is None else confidence(answer),
        answer_threshold=findings.thresholds.answer,
        thumbnails=findings.images,
        curves=findings.curves,
        figures=drawn,
    )


def warnings_of(findings: Findings) -> list[str]:
    """What a person should know before they believe the numbers."""
    outcomes, dynamic = findings.outcomes, findings.opened.dynamic
    metrics = {
        "blocks": outcomes.block_usage[0],
        "unique_policies": outcomes.unique_policies,
        "flops": outcomes.flops_per_image[0],
        "answered": outcomes.answered_share or 0.0,
        POLICY_STEPS: dynamic.metrics.get(POLICY_STEPS, 0),
    }
    stored = dynamic.operating_point or {}
    own = findings.thresholds == thresholds_of(dynamic.operating_point)
    lines = learning_warnings(
        metrics, findings.table, target=stored.get("budget") if own else None,
        threshold=findings.thresholds.keep,
        same_for_all=bool(dynamic.config.get("one_policy")) or dynamic.policy_net == "constant",
    )  # fmt: skip
    return list(lines)
