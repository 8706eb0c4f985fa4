"""Mutants of sound checkpoints: what chance or malice could make of them.

All is drawn from a seed, so a mutant is known by its dialect, seed and number. Some changes know nothing of the
format; others keep it whole (opcodes, checksums, entries) to get past the checks at the door.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.robustness.samples import samples, save, unzip, zipped

TRACE = "executed"
"""A file that attacks leave in the working directory if their code runs."""


def make_mutant(dialect: str, seed: int, number: int) -> bytes:
    """A checkpoint with one to some changes of one kind."""
    rng = Random(f"{seed} {dialect} {number}")
    sample, other = rng.choice(samples(dialect)), rng.choice(samples(dialect))
    if dialect.endswith("safetensors"):
        return change_safetensors(rng, sample.file, other.file)
    pre_16 = dialect.endswith("pre16")
    kinds = ["bytes", "opcodes", "opcodes", "values", "values", *([] if pre_16 else ["entries"])]
    kind, times = rng.choice(kinds), rng.choice((1, 1, 1, 2, 3, 8))
    if kind == "bytes":
        file = sample.file
        for _ in range(times):
            file = change_bytes(rng, file, other.file)
        return file
    if kind == "opcodes":
        return change_opcodes(rng, sample.file, pre_16, times)
    if kind == "entries":
        return change_entries(rng, sample.file, times)
    content: Any = sample.content
    for _ in range(times):
        content = change_value(rng, content)
    return save(content, pre_16)


def change_bytes(rng: Random, file: bytes, other: bytes) -> bytes:
    """Flips, overwrites, removes, repeats, inserts, or joins with another file."""
    start, end = sorted((rng.randrange(len(file) + 1), rng.randrange(len(file) + 1)))
    if rng.random() < 0.5:
        end = min(end, start + 16)
    part = file[start:end]
    match rng.randrange(8):
        case 0:
            at = min(start, len(file) - 1)
            return file[:at] + bytes([file[at] ^ 1 << rng.randrange(8)]) + file[at + 1 :] if file else file
        case 1:
            return file[:start] + rng.choice((b"\0", b"\xff")) * len(part) + file[end:]
        case 2:
            return file[:start] + rng.randbytes(len(part)) + file[end:]
        case 3:
            return file[:start] + file[end:]
        case 4:
            return file[:end] + part * rng.choice((1, 2, 5)) + file[end:]
        case 5:
            return file[:start] + rng.randbytes(rng.choice((1, 4, 100))) + file[start:]
        case 6:
            return file[:start]
        case _:
            return file[:start] + other[rng.choice((start, rng.randrange(len(other) + 1))) :]


# ---- opcodes


INTEGERS = (0, 1, -1, 2, 255, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, 2**63, 10**12, -(10**12), 2**2000)
FLOATS = (0.0, -0.0, 1e308, 5e-324, math.nan, math.inf)
TEXTS = (
    "", "x" * 10_000, "\x1b[2J\n", "../../x", "\ud800", "format", "blockdrop", "model", "R152_ImgNet",
    "plain8_C10", "shiftresnet110_C100", "R8_Folder", "variant", "agent", "net", "resnet", "state_dict",
    "logit.weight", "fc.weight", "layer1.1.downsample.0.weight", f"layer{'9' * 5000}.0.conv1.weight", "storage",
    "latin1",
)  # fmt: skip
NAMES = (
    "posix system", "__builtin__ eval", "__builtin__ bytearray", "torch Tensor", "torch FloatTensor", "torch Size",
    "torch.hub load", "torch.storage UntypedStorage", "torch.storage _load_from_bytes", "torch FloatStorage",
    "torch LongStorage", "torch BoolStorage", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_sparse_tensor",
    "collections OrderedDict", "collections Counter", "_codecs encode", "numpy dtype",
    "numpy.core.multiarray scalar", "torch device", "torch float32",
)  # fmt: skip


def text_opcode(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer_opcode(value: int) -> bytes:
    raw = pickle.encode_long(value)
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw


SNIPPETS = (
    b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"R", b"b", b"Q", b"}", b"]", b")", b"N", b"a", b"e", b"s", b"u",
    b"\x81", b"\x85", b"\x85" * 10_000, b"(" * 10_000, b"]q\x00h\x00a", b"}q\x00X\x01\x00\x00\x00ah\x00s",
    b"](" + b"h\x00" * 1000 + b"eq\x00" + b"](" + b"h\x00" * 1000 + b"e", b"]" + b"q\x00](h\x00h\x00e" * 40,
    b")" + b"q\x00h\x00\x86" * 40, b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff", b"\x94", b"\x93",
    b"X\xff\xff\xff\xff", b"T\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"Nr\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"I" + b"9" * 5000 + b"\n", b"S'a'\n", b"P1\n", b"\x82\x01",
    b"cposix\nsystem\n" + text_opcode(f"touch {TRACE}") + b"\x85R",
    b"c__builtin__\neval\n" + text_opcode(f"open('{TRACE}', 'w')") + b"\x85R",
    b"c__builtin__\nbytearray\n" + integer_opcode(10**12) + b"\x85R",
    b"ctorch\nTensor\n" + integer_opcode(10**12) + b"\x85\x81",
)  # fmt: skip


@functools.cache
def opcodes_of(file: bytes, start: int) -> tuple[list[bytes], int]:
    """A pickle's opcodes with their arguments, and where it ends."""
    stream = io.BytesIO(file)
    stream.seek(start)
    places = [place or 0 for _, _, place in pickletools.genops(stream)]
    return [file[a:b] for a, b in itertools.pairwise([*places, stream.tell()])], stream.tell()


