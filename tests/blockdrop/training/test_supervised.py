"""The loop of supervised training: its step by hand, schedules, logs, reproducibility, and what ends it."""

import copy
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop import load_checkpoint
from blockdrop.distill import KdConfig
from blockdrop.errors import BlockdropError, NumericalError
from blockdrop.measure import evaluate_images
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.training.config import SupervisedConfig
from blockdrop.training.opening import open_networks
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.session import Session
from blockdrop.training.supervised import Objective, Step, TestAndSave, cross_entropy_objective, fit
from tests.conftest import write_image_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, six training and six test images each."""
    return write_image_tree(tmp_path_factory.mktemp("supervised") / "tree")


class Training:
    """Fits a parameter or a network on the tiny tree; every run has its own folder."""

    def __init__(self, root: Path, tree: Path):
        self.root, self.tree, self.runs = root, tree, 0

    def config(self, config_class: Any = SupervisedConfig, **flags: Any) -> Any:
        common = {"model": "R8_Folder", "data_dir": str(self.tree), "batch_size": 12, "schedule": "step"}
        config = config_class(**{**common, "precision": "float32", **flags})
        config.check()
        return config

    def __call__(
        self,
        config: SupervisedConfig,
        objective: Objective,
        parameters: Iterable[Any],
        network: nn.Module | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl."""
        opened = open_networks(config, ())
        self.runs += 1
        given: dict[str, Any] = {
            "module": network or nn.Identity(), "parameters": parameters, "end_epoch": no_test,
            "begin_epoch": network.train if network else list, "epochs": config.max_epochs,
        }  # fmt: skip
        with RunDirectory(self.root / f"run{self.runs}", "test", config) as run:
            session = Session(config, config.compute(), run)
            fit(session, opened.data, opened.dynamic.normalisation, objective, **{**given, **options})
        return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def no_test(epoch: int, last: bool) -> str:
    return ""


@pytest.fixture
def train(tmp_path: Path, tree: Path) -> Training:
    return Training(tmp_path, tree)


def slope(weight: Tensor) -> Objective:
    """A loss of gradient one."""
    return lambda images, labels, epoch: Step(weight.sum())


# ---- the step


def test_a_step_of_nesterov_momentum_by_hand(train: Training) -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    train(train.config(lr=0.1, wd=0.5, momentum=0.8, max_epochs=1), slope(weight), [weight])
    # g = 1 + 0.5 · 1 = 1.5, v = g, w = 1 - 0.1 · (g + 0.8 · v)
    assert weight.item() == pytest.approx(1 - 0.1 * 2.7)


def test_adam_steps_by_its_rate_whatever_the_gradients_size_and_decays_no_weight(train: Training) -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    tiny = lambda images, labels, epoch: Step(1e-3 * weight.sum())  # noqa: E731
    train(train.config(lr=0.1, wd=0.5, max_epochs=1), tiny, [weight], adam=True)
    assert weight.item() == pytest.approx(1 - 0.1, abs=1e-4)


def test_a_parameter_group_may_have_its_own_weight_decay(train: Training) -> None:
    decayed, kept = (nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    groups = [{"params": [decayed]}, {"params": [kept], "weight_decay": 0.0}]
    train(train.config(lr=0.1, wd=0.5, max_epochs=1), slope(torch.cat([decayed, kept])), groups)
    assert decayed.item() == pytest.approx(1 - 0.1 * 1.5 * 1.9)
    assert kept.item() == pytest.approx(1 - 0.1 * 1.9)


def test_label_smoothing_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0]])  # probabilities 3/4 and 1/4
    net = nn.Identity()
    for smoothing, target in ((0.0, (1, 0)), (0.2, (0.9, 0.1))):
        step = cross_entropy_objective(net, smoothing)(logits, torch.tensor([0]), 0)
        assert step.loss.item() == pytest.approx(-target[0] * math.log(0.75) - target[1] * math.log(0.25))


# ---- schedules


def test_milestones_give_each_epoch_its_learning_rate(train: Training) -> None:
    config = train.config(KdConfig, student="R8", load=("teacher",), lr=1.0, max_epochs=6, milestones=(2, 5))
    expected = [1.0, 1.0, 0.1, 0.1, 0.1, 0.01]
    assert [config.step_factor(epoch) for epoch in range(6)] == pytest.approx(expected)
    weight = nn.Parameter(torch.zeros(1))
    assert [line["lr"] for line in train(config, slope(weight), [weight])] == pytest.approx(expected)


