"""Which programs are worth their compilation and their memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

AGEING_ROWS = 100_000  # counts are halved after so many rows, so that yesterday's policies make room


Key = TypeVar("Key", bound=Hashable)


class RowCounts(Generic[Key]):
    """How many rows have asked for what, old ones counting less."""

    def __init__(self) -> None:
        self._rows: Counter[Key] = Counter()
        self._until_ageing = AGEING_ROWS

    def __getitem__(self, key: Key) -> int:
        return self._rows[key]

    def add(self, key: Key, rows: int) -> None:
        """Notes that so many rows asked for `key`."""
        self._rows[key] += rows
        self._until_ageing -= rows
        if self._until_ageing <= 0:
            self._until_ageing = AGEING_ROWS
            self._rows = Counter({key: rows // 2 for key, rows in self._rows.items() if rows > 1})

    def most(self, weight: Callable[[Key], int]) -> list[Key]:
        """All keys, those with most rows first, each key's rows times its weight."""
        return sorted(self._rows, key=lambda key: -self._rows[key] * weight(key))


class Sized(Protocol):
    """A program."""

    @property
    def num_bytes(self) -> int: ...


Program = TypeVar("Program", bound=Sized)


class ProgramCache(Generic[Key, Program]):
    """Programs by key, at most `max_bytes` of them; the most used stay.

    A program is worth compiling once the general path has served its key for `compile_after` rows: by then as
    much time has been lost as compiling takes, so whatever comes, at most twice the least possible time is
    spent (the ski-rental rule). A full cache takes a newcomer only in place of programs used less than half as
    often, so policies that come and go don't push each other out.
    """

    def __init__(self, max_bytes: int, compile_after: int):
        self.max_bytes, self.compile_after = max_bytes, compile_after
        self.programs: dict[Key, Program] = {}
        self._rows: RowCounts[Key] = RowCounts()

    @property
    def num_bytes(self) -> int:
        """Memory of all programs held."""
        return sum(program.num_bytes for program in self.programs.values())

    def rows(self, key: Key) -> int:
        """How many rows have asked for `key`, old ones counting less."""
        return self._rows[key]

    def count(self, key: Key, rows: int) -> None:
        """Notes that so many rows asked for `key`."""
        self._rows.add(key, rows)

    def wants(self, key: Key) -> bool:
        """Whether `key` has been asked for often enough to be compiled."""
        return key not in self.programs and self._rows[key] >= self.compile_after

    def resize(self, max_bytes: int) -> None:
        """Sets the bound, and drops the programs used least until what is held is within it."""
        self.max_bytes = max_bytes
        held = self.num_bytes
        for key in sorted(self.programs, key=self._rows.__getitem__):
            if held <= max_bytes:
                return
            held -= self.programs.pop(key).num_bytes

    def room_for(self, key: Key, num_bytes: int) -> bool:
        """Makes room for `num_bytes` more on behalf of `key`, by dropping programs used less than half as often.

        Returns:
            False, and drops nothing, if that isn't enough.
        """
        held = self.num_bytes
        victims: list[Key] = []
        for other in sorted(self.programs, key=self._rows.__getitem__):
            if held + num_bytes <= self.max_bytes:
                break
            if other == key or 2 * self._rows[other] >= self._rows[key]:
                continue
            victims.append(other)
            held -= self.programs[other].num_bytes
        if held + num_bytes > self.max_bytes:
            return False
        for victim in victims:
            del self.programs[victim]
        return True
