"""What an executor did: which way images went, and where the time was spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

WAYS = ANSWERED, OWN, MASKED, TORCH = (
    "answered",
    "by a program of their policy",
    "by all blocks, masked",
    "by the torch engine",
)
PARTS = LOOKING, GLANCING, RUNNING = ("looking for changes", "policy network", "blocks")


@dataclass
class Account:
    """What ran how, and where the time went, since an executor was made or `clear` was called."""

    images: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WAYS, 0.0))
    """How many images (times policies) went which way; a fraction where the stages of an image went several."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __str__(self) -> str:
        """One line."""
        count, seconds = sum(self.images.values()), sum(self.seconds.values())
        ways = [f"{value / count:.0%} {way}" for way, value in self.images.items() if value]
        parts = [f"{part} {value / seconds:.0%}" for part, value in self.seconds.items() if value]
        return f"{count:,.0f} images: {', '.join(ways) or 'none'}; {seconds:.3g} s: {', '.join(parts) or 'none'}"

    def clear(self) -> None:
        """Begins again at 0."""
        self.images.update(dict.fromkeys(WAYS, 0.0))
        self.seconds.update(dict.fromkeys(PARTS, 0.0))

    def timing(self, part: str) -> Timing:
        """Books the time of a `with` block."""
        return Timing(self.seconds, part)


class Timing:
    """See `Account.timing`. A class, as generators take several times as long, which single images feel."""

    __slots__ = ("_begun", "_part", "_seconds")

    def __init__(self, seconds: dict[str, float], part: str):
        self._seconds, self._part = seconds, part

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._part] += time.perf_counter() - self._begun
