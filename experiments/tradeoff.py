"""Accuracy against FLOPs and against seconds, of all methods whose evaluations lie in a folder.

Reads what `python -m blockdrop.evaluate --json` wrote, <method>-s<seed>.json: a table with confidence intervals,
tests of who beats whom, a chart with the Pareto fronts. Files of your own join by their names. --run trains what
is missing of the list below, several at once if asked, evaluates it and lets all networks take turns on one clock;
it goes on where it stopped.

To try it: python -m blockdrop.pretrain --model R8_Digits --max_epochs 3 --cv_dir cv/r8, then --model R8_Digits
--load cv/r8 --cv_dir cv/tradeoff-digits --epochs 2 --only full fast fixed first_k --seeds 0 --run --processes 2
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from blockdrop.console import run_command
from blockdrop.errors import UserError, require
from blockdrop.evaluate import EvaluateConfig
from blockdrop.figures import check_figure, write_figure
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.specs import parse_model_name
from blockdrop.names import EngineName
from blockdrop.output import check_writable, write_json
from blockdrop.training.compute import choose_compute
from blockdrop.training.config import TrainingConfig
from experiments.comparison import (
    PairedTest,
    holm,
    mcnemar,
    pareto_front,
    percentile_interval,
    pool_seeds,
    resample_images,
)
from experiments.evaluations import (
    TIMES_FILE,
    Folder,
    Result,
    measure_times,
    read_folder,
    valid_times,
)
from experiments.runs import Job, Step, check_finished, make_job, plan_steps, run_jobs, tell_failures
from experiments.static_rivals import RIVALS, Kind, Rival, RivalsConfig, shared_flags
from experiments.tables import table
from experiments.tradeoff_chart import figure

KEPT_SHARE = 0.59
"""Of the blocks, under static policies: what --recipe fast is told to spend."""


@dataclass(frozen=True)
class Method:
    """A point of the chart: how it is trained from the full network, and evaluated."""

    name: str
    title: str
    """`{network}` and `{k}`, blocks that static policies keep, are filled in."""
    kind: Kind
    steps: dict[str, Step] = field(default_factory=dict)
    """Commands by the name of their run, `<name>-s<seed>`; the last one is evaluated. Methods may share runs."""
    policy: str | None = None
    """Static policy to fine-tune and evaluate under; `{k}` as above, `{results}` and `{seed}` as they are."""
    rival: Rival | None = None
    """Trained by that instead of steps."""


def fast(name: str, **flags: Any) -> dict[str, Step]:
    return {name: Step("finetune", "epochs", "fast", flags)}


def reference(name: str, **flags: Any) -> dict[str, Step]:
    return {
        "curriculum": Step("cl_train", "curriculum_epochs"),
        name: Step("finetune", "finetune_epochs", flags=flags),
    }


METHODS = (
    Method("full", "{network}, all blocks", "full"),
    Method("fast", "dynamic, 59 %", "dynamic", fast("fast")),
    Method("fast-45", "dynamic, 45 %", "dynamic", fast("fast-45", target_flops=0.45)),
    Method("fast-75", "dynamic, 75 %", "dynamic", fast("fast-75", target_flops=0.75)),
    Method("reference-p1", "curriculum, penalty -1", "dynamic", reference("reference-p1", penalty=-1.0)),
    Method("reference-p5", "curriculum, penalty -5", "dynamic", reference("reference-p5", penalty=-5.0)),
    # lr: Adam moves a mere bias by no more than that a step
    Method("fixed", "one learned policy", "static policy", fast("fixed", policy_net="constant")),
    Method("first_k", "first {k} blocks", "static policy", fast("first_k"), "first_k:{k}"),
    Method("random_k", "random {k} blocks", "static policy", fast("random_k"), "random_k:{k}"),
    Method(
        "dist_k",
        "{k} blocks by usage",
        "static policy",
        fast("dist_k"),
        "dist_k:{k}:{results}/fast-s{seed}.json",
    ),
    *(Method(rival.name, rival.title, rival.kind, rival=rival) for rival in RIVALS),
)
"""What --run trains, in this order. To add a point, add a line."""


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
        """Raises `UserError` for a value out of range."""
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
        UserError: nothing to compare; or some runs failed, after everything else is done.
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
    report = collect(config, folder, time_networks(config, folder))
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
        raise UserError(f"--results {config.results_folder}: can't be made ({error.strerror})") from None
    return run_jobs(missing(config), config.processes, config.logs)


def missing(config: TradeoffConfig) -> list[Job]:
    """The commands that the list still needs, by --only and --seeds, and what these start from.

    Raises:
        UserError: a folder holds another run.
    """
    methods = {method.name: method for method in METHODS}
    wanted = [(name, seed) for seed in config.seeds for name in config.only or methods]
    jobs: dict[str, Job] = {}
    known: set[tuple[str, int]] = set()
    while wanted:
        name, seed = wanted.pop(0)
        if (name, seed) in known:
            continue
        known.add((name, seed))
        try:
            plan = plan_method(config, methods[name], seed)
        except UserError as error:
            if name in config.only:
                raise
            print(f"left out: {name}: {error}")
            continue
        for job in missing_of(plan, config.run):
            jobs[job.makes] = job
            for need in job.needs:
                run = re.fullmatch(r"(.+)-s(\d+)(\.json)?", Path(need).name)
                if run and run[1] in methods and not os.path.exists(need) and need not in jobs:
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
        UserError: the file is somebody else's.
    """
    if not os.path.exists(file):
        return True
    try:
        recorded = [Path(path).resolve() for path in json.loads(Path(file).read_bytes())["checkpoints"]]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        recorded = []
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
        UserError: a flag is missing.
    """
    assert config.load is not None
    trainings: list[TrainingConfig] = []
    model, load, policy = config.model, config.load, None
    if method.policy is not None:
        policy = method.policy.format(k=config.kept_blocks, results=config.results_folder, seed=seed)
    batches = {} if config.batch_size is None else {"batch_size": config.batch_size}
    if method.rival is not None:
        rivals = rivals_config(config)
        trained = method.rival.plan(rivals, {**shared_flags(rivals, method.name, seed), **batches})
        trainings = [trained]
        model = getattr(trained, "student_name", trained.network)
    elif method.steps:
        folders = [str(Path(config.cv_dir, f"{name}-s{seed}")) for name in method.steps]
        epochs = {name: getattr(config, name) for name in ("epochs", "curriculum_epochs", "finetune_epochs")}
        shared = {"model": model, "data_dir": config.data_dir, "seed": seed, "test_every": 5, "resume": True}
        if policy is not None:
            shared["policy"] = policy
        trainings = list(plan_steps(list(method.steps.values()), folders, load, epochs, **shared, **batches))
    if trainings:
        load = trainings[-1].cv_dir
    result = config.results_folder / f"{f'{method.name}-s{seed}' if trainings else method.name}.json"
    evaluation = EvaluateConfig(
        model=model, load=(load,), data_dir=config.data_dir, cv_dir=config.cv_dir, engine=config.engine,
        curve=method.kind == "dynamic", policy=policy, json=str(result), overwrite=True,
        speed=False,  # of one clock for all, see time_networks
    )  # fmt: skip
    return Plan(trainings, evaluation)


def rivals_config(config: TradeoffConfig) -> RivalsConfig:
    spec = parse_model_name(config.model)
    return RivalsConfig(
        dataset=spec.dataset, data_dir=config.data_dir, cv_dir=config.cv_dir, seeds=config.seeds,
        epochs=config.epochs, init=config.init,
        teacher32=config.teacher32 or (config.load if spec.architecture == "R32" else None),
    )  # fmt: skip


def time_networks(config: TradeoffConfig, folder: Folder) -> dict[str, Any] | None:
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
        how = (config.engine, config.timed_batch_size, config.timed_images)
        compute = choose_compute(config.device, "float32")
        new, failed = measure_times(
            folder.results, config.results_folder, config.data_dir, config.cv_dir, compute, *how
        )
        for name, reason in failed.items():
            print(f"{name}: {reason}")
        return new or None
    if times is None:
        print("no seconds: --time measures them, all networks in turns")
    elif lacking:
        print(f"no seconds: {', '.join(lacking)}, new since the others were measured; --time measures all anew")
    return times


# ---- numbers


def collect(config: TradeoffConfig, folder: Folder, times: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that tables and chart show, as plain numbers."""
    runs = by_method(folder.results)
    seconds = valid_times(folder.results, times)
    full_flops = max(result.numbers["full_flops"] for result in runs.get("full", folder.results))
    generator = np.random.default_rng(0)
    accuracies = resample_images(
        np.stack([run.right for one in runs.values() for run in one]), config.resamples, generator
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
        "config": asdict(config),
        "images": len(folder.results[0].right),
        "images_digest": folder.results[0].numbers["images_digest"],
        "full": {"flops": full_flops, "seconds": None if full is None else full["seconds"]},
        "times": None if not seconds or times is None else {k: v for k, v in times.items() if k != "runs"},
        "methods": methods,
        "comparisons": compare(pairs(config, methods), runs, pooled),
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
    seconds: dict[str, dict[str, Any]],
    full_flops: float,
) -> dict[str, Any]:
    """A method's means over its runs, and the curves of each."""
    title, kind = name, kind_of(runs[0], full_flops)
    numbers = runs[0].numbers
    policy = (numbers["policy"] or "").split(":")
    for method in METHODS:
        listed = (method.policy or "").split(":")
        if method.name == name and listed[0] == policy[0] and len(listed) <= len(policy):
            spec = parse_model_name(numbers["model"])
            network = f"ResNet-{spec.depth}" if spec.family == "R" else spec.architecture
            title = method.title.format(k=policy[1] if len(policy) > 1 else "", network=network)
            kind = method.kind
    timed = [seconds[run.name] for run in runs if run.name in seconds]
    return {
        "name": name,
        "title": title,
        "kind": kind,
        "files": [run.file.name for run in runs],
        "seeds": [run.seed for run in runs],
        "accuracies": [run.numbers["accuracy"] for run in runs],
        "accuracy": mean(run.numbers["accuracy"] for run in runs),
        "blocks": mean(run.numbers["block_usage_mean"] for run in runs),
        "num_blocks": runs[0].numbers["num_blocks"],
        "unique_policies": [run.numbers["unique_policies"] for run in runs],
        "flops": mean(run.numbers["flops_mean"] for run in runs),
        "flops_fraction": mean(run.numbers["flops_mean"] for run in runs) / full_flops,
        "seconds": mean(found["seconds"] for found in timed) if timed else None,
        "curves": [curve_of(run, seconds.get(run.name)) for run in runs if run.numbers["curve"]],
    }