def change_opcodes(rng: Random, file: bytes, pre_16: bool, times: int) -> bytes:
    """The same file with another pickle, and right checksums."""
    if not pre_16:
        entries = unzip(file)
        name = next(name for name in entries if name.endswith("/data.pkl"))
        opcodes = opcodes_of(entries[name], 0)[0]
        return zipped((entries | {name: b"".join(changed(rng, opcodes, times))}).items())
    pickles, end = [], 0
    for _ in range(5):
        opcodes, end = opcodes_of(file, end)
        pickles.append(opcodes)
    which = rng.choice((3, 3, 3, 3, 3, 4, 4, 2, 1, 0))
    pickles[which] = changed(rng, pickles[which], times)
    return b"".join(itertools.chain(*pickles)) + file[end:]


def changed(rng: Random, opcodes: list[bytes], times: int) -> list[bytes]:
    """Drops, repeats, swaps, inserts opcodes, or replaces them by others of their kind."""
    opcodes = list(opcodes)
    for _ in range(times):
        at, other = rng.randrange(len(opcodes)), rng.randrange(len(opcodes))
        match rng.randrange(8):
            case 0:
                del opcodes[at : at + rng.choice((1, 1, 2, 10))]
            case 1:
                opcodes[at:at] = opcodes[at : at + rng.choice((1, 2, 10, 50))] * rng.choice((1, 1, 100))
            case 2:
                opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
            case 3:
                opcodes.insert(at, rng.choice(SNIPPETS))
            case 4:
                opcodes.insert(at, opcodes[other])
            case _:
                numbered = [n for n, opcode in enumerate(opcodes) if opcode[:1] in b"KMJ\x8aGXchj"]
                at = rng.choice(numbered or [at])
                opcodes[at] = another(rng, opcodes[at], opcodes)
        opcodes = opcodes or [b"."]
    return opcodes


