"""Networks that come with the checkout, and where else a name may lead."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import blockdrop
from blockdrop import evaluate
from blockdrop.data import Images
from blockdrop.errors import BlockdropError, CheckpointError
from blockdrop.measure import evaluate_images
from blockdrop.models.checkpoints.places import VARIABLE, pretrained_folder

DIGITS = ("digits-r26", "digits-r26-answers")
NAMES = ("cifar10-r32-answers", *DIGITS)


@pytest.mark.parametrize("name", DIGITS)
def test_a_network_gives_the_numbers_of_its_card(name: str) -> None:
    card = evaluation_of(name)
    config = evaluate.EvaluateConfig(load=(name,), speed=False, device="cpu")
    found = evaluate.main(config).evaluation
    for field in ("accuracy", "full_accuracy", "block_usage_mean", "flops_mean"):
        assert getattr(found, field) == pytest.approx(card[field], rel=0.005), field
    assert found.brought_accuracy == card["brought_accuracy"]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_was_measured(name: str) -> None:
    evaluation = evaluation_of(name)
    text = " ".join((pretrained_folder() / name / "card.md").read_text(encoding="utf-8").split())
    assert f"accuracy {evaluation['accuracy']:.1%}".replace("%", " %") in text
    assert f"{1 - evaluation['flops_saved']:.1%}".replace("%", " %") + " of the FLOPs" in text


def test_the_network_for_photos_is_right_where_its_card_says(photos: Images) -> None:
    """On every tenth photo, as far as rounding on another processor lets it be."""
    name = "cifar10-r32-answers"
    evaluation, some = evaluation_of(name), torch.arange(0, len(photos), 10)
    outcomes = evaluate_images(blockdrop.load(name), photos.subset(some))
    right = torch.tensor([digit == "1" for digit in evaluation["right"]])[some]
    assert (outcomes.correct != right).sum() <= 5
    assert outcomes.answered is not None
    assert outcomes.answered.double().mean().item() == pytest.approx(evaluation["answered"], abs=0.05)
    assert outcomes.flops.double().mean().item() == pytest.approx(evaluation["flops_mean"], rel=0.1)


def evaluation_of(name: str) -> dict[str, Any]:
    found = json.loads((pretrained_folder() / name / "evaluation.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_networks_are_listed_with_what_they_are() -> None:
    found = blockdrop.pretrained()
    assert tuple(found) == NAMES
    assert found["digits-r26"].startswith("A ResNet-26 for handwritten digits")
    assert all(line.endswith(".") for line in found.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published network under another name, in another folder."""
    shutil.copytree(pretrained_folder() / "digits-r26", tmp_path / "shelf" / "mine")
    return tmp_path / "shelf"


def test_another_folder_is_a_shelf_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(blockdrop.pretrained(folder)) == ["mine"]
    assert blockdrop.load(folder / "mine").model == "R26_Digits"
    with pytest.raises(
        CheckpointError, match="mine: no such checkpoint file; known by name: cifar10-r32-answers, d"
    ):
        blockdrop.load("mine")
    monkeypatch.setenv(VARIABLE, str(folder))
    assert blockdrop.load("mine").model == "R26_Digits"


def test_what_lies_on_the_disk_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blockdrop.make_dynamic("R8_Digits").save("digits-r26")
    assert blockdrop.load("digits-r26").model == "R8_Digits"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The folder's URL."""
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_url_is_fetched_once(server: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert blockdrop.load(f"{server}/mine").model == "R26_Digits"
    assert blockdrop.load(f"{server}/mine/model.safetensors").model == "R26_Digits"
    assert len(list((tmp_path / "hub").rglob("*.safetensors"))) == 1
    (folder / "page.t7").write_text("<html>")
    with pytest.raises(CheckpointError, match=r"page\.t7: is a page, not a checkpoint"):
        blockdrop.load(f"{server}/page.t7")
    assert not list((tmp_path / "hub").rglob("page.t7")), "and isn't kept"
    with pytest.raises(CheckpointError, match=r"/nothing/model\.safetensors: can't be fetched \(.*404"):
        blockdrop.load(f"{server}/nothing")


def test_the_hub_is_asked_for_a_networks_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if not (folder / file).exists():
            raise OSError("404 Client Error\nmore")
        return str(folder / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    assert blockdrop.load("hf://someone/nets/mine").model == "R26_Digits"
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be fetched \(404 Client Error\)"):
        blockdrop.load("hf://someone/nets")
    assert asked == [("someone/nets", "mine/model.safetensors"), ("someone/nets", "model.safetensors")]
    with pytest.raises(CheckpointError, match="must be hf://owner/repository"):
        blockdrop.load("hf://nets")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BlockdropError, match="pip install huggingface_hub"):
        blockdrop.load("hf://someone/nets")


def test_half_the_space_is_for_weights_alone(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    from blockdrop import export

    flags = ("--load", "digits-r26", "--half", "--format", "onnx", "--output", tmp_path / "a.onnx")
    code, _, error = command(export, *flags)
    assert (code, error) == (2, "error: --half: goes with --format safetensors")


def test_a_weight_that_float16_cannot_hold_is_refused(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    from blockdrop import export

    dynamic = blockdrop.make_dynamic("R8_Digits")
    dynamic.network.bn1.running_var.fill_(1e5)  # type: ignore[union-attr]
    dynamic.save(tmp_path / "c.t7")
    output = tmp_path / "c.safetensors"
    flags = ("--load", tmp_path / "c.t7", "--half", "--format", "safetensors", "--output", output)
    code, _, error = command(export, *flags)
    assert (code, error) == (2, "error: --half: a weight is too large for float16; leave --half out")
    assert not output.exists()
