"""The three floors: an import goes down, never up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("floor", "above"),
    [("agents", {"blockdrop", "experiments", "tests"}), ("blockdrop", {"experiments", "tests"})],
)
def test_no_import_goes_up(floor: str, above: set[str]) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: write imports in full"
                names = [node.module or ""]
            assert not above & {name.split(".")[0] for name in names}, file
