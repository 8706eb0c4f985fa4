"""Deeper networks from shallower ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop import pretrain, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.deepening import deepened
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import network_from
from blockdrop.models.droppable import Droppable
from blockdrop.models.specs import parse_model_name
from blockdrop.models.zoo import build_static
from tests.conftest import randomise_statistics


def saved(path: Path, model: str, **options: Any) -> Path:
    net = build_static(model, **options)
    randomise_statistics(net)
    save_checkpoint(path, model=model, resnet=net, normalisation=NORMALISATIONS["none"])
    return path


@pytest.mark.parametrize(("shallow", "deep"), [("R8_C10", "R26_C10"), ("resnet20_C100", "resnet32_C100")])
def test_a_deepened_network_has_the_shallower_ones_logits_and_trains_in_its_new_blocks(
    tmp_path: Path, shallow: str, deep: str
) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "c.t7", shallow))
    spec = parse_model_name(deep)
    before = network_from(checkpoint, parse_model_name(shallow)).eval()
    after = network_from(deepened(checkpoint, spec), spec)
    assert isinstance(after, Droppable)
    assert tuple(after.stage_sizes) == spec.layers
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(after.eval()(images), before(images))
    after.train()(images).square().sum().backward()
    scales = [branch.bn2.weight for stage in after.blocks for branch in stage]
    assert all(scale.grad is not None and bool(scale.grad.any()) for scale in scales)


def test_blocks_of_a_stage_are_spread_evenly(tmp_path: Path) -> None:
    grown = deepened(read_checkpoint(saved(tmp_path / "c.t7", "R20_C10")), parse_model_name("R56_C10")).resnet
    assert grown is not None
    old = [
        (stage, block)
        for stage in range(3)
        for block in range(9)
        if bool(grown[f"blocks.{stage}.{block}.bn2.weight"].any())
    ]
    assert old == [(stage, block) for stage in range(3) for block in (0, 3, 6)]


@pytest.mark.parametrize(
    ("held", "wanted", "says"),
    [
        ("R20_C10", "R8_C10", r"holds a ResNet-20 \(9 blocks\), which can't become a deeper ResNet-8"),
        ("R20_C10", "R20_C10", "which can't become a deeper ResNet-20"),
        ("R18_C10", "R50_C10", "which can't become a deeper ResNet-50"),
        ("plain8_C10", "R20_C10", "holds plain8_C10, the model is R20_C10; only ResNets of ours deepen"),
    ],
)
def test_what_is_no_shallower_resnet_of_the_same_blocks_is_refused(
    tmp_path: Path, held: str, wanted: str, says: str
) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "c.t7", held))
    with pytest.raises(CheckpointError, match=says):
        deepened(checkpoint, parse_model_name(wanted))


def test_pretrain_deepens(tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    flags = ("--data_dir", image_tree, "--max_epochs", 1, "--batch_size", 4)
    assert command(pretrain, "--model", "R8_Folder", *flags, "--cv_dir", tmp_path / "a")[0] == 0
    code, out, error = command(
        pretrain, "--model", "R14_Folder", "--deepen", "--init", tmp_path / "a", *flags, "--cv_dir", tmp_path / "b"
    )
    assert code == 0, error
    assert out.startswith("pretrain R14_Folder")
    code, _, error = command(pretrain, "--model", "R14_Folder", "--deepen", *flags, "--cv_dir", tmp_path / "c")
    assert (code, error) == (2, "error: --deepen: of which network? Pass --init")
