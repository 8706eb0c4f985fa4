"""The chart of accuracy against FLOPs and against seconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

from blockdrop.figures import label_text
from experiments.methods import Kind

Boxes = NDArray[np.float64]
"""(M, 4) or (4,): left, bottom, right, top in pixels."""

LOOKS: dict[Kind, tuple[str, str]] = {
    "full": ("#000000", "*"),
    "dynamic": ("#0072B2", "o"),
    "cascade": ("#882255", "X"),
    "static policy": ("#E69F00", "s"),
    "plain": ("#009E73", "^"),
    "distilled": ("#D55E00", "D"),
    "shift": ("#CC79A7", "v"),
    "reduced": ("#56B4E9", "P"),
}
"""Colour and marker by kind; the colours are Okabe and Ito's, distinct for colour-blind eyes."""
COST_LABELS = {"flops": "FLOPs per image (millions)", "seconds": "ms per image"}
COST_UNITS = {"flops": 1e6, "seconds": 1e-3}
FRONT: dict[str, Any] = {"color": "0.55", "linewidth": 1.3, "zorder": 1}
RING: dict[str, Any] = {"markersize": 15, "markerfacecolor": "none", "markeredgecolor": "0.45", "linestyle": ""}
HALO = [withStroke(linewidth=2.2, foreground="white", alpha=0.85)]
DISTANCES = (9.0, 20.0, 34.0, 50.0, 68.0)
"""Points from a marker to its label, the first that is free."""
DIRECTIONS = ((1.0, 0.0), (-1.0, 0.0), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7), (0.0, 1.0), (0.0, -1.0))


