"""Figures: each function takes data and returns a matplotlib figure."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from blockdrop.data import evenly_spaced
from blockdrop.errors import require
from blockdrop.evaluation import ClassStatistics, FrequentPolicy
from blockdrop.output import check_writable, write_bytes
from blockdrop.policy_curves import Curve

FileKind = Literal["png", "svg", "pdf"]
STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito: distinct for colour-blind eyes


RIGHT, WRONG = "#0072B2", "#D55E00"
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black")
CURVE_DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "12 4")
CURVE_MARKERS = ("o", "s", "^", "D", "v", "P")
"""Of curves in their order, as on the report page (chart.js)."""
MANY = 40
"""Classes from which on a heat map shows only some."""


DATES = {"svg": "Date", "pdf": "CreationDate"}
"""What a file's metadata call the time that it was made."""


def rendered(figure: Figure, kind: FileKind, dpi: float = 150) -> bytes:
    """A figure as a file's bytes, the same each time."""
    buffer = io.BytesIO()
    metadata = {DATES[kind]: None} if kind in DATES else None
    with rc_context({"svg.hashsalt": "blockdrop"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def check_figure(flag: str, path: str | Path, overwrite: bool) -> None:
    """Raises `BlockdropError` if the file can't be written, exists and may not be replaced, or isn't of a kind
    that `write_figure` knows."""
    check_writable(flag, path, overwrite)
    require(Path(path).suffix in (".png", ".svg", ".pdf"), f"{flag} {path}: must end in .png, .svg or .pdf")


def write_figure(flag: str, path: str | Path, figure: Figure) -> None:
    """Writes a figure, whole or not at all; its name says which kind of file, see `check_figure`.

    Raises:
        BlockdropError: the disk is full, the folder gone, ….
    """
    kind: FileKind = Path(path).suffix[1:]  # type: ignore[assignment]
    write_bytes(flag, path, rendered(figure, kind, dpi=figure.dpi))


def draw_usage_per_block(axes: Axes, usage: Sequence[float], stage_sizes: Sequence[int]) -> None:
    """Bars of the share of images (0 to 1) that run each of the K blocks, coloured by stage."""
    start = 0
    for stage, size in enumerate(stage_sizes):
        blocks = range(start, start + size)
        colour = STAGE_COLOURS[stage % len(STAGE_COLOURS)]
        axes.bar(blocks, [100 * usage[b] for b in blocks], color=colour, label=f"stage {stage + 1}")
        start += size
    for border in _borders(stage_sizes):
        axes.axvline(border, color="0.3", linewidth=0.8)
    axes.set(xlabel="block", ylabel="images that run it (%)", ylim=(0, 105), xlim=(-0.7, start - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _no_frame(axes)
    axes.legend(ncols=len(stage_sizes), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def usage_per_block(usage: Sequence[float], stage_sizes: Sequence[int]) -> Figure:
    """Usage per block as a figure of its own."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    draw_usage_per_block(figure.subplots(), usage, stage_sizes)
    return figure


def usage_per_class(classes: Sequence[ClassStatistics], stage_sizes: Sequence[int]) -> Figure:
    """Heat map of the share of each class's images that run each block, classes by mean blocks used, with stage
    borders. Of many classes those that use the fewest and the most blocks are shown."""
    ranked = sorted(classes, key=lambda part: part.blocks)
    note = ""
    if len(ranked) > MANY:
        note = f" (of {len(ranked):,} those with the fewest and the most)"
        ranked = ranked[: MANY // 2] + ranked[-MANY // 2 :]
    width, height = 0.32 * sum(stage_sizes) + 3.2, 0.28 * len(ranked) + 1.5
    figure = Figure(figsize=(min(max(width, 6), 13), max(height, 3)), layout="constrained")
    axes = figure.subplots()
    shares = [[100 * share for share in part.usage_per_block] for part in ranked]
    drawn = axes.imshow(shares, vmin=0, vmax=100, cmap="cividis", aspect="auto", interpolation="nearest")
    for border in _borders(stage_sizes):
        axes.axvline(border, color="white", linewidth=2)
    axes.set_yticks(range(len(ranked)), [f"{label_text(part.name)}  {part.blocks:.1f}" for part in ranked])
    axes.set(xlabel="block (lines: borders of stages)", ylabel=f"class, mean blocks used{note}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(drawn, ax=axes, label="images that run it (%)", pad=0.02)
    return figure


def blocks_histogram(blocks_used: Tensor, right: Tensor, num_blocks: int) -> Figure:
    """How many images use how many blocks, those predicted right below those predicted wrong.

    Args:
        blocks_used: (N,).
        right: bool (N,).
        num_blocks: K.
    """
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    counts = {
        which: blocks_used[right == which].long().bincount(minlength=num_blocks + 1) for which in (True, False)
    }
    shares = {which: (100 * found / len(blocks_used)).tolist() for which, found in counts.items()}
    axes.bar(range(num_blocks + 1), shares[True], color=RIGHT, label="predicted right")
    axes.bar(
        range(num_blocks + 1), shares[False], bottom=shares[True], color=WRONG, hatch="////", edgecolor="white",
        linewidth=0, label="predicted wrong",
    )  # fmt: skip
    average = blocks_used.double().mean().item()
    axes.axvline(average, color="black", linestyle="--", linewidth=1.2, label=f"mean {average:.2f}")
    axes.set(xlabel="blocks used", ylabel="images (%)", xlim=(-0.7, num_blocks + 0.7))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _no_frame(axes)
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def rank_by_blocks(policy: Tensor, keep_probs: Tensor) -> Tensor:
    """Rows by blocks used, fewest first, int64 (N,); of equally many the smaller sum of keep probabilities first.

    Args:
        policy: bool (N, K).
        keep_probs: float (N, K).
    """
    return (policy.sum(1) + keep_probs.sum(1) / (1 + policy.shape[1])).argsort(stable=True)


def draw_images(row: Sequence[Axes], images: Tensor, titles: Sequence[str], label: str = "") -> None:
    """Images, uint8 (M, 3, H, W), one in each of the axes, with a word above each; spare axes stay empty."""
    for axes, image, title in itertools.zip_longest(row, images, titles):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if image is not None:
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_title(title, fontsize=9, pad=3)
    row[0].set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")


def extremes(
    images: Tensor,
    labels: Tensor,
    policy: Tensor,
    keep_probs: Tensor,
    classes: Sequence[str],
    columns: int = 5,
    rows: int = 10,
) -> Figure:
    """Easiest and hardest images: of each class those that use the fewest blocks, beside those that use the most,
    each with its number.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        policy: bool (N, K).
        keep_probs: float (N, K); among images of equally many blocks their sum decides.
        classes: names by label.
        columns: images of each kind.
        rows: classes at most, evenly spread.
    """
    present = labels.unique()
    chosen = present[evenly_spaced(len(present), rows)].tolist()
    ranked, used = rank_by_blocks(policy, keep_probs), policy.sum(1).tolist()
    figure = Figure(figsize=(1.6 + 1.3 * columns, 0.6 + 0.8 * len(chosen)), layout="constrained")
    widths = [1.0] * columns + [0.4] + [1.0] * columns
    grid = figure.subplots(len(chosen), len(widths), squeeze=False, width_ratios=widths)
    for row in grid:
        row[columns].axis("off")
    first, second = slice(0, columns), slice(columns + 1, None)
    halves = ("fewest blocks", ranked, first), ("most blocks", ranked.flip(0), second)
    for title, order, place in halves:
        for row, label in zip(grid[:, place], chosen, strict=True):
            of_class = order[labels[order] == label][:columns]
            name = label_text(classes[label]) if place is first else ""
            draw_images(row, images[of_class], [str(used[index]) for index in of_class.tolist()], name)
        middle = grid[0][place][columns // 2]
        middle.set_title(f"{title}\n{middle.get_title()}", fontsize=9, pad=3)
    return figure


def frequent_policies(
    frequent: Sequence[FrequentPolicy],
    policy: Tensor,
    images: Tensor,
    stage_sizes: Sequence[int],
    columns: int = 4,
    rows: int = 8,
) -> Figure:
    """The most frequent policies, each as a strip of its blocks (filled: runs), with its share of the images and
    some of them.

    Args:
        frequent: of the same images.
        policy: bool (N, K).
        images: uint8 (N, 3, H, W).
        columns: images of each policy, evenly spread over those that have it.
        rows: policies at most.
    """
    shown = list(frequent[:rows])
    figure = Figure(figsize=(7.5, 0.4 + 0.72 * len(shown)), layout="constrained")
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1))
    strips = left.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, one, row in zip(strips, shown, right.subplots(len(shown), columns, squeeze=False), strict=True):
        kept = torch.tensor([character == "1" for character in one.policy])
        draw_strip(axes, kept, stage_sizes)
        axes.set_title(
            f"{one.share:.1%} of the images, {int(kept.sum())} blocks, {one.accuracy:.1%} of them right",
            fontsize=9, pad=3, loc="left",
        )  # fmt: skip
        having = (policy == kept).all(1).nonzero().squeeze(1)
        some = having[evenly_spaced(len(having), columns)]
        draw_images(row, images[some], [""] * len(some))
    return figure


def draw_strip(axes: Axes, kept: Tensor, stage_sizes: Sequence[int]) -> None:
    """A policy, bool (K,): a cell for each block, filled where it runs, coloured by stage."""
    block = 0
    for stage, size in enumerate(stage_sizes):
        colour = STAGE_COLOURS[stage % len(STAGE_COLOURS)]
        for _ in range(size):
            axes.bar(block, 1, width=0.86, color=colour if kept[block] else "white", edgecolor=colour, linewidth=1)
            block += 1
    for border in _borders(stage_sizes):
        axes.axvline(border, color="0.3", linewidth=0.8)
    axes.set(xticks=[], yticks=[], ylim=(0, 1.15), xlim=(-0.7, block - 0.3))
    axes.spines[:].set_visible(False)


def accuracy_against_flops(curves: Sequence[Curve], full_flops: int) -> Figure:
    """Accuracy of each kind of policy against its mean FLOPs per image.

    Args:
        full_flops: of the full network, for the second axis.
    """
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(curves):
        line = [point.flops / 1e6 for point in curve.points], [100 * point.accuracy for point in curve.points]
        axes.plot(*line, label=label_text(curve.name, 40), **curve_style(index, alone=len(curve.points) == 1))
    axes.set(xlabel="MFLOPs per image, policy network included", ylabel="test accuracy (%)", xlim=(0, None))
    percent = 1e8 / full_flops
    share = axes.secondary_xaxis(
        "top", functions=(lambda x: np.asarray(x) * percent, lambda x: np.asarray(x) / percent)
    )
    share.set_xlabel("% of the full network's FLOPs")
    axes.grid(alpha=0.25)
    axes.spines[["right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def curve_style(index: int, alone: bool) -> dict[str, Any]:
    """How matplotlib draws a curve: colour, dash and marker by its place; a single point as a larger ring, so that
    what lies under it is seen."""
    dash = tuple(float(length) / 1.75 for length in CURVE_DASHES[index % len(CURVE_DASHES)].split())
    style: dict[str, Any] = {
        "color": CURVE_COLOURS[index % len(CURVE_COLOURS)],
        "marker": CURVE_MARKERS[index % len(CURVE_MARKERS)],
        "linestyle": (0, dash) if dash else "-",
        "linewidth": 1.75,
        "markersize": 4.5,
    }
    if alone:
        style |= {"linestyle": "none", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 2}
    return style


def _borders(stage_sizes: Sequence[int]) -> list[float]:
    return [end - 0.5 for end in itertools.accumulate(stage_sizes)][:-1]


def _no_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def label_text(name: str, length: int = 24) -> str:
    """A name from outside as matplotlib can draw it: shortened, never a formula between dollar signs, "?" for what
    can't be printed.

    >>> print(label_text("a $ b\\x01"))
    a \\$ b?
    """
    name = "".join(character if character.isprintable() else "?" for character in name)
    return (name if len(name) <= length else f"{name[: length - 1]}…").replace("$", r"\$")