def curve_of(run: Result, timed: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A run's points by threshold."""
    rows = run.numbers["curve"]
    seconds = [None] * len(rows) if timed is None else timed["curve"]
    return [
        {"threshold": row["threshold"], "accuracy": row["accuracy"], "flops": row["flops_mean"], "seconds": taken}
        for row, taken in zip(rows, seconds, strict=True)
    ]


def kind_of(result: Result, full_flops: float) -> Kind:
    """What a file that isn't of the list is about, by its content."""
    numbers, spec = result.numbers, parse_model_name(result.numbers["model"])
    if numbers["policy"] is not None:
        return "static policy"
    if result.decides:
        return "static policy" if numbers["policy_net"] == "constant" else "dynamic"
    if spec.family in ("plain", "dsplain", "exactplain"):
        return "plain"
    if spec.family == "shiftresnet":
        return "shift"
    return "full" if numbers["full_flops"] >= full_flops else "reduced"


def pairs(config: TradeoffConfig, methods: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What to compare with what: as --compare says; else dynamic methods with the full network, and others with
    the dynamic one that is nearest in FLOPs, whatever its accuracy: that would be a choice by the test images.

    Raises:
        UserError: --compare names what isn't there.
    """
    names = [method["name"] for method in methods]
    for name in (name for pair in config.compare for name in pair):
        require(
            name in names, f"--compare {name}: choose {', '.join(names)}, which are evaluated on the same images"
        )
    if config.compare:
        return list(config.compare)
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
            "flops_ratio": mean(run.numbers["flops_mean"] for run in runs[one])
            / mean(run.numbers["flops_mean"] for run in runs[other]),
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


if __name__ == "__main__":
    run_command(main, TradeoffConfig, __doc__)
