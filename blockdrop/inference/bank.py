"""Banks of programs that grow in the background while something slower serves."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

from blockdrop.inference.cache import RowCounts

Bank = TypeVar("Bank")
Made = TypeVar("Made", covariant=True)


class BankKey(NamedTuple):
    """Which images a bank serves, and how."""

    image_shape: tuple[int, ...]
    """(H, W, C)"""
    apart: bool = False
    """Several images side by side, on a thread each; otherwise one image at a time on all threads."""


class GrowingBank(Generic[Bank]):
    """Holds a bank of the policies that are asked for most, and replaces it by another one when that pays.

    A new bank is made in a thread of its own; until it is ready the old one serves, or whatever the caller has.
    It is begun once `grow_after` rows have missed their programs, or a quarter of that for each program held where
    this is more: making a bank takes longer the more it holds, so at most a few times the least possible time is
    spent on making them. A policy pushes another one out only if it is asked for more than twice as often.

    Args:
        make: makes a bank of these policies; it may take seconds.
        grow_after: rows.
        choose: those of the policies, most wanted ones first, that a bank may hold together.
    """

    def __init__(
        self,
        make: Callable[[Sequence[bytes]], Bank],
        grow_after: int,
        choose: Callable[[Sequence[bytes]], Sequence[bytes]],
    ):
        self._make, self._grow_after, self._choose = make, grow_after, choose
        self.bank: Bank | None = None
        """None until the first one is ready."""
        self.policies: frozenset[bytes] = frozenset()
        """That `bank` holds."""
        self.growing: frozenset[bytes] | None = None
        """Policies of the bank that is being made, if one is."""
        self._rows: RowCounts[bytes] = RowCounts()
        self._missed = 0
        self._made: Future[Bank] | None = None
        self._thread = ThreadPoolExecutor(1, "growing bank")

    def find(self, policy: bytes) -> Bank | None:
        """Notes that a row asks for a policy, and gives the bank that serves now; it may hold no program for it.

        Raises:
            Whatever `make` raised in the background, once.
        """
        self._rows.add(policy, 1)
        if self._made is not None and self._made.done():
            self._take()
        if policy not in self.policies:
            self._missed += 1
            if self._made is None and self._missed >= self._grow_after * max(1, len(self.policies) / 4):
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

    def begin(self, policies: Sequence[bytes]) -> None:
        """Takes up policies without waiting for the bank."""
        for policy in policies:
            self._rows.add(policy, self._grow_after)
        if self._made is None:
            self._grow()

    @property
    def held(self) -> list[frozenset[bytes]]:
        """Policies of the bank that is there and of that which is being made."""
        there = [] if self.bank is None else [self.policies]
        return there if self.growing is None else [*there, self.growing]

    def wait(self) -> None:
        """Until no bank is being made.

        Raises:
            Whatever `make` raised.
        """
        if self._made is not None:
            self._made.exception()  # waits, and is interrupted by Ctrl-C without having taken anything
            self._take()

    def _grow(self) -> None:
        self._missed = 0
        wanted = self._choose(self._rows.most(lambda policy: 2 if policy in self.policies else 1))
        if self.bank is None or not self.policies.issuperset(wanted):
            self.growing = frozenset(wanted)
            self._made = self._thread.submit(self._make, wanted)

    def _take(self) -> None:
        assert self._made is not None
        assert self.growing is not None
        made, policies = self._made, self.growing
        self._made = self.growing = None
        self.bank, self.policies = made.result(), policies


class MakesBanks(Protocol[Made]):
    """An engine."""

    def bank(self, policies: Sequence[bytes], key: BankKey) -> Made:
        """A bank of these policies."""

    def bank_bytes(self, policies: Sequence[bytes], key: BankKey) -> int:
        """Its memory, estimated."""


class Banks(Generic[Bank]):
    """A growing bank for each key, within a bound of memory.

    While a bank is replaced, the old and the new one are held, so that each bank may take half of what the others
    leave.

    Args:
        engine: makes them.
        grow_after: see `GrowingBank`.
        max_bytes: memory that all may take, estimated, those that are being made included.
        most: policies, at most, that a bank may hold; more take long to make.
    """

    def __init__(self, engine: MakesBanks[Bank], grow_after: int, max_bytes: int, most: int):
        self._engine, self._grow_after, self._max_bytes, self._most = engine, grow_after, max_bytes, most
        self.by_key: dict[BankKey, GrowingBank[Bank]] = {}
        self.num_bytes = 0
        """Memory of all banks, estimated, those that are being made included."""

    def find(self, policy: bytes, key: BankKey) -> Bank | None:
        """Notes that an image asks for a policy, and gives the bank that serves it now.

        Raises:
            Whatever the engine raised in the background, once.
        """
        growing = self._growing(key)
        if growing is None:
            return None
        before = growing.growing
        try:
            return growing.find(policy)
        finally:
            if growing.growing is not before:
                self._weigh()

    def there(self, key: BankKey) -> Bank | None:
        """The bank that is there, without noting anything; None before there is one."""
        growing = self.by_key.get(key)
        return None if growing is None else growing.bank

    def warm(self, rows: Counter[bytes], key: BankKey) -> None:
        """Takes up policies, counted as so many rows each, and waits until their bank is ready.

        Raises:
            Whatever the engine raised.
        """
        growing = self._growing(key)
        if growing is not None:
            try:
                growing.warm(rows)
            finally:
                self._weigh()

    def begin(self, policies: Sequence[bytes], key: BankKey) -> None:
        """Takes up policies without waiting for their bank."""
        growing = self._growing(key)
        if growing is not None:
            growing.begin(policies)
            self._weigh()

    def _growing(self, key: BankKey) -> GrowingBank[Bank] | None:
        """None where no bank has room."""
        if key not in self.by_key:
            if self._engine.bank_bytes([], key) > self._room(key):
                return None
            make = functools.partial(self._engine.bank, key=key)
            choose = functools.partial(self._choose, key=key)
            self.by_key[key] = GrowingBank(make, self._grow_after, choose)
        return self.by_key[key]

    def _choose(self, policies: Sequence[bytes], key: BankKey) -> Sequence[bytes]:
        chosen = list(policies[: self._most])
        room = self._room(key)
        while chosen and self._engine.bank_bytes(chosen, key) > room:
            chosen.pop()
        return chosen

    def _room(self, key: BankKey) -> int:
        """For a new bank of this key, beside the others and the one that it replaces."""
        own = {key} & set(self.by_key)
        left = self._max_bytes - self._bytes(set(self.by_key) - own)
        return min(left // 2, left - self._bytes(own))

    def _weigh(self) -> None:
        self.num_bytes = self._bytes(set(self.by_key))

    def _bytes(self, keys: set[BankKey]) -> int:
        return sum(
            self._engine.bank_bytes(list(policies), key) for key in keys for policies in self.by_key[key].held
        )
