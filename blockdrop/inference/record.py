"""A file that says which programs an executor had, so that the next process makes them without being asked again.

It holds no compiled code: OpenVINO's own blobs repeat the weights for each program of a bank, so that reading one
takes longer than compiling anew (ResNet-101, 10 policies: 1.5 GB). It belongs to a network's shape and not to its
weights.
"""

from __future__ import annotations

import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from blockdrop.errors import BlockdropError, require
from blockdrop.inference.rows import SIZES
from blockdrop.output import write_json
from blockdrop.ranges import Range
from blockdrop.typed_json import read_json, typed

FORMAT = "blockdrop programs 1"
Pixels = Annotated[int, Range(least=1, most=8192)]
Kept = str
"""A digit for each block, 1 where it runs."""


@dataclass
class BankRecord:
    """A bank of the policies of single images, or of small groups."""

    image_size: list[Pixels]
    """Height and width."""
    policies: list[Kept]
    apart: bool = False
    """Several images side by side, on a thread each."""


@dataclass
class ProgramRecord:
    """A program of a batch's rows."""

    image_size: list[Pixels]
    blocks: list[Annotated[int, Range(least=0)]]
    """First and last + 1."""
    kept: Kept
    """Empty: it runs all blocks, for rows of any policies."""
    rows: int
    copies: Annotated[int, Range(least=1, most=1024)]


@dataclass
class PolicyProgramRecord:
    """A program of the policy network."""

    image_size: list[Pixels]
    """Of what it gets, which may be pooled."""
    rows: int
    alone: bool


@dataclass
class SizesRecord:
    """How many rows programs take."""

    what: str
    image_size: list[Pixels]
    rows: list[int]


@dataclass
class Record:
    """Everything."""

    format: str
    blocks: int
    machine: str
    """What the numbers of rows were measured on."""
    banks: list[BankRecord] = field(default_factory=list)
    programs: list[ProgramRecord] = field(default_factory=list)
    policy_programs: list[PolicyProgramRecord] = field(default_factory=list)
    sizes: list[SizesRecord] = field(default_factory=list)


def write_record(path: str | Path, record: Record) -> None:
    """Writes the file; an older one of this kind is replaced.

    Raises:
        BlockdropError: something else stands there; not writable.
    """
    path = Path(path)
    if path.exists():
        try:
            _read(path)
        except BlockdropError as error:
            raise BlockdropError(f"programs {path}: exists, and is no such file ({error}); name another") from None
    write_json("programs", path, asdict(record))


def read_record(path: str | Path, blocks: int) -> Record:
    """What the file holds, checked, for a network of so many blocks.

    Raises:
        BlockdropError: unreadable, damaged, or of another network. The message doesn't name the file.
    """
    record = _read(Path(path))
    require(record.blocks == blocks, f"of a network of {record.blocks} blocks, this one has {blocks}")
    for bank in record.banks:
        _check_sides(bank.image_size)
        for policy in bank.policies:
            _check_kept(policy, blocks)
    for program in record.programs:
        _check_sides(program.image_size)
        require(len(program.blocks) == 2, "damaged: blocks that aren't a first and a last one")
        if program.kept:
            _check_kept(program.kept, program.blocks[1] - program.blocks[0])
    rows = [program.rows for program in record.programs]
    for policy_program in record.policy_programs:
        _check_sides(policy_program.image_size)
        rows.append(policy_program.rows)
    rows += [size for one in record.sizes for size in one.rows]
    require(set(rows) <= set(SIZES), f"damaged: rows of a program that are none of {', '.join(map(str, SIZES))}")
    for sizes in record.sizes:
        _check_sides(sizes.image_size)
        require(sizes.rows[:1] == [1] and sorted(set(sizes.rows)) == sizes.rows, "damaged: sizes out of order")
    return record


def machine_of(threads: int, dtype: str, openvino: str) -> str:
    """What speeds depend on."""
    name = platform.processor() or platform.machine()
    try:
        if match := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            name = match[1]
    except OSError:
        pass
    return f"{name}, {threads} threads, {dtype}, OpenVINO {openvino}"


def _read(path: Path) -> Record:
    content, _ = read_json(path)
    require(isinstance(content, dict) and content.get("format") == FORMAT, "no record of programs of this version")
    record = typed(Record, content)
    assert isinstance(record, Record)
    return record


def _check_sides(image_size: list[int]) -> None:
    require(len(image_size) == 2, "damaged: an image size that isn't height and width")


def _check_kept(kept: str, blocks: int) -> None:
    require(
        len(kept) == blocks and set(kept) <= {"0", "1"}, f"damaged: a policy of other than {blocks} digits 0, 1"
    )
