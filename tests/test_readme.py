"""The README's Python runs as it is written, on stand-ins for the files that it names."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18
from torchvision.utils import save_image

import blockdrop

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CHECKPOINT = "ckpt_E_0_A_0.100_R_-1.00E+00_S_15.00_#_1.t7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a torchvision ResNet's weights, and runs of a dynamic network, its backbone, and a plain net."""
    folder = tmp_path_factory.mktemp("readme")
    for part in ("train", "test"):
        for name in ("ant", "bee", "cat", "dog"):
            (folder / "photos" / part / name).mkdir(parents=True)
            for number in range(2):
                save_image(torch.rand(3, 48, 64), folder / "photos" / part / name / f"{number}.png")
    torch.save(resnet18(num_classes=4).state_dict(), folder / "resnet18.pt")
    dynamic = blockdrop.make_dynamic("R32_C10")
    backbone = dynamic.with_network(dynamic.network)
    plain = dynamic.with_network(blockdrop.build_static("plain20_C10"), "plain20_C10")
    for run, network in (("r32-ft", dynamic), ("r32", backbone), ("plain20", plain)):
        (folder / "cv" / run).mkdir(parents=True)
        network.save(folder / "cv" / run / CHECKPOINT)
    return folder


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(SNIPPETS[number].replace("epochs=10", "epochs=1"), {})
