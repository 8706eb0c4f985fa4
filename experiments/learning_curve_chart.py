"""The chart of accuracy and FLOPs against work."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from blockdrop.figures import STAGE_COLOURS

COLOURS = (*STAGE_COLOURS, "#D55E00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", "-", (0, (4, 1.5)), (0, (1.2, 1.2)))  # so that lines that coincide both show
FULL_LINE: dict[str, Any] = {"color": "0.35", "linestyle": "--", "linewidth": 1.2}
RING: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.8}
LOG_FROM = 20
"""Ratio of the largest to the smallest work from which on the chart's axis is logarithmic."""


def figure(report: dict[str, Any], arms: Sequence[str]) -> Figure:
    """Accuracy and share of the full network's FLOPs against work; thin lines are seeds, thick ones means.

    Args:
        arms: all there can be, so that each looks the same in every chart.
    """
    chart = Figure(figsize=(12, 5), layout="constrained")
    panels = {"accuracy": "test accuracy (%)", "flops": "FLOPs (% of the full network's)"}
    full = {"accuracy": report["backbone"]["accuracy"], "flops": 1.0}
    numbers = {arm: arms.index(arm) for arm in report["arms"]}
    styles: dict[str, dict[str, Any]] = {
        arm: {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
        for arm, number in numbers.items()
    }
    works = [test["work"] / 1e6 for run in report["runs"] for test in run["tests"]]
    for axes, (name, label) in zip(chart.subplots(1, 2), panels.items(), strict=True):
        axes.axhline(100 * full[name], **FULL_LINE)
        for arm, style in styles.items():
            draw_arm(axes, [run["tests"] for run in report["runs"] if run["arm"] == arm], name, style)
        axes.set(xlabel="work (million block executions)", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if max(works) > LOG_FROM * min(works):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    handles = {arm: Line2D([], [], linewidth=2.5, **style) for arm, style in styles.items()}
    handles["full network before"] = Line2D([], [], **FULL_LINE)
    if any(len({test["command"] for test in run["tests"]}) > 1 for run in report["runs"]):
        handles["end of the curriculum"] = Line2D([], [], color="0.35", **RING)
    chart.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    return chart


def draw_arm(axes: Axes, runs: list[list[dict[str, Any]]], name: str, style: dict[str, Any]) -> None:
    """An arm's lines in one of the two panels."""

    def line(tests: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        return [test["work"] / 1e6 for test in tests], [100 * test[name] for test in tests]

    if len(runs) > 1:
        for tests in runs:
            axes.plot(*line(tests), color=style["color"], linewidth=0.8, alpha=0.55)
    means = [
        {"command": tests[0]["command"]} | {key: mean(test[key] for test in tests) for key in ("work", name)}
        for tests in zip(*runs, strict=False)
    ]
    axes.plot(*line(means), linewidth=2.5, marker="o" if len(means) == 1 else None, **style)
    turns = [test for test, following in itertools.pairwise(means) if test["command"] != following["command"]]
    axes.plot(*line(turns), color=style["color"], **RING)
