"""Every study keeps the name by which results call it, and has one name inside the code."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("measurements", "robustness")
MOVED = sorted(file for folder in FOLDERS for file in (ROOT / "experiments" / folder).glob("[a-z]*.py"))


@pytest.mark.parametrize("file", MOVED, ids=lambda file: file.stem)
def test_a_study_in_a_folder_goes_by_its_short_name_too(file: Path) -> None:
    spec = importlib.util.find_spec(f"experiments.{file.stem}")
    assert spec is not None
    assert spec.origin == str(file)


def test_nobody_imports_a_study_by_its_short_name() -> None:
    short = {f"experiments.{file.stem}" for file in MOVED}
    for file in (
        file for room in ("agents", "blockdrop", "experiments", "tests") for file in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not short & set(names), file
