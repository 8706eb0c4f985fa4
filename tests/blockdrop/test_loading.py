"""The door: any residual network in, and out of its file again as it was; one clear line for what is neither."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import blockdrop
from blockdrop.data import Normalisation
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError, CheckpointError
from blockdrop.models.checkpoints.dialects import read_checkpoint
from tests.blockdrop.models.brought import MapBlock, Pooled
from tests.conftest import randomise_statistics

SIDE = 32


def of_torchvision() -> nn.Module:
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(block, [1, 1, 2, 1], num_classes=3, groups=2, width_per_group=8)


def of_timm() -> nn.Module:
    return pytest.importorskip("timm").create_model("resnet10t", num_classes=3)


def transformer_of_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=SIDE, embed_dim=24, depth=3, num_heads=3
    )


class Own(nn.Module):
    """Three residual blocks on maps."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.body = nn.ModuleList([MapBlock(width) for _ in range(3)])
        self.last = Pooled(width, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        for block in self.body:
            x = block(x)
        return self.last(x)


def dynamic_of(model: nn.Module | str, **options: Any) -> DynamicNetwork:
    """With BatchNorm statistics and decisions that matter, at an operating point."""
    dynamic = blockdrop.make_dynamic(
        model, **{"policy_net": "pooled", "image_size": SIDE, "classes": ["a", "b", "c"], **options}
    )
    randomise_statistics(dynamic)
    assert dynamic.policy_network is not None
    nn.init.normal_(dynamic.policy_network.logit.weight, std=1.0)
    nn.init.zeros_(dynamic.policy_network.logit.bias)
    dynamic.operating_point = {"threshold": 0.4}
    return dynamic.eval()


@torch.no_grad()
def assert_same(found: DynamicNetwork, dynamic: DynamicNetwork) -> None:
    images = torch.randn(4, 3, SIDE, SIDE)
    logits, policy = dynamic(images)
    found_logits, found_policy = found(images)
    assert found_policy.equal(policy)
    assert found_logits.equal(logits)
    for fact in ("model", "policy_net", "threshold", "operating_point", "preprocessing", "classes"):
        assert getattr(found, fact) == getattr(dynamic, fact), fact
    assert not found.training


BROUGHT = {"torchvision": of_torchvision, "timm": of_timm, "transformer": transformer_of_timm}


@pytest.mark.parametrize("make", BROUGHT.values(), ids=BROUGHT)
@pytest.mark.parametrize("suffix", [".t7", ".safetensors"])
def test_a_network_of_others_comes_back_into_a_model_of_its_class(
    tmp_path: Path, make: Callable[[], nn.Module], suffix: str
) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    model = make()
    dynamic = dynamic_of(model)
    dynamic.save(tmp_path / f"net{suffix}")
    torch.manual_seed(5)
    other = make()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert_same(blockdrop.load(tmp_path / f"net{suffix}", model=other), dynamic)
    assert all(value.equal(before[name]) for name, value in other.state_dict().items())
    with pytest.raises(
        CheckpointError, match=rf"holds the weights of a {type(model).__name__}; pass one as model="
    ):
        blockdrop.load(tmp_path / f"net{suffix}")


@pytest.mark.parametrize("policy_net", ["reference", "pooled", "pooled4", "stem", "constant"])
def test_a_network_of_the_zoo_comes_back_by_itself_whatever_decides(tmp_path: Path, policy_net: str) -> None:
    dynamic = dynamic_of("R14_C10", policy_net=policy_net, num_classes=3)
    dynamic.save(tmp_path / "net.t7")
    found = blockdrop.load(tmp_path / "net.t7")
    assert_same(found, dynamic)
    assert found.policy_net == policy_net
    assert found.threshold == 0.4


def test_a_network_of_a_library_comes_back_by_its_name(tmp_path: Path) -> None:
    dynamic = dynamic_of("torchvision:resnet18", num_classes=3)
    dynamic.save(tmp_path / "net.t7")
    assert_same(blockdrop.load(tmp_path / "net.t7"), dynamic)


def test_a_network_given_as_parts_comes_back_into_the_same_parts(tmp_path: Path) -> None:
    own = Own()
    names = {"stem": "first", "blocks": [[f"body.{i}" for i in range(3)]], "head": "last"}
    by_names = dynamic_of(own, **names)
    by_names.save(tmp_path / "names.t7")
    torch.manual_seed(5)
    assert_same(blockdrop.load(tmp_path / "names.t7", model=Own()), by_names)

    parts = {"stem": own.first, "blocks": [list(own.body)], "head": own.last}
    by_parts = blockdrop.make_dynamic(**parts, image_size=SIDE, classes=["a", "b", "c"]).eval()
    by_parts.save(tmp_path / "parts.t7")
    fresh = Own()
    shell = blockdrop.make_dynamic(
        stem=fresh.first, blocks=[list(fresh.body)], head=fresh.last, image_size=SIDE, classes=["a", "b", "c"]
    )
    assert_same(blockdrop.load(tmp_path / "parts.t7", model=shell), by_parts)


def test_nothing_that_a_file_names_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_net.py").write_text("from tests.blockdrop.test_loading import of_torchvision as build\n")
    monkeypatch.syspath_prepend(tmp_path)
    dynamic = dynamic_of("their_net:build")
    dynamic.save(tmp_path / "net.t7")
    (tmp_path / "their_net.py").write_text("raise RuntimeError('executed')\n")
    sys.modules.pop("their_net")
    with pytest.raises(CheckpointError, match="holds the weights of a their_net:build; pass one as model="):
        blockdrop.load(tmp_path / "net.t7")
    assert "their_net" not in sys.modules
    assert_same(blockdrop.load(tmp_path / "net.t7", model=of_torchvision()), dynamic)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    dynamic_of(of_torchvision()).save(tmp_path / "net.t7")
    dynamic_of("R14_C10", num_classes=3).save(tmp_path / "zoo.t7")
    for model, message in (
        (torchvision.models.resnet18(num_classes=3), "net.t7: "),
        (torchvision.models.resnext50_32x4d(num_classes=4), "net.t7: "),
        (Own(), "net.t7: "),
    ):
        with pytest.raises(CheckpointError, match=message):
            blockdrop.load(tmp_path / "net.t7", model=model)
    with pytest.raises(CheckpointError, match="holds R14_C10, which is made by its name; leave model out"):
        blockdrop.load(tmp_path / "zoo.t7", model=Own())
    with pytest.raises(BlockdropError, match=r"model: got <class .*; pass a network, or a name"):
        blockdrop.load(tmp_path / "net.t7", model=Own)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"holds ResNet, which blockdrop\.load reads"):
        blockdrop.load_network(tmp_path / "net.t7")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds weights alone; load them into the model"):
        blockdrop.load(tmp_path / "weights.pt", model=torchvision.models.resnet18())
    with pytest.raises(CheckpointError, match=r"holds a ResNet-14 \(6 blocks\), the model is a ResNet-20"):
        blockdrop.load(tmp_path / "zoo.t7", model="R20_C10")


