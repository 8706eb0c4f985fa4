"""Reads thousands of damaged and hostile checkpoints of each dialect: each must load, or be refused in one line.

Each is opened as `evaluate --load` opens it (read, networks built, filled) in a process whose memory and seconds
are limited; what kills that process, takes too much or runs code from the file is a finding. Linux only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from blockdrop.console import run_command
from blockdrop.errors import BlockdropError, require
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_checkpoint, network_from
from blockdrop.models.checkpoints.tensor_pickle import one_line
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.specs import parse_model_name
from blockdrop.models.zoo import build_backbone
from blockdrop.output import check_writable, write_json
from blockdrop.progress import progress
from blockdrop.version import project_version
from experiments.robustness.mutants import TRACE, make_mutant
from experiments.robustness.samples import DIALECTS, MODEL, SMALL, file_name, samples, small_policy_network

MEBIBYTE = 2**20
PATIENCE = 600.0
"""Seconds, by the clock on the wall, after which a process that takes no time of a processor hangs."""
LONGEST_MESSAGE = 500
GOOD = ("loaded", "refused")


@dataclass(kw_only=True)
class FuzzConfig:
    """Flags of `python -m experiments.robustness.fuzz_checkpoints`."""

    count: int = 1000
    """Mutants of each dialect."""
    dialects: tuple[str, ...] = DIALECTS
    """Whose, in which serialisation."""
    seed: int = 0
    """Same seed: same mutants."""
    memory: int = 1024
    """MiB that opening a file may take beyond what the process has."""
    seconds: float = 10.0
    """Seconds of a processor that opening a file may take."""
    only: str | None = None
    """DIALECT:NUMBER. Makes this mutant alone, and says what happens."""
    output: str | None = None
    """Write the mutant of --only to this file."""
    json: str | None = None
    """Write the rows and findings to this file."""
    overwrite: bool = False
    """Replace the files of --json and --output if there are any."""

    def check(self) -> None:
        """Raises `BlockdropError` for a value out of range."""
        require(sys.platform == "linux", "limits on memory are those of Linux; run it there")
        require(self.count >= 1, f"--count {self.count}: must be at least 1")
        for dialect in self.dialects:
            require(dialect in DIALECTS, f"--dialects {dialect}: choose among {', '.join(DIALECTS)}")
        require(self.dialects != (), "--dialects: name at least one")
        require(self.memory >= 64, f"--memory {self.memory}: must be at least 64")
        require(self.seconds > 0, f"--seconds {self.seconds}: must be above 0")
        require(self.output is None or self.only is not None, "--output: goes with --only")
        if self.only is not None:
            dialect, _, number = self.only.partition(":")
            require(
                dialect in DIALECTS and number.isdecimal(),
                f"--only {self.only}: has the form DIALECT:NUMBER, such as {DIALECTS[0]}:17",
            )
        for flag in ("json", "output"):
            if getattr(self, flag) is not None:
                check_writable(f"--{flag}", getattr(self, flag), self.overwrite)


@dataclass(frozen=True)
class Task:
    """A mutant."""

    dialect: str
    number: int

    def __str__(self) -> str:
        return f"{self.dialect}:{self.number}"


@dataclass(frozen=True)
class Result:
    """What became of a mutant."""

    task: Task
    outcome: str
    """loaded, refused, or what happened instead."""
    message: str = ""
    seconds: float = 0.0
    """Of a processor."""
    mebibytes: float = 0.0
    """Beyond what the process had before."""


def main(config: FuzzConfig) -> list[dict[str, Any]]:
    """Prints a row per dialect and every finding; returns the rows.

    Raises:
        BlockdropError: there are findings.
    """
    config.check()
    if config.only is not None:
        return [open_one(config, config.only)]
    tasks = [Task(dialect, number) for dialect in config.dialects for number in range(config.count)]
    results = list(progress(run_tasks(tasks, config), "opening", len(tasks), "mutants"))
    rows = [row_of([r for r in results if r.task.dialect == dialect]) for dialect in config.dialects]
    print_table(rows)
    findings = [result for result in results if result.outcome not in GOOD]
    for result in findings:
        print(f"{result.task}  {result.outcome}  {result.message}")
    if config.json is not None:
        versions = {"blockdrop": project_version(), "torch": torch.__version__, "python": sys.version.split()[0]}
        found = [{**asdict(result), "task": str(result.task)} for result in findings]
        write_json("--json", config.json, {"rows": rows, "findings": found, **versions, "config": asdict(config)})
    if findings:
        first = findings[0].task
        raise BlockdropError(
            f"{len(findings)} mutants neither loaded nor were refused; --only {first} makes the first"
        )
    return rows


def open_one(config: FuzzConfig, name: str) -> dict[str, Any]:
    dialect, _, number = name.partition(":")
    task = Task(dialect, int(number))
    if config.output is not None:
        Path(config.output).write_bytes(make_mutant(dialect, config.seed, task.number))
    (result,) = run_tasks([task], config)
    print(f"{task}  {result.outcome}  {result.seconds:.3f} s  {result.mebibytes:.1f} MiB  {result.message}")
    return {**asdict(result), "task": str(task)}


def row_of(results: Sequence[Result]) -> dict[str, Any]:
    """A dialect's row in the table."""
    outcomes = Counter(result.outcome if result.outcome in GOOD else "other" for result in results)
    slowest = max(results, key=lambda result: result.seconds)
    largest = max(results, key=lambda result: result.mebibytes)
    return {
        "dialect": results[0].task.dialect,
        "mutants": len(results),
        **{outcome: outcomes[outcome] for outcome in (*GOOD, "other")},
        "peak_mebibytes": round(largest.mebibytes, 1),
        "largest": largest.task.number,
        "slowest_seconds": round(slowest.seconds, 3),
        "slowest": slowest.task.number,
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'':<24}{'mutants':>9}{'loaded':>9}{'refused':>9}{'other':>7}{'peak MiB':>10}{'slowest s':>11}")
    for row in rows:
        print(
            f"{row['dialect']:<24}{row['mutants']:>9,}{row['loaded']:>9,}{row['refused']:>9,}{row['other']:>7,}"
            f"{row['peak_mebibytes']:>10.1f}{row['slowest_seconds']:>11.3f}"
        )


