"""Where a run stands, saved so that it can go on as if it had never stopped."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch

from blockdrop.errors import BlockdropError, Interrupted
from blockdrop.models.checkpoints.torch_files import read_torch_file
from blockdrop.output import write_whole
from blockdrop.processes import ALONE, Processes

Batch = TypeVar("Batch")
FORMAT = "blockdrop training state"
SOON = 10.0
"""Seconds that a saved state may be old when a test begins, which can't be saved itself."""


class Stateful(Protocol):
    """Networks, optimisers, schedules, ….: what they hold as plain values and tensors, and back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Logs(Protocol):
    """What a run logs into, whose state is saved beside it: a `RunDirectory`."""

    path: Path

    def sync(self) -> dict[str, int]:
        """Returns when the disk holds all that was logged; what the log files' sizes are then."""


class TrainingState:
    """`state.pt` of a run directory: how far training has come and everything that it depends on.

    A loop asks `epochs` and `batches` where to go on, after telling `track` what changes as it trains:

        state.track(network=network, optimizer=optimizer)
        for epoch in state.epochs(10):
            state.track_epoch(means=means)
            for number, batch in state.batches(lambda start: batches_of(epoch, start)):
                ...

    The state is saved at the end of every epoch, every `save_minutes` in between, and when SIGINT or SIGTERM
    comes, after the batch at hand. A command may run several such loops, one after the other: stages.

    Args:
        run: whose logs belong to the state, and whose folder holds it.
        save_minutes: minutes between two savings within an epoch.
        saved: what `read_state` found, to go on from there.
        accumulate: batches that make one step; between two of a step nothing is saved.
        processes: which save together; the first one writes.
    """

    def __init__(
        self,
        run: Logs,
        save_minutes: float = math.inf,
        saved: dict[str, Any] | None = None,
        accumulate: int = 1,
        processes: Processes = ALONE,
    ):
        self.processes = processes
        self.run, self.seconds, self.accumulate = run, 60 * save_minutes, accumulate
        self.saved = saved
        self.stage, self.epoch, self.batch = -1, 0, 0
        self.finished = bool(saved and saved["finished"])
        self.counts: dict[str, int] = defaultdict(int)
        """Numbers that grow over the run."""
        self.parts: dict[str, Stateful | torch.Generator] = {}
        self.epoch_parts: dict[str, Stateful | torch.Generator] = {}
        self.last_save = time.monotonic()
        self.signals = Signals()

    # ---- what loops call

    def track(self, **parts: Stateful | torch.Generator | None) -> None:
        """Names what changes in the coming stage; None is left out. `epochs` fills it if the stage was cut off."""
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def track_epoch(self, **parts: Stateful | torch.Generator) -> None:
        """Names what changes within this epoch alone; fills it if the epoch was cut off."""
        self.epoch_parts = parts
        if self.saved is not None:
            restore(parts, self.saved["epoch_parts"])
            self.saved = None

    def epochs(self, last: int, first: int = 0, enough: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """The epochs of a stage, first … last - 1, that are still to come; fewer once there are `enough`, which is
        asked before each."""
        self.stage += 1
        self.epoch, self.batch = first, 0
        if self.saved is not None:
            if self.stage < self.saved["stage"]:
                return  # long over: a later stage's state holds what it left
            self._restore(self.saved)
        elif self.stage == 0:
            self.save()  # from now on there is something to go on from
        while self.epoch < last and not enough():
            yield self.epoch
            self.epoch, self.batch = self.epoch + 1, 0
            self.epoch_parts, self.saved = {}, None
            self.save()
        self.saved = None

    def batches(self, make: Callable[[int], Iterable[Batch]]) -> Iterator[tuple[int, Batch]]:
        """The epoch's batches that are still to come, each with its number.

        Args:
            make: from the number of the first one wanted to the batches from there on.
        """
        with self.signals.held():
            for batch in make(self.batch):
                yield self.batch, batch
                self.batch += 1
                if self.batch % self.accumulate == 0 and self._due(self.seconds):
                    self.save()
            if self._due(SOON):
                self.save()

    def _due(self, seconds: float) -> bool:
        """Whether, in one of the processes, a signal has come or the last state is so old."""
        due = self.signals.received is not None or time.monotonic() - self.last_save >= seconds
        interrupted, due = self.processes.any(self.signals.received is not None), self.processes.any(due)
        if interrupted and self.signals.received is None:
            self.signals.received = signal.SIGTERM  # it is another process that got it first
        return due

    def finish(self) -> None:
        """Records that nothing is left to do."""
        self.finished = True
        self.save()

    # ---- file

    def save(self) -> None:
        """Writes the state, in place of the one before.

        Raises:
            BlockdropError: it can't be written; the one before is whole.
            Interrupted: a signal had come; it is written.
        """
        with self.signals.held():
            self._write()
        if self.signals.received is not None:
            raise Interrupted(self.signals.received)

    def _write(self) -> None:
        self.last_save = time.monotonic()
        if not self.processes.first:
            return
        content = {
            "format": FORMAT,
            "stage": self.stage,
            "epoch": self.epoch,
            "batch": self.batch,
            "finished": self.finished,
            "counts": dict(self.counts),
            "parts": snapshot(self.parts),
            "epoch_parts": snapshot(self.epoch_parts),
            "random": torch.get_rng_state(),
            "logs": self.run.sync(),
        }
        path = self.run.path / STATE_FILE
        try:
            write_whole(path, lambda file: torch.save(content, file))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            reason = str(error).splitlines()[0]
            raise BlockdropError(
                f"{path}: can't be saved ({reason}); the one before is whole: mend that, then go on with --resume"
            ) from None

    def _restore(self, saved: dict[str, Any]) -> None:
        restore(self.parts, saved["parts"])
        self.counts.update(saved["counts"])
        self.epoch, self.batch = saved["epoch"], saved["batch"]
        restore({"random": torch.default_generator}, saved)


STATE_FILE = "state.pt"
EVENTS = "events.out.tfevents.*"
LOG_FILES = ("metrics.jsonl", EVENTS)
KEYS = {
    "stage": int, "epoch": int, "batch": int, "finished": bool, "counts": dict, "parts": dict, "epoch_parts": dict,
    "random": torch.Tensor, "logs": dict,
}  # fmt: skip


def read_state(folder: Path) -> dict[str, Any] | None:
    """What `TrainingState.save` wrote; None where it hasn't.

    Raises:
        CheckpointError: damaged.
        BlockdropError: another file of this name.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BlockdropError(f"{path}: not a training state; move it away")
    for key, kind in KEYS.items():
        value = content.get(key)
        if not isinstance(value, kind) or (isinstance(value, int) and value < -1):
            raise BlockdropError(
                f"{path}: a training state with a damaged {key}; start the run anew with --overwrite"
            )
    for name, size in content["logs"].items():  # what the run directory will cut to these sizes
        ours = name == Path(name).name and any(fnmatch.fnmatch(name, pattern) for pattern in LOG_FILES)
        if not (ours and type(size) is int and size >= 0):
            raise BlockdropError(f"{path}: a training state that names {name[:80]!r} as a log; not one of ours")
    return content


def snapshot(parts: dict[str, Stateful | torch.Generator]) -> dict[str, Any]:
    """What the parts hold now."""
    return {
        name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
        for name, part in parts.items()
    }


def restore(parts: dict[str, Stateful | torch.Generator], states: dict[str, Any]) -> None:
    """Puts a snapshot back; a part that it doesn't name stays as it is.

    Raises:
        BlockdropError: it is of other parts than these.
    """
    for name, part in parts.items():
        if name in states:
            try:
                if isinstance(part, torch.Generator):
                    part.set_state(states[name])
                else:
                    if not isinstance(part, torch.nn.Module | torch.optim.Optimizer):  # which check it themselves
                        check_like(states[name], part.state_dict())
                    part.load_state_dict(states[name])
                    if isinstance(part, torch.optim.Optimizer):
                        check_moments(part)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).splitlines()[0][:120]
                raise BlockdropError(f"{STATE_FILE}: its {name} doesn't fit this run ({reason})") from None


def check_like(found: Any, expected: dict[str, Any]) -> None:
    """Raises `ValueError` unless a state has a part's keys: some classes take whatever they are given."""
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise ValueError("other keys")


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raises `ValueError` for a moment of another shape than its parameter."""
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.dim() and moment.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(moment.shape)}")


class Signals:
    """SIGINT and SIGTERM, which end the program, or, while they are held, are noted in `received`."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.holding = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.holding and self.received is None:
            self.received = number
        else:
            raise Interrupted(number)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While this context lasts, the first signal is only noted; a second one ends the program."""
        before, self.holding = self.holding, True
        try:
            yield
        finally:
            self.holding = before
