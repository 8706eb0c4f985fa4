"""Which of two ways to do the same is faster here, found out while both are used."""

from __future__ import annotations


class Choice:
    """Picks the faster of way 0 and way 1, by seconds that its caller measures.

    Each way is tried twice, way 0 first; the first time doesn't count, as it may prepare something. Later the
    slower one is tried again now and then, in case things have changed.

    Args:
        retry_after: picks of the faster way between two of the slower one.
    """

    def __init__(self, retry_after: int = 200):
        self._retry_after = retry_after
        self._runs = [0, 0]
        self._seconds = [0.0, 0.0]
        self._since = 0

    def pick(self) -> int:
        """The way to go now."""
        for way in (0, 1):
            if self._runs[way] < 2:
                return way
        faster = int(self._seconds[1] < self._seconds[0])
        return 1 - faster if self._since >= self._retry_after else faster

    def note(self, way: int, seconds: float) -> None:
        """How long a way took."""
        self._runs[way] += 1
        faster = int(self._seconds[1] < self._seconds[0])
        again = self._runs[way] > 2 and way == faster  # else its last time is old, or was its first
        self._seconds[way] = (self._seconds[way] + seconds) / 2 if again else seconds
        self._since = self._since + 1 if again else 0
