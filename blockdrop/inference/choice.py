"""Which of two options is faster on this machine, found out while both are used."""

from __future__ import annotations

from collections import deque
from statistics import median

TRIALS = 3


class Choice:
    """Picks the faster of option 0 and option 1, by seconds that its caller measures.

    Each option is tried four times, option 0 first; the first time doesn't count, as it may prepare something.
    Medians of the last three times are compared, so that a single slow one doesn't matter. Later the slower option
    is tried again now and then, in case things have changed.

    Args:
        retry_after: picks of the faster option between two trials of the slower one.
        only: the option to take always, where the other one is known to be worse.
    """

    def __init__(self, retry_after: int = 200, only: int | None = None):
        self._retry_after, self._only = retry_after, only
        self._untried = [TRIALS + 1, TRIALS + 1]
        self._seconds: tuple[deque[float], deque[float]] = deque(maxlen=TRIALS), deque(maxlen=TRIALS)
        self._since = 0

    def pick(self) -> int:
        """The option to take now."""
        if self._only is not None:
            return self._only
        for option in (0, 1):
            if self._untried[option]:
                return option
        if self._since >= self._retry_after:
            self._since = 0
            self._untried[1 - self._faster()] = TRIALS + 1
            return 1 - self._faster()
        self._since += 1
        return self._faster()

    def note(self, option: int, seconds: float) -> None:
        """Notes how many seconds an option took."""
        if self._untried[option] <= TRIALS:
            self._seconds[option].append(seconds)
        self._untried[option] = max(0, self._untried[option] - 1)

    def _faster(self) -> int:
        return int(median(self._seconds[1]) < median(self._seconds[0]))
