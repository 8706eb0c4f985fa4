"""A bank of programs that grows in the background while something slower serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from blockdrop.inference.cache import RowCounts

Bank = TypeVar("Bank")


class GrowingBank(Generic[Bank]):
    """Holds a bank of the policies that are asked for most, and replaces it by a larger one when that pays.

    A new bank is made in a thread of its own; until it is ready the old one serves, or whatever the caller has.
    It is begun once `grow_after` rows have missed their programs, or a quarter of that for each program held where
    this is more: making a bank takes longer the more it holds, so at most a few times the least possible time is
    spent on making them.

    Args:
        make: makes a bank of these policies, most used ones first; it may take seconds.
        grow_after: rows.
        most: policies that a bank may hold; 0: it only serves those without a program of their own.
    """

    def __init__(self, make: Callable[[Sequence[bytes]], Bank], grow_after: int, most: int):
        self._make, self._grow_after, self.most = make, grow_after, most
        self.bank: Bank | None = None
        """None until the first one is ready."""
        self.policies: frozenset[bytes] = frozenset()
        """That `bank` holds."""
        self._rows: RowCounts[bytes] = RowCounts()
        self._missed = 0
        self._growing: tuple[frozenset[bytes], Future[Bank]] | None = None
        self._thread = ThreadPoolExecutor(1, "growing bank")

    def find(self, policy: bytes) -> Bank | None:
        """Notes that a row asks for a policy, and gives the bank that serves now; it may hold no program for it.

        Raises:
            Whatever `make` raised in the background, once.
        """
        self._rows.add(policy, 1)
        if self._growing is not None and self._growing[1].done():
            self._take()
        if policy not in self.policies:
            self._missed += 1
            if self._growing is None and self._missed >= self._grow_after * max(1, len(self.policies) / 4):
                self._grow()
        return self.bank

    def warm(self, rows: Counter[bytes]) -> None:
        """Takes up policies, counted as so many rows each, and waits until the bank is ready.

        Raises:
            Whatever `make` raised.
        """
        self.wait()
        for policy, count in rows.items():
            self._rows.add(policy, max(count, self._grow_after))
        self._grow()
        self.wait()

    def wait(self) -> None:
        """Until no bank is being made.

        Raises:
            Whatever `make` raised.
        """
        if self._growing is not None:
            self._growing[1].exception()  # waits, and is interrupted by Ctrl-C without having taken anything
            self._take()

    def _grow(self) -> None:
        self._missed = 0
        wanted = self._rows.most(self.most)
        if self.bank is None or not self.policies.issuperset(wanted):
            self._growing = frozenset(wanted), self._thread.submit(self._make, wanted)

    def _take(self) -> None:
        assert self._growing is not None
        (policies, made), self._growing = self._growing, None
        self.bank, self.policies = made.result(), policies
