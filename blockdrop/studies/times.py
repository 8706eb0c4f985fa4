"""Seconds of networks that took turns, as data: the content of a folder's times.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from blockdrop.ranges import Count, Positive
from blockdrop.typed_json import typed

TIMES_FILE = "times.json"
ABOUT_TIMES = "seconds of networks that took turns"
"""How a file of times is told from others."""


@dataclass(frozen=True)
class NetworkTimes:
    """Seconds per image, policy network included."""

    digest: str
    """Of the evaluation's file."""
    seconds: Positive
    """At the evaluation's own threshold."""
    curve: list[Positive]
    """At the thresholds of its curve."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """One session of the clock."""

    about: str = ABOUT_TIMES
    engine: str
    compute: str
    threads: Count
    batch_size: Count
    images: Count
    runs: dict[str, NetworkTimes]
    """By name of the evaluation's file, without .json."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def conditions(self) -> dict[str, Any]:
        """All but the seconds."""
        return {name: value for name, value in self.to_json().items() if name != "runs"}

    @classmethod
    def from_json(cls, content: object) -> Self:
        """What `to_json` gave, checked.

        Raises:
            BlockdropError: a line that names the field that is damaged.
        """
        return typed(cls, content)