def another(rng: Random, opcode: bytes, opcodes: list[bytes]) -> bytes:
    """An opcode of the same kind, or once in a while of another."""
    alike = [o for o in opcodes if o[:1] == opcode[:1]]
    if rng.random() < 0.3:
        return rng.choice(alike)
    kind = opcode[:1] if rng.random() < 0.9 else rng.choice((b"K", b"G", b"X", b"c", b"h"))
    match kind:
        case b"X":
            return text_opcode(rng.choice(TEXTS))
        case b"c":
            module, name = rng.choice(NAMES).split()
            return f"c{module}\n{name}\n".encode()
        case b"G":
            return b"G" + struct.pack(">d", rng.choice(FLOATS))
        case b"h" | b"j":
            return b"h" + bytes([rng.randrange(256)])
    return integer_opcode(rng.choice((*INTEGERS, rng.randrange(100))))


# ---- the header of safetensors


def change_safetensors(rng: Random, file: bytes, other: bytes) -> bytes:
    """Changes bytes; or names, types, shapes and places of tensors, or metadata; the length stays right."""
    times = rng.choice((1, 1, 1, 2, 3, 8))
    if rng.random() < 0.3:
        for _ in range(times):
            file = change_bytes(rng, file, other)
        return file
    (length,) = struct.unpack("<Q", file[:8])
    header, data = json.loads(file[8 : 8 + length]), file[8 + length :]
    metadata = header.pop("__metadata__", None)
    for _ in range(times):
        if metadata is not None and rng.random() < 0.5:
            metadata = change_metadata(rng, metadata)
        elif not isinstance(header, dict) or not header or rng.random() < 0.1:
            header = change_value(rng, header)
        elif rng.random() < 0.5:
            key = rng.choice(list(header))
            new = rng.choice([name for name in (*header, *TEXTS, f"resnet.{key}", f"{key}x") if name != key])
            header |= {key: header.get(new, header[key]), new: header[key]}  # two exchange, or one is renamed
            if rng.random() < 0.5:
                del header[key]
        else:
            key = rng.choice(list(header))
            header |= {key: change_tensor_header(rng, header[key])}
    if metadata is not None and isinstance(header, dict):
        header = {"__metadata__": metadata} | header
    text = json.dumps(header, default=_text, skipkeys=True).encode()
    return struct.pack("<Q", len(text)) + text + data[: rng.choice((*[None] * 9, rng.randrange(len(data) + 1)))]


def _text(value: object) -> str:
    """Of what JSON doesn't know, without where it lies in memory, so that a mutant is the same every time."""
    return re.sub(r"0x[0-9a-f]+", "0x0", str(value))


def change_metadata(rng: Random, metadata: Any) -> Any:
    """Another text, or another value within the JSON that a text is."""
    if not isinstance(metadata, dict) or not metadata or rng.random() < 0.05:
        return change_value(rng, metadata)
    key = rng.choice(list(metadata))
    try:
        value = json.dumps(change_value(rng, json.loads(metadata[key])), default=_text, skipkeys=True)
    except (ValueError, TypeError, RecursionError):  # plain text, or no longer JSON
        value = rng.choice((*TEXTS, "[" * 10_000, "9" * 5000, '{"a": NaN}'))
    return metadata | {key: value}


def change_tensor_header(rng: Random, tensor: Any) -> Any:
    """Another type, shape or place, half of the time of as many bytes."""
    if not isinstance(tensor, dict) or not isinstance(shape := tensor.get("shape"), list):
        return change_value(rng, tensor)
    if rng.random() < 0.5:
        return tensor | rng.choice((
            {"dtype": rng.choice(("F32", "I32", "U32"))}, {"shape": shape[::-1]}, {"shape": [1, *shape]},
            {"dtype": rng.choice(("F16", "BF16", "I16")), "shape": [2, *shape]},
            {"dtype": rng.choice(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")), "shape": [*shape, 4]},
        ))  # fmt: skip
    sizes = [rng.choice((*INTEGERS[:-1], 1, 2, 3, 8)) for _ in range(rng.choice((0, 1, 2, 4, 4, 100)))]
    kinds = ("F64", "I64", "C64", "U16", "F4", "X")
    return tensor | rng.choice(
        (
            {"dtype": rng.choice(kinds)},
            {"shape": sizes},
            {"data_offsets": sizes[:2]},
            {"data_offsets": [0, *sizes[:1]]},
        )
    )


# ---- entries of an archive


def change_entries(rng: Random, file: bytes, times: int) -> bytes:
    """Damages, drops, renames, doubles, exchanges entries; or compresses them; checksums stay right."""
    entries = list(unzip(file).items())
    for _ in range(times):
        at = rng.randrange(len(entries))
        name, content = entries[at]
        match rng.randrange(6):
            case 0 | 1:
                entries[at] = name, change_bytes(rng, content, rng.choice(entries)[1])
            case 2 if len(entries) > 1:
                del entries[at]
            case 3:
                entries[at] = renamed(rng, name), content
            case 4 if rng.random() < 0.2:
                entries.insert(at, (rng.choice(entries)[0], content))
            case _:
                other = rng.randrange(len(entries))
                entries[at], entries[other] = (name, entries[other][1]), (entries[other][0], content)
    return zipped(entries, rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)))


