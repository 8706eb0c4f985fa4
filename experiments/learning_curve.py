"""Accuracy and FLOPs against the work of learning a policy, for recipes × seeds, the reference's among them.

Trains what is missing, one run after the other or --processes at a time, then compares. Work is counted in block
executions: a block that runs forward for one image; a backward pass counts twice. Training the backbone and tests
don't count. A run that is finished isn't repeated; one that was cut off goes on.

To try it: --model R8_Digits --seeds 0 --batch_size 32 --curriculum_epochs 4 --finetune_epochs 4 --fast_epochs 6
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from blockdrop.training.setup import Setup, open_setup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from blockdrop import pretrain
from blockdrop.console import run_command
from blockdrop.errors import UserError, require
from blockdrop.figures import STAGE_COLOURS, check_figure, write_figure
from blockdrop.flops import count_flops
from blockdrop.measure import evaluate_images
from blockdrop.output import check_writable, write_json
from blockdrop.training.compute import choose_compute
from blockdrop.training.config import ModelConfig, TrainingConfig
from blockdrop.training.run_directory import check_same_run, read_flags
from experiments.dynamics import DEALS, evaluate_end
from experiments.runs import (
    Step,
    finished_metrics,
    make_job,
    plan_steps,
    run_jobs,
    tell_failures,
    train,
    what_computes,
)
from experiments.tables import table

PENALTY = -1.0
"""Of the reward that all arms are compared by, whatever they learned from: the reference curriculum's."""
COLOURS = (*STAGE_COLOURS, "#D55E00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", "-", (0, (4, 1.5)), (0, (1.2, 1.2)))  # so that lines that coincide both show
FULL_LINE: dict[str, Any] = {"color": "0.35", "linestyle": "--", "linewidth": 1.2}
RING: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.8}
SAME = 1e-3
"""Less than this, and accuracies measured on two machines may be of the same network."""
LOG_FROM = 20
"""Ratio of the largest to the smallest work from which on the chart's axis is logarithmic."""


ARMS: dict[str, tuple[Step, ...]] = {
    "reference": (Step("cl_train", "curriculum_epochs"), Step("finetune", "finetune_epochs")),
    "fast": (Step("finetune", "fast_epochs", "fast"),),
    "fixed": (Step("finetune", "fast_epochs", "fast", {"policy_net": "constant"}),),
    "random": (Step("finetune", "fast_epochs", "fast", {"shuffle_policies": True}),),
    **{
        f"fast_{policy_net}": (Step("finetune", "fast_epochs", "fast", {"policy_net": policy_net}),)
        for policy_net in ("pooled4", "pooled", "reference")
    },
}
"""What can be compared. fixed learns one policy for all images, by the means and with the work of fast: of the
policy network only the bias is left. random trains both networks with each image under another one's policy: its
accuracy is that under dealt policies. fast_pooled4 and so on decide by other policy networks than the recipe's."""
MAIN_ARMS = ("reference", "fast", "fixed", "random")

Report = dict[str, Any]
"""What --json writes."""


