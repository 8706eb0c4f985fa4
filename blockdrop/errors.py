"""The errors a user can cause and mend; commands print them as one line and leave with their exit code."""

import signal


class BlockdropError(ValueError):
    """Bad input: the message names what was wrong and what would be right. Exit code 2."""

    exit_code = 2


class CheckpointError(BlockdropError):
    """A checkpoint that can't be read, would run code, or doesn't fit the model."""


class DataError(BlockdropError):
    """A data set that is missing, empty, unreadable or doesn't fit the model."""


class NumericalError(BlockdropError):
    """A loss that is no longer finite. Exit code 3."""

    exit_code = 3


class Interrupted(Exception):  # noqa: N818  # no error: the user's wish
    """A signal that ended training, its state saved. Exit code 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def require(condition: bool, message: str) -> None:
    """Raises `BlockdropError(message)` unless the condition holds."""
    if not condition:
        raise BlockdropError(message)
