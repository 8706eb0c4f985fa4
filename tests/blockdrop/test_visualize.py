"""`visualize` writes figures and a page about the same images, and loses nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.policies import map_policy
from blockdrop import build, save_checkpoint, visualize
from blockdrop.data import NORMALISATIONS, MemoryImages
from blockdrop.findings import Findings, evenly_by_class, look, page_of, small_pixels
from blockdrop.measure import evaluate_images
from blockdrop.policy_curves import predictions_at
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
    return look(opened, opened.data.test, config.compute(), config.batch_size, config.engine, config.threshold)


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


def test_a_network_that_answers_is_shown_as_if_it_answered_nothing_and_that_is_said(
    folder: Path, tmp_path: Path, command: Command, flags: tuple
) -> None:
    resnet, policy_network = build("R14_Folder", num_classes=2, policy_net="pooled")
    policy_network.add_answer(2)
    save_checkpoint(
        tmp_path / "answers.t7", model="R14_Folder", resnet=resnet, policy_network=policy_network,
        policy_net="pooled", normalisation=NORMALISATIONS["half"], classes=["<b>dog<b>", "cat"],
        operating_point={"threshold": 0.5, "answer_threshold": 0.1},
    )  # fmt: skip
    code, out, error = command(visualize, *flags, "--load", tmp_path / "answers.t7")
    assert code == 0, error
    assert "note: figures and page are about blocks alone, as if no image were answered" in out
    assert "Block Usage: 0.000" not in out
