"""Reads the pickles that torch.save writes. Nothing that a pickle names is imported or called.

A pickle is a program for a stack machine; Python's own machine, and to a lesser degree torch's, calls what the
program says. The machine here knows the opcodes that torch.save uses and a closed list of names, whose calls it
understands rather than makes. Its time and memory are proportional to the pickle's length, which is bounded, and
to the storages', which the caller answers for.

Objects of other people's classes are read as what they store, the class being a text: of a module remains the
state dict that its parameters, buffers and submodules make, of an `argparse.Namespace` a dict, of others nothing.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from blockdrop.errors import CheckpointError

LARGEST_PICKLE = 8 * 2**20
"""Bytes; a ResNet-152's pickle has a fiftieth of that."""
MOST_OPCODES = 1_000_000
MOST_VALUES = 2_000_000
"""Values and characters of what is read, each counted as often as one meets it on a walk through the whole."""
DEEPEST_NESTING = 64
MOST_DIMENSIONS = 8
MOST_WEIGHTS = 100_000
"""Modules and weights of whole modules, each counted as often as one meets it."""
LONGEST_PREFIX = 1000
"""Letters of a submodule's path."""
LARGEST_EMPTY = 2**20
"""Of a tensor that has 0 in one dimension, the product of the others."""
LONGEST_BYTES = 64
"""A NumPy number has 8 at most."""

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
DTYPES = {str(dtype) for dtype in STORAGES.values()}
NUMPY_CODES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
KNOWN_CALLS = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "builtins.complex",
    "__builtin__.complex",
    "__builtin__.bytes",
    "_codecs.encode",
    "numpy.dtype",
    *NUMPY_SCALARS,
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(PARAMETERS := ("torch.nn.parameter.Parameter", "torch.nn.Parameter")),
    *(SETS := ("builtins.set", "__builtin__.set")),
    *(RECONSTRUCTORS := ("copy_reg._reconstructor", "copyreg._reconstructor")),
    "torch.nn.backends.thnn._get_thnn_function_backend",
}
PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, Tensor)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

LoadStorage = Callable[[str, torch.dtype, int], Tensor]
"""A storage's key, what it holds and how many of them, to its values (n,). Raises for what isn't in the file."""


@dataclass(frozen=True)
class _Name:
    """What a pickle names in place of a function or class."""

    name: str


