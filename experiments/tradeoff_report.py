"""What `experiments.tradeoff` reports: the methods' means, intervals, fronts and differences, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from blockdrop.errors import require
from blockdrop.models.specs import ModelSpec, parse_name
from blockdrop.studies.clock import valid_times
from blockdrop.studies.comparison import (
    PairedTest,
    holm,
    mcnemar,
    pareto_front,
    percentile_interval,
    pool_seeds,
    resample_images,
)
from blockdrop.studies.evaluations import Folder, Result
from blockdrop.studies.times import NetworkTimes, Times
from blockdrop.tables import table
from experiments.methods import Kind, of_kinds
from experiments.tradeoff_chart import LOOKS

METHODS = of_kinds(*LOOKS)
"""What the chart can draw, as listed."""


def collect(
    folder: Folder, times: Times | None, resamples: int, wanted: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Everything that tables and chart show, as plain numbers.

    Args:
        resamples: bootstrap samples.
        wanted: pairs of methods to compare; default: see `pairs`.
    """
    runs = by_method(folder.results)
    seconds = valid_times(folder.results, times)
    full_flops = max(result.evaluation.full_flops for result in runs.get("full", folder.results))
    generator = np.random.default_rng(0)
    accuracies = resample_images(
        np.stack([run.right for one in runs.values() for run in one]), resamples, generator
    )
    pooled, start = {}, 0
    for name, one in runs.items():
        pooled[name] = pool_seeds(accuracies[:, start : start + len(one)], generator)
        start += len(one)
    methods = [
        {**row_of(name, one, seconds, full_flops), "interval": list(percentile_interval(pooled[name]))}
        for name, one in runs.items()
    ]
    for cost in ("flops", "seconds"):
        shown = [method for method in methods if method[cost] is not None]
        front = pareto_front([method[cost] for method in shown], [method["accuracy"] for method in shown])
        for method in methods:
            method[f"{cost}_front"] = False
        for method, is_on in zip(shown, front, strict=True):
            method[f"{cost}_front"] = is_on
    full = next((method for method in methods if method["kind"] == "full"), None)
    return {
        "images": len(folder.results[0].right),
        "images_digest": folder.results[0].evaluation.images_digest,
        "full": {"flops": full_flops, "seconds": None if full is None else full["seconds"]},
        "times": None if not seconds or times is None else times.conditions(),
        "methods": methods,
        "comparisons": compare(pairs(wanted, methods), runs, pooled),
        "left_out": folder.left_out,
    }


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by method: those of the list as they stand there, then others by name."""
    listed = [method.name for method in METHODS]
    names = {result.method for result in results}
    order = [*(name for name in listed if name in names), *sorted(names.difference(listed))]
    return {name: [result for result in results if result.method == name] for name in order}


def row_of(
    name: str,
    runs: Sequence[Result],
    seconds: dict[str, NetworkTimes],
    full_flops: float,
) -> dict[str, Any]:
    """A method's means over its runs, and the curves of each."""
    title, kind = name, kind_of(runs[0], full_flops)
    found = runs[0].evaluation
    policy = (found.policy or "").split(":")
    for method in METHODS:
        listed = (method.policy or "").split(":")
        if method.name == name and listed[0] == policy[0] and len(listed) <= len(policy):
            spec = parse_name(found.model)
            network = spec.architecture
            if isinstance(spec, ModelSpec) and spec.family == "R":
                network = f"ResNet-{spec.depth}"
            title = method.title.format(k=policy[1] if len(policy) > 1 else "", network=network)
            kind = method.kind
    timed = [seconds[run.name] for run in runs if run.name in seconds]
    return {
        "name": name,
        "title": title,
        "kind": kind,
        "files": [run.file.name for run in runs],
        "seeds": [run.seed for run in runs],
        "accuracies": [run.evaluation.accuracy for run in runs],
        "accuracy": mean(run.evaluation.accuracy for run in runs),
        "blocks": mean(run.evaluation.block_usage_mean for run in runs),
        "num_blocks": runs[0].evaluation.num_blocks,
        "unique_policies": [run.evaluation.unique_policies for run in runs],
        "flops": mean(run.evaluation.flops_mean for run in runs),
        "flops_fraction": mean(run.evaluation.flops_mean for run in runs) / full_flops,
        "seconds": mean(found.seconds for found in timed) if timed else None,
        "curves": [curve_of(run, seconds.get(run.name)) for run in runs if run.evaluation.curve],
    }


def curve_of(run: Result, timed: NetworkTimes | None) -> list[dict[str, Any]]:
    """A run's points by threshold."""
    rows = run.evaluation.curve
    seconds: Sequence[float | None] = [None] * len(rows) if timed is None else timed.curve
    return [
        {"threshold": row.threshold, "accuracy": row.accuracy, "flops": row.flops_mean, "seconds": taken}
        for row, taken in zip(rows, seconds, strict=True)
    ]


def kind_of(result: Result, full_flops: float) -> Kind:
    """What a file that isn't of the list is about, by its content."""
    found, spec = result.evaluation, parse_name(result.evaluation.model)
    if found.policy is not None:
        return "static policy"
    if result.decides:
        return "static policy" if found.policy_net == "constant" else "dynamic"
    if spec.family in ("plain", "dsplain", "exactplain"):
        return "plain"
    if spec.family == "shiftresnet":
        return "shift"
    return "full" if found.full_flops >= full_flops else "reduced"


