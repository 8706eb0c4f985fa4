"""Accuracy against FLOPs and against seconds, of all methods whose evaluations lie in a folder.

Reads what `python -m blockdrop.evaluate --json` wrote, <method>-s<seed>.json: a table with confidence intervals,
tests of who beats whom, a chart with the Pareto fronts. Files of your own join by their names. --run trains what
is missing of the list in experiments/methods.py, several at once if asked, evaluates it and lets all networks take
turns on one clock; it goes on where it stopped.

To try it: python -m blockdrop.pretrain --model R8_Digits --max_epochs 3 --cv_dir cv/r8, then --model R8_Digits
--load cv/r8 --cv_dir cv/tradeoff-digits --epochs 2 --only full fast fixed first_k --seeds 0 --run --processes 2
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockdrop.console import run_command
from blockdrop.errors import BlockdropError, require
from blockdrop.evaluate import EvaluateConfig
from blockdrop.evaluation import recorded_checkpoints
from blockdrop.figures import check_figure, write_figure
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.specs import parse_model_name
from blockdrop.names import EngineName
from blockdrop.output import check_writable, write_json
from blockdrop.studies.clock import Clock, valid_times
from blockdrop.studies.evaluations import Folder, read_folder
from blockdrop.studies.jobs import Job, make_job, run_jobs, tell_failures
from blockdrop.studies.runs import check_finished
from blockdrop.studies.times import TIMES_FILE, Times
from blockdrop.training.compute import choose_compute
from blockdrop.training.config import TrainingConfig
from experiments import methods
from experiments.methods import Conditions, Method
from experiments.tradeoff_chart import figure
from experiments.tradeoff_report import METHODS, collect, markdown

KEPT_SHARE = 0.59
"""Of the blocks, under static policies: what --recipe fast is told to spend."""


@dataclass(kw_only=True)
class TradeoffConfig:
    """Flags of `python -m experiments.tradeoff`."""

    results: str | None = None
    """Folder of the evaluations; default: <cv_dir>/results."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods to compare: A B, or A B C D for two pairs; default: each dynamic one with the full network,
    each other one with the dynamic one whose FLOPs are nearest."""
    resamples: int = 2000
    """Bootstrap samples."""
    seeds: tuple[int, ...] = (0, 1)
    """With --run: a run of each method for each seed."""
    run: bool = False
    """Train what is missing, evaluate it, and measure the seconds."""
    evaluate: bool = False
    """Only evaluate the runs in cv_dir that are finished and not evaluated, and measure the seconds."""
    only: tuple[str, ...] = ()
    """With --run and --evaluate: names of the methods, and what they start from; default: the whole list."""
    processes: int = 1
    """Runs at a time; they share this machine's threads."""
    time: bool = False
    """Measure the seconds of all networks anew, in turns; --run does where some are missing."""
    model: str = "R32_C10"
    """The full network; its data set is that of all."""
    load: str | None = None
    """Its checkpoint or run directory, which dynamic methods and static policies start from."""
    data_dir: str = "data/"
    """Image tree or torchvision's CIFAR files; Digits need none."""
    init: str | None = None
    """Weights that ResNet-20, the teacher of plain-20, is fine-tuned from; default: from scratch."""
    teacher32: str | None = None
    """Checkpoint of ResNet-32, the teacher of ResNet-8; default: --load, if that is one."""
    cv_dir: str = "cv/tradeoff"
    """Folder of the run directories, <method>-s<seed>, and of logs."""
    epochs: int = 15
    """Of all runs but the two next."""
    curriculum_epochs: int = 15
    """Of cl_train, from which fine-tuning by the reference's recipe starts."""
    finetune_epochs: int = 10
    """Of fine-tuning by the reference's recipe."""
    batch_size: int | None = None
    """Images per batch in training; default: each command's."""
    timed_images: int = 1024
    """Test images that the clock runs on."""
    timed_batch_size: int = 256
    """Images per batch on the clock."""
    engine: EngineName = "auto"
    """What runs evaluations and the clock; see evaluate's --engine."""
    device: str = "auto"
    """Of the clock: auto, cpu, cuda, …."""
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
        require(
            self.json is None or Path(self.json).resolve().parent != self.results_folder.resolve(),
            f"--json {self.json}: lies in the folder that is read; name another one",
        )
        parse_model_name(self.model)
        names = [method.name for method in METHODS]
        for name in self.only:
            require(name in names, f"--only {name}: choose {', '.join(names)}")
        require(len(self.seeds) > 0, "--seeds: name at least one")
        require(min(self.seeds) >= 0, f"--seeds {min(self.seeds)}: must be at least 0")
        require(not (self.run and self.evaluate), "--run, --evaluate: pass one of them")
        for flag in (
            "processes", "epochs", "curriculum_epochs", "finetune_epochs", "batch_size", "timed_images",
            "timed_batch_size",
        ):  # fmt: skip
            value = getattr(self, flag)
            require(value is None or value >= 1, f"--{flag} {value}: must be at least 1")
        require(self.resamples >= 100, f"--resamples {self.resamples}: must be at least 100")

    @property
    def results_folder(self) -> Path:
        return Path(self.results or Path(self.cv_dir, "results"))

    @property
    def logs(self) -> Path:
        return Path(self.cv_dir, "logs")

    @property
    def kept_blocks(self) -> int:
        """That static policies keep."""
        return max(1, round(KEPT_SHARE * sum(parse_model_name(self.model).layers)))