def test_nothing_is_overwritten_unless_that_is_said(tmp_path: Path) -> None:
    dynamic = dynamic_of("R8_C10", num_classes=3)
    (tmp_path / "mine.t7").write_text("mine")
    with pytest.raises(BlockdropError, match=r"mine\.t7: exists; pass overwrite=True"):
        dynamic.save(tmp_path / "mine.t7")
    assert (tmp_path / "mine.t7").read_text() == "mine"
    dynamic.save(tmp_path / "mine.t7", overwrite=True)
    assert_same(blockdrop.load(tmp_path / "mine.t7"), dynamic)


def test_a_checkpoint_prints_what_it_holds_and_no_weights(tmp_path: Path) -> None:
    dynamic_of("R14_C10", num_classes=3).save(tmp_path / "net.t7")
    printed = repr(read_checkpoint(tmp_path / "net.t7"))
    assert len(printed) < 1000
    assert "R14_C10" in printed


def test_facts_that_are_given_take_the_place_of_known_ones() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    assert blockdrop.make_dynamic(model).image_size == 224
    normalisation = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    dynamic = blockdrop.make_dynamic(model, image_size=64, normalisation=normalisation)
    assert (dynamic.image_size, dynamic.normalisation) == (64, normalisation)
    assert not blockdrop.make_dynamic(model.eval(), image_size=64).training
    assert blockdrop.make_dynamic(model.train(), image_size=64).training


def test_a_librarys_own_file_is_normalised_as_the_library_says(tmp_path: Path) -> None:
    model = pytest.importorskip("timm").create_model("vit_tiny_patch16_224")
    torch.save(model.state_dict(), tmp_path / "makers.pth")
    name = "timm:vit_tiny_patch16_224"
    expected = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert blockdrop.make_dynamic(name).normalisation == expected
    assert blockdrop.load(tmp_path / "makers.pth", model=name).normalisation == expected


def test_a_threshold_that_is_set_by_hand_is_saved(tmp_path: Path) -> None:
    dynamic = dynamic_of("R8_C10", num_classes=3)
    assert dynamic.policy_network is not None
    dynamic.policy_network.threshold = 0.3
    dynamic.save(tmp_path / "by_hand.t7")
    assert blockdrop.load(tmp_path / "by_hand.t7").threshold == 0.3
    other = dynamic_of("R8_C10", policy_net="pooled4", num_classes=3).policy_network
    assert other is not None
    other.threshold = 0.2
    dynamic.set_policy_network(other)
    dynamic.save(tmp_path / "other.t7")
    assert_same(blockdrop.load(tmp_path / "other.t7"), dynamic)
    assert (dynamic.threshold, dynamic.policy_net) == (0.2, "pooled4")
    other.threshold = 0.5
    assert dynamic.operating_point is None


