"""Seconds of networks that took turns, as data: the content of a folder's times.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

from blockdrop.typed_json import Range, typed

Seconds = Annotated[float, Range(0, open=True)]
TIMES_FILE = "times.json"
ABOUT_TIMES: Literal["seconds of networks that took turns"] = "seconds of networks that took turns"
"""How a file of times is told from others."""


@dataclass(frozen=True)
class NetworkTimes:
    """Seconds per image, policy network included."""

    digest: str
    """Of the evaluation's file."""
    seconds: Seconds
    """At the evaluation's own threshold."""
    curve: list[Seconds]
    """At the thresholds of its curve."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """One session of the clock."""

    about: str = ABOUT_TIMES
    engine: str
    compute: str
    threads: int
    batch_size: int
    images: int
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
            UserError: a line that names the field that is damaged.
        """
        return typed(cls, content)
