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
from blockdrop.measure import evaluate_images, executor, look_through, predict_under
from blockdrop.names import EngineName
from blockdrop.output import write_bytes, write_text
from blockdrop.policy_curves import (
    Curve,
    answer_curve,
    answer_outcomes,
    answer_words,
    blind_curves,
    dynamic_curve,
    full_curve,
    nested_policies,
    rest_at,
)
from blockdrop.policy_stats import Outcomes, PolicyStatistics
from blockdrop.report.page import Report, ReportFigure, report_page
from blockdrop.training.brought import brought_accuracy
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
    threshold: float | None,
    answer_threshold: float | None = None,
) -> Findings:
    """Runs the images under every policy that a threshold can give them, and under policies that don't look.

    Args:
        threshold, answer_threshold: default: the checkpoint's.
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
    curves += [full_curve(full.correct, table), *blind_curves(keep_probs, labels, table, predict)]
    pixels = small_pixels(images, dynamic.normalisation, batch_size)
    return Findings(opened, table, thresholds, pixels, outcomes, full, nested, curves)


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
        ),
        "frequent_policies": ReportFigure(
            "Most frequent policies",
            f"The policies that most images get, {at}: filled blocks run. Beside each some of its images.",
            figures.frequent_policies(statistics.frequent, outcomes.policy, findings.images, stages),
        ),
        "accuracy_against_flops": ReportFigure(
            "Accuracy against FLOPs",
            f"The learned policies {curves}, beside the full network and policies that don't look at the "
            "image, all with the same weights. Class means are told the class; dealt policies are the learned "
            "ones, each given to another image.",
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
            ("made by", f"blockdrop {project_version()}"),
        ],
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
