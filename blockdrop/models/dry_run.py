"""Running a network for what happens on the way, not for its numbers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Result = TypeVar("Result")


def run_for_nothing(network: nn.Module, image_size: int, run: Callable[[nn.Module, Tensor], Result]) -> Result:
    """What `run` makes of a copy of a network in eval mode and one image of image_size × image_size pixels.

    Nothing is computed, unless the network can't run like that: then it runs on the CPU, on a black image.
    """
    shape = (1, 3, image_size, image_size)
    with torch.no_grad():
        try:
            return run(_shapes_alone(network), torch.empty(shape, device="meta"))
        except Exception:  # whatever a network of somebody's does with numbers; what is wrong in truth comes again
            return run(copy.deepcopy(network).cpu().float().eval(), torch.zeros(shape))


def _shapes_alone(network: nn.Module) -> nn.Module:
    """`without_numbers`, in eval mode; BatchNorm does nothing, as it changes no shape and torch takes half of the
    time of a run without numbers for it."""
    network = without_numbers(network).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = _as_it_is  # type: ignore[method-assign, assignment]
    return network


def _as_it_is(x: Tensor) -> Tensor:
    return x


def without_numbers(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and types but no values, so that no weight is copied."""
    memo: dict[int, Tensor] = {}
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)