# ---- processes


def run_tasks(tasks: Sequence[Task], config: FuzzConfig) -> Iterator[Result]:
    """Every mutant's result, also of those that end the process that opens them: then another goes on."""
    done = 0
    while done < len(tasks):
        with opening_process(tasks[done:], config) as (process, connection):
            while done < len(tasks):
                result = receive(connection)
                done += 1
                yield result or Result(tasks[done - 1], f"killed by {cause(process)}")
                if result is None:
                    break


@contextlib.contextmanager
def opening_process(tasks: Sequence[Task], config: FuzzConfig) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that opens the mutants, and where it sends each one's result."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder, ours:
        process = context.Process(target=work, args=(theirs, tasks, config, folder), daemon=True)
        process.start()
        theirs.close()
        try:
            require(receive(ours) == "ready", "the process that opens files doesn't start")
            yield process, ours
        finally:
            process.kill()
            process.join()


def receive(connection: Connection) -> Any:
    """What the process says next; None if it never will."""
    try:
        return connection.recv() if connection.poll(PATIENCE) else None
    except EOFError:
        return None


def cause(process: BaseProcess) -> str:
    process.join(1)
    if process.exitcode == -signal.SIGPROF:
        return "its limit on seconds"
    return "nothing: it waits" if process.exitcode is None else f"exit code {process.exitcode}"


def work(connection: Connection, tasks: Sequence[Task], config: FuzzConfig, folder: str) -> None:
    """Opens the mutants in a folder of its own, one after the other, and sends each one's result."""
    import resource  # not on Windows

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for dialect in {task.dialect for task in tasks}:
        samples(dialect)  # before memory is limited
    os.chdir(folder)
    memory = config.memory * MEBIBYTE
    resource.setrlimit(
        resource.RLIMIT_DATA, (status("VmData") + memory, resource.getrlimit(resource.RLIMIT_DATA)[1])
    )
    connection.send("ready")
    for task in tasks:
        Path(file_name(task.dialect)).write_bytes(make_mutant(task.dialect, config.seed, task.number))
        connection.send(measure(task, memory, config.seconds))


def measure(task: Task, memory: int, seconds: float) -> Result:
    """Opens the mutant, under a limit of seconds that ends the process."""
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak of resident memory anew
    before, started = status("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    outcome, message = attempt(file_name(task.dialect))
    signal.setitimer(signal.ITIMER_PROF, 0)
    used, grown = time.process_time() - started, status("VmHWM") - before
    if os.path.exists(TRACE):
        os.unlink(TRACE)
        outcome = "ran code from the file"
    elif grown > memory:
        outcome = "memory"
    return Result(task, outcome, message, used, max(grown, 0) / MEBIBYTE)


def status(field: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def attempt(path: str) -> tuple[str, str]:
    """Outcome and message of opening a file."""
    try:
        open_checkpoint(path)
    except BlockdropError as error:
        message = str(error)
        if "more memory than there is" in message:
            return "memory", message
        clear = message.isprintable() and len(message) < LONGEST_MESSAGE
        return "refused" if clear else "unclear", one_line(message, LONGEST_MESSAGE)
    except MemoryError:
        return "memory", "MemoryError"
    except BaseException as error:
        return type(error).__name__, one_line(error, LONGEST_MESSAGE)
    return "loaded", ""


def open_checkpoint(path: str) -> None:
    """What `evaluate --load` does with a file, for the network that it names or else the small one."""
    checkpoint = read_checkpoint(path)
    spec = parse_model_name(checkpoint.model or MODEL)
    backbone = None
    if checkpoint.resnet is not None:
        backbone = network_from(checkpoint, spec, variant=SMALL if checkpoint.model is None else None)
    if checkpoint.policy_network is not None:
        if checkpoint.model is None:
            policy_network = small_policy_network()
        else:
            backbone = backbone or build_backbone(spec, 10, checkpoint.shortcut, checkpoint.variant)
            policy_network = build_policy_network(
                backbone.num_blocks, spec.large_images, checkpoint.policy_net, backbone=backbone
            )
        load_checkpoint(checkpoint, policy_network=policy_network)


if __name__ == "__main__":
    run_command(main, FuzzConfig, __doc__)