@dataclass(eq=False)
class _Object:
    """An object of a class that nobody looks for."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Storage:
    """What it holds: (n,)."""

    values: Tensor


def one_line(text: object, length: int = 120) -> str:
    """Text from a file, fit for an error message: printable, in one line and not long.

    >>> one_line("blocks" + chr(10) + "x" * 200, 12)
    'blocks\\\\nxxxxx…'
    """
    text = str(text)
    clipped = text if len(text) <= length else f"{text[:length]}…"
    return clipped if clipped.isprintable() else repr(clipped)[1:-1]


def read_pickle(stream: IO[bytes], load_storage: LoadStorage, most_bytes: int = 0) -> Any:
    """The pickle at the stream's position: plain values, and tensors that view the storages.

    Args:
        most_bytes: of all tensors together, each counted as often as one meets it on a walk through the whole.
    Returns:
        None, numbers, text, bytes, and lists, tuples, dicts and CPU tensors of them.
    Raises:
        CheckpointError: it names anything else, is too large or malformed in a way that is known.
        Exception: malformed.
    """
    value = _Plain()(_Machine(load_storage).run(stream))
    _check_extent(value, most_bytes)
    return value


class _Machine:
    def __init__(self, load_storage: LoadStorage):
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        """The stacks below the marks that are open."""
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number == MOST_OPCODES:
                raise CheckpointError("refused: it names more values than a checkpoint has")
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, opcode: str, argument: Any) -> None:
        push = self.stack.append
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                push(CONSTANTS[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                push(argument)
            case "BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                push(argument)
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self.close_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.stack.pop() for _ in range(int(opcode[-1]))]
                push(tuple(reversed(items)))
            case "APPEND":
                item = self.stack.pop()
                self.add_items(self.stack[-1], [item])
            case "APPENDS":
                items = self.close_mark()
                self.add_items(self.stack[-1], items)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self.set_items(self.stack[-1], [(key, value)])
            case "SETITEMS":
                items = self.close_mark()
                self.set_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(_known(argument.replace(" ", ".")))
            case "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                push(self.result(function, arguments))
            case "NEWOBJ":
                arguments, made_of = self.stack.pop(), self.stack.pop()
                push(self.new(made_of, arguments))
            case "BUILD":
                state = self.stack.pop()
                self.set_attributes(self.stack[-1], state)
            case "BINPERSID":
                push(self.stored(self.stack.pop()))
            case _:
                raise ValueError(f"opcode {opcode}")

    def close_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def add_items(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise ValueError(f"a {type(target).__name__} with items")
        target.extend(items)

    def set_items(self, target: Any, items: Iterable[tuple[Any, Any]]) -> None:
        if type(target) is not dict:
            raise ValueError(f"a {type(target).__name__} with keys")
        for key, value in items:
            # Of other keys, and of longer numbers, a million could be made that all have the same hash.
            if type(key) is not str and not (type(key) is int and abs(key) < 2**60):
                raise ValueError(f"a {type(key).__name__} as a key")
            target[key] = value

    def new(self, made_of: Any, arguments: Any) -> Any:
        """An object as `cls.__new__` makes it."""
        if not isinstance(made_of, _Name) or type(arguments) is not tuple:
            raise ValueError("an object of no class")
        if made_of.name == "collections.OrderedDict":
            return {}
        return _Object(made_of.name)

    def set_attributes(self, target: Any, state: Any) -> None:
        """Those of dicts and tensors are left out, such as the `_metadata` of a state dict, which is a plain dict
        here."""
        if isinstance(target, np.dtype) and type(state) is tuple and state[1] != ">":
            return
        if isinstance(target, _Object):
            for part in state if type(state) is tuple else (state,):  # attributes, and those in slots
                if part is not None:
                    self.set_items(target.state, part.items())
            return
        if not isinstance(target, dict | Tensor):
            raise ValueError(f"a {type(target).__name__} with attributes")

    def stored(self, identity: Any) -> _Storage | _Name:
        """What stands beside the pickle: a storage, or a module's class with its source, which nobody reads."""
        match identity:
            case "module", _Name() as made_of, _, _:
                return made_of
            case "storage", _Name(name), str(key), str(), int(count):
                view = None
            case "storage", _Name(name), str(key), str(), int(count), view:
                pass
            case _:
                raise ValueError("a storage without its description")
        if not 0 <= count < 2**63:
            raise ValueError("a storage of an impossible size")
        values = self.load_storage(key, STORAGES[name], count)
        if view is None:
            return _Storage(values)
        _, start, length = view  # a part of the storage, before torch 0.4
        if not 0 <= start <= start + length <= count:
            raise ValueError("a view beyond its storage")
        return _Storage(values[start : start + length])

    def result(self, function: Any, arguments: Any) -> Any:
        """What a call of a known function gives."""
        if not isinstance(function, _Name):
            raise ValueError(f"a {type(function).__name__} is called")
        match function.name, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "collections.OrderedDict", (list(pairs),):  # Python 2; used up, so that none can be multiplied
                ordered: dict[Any, Any] = {}
                self.set_items(ordered, pairs)
                pairs.clear()
                return ordered
            case "collections.Counter", (dict(counts),):
                return counts
            case "torch.Size", (tuple(size),):
                return size
            case "torch.device", (str(kind), *_):
                return kind
            case "builtins.complex" | "__builtin__.complex", (float(real), float(imaginary)):
                return complex(real, imaginary)
            case "__builtin__.bytes", ():
                return b""
            case "_codecs.encode", (str(text), "latin1") if len(text) <= LONGEST_BYTES:
                return text.encode("latin1")
            case "numpy.dtype", (str(code), *_) if code in NUMPY_CODES:
                return np.dtype(f"<{code}")
            case name, (np.dtype() as dtype, bytes(raw)) if name in NUMPY_SCALARS:
                return np.frombuffer(raw, dtype).item()
            case "torch._utils._rebuild_tensor", (_Storage(values), offset, tuple(size), tuple(stride)):
                return _view(values, offset, size, stride)
            case "torch._utils._rebuild_tensor_v2", (_Storage(values), offset, tuple(size), tuple(stride), *_):
                return _view(values, offset, size, stride)
            case "torch._utils._rebuild_parameter", (Tensor() as values, *_):
                return values
            case name, (Tensor() as values, *_) if name in PARAMETERS:  # before torch 0.4
                return values
            case name, (list(),) if name in SETS:
                return _Object(name)
            case name, (_Name() as made_of, _Name("builtins.object" | "__builtin__.object"), None) if (
                name in RECONSTRUCTORS
            ):
                return _Object(made_of.name)
            case "torch.nn.backends.thnn._get_thnn_function_backend", ():
                return _Object(function.name)
        if function.name in KNOWN_CALLS:
            raise ValueError(f"{function.name} of other arguments than its own")
        raise _refused(function.name)