def renamed(rng: Random, name: str) -> str:
    folder, _, rest = name.partition("/")
    return rng.choice(
        (rest, f"/{name}", f"../{name}", f"{folder}/../{rest}", f"{folder}\\{rest}", f"{name}/", f"x/{rest}",
         name[:-1], f"{name}0", f"{folder}/constants.pkl", f"{folder}/data/0", f"{folder}/.format_version")
    )  # fmt: skip


# ---- values


class Attack:
    """Pickled, it leaves a trace when its code runs."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {TRACE}",)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: b"", list, dict, tuple, Attack, lambda: nested(100), lambda: {0: {}},
    lambda: {"reduction": 0.01}, lambda: {"expansion": 100, "reduction_mode": "net"}, lambda: np.float64(1e300),
    lambda: torch.ones(()), lambda: torch.ones(3), lambda: torch.zeros(0), lambda: torch.full((2,), math.nan),
    lambda: torch.ones(1).expand(10**12), lambda: torch.ones(1).expand(1, 10**9, 64),
    lambda: torch.zeros(0, 2**40), lambda: torch.eye(2).to_sparse(), lambda: {"logit.weight": torch.ones(3, 8)},
    lambda: ["a"] * 1000, lambda: torch.ones(100_000, 1),
    *(functools.partial(lambda value: value, value) for value in (*INTEGERS, *FLOATS, *TEXTS)),
)  # fmt: skip
TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t.double(), lambda t: t.half(), lambda t: t.bfloat16(), lambda t: t.int(), lambda t: t.bool(),
    lambda t: t[None], lambda t: t.flatten(), lambda t: t[:0] if t.dim() else t, lambda t: t * math.nan,
    lambda t: t.expand(10**6, *t.shape), lambda t: t.mT if t.dim() > 1 else t, lambda t: nn.Parameter(t.float()),
    lambda t: torch.cat([t, t]) if t.dim() else t, lambda t: t.to_sparse() if t.dim() else t,
    lambda t: torch.zeros(2, *t.shape)[1], lambda t: t.repeat(1000, *(1 for _ in t.shape)), lambda t: t.tolist(),
)  # fmt: skip


def change_value(rng: Random, value: Any) -> Any:
    """The content with another value, key or tensor somewhere in it."""
    if (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.numel() < 10**4
        and rng.random() < 0.8
    ):
        return rng.choice(TENSORS)(value)
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)()
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], change_value(rng, value[at]), *value[at + 1 :]]
    key, other = rng.choice(list(value)), rng.choice(list(value))
    match rng.randrange(10):
        case 0:
            return {k: v for k, v in value.items() if k != key}
        case 1:
            return value | {key: value[other], other: value[key]}
        case 2:
            new = rng.choice((*TEXTS, *INTEGERS, f"{key}x", f"module.{key}"))
            return {(new if k == key else k): v for k, v in value.items()}
    return value | {key: change_value(rng, value[key])}
