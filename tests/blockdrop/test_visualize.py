"""`visualize` writes figures and a page about the same images, and loses nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.answers import ANSWER_ALL
from agents.policies import map_policy
from blockdrop import build, save_checkpoint, visualize
from blockdrop.data import NORMALISATIONS, MemoryImages
from blockdrop.findings import Findings, evenly_by_class, look, page_of, small_pixels
from blockdrop.measure import evaluate_images
from blockdrop.policy_curves import answer_words, predictions_at
from blockdrop.training.opening import open_networks
from blockdrop.visualize import VisualizeConfig
from tests.conftest import dynamic_of, randomise_statistics, write_image_tree

Command = Callable[..., tuple[int, str, str]]
NAMES = [
    "accuracy_against_flops", "blocks_histogram", "extremes", "frequent_policies", "usage_per_block",
    "usage_per_class",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tree: two classes of six images; both.t7, backbone.t7: networks for them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("visualize")
    write_image_tree(folder / "tree", ("cat", "<b>dog<b>"))
    resnet, policy_network = build("R14_Folder", num_classes=2, policy_net="pooled")
    randomise_statistics(resnet)
    randomise_statistics(policy_network)
    torch.nn.init.normal_(policy_network.logit.weight, std=0.5)
    for name, network in (("both", policy_network), ("backbone", None)):
        save_checkpoint(
            folder / f"{name}.t7", model="R14_Folder", resnet=resnet, policy_network=network, policy_net="pooled",
            normalisation=NORMALISATIONS["half"], classes=["<b>dog<b>", "cat"], epoch=1, metrics={}, config={},
        )  # fmt: skip
    return folder


@pytest.fixture
def flags(folder: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("--model", "R14_Folder", "--data_dir", folder / "tree", "--batch_size", 4, "--cv_dir", tmp_path / "v")


def test_figures_page_and_tensorboard_are_written(
    folder: Path, tmp_path: Path, command: Command, flags: tuple
) -> None:
    code, out, error = command(visualize, *flags, "--load", folder / "both.t7")
    assert code == 0, error
    assert f"page: {tmp_path / 'v' / 'report.html'}" in out
    figures = tmp_path / "v" / "figures"
    assert sorted(path.name for path in figures.iterdir()) == sorted(
        f"{name}.{ending}" for name in NAMES for ending in ("png", "svg")
    )
    for name in NAMES:
        with Image.open(figures / f"{name}.png") as image:
            assert min(image.size) > 200
        assert (figures / f"{name}.svg").read_text().startswith("<?xml")
    page = (tmp_path / "v" / "report.html").read_text()
    assert "<b>dog" not in page
    board = EventAccumulator(str(tmp_path / "v")).Reload()
    assert sorted(board.Tags()["images"]) == [f"visualize/{name}" for name in NAMES]


def test_nothing_is_replaced_unless_asked_for(
    folder: Path, tmp_path: Path, command: Command, flags: tuple
) -> None:
    (tmp_path / "v" / "figures").mkdir(parents=True)
    (tmp_path / "v" / "figures" / "mine.png").write_text("mine")
    given = (*flags, "--load", folder / "both.t7", "--images", 5)
    code, _, error = command(visualize, *given)
    assert code == 2
    assert "holds figures; pass --overwrite to replace it, or name another folder" in error
    (tmp_path / "v" / "events.out.tfevents.1.visualize").write_text("of an earlier run")
    assert command(visualize, *given, "--overwrite")[0] == 0
    assert (tmp_path / "v" / "figures" / "mine.png").read_text() == "mine"
    assert len(list((tmp_path / "v").glob("events.*"))) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--load: name a checkpoint that has a policy network"),
        (("--load", "backbone.t7"), "backbone.t7: holds no policy network; name a checkpoint that has one"),
        (("--load", "both.t7", "--images", 0), "--images 0: must be at least 1"),
        (("--load", "both.t7", "--threshold", 1), "--threshold 1.0: must be above 0 and below 1"),
        (("--load", "both.t7", "--cv_dir", "both.t7"), "not writable"),
    ],
)
def test_bad_input_is_named(
    more: tuple, message: str, folder: Path, command: Command, flags: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code, _, error = command(visualize, *flags, *more)
    assert code == 2
    assert message in error


@pytest.fixture(scope="module")
def findings(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    config = VisualizeConfig(
        model="R14_Folder", data_dir=str(folder / "tree"), load=(str(folder / "both.t7"),), batch_size=5,
        cv_dir=str(tmp_path_factory.mktemp("v")), threshold=0.5,
    )  # fmt: skip
    opened = open_networks(config, config.load)
    return look(
        opened, opened.data.test, config.compute(), config.batch_size, config.engine, threshold=config.threshold
    )


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.5, 0.7])
def test_what_the_page_shows_at_a_threshold_is_what_the_network_does_there(
    threshold: float, findings: Findings
) -> None:
    opened, outcomes = findings.opened, findings.outcomes
    assert outcomes.keep_probs is not None
    dynamic = opened.dynamic
    at = dynamic_of(dynamic.network, dynamic.policy_network, dynamic.normalisation, threshold)
    direct = evaluate_images(at, opened.data.test)
    assert direct.policy.equal(map_policy(outcomes.keep_probs, threshold))
    nested = findings.nested_predictions
    assert predictions_at(outcomes.keep_probs, nested, threshold).equal(direct.predictions)
    assert nested[-1].equal(findings.full.predictions)
    page = page_of(findings, [])
    kept = map_policy(page.keep_probs, threshold).sum(1)
    assert page.predictions[torch.arange(len(kept)), kept].equal(direct.predictions)
    assert page.flops.per_image(map_policy(page.keep_probs, threshold)).equal(direct.flops)
    assert page.labels.equal(direct.labels)
    assert page.losses.equal(findings.full.losses)


def test_the_curve_goes_through_the_reported_point(findings: Findings) -> None:
    (dynamic,) = [curve for curve in findings.curves if curve.name == "dynamic"]
    (own,) = [point for point in dynamic.points if point.label == "threshold 0.5"]
    assert own.accuracy == findings.outcomes.accuracy
    assert own.flops == findings.outcomes.flops_per_image[0]
    blind = {curve.name: curve.points[-1] for curve in findings.curves}
    for name in ("first K blocks", "random K blocks", "class means", "full network"):
        assert blind[name].accuracy == findings.full.accuracy, name
        assert blind[name].flops == findings.table.full


def test_pixels_are_those_of_the_files(findings: Findings) -> None:
    test = findings.opened.data.test
    assert isinstance(test, MemoryImages)
    assert findings.images.equal(test.images)


def test_large_images_are_shrunk() -> None:
    images = MemoryImages(torch.full((3, 3, 100, 100), 77, dtype=torch.uint8), torch.zeros(3, dtype=torch.long))
    assert small_pixels(images, NORMALISATIONS["imagenet"], batch_size=2).equal(
        torch.full((3, 3, 64, 64), 77, dtype=torch.uint8)
    )


def test_images_are_chosen_evenly() -> None:
    labels = torch.tensor([0, 1] * 40 + [2] * 20)
    images = MemoryImages(torch.zeros(100, 3, 2, 2, dtype=torch.uint8), labels)
    assert evenly_by_class(images, 50).labels.bincount().tolist() == [20, 20, 10]
    assert evenly_by_class(images, 100) is images
    assert len(evenly_by_class(images, 1)) == 1


@pytest.fixture(scope="module")
def answering(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Of a network whose answers differ and weigh beside the ResNet's logits."""
    torch.manual_seed(3)
    resnet, policy_network = build("R14_Folder", num_classes=2, policy_net="pooled")
    randomise_statistics(resnet)
    randomise_statistics(policy_network)
    policy_network.add_answer(2)
    assert policy_network.answer is not None
    assert policy_network.answer_weight is not None
    for head in (policy_network.logit, policy_network.answer):
        torch.nn.init.normal_(head.weight, std=0.5)
    torch.nn.init.constant_(policy_network.answer_weight, 1.5)
    root = tmp_path_factory.mktemp("answering")
    save_checkpoint(
        root / "answers.t7", model="R14_Folder", resnet=resnet, policy_network=policy_network,
        policy_net="pooled", normalisation=NORMALISATIONS["half"], classes=["<b>dog<b>", "cat"],
        operating_point={"threshold": 0.5, "answer_threshold": 0.6},
    )  # fmt: skip
    flags: dict[str, Any] = {
        "model": "R14_Folder", "data_dir": str(folder / "tree"), "load": (str(root / "answers.t7"),),
        "batch_size": 5, "cv_dir": str(root),
    }  # fmt: skip
    found = visualize.main(VisualizeConfig(**flags))
    assert found.thresholds == (0.5, 0.6)
    sure = page_of(found, []).confidence
    assert sure is not None
    return visualize.main(VisualizeConfig(**flags, overwrite=True, answer_threshold=sure.median().item()))