class _Plain:
    """Turns objects into what they store, in place."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        """By identity, also of what is being turned."""
        self.count = 0
        """Of modules and their weights."""
        self.kept: list[Any] = []
        """What has an identity in `done` must not go away."""

    def __call__(self, root: Any) -> Any:
        """Raises `CheckpointError` if it is nothing but an object without weights."""
        value = self.plain(root, 0)
        if isinstance(value, _Name | _Object):
            raise _refused(value.name if isinstance(value, _Name) else value.class_name)
        return value

    def plain(self, value: Any, depth: int) -> Any:
        """An `_Object` without weights and a `_Name` stay, for the caller to leave out."""
        if not isinstance(value, dict | list | tuple | _Object):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        if depth > 2 * DEEPEST_NESTING:
            raise CheckpointError("refused: its values are nested too deep")
        self.kept.append(value)
        self.done[id(value)] = value
        found: Any = value
        if isinstance(value, _Object):
            if {"_parameters", "_modules"} <= value.state.keys():
                found = dict(self.weights(value, "", 0))
            elif value.class_name == "argparse.Namespace":
                found = self.plain(value.state, depth + 1)
        elif isinstance(value, dict):
            for key, item in [(key, self.plain(item, depth + 1)) for key, item in value.items()]:
                if isinstance(item, _Name | _Object):
                    del value[key]
                else:
                    value[key] = item
        else:
            items = [self.plain(item, depth + 1) for item in value]
            items = [None if isinstance(item, _Name | _Object) else item for item in items]
            if isinstance(value, list):
                value[:] = items
            elif any(a is not b for a, b in zip(value, items, strict=True)):
                found = tuple(items)
        self.done[id(value)] = found
        return found

    def weights(self, module: _Object, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        """The state dict of a module, as `torch.nn.Module.state_dict` makes it."""
        if depth > DEEPEST_NESTING or len(prefix) > LONGEST_PREFIX:
            raise CheckpointError("refused: its modules are nested too deep")
        for kind in ("_parameters", "_buffers", "_modules"):
            content = module.state.get(kind, {})
            if type(content) is not dict:
                raise ValueError(f"a module's {kind} are a {type(content).__name__}")
            for name, value in content.items():
                if isinstance(value, Tensor) and kind != "_modules":
                    self.count += 1
                    yield f"{prefix}{name}", value
                elif isinstance(value, _Object) and kind == "_modules":
                    self.count += 1
                    yield from self.weights(value, f"{prefix}{name}.", depth + 1)
                if self.count > MOST_WEIGHTS:
                    raise CheckpointError("refused: a small file that stands for a huge one")


def _refused(name: str) -> CheckpointError:
    shown = one_line(name)
    return CheckpointError(
        f"refused: reading it would run code from the file ({shown}); save the state dict alone"
    )


def _known(name: str) -> str | _Name:
    if name in DTYPES:
        return name
    if name in KNOWN_CALLS or name in STORAGES:
        return _Name(name)
    if name.startswith("torch.storage."):
        raise _refused(name)
    shown = one_line(name)
    if name.startswith(("torch._utils.", "torch._tensor.", "torch.nn.parameter.")) or name.endswith("Storage"):
        raise CheckpointError(f"holds what is not a plain tensor ({shown}); save a state dict of plain tensors")
    return _Name(name)


def _view(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor in a storage, (n,), which isn't asked for values beyond its end, nor for more than it has: strides
    of 0 would make 10^12 values out of one."""
    if not len(size) == len(stride) <= MOST_DIMENSIONS:
        raise ValueError("a tensor of other dimensions than its strides")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise ValueError("a tensor's size is no number")
    claimed, allowed = math.prod(max(n, 1) for n in size), len(values) if all(size) else LARGEST_EMPTY
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else -1
    if claimed > allowed or offset + last >= len(values):
        shape = " × ".join(map(str, size)) or "1"
        raise CheckpointError(f"damaged (a tensor of {shape} values from {offset} on, {len(values)} are stored)")
    return values.as_strided(size, stride, values.storage_offset() + offset)


def _check_extent(root: Any, most_bytes: int) -> None:
    """Holds back what is short in a pickle and endless on a walk: lists in themselves, doublings of doublings."""
    level, count, num_bytes = [root], 0, 0
    for _ in range(DEEPEST_NESTING):
        for value in level:
            if type(value) not in PLAIN_TYPES:
                raise ValueError(f"a {type(value).__name__} as a value")
            count += len(value) if isinstance(value, str | bytes | list | tuple | dict) else 1
            num_bytes += value.nbytes if isinstance(value, Tensor) else 0
        if count > MOST_VALUES or num_bytes > most_bytes:
            raise CheckpointError("refused: a small file that stands for a huge one")
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise CheckpointError("refused: its values are nested too deep")


def _children(value: Any) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, dict):
        return *value, *value.values()
    return value if isinstance(value, list | tuple) else ()
