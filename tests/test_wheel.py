"""The wheel: one top-level name, under which everything works."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import blockdrop

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def build_wheel(tree: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds in a copy of the project, as setuptools leaves files behind."""
    return subprocess.run(
        [sys.executable, "-c", BUILD, folder], cwd=tree, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a checkout has that goes into a wheel."""
    tree = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if not name.startswith(("docs/", "tests/")) and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = build_wheel(tree, folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_a_wheel_has_one_top_level_name_and_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"blockdrop-{blockdrop.__version__}.dist-info"
        assert {name.split("/")[0] for name in names} == {"blockdrop", info}
        assert archive.read(f"{info}/top_level.txt").split() == [b"blockdrop"]
        assert email.message_from_bytes(archive.read(f"{info}/METADATA"))["Name"] == "blockdrop"
        assert "blockdrop = blockdrop.__main__:main" in archive.read(f"{info}/entry_points.txt").decode()
    for floor in ("agents", "blockdrop", "experiments"):
        for file in (ROOT / floor).rglob("*"):
            if file.suffix in (".py", ".js", ".css", ".html", ".typed"):
                name = file.relative_to(ROOT).as_posix()
                assert (name if floor == "blockdrop" else f"blockdrop/{name}") in names


def test_what_a_wheel_installs_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = (
        "import blockdrop.gym, blockdrop.experiments.mutants, gymnasium, sys\n"
        "spec = gymnasium.spec('BlockDrop-v0')\n"
        "for entry in (spec.entry_point, spec.vector_entry_point):\n"
        "    assert entry.startswith('blockdrop.agents.envs:')\n"
        "assert not {'agents', 'experiments'} & sys.modules.keys()\n"
        "print(blockdrop.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for arguments, expected in (
        (["-c", code], str(tmp_path / "installed" / "blockdrop" / "__init__.py")),
        (["-m", "blockdrop", "--help"], "usage: python -m blockdrop COMMAND"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)


def test_an_import_that_cannot_be_moved_ends_the_build(tree: Path, tmp_path: Path) -> None:
    (tree / "blockdrop" / "odd.py").write_text("import agents.envs\n")
    try:
        done = build_wheel(tree, tmp_path)
    finally:
        (tree / "blockdrop" / "odd.py").unlink()
    assert done.returncode != 0
    assert "blockdrop/odd.py: line 1: write from agents.envs import" in done.stderr
    assert list(tmp_path.glob("*.whl")) == []
