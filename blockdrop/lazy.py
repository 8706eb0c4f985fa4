"""Names that a package takes from its modules when they are first asked for (PEP 562).

So `import blockdrop` costs nothing, and a module without torch can be imported without loading torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        homes: by module, as seen from the package: the names that the package has from there. A module without
            names is an attribute itself.
    """
    where = {name: f"{package}.{module}" for module, names in homes.items() for name in names}
    modules = {module: f"{package}.{module}" for module, names in homes.items() if not names}

    def get(name: str) -> Any:
        if name in where:
            value = getattr(importlib.import_module(where[name]), name)
        elif name in modules:
            return importlib.import_module(modules[name])
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*own, *where, *modules})

    return get, names


def make_callable(module: ModuleType, function: Callable[..., Any]) -> None:
    """Lets a module be called, for a command and a function of one name: `python -m blockdrop.train` and
    `blockdrop.train(...)`."""

    class Callable_(ModuleType):  # noqa: N801  # its name is shown nowhere
        __call__ = staticmethod(function)

    module.__class__ = Callable_
