"""Runs of the commands, for studies that compare many: which are finished, and what is missing done, here or in
several processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal, NoReturn

import torch

from blockdrop import cl_train, distill, evaluate, finetune, pretrain
from blockdrop.errors import UserError, require
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.specs import parse_model_name
from blockdrop.training.config import ModelConfig, TrainingConfig
from blockdrop.training.run_directory import EITHER_WAY, check_same_run, digest, read_flags, read_metrics

COMMANDS: dict[type[ModelConfig], ModuleType] = {
    pretrain.PretrainConfig: pretrain,
    cl_train.CurriculumConfig: cl_train,
    finetune.FinetuneConfig: finetune,
    **dict.fromkeys(distill.METHODS.values(), distill),
    evaluate.EvaluateConfig: evaluate,
}
STARTS = ("init", "load", "pretrained")
"""Flags that name the checkpoints or run directories that a command starts from."""
FOR_LOOKING = ("test_every",)
"""Flags in which two finished runs may differ and be comparable."""


# ---- what a run is


@dataclass(frozen=True)
class Step:
    """A command of a study's list; each starts from the last checkpoint of the one before."""

    command: Literal["cl_train", "finetune"]
    epochs: str
    """Which of the study's flags says for how many epochs; if that is None, the recipe does."""
    recipe: str = "reference"
    flags: dict[str, Any] = field(default_factory=dict)


def plan_steps(
    steps: Sequence[Step],
    folders: Sequence[str],
    start: str,
    epochs: Mapping[str, int | None],
    **shared: Any,
) -> Iterator[TrainingConfig]:
    """The commands of a method, one after the other.

    Args:
        folders: run directory of each.
        start: backbone of the first one.
        epochs: the study's flags about epochs, by name.
        shared: flags of all, `model` among them; a step's own win.
    """
    for step, folder in zip(steps, folders, strict=True):
        flags: dict[str, Any] = {**shared, "cv_dir": folder, **step.flags}
        count = epochs[step.epochs]
        if count is not None:
            flags["max_epochs"] = count
        if step.command == "cl_train":
            blocks = sum(parse_model_name(flags["model"]).layers)
            flags.setdefault("cl_step", -(-blocks // (count or blocks)))  # so that it comes to decide all
            yield cl_train.CurriculumConfig.of_recipe(step.recipe, load=(start,), **flags)
        else:
            yield finetune.FinetuneConfig.of_recipe(step.recipe, pretrained=(start,), **flags)
        start = folder


def finished_metrics(folder: Path) -> list[dict[str, Any]] | None:
    """What a run logged, if it came to its end."""
    lines = read_metrics(folder)
    epochs = read_flags(folder).get("max_epochs")
    done = isinstance(epochs, int) and any(
        line["phase"] == "test" and line["epoch"] == epochs - 1 for line in lines
    )
    return lines if done else None


def starts_of(config: ModelConfig) -> tuple[str, ...]:
    """The checkpoints and run directories that a command starts from, as its flags name them."""
    return tuple(path for flag in STARTS for path in getattr(config, flag, ()))


def what_computes(config: ModelConfig) -> dict[str, Any]:
    """The flags in which two runs of the same weights can't differ and be the same run, as JSON has them."""
    left_out = (*STARTS, *FOR_LOOKING, *EITHER_WAY)
    return json.loads(json.dumps({flag: value for flag, value in asdict(config).items() if flag not in left_out}))


def check_finished(config: TrainingConfig, mend: str) -> bool:
    """Whether the run is there and finished.

    A finished run may have been tested at other epochs and, if it was copied, have started from the same weights
    under another name; one that is to be gone on with must have all flags alike.

    Args:
        mend: what to do instead, for the error.
    Raises:
        UserError: the folder holds another run.
    """
    folder = Path(config.cv_dir)
    if finished_metrics(folder) is None:
        check_same_run(folder, asdict(config), mend)
        return False
    check_same_run(folder, what_computes(config), mend)
    recorded = read_flags(folder)
    for flag in STARTS:
        before, now = recorded.get(flag, []), list(getattr(config, flag, ()))
        if before != now and flag in recorded:
            known = recorded.get("inputs", {})
            same = len(before) == len(now) and all(map(_same_weights, before, now, [known] * len(now)))
            require(
                same,
                f"--cv_dir {folder}: holds a run of --{flag} {' '.join(map(str, before))}, not {' '.join(now)}, "
                f"or not of the same weights; name another folder, or {mend}",
            )
    return True


def _same_weights(before: object, now: str, known: Mapping[str, str]) -> bool:
    """Whether a checkpoint is the one that a run recorded under another name.

    Args:
        before: file or run directory.
        known: hashes by file, as the run recorded them.
    """
    try:
        wanted = digest(read_checkpoint(now).path)
        folder = Path(str(before))
        recorded = {value for file, value in known.items() if folder in (Path(file), *Path(file).parents)}
        return wanted in (recorded or {digest(read_checkpoint(folder).path)})
    except (OSError, UserError):
        return False


def train(config: TrainingConfig) -> None:
    """Runs a command in this process, unless it has been."""
    if finished_metrics(Path(config.cv_dir)) is not None:
        return
    print(f"\n=== {config.cv_dir}")
    COMMANDS[type(config)].main(config)


# ---- in processes of their own


def command_line(config: ModelConfig) -> list[str]:
    """The arguments after `python` by which somebody at a terminal would start this very command.

    >>> config = finetune.FinetuneConfig.of_recipe("fast", model="R8_Digits", pretrained=("a", "b"), resume=True)
    >>> " ".join(command_line(config))
    '-m blockdrop.finetune --model R8_Digits --resume --recipe fast --pretrained a b'
    """
    usual = {one.name: one.default for one in fields(config)}
    usual |= getattr(config, "RECIPES", {}).get(getattr(config, "recipe", None), {})
    usual["recipe"] = "reference"
    flags: list[str] = []
    for one in fields(config):
        value = getattr(config, one.name)
        if usual[one.name] is not MISSING and value == usual[one.name]:
            continue
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no_'}{one.name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--{one.name}", *map(str, values)]
    return ["-m", COMMANDS[type(config)].__name__, *flags]


@dataclass(frozen=True)
class Job:
    """A command to be run in a process of its own."""

    name: str
    """For people, and of its log file."""
    config: ModelConfig
    makes: str
    """The folder or file that it leaves."""
    needs: frozenset[str] = frozenset()
    """What must be there before; what no job makes is taken to be."""


def make_job(name: str, config: ModelConfig, makes: str) -> Job:
    """A command that needs what its flags name."""
    needs = {os.path.normpath(path) for path in starts_of(config)}
    policy = getattr(config, "policy", None)
    if policy is not None and policy.count(":") > 1:
        needs.add(os.path.normpath(policy.split(":", 2)[2]))
    return Job(name, config, os.path.normpath(makes), frozenset(needs))


def run_jobs(jobs: Sequence[Job], processes: int, logs: Path) -> dict[str, str]:
    """Runs all, so many at a time, each as soon as what it needs is made; one that fails doesn't stop the others.

    Threads are shared out evenly. Each job's output goes to `<logs>/<name>.log`, the terminal gets a line when a
    job begins and one when it ends. SIGINT, SIGTERM and SIGHUP end all, each after saving its state.

    Returns:
        why those that failed did, by name, in a line each.
    Raises:
        KeyboardInterrupt: a signal came; no process is left.
    """
    if jobs:
        print(f"{len(jobs)} commands to run, {processes} at a time; their output: {logs}")
    makers = {job.makes: job.name for job in jobs}
    waiting, failures = list(jobs), dict[str, str]()
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes))}
    with _signals_as_interrupts():
        try:
            while waiting or running:
                unmade = {job.makes for job in (*waiting, *(job for job, _, _ in running.values()))}
                for job in list(waiting):
                    lost = sorted({makers[need] for need in job.needs if makers.get(need) in failures})
                    if lost:
                        failures[job.name] = f"not begun, for it needs {', '.join(lost)}"
                        waiting.remove(job)
                    elif len(running) < processes and not job.needs & unmade:
                        waiting.remove(job)
                        running[job.name] = (job, _start(job, environment, logs), time.monotonic())
                        print(f"{job.name}: begun, {_left(running, waiting)}")
                for name, (job, process, begun) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[name]
                    minutes = (time.monotonic() - begun) / 60
                    if process.returncode == 0 and os.path.exists(job.makes):
                        print(f"{name}: done in {minutes:.1f} minutes, {_left(running, waiting)}")
                    else:
                        failures[name] = f"{_last_words(logs, name)} (exit code {process.returncode})"
                        print(f"{name}: failed after {minutes:.1f} minutes, {_left(running, waiting)}")
                time.sleep(POLL_SECONDS if running else 0)
        finally:
            _stop(process for _, process, _ in running.values())
    return failures


