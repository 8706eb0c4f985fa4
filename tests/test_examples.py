"""The examples are short, and run as they are on the little that they make up themselves."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples_and_they_are_short() -> None:
    assert [path.stem for path in EXAMPLES] == ["own_network", "timm_network", "torchvision_resnet50"]
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 40, path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    if "import timm" in path.read_text() and importlib.util.find_spec("timm") is None:
        pytest.skip("timm isn't installed")
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "as brought" in done.stdout
    assert "dynamic" in done.stdout
    assert (tmp_path / "mine.t7").is_file()