@dataclass(kw_only=True)
class LearningCurveConfig:
    """Flags of `python -m experiments.learning_curve`."""

    model: str = "R32_C10"
    """R<depth>_<dataset>."""
    data_dir: str = "data/"
    """Image tree or torchvision's CIFAR files; Digits need none."""
    load: str | None = None
    """Trained backbone that every arm starts from; default: one is trained first, in cv_dir."""
    pretrain_epochs: int = 10
    """Epochs of that backbone."""
    arms: tuple[str, ...] = MAIN_ARMS
    """Which to compare: reference, fast, fixed, random, fast_pooled4, fast_pooled, fast_reference."""
    seeds: tuple[int, ...] = (0, 1)
    """A run of each arm for each seed."""
    curriculum_epochs: int = 15
    """Epochs of the reference's cl_train."""
    finetune_epochs: int = 10
    """Epochs of the reference's finetune."""
    fast_epochs: int | None = None
    """Epochs of the others; default: the fast recipe's."""
    target_flops: float | None = None
    """Mean cost that the others aim for, a fraction of the full network's FLOPs; default: the fast recipe's."""
    batch_size: int | None = None
    """Images per batch; default: each recipe's."""
    test_every: int = 1
    """Test, and save a checkpoint, every so many epochs and after the last one."""
    cv_dir: str = "cv/learning"
    """Folder of the run directories, <arm>-s<seed>."""
    processes: int = 1
    """Runs at a time; they share this machine's threads."""
    train: bool = True
    """Whether to train what is missing; --no_train compares what there is."""
    all_tests: bool = False
    """Print a row for every test, not only for the last one of each command."""
    reports: tuple[str, ...] = ()
    """Files that --json has written before, on another machine maybe: what they hold of --arms and --seeds is
    neither trained nor evaluated again."""
    json: str | None = None
    """Write all numbers to this file."""
    figure: str | None = None
    """Draw the chart into this file (.png, .svg or .pdf)."""
    overwrite: bool = False
    """Replace the files of --json and --figure if there are any."""

    def check(self) -> None:
        """Raises `UserError` for a value out of range."""
        if self.json is not None:
            check_writable("--json", self.json, self.overwrite)
        if self.figure is not None:
            check_figure("--figure", self.figure, self.overwrite)
        require(len(self.seeds) > 0, "--seeds: name at least one")
        require(len(self.arms) > 0, "--arms: name at least one")
        for arm in self.arms:
            require(arm in ARMS, f"--arms {arm}: choose {', '.join(ARMS)}")
        for flag in (
            "pretrain_epochs", "curriculum_epochs", "finetune_epochs", "fast_epochs", "batch_size", "processes",
        ):  # fmt: skip
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag} {value}: must be at least 1")

    @property
    def backbone(self) -> str:
        """Where every arm starts from."""
        return self.load or str(Path(self.cv_dir, "backbone"))

    @property
    def logs(self) -> Path:
        """Of runs in processes of their own."""
        return Path(self.cv_dir, "logs")


def main(config: LearningCurveConfig) -> dict[str, Any]:
    """Trains what is missing and compares; returns the numbers.

    Raises:
        UserError: nothing to compare; or some runs failed, after everything else is done.
    """
    config.check()
    known, backbone = read_reports(config)
    failures: dict[str, str] = {}
    plans = {
        (arm, seed): [] if (arm, seed) in known else list(plan(config, arm, seed))
        for arm in config.arms
        for seed in config.seeds
    }
    if config.train:
        first = [backbone_plan(config)] if config.load is None and any(plans.values()) else []
        rest = [step for seed in config.seeds for arm in config.arms for step in plans[arm, seed]]
        for step in (*first, *rest):
            step.check()
            check_same_run(Path(step.cv_dir), dataclasses.asdict(step), "compare what there is with --no_train")
        failures = train_missing(config, (*first, *rest))
    report = collect(config, plans, known, backbone)
    print(f"\n{markdown(report, config.all_tests)}")
    if config.json is not None:
        write_json("--json", config.json, report)
        print(f"numbers: {config.json}")
    if config.figure is not None:
        write_figure("--figure", config.figure, figure(report))
        print(f"chart: {config.figure}")
    tell_failures(failures, config.logs)
    return report


# ---- runs


def train_missing(config: LearningCurveConfig, steps: Iterable[TrainingConfig]) -> dict[str, str]:
    """Runs what isn't finished, here or in processes of their own; returns why those that failed did, by name."""
    missing = [step for step in steps if finished_metrics(Path(step.cv_dir)) is None]
    if config.processes > 1:
        names = ("-".join(Path(step.cv_dir).relative_to(config.cv_dir).parts) for step in missing)
        jobs = [make_job(name, step, step.cv_dir) for name, step in zip(names, missing, strict=True)]
        return run_jobs(jobs, config.processes, config.logs)
    for step in missing:
        train(step)
    return {}


def plan(config: LearningCurveConfig, arm: str, seed: int) -> Iterator[TrainingConfig]:
    """The commands of an arm, one after the other."""
    steps = ARMS[arm]
    if config.target_flops is not None:
        target = {"target_flops": config.target_flops}
        steps = tuple(
            dataclasses.replace(step, flags=target | step.flags) if step.recipe == "fast" else step
            for step in steps
        )
    folders = [
        str(Path(config.cv_dir, f"{arm}-s{seed}", step.command if len(steps) > 1 else "")) for step in steps
    ]
    shared = {
        "model": config.model,
        "data_dir": config.data_dir,
        "seed": seed,
        "test_every": config.test_every,
        "resume": True,
        **({} if config.batch_size is None else {"batch_size": config.batch_size}),
    }
    epochs = {flag: getattr(config, flag) for flag in ("curriculum_epochs", "finetune_epochs", "fast_epochs")}
    return plan_steps(steps, folders, config.backbone, epochs, **shared)


