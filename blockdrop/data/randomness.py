"""Random generators made to draw what a seed says, and put back as they were."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
SEEDS_OF_NUMPY = 1 << 32
"""Its older generators take no larger ones."""


@contextlib.contextmanager
def seeded(seed: int, *others: Any) -> Iterator[None]:
    """In this context, what torch (on the CPU), numpy and Python draw globally depends on `seed` alone; after it
    they go on as if nothing had been drawn.

    Args:
        seed: 0 … 2^63 - 1.
        others: generators, of torch, numpy or Python, of which the same holds.
    """
    with contextlib.ExitStack() as undo:
        for generator in (torch.default_generator, np.random, random, *others):
            undo.callback(_reseed(generator, seed))
        yield


def _reseed(generator: Any, seed: int) -> Callable[[], object]:
    """Returns what puts the generator back as it is now."""
    back: Callable[[], object]
    if isinstance(generator, torch.Generator):
        back = functools.partial(generator.set_state, generator.get_state())
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        back = functools.partial(setattr, bits, "state", bits.state)
        bits.state = type(bits)(seed).state
    elif generator is np.random or isinstance(generator, np.random.RandomState):
        back = functools.partial(generator.set_state, generator.get_state())
        generator.seed(seed % SEEDS_OF_NUMPY)
    else:
        back = functools.partial(generator.setstate, generator.getstate())
        generator.seed(seed)
    return back


def generators_of(*holders: object) -> list[Any]:
    """The generators that objects hold as attributes, each once."""
    held = [value for holder in holders for value in getattr(holder, "__dict__", {}).values()]
    return list({id(value): value for value in held if isinstance(value, KINDS)}.values())