def test_without_milestones_the_rate_falls_every_epoch_step(train: Training) -> None:
    flags = {"lr": 0.4, "max_epochs": 5, "epoch_step": 2, "lr_decay_ratio": 0.5}
    distilling = {"config_class": KdConfig, "student": "R8", "load": ("teacher",)}
    weight = nn.Parameter(torch.zeros(1))
    for config in (train.config(**flags), train.config(**flags, **distilling)):
        lines = train(config, slope(weight), [weight])
        assert [line["lr"] for line in lines] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])


def test_one_cycle_rises_for_a_quarter_of_the_run_and_then_falls(
    train: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], torch.optim.SGD.step

    def record(self: Any, closure: Any = None) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    weight = nn.Parameter(torch.zeros(1))
    train(train.config(lr=0.3, schedule="one_cycle", max_epochs=16), slope(weight), [weight])
    assert len(rates) == 16
    assert rates[3] == pytest.approx(0.3), "the fourth of sixteen steps"
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 1e-5


def test_a_later_part_of_a_run_counts_its_schedule_from_its_own_start(train: Training) -> None:
    weight, seen = nn.Parameter(torch.zeros(1)), []

    def objective(images: Tensor, labels: Tensor, epoch: int) -> Step:
        seen.append(epoch)
        return Step(weight.sum())

    ended: list[tuple[int, bool]] = []

    def end_epoch(epoch: int, last: bool) -> str:
        ended.append((epoch, last))
        return ""

    config = train.config(lr=1.0, epoch_step=2)
    part = {"epochs": 3, "first_epoch": 10, "lr": 0.5, "phase": "stage2", "end_epoch": end_epoch}
    lines = train(config, objective, [weight], **part)
    assert [(line["epoch"], line["phase"]) for line in lines] == [(10, "stage2"), (11, "stage2"), (12, "stage2")]
    assert [line["lr"] for line in lines] == pytest.approx([0.5, 0.5, 0.05])
    assert seen == [0, 1, 2]
    assert ended == [(10, False), (11, False), (12, True)]


# ---- logs


def test_logged_numbers_are_means_over_images_not_batches(train: Training) -> None:
    weight = nn.Parameter(torch.zeros(1))

    def objective(images: Tensor, labels: Tensor, epoch: int) -> Step:
        always_first = torch.tensor([[1.0, 0.0]]).expand(len(labels), 2)
        parts = {"second": labels.float().mean(), "first": (1 - labels.float()).mean()}
        return Step(weight.sum() * 0 + 1 / len(labels), always_first, parts)

    (line,) = train(train.config(batch_size=7, max_epochs=1), objective, [weight])  # batches of 7 and 5
    assert (line["second"], line["first"]) == pytest.approx((0.5, 0.5))
    assert line["accuracy"] == 0.5
    assert line["loss"] == pytest.approx(2 / 12), "one for each of the two batches"


def test_without_logits_there_is_no_accuracy(train: Training) -> None:
    weight = nn.Parameter(torch.zeros(1))
    (line,) = train(train.config(max_epochs=1), slope(weight), [weight])
    assert line.keys() == {"epoch", "phase", "time", "loss", "lr", "images_per_second"}


# ---- reproducibility


@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
def test_same_seed_same_weights(train: Training, make_resnet: Callable[..., Any], schedule: str) -> None:
    start = make_resnet("R8_Folder", num_classes=2)
    trained = []
    for seed in (0, 0, 1):
        net = copy.deepcopy(start)
        config = train.config(batch_size=4, max_epochs=2, seed=seed, schedule=schedule)
        train(config, cross_entropy_objective(net), net.parameters(), net)
        trained.append(net.state_dict())
    assert all(value.equal(trained[1][key]) for key, value in trained[0].items())
    assert not any(value.equal(trained[2][key]) for key, value in trained[0].items() if key.endswith("weight"))
    assert not any(value.equal(start.state_dict()[key]) for key, value in trained[0].items())


