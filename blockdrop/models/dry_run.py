"""Running a network for what happens on the way, not for its numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


def run_for_nothing(network: nn.Module, image_size: int, run: Callable[[nn.Module, Tensor], Result]) -> Result:
    """What `run` makes of a copy of a network in eval mode and one image of image_size × image_size pixels.

    Nothing is computed, unless the network can't run like that: then it runs on the CPU, on a black image.
    """
    shape = (1, 3, image_size, image_size)
    with torch.no_grad():
        try:
            return run(copy.deepcopy(network).eval().to("meta"), torch.empty(shape, device="meta"))
        except Exception:  # whatever a network of somebody's does with numbers; what is wrong in truth comes again
            return run(copy.deepcopy(network).cpu().float().eval(), torch.zeros(shape))
