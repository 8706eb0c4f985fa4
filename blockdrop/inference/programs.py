"""An executor's compiled programs: those of batches' rows, banks of single images', and the policy network's.

Everything in here may raise a `RuntimeError` of OpenVINO's; whatever is in the books is there then, too.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockdrop.inference import openvino_engine
from blockdrop.inference.bank import BankKey, Banks
from blockdrop.inference.cache import ProgramCache
from blockdrop.inference.openvino_engine import Bank, OpenVINOEngine, Program
from blockdrop.inference.plan import Plan, Range, SegmentPlan
from blockdrop.inference.record import (
    FORMAT,
    BankRecord,
    PolicyProgramRecord,
    ProgramRecord,
    Record,
    SizesRecord,
    machine_of,
)
from blockdrop.inference.rows import SIZES, USUAL, split, worthwhile
from blockdrop.inference.workers import Workers

ALL_MASKED = b""
"""Stands for a program that runs all blocks, for rows of any sub-policies."""
BANK_POLICIES = 64
"""Policies, at most, that have programs of their own for single images; more take long to compile."""

Shape = tuple[int, ...]


class ProgramKey(NamedTuple):
    """Which program of a batch's rows."""

    blocks: Range
    kept: bytes
    """bool (blocks,) of a straight-line program, or `ALL_MASKED`."""
    in_shape: Shape
    batch: int


class Sized(NamedTuple):
    """Programs that take the same numbers of rows."""

    what: str
    """policy network, or blocks."""
    image_shape: Shape


