"""Commands in processes of their own, several at a time, each as soon as what it needs is made."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from blockdrop.errors import require
from blockdrop.studies.runs import command_line, starts_of
from blockdrop.training.config import ModelConfig


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
        BlockdropError: there are some.
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
