"""Which values a flag may have: declared in its type, checked by one function.

`lr: Positive = 1e-3`, `settle: Annotated[float, Range(least=0, most=1)] = 0.0`, `load: tuple[CheckpointName, ...]`
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from blockdrop.errors import BlockdropError


@dataclass(frozen=True)
class Range:
    """Bounds of a number; NaN and the infinities are outside of every range.

    >>> str(Range(above=0, most=1))
    'above 0 and at most 1'
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    """A bound that the number may come near, but not reach, as `below`."""
    below: float | None = None
    meaning: str = ""
    """What the number is, for messages: "a fraction of the full network's FLOPs"."""

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"between {_written(self.least)} and {_written(self.most)}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {_written(bound)}" for word, bound in bounds.items() if bound is not None)

    def demand(self) -> str:
        """The end of "must be …"."""
        words = str(self) or "a finite number"
        words = "a positive number" if words == "above 0" else words
        return f"{words}, {self.meaning}" if self.meaning else words


def _written(bound: float) -> str:
    if isinstance(bound, int) and bound >= 2**32 and bound.bit_count() == 1:
        return f"2^{bound.bit_length() - 1}"
    return f"{bound:,}"


@dataclass(frozen=True)
class NonEmpty:
    """A name that may not be the empty text."""

    what: str
    """What is to be named, with its article."""


Positive = Annotated[float, Range(above=0)]
"""Of a learning rate, a temperature, …."""
NotNegative = Annotated[float, Range(least=0)]
"""Of a weight that may be zero, and then is off."""
Count = Annotated[int, Range(least=1)]
"""Of epochs, images, …."""
CountOrNone = Annotated[int, Range(least=0)]
"""Of epochs, images, … that there may be none of."""
Probability = Annotated[float, Range(above=0, below=1)]
"""Of a threshold on probabilities, or a probability that is neither never nor always."""
Width = Annotated[float, Range(least=0.01, most=100)]
"""Of a factor that widens or shrinks a network."""
Folder = Annotated[str, NonEmpty("a folder")]
CheckpointName = Annotated[str, NonEmpty("a checkpoint")]


Rule = Range | NonEmpty


def check_ranges(config: Any) -> None:
    """Raises `BlockdropError` for the first flag of a dataclass whose value lies outside of what its type
    declares."""
    kind: type = type(config)
    hints = types_of(kind)
    for flag, rules in declared_rules(kind).items():
        value, optional = getattr(config, flag), NoneType in get_args(hints[flag])
        whole = int in (hints[flag], *get_args(hints[flag]))
        several = isinstance(value, tuple | list)
        for item in value if several else (value,):
            if item is None and optional:
                continue
            for rule in rules:
                if isinstance(rule, NonEmpty):
                    if item == "":
                        raise BlockdropError(
                            f"--{flag}: {'an empty name' if several else 'empty'}; name {rule.what}"
                        )
                elif item not in rule:
                    raise BlockdropError(f"--{flag} {item}: must be {rule.demand()}")
                elif whole and not isinstance(item, int):
                    raise BlockdropError(f"--{flag} {item}: must be a whole number")


@functools.cache
def types_of(config_class: type) -> dict[str, Any]:
    """The types of a dataclass's flags, without their annotations."""
    return get_type_hints(config_class)


@functools.cache
def declared_rules(config_class: type) -> dict[str, list[Rule]]:
    """The rules that the types of a dataclass declare, by flag; flags without any are left out."""
    hints = get_type_hints(config_class, include_extras=True)
    found = {flag: list(_rules_of(hint)) for flag, hint in hints.items()}
    return {flag: rules for flag, rules in found.items() if rules}


def _rules_of(hint: Any) -> Iterator[Rule]:
    kinds = get_args(hint)
    if get_origin(hint) is Annotated:
        kinds, notes = kinds[:1], kinds[1:]
        yield from (note for note in notes if isinstance(note, Rule))
    for kind in kinds:
        yield from _rules_of(kind)
