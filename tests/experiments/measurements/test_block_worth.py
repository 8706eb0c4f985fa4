"""What blocks are worth: the measure itself, what is chosen by it, and that the study finds what can be seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockdrop import build, save_checkpoint
from blockdrop.data import NORMALISATIONS, Images
from blockdrop.flops import FlopTable
from blockdrop.training.opening import open_networks
from experiments.measurements import block_worth
from experiments.measurements.block_worth import (
    CLASSES_FIRST,
    LAST,
    BlockWorthConfig,
    Study,
    block_worths,
    markdown,
    richest_policies,
    variance_explained,
)
from tests.conftest import randomise_statistics

Command = Callable[..., tuple[int, str, str]]
BLOCKS = 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Keep probabilities that differ from image to image, but keep just the first block of most."""
    torch.manual_seed(0)
    resnet, policy_network = build("R8_Digits", policy_net="pooled4")
    for network in (resnet, policy_network):
        randomise_statistics(network)
    nn.init.normal_(policy_network.logit.weight, std=0.01)
    policy_network.logit.bias.data = torch.tensor([2.0, -2.0, -2.0])
    save_checkpoint(
        path := tmp_path / "net.t7",
        model="R8_Digits",
        resnet=resnet,
        normalisation=NORMALISATIONS["half"],
        policy_network=policy_network,
        policy_net="pooled4",
    )
    return path


def test_worth_is_what_a_block_adds_to_the_log_likelihood_whether_it_is_kept_or_not() -> None:
    worths = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.25, -0.5]])

    def run(images: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        right = -4 + (policy * worths).sum(-1)  # log-likelihood of the label, (S, N)
        wrong = (1 - right.exp()).log()
        return torch.stack([right, wrong], -1), policy

    labels, images = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 4, 4)
    for base in ([True, True, True], [False, False, False], [True, False, True]):
        found = block_worths(run, torch.tensor(base), images, labels)  # type: ignore[arg-type]
        torch.testing.assert_close(found, worths, atol=1e-5, rtol=0)


def test_blocks_are_kept_by_worth_for_their_flops_within_the_cost() -> None:
    flops = FlopTable(10, (10, 20, 40), 0)
    worths = torch.tensor([[1.0, 4.0, 6.0], [0.5, -1.0, -2.0]])  # per 10 FLOPs 1, 2, 1.5; 0.5, -0.5, -0.5
    kept = {cost: richest_policies(worths, flops, cost).int().tolist() for cost in (10, 20, 39.9, 40, 45, 50, 80)}
    assert kept[10] == [[0, 0, 0], [0, 0, 0]]
    assert kept[20] == kept[39.9] == [[0, 1, 0], [0, 0, 0]]
    assert kept[40] == [[0, 1, 1], [0, 0, 0]]
    assert kept[45] == [[1, 1, 1], [0, 0, 0]]
    assert kept[50] == [[1, 1, 1], [1, 0, 0]]
    assert kept[80] == [[1, 1, 1], [1, 1, 1]]


def test_variance_explained_is_one_for_the_truth_and_none_for_the_means() -> None:
    truth = torch.randn(50, BLOCKS) + torch.arange(BLOCKS)
    assert variance_explained(truth, truth) == pytest.approx(1)
    assert variance_explained(truth, truth.mean(0)) == pytest.approx(0, abs=1e-6)
    assert variance_explained(truth, -truth) < 0


def test_the_study_finds_what_can_be_seen(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the first block is worth something to bright images and costs dark ones something."""

    def made_worths(run: Any, base: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        brightness = images.mean((1, 2, 3))
        return torch.stack([10 * brightness, torch.ones(len(images)), torch.zeros(len(images))], 1)

    monkeypatch.setattr(block_worth, "block_worths", made_worths)
    numbers = block_worth.main(
        BlockWorthConfig(
            model="R8_Digits", load=(str(checkpoint),), deciders=("pooled4",), images=500, epochs=5,
            class_epochs=2, batch_size=64, precision="float32", json=str(tmp_path / "r.json"),
        )
    )  # fmt: skip
    base, mean, last, pooled4, classes_first = numbers["rows"]
    assert numbers["policy"] == "100"
    assert [row["unique_policies"] for row in (base, mean)] == [1, 1]
    assert [row["name"] for row in numbers["rows"]] == [
        "one policy", "mean worth", LAST, "pooled4", "pooled4" + CLASSES_FIRST,
    ]  # fmt: skip
    assert pooled4["explained"] > 0.5
    assert last["decider_flops"] == 0 < pooled4["decider_flops"] == classes_first["decider_flops"]
    assert pooled4["class_accuracy"] is None
    assert classes_first["class_accuracy"] > 0.3, "ten classes"
    for row in numbers["rows"]:
        assert row["flops"] <= base["flops"] + 1e-6, "the cost of the one policy is kept to"
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == numbers["rows"]
    assert markdown(numbers["rows"]) in capsys.readouterr().out


def test_a_linear_model_tells_what_is_linear_in_features_or_chances(checkpoint: Path) -> None:
    config = BlockWorthConfig(
        model="R8_Digits", load=(str(checkpoint),), images=200, batch_size=50, precision="float32"
    )
    study = Study(open_networks(config, config.load), config.compute(), config)
    head = nn.Linear(4, 3)

    def look(images: Tensor) -> Tensor:
        return images.mean(1).reshape(len(images), 4, -1).std(-1)

    def worths(of: Images) -> Tensor:
        features = torch.cat([look(images) for images, _ in study.batches(of)])
        surest = head(features).softmax(-1).amax(1)
        return torch.stack([features[:, 1] - features[:, 3], 10 * surest, 2 + features.sum(1)], 1).detach()

    study.worths = worths(study.training)
    study.mean = study.worths.mean(0)
    for told, of in zip(study.tell_linearly(look, head), (study.held_out, study.test), strict=True):
        torch.testing.assert_close(study.mean + told, worths(of), atol=0.02, rtol=0)


def test_the_worths_of_a_networks_own_blocks_are_measured(checkpoint: Path, command: Command) -> None:
    flags = ("--model", "R8_Digits", "--images", 100, "--epochs", 1, "--batch_size", 50, "--deciders", "stem")
    code, out, error = command(block_worth, *flags, "--class_epochs", 0, "--load", checkpoint)
    assert code == 0, error
    assert CLASSES_FIRST not in out
    assert "worth of the blocks around 100, nats" in out
    assert "| stem |" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--load: name a checkpoint or run directory"),
        (("--deciders", "constant"), "--deciders constant: choose reference, pooled, pooled4, stem"),
        (("--images", 9), "--images 9: must be at least 10"),
        (("--epochs", 0), "--epochs 0: must be at least 1"),
        (("--class_epochs", -1), "--class_epochs -1: must be at least 0"),
    ],
)
def test_wrong_flags_are_one_line(flags: tuple[Any, ...], message: str, command: Command) -> None:
    start = ("--load", "x.t7") if flags else ()
    code, _, error = command(block_worth, "--model", "R8_Digits", *start, *flags)
    assert code == 2
    assert message in error
