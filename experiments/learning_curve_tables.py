"""What `experiments.learning_curve` reports: its tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blockdrop.studies.worth_of_looking import DEALS
from blockdrop.tables import table

PENALTY = -1.0
"""Of the reward that all arms are compared by, whatever they learned from: the reference curriculum's."""


def markdown(report: dict[str, Any], all_tests: bool = False) -> str:
    """The report as tables."""
    backbone = report["backbone"]
    return "\n\n".join(
        [
            f"full network before: {100 * backbone['accuracy']:.2f} %, {backbone['flops']:,} FLOPs, "
            f"{backbone['blocks']} blocks; below, FLOPs are shares of these, policy network included, work is in "
            f"millions of block executions, rewards are at penalty {PENALTY:g}",
            tests_table(report, all_tests),
            target_table(report),
            end_table(report),
            routing_table(report),
            *pruned_networks(report),
        ]
    )


def millions(work: float) -> str:
    return f"{work / 1e6:.{2 if work >= 1e6 else 4}f}"


def tests_table(report: dict[str, Any], all_tests: bool) -> str:
    """Where the runs stood after each command, or at each test, and how much the seeds differ at the end."""
    rows = []
    for arm, found in report["arms"].items():
        runs = [run for run in report["runs"] if run["arm"] == arm]
        for run in runs:
            for test, following in zip(run["tests"], [*run["tests"][1:], None], strict=True):
                if all_tests or following is None or following["command"] != test["command"]:
                    rows.append(tests_row(arm, str(run["seed"]), test))
        if len(runs) > 1:
            rows += [tests_row(arm, name, found[name]) for name in ("mean", "spread")]
    return table(rows, words=3)


def tests_row(arm: str, seed: str, test: dict[str, Any]) -> dict[str, str]:
    """A test, or numbers of several at their end."""
    return {
        "arm": arm,
        "seed": seed,
        "after": f"{test['command']}, {test['epochs']} epochs" if "command" in test else "",
        "work": millions(test["work"]),
        "minutes": f"{test['minutes']:.1f}",
        "accuracy %": f"{100 * test['accuracy']:.2f}",
        "FLOPs %": f"{100 * test['flops']:.1f}",
        "blocks": f"{test['blocks']:.2f}",
        "reward": f"{test['reward']:.4f}",
        "policies": f"{test['unique_policies']:.0f}",
    }


def target_table(report: dict[str, Any]) -> str:
    """How much of the reference's work each run needed for the reference's reward."""
    target = report["target"]
    if target is None:
        return "The reference has not run, so there is no reward of its to reach."
    rows = [
        {
            "arm": found["arm"],
            "seed": str(found["seed"]),
            "work": "not reached" if found["work"] is None else millions(found["work"]),
            "of the reference's": "" if found["share"] is None else f"{found['share']:.3f}",
        }
        for found in report["to_target"]
    ]
    return (
        f"The first test with the reference's reward after its curriculum, which was {target['reward']:.4f}, for "
        f"{millions(target['work'])} million block executions (means over its seeds):\n\n{table(rows, words=2)}"
    )


def end_table(report: dict[str, Any]) -> str:
    """What became of the full network, and how much of the accuracy comes from looking at the image."""
    fixed = report["arms"].get("fixed")
    rows = []
    for run in report["runs"]:
        end = run["end"]
        row = {
            "arm": run["arm"],
            "seed": str(run["seed"]),
            "all blocks %": f"{100 * end['full_accuracy']:.2f}",
            "change": f"{100 * end['change']:+.2f}",
            "own policies %": f"{100 * end['accuracy']:.2f}",
            "dealt policies %": f"{100 * end['dealt_accuracy']:.2f}",
            "own - dealt": f"{100 * (end['accuracy'] - end['dealt_accuracy']):+.2f}",
            "policies": str(end["unique_policies"]),
        }
        if fixed is not None:
            beside, flops = fixed["mean"], run["tests"][-1]["flops"]
            row["own - fixed"] = f"{100 * (end['accuracy'] - beside['accuracy']):+.2f}"
            row["FLOPs - fixed's"] = f"{100 * (flops - beside['flops']):+.1f}"
        rows.append(row)
    note = (
        "The last checkpoint's accuracy with all blocks on, and its change; under its own policies; and under the "
        f"same policies dealt to other images at random (mean of {DEALS} deals), which cost the same and know "
        "nothing of the image"
    )
    if fixed is not None:
        note += "; beside the mean of fixed, one learned policy for all images"
    return f"{note}:\n\n{table(rows, words=2)}"


def routing_table(report: dict[str, Any]) -> str:
    """What one policy for all images does, and what looking at them could add."""
    rows = []
    for run in report["runs"]:
        end = run["end"]
        rows.append(
            {
                "arm": run["arm"],
                "seed": str(run["seed"]),
                "most frequent policy": end["frequent_policy"],
                "FLOPs %": f"{100 * end['frequent_flops']:.1f}",
                "alone %": f"{100 * end['frequent_accuracy']:.2f}",
                "own policies %": f"{100 * end['accuracy']:.2f}",
                "routed %": f"{100 * end['routed_accuracy']:.2f}",
                "all blocks %": f"{100 * end['full_accuracy']:.2f}",
            }
        )
    return (
        "The most frequent of its policies for all images, without a policy network; beside it its own policies; "
        "and routed, at the FLOPs of these: that policy, but all blocks for the images that it is least sure of, "
        f"which no decider can know before the blocks have run:\n\n{table(rows, words=3)}"
    )


def pruned_networks(report: dict[str, Any]) -> Iterator[str]:
    """A line for each arm that came to one policy for all images."""
    for arm in report["arms"]:
        found = [run for run in report["runs"] if run["arm"] == arm and run["end"]["unique_policies"] == 1]
        if found:
            blocks = report["backbone"]["blocks"]
            seeds = (f"seed {run['seed']} ({run['tests'][-1]['blocks']:.0f} of {blocks} blocks)" for run in found)
            yield f"{arm}, {', '.join(seeds)}: one policy for all images: a pruned network, not a dynamic one."
