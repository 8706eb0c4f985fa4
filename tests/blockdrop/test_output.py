"""Files that a flag names are checked before the work and written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from blockdrop.errors import BlockdropError
from blockdrop.output import check_writable, sync, write_json, write_whole


def test_an_earlier_file_is_replaced_only_if_asked(tmp_path: Path) -> None:
    write_json("--json", tmp_path / "a.json", {"a": 1})
    with pytest.raises(BlockdropError, match=r"--json .*a\.json: exists; pass --overwrite"):
        check_writable("--json", tmp_path / "a.json", overwrite=False)
    check_writable("--json", tmp_path / "a.json", overwrite=True)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("name", "message"), [("", "not a file name"), ("missing/a.json", "no folder"), ("x" * 250, "not a file name")]
)
def test_a_name_that_can_not_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        check_writable("--json", tmp_path / name, overwrite=True)


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").touch()
    with pytest.raises(BlockdropError, match="not writable"):
        write_json("--json", folder, {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (folder / "inside").exists()


def test_a_link_in_the_temporary_files_place_is_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "a.json.tmp").symlink_to(precious)
    write_json("--json", tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert precious.read_text() == "precious"
    assert not (tmp_path / "a.json").is_symlink()


def test_a_full_disk_that_torch_hides_is_named(tmp_path: Path) -> None:
    def write(_file: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("enforce fail at inline_container.cc:672")  # noqa: B904 (as torch.save does)

    with pytest.raises(OSError, match="No space left on device"):
        write_whole(tmp_path / "a.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_syncs_no_folders_and_no_read_only_files_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows, and some file systems over a network."""
    original = os.open

    def opened(path: Any, flags: int, mode: int = 0o777) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, flags, mode)

    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", fsync)
    write_json("--json", tmp_path / "a.json", {"a": 1})
    sync(tmp_path / "a.json")
    sync(tmp_path)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