def test_the_policy_network_is_the_same_whenever_it_is_made() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    first, second = (blockdrop.make_dynamic(model, image_size=SIDE) for _ in range(2))
    assert all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())
    other = blockdrop.make_dynamic(model, image_size=SIDE, seed=1)
    assert any(not value.equal(other.state_dict()[name]) for name, value in first.state_dict().items())


def test_frozen_batchnorm_stays_frozen_and_wrappers_come_off() -> None:
    model = torchvision.models.resnet18(num_classes=3).train()
    model.bn1.eval()
    dynamic = blockdrop.make_dynamic(nn.DataParallel(model), image_size=SIDE)
    assert dynamic.model == "ResNet"
    assert dynamic.training
    assert not dynamic.network.get_submodule("bn1").training
    assert dynamic.network.get_submodule("fc").training


def test_a_class_of_the_program_that_is_run_is_the_same_where_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"stem": "first", "blocks": [[f"body.{i}" for i in range(3)]], "head": "last"}
    with monkeypatch.context() as patch:
        patch.setattr(Own, "__module__", "__main__")
        dynamic = dynamic_of(Own(), **names)
        dynamic.save(tmp_path / "program.t7")
    assert_same(blockdrop.load(tmp_path / "program.t7", model=Own()), dynamic)


def test_names_of_classes_are_words_in_files(tmp_path: Path) -> None:
    for classes in ([0, 1, 2], np.array(["a", "b", "c"])):
        dynamic = dynamic_of("R8_C10", num_classes=3, classes=classes)
        dynamic.save(tmp_path / "net.t7", overwrite=True)
        assert blockdrop.load(tmp_path / "net.t7").classes == [str(name) for name in classes]


class Masked(MapBlock):
    def __init__(self) -> None:
        super().__init__(6)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "give a model, or stem, blocks and head"),
    ({"model": nn.Linear(3, 4)}, "Linear: no ResNet of torchvision or timm"),
    ({"model": torchvision.models.vgg11(num_classes=3), "image_size": SIDE}, "VGG: no ResNet"),
    ({"model": "R20"}, "model names have the form"),
    ({"model": "torchvision:nonesuch"}, "torchvision:nonesuch: torchvision has no such network"),
    ({"model": "no_such_module:build"}, "no_such_module can't be imported"),
    ({"model": "R14_C10", "image_size": 48}, "R14_C10 takes images of 32 px"),
    ({"model": "R14_C10", "policy_net": "nonesuch"}, "unknown policy network nonesuch"),
    ({"model": "R14_C10", "classes": ["a"]}, "classes: 1 names, but R14_C10 has 10 classes"),
    ({"model": "R14_C10", "initial_keep": 2}, "initial keep probability 2"),
    ({"model": "R14_C10", "num_classes": 0}, "num_classes 0"),
    ({"model": torchvision.models.resnet18(), "image_size": -4}, "image_size -4"),
    ({"model": torchvision.models.resnet18(), "num_classes": 9}, "num_classes: of a network by its name"),
    (
        {"model": torchvision.models.resnet18().half(), "image_size": SIDE},
        r"float16; hand the network in as float32 \(model",
    ),
    ({"model": torchvision.models.resnet18(), "image_size": 32.0}, "image_size 32.0: not a whole number"),
    ({"model": "R8_C10", "classes": "abc"}, "classes 'abc': give a list of names"),
    ({"model": "R8_C10", "normalisation": ((0,) * 3, (0, 1, 1))}, "a standard deviation of 0"),
    (
        {"stem": nn.Conv2d(3, 6, 3), "blocks": [[Masked()]], "head": Pooled(6, 3), "image_size": SIDE},
        r"blocks\.0\.0\.mask holds values that aren't finite; a mask is a buffer with persistent=False",
    ),
    ({"model": Own(), "stem": "first", "blocks": "none", "head": "last", "image_size": SIDE}, "none"),
    (
        {"stem": Nothing(), "blocks": [[nn.Conv2d(3, 6, 3)]], "head": Pooled(6, 3), "image_size": SIDE},
        "shape",
    ),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_can_not_be_made_dynamic_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        blockdrop.make_dynamic(**given)


def test_a_head_that_was_replaced_is_refused_before_it_is_trained() -> None:
    network = blockdrop.build("R8_C10")[0]
    network.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 7))  # type: ignore[assignment]
    with pytest.raises(BlockdropError, match="R8_C10: is no longer what"):
        blockdrop.make_dynamic(network)


def test_a_file_that_is_not_there_or_holds_no_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.t7: no such checkpoint file"):
        blockdrop.load(tmp_path / "none.t7")
    torch.save({"x": 1}, tmp_path / "odd.t7")
    with pytest.raises(CheckpointError, match=r"odd\.t7"):
        blockdrop.load(tmp_path / "odd.t7")
