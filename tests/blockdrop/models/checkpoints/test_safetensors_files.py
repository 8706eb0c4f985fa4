"""Checkpoints of the safetensors format, ours and others'."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import blockdrop
from blockdrop import count, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.errors import BlockdropError, CheckpointError
from blockdrop.export import ExportConfig, open_networks
from blockdrop.inference.exported import write_safetensors
from blockdrop.models.checkpoints import safetensors_files
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_checkpoint, network_from
from blockdrop.models.checkpoints.safetensors_files import write_safetensors_file
from blockdrop.models.specs import parse_model_name
from blockdrop.models.zoo import build
from experiments.robustness.samples import as_torchvision

pytest.importorskip("safetensors")
Files = tuple[dict[str, torch.Tensor], dict[str, str]]


@pytest.fixture
def sound(tmp_path: Path) -> Files:
    """Tensors and metadata of a ResNet-8 with its policy network, and sound.safetensors of them."""
    resnet, policy_network = build("R8_C10", num_classes=3)
    path = tmp_path / "net.t7"
    save_checkpoint(
        path, model="R8_C10", resnet=resnet, policy_network=policy_network, normalisation=NORMALISATIONS["half"]
    )
    config = ExportConfig(
        model="R8_C10", load=(str(path),), format="safetensors", output="x.safetensors", threshold=0.3
    )
    networks = open_networks(config)
    write_safetensors(networks, tmp_path / "sound.safetensors")
    parts = {"resnet": resnet, "policy_network": policy_network}
    tensors = {f"{part}.{key}": v.clone() for part, net in parts.items() for key, v in net.state_dict().items()}
    return tensors, networks.metadata()


def test_commands_load_it_like_any_checkpoint(
    tmp_path: Path, sound: Files, command: Callable[..., tuple[int, str, str]]
) -> None:
    flags = ("--model", "R8_C10", "--load")
    expected = command(count, *flags, tmp_path / "net.t7")
    assert command(count, *flags, tmp_path / "sound.safetensors") == tuple(
        text.replace("net.t7", "sound.safetensors") if isinstance(text, str) else text for text in expected
    )
    assert expected[0] == 0
    point = read_checkpoint(tmp_path / "sound.safetensors").operating_point
    assert point is not None
    assert point["threshold"] == 0.3
    assert blockdrop.load_network(tmp_path / "sound.safetensors")[0].num_blocks == 3


def test_bare_weights_are_of_torchvisions_dialect(tmp_path: Path, make_resnet: Callable[..., Any]) -> None:
    resnet = make_resnet("R8_C10")
    write_safetensors_file(tmp_path / "bare.safetensors", as_torchvision(resnet.state_dict()), {"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "bare.safetensors")
    assert checkpoint.dialect == "torchvision"
    found = network_from(checkpoint, parse_model_name("R8_C10"), shortcut=resnet.shortcut)
    assert all(value.equal(found.state_dict()[key]) for key, value in resnet.state_dict().items())


def without(values: dict[str, Any], part: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if part not in key}


DAMAGED: dict[str, tuple[Callable[[Files], Files], str]] = {
    "incomplete": (lambda f: (without(f[0], "resnet.conv1"), f[1]), "conv1.weight is missing"),
    "nan": (lambda f: (f[0] | {"resnet.fc.bias": torch.full((3,), torch.nan)}, f[1]), "fc.bias holds values that"),
    "stray": (lambda f: (f[0] | {"teacher.fc.bias": torch.zeros(3)}, f[1]), "fc.bias belongs to no network"),
    "no head": (lambda f: (without(f[0], "resnet.fc"), f[1]), "fc.weight is missing"),
    "other kind": (lambda f: (f[0] | {"resnet.fc.bias": torch.zeros(3).cfloat()}, f[1]), "is of torch.complex64"),
    "no JSON": (lambda f: (f[0], f[1] | {"normalisation": "{"}), r"damaged metadata \("),
    "deep": (lambda f: (f[0], f[1] | {"classes": "[" * 100_000}), r"damaged metadata \("),
    "two means": (
        lambda f: (f[0], f[1] | {"normalisation": '{"mean": [1, 2], "std": [1, 1, 1]}'}), "three numbers",
    ),
    "infinite": (
        lambda f: (f[0], f[1] | {"normalisation": '{"mean": [0, 0, NaN], "std": [1, 1, 1]}'}), "finite numbers",
    ),
    "no deviation": (
        lambda f: (f[0], f[1] | {"normalisation": '{"mean": [0, 0, 0], "std": [1, 1, 0]}'}), "or normalisation",
    ),
    "no policy network": (lambda f: (f[0], f[1] | {"policy_net": "best"}), "policy network or"),
    "threshold": (lambda f: (f[0], f[1] | {"threshold": "2"}), "threshold 2 isn't between 0 and 1"),
    "other model": (lambda f: (f[0], f[1] | {"model": "R14_C10"}), "holds a ResNet-8"),
    "no model": (lambda f: (f[0], f[1] | {"model": "LeNet"}), "damaged header"),
    "network as text": (lambda f: (without(f[0], "policy_network."), f[1] | {"agent": "x"}), "no policy network"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, sound: Files, name: str) -> None:
    change, message = DAMAGED[name]
    path = tmp_path / "damaged.safetensors"
    write_safetensors_file(path, *change(sound))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_whole(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 400


def read_whole(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    resnet, policy_network = build(checkpoint.model or "R8_C10", num_classes=3)
    network_from(checkpoint, parse_model_name(checkpoint.model or "R8_C10"))
    load_checkpoint(checkpoint, resnet=resnet, policy_network=policy_network)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or not a safetensors file"),
        (b"hello, world", "damaged, or not a safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "damaged, or not a safetensors file"),
        (None, "no such checkpoint file"),
    ],
)
def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_a_tensor_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    header = json.dumps(
        {"fc.weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(CheckpointError, match="damaged, or not a safetensors file"):
        read_checkpoint(path)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(safetensors_files, "import_module", missing)
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(BlockdropError, match=r"safetensors is missing .*; pip install blockdrop\[export\]"):
        read_checkpoint(tmp_path / "x.safetensors")
