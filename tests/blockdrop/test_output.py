"""Files that a flag names are checked before the work and written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockdrop.errors import UserError
from blockdrop.output import check_writable, write_json


def test_an_earlier_file_is_replaced_only_if_asked(tmp_path: Path) -> None:
    write_json("--json", tmp_path / "a.json", {"a": 1})
    with pytest.raises(UserError, match=r"--json .*a\.json: exists; pass --overwrite"):
        check_writable("--json", tmp_path / "a.json", overwrite=False)
    check_writable("--json", tmp_path / "a.json", overwrite=True)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("name", "message"), [("", "not a file name"), ("missing/a.json", "no folder"), ("x" * 250, "not a file name")]
)
def test_a_name_that_can_not_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_writable("--json", tmp_path / name, overwrite=True)


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").touch()
    with pytest.raises(UserError, match="not writable"):
        write_json("--json", folder, {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (folder / "inside").exists()
