"""Accuracy and FLOPs against the work of learning a policy, for recipes × seeds, the reference's among them.

Trains what is missing, one run after the other or --processes at a time, then compares. Work is counted in block
executions: a block that runs forward for one image; a backward pass counts twice. Training the backbone and tests
don't count. A run that is finished isn't repeated; one that was cut off goes on.

To try it: --model R8_Digits --seeds 0 --batch_size 32 --curriculum_epochs 4 --finetune_epochs 4 --fast_epochs 6
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from agents.deciders import keep_all
from blockdrop import pretrain
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.figures import check_figure, write_figure
from blockdrop.measure import evaluate_images
from blockdrop.output import check_writable, write_json
from blockdrop.studies.jobs import make_job, run_jobs, tell_failures
from blockdrop.studies.runs import finished_metrics, train, what_computes
from blockdrop.studies.worth_of_looking import worth_of_looking
from blockdrop.training.compute import choose_compute
from blockdrop.training.config import ModelConfig, TrainingConfig
from blockdrop.training.opening import Opened, open_networks
from blockdrop.training.run_directory import check_same_run, read_flags
from experiments import methods
from experiments.learning_curve_chart import figure
from experiments.learning_curve_reports import read_report
from experiments.learning_curve_tables import PENALTY, markdown
from experiments.methods import Conditions, find, of_kinds

SAME = 1e-3
"""Less than this, and accuracies measured on two machines may be of the same network."""
ARMS = {
    name: find(name)
    for name in ("reference", "fast", "fixed", *(method.name for method in of_kinds("variant")), "glance")
}
"""What can be compared."""
MAIN_ARMS = ("reference", "fast", "fixed", "random")


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
    """Which to compare: reference, fast, fixed, random, fast_pooled4, fast_pooled, fast_reference, glance."""
    seeds: tuple[int, ...] = (0, 1)
    """A run of each arm for each seed."""
    curriculum_epochs: int = 15
    """Epochs of the reference's cl_train."""
    finetune_epochs: int = 10
    """Epochs of the reference's finetune."""
    fast_epochs: int | None = None
    """Epochs of the others but glance; default: the fast recipe's."""
    glance_epochs: int | None = None
    """Epochs of glance after those in which answers are learned; default: the glance recipe's."""
    target_flops: float | None = None
    """Mean cost that the others but glance aim for, a fraction of the full network's FLOPs; default: the fast
    recipe's."""
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
        """Raises `BlockdropError` for a value out of range."""
        if self.json is not None:
            check_writable("--json", self.json, self.overwrite)
        if self.figure is not None:
            check_figure("--figure", self.figure, self.overwrite)
        require(len(self.seeds) > 0, "--seeds: name at least one")
        require(len(self.arms) > 0, "--arms: name at least one")
        for arm in self.arms:
            require(arm in ARMS, f"--arms {arm}: choose {', '.join(ARMS)}")
        for flag in (
            "pretrain_epochs", "curriculum_epochs", "finetune_epochs", "fast_epochs", "glance_epochs",
            "batch_size", "processes",
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
        BlockdropError: nothing to compare; or some runs failed, after everything else is done.
    """
    config.check()
    known, backbone = read_reports(config)
    failures: dict[str, str] = {}
    plans = {
        (arm, seed): [] if (arm, seed) in known else plan(config, arm, seed)
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
        write_figure("--figure", config.figure, figure(report, list(ARMS)))
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


def plan(config: LearningCurveConfig, arm: str, seed: int) -> list[TrainingConfig]:
    """The commands of an arm, one after the other."""
    steps = ARMS[arm].steps
    folders = [
        str(Path(config.cv_dir, f"{arm}-s{seed}", step.command if len(steps) > 1 else "")) for step in steps
    ]
    return methods.plan(ARMS[arm], folders, conditions(config), seed=seed)


def conditions(config: LearningCurveConfig) -> Conditions:
    """What the flags say about all runs."""
    return Conditions(
        model=config.model,
        starts={"full": config.backbone},
        epochs={
            "curriculum": config.curriculum_epochs,
            "finetune": config.finetune_epochs,
            "fast": config.fast_epochs,
            "glance": config.glance_epochs,
        },
        flags={
            "data_dir": config.data_dir,
            "test_every": config.test_every,
            "resume": True,
            **({} if config.batch_size is None else {"batch_size": config.batch_size}),
        },
        fast_flags={} if config.target_flops is None else {"target_flops": config.target_flops},
    )


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
        BlockdropError: a file can't be read, is no report, is of another model or full network, or has a run of
            other flags under an arm and seed to be compared.
    """
    known: dict[tuple[str, int], Any] = {}
    backbone = None
    for path in config.reports:
        report = read_report(path)
        model, start = report["config"]["model"], report["backbone"]
        require(model == config.model, f"--reports {path}: runs of {model}, not of {config.model}")
        require(
            backbone in (None, start),
            f"--reports {path}: its runs started from another full network than the others",
        )
        backbone = start
        runs = {(run["arm"], run["seed"]): run for run in report["runs"]}
        for (arm, seed), run in runs.items():
            if arm in config.arms and seed in config.seeds:
                check_flags(f"--reports {path}: {arm}, seed {seed}", run, plan(config, arm, seed))
        known |= runs
    return known, backbone


def check_flags(name: str, run: dict[str, Any], steps: Iterable[TrainingConfig]) -> None:
    """Raises `BlockdropError` unless a report's run was of these commands; older reports don't tell."""
    for recorded, step in zip(run.get("flags", ()), steps, strict=False):
        for flag, value in what_computes(step).items():
            found = recorded.get(flag, value)
            require(found == value, f"{name} was run with --{flag} {found}, not {value}; leave that file out")


def collect(
    config: LearningCurveConfig,
    plans: dict[tuple[str, int], list[TrainingConfig]],
    known: dict[tuple[str, int], Any],
    backbone: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything that table and chart show, as plain numbers.

    Args:
        plans: the commands of each arm and seed to compare; none where `known` has the run.
        known, backbone: what `read_reports` found.
    """
    if any(plans.values()):
        compute, start = choose_compute(precision="float32"), open_backbone_or_run(config, config.backbone)
        data, dynamic = start.data, start.dynamic
        full = evaluate_images(dynamic, data.test, compute, decider=keep_all(dynamic.num_blocks))
        full_flops = dynamic.flop_table().full
        loaded = {"accuracy": full.accuracy, "flops": full_flops, "blocks": dynamic.num_blocks}
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
        tests = read_tests(folders, len(data.train), full_flops)
        if tests is None:
            print(f"left out: {arm}, seed {seed} is not finished")
            continue
        print(f"evaluating {arm}, seed {seed}")
        worth = worth_of_looking(open_backbone_or_run(config, str(folders[-1])).dynamic, data.test, compute)
        end = {**dataclasses.asdict(worth), "change": worth.full_accuracy - full.accuracy}
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


def open_backbone_or_run(config: LearningCurveConfig, checkpoint: str) -> Opened:
    """A checkpoint's networks, and the data."""
    flags = ModelConfig(model=config.model, data_dir=config.data_dir, cv_dir=config.cv_dir)
    return open_networks(flags, (checkpoint,))


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


if __name__ == "__main__":
    run_command(main, LearningCurveConfig, __doc__)
