"""Figures of what a policy network does with test images, and a page to explore them.

Writes into --cv_dir: figures/*.png and *.svg, report.html (one file, opens from disk without network), and the
figures for TensorBoard. All show the same images, evenly of all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from blockdrop import figures
from blockdrop.console import run_command
from blockdrop.data import Images, Normalisation, evenly_spaced
from blockdrop.errors import UserError, require
from blockdrop.flops import FlopTable, count_flops
from blockdrop.measure import evaluate_images, executor, predict_under
from blockdrop.names import EngineName, Precision
from blockdrop.output import check_folder, write_bytes, write_text
from blockdrop.policy_curves import (
    Curve,
    blind_curves,
    dynamic_curve,
    full_curve,
    nested_policies,
)
from blockdrop.policy_stats import Outcomes, PolicyStatistics, policy_statistics, statistics_lines
from blockdrop.report.page import Report, ReportFigure, report_page
from blockdrop.training.config import ModelConfig
from blockdrop.training.setup import Setup, open_setup
from blockdrop.version import project_version

EVENTS_SUFFIX = ".visualize"
THUMBNAIL = 64
"""Largest side of an image on the page, in pixels."""


@dataclass(kw_only=True)
class VisualizeConfig(ModelConfig):
    """Flags of `python -m blockdrop.visualize`."""

    load: tuple[str, ...] = ()
    """Checkpoints of any dialect, or run directories; backbone and policy network in one file or in two."""
    cv_dir: str = "cv/visualize"
    """Folder to write into."""
    images: int = 2000
    """Test images to show, at most."""
    threshold: float | None = None
    """Run a block where its keep probability is at least this; default: the checkpoint's, else 0.5."""
    precision: Precision = "float32"
    """float32, bfloat16, or auto (bfloat16 where the processor has it)."""
    engine: EngineName = "auto"
    """torch, openvino, or auto (openvino where it is installed and knows the network's layers)."""
    overwrite: bool = False
    """Replace the page and the figures that the folder holds."""

    def check(self) -> None:
        super().check()
        require(bool(self.load), "--load: name a checkpoint that has a policy network")
        require(self.images >= 1, f"--images {self.images}: must be at least 1")
        require(
            self.threshold is None or 0 < self.threshold < 1,
            f"--threshold {self.threshold}: must be above 0 and below 1",
        )
        check_folder("--cv_dir", self.cv_dir)
        folder = Path(self.cv_dir)
        for name in ("report.html", "figures"):
            require(
                self.overwrite or not (folder / name).exists(),
                f"--cv_dir {folder}: holds {name}; pass --overwrite to replace it, or name another folder",
            )


@dataclass(frozen=True)
class Findings:
    """Everything that figures and page show of N images; tensors are on the CPU."""

    setup: Setup
    table: FlopTable
    threshold: float
    images: Tensor
    """uint8 (N, 3, S, S)."""
    outcomes: Outcomes
    """Of the dynamic network at the threshold."""
    full: Outcomes
    nested_predictions: Tensor
    """int64 (K + 1, N), see `nested_policies`."""
    curves: list[Curve]


def main(config: VisualizeConfig) -> Findings:
    """Writes the figures and the page."""
    config.check()
    setup = open_setup(config, config.load)
    require(
        setup.has_policy,
        f"--load {' '.join(config.load)}: holds no policy network; name a checkpoint that has one",
    )
    require(setup.has_backbone, f"--load {' '.join(config.load)}: holds no backbone; name that checkpoint too")
    images = evenly_by_class(setup.data.test, config.images)
    print(
        f"visualize {setup.model} on {len(images):,} of {len(setup.data.test):,} test images of "
        f"{setup.data.name}, {config.compute()}"
    )
    print(f"checkpoints: {', '.join(c.path for c in setup.checkpoints)}")
    if setup.undecided:
        print(setup.undecided)
    findings = look(config, setup, images)
    statistics = policy_statistics(findings.outcomes, findings.full, setup.data.classes, setup.resnet.stage_sizes)
    print(findings.outcomes.four_lines())
    print(statistics_lines(statistics))
    write(config, findings, statistics)
    return findings


def evenly_by_class(images: Images, count: int) -> Images:
    """At most `count` of the images, of each class as large a share, in their order."""
    if count >= len(images):
        return images
    by_class = images.labels.argsort(stable=True)
    return images.subset(by_class[evenly_spaced(len(images), count)].sort().values)


