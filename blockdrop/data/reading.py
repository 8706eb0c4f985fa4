"""Batches that processes of torch's DataLoader read ahead, and what is said when one of these is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from blockdrop.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How batches are read; the fields are those of torch's DataLoader."""

    num_workers: int = 0
    """0: in this process."""
    worker_init_fn: Callable[[int], Any] | None = None
    """Called in each process with its number."""
    pin_memory: bool = False
    timeout: float = 0
    prefetch_factor: int | None = None
    multiprocessing_context: Any = None
    setting: str = "--workers"
    """What users call the number of processes."""


def read_batches(reader: Dataset[Any], requests: Iterable[Any], reading: Reading) -> Iterator[Any]:
    """What `reader` has for each request, in order; no global generator is drawn from.

    Args:
        reader: request to batch, or to a `DataError`, which is raised here, where it stays one line.
    Raises:
        DataError: as the reader's; a process that is killed or can't be started.
    """
    loader = DataLoader(
        _Sharing(reader, reading.setting) if reading.num_workers else reader,
        batch_size=None,
        sampler=requests,
        num_workers=reading.num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_Start(reading.worker_init_fn),
        generator=torch.Generator(),  # else it draws from the global one, which a run that goes on restores
        pin_memory=reading.pin_memory,
        timeout=reading.timeout,
        prefetch_factor=reading.prefetch_factor,
        multiprocessing_context=reading.multiprocessing_context,
    )
    for batch in _watched(loader, reading):
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _watched(loader: DataLoader[Any], reading: Reading) -> Iterator[Any]:
    """What the loader yields; raises `DataError` where one of its processes is killed or can't be started."""
    others = set(multiprocessing.active_children())
    try:
        batches = iter(loader)
    except OSError as error:
        raise DataError(
            f"{reading.setting} {reading.num_workers}: can't be started ({error.strerror}); pass fewer, or free "
            "memory"
        ) from None
    readers = set(multiprocessing.active_children()) - others
    if readers:
        _leave_dead_workers_to_the_loader()
    try:
        yield from batches
    except Exception as error:
        killed = isinstance(error, RuntimeError | OSError | EOFError) and _first_ended(readers)
        for reader in readers:
            reader.kill()  # they ignore other signals, and the program can't end before them
        if killed:
            raise _killed(killed, reading.setting) from None
        raise


class _Sharing(Dataset[Any]):
    """Moves what `reader` gives into shared memory where an error still reaches the main process.

    torch would do so in a thread of the queue's, whose errors are printed, and the batch never arrives.

    Args:
        setting: what users call the number of processes.
    """

    def __init__(self, reader: Dataset[Any], setting: str):
        self.reader, self.setting = reader, setting

    def __getitem__(self, request: Any) -> Any:
        batch = self.reader[request]
        try:
            for tensor in _tensors_in(batch):
                tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            why = " ".join(str(error).split())[:120]
            return DataError(
                f"shared memory is full ({why}); pass {self.setting} 0, or give it more (docker run --shm-size=8g)"
            )
        return batch


def _tensors_in(batch: Any) -> Iterator[Tensor]:
    """On the CPU, that own their memory."""
    if isinstance(batch, Tensor):
        if batch.device.type == "cpu" and batch.layout == torch.strided and not batch.is_quantized:
            yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors_in(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors_in(value)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Start:
    """What a process does first.

    Args:
        also: and then.
    """

    def __init__(self, also: Callable[[int], Any] | None):
        self.also = also

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # one may come to all, and the main one finish its batch
            signal.signal(number, signal.SIG_IGN)
        if self.also is not None:
            self.also(worker)


class _Quietly:
    """torch's handler for the end of a child process, less the errors that it raises wherever the program is."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]):
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):
            self.handler(number, frame)


def _leave_dead_workers_to_the_loader() -> None:
    """It looks for them by itself when a batch takes longer than 5 seconds."""
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
    if in_main_thread and callable(handler) and not isinstance(handler, _Quietly):
        signal.signal(signal.SIGCHLD, _Quietly(handler))


def _first_ended(readers: Iterable[BaseProcess]) -> BaseProcess | None:
    """One that is over, though there is more to read. Where one is lost in the midst of handing over a batch, that
    is seen a moment before its end is."""
    wait([reader.sentinel for reader in readers], timeout=1)
    return next((reader for reader in readers if reader.exitcode), None)


def _killed(reader: BaseProcess, setting: str) -> DataError:
    code = reader.exitcode or 0
    who = f"process {reader.pid}, which reads images,"
    if code > 0:
        imports_the_script = getattr(reader, "_start_method", "fork") != "fork"
        guard = '; a script must do its work under `if __name__ == "__main__":`, as each such process imports it'
        return DataError(
            f"{who} ended with exit code {code}; pass {setting} 0 to see why{guard if imports_the_script else ''}"
        )
    name = signal.Signals(-code).name
    why = {"SIGKILL": ", as happens where memory runs out", "SIGBUS": ", as happens where shared memory is full"}
    return DataError(f"{who} was ended by {name}{why.get(name, '')}; pass fewer {setting}, or free memory")
