"""JSON as typed data: what is accepted, and how what isn't is named."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from blockdrop import typed_json
from blockdrop.errors import BlockdropError
from blockdrop.ranges import Range
from blockdrop.typed_json import read_json, typed


@dataclass(frozen=True)
class Part:
    share: Annotated[float, Range(least=0, most=1)]
    name: str | None


@dataclass(frozen=True)
class Whole:
    count: Annotated[int, Range(least=1)]
    threshold: Annotated[float, Range(above=0, below=1)]
    parts: list[Part]
    by_number: dict[int, bool]
    anything: Any = None
    notes: list[str] = field(default_factory=list)


CONTENT: dict[str, Any] = {
    "count": 2, "threshold": 0.5, "parts": [{"share": 1, "name": None}, {"share": 0.25, "name": "b"}],
    "by_number": {"10": True}, "anything": {"deep": [None]},
}  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    whole = Whole(2, 0.5, [Part(1, None), Part(0.25, "b")], {10: True}, {"deep": [None]})
    assert typed(Whole, CONTENT) == typed(Whole, json.loads(json.dumps(asdict(whole)))) == whole
    assert typed(Whole, {**CONTENT, "of a later version": 1}) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "damaged in its count (0: must be at least 1)"),
        ({"count": 1.5}, "damaged in its count (1.5: must be a whole number)"),
        ({"count": True}, "damaged in its count (True: must be a whole number)"),
        ({"threshold": 1}, "damaged in its threshold (1: must be above 0 and below 1)"),
        ({"threshold": float("nan")}, "damaged in its threshold (nan: must be a finite number)"),
        ({"threshold": 10**400}, f"damaged in its threshold (1{'0' * 36}...: must be a finite number)"),
        ({"threshold": "0.5"}, "damaged in its threshold ('0.5': must be a finite number)"),
        ({"parts": {}}, "damaged in its parts ({}: must be a list)"),
        ({"parts": [7]}, "damaged in its parts[0] (7: must be an object)"),
        (
            {"parts": [{"share": 2, "name": "a"}]},
            "damaged in its parts[0].share (2: must be between 0 and 1)",
        ),
        ({"parts": [{"share": 0, "name": 3}]}, "damaged in its parts[0].name (3: must be a text)"),
        ({"parts": [{"share": 0}]}, "damaged in its parts[0].name, which is missing"),
        ({"by_number": {"ten": True}}, "damaged in its by_number ('ten': must have whole numbers for keys)"),
        ({"by_number": {"10": 1}}, "damaged in its by_number.10 (1: must be true or false)"),
        ({"notes": ["a\nb", 1]}, "damaged in its notes[1] (1: must be a text)"),
        ({"notes": "a\n\udc80"}, r"damaged in its notes ('a\n\udc80': must be a list)"),
    ],
    ids=str,
)
def test_a_damaged_field_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockdropError) as error:
        typed(Whole, {**CONTENT, **changes})
    assert str(error.value) == message


def test_files_are_read_with_a_digest_of_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_text("[1] ")
    (one, first), (other, second) = (read_json(tmp_path / name) for name in ("a.json", "b.json"))
    assert one == other == [1]
    assert first != second
    assert len(first) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged, no JSON (Expecting property name"),
        (b"\xff\xfe", "damaged, no JSON"),
        (b"[" * 100_000, "damaged, no JSON"),
        (b"9" * 5000, "damaged, no JSON"),
        (None, "can't be read (No such file or directory)"),
    ],
    ids=["cut off", "bytes", "deep", "long", "missing"],
)
def test_what_is_no_json_is_told_in_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BlockdropError) as error:
        read_json(path)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_json, "LARGEST_FILE", 1 << 20)
    (tmp_path / "a.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BlockdropError, match=r"^larger than 1 MiB$"):
        read_json(tmp_path / "a.json")
