"""Several processes that train one network, each on its share of every batch (`torchrun`).

What networks give out is small, so it is gathered, and every process computes the loss of the whole batch from the
same numbers; only the networks run each on their own rows. Gradients are then those of one process, up to the
order of sums. Not so in BatchNorm's train mode, where each process takes the statistics of its own rows.

This stands in for DistributedDataParallel, which wants one forward pass of one module for each backward pass: here
two networks that may share a stem learn together, from several policies of an image, and blocks that no image of a
batch keeps have no gradient.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from blockdrop.errors import require

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """Which of how many this process is; with one, every method is the identity."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    """Where tensors must be that the processes exchange."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """(rank, size), as `batches` of data sets take it."""
        return self.rank, self.size

    def rows(self, own: int) -> slice:
        """Which of a batch's rows are this process's, if it has so many: those after the earlier processes'."""
        counts = self.each(own)
        start = sum(counts[: self.rank])
        return slice(start, start + own)

    def gather(self, rows: Tensor, dim: int = 0) -> Tensor:
        """The rows of all processes, in the batch's order, with gradient.

        Args:
            rows: this process's, along `dim`.
        """
        if self.size == 1:
            return rows
        return _Gather.apply(rows.movedim(dim, 0), self).movedim(0, dim)

    def sum(self, *numbers: float) -> list[float]:
        """Sums over the processes, of numbers that each has."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def each(self, value: Value) -> list[Value]:
        """What each process has, in their order."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def any(self, happened: bool) -> bool:
        """Whether it happened in one of them."""
        return happened if self.size == 1 else self.sum(happened)[0] > 0

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns or raises in the first process."""
        if self.size == 1:
            return make()
        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = make()
            except Exception as error:
                found[1] = error
        dist.broadcast_object_list(found, 0)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums each parameter's gradient over the processes; one that has none in any of them keeps none."""
        if self.size == 1:
            return
        trained = list(parameters)  # with --accumulate also those that are frozen by now
        flat = torch.cat(
            [
                torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=trained[0].device),
                *(torch.zeros_like(p).flatten() if p.grad is None else p.grad.float().flatten() for p in trained),
            ]
        )
        dist.all_reduce(flat)
        have, *gradients = flat.split([len(trained), *(p.numel() for p in trained)])
        for parameter, has, gradient in zip(trained, have.tolist(), gradients, strict=True):
            if has:
                parameter.grad = gradient.view(parameter.shape).to(parameter.dtype)

    def average_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Gives every process the mean of what the BatchNorms saw that are in train mode."""
        if self.size == 1:
            return
        found = [
            buffer
            for module in modules
            for part in module.modules()
            if isinstance(part, _BatchNorm) and part.training
            for buffer in part.buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        unique = list({id(buffer): buffer for buffer in found}.values())
        if not unique:
            return
        flat = torch.cat([buffer.flatten() for buffer in unique])
        dist.all_reduce(flat)
        for buffer, mean in zip(unique, (flat / self.size).split([b.numel() for b in unique]), strict=True):
            buffer.copy_(mean.view(buffer.shape))


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward, each takes the sum of what all found for its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        counts = processes.each(len(rows))
        start = sum(counts[: processes.rank])
        ctx.rows = slice(start, start + len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None


ALONE = Processes()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that torchrun has started; one alone where it hasn't.

    Args:
        device: of the command's flag; on GPUs each process of a machine takes its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    require(not missing, f"WORLD_SIZE is set but not {', '.join(missing)}; start several processes by torchrun")
    cuda = torch.cuda.is_available() and device in ("auto", "cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(iter(dist.rendezvous("env://")))
    # torchrun's store outlives a restart, and holds the addresses of those who died
    attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if cuda else "gloo", store=attempt, rank=rank, world_size=size)
    try:
        yield current_processes()
    finally:
        dist.destroy_process_group()


def current_processes() -> Processes:
    """The processes of torch's process group; one alone where there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    return Processes(dist.get_rank(), dist.get_world_size(), device)