def look(config: VisualizeConfig, setup: Setup, images: Images) -> Findings:
    """Runs the images under every policy that a threshold can give them, and under policies that don't look."""
    compute = config.compute()
    threshold = setup.stored_threshold if config.threshold is None else config.threshold
    table = count_flops(setup.resnet, setup.policy_network, setup.image_size)
    run = executor(setup.resnet, setup.policy_network, compute, config.engine)
    how = (images, setup.normalisation, compute, config.batch_size)
    outcomes = evaluate_images(
        setup.resnet, setup.policy_network, *how, setup.image_size, threshold=threshold, run=run
    )
    full = evaluate_images(setup.resnet, None, *how, setup.image_size)
    keep_probs, labels = outcomes.keep_probs, outcomes.labels
    assert keep_probs is not None
    nested = predict_under(run, nested_policies(keep_probs), *how, title="every threshold")
    curves = [
        dynamic_curve(keep_probs, nested, labels, table, threshold),
        full_curve(full.correct, table),
        *blind_curves(
            keep_probs, labels, table, lambda policies: predict_under(run, policies, *how, title="blind policies")
        ),
    ]
    return Findings(
        setup, table, threshold, small_pixels(*how[:2], config.batch_size), outcomes, full, nested, curves
    )


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
    outcomes, stages = findings.outcomes, findings.setup.resnet.stage_sizes
    assert outcomes.keep_probs is not None
    at = f"at threshold {findings.threshold:.4g}"
    return {
        "usage_per_block": ReportFigure(
            "Usage per block",
            f"Share of the images that run each block, {at}. Lines are borders between stages.",
            figures.usage_per_block(statistics.usage_per_block, stages),
        ),
        "usage_per_class": ReportFigure(
            "Usage per class",
            f"Share of each class's images that run each block, {at}; classes by the blocks that they use.",
            figures.usage_per_class(statistics.classes, stages),
        ),
        "blocks_histogram": ReportFigure(
            "Blocks used",
            f"How many images use how many blocks, {at}, and which of them are predicted right.",
            figures.blocks_histogram(outcomes.blocks_used, outcomes.correct, sum(stages)),
        ),
        "extremes": ReportFigure(
            "Easiest and hardest images",
            f"Of each class the images that use the fewest blocks and the most, with their number, {at}.",
            figures.extremes(
                findings.images, outcomes.labels, outcomes.policy, outcomes.keep_probs, findings.setup.data.classes
            ),
        ),
        "frequent_policies": ReportFigure(
            "Most frequent policies",
            f"The policies that most images get, {at}: filled blocks run. Beside each some of its images.",
            figures.frequent_policies(statistics.frequent, outcomes.policy, findings.images, stages),
        ),
        "accuracy_against_flops": ReportFigure(
            "Accuracy against FLOPs",
            "The learned policies over thresholds, beside the full network and policies that don't look at the "
            "image, all with the same weights. Class means are told the class; dealt policies are the learned "
            "ones, each given to another image.",
            figures.accuracy_against_flops(findings.curves, findings.table.full),
        ),
    }


def write(config: VisualizeConfig, findings: Findings, statistics: PolicyStatistics) -> None:
    """Figures, page and TensorBoard's events.

    Raises:
        UserError: the folder can't be written.
    """
    folder = Path(config.cv_dir)
    drawn = draw(findings, statistics)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for events in folder.glob(f"events.*{EVENTS_SUFFIX}"):
            events.unlink()
        with SummaryWriter(str(folder), filename_suffix=EVENTS_SUFFIX) as board:
            for name, one in drawn.items():
                board.add_image(f"visualize/{name}", one.pixels, dataformats="HWC")
    except OSError as error:
        raise UserError(f"--cv_dir {folder}: not writable ({error.strerror})") from None
    for name, one in drawn.items():
        write_bytes("--cv_dir", folder / "figures" / f"{name}.svg", one.svg)
        write_bytes("--cv_dir", folder / "figures" / f"{name}.png", one.png)
    write_text("--cv_dir", folder / "report.html", report_page(page_of(findings, list(drawn.values()))))
    print(f"figures: {folder / 'figures'} (.png, .svg); also: tensorboard --logdir {folder}")
    print(f"page: {folder / 'report.html'}")


def page_of(findings: Findings, drawn: list[ReportFigure]) -> Report:
    """What the page shows."""
    setup, outcomes, full = findings.setup, findings.outcomes, findings.full
    assert outcomes.keep_probs is not None
    assert full.losses is not None
    shown, all_images = len(outcomes.labels), len(setup.data.test)
    some = f"{shown:,}" if shown == all_images else f"{shown:,} of {all_images:,}, evenly of all classes"
    return Report(
        title=f"{setup.model}: which blocks each image runs",
        facts=[
            ("network", f"{setup.model}, {sum(setup.resnet.stage_sizes)} blocks, {findings.table.full:,} FLOPs"),
            ("policy network", f"{setup.policy_net}, {findings.table.policy_network:,} FLOPs"),
            ("test images", f"{some} ({setup.data.name})"),
            ("checkpoint", ", ".join(c.path for c in setup.checkpoints)),
            ("full network", f"accuracy {full.accuracy:.4f} on these images"),
            ("made by", f"blockdrop {project_version()}"),
        ],
        classes=setup.data.classes,
        stage_sizes=setup.resnet.stage_sizes,
        keep_probs=outcomes.keep_probs,
        predictions=findings.nested_predictions.T,
        labels=outcomes.labels,
        losses=full.losses,
        flops=findings.table,
        threshold=findings.threshold,
        thumbnails=findings.images,
        curves=findings.curves,
        figures=drawn,
    )


if __name__ == "__main__":
    run_command(main, VisualizeConfig, __doc__)