class Programs:
    """Knows which programs there are, and makes those that have become worth it.

    Args:
        engine: compiles them.
        workers: run them, and compile several at a time.
        segments: that batches run one after the other.
        cache_bytes: memory that they may take, estimated.
        compile_after: see `ProgramCache`.
    """

    def __init__(
        self,
        engine: OpenVINOEngine,
        workers: Workers,
        segments: Sequence[Range],
        cache_bytes: int,
        compile_after: int,
    ):
        self.engine, self._workers, self._segments = engine, workers, segments
        self._cache_bytes, self._compile_after = cache_bytes, compile_after
        self.cache: ProgramCache[ProgramKey, Program] = ProgramCache(cache_bytes, compile_after)
        self.banks: Banks[Bank] = Banks(engine, compile_after, cache_bytes, BANK_POLICIES)
        self.of_policy_network: dict[tuple[Shape, int, bool], Program] = {}
        self._policy_rows: Counter[tuple[Shape, int, bool]] = Counter()
        self._sizes: dict[Sized, tuple[int, ...]] = {}
        self._known_shapes: dict[Shape, dict[int, Shape]] = {}
        self.compilations = 0
        """How many programs were compiled in a call, which waited for it."""

    @property
    def num_bytes(self) -> int:
        """Memory of all programs, estimated, banks that are being made included."""
        return self.cache.num_bytes + self._bytes_of_others()

    def shapes(self, image_shape: Shape) -> dict[int, Shape]:
        """(H, W, C) of the images and of the maps at the start of each segment; (classes,) after the last."""
        if image_shape not in self._known_shapes:
            shapes = {0: image_shape}
            for first, last in self._segments:
                shapes[last] = self.engine.map_shape((first, last), shapes[first])
            self._known_shapes[image_shape] = shapes
        return self._known_shapes[image_shape]

    # ---- batches

    def split(self, rows: int, of: int, what: Sized) -> dict[int, int]:
        """How many rows of a group go through programs of which size: none so large that workers would wait for
        each other at the end of `of` rows."""
        return split(rows, self._sizes.get(what, USUAL), max(USUAL[-1], of // (2 * self._workers.count)))

    def find(
        self, segment: SegmentPlan, row: int, image_shape: Shape, batch: int, _rows: int = 0
    ) -> Program | None:
        """The program for a row's sub-policy and so many rows at once, if there is one."""
        return self.cache.programs.get(self._key(segment, row, image_shape, batch))

    def masked(
        self, segment: SegmentPlan, rows: int, image_shape: Shape
    ) -> tuple[ProgramKey, Program] | tuple[None, None]:
        """The program that runs all blocks, for so many rows of a segment that have none of their own, once it is
        worth it. They count until then; afterwards the caller counts those that go through it."""
        if not self.engine.net.droppable:
            return None, None
        shape = self.shapes(image_shape)[segment.blocks[0]]
        batch = max(self.split(rows, len(segment.source), Sized("blocks", image_shape)))
        key = ProgramKey(segment.blocks, ALL_MASKED, shape, batch)
        if key not in self.cache.programs:
            self.cache.count(key, rows)
        self._compile({key: min(self._workers.count, -(-rows // batch))})
        program = self.cache.programs.get(key)
        return (None, None) if program is None else (key, program)

    def prepare(self, segment: SegmentPlan, image_shape: Shape) -> None:
        """Notes what a segment's rows ask for, and compiles what has become worth it."""
        keys = self._keys(segment, image_shape)
        for key, (rows, _) in keys.items():
            self.cache.count(key, rows)
        self._compile({key: copies for key, (_, copies) in keys.items()})

    def warm_batches(self, plans: Sequence[Plan], image_shape: Shape, batch_size: int, instead: bool) -> bool:
        """Compiles what batches like these need, most used first.

        Args:
            instead: whether something else could serve them, so that nothing is compiled unless all has room.
        Returns:
            Whether it was compiled, as far as there was room.
        """
        typical = functools.partial(self._typical, image_shape)
        self._measure_sizes(Sized("blocks", image_shape), batch_size, typical)
        rows: Counter[ProgramKey] = Counter()
        copies: dict[ProgramKey, int] = {}
        for plan in plans:
            for segment in plan.segments:
                for key, (count, wanted) in self._keys(segment, image_shape).items():
                    rows[key] += count
                    copies[key] = max(wanted, copies.get(key, 1))
        if instead:
            needed = sum(self._new(key).bytes_of(wanted) for key, wanted in copies.items())
            if needed > self.cache.max_bytes:
                return False
        for key, count in rows.items():
            self.cache.count(key, max(count, self._compile_after))
        self._compile({key: copies[key] for key, _ in rows.most_common()})
        return True

    def _keys(self, segment: SegmentPlan, image_shape: Shape) -> dict[ProgramKey, tuple[int, int]]:
        """The programs that would serve a segment, with the rows that ask for each and the copies it takes."""
        keys, sized, threads = {}, Sized("blocks", image_shape), self._workers.count
        for start, stop in segment.groups:
            for batch, rows in self.split(stop - start, len(segment.source), sized).items():
                # A group of more than half a worker's share will have several workers at once.
                share = -(-2 * rows * threads // len(segment.source))
                copies = min(threads, share, -(-rows // batch))
                keys[self._key(segment, start, image_shape, batch)] = (rows, copies)
        return keys

    def _key(self, segment: SegmentPlan, row: int, image_shape: Shape, batch: int) -> ProgramKey:
        shape = self.shapes(image_shape)[segment.blocks[0]]
        return ProgramKey(segment.blocks, segment.bits[row].tobytes(), shape, batch)

    def _new(self, key: ProgramKey) -> Program:
        if key.kept == ALL_MASKED:
            return self.engine.masking_program(key.blocks, key.in_shape, key.batch)
        kept = np.frombuffer(key.kept, dtype=bool).tolist()
        return self.engine.block_program(key.blocks, kept, key.in_shape, key.batch)

    def _compile(self, copies: dict[ProgramKey, int]) -> None:
        """Compiles the programs that have become worth it, and copies of those that several workers need."""
        programs = self.cache.programs
        planned: dict[ProgramKey, Program] = {}
        for key in sorted(copies, key=self.cache.rows, reverse=True):
            program = programs.get(key)
            if program is None:
                if not self.cache.wants(key):
                    continue
                program = self._new(key)
            missing = copies[key] - program.copies
            if missing <= 0:
                continue
            if not self.cache.room_for(key, program.bytes_of(copies[key]) - program.num_bytes):
                continue
            planned[key] = programs[key] = program
            program.copies = copies[key]
        try:
            self._compile_all({program: program.copies for program in planned.values()})
        finally:  # what is in the books is there, whatever happened
            for key, program in planned.items():
                program.copies = program.compiled
                if not program.copies:
                    programs.pop(key, None)

    def _compile_all(self, copies: dict[Program, int]) -> None:
        self.compilations += len(copies)
        self._workers.run(lambda program: program.compile(copies[program]), list(copies))

    # ---- how many rows at once

    def _measure_sizes(self, what: Sized, of: int, program: Callable[[int], Program]) -> None:
        """Finds out, once, how many rows programs should take in batches of `of` rows.

        Args:
            program: for so many rows.
        """
        threads = self._workers.count
        most = of // (2 * threads)
        if what in self._sizes or most < SIZES[2]:
            return

        def seconds(size: int) -> float:
            one = program(size)
            if one.bytes_of(threads) > self._cache_bytes // 2:
                return float("inf")
            one.compile(threads)
            out = torch.empty_like(one.outputs)

            def once(_: int) -> None:
                one.run(lambda inputs: inputs.fill(0), out)

            work = functools.partial(self._workers.run, once, range(threads))
            return min(_seconds(work) for _ in range(3)) / (size * threads)

        self._sizes[what] = worthwhile(seconds, most)

    def _typical(self, image_shape: Shape, batch: int) -> Program:
        """The program of every third block."""
        net = self.engine.net
        kept = [not net.droppable or number % 3 == 0 for number in range(net.num_blocks)]
        return self.engine.block_program((0, net.num_blocks), kept, image_shape, batch)

    # ---- single images

    def bank(self, bits: NDArray[np.bool_], key: BankKey) -> Bank | None:
        """Notes that an image asks for a policy, bool (K,), and gives the bank that serves it, if it is there."""
        before = self.banks.num_bytes
        try:
            return self.banks.find(bits.tobytes(), key)
        finally:
            if self.banks.num_bytes != before:
                self._leave_room()

    def warm_bank(self, policy: Tensor, key: BankKey) -> None:
        """Makes a bank of policies, bool (N, K), each as often as it is expected."""
        try:
            self.banks.warm(Counter(bits.tobytes() for bits in policy.cpu().numpy()), key)
        finally:
            self._leave_room()

    def _leave_room(self) -> None:
        """Leaves to the programs of batches the memory that the others don't take."""
        left = max(0, self._cache_bytes - self._bytes_of_others())
        if self.cache.max_bytes != left:
            self.cache.resize(left)

    def _bytes_of_others(self) -> int:
        return self.banks.num_bytes + sum(program.num_bytes for program in self.of_policy_network.values())

    # ---- the policy network

    def of_policy(self, image_shape: Shape, batch: int, rows: int, alone: bool = False) -> Program | None:
        """The policy network's program for so many of `rows` images at once, once it is worth compiling.

        Args:
            image_shape: of what the program gets.
            alone: for a user on all threads.
        """
        key = (image_shape, batch, alone)
        if key not in self.of_policy_network:
            self._policy_rows[key] += rows
            if self._policy_rows[key] >= self._compile_after:
                program = self.engine.policy_program(*key)
                copies = 1 if alone else self._workers.count
                self._compile_all({program: copies})
                program.copies = copies
                self.of_policy_network[key] = program
                self._leave_room()
        return self.of_policy_network.get(key)

    def warm_policy_network(self, image_shape: Shape, batch_size: int) -> None:
        """Compiles what batches of this size need."""
        sized = Sized("policy network", image_shape)
        self._measure_sizes(sized, batch_size, functools.partial(self.engine.policy_program, image_shape))
        for batch in self.split(batch_size, batch_size, sized):
            self.of_policy(image_shape, batch, self._compile_after, alone=batch_size == 1)

    # ---- from one process to the next

    def record(self) -> Record:
        """What there is."""
        record = Record(FORMAT, self.engine.net.num_blocks, self._machine)
        for (shape, apart), growing in self.banks.by_key.items():
            policies = sorted(growing.policies | (growing.growing or frozenset()))
            record.banks.append(BankRecord([*shape[:2]], [_digits(policy) for policy in policies], apart))
        for key, program in self.cache.programs.items():
            image_shape = next(
                shape for shape, maps in self._known_shapes.items() if maps.get(key.blocks[0]) == key.in_shape
            )
            record.programs.append(
                ProgramRecord([*image_shape[:2]], [*key.blocks], _digits(key.kept), key.batch, program.copies)
            )
        for shape, batch, alone in self.of_policy_network:
            record.policy_programs.append(PolicyProgramRecord([*shape[:2]], batch, alone))
        for sized, rows in self._sizes.items():
            record.sizes.append(SizesRecord(sized.what, [*sized.image_shape[:2]], [*rows]))
        return record

    def take_up(self, record: Record, image_size: int | None) -> None:
        """Makes what a record of `read_record` notes, banks in the background.

        Args:
            image_size: side of the images that the network is made for; None: any.
        """

        def fits(sides: Sequence[int]) -> bool:
            return image_size is None or [*sides] == [image_size, image_size]

        if record.machine == self._machine:
            for sizes in record.sizes:
                self._sizes[Sized(sizes.what, (*sizes.image_size, 3))] = tuple(sizes.rows)
        for bank in record.banks:
            if fits(bank.image_size):
                bank_key = BankKey((*bank.image_size, 3), bank.apart)
                self.banks.begin([_policy(kept) for kept in bank.policies], bank_key)
        if self.engine.policy_network is not None:
            for one in record.policy_programs:
                self.of_policy((*one.image_size, 3), one.rows, self._compile_after, one.alone)
        self._leave_room()
        copies: dict[ProgramKey, int] = {}
        for program in record.programs:
            shapes = self.shapes((*program.image_size, 3)) if fits(program.image_size) else {}
            first, last = program.blocks
            if first in shapes and last in shapes:
                key = ProgramKey((first, last), _policy(program.kept), shapes[first], program.rows)
                self.cache.count(key, self._compile_after)
                copies[key] = min(program.copies, self._workers.count)
        self._compile(copies)

    @property
    def _machine(self) -> str:
        return machine_of(self._workers.count, str(self.engine.dtype), openvino_engine.version())


def _digits(kept: bytes) -> str:
    """bool (K,) in bytes as digits."""
    return "".join(map(str, kept))


def _policy(digits: str) -> bytes:
    return bytes(map(int, digits))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
