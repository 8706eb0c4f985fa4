"""The examples are short, and run as they are on the little that they make up themselves."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples_and_they_are_short() -> None:
    assert [path.stem for path in EXAMPLES] == ["own_network", "timm_network", "torchvision_resnet50"]
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) < 40, path


@pytest.mark.long
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "import timm" in path.read_text():
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert "as brought" in out
    assert "dynamic" in out
    assert (tmp_path / "mine.t7").is_file()


@pytest.mark.long
@pytest.mark.parametrize("name", ["engineer", "researcher"])
def test_a_notebook_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "engineer":
        for package in ("onnxruntime", "onnxscript"):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(re.sub(r"^%.*$", "", cell, flags=re.MULTILINE) for cell in cells)
    digits = 'blockdrop.data.DataSource("Digits").test'
    few = {
        "epochs=12": "epochs=2",
        "repeats = 3, 2000": "repeats = 3, 50",
        digits: f"{digits}.subset(torch.arange(60))",
    }
    for whole, less in few.items():
        code = code.replace(whole, less)
    exec(code, {"__name__": "notebook"})
    out = capsys.readouterr().out
    assert {"engineer": "the first digit: 0, true: 0", "researcher": "antithetic 4"}[name] in out
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert outputs, "the notebook shows what comes out"
    assert not any(output["output_type"] == "error" for output in outputs)