def tell_failures(failures: Mapping[str, str], logs: Path) -> None:
    """A line on stderr for each of what `run_jobs` returned.

    Raises:
        UserError: there are some.
    """
    for name, reason in failures.items():
        print(f"{name} failed: {reason}; log: {log_file(logs, name)}", file=sys.stderr)
    require(not failures, f"failed: {', '.join(failures)}; once that is mended, the same command goes on")


POLL_SECONDS = 0.1


def log_file(logs: Path, name: str) -> Path:
    return logs / f"{name}.log"


def _start(job: Job, environment: Mapping[str, str], logs: Path) -> subprocess.Popen[bytes]:
    """A session of its own: a Ctrl-C at the terminal comes to us alone, and from us to it, once."""
    command = [sys.executable, *command_line(job.config)]
    with open(log_file(logs, job.name), "ab") as log:
        log.write(f"\n$ python {' '.join(command[1:])}\n".encode())
        log.flush()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _left(running: Mapping[str, object], waiting: Sequence[Job]) -> str:
    return f"{len(running)} running, {len(waiting)} waiting"


def _last_words(logs: Path, name: str) -> str:
    """The last line of a log, without what a progress bar drew over it."""
    path = log_file(logs, name)
    with open(path, "rb") as log:
        log.seek(max(0, path.stat().st_size - 10_000))
        text = log.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    errors = [line for line in lines[-5:] if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1][:300]


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Asks them to save their states and end, and waits; a second Ctrl-C while waiting kills them."""
    left = [process for process in processes if process.poll() is None]
    if left:
        print(f"stopping {len(left)} runs, which save their states first; once more to kill them", file=sys.stderr)
    for process in left:
        process.send_signal(signal.SIGINT)
    try:
        for process in left:
            process.wait()
    except KeyboardInterrupt:
        for process in left:
            process.kill()
            process.wait()
        raise


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP as SIGINT, unless they are ignored (nohup) or not ours to hear."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    kinds = (signal.SIGTERM, signal.SIGHUP)
    ours = threading.current_thread() is threading.main_thread()
    before = {kind: signal.getsignal(kind) for kind in kinds if ours}
    before = {kind: handler for kind, handler in before.items() if handler is not signal.SIG_IGN}
    for kind in before:
        signal.signal(kind, interrupt)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
