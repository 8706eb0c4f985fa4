"""What the calls of `train` and `evaluate` share: errors that speak of arguments, checks of arguments."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from numbers import Integral
from types import MappingProxyType
from typing import Any

from blockdrop.errors import BlockdropError, require


@contextlib.contextmanager
def speaking_of_arguments(names: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Lets errors name arguments (`device`) in place of a command's flags (`--device`).

    Args:
        names: arguments by the flags that they stand for, where the names differ.
    """
    try:
        yield
    except BlockdropError as error:
        error.args = (re.sub("--([a-z_]+)", lambda flag: names.get(flag[1], flag[1]), str(error)),)
        raise


def check_dynamic(dynamic: Any) -> None:
    """Raises `BlockdropError` for what is no `DynamicNetwork`, and says how it becomes one."""
    from torch import nn

    from blockdrop.dynamic import DynamicNetwork

    if isinstance(dynamic, DynamicNetwork):
        return
    got = type(dynamic).__name__
    if isinstance(dynamic, str | os.PathLike):
        got, mend = f"the path {os.fspath(dynamic)}", "blockdrop.load(path) first"
    elif isinstance(dynamic, nn.Module):
        mend = "blockdrop.make_dynamic(model) first"
    else:
        mend = "blockdrop.make_dynamic and blockdrop.load make one"
    raise BlockdropError(f"dynamic: got {got}, no DynamicNetwork; {mend}")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises `BlockdropError` for an argument that is no whole number, or below `least`."""
    right = isinstance(value, Integral) and int(value) >= least
    require(right, f"{name} {value}: must be a whole number, at least {least}")
