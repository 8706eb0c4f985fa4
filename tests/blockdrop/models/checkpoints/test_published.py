"""Weights that others publish: fetched once, and every failure named."""

import http.client
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.published import torchvision_checkpoint
from blockdrop.models.specs import parse_model_name
from blockdrop.models.zoo import build_static


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's hub folder, empty; there is no network."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "hub"


def test_torchvisions_weights_that_cannot_be_fetched_are_named_with_the_mend(hub: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"https://download\.pytorch\.org/models/resnet18-f37072fd\.pth can't be fetched "
        r"to .*checkpoints \(.*no route to host.*\); fetch it by other means and name the file",
    ):
        torchvision_checkpoint(parse_model_name("R18_ImgNet"))
    assert [path for path in hub.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("error", [TimeoutError(), RuntimeError(""), http.client.BadStatusLine("x")])
def test_every_way_to_fail_to_fetch_is_one_line(
    hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(CheckpointError, match="can't be fetched"):
        torchvision_checkpoint(parse_model_name("R18_ImgNet"))


def test_a_hub_folder_that_cannot_be_made_is_named(hub: Path) -> None:
    hub.write_text("a file")
    with pytest.raises(CheckpointError, match=f"can't be fetched to {hub}/checkpoints"):
        torchvision_checkpoint(parse_model_name("R18_ImgNet"))


def test_torchvisions_weights_are_fetched_once_and_checked_each_time(hub: Path) -> None:
    (hub / "checkpoints").mkdir(parents=True)
    torch.save(build_static("resnet18_ImgNet").state_dict(), hub / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(CheckpointError, match="doesn't have the hash that its name promises"):
        torchvision_checkpoint(parse_model_name("resnet18_ImgNet"))


@pytest.mark.parametrize(
    "model",
    ["R20_C10", "resnet110_C100", "plain18_ImgNet", "dsplain50_ImgNet", "exactplain18_C10", "shiftresnet20_C10"],
)
def test_torchvision_has_no_weights_for_other_networks(hub: Path, model: str) -> None:
    architecture = model.partition("_")[0]
    message = f"torchvision has no weights for {architecture}; it has ResNets of depth 18, 34, 50, 101, 152"
    with pytest.raises(CheckpointError, match=message):
        torchvision_checkpoint(parse_model_name(model))