def main(config: TradeoffConfig) -> dict[str, Any]:
    """Trains and measures what is missing, if asked, and compares; returns the numbers.

    Raises:
        BlockdropError: nothing to compare; or some runs failed, after everything else is done.
    """
    config.check()
    failures = run_missing(config) if config.run or config.evaluate else {}
    folder = read_folder(config.results_folder)
    require(
        bool(folder.results),
        f"--results {config.results_folder}: no evaluation in it; --run makes them, or put files of evaluate "
        "--json there" + "".join(f"; {name}: {reason}" for name, reason in folder.left_out.items()),
    )
    for name, reason in folder.left_out.items():
        print(f"left out: {name}: {reason}")
    found = collect(folder, time_networks(config, folder), config.resamples, config.compare)
    report = {"config": asdict(config), **found}
    print(f"\n{markdown(report)}")
    if config.json is not None:
        write_json("--json", config.json, report)
        print(f"numbers: {config.json}")
    if config.figure is not None:
        write_figure("--figure", config.figure, figure(report))
        print(f"chart: {config.figure}")
    tell_failures(failures, config.logs)
    return report


# ---- what is missing


@dataclass(frozen=True)
class Plan:
    """Of a method and a seed."""

    trainings: list[TrainingConfig]
    """One after the other."""
    evaluation: EvaluateConfig


def run_missing(config: TradeoffConfig) -> dict[str, str]:
    """Trains (unless only evaluations are asked for) and evaluates; returns why what failed did, by name."""
    require(config.load is not None, "--load: name the trained full network, which runs start from")
    assert config.load is not None
    read_checkpoint(config.load)
    try:
        config.results_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BlockdropError(f"--results {config.results_folder}: can't be made ({error.strerror})") from None
    return run_jobs(missing(config), config.processes, config.logs)


def missing(config: TradeoffConfig) -> list[Job]:
    """The commands that the list still needs, by --only and --seeds, and what these start from.

    Raises:
        BlockdropError: a folder holds another run.
    """
    known = {method.name: method for method in METHODS}
    wanted = [(name, seed) for seed in config.seeds for name in config.only or known]
    jobs: dict[str, Job] = {}
    seen: set[tuple[str, int]] = set()
    while wanted:
        name, seed = wanted.pop(0)
        if (name, seed) in seen:
            continue
        seen.add((name, seed))
        try:
            plan = plan_method(config, known[name], seed)
        except BlockdropError as error:
            if name in config.only:
                raise
            print(f"left out: {name}: {error}")
            continue
        for job in missing_of(plan, config.run):
            jobs[job.makes] = job
            for need in job.needs:
                run = re.fullmatch(r"(.+)-s(\d+)(\.json)?", Path(need).name)
                if run and run[1] in known and not os.path.exists(need) and need not in jobs:
                    wanted.append((run[1], int(run[2])))
    return in_order(list(jobs.values()))


def missing_of(plan: Plan, train: bool) -> Iterator[Job]:
    """The commands of a method that have not been run."""
    needed: list[Job] = []
    for training in reversed(plan.trainings):  # what a finished run started from isn't needed any more
        training.check()
        if check_finished(training, "compare what there is without --run"):
            break
        needed.insert(0, make_job(Path(training.cv_dir).name, training, training.cv_dir))
    if needed and not train:
        return
    yield from needed
    evaluation = plan.evaluation
    assert evaluation.json is not None
    if is_missing(evaluation.json, evaluation.load) or needed:
        yield make_job(f"evaluate-{Path(evaluation.json).stem}", evaluation, evaluation.json)


