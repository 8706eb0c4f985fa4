"""A dynamic network uses what it knows of itself: its threshold, image size, preprocessing and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import blockdrop
from agents.deciders import Learned, Static
from blockdrop.data import DataSource, Normalisation
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError
from tests.conftest import randomise_statistics, write_image_tree

SIDE = 32


def decided() -> DynamicNetwork:
    """Eight blocks, and a policy network whose decisions differ from image to image."""
    dynamic = blockdrop.make_dynamic(
        torchvision.models.resnet18(num_classes=3), policy_net="pooled4", image_size=SIDE, classes=["a", "b", "c"]
    )
    randomise_statistics(dynamic)
    assert dynamic.policy_network is not None
    torch.nn.init.normal_(dynamic.policy_network.logit.weight, std=1.0)
    torch.nn.init.zeros_(dynamic.policy_network.logit.bias)
    return dynamic.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, SIDE, SIDE)


@torch.no_grad()
def test_it_decides_at_its_own_threshold_wherever_it_runs(images: torch.Tensor) -> None:
    dynamic = decided()
    keep_probs = dynamic.decide(images).keep_probs
    for threshold in (0.3, 0.5, 0.7):
        dynamic.operating_point = {"threshold": threshold}
        logits, policy = dynamic(images)
        assert policy.equal(keep_probs >= threshold)
        torch.testing.assert_close(logits, dynamic.network(images, policy))
        for engine in ("auto", "torch"):
            executor = dynamic.compile(engine=engine)
            run_logits, run_policy = executor(images)
            assert run_policy.equal(policy)
            torch.testing.assert_close(run_logits, logits, atol=1e-4, rtol=1e-4)
        assert blockdrop.compile(dynamic.network, dynamic.policy_network)(images)[1].equal(policy)
        decider = dynamic.decider()
        assert isinstance(decider, Learned)
        assert decider(images).policy.equal(policy)
    assert not dynamic.compile(threshold=0.3)(images)[1].equal(policy)


@torch.no_grad()
def test_a_given_policy_overrules_it_and_flops_are_those_of_what_ran(images: torch.Tensor) -> None:
    dynamic = decided()
    policy = torch.zeros(6, 8, dtype=torch.bool)
    policy[:, 2] = True
    logits, ran = dynamic(images, policy)
    assert ran.equal(policy)
    torch.testing.assert_close(logits, dynamic.network(images, policy))
    table = dynamic.flop_table()
    looks = table.policy_network
    assert looks > 0
    assert dynamic.flops(policy).tolist() == [table.full - sum(table.blocks) + table.blocks[2] + looks] * 6
    assert dynamic.flops().tolist() == [table.full + looks]
    assert dynamic.flop_table(looks=False).policy_network == 0
    # a network of images of another size costs another amount
    larger = blockdrop.make_dynamic(torchvision.models.resnet18(num_classes=3), image_size=2 * SIDE)
    assert larger.flop_table().full > 3.5 * table.full


def test_without_a_policy_network_every_block_runs(images: torch.Tensor) -> None:
    dynamic = decided()
    alone = dynamic.with_network(dynamic.network)
    assert (alone.policy_network, alone.policy_net, alone.threshold) == (None, None, 0.5)
    assert (alone.classes, alone.preprocessing, alone.origin) == (
        dynamic.classes,
        dynamic.preprocessing,
        dynamic.origin,
    )
    decider = alone.decider()
    assert isinstance(decider, Static)
    assert alone(images)[1].all()
    assert alone.flops().tolist() == [alone.flop_table().full]


def test_its_transform_makes_what_its_commands_read(tmp_path: Path) -> None:
    root = write_image_tree(tmp_path / "tree", size=80)
    for side in (32, 224):
        normalisation = Normalisation((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
        dynamic = blockdrop.make_dynamic(
            torchvision.models.resnet18(num_classes=2), image_size=side, normalisation=normalisation
        )
        data = DataSource("Folder", root, image_size=side, preprocessing=dynamic.preprocessing)
        (batch, _) = next(data.test.batches(256, dynamic.normalisation))
        files = sorted((root / "test").rglob("*.png"))
        own = torch.stack([dynamic.transform(Image.open(file)) for file in files])
        assert own.shape == (12, 3, side, side)
        torch.testing.assert_close(own, batch, atol=1.5 / 255 / 0.5, rtol=0)


def test_its_transform_takes_any_image() -> None:
    dynamic = decided()
    for mode, size in (("L", (50, 40)), ("RGBA", (40, 50)), ("P", (32, 32)), ("RGB", (8, 100))):
        found = dynamic.transform(Image.fromarray(np.zeros((size[1], size[0]), np.uint8)).convert(mode))
        assert found.shape == (3, SIDE, SIDE)
        assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 3, 64, 64), r"\(N, 3, 32, 32\)"),
        (torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(3, SIDE, SIDE), r"shape \(3, 32, 32\)"),
        (torch.zeros(1, 1, SIDE, SIDE), r"shape \(1, 1, 32, 32\)"),
    ],
    ids=["size", "type", "one image", "grey"],
)
def test_images_that_it_was_not_made_for_are_refused(wrong: torch.Tensor, message: str) -> None:
    dynamic = decided()
    for call in (dynamic, dynamic.decide):
        with pytest.raises(BlockdropError, match=message):
            call(wrong)
    if wrong.dtype == torch.float32:
        with pytest.raises(BlockdropError):
            dynamic.compile()(wrong)


def test_a_policy_network_of_another_number_of_blocks_is_refused() -> None:
    dynamic = decided()
    other = blockdrop.make_dynamic("R14_C10", policy_net="constant")
    with pytest.raises(BlockdropError, match="has 8 blocks, its policy network decides on 6"):
        DynamicNetwork(dynamic.network, other.policy_network, model="resnet", preprocessing=dynamic.preprocessing)


def test_what_is_no_policy_or_no_image_is_named() -> None:
    dynamic = decided()
    for policy in (torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 8), torch.ones(8, dtype=torch.bool)):
        with pytest.raises(BlockdropError, match=r"expected torch.bool of shape \(N, 8\)"):
            dynamic.flops(policy)
    with pytest.raises(BlockdropError, match="images: got a list"):
        dynamic([1])


def test_a_policy_network_that_belongs_elsewhere_is_refused() -> None:
    dynamic = decided()
    other = blockdrop.make_dynamic(torchvision.models.resnet18(num_classes=3), image_size=SIDE).policy_network
    fewer = blockdrop.make_dynamic("R14_C10", policy_net="constant").policy_network
    assert other is not None
    assert fewer is not None
    with pytest.raises(BlockdropError, match="stem: looks through another network's stem"):
        dynamic.set_policy_network(other)
    with pytest.raises(BlockdropError, match="decides on 6"):
        dynamic.set_policy_network(fewer)
    with pytest.raises(BlockdropError, match="threshold"):
        dynamic.operating_point = {"threshold": 2}
    dynamic.operating_point = {"threshold": np.float32(0.25)}
    assert dynamic.threshold == 0.25


def test_it_prints_itself_in_one_line() -> None:
    dynamic = decided()
    dynamic.operating_point = {"threshold": 0.896}
    parameters = sum(parameter.numel() for parameter in dynamic.network.parameters())
    assert repr(dynamic) == (
        f"DynamicNetwork(ResNet, 8 blocks, 3 classes, 32 px, {parameters:,} parameters, "
        "policy network pooled4, threshold 0.896)"
    )


def test_flops_are_counted_once_and_again_where_the_network_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = blockdrop.make_dynamic(torchvision.models.resnet18(num_classes=3), image_size=32)
    before = dynamic.flop_table()
    count, counted = blockdrop.dynamic.count_flops, []
    monkeypatch.setattr(blockdrop.dynamic, "count_flops", lambda *args: counted.append(args) or count(*args))
    assert dynamic.flop_table() is before
    assert counted == []
    for name, parameter in list(dynamic.network.fc.named_parameters()):
        setattr(dynamic.network.fc, name, torch.nn.Parameter(parameter[:2]))
    assert dynamic.flop_table().fixed < before.fixed, "weights that are pruned"
    dynamic.network.fc = torch.nn.Linear(512, 9)
    assert dynamic.flop_table().fixed > before.fixed, "a layer that is replaced"
    dynamic.preprocessing = dynamic.preprocessing.at(64)
    assert dynamic.flop_table().full > 3 * before.full, "another image size"
    assert len(counted) == 3