@pytest.mark.parametrize("pair", [(0.5, None), (0.45, None), (0.7, None), (0.5, 1.001), (0.5, ANSWER_ALL)])
def test_the_page_of_a_network_that_answers_holds_what_it_does_at_a_pair_of_thresholds(
    pair: tuple[float, float | None], answering: Findings
) -> None:
    dynamic, test = answering.opened.dynamic, answering.opened.data.test
    threshold, answer_threshold = pair[0], pair[1] or answering.thresholds.answer
    dynamic.operating_point = {"threshold": threshold, "answer_threshold": answer_threshold}
    direct = evaluate_images(dynamic, test)
    assert direct.answered is not None
    page = page_of(answering, [])
    assert page.answers is not None
    assert page.confidence is not None
    answered = page.confidence >= answer_threshold
    assert direct.answered.equal(answered)
    kept = map_policy(page.keep_probs, threshold)
    rest = page.predictions.gather(1, kept.sum(1, keepdim=True)).squeeze(1)
    assert direct.predictions.equal(page.answers.where(answered, rest))
    assert direct.flops.equal(page.flops.per_image(kept, answered))
    assert direct.policy.equal(kept & ~answered.unsqueeze(1))


def test_both_curves_of_a_network_that_answers_go_through_the_reported_point(answering: Findings) -> None:
    outcomes = answering.outcomes
    assert outcomes.answered is not None
    assert 0 < outcomes.answered.sum() < len(outcomes.answered)
    for name, label in (
        ("dynamic", "threshold 0.5"),
        ("dynamic, other answer thresholds", answer_words(answering.thresholds.answer)),
    ):
        (curve,) = [curve for curve in answering.curves if curve.name == name]
        (own,) = [point for point in curve.points if point.label == label]
        assert own.accuracy == outcomes.accuracy
        assert own.flops == outcomes.flops_per_image[0]
    assert curve.points[0].label == "all answered"
    assert curve.points[0].flops == answering.table.policy_network
    assert curve.points[-1].label == "none answered"


def test_an_answer_threshold_without_answers_is_named(folder: Path, command: Command, flags: tuple) -> None:
    code, _, error = command(visualize, *flags, "--load", folder / "both.t7", "--answer_threshold", 0.9)
    assert code == 2
    assert "--answer_threshold: needs a policy network that answers" in error