def figure(report: dict[str, Any]) -> Figure:
    """What `experiments.tradeoff` reports, one chart for FLOPs and, where clocks ran, one for seconds."""
    costs = ["flops"] if report["times"] is None else ["flops", "seconds"]
    chart = Figure(figsize=(8.2 * len(costs), 7.2), layout="constrained", dpi=100)
    canvas = FigureCanvasAgg(chart)
    panels = chart.subplots(1, len(costs), squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        draw_points(axes, report, cost)
    times = report["times"]
    if times is not None:
        clock = f"batch {times['batch_size']}, {times['engine']}, all networks in turns"
        panels[1].set_xlabel(f"{COST_LABELS['seconds']} ({clock})")
    chart.legend(handles=list(legend(report)), loc="outside upper center", ncols=5, frameon=False)
    canvas.draw()  # places everything, so that labels know where their points are
    chart.set_layout_engine("none")
    for axes, cost in zip(panels, costs, strict=True):
        shown = [method for method in report["methods"] if method[cost] is not None]
        points = [(method[cost] / COST_UNITS[cost], 100 * method["accuracy"]) for method in shown]
        colours = [LOOKS[method["kind"]][0] for method in shown]
        place_labels(axes, points, [label_text(method["title"], 40) for method in shown], colours)
    return chart


def draw_points(axes: Axes, report: dict[str, Any], cost: str) -> None:
    """A marker with its interval for each method, the thresholds of dynamic ones as lines, the front as steps."""
    unit = COST_UNITS[cost]
    methods = [method for method in report["methods"] if method[cost] is not None]
    for method in methods:
        colour, marker = LOOKS[method["kind"]]
        for curve in method["curves"]:
            line = [(row[cost] / unit, 100 * row["accuracy"]) for row in curve if row[cost] is not None]
            if line:
                axes.plot(*zip(*line, strict=True), color=colour, linewidth=0.9, alpha=0.45, zorder=2)
        low, high = method["interval"]
        accuracy = method["accuracy"]
        axes.errorbar(
            method[cost] / unit, 100 * accuracy, [[100 * (accuracy - low)], [100 * (high - accuracy)]],
            color=colour, marker=marker, markersize=12 if marker == "*" else 7.5, elinewidth=1.1, capsize=2.5,
            markeredgecolor="white", markeredgewidth=0.6, zorder=4.5 if method["kind"] == "dynamic" else 4,
        )  # fmt: skip
    right = 1.04 * max(method[cost] for method in methods) / unit
    front = sorted(
        (method[cost] / unit, 100 * method["accuracy"]) for method in methods if method[f"{cost}_front"]
    )
    across, up = zip(*front, strict=True)
    axes.plot(across, up, marker="o", zorder=3, **RING)
    axes.step((*across, right), (*up, up[-1]), where="post", **FRONT)
    bottom, top = min(method["interval"][0] for method in methods), max(m["interval"][1] for m in methods)
    margin = 8 * max(top - bottom, 0.01)
    axes.set(
        xlabel=COST_LABELS[cost], ylabel=f"test accuracy (%), {report['images']:,} images", xlim=(0, right),
        ylim=(100 * bottom - margin, 100 * top + margin),
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    whole = report["full"][cost]
    if whole is not None:
        percent = 100 * unit / whole
        share = axes.secondary_xaxis("top", functions=(lambda x: x * percent, lambda x: x / percent))
        share.set_xlabel("% of the full network's")
        share.spines["top"].set_visible(False)


def legend(report: dict[str, Any]) -> Iterator[Line2D]:
    present = {method["kind"] for method in report["methods"]}
    for kind, (colour, marker) in LOOKS.items():
        if kind in present:
            yield Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=kind)
    if any(method["curves"] for method in report["methods"]):
        yield Line2D(
            [], [], color=LOOKS["dynamic"][0], alpha=0.45, linewidth=1.2, label="other thresholds, each seed"
        )
    yield Line2D(
        [], [], label="Pareto front", **{**FRONT, **RING, "marker": "o", "linestyle": "-", "markersize": 12}
    )


def place_labels(
    axes: Axes, points: Sequence[tuple[float, float]], titles: Sequence[str], colours: Sequence[str]
) -> None:
    """Writes each title near its point where neither a marker, nor an interval, nor another title is; with a thin
    line to the point where that is some way off. The figure must have been drawn."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    frame = np.asarray(axes.get_window_extent(renderer).extents)[None]
    places = axes.transData.transform(np.array(points))  # pixels
    taken = [np.array([x - 6 * scale, y - 6 * scale, x + 6 * scale, y + 6 * scale]) for x, y in places]
    for bars in axes.collections:  # the intervals
        taken += [np.asarray(path.get_extents(axes.transData).padded(1.5).extents) for path in bars.get_paths()]
    lines = np.concatenate([np.empty((0, 4)), *(along(line, 4 * scale) for line in axes.lines)])
    for index in sorted(range(len(points)), key=lambda index: -places[index, 1]):
        label = axes.annotate(
            titles[index], points[index], (0, 0), textcoords="offset points", fontsize=8.5, color="0.15", zorder=5,
            path_effects=HALO,
        )  # fmt: skip
        found: list[tuple[float, float, tuple[float, float], Boxes]] = []
        for distance, direction in itertools.product(DISTANCES, DIRECTIONS):
            put(label, distance, direction)
            label.update_positions(renderer)
            box = np.asarray(Text.get_window_extent(label, renderer).extents)
            outside = np.prod(box[2:] - box[:2]) - overlap(box, frame)
            cost = overlap(box, np.stack(taken)) + 0.2 * overlap(box, lines) + 3 * outside
            found.append((cost, distance, direction, box))
            if cost < 1:
                break
        _, distance, direction, box = min(found, key=lambda one: one[0])
        put(label, distance, direction)
        taken.append(box)
        if distance > DISTANCES[0]:
            axes.annotate(
                "", points[index], label.get_position(), textcoords="offset points", zorder=3.5,
                arrowprops={
                    "arrowstyle": "-", "color": colours[index], "alpha": 0.6, "linewidth": 0.7, "shrinkA": 0,
                    "shrinkB": 4,
                },
            )  # fmt: skip


def put(label: Annotation, distance: float, direction: tuple[float, float]) -> None:
    """So far from its point, in points; the edge or corner that is nearest to it is the one that is put there."""
    right, up = direction
    label.set_position((distance * right, distance * up))
    label.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
    label.set_verticalalignment("center" if abs(up) < 0.5 else "bottom" if up > 0 else "top")


def along(line: Line2D, step: float) -> Boxes:
    """Small boxes that cover a line as it is drawn, in pixels; none for a single point."""
    vertices = np.asarray(line.get_transform().transform_path(line.get_path()).vertices, dtype=float)
    if len(vertices) < 2:
        return np.empty((0, 4))
    parts = []
    for start, end in itertools.pairwise(vertices):
        count = int(min(np.abs(end - start).max() / step, 2000)) + 1
        parts.append(start + (end - start) * np.arange(count)[:, None] / count)
    corners = np.concatenate(parts)
    return np.concatenate([corners - 1, np.add(corners, (step, 2))], axis=1)


def overlap(box: Boxes, others: Boxes) -> float:
    """Area that a box (4,) shares with others (M, 4), in pixels², each counted."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(sides.clip(0).prod(1).sum())