def is_missing(file: str, load: Sequence[str]) -> bool:
    """Whether there is no evaluation, or one of an older checkpoint of the same run.

    Raises:
        BlockdropError: the file is somebody else's.
    """
    if not os.path.exists(file):
        return True
    recorded = [Path(path).resolve() for path in recorded_checkpoints(Path(file))]
    folders = [Path(path).resolve() for path in load]
    require(
        [path if path in folders else path.parent for path in recorded] == folders,
        f"{file}: isn't an evaluation of {' '.join(load)}, and would be replaced; move it away",
    )
    wanted = [Path(read_checkpoint(path).path) for path in load if os.path.exists(path)]
    newest = max((os.path.getmtime(path) for path in wanted), default=0)
    return recorded != [path.resolve() for path in wanted] or os.path.getmtime(file) < newest


def in_order(jobs: list[Job]) -> list[Job]:
    """Each as early as what it needs allows, otherwise as they come."""
    made = {job.makes for job in jobs}
    ordered: list[Job] = []
    while jobs:
        ready = next(job for job in jobs if not job.needs & made)
        jobs.remove(ready)
        made.discard(ready.makes)
        ordered.append(ready)
    return ordered


def plan_method(config: TradeoffConfig, method: Method, seed: int) -> Plan:
    """All commands of a method for a seed, whether they have been run or not.

    Raises:
        BlockdropError: a flag is missing; no command of the list makes it.
    """
    assert config.load is not None
    require(
        method.kind != "cascade",
        f"{method.name}: experiments.cascade makes its checkpoints; evaluate them with --json "
        f"{config.results_folder}/{method.name}.json",
    )
    flags: dict[str, Any] = {"seed": seed}
    if method.policy is not None:
        flags["policy"] = method.policy.format(k=config.kept_blocks, results=config.results_folder, seed=seed)
    folders = [str(Path(config.cv_dir, f"{step.run or method.name}-s{seed}")) for step in method.steps]
    trainings = methods.plan(method, folders, conditions(config), **flags)
    model, load = config.model, config.load
    if trainings:
        model = getattr(trainings[-1], "student_name", trainings[-1].network)
        load = trainings[-1].cv_dir
    result = config.results_folder / f"{f'{method.name}-s{seed}' if trainings else method.name}.json"
    evaluation = EvaluateConfig(
        model=model, load=(load,), data_dir=config.data_dir, cv_dir=config.cv_dir, engine=config.engine,
        curve=method.kind == "dynamic", policy=flags.get("policy"), json=str(result), overwrite=True,
        speed=False,  # of one clock for all, see time_networks
    )  # fmt: skip
    return Plan(trainings, evaluation)


def conditions(config: TradeoffConfig) -> Conditions:
    """What the flags say about all runs."""
    is_resnet32 = parse_model_name(config.model).architecture == "R32"
    return Conditions(
        model=config.model,
        starts={
            "full": config.load,
            "weights": config.init,
            "r20": str(Path(config.cv_dir, f"r20-s{config.seeds[0]}")),
            "resnet32": config.teacher32 or (config.load if is_resnet32 else None),
        },
        epochs={
            "curriculum": config.curriculum_epochs,
            "finetune": config.finetune_epochs,
            "fast": config.epochs,
            "rival": config.epochs,
        },
        flags={
            "data_dir": config.data_dir,
            "test_every": 5,
            "resume": True,
            **({} if config.batch_size is None else {"batch_size": config.batch_size}),
        },
    )


def time_networks(config: TradeoffConfig, folder: Folder) -> Times | None:
    """The seconds of all networks by one session of the clock: a new one if it is asked for, or if --run or
    --evaluate finds that the stored one lacks some; None if there is none."""
    times = folder.times
    valid = valid_times(folder.results, times)
    lacking = [result.file.name for result in folder.results if result.name not in valid]
    if config.time or (lacking and (config.run or config.evaluate)):
        require(
            TIMES_FILE not in folder.left_out,
            f"--results {config.results_folder}: its {TIMES_FILE} is damaged or somebody else's; move it away",
        )
        clock = Clock(
            config.data_dir, config.cv_dir, choose_compute(config.device, "float32"), config.engine,
            config.timed_batch_size, config.timed_images,
        )  # fmt: skip
        new, failed = clock.measure(folder.results, config.results_folder)
        for name, reason in failed.items():
            print(f"{name}: {reason}")
        return new
    if times is None:
        print("no seconds: --time measures them, all networks in turns")
    elif lacking:
        print(f"no seconds: {', '.join(lacking)}, new since the others were measured; --time measures all anew")
    return times


if __name__ == "__main__":
    run_command(main, TradeoffConfig, __doc__)