def pairs(wanted: Sequence[tuple[str, str]], methods: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What to compare with what: as --compare says; else dynamic methods with the full network, and others with
    the dynamic one that is nearest in FLOPs, whatever its accuracy: that would be a choice by the test images.

    Args:
        wanted: of --compare; it wins.
    Raises:
        BlockdropError: --compare names what isn't there.
    """
    names = [method["name"] for method in methods]
    for name in (name for pair in wanted for name in pair):
        require(
            name in names, f"--compare {name}: choose {', '.join(names)}, which are evaluated on the same images"
        )
    if wanted:
        return list(wanted)
    full = next((method["name"] for method in methods if method["kind"] == "full"), None)
    dynamic = [method for method in methods if method["kind"] == "dynamic"]
    found = []
    for method in methods:
        rival = full
        if dynamic and method["kind"] not in ("dynamic", "full"):
            rival = min(dynamic, key=lambda one: abs(np.log(one["flops"] / method["flops"])))["name"]
        if rival not in (None, method["name"]):
            found.append((method["name"], rival))
    return found


def compare(
    wanted: Sequence[tuple[str, str]], runs: dict[str, list[Result]], pooled: dict[str, Any]
) -> list[dict[str, Any]]:
    """The differences, with intervals and tests; p-values adjusted for their number."""
    right = {name: np.stack([run.right for run in one]) for name, one in runs.items()}
    tests: list[PairedTest] = [mcnemar(right[one], right[other]) for one, other in wanted]
    adjusted = holm([test.p_value for test in tests])
    return [
        {
            "method": one,
            "against": other,
            "difference": float(right[one].mean() - right[other].mean()),
            "interval": list(percentile_interval(pooled[one] - pooled[other])),
            "flops_ratio": mean(run.evaluation.flops_mean for run in runs[one])
            / mean(run.evaluation.flops_mean for run in runs[other]),
            "test": test.name,
            "statistic": test.statistic,
            "p_value": test.p_value,
            "p_holm": p_holm,
        }
        for (one, other), test, p_holm in zip(wanted, tests, adjusted, strict=True)
    ]


# ---- for people


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    parts = [methods_table(report)]
    if report["comparisons"]:
        parts.append(comparisons_table(report))
    return "\n\n".join(parts)


def methods_table(report: dict[str, Any]) -> str:
    times, full = report["times"], report["full"]
    note = (
        f"{report['images']:,} test images; means over seeds; intervals by {report['config']['resamples']:,} "
        "bootstrap samples of images and seeds (which of two seeds show half the variance between them, of one "
        "none); front: by these means no other method is at least as accurate and as cheap, and better in one of "
        "the two."
    )
    if times is not None:
        note += (
            f" Milliseconds: {times['images']:,} images at batch {times['batch_size']}, {times['compute']}, "
            f"engine {times['engine']}, all networks in turns, policy networks included."
        )
    rows = []
    for method in report["methods"]:
        low, high = method["interval"]
        on = [name for name, cost in (("FLOPs", "flops"), ("time", "seconds")) if method[f"{cost}_front"]]
        row = {
            "method": method["title"],
            "name": f"`{method['name']}`",
            "kind": method["kind"],
            "seeds": " ".join("-" if seed is None else str(seed) for seed in method["seeds"]),
            "front": ", ".join(on),
            "accuracy %": f"{100 * method['accuracy']:.2f}",
            "95 % interval": f"{100 * low:.2f} to {100 * high:.2f}",
            "blocks": f"{method['blocks']:.2f} of {method['num_blocks']}",
            "policies": " ".join(map(str, method["unique_policies"])),
            "MFLOPs": f"{method['flops'] / 1e6:.1f}",
            "of full": f"{method['flops_fraction']:.1%}",
        }
        if times is not None:
            taken = method["seconds"]
            row["ms/image"] = "" if taken is None else f"{1000 * taken:.3f}"
            if full["seconds"] is not None:
                row["× of full"] = "" if taken is None else f"{taken / full['seconds']:.2f}"
        rows.append(row)
    return f"{note}\n\n{table(rows, words=5)}"


def comparisons_table(report: dict[str, Any]) -> str:
    rows = []
    for found in report["comparisons"]:
        low, high = found["interval"]
        rows.append(
            {
                "method": f"`{found['method']}`",
                "against": f"`{found['against']}`",
                "test": f"McNemar, {found['test']}",
                "FLOPs ×": f"{found['flops_ratio']:.2f}",
                "difference, points": f"{100 * found['difference']:+.2f}",
                "95 % interval": f"{100 * low:+.2f} to {100 * high:+.2f}",
                "p": f"{found['p_value']:.2g}",
                "p (Holm)": f"{found['p_holm']:.2g}",
            }
        )
    note = (
        "On the same images, paired. The interval is about other images and other seeds (as far as so few seeds "
        "can tell), p about other images for these very networks: exact is McNemar's binomial test of one run "
        "each, clustered its form for several seeds (Durkalski et al. 2003). Holm's p is adjusted for the "
        f"{len(rows)} row{'s' * (len(rows) != 1)}."
    )
    return f"{note}\n\n{table(rows, words=3)}"
