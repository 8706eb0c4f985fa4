"""Device, number format and memory layout of a run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

import torch
from torch import nn

from blockdrop.errors import BlockdropError, require
from blockdrop.names import Precision
from blockdrop.processes import ALONE, Processes, current_processes

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """Where and in which number format a run computes."""

    device: torch.device
    dtype: torch.dtype
    """bfloat16 = autocast in training, and a bfloat16 executor of what is frozen."""
    channels_last: bool
    processes: Processes = ALONE
    """Which of several processes this is."""

    def __str__(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        threads = f" ({torch.get_num_threads()} threads)" if self.device.type == "cpu" else ""
        several = f"{self.processes.size} × " if self.processes.size > 1 else ""
        return f"{several}{self.device}{threads}, {str(self.dtype).removeprefix('torch.')}{layout}"

    def place(self, module: Module) -> Module:
        """The module on the device, in the memory layout; parameters stay float32."""
        module = module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def in_float32(self) -> Compute:
        """The same in float32, as tests run."""
        return replace(self, dtype=torch.float32)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 autocast where the number format asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively (AVX-512 BF16 or AMX on CPUs)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":  # private in torch, but there is no public way to ask
        checks = (
            getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        )
        return any(check() for check in checks if check is not None)
    return False


def choose_compute(device: str = "auto", precision: Precision = "auto", channels_last: bool = True) -> Compute:
    """`auto`: CUDA if there is one, bfloat16 where it is fast.

    Raises:
        BlockdropError: a device that torch doesn't know or that isn't there; another number format.
    """
    require(
        precision in get_args(Precision),
        f"--precision {precision}: choose one of {', '.join(get_args(Precision))}",
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda"):
            raise RuntimeError("choose cpu or cuda")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BlockdropError(
            f"--device {device}: not available ({str(error).splitlines()[0].split('. ')[0]})"
        ) from None
    fast = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(chosen))
    torch.backends.cudnn.allow_tf32 = fast  # float32 means float32: masked = sparse, whatever the batch size
    torch.backends.cudnn.deterministic = True
    return Compute(chosen, torch.bfloat16 if fast else torch.float32, channels_last, current_processes())
