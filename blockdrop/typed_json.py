"""JSON as typed data: what a file holds is checked against the annotations of a dataclass."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from blockdrop.errors import BlockdropError, require
from blockdrop.ranges import Range

LARGEST_FILE = 256 << 20
"""Bytes."""
LARGEST_NUMBER = 1e300
"""Numbers of this size or more, and NaN, are none that we write."""


def read_json(path: Path) -> tuple[Any, str]:
    """What a JSON file holds, and a digest of its bytes: 16 hexadecimal digits.

    Raises:
        BlockdropError: it can't be read, is larger than `LARGEST_FILE`, or no JSON. The message doesn't name the
            file.
    """
    try:
        require(path.stat().st_size <= LARGEST_FILE, f"larger than {LARGEST_FILE >> 20} MiB")
        raw = path.read_bytes()
    except OSError as error:
        raise BlockdropError(f"can't be read ({error.strerror})") from None
    try:
        return json.loads(raw), hashlib.sha256(raw).hexdigest()[:16]
    except (ValueError, RecursionError) as error:
        raise BlockdropError(f"damaged, no JSON ({str(error).splitlines()[0][:80]})") from None


def typed(kind: Any, content: object, name: str = "") -> Any:
    """What JSON gave, as a value of a kind: a dataclass, list, dictionary, text, number (finite; in a `Range` if
    it is `Annotated` with one), any of these or None, or `Any`. Keys that a dataclass doesn't have are left out.

    Args:
        name: of the content, which the names of its fields are added to.
    Raises:
        BlockdropError: a line that names the field, and its value.

    >>> typed(dict[str, list[Annotated[float, Range(least=0, most=1)]]], {"a": [0.5, 2]})
    Traceback (most recent call last):
    ...
    blockdrop.errors.BlockdropError: damaged in its a[1] (2: must be between 0 and 1)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return content
    if origin is Annotated:
        value = typed(parts[0], content, name)
        for rule in parts[1:]:
            if isinstance(rule, Range):
                check_field(value in rule, name, content, f"must be {rule.demand()}")
        return value
    if origin in (Union, UnionType):
        (other,) = (part for part in parts if part is not NoneType)
        return None if content is None else typed(other, content, name)
    if origin is list:
        check_field(isinstance(content, list), name, content, "must be a list")
        assert isinstance(content, list)
        return [typed(parts[0], one, f"{name}[{number}]") for number, one in enumerate(content)]
    if origin is dict:
        check_field(isinstance(content, dict), name, content, "must be an object")
        assert isinstance(content, dict)
        return {_key(parts[0], key, name): typed(parts[1], one, _join(name, key)) for key, one in content.items()}
    if is_dataclass(kind):
        check_field(isinstance(content, dict), name, content, "must be an object")
        assert isinstance(content, dict)
        return _dataclass(kind, content, name)
    check_field(_is(kind, content), name, content, f"must be {WORDS[kind]}")
    return content


WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a finite number"}


def _is(kind: Any, content: object) -> bool:
    if kind in (str, bool):
        return isinstance(content, kind)
    number = isinstance(content, int if kind is int else int | float) and not isinstance(content, bool)
    return number and abs(content) < LARGEST_NUMBER  # type: ignore[arg-type]


def _dataclass(kind: Any, content: dict[str, Any], name: str) -> Any:
    hints, given = get_type_hints(kind, include_extras=True), {}
    for one in fields(kind):
        if one.name in content:
            given[one.name] = typed(hints[one.name], content[one.name], _join(name, one.name))
        elif one.default is MISSING and one.default_factory is MISSING:
            raise BlockdropError(f"damaged in its {_join(name, one.name)}, which is missing")
    return kind(**given)


def _key(kind: Any, key: str, name: str) -> Any:
    """JSON's keys are texts."""
    if kind is not int:
        return key
    check_field(key.isascii() and key.isdecimal() and len(key) < 20, name, key, "must have whole numbers for keys")
    return int(key)


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def check_field(condition: bool, name: str, value: object, wanted: str) -> None:
    """Raises `BlockdropError` unless the condition holds.

    Args:
        wanted: what would be right.
    """
    if not condition:
        text = ascii(value)
        raise BlockdropError(f"damaged in its {name} ({text if len(text) <= 40 else f'{text[:37]}...'}: {wanted})")