def backbone_plan(config: LearningCurveConfig) -> pretrain.PretrainConfig:
    """The command that trains the backbone, where none was given."""
    epochs = config.pretrain_epochs
    return pretrain.PretrainConfig(
        model=config.model, data_dir=config.data_dir, cv_dir=config.backbone, max_epochs=epochs, test_every=epochs,
        resume=True,
    )  # fmt: skip


# ---- numbers


def read_reports(config: LearningCurveConfig) -> tuple[dict[tuple[str, int], Any], dict[str, Any] | None]:
    """The runs in --reports, by arm and seed, and the full network that they started from; the last file counts.

    Raises:
        UserError: a file can't be read, is no report, is of another model or full network, or has a run of other
            flags under an arm and seed to be compared.
    """
    known: dict[tuple[str, int], Any] = {}
    backbone = None
    for path in config.reports:
        try:
            report = json.loads(Path(path).read_text())
            model = report["config"]["model"]
            start = {name: report["backbone"][name] for name in ("accuracy", "flops", "blocks")}
            runs = {(run["arm"], run["seed"]): run for run in report["runs"]}
        except OSError as error:
            raise UserError(f"--reports {path}: can't be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"--reports {path}: not what learning_curve --json writes") from None
        require(model == config.model, f"--reports {path}: runs of {model}, not of {config.model}")
        require(
            backbone in (None, start),
            f"--reports {path}: its runs started from another full network than the others",
        )
        backbone = start
        for (arm, seed), run in runs.items():
            if arm in config.arms and seed in config.seeds:
                check_flags(f"--reports {path}: {arm}, seed {seed}", run, plan(config, arm, seed))
        known |= runs
    return known, backbone


def check_flags(name: str, run: dict[str, Any], steps: Iterable[TrainingConfig]) -> None:
    """Raises `UserError` unless a report's run was of these commands; older reports don't tell."""
    for recorded, step in zip(run.get("flags", ()), steps, strict=False):
        for flag, value in what_computes(step).items():
            found = recorded.get(flag, value)
            require(found == value, f"{name} was run with --{flag} {found}, not {value}; leave that file out")


def collect(
    config: LearningCurveConfig,
    plans: dict[tuple[str, int], list[TrainingConfig]],
    known: dict[tuple[str, int], Any],
    backbone: dict[str, Any] | None,
) -> Report:
    """Everything that table and chart show, as plain numbers.

    Args:
        plans: the commands of each arm and seed to compare; none where `known` has the run.
        known, backbone: what `read_reports` found.
    """
    if any(plans.values()):
        compute, start = choose_compute(precision="float32"), open_networks(config, config.backbone)
        data, size = start.data, start.image_size
        flops = count_flops(start.resnet, None, size)
        full = evaluate_images(start.resnet, None, data.test, start.normalisation, compute, image_size=size)
        loaded = {"accuracy": full.accuracy, "flops": flops.full, "blocks": start.resnet.num_blocks}
        require(
            backbone is None or all(abs(value - backbone[name]) < SAME for name, value in loaded.items()),
            f"--reports {' '.join(config.reports)}: started from a full network of {backbone}, not of {loaded}",
        )
        backbone = loaded
    runs = []
    for (arm, seed), steps in plans.items():
        if not steps:
            runs.append(known[arm, seed])
            continue
        folders = [Path(step.cv_dir) for step in steps]
        tests = read_tests(folders, len(data.train), flops.full)
        if tests is None:
            print(f"left out: {arm}, seed {seed} is not finished")
            continue
        print(f"evaluating {arm}, seed {seed}")
        networks = open_networks(config, str(folders[-1]))
        end = evaluate_end(networks, data.test, compute, networks.stored_threshold)
        end["change"] = end["full_accuracy"] - full.accuracy
        flags = [what_computes(step) for step in steps]
        runs.append({"arm": arm, "seed": seed, "flags": flags, "tests": tests, "end": end})
    require(len(runs) > 0, f"--cv_dir {config.cv_dir}: no finished run of {', '.join(config.arms)} in it")
    target = reference_target(runs)
    return {
        "config": dataclasses.asdict(config),
        "backbone": backbone,
        "runs": runs,
        "arms": {arm: summary([run for run in runs if run["arm"] == arm]) for arm in unique(runs, "arm")},
        "target": target,
        "to_target": None if target is None else [work_to_target(run, target) for run in runs],
    }


def open_networks(config: LearningCurveConfig, checkpoint: str) -> Setup:
    """A checkpoint's networks."""
    return open_setup(
        ModelConfig(model=config.model, data_dir=config.data_dir, cv_dir=config.cv_dir), (checkpoint,)
    )


def read_tests(folders: Iterable[Path], images: int, full_flops: int) -> list[dict[str, Any]] | None:
    """A point for each test of an arm's run directories, work and minutes added up; None if one isn't finished.

    Args:
        images: size of the training set.
        full_flops: of the full network.
    """
    tests: list[dict[str, Any]] = []
    work = minutes = 0.0
    for folder in folders:
        lines = finished_metrics(folder)
        if lines is None:
            return None
        flags = read_flags(folder)
        before = work
        for line in lines:
            if line["phase"] == "train":
                work = before + line["block_executions"]
                minutes += images / line["images_per_second"] / 60
            elif line["phase"] == "test":
                wrong = 1 - line["accuracy"]
                tests.append(
                    {
                        "command": flags["command"],
                        "epochs": line["epoch"] + 1,
                        "work": work,
                        "minutes": minutes,
                        "accuracy": line["accuracy"],
                        "flops": line["flops"] / full_flops,
                        "blocks": line["blocks"],
                        # the reward is (right ones') 1 - share² plus the penalty for each wrong one
                        "reward": line["reward"] + (PENALTY - flags["penalty"]) * wrong,
                        "unique_policies": line["unique_policies"],
                    }
                )
    return tests


def unique(runs: list[dict[str, Any]], key: str) -> list[Any]:
    """The values that occur, in their order."""
    return list(dict.fromkeys(run[key] for run in runs))


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and spread (largest less smallest) over an arm's seeds at their end."""
    ends = [{**run["tests"][-1], **run["end"]} for run in runs]
    numbers = [name for name, value in ends[0].items() if isinstance(value, int | float)]
    return {
        "mean": {name: mean(end[name] for end in ends) for name in numbers},
        "spread": {name: max(end[name] for end in ends) - min(end[name] for end in ends) for name in numbers},
    }


def reference_target(runs: list[dict[str, Any]]) -> dict[str, float] | None:
    """Reward and work of the reference after its curriculum, means over seeds; None where it hasn't run."""
    ends = [
        [test for test in run["tests"] if test["command"] == "cl_train"][-1]
        for run in runs
        if run["arm"] == "reference"
    ]
    return {name: mean(end[name] for end in ends) for name in ("reward", "work")} if ends else None


def work_to_target(run: dict[str, Any], target: dict[str, float]) -> dict[str, Any]:
    """The work of a run's first test whose reward is the target's or more; None where none is."""
    works = [test["work"] for test in run["tests"] if test["reward"] >= target["reward"]]
    work = works[0] if works else None
    share = None if work is None else work / target["work"]
    return {"arm": run["arm"], "seed": run["seed"], "work": work, "share": share}


# ---- for people


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


def figure(report: dict[str, Any]) -> Figure:
    """Accuracy and share of the full network's FLOPs against work; thin lines are seeds, thick ones means."""
    chart = Figure(figsize=(12, 5), layout="constrained")
    panels = {"accuracy": "test accuracy (%)", "flops": "FLOPs (% of the full network's)"}
    full = {"accuracy": report["backbone"]["accuracy"], "flops": 1.0}
    numbers = {arm: list(ARMS).index(arm) for arm in report["arms"]}  # an arm looks the same in every chart
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


if __name__ == "__main__":
    run_command(main, LearningCurveConfig, __doc__)