# ---- what ends it


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_batch(train: Training, bad: float) -> None:
    weight, steps = nn.Parameter(torch.zeros(1)), []

    def objective(images: Tensor, labels: Tensor, epoch: int) -> Step:
        steps.append(epoch)
        return Step(weight.sum() + (bad if len(steps) == 6 else 0))  # three batches an epoch

    config = train.config(batch_size=4, max_epochs=3, lr=0.1)
    with pytest.raises(
        NumericalError, match=f"^the loss is {bad} in epoch 1, batch 2; try a smaller --lr; no check"
    ):
        train(config, objective, [weight])
    last = weight.item()
    assert math.isfinite(last), "the bad step isn't taken"
    (line,) = (train.root / "run1" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["epoch"] == 0, "the epoch before it is logged"


# ---- tests and checkpoints


def test_every_so_many_epochs_and_the_last_are_tested_and_saved(
    train: Training, make_resnet: Callable[..., Any]
) -> None:
    net = make_resnet("R8_Folder", num_classes=2)
    config = train.config(max_epochs=4, test_every=2, lr=0.01)
    opened = open_networks(config, ())
    dynamic, data = opened.dynamic.with_network(net), opened.data
    with RunDirectory(train.root / "run", "test", config) as run:
        session = Session(config, config.compute(), run)
        tests = TestAndSave(session, dynamic, data)
        fit(
            session, data, dynamic.normalisation, cross_entropy_objective(net), module=net,
            parameters=net.parameters(), begin_epoch=net.train, end_epoch=tests, epochs=config.max_epochs,
        )  # fmt: skip
        reported = run.last("test")[1]
        assert tests(5, False) == "", "an epoch that isn't tested says nothing"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    found = [(line["epoch"], line["accuracy"]) for line in lines if line["phase"] == "test"]
    assert [epoch for epoch, _ in found] == [0, 2, 3]
    names = [f"ckpt_E_{epoch}_A_{accuracy:.3f}.t7" for epoch, accuracy in found]
    assert sorted(path.name for path in run.path.glob("ckpt_*")) == sorted(names)

    saved = read_checkpoint(run.path)
    assert (saved.model, saved.classes, saved.epoch) == ("R8_Folder", ["cat", "dog"], 3)
    assert saved.resnet is not None
    assert all(value.equal(net.state_dict()[key]) for key, value in saved.resnet.items())
    outcomes = evaluate_images(dynamic, data.test, session.compute)
    assert outcomes.accuracy == saved.metrics["accuracy"] == found[-1][1] == reported["accuracy"]


def test_what_is_saved_may_be_another_network_than_the_trained_one(
    train: Training, make_resnet: Callable[..., Any]
) -> None:
    net = make_resnet("R8_Folder", num_classes=2)

    def deployed() -> Any:
        copied = copy.deepcopy(net)
        nn.init.ones_(copied.fc.bias)
        return copied

    config = train.config(max_epochs=1)
    opened = open_networks(config, ())
    with RunDirectory(train.root / "run", "test", config) as run:
        session = Session(config, config.compute(), run)
        TestAndSave(session, opened.dynamic.with_network(net), opened.data, deployed)(0, True)
    load_checkpoint(run.path, resnet=net)
    assert net.fc.bias.equal(torch.ones(2))


# ---- flags


@pytest.mark.parametrize("momentum", [0.0, 1.0, math.nan])
def test_momentum_lies_between_0_and_1(momentum: float) -> None:
    with pytest.raises(BlockdropError, match="--momentum"):
        SupervisedConfig(model="R8_Digits", momentum=momentum).check()


def test_arch_takes_the_place_of_the_models_architecture() -> None:
    assert SupervisedConfig(model="R8_Digits").network == "R8_Digits"
    assert SupervisedConfig(model="R110_C10", arch="plain20").network == "plain20_C10"


def test_the_objective_sees_normalised_images_and_their_labels(train: Training) -> None:
    weight, seen = nn.Parameter(torch.zeros(1)), []

    def objective(images: Tensor, labels: Tensor, epoch: int) -> Step:
        seen.append((images.shape, sorted(labels.tolist()), images.min().item()))
        return Step(F.l1_loss(weight, weight))

    train(train.config(max_epochs=1, normalisation="half"), objective, [weight])
    assert seen == [((12, 3, 32, 32), [0] * 6 + [1] * 6, -1.0)], "the padding of random crops is black"
