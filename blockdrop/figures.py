"""Figures: each function takes data and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito: distinct for colour-blind eyes


def draw_usage_per_block(axes: Axes, usage: Sequence[float], stage_sizes: Sequence[int]) -> None:
    """Bars of the share of images (0 to 1) that run each of the K blocks, coloured by stage."""
    start = 0
    for stage, size in enumerate(stage_sizes):
        blocks = range(start, start + size)
        colour = STAGE_COLOURS[stage % len(STAGE_COLOURS)]
        axes.bar(blocks, [100 * usage[b] for b in blocks], color=colour, label=f"stage {stage + 1}")
        start += size
    axes.set(xlabel="block", ylabel="images that run it (%)", ylim=(0, 105), xlim=(-0.7, start - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(stage_sizes), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def usage_per_block(usage: Sequence[float], stage_sizes: Sequence[int]) -> Figure:
    """Usage per block as a figure of its own."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    draw_usage_per_block(figure.subplots(), usage, stage_sizes)
    return figure
