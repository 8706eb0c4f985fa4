"""The quickstart on a tiny budget."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments import quickstart


@pytest.mark.long
def test_quickstart_runs_to_its_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = quickstart.QuickstartConfig(
        model="R8_Digits",
        cv_dir=str(tmp_path / "q"),
        pretrain_epochs=1,
        curriculum_epochs=1,
        finetune_epochs=1,
        answer_epochs=1,
    )
    found = quickstart.main(config)
    out = capsys.readouterr().out
    table = out[out.index("full, as pretrained") :].splitlines()
    assert re.match(r"full, as pretrained +\d+\.\d\d% +3\.00 +2\.\d+e\+07 +100\.0%", table[0])
    assert re.match(r"full, fine-tuned +\d+\.\d\d% +3\.00 +2\.\d+e\+07 +100\.0% +\d+", table[1])
    assert re.match(r"dynamic +\d+\.\d\d% +\d\.\d\d +\d\.\d+e\+07 +\d+\.\d% +\d+", table[2])
    assert re.match(r"dynamic, with answers +\d+\.\d\d% +\d\.\d\d +\d\.\d+e\+0\d +\d+\.\d% +\d+", table[3])
    assert "of the digits were answered by a policy network alone" in out
    assert found.evaluation.policy_network_flops < found.evaluation.full_flops / 10
    with Image.open(tmp_path / "q" / "quickstart.png") as picture:
        assert picture.size == (1650, 690)


def test_a_second_quickstart_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert quickstart.free_folder(None) == Path("cv/quickstart")
    Path("cv/quickstart").mkdir(parents=True)
    Path("cv/quickstart-2").mkdir()
    assert quickstart.free_folder(None) == Path("cv/quickstart-3")
    assert quickstart.free_folder("mine") == Path("mine")


def test_flags_are_checked_before_anything_runs(command: Any, tmp_path: Path) -> None:
    code, _, error = command(quickstart, "--finetune_epochs", 0, "--cv_dir", tmp_path / "q")
    assert (code, error) == (2, "error: --finetune_epochs 0: must be at least 1")
    assert not (tmp_path / "q").exists()


def test_other_data_sets_are_refused(command: Any) -> None:
    code, _, error = command(quickstart, "--model", "R20_C10")
    assert code == 2
    assert "the quickstart runs on Digits" in error
