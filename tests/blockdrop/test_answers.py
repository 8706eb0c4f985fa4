"""A policy network that answers: nothing of the ResNet runs for an answered image, wherever it is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import blockdrop
from agents.answers import ANSWER_ALL, NEVER, confidence, with_answers
from agents.deciders import Learned, Shuffled
from blockdrop import cl_train, evaluate, finetune, pretrain
from blockdrop.data import DataSource
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError, CheckpointError
from blockdrop.finetune import FinetuneConfig
from blockdrop.measure import evaluate_images
from blockdrop.models.checkpoints.dialects import Checkpoint, read_checkpoint
from blockdrop.models.checkpoints.filling import load_checkpoint
from blockdrop.pretrain import PretrainConfig
from blockdrop.training import answers
from blockdrop.training.answers import answered_share, chances_of_answers, fit_temperature, fit_weight, hold_out
from blockdrop.training.hinton import HintonLoss
from blockdrop.training.supervised import Step
from blockdrop.training.update import Update
from tests.conftest import dynamic_of, randomise_statistics, write_image_tree

Command = Callable[..., tuple[int, str, str]]


def answering(policy_net: str = "reference", model: str = "R8_Digits", weight: float = 0.3) -> DynamicNetwork:
    """Three blocks and ten classes; policies and answers differ from image to image."""
    resnet, policy_network = blockdrop.build(model, policy_net=policy_net)
    randomise_statistics(resnet)
    randomise_statistics(policy_network)
    policy_network.add_answer(10)
    assert policy_network.answer is not None
    assert policy_network.answer_weight is not None
    for head in (policy_network.logit, policy_network.answer):
        nn.init.normal_(head.weight, std=1.0)
    nn.init.constant_(policy_network.answer_weight, weight)
    return dynamic_of(resnet, policy_network).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(9, 3, 32, 32)


def set_share(dynamic: DynamicNetwork, images: Tensor, share: float) -> None:
    """Sets the answer threshold so that a share of the images is answered."""
    assert dynamic.policy_network is not None
    answer = dynamic.policy_network.glance(images).answer
    assert answer is not None
    found = confidence(answer).sort(descending=True).values
    count = round(share * len(images))
    middle = (found[:-1] + found[1:]) / 2
    dynamic.policy_network.answer_threshold = [NEVER, *middle.tolist(), ANSWER_ALL][count]


# ---- running


@torch.no_grad()
@pytest.mark.parametrize("policy_net", ["reference", "pooled4", "stem", "constant"])
def test_executors_give_eager_results_for_any_mixture_of_answered_images(policy_net: str, images: Tensor) -> None:
    dynamic = answering(policy_net)
    for share in (0.0, 0.3, 1.0) if policy_net != "constant" else (0.0, 1.0):
        set_share(dynamic, images, share)
        expected = dynamic.run(images)
        assert expected.answered.sum() == round(share * 9)
        assert not expected.policy[expected.answered].any()
        for engine in ("auto", "torch"):
            run = dynamic.compile(engine=engine)
            found = run.run(images)
            assert found.answered.equal(expected.answered)
            assert found.policy.equal(expected.policy)
            assert found.answer is not None
            torch.testing.assert_close(found.answer, expected.answer, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
            one = run.run(images[:1])
            torch.testing.assert_close(one.logits, expected.logits[:1], atol=1e-4, rtol=1e-4)
            logits, policy = run(images)
            assert policy.equal(expected.policy)
            torch.testing.assert_close(logits, found.logits)


@torch.no_grad()
def test_the_logits_are_the_answers_or_the_networks_with_a_share_of_the_answers(images: Tensor) -> None:
    dynamic = answering(weight=0.7)
    set_share(dynamic, images, 0.5)
    logits, policy, answered, keep_probs, answer = dynamic.run(images)
    assert answer is not None
    assert answer.exp().sum(1).allclose(torch.ones(9))
    alone = dynamic.network(images, keep_probs >= 0.5)
    torch.testing.assert_close(logits[answered], answer[answered])
    torch.testing.assert_close(logits[~answered], (alone + 0.7 * answer)[~answered])
    given, _ = dynamic(images, policy)  # a policy that is given is run as it is: nothing is answered
    torch.testing.assert_close(given, dynamic.network(images, policy))
    assert with_answers(alone, None, None, None) is alone


@torch.no_grad()
def test_no_module_of_the_resnet_is_called_for_answered_images(images: Tensor) -> None:
    dynamic = answering()
    rows = []
    for module in dynamic.network.modules():
        module.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    set_share(dynamic, images, 1.0)
    dynamic(images)
    assert rows == []
    set_share(dynamic, images, 0.7)
    rest = int((~dynamic.run(images).answered).sum())
    assert rest == 3
    assert max(rows) == rest


@torch.no_grad()
def test_the_executor_hands_the_resnet_no_answered_image(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = answering()
    set_share(dynamic, images, 0.7)
    run = dynamic.compile()
    handed: list[int] = []
    original = run._run
    monkeypatch.setattr(run, "_run", lambda x, policy: (handed.append(len(x)), original(x, policy))[1])
    run(images)
    set_share(dynamic, images, 1.0)
    dynamic.compile()  # a new one has the new threshold; the old one takes it per call
    run.run(images, answer_threshold=ANSWER_ALL)
    assert handed == [3]


@torch.no_grad()
@pytest.mark.parametrize("policy_net", ["reference", "stem"])
def test_torchs_counter_agrees_on_what_an_answered_image_costs(policy_net: str) -> None:
    dynamic = answering(policy_net)
    image = torch.randn(1, 3, 32, 32)
    for share in (0, 1):
        set_share(dynamic, torch.randn(1, 3, 32, 32), share)
        with FlopCounterMode(display=False) as counter:
            found = dynamic.run(image)
        assert found.answered.item() == bool(share)
        assert dynamic.flops(found.policy, found.answered).tolist() == [counter.get_total_flops()]
        if share:
            assert counter.get_total_flops() == dynamic.flop_table().policy_network
    with pytest.raises(BlockdropError, match=r"answered: got torch\.bool of shape \(2,\); expected .* \(1,\)"):
        dynamic.flops(torch.ones(1, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))


def test_dealt_decisions_deal_who_is_answered_but_not_what() -> None:
    dynamic = answering()
    images = torch.randn(40, 3, 32, 32)
    set_share(dynamic, images, 0.5)
    assert dynamic.policy_network is not None
    own = Learned(dynamic.policy_network.glance, 3, answer_threshold=dynamic.answer_threshold)
    found, dealt = own(images), Shuffled(own)(images)
    assert found.answered is not None
    assert dealt.answered is not None
    assert not dealt.answered.equal(found.answered)
    assert dealt.answered.sum() == found.answered.sum()
    assert not dealt.policy[dealt.answered].any()
    assert dealt.answer is not None
    assert dealt.answer.equal(found.answer)  # type: ignore[arg-type]


def test_outcomes_with_answers_made_afterwards_are_those_of_a_run_with_them() -> None:
    dynamic = answering()
    images = DataSource("Digits").test.subset(torch.arange(80))
    assert dynamic.policy_network is not None
    rest = evaluate_images(dynamic, images)
    assert rest.answered is not None
    assert not rest.answered.any()
    assert rest.answer is not None
    threshold = confidence(rest.answer).median().item()
    dynamic.policy_network.answer_threshold = threshold
    ran, made = evaluate_images(dynamic, images), rest.answering(threshold, dynamic.flop_table().policy_network)
    assert made.answered_share == pytest.approx(0.5, abs=0.02)
    for name in ("policy", "predictions", "flops", "answered"):
        assert getattr(ran, name).equal(getattr(made, name)), name
    for name in ("losses", "margins"):
        torch.testing.assert_close(getattr(ran, name), getattr(made, name), atol=1e-4, rtol=1e-4)
    assert ran.accuracy == pytest.approx(
        ran.answered_share * ran.answered_accuracy + (1 - ran.answered_share) * ran.rest_accuracy  # type: ignore[operator]
    )


# ---- files


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".t7", ".safetensors"])
def test_a_file_gives_back_the_answers_and_both_thresholds(tmp_path: Path, images: Tensor, suffix: str) -> None:
    dynamic = answering()
    dynamic.operating_point = {"threshold": 0.4, "answer_threshold": 0.9}
    dynamic.save(tmp_path / f"a{suffix}")
    back = blockdrop.load(tmp_path / f"a{suffix}")
    assert back.thresholds == (0.4, 0.9)
    for one, two in zip(dynamic.run(images), back.run(images), strict=True):
        assert one.equal(two)  # type: ignore[union-attr]
    assert "answer threshold 0.9" in repr(back)


@torch.no_grad()
def test_a_network_of_others_answers_too_and_comes_back(tmp_path: Path, images: Tensor) -> None:
    dynamic = blockdrop.make_dynamic(
        torchvision.models.resnet18(num_classes=4), image_size=32, policy_net="pooled"
    )
    assert dynamic.policy_network is not None
    dynamic.policy_network.add_answer(4)
    dynamic.policy_network.answer_threshold = 0.2
    dynamic.eval().save(tmp_path / "a.t7")
    back = blockdrop.load(tmp_path / "a.t7", torchvision.models.resnet18(num_classes=4))
    assert back.run(images).answered.all()
    assert back.run(images).logits.equal(dynamic.run(images).logits)


def test_loading_fits_the_answer_head_to_the_file_or_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    answering().save(tmp_path / "with.t7")
    dynamic_of(*blockdrop.build("R8_Digits")).save(tmp_path / "without.t7")
    _, policy_network = blockdrop.build("R8_Digits")
    load_checkpoint(tmp_path / "with.t7", policy_network=policy_network)
    assert policy_network.num_answers == 10
    load_checkpoint(tmp_path / "without.t7", policy_network=policy_network)
    assert policy_network.num_answers is None
    _, other = blockdrop.build("R14_Digits")
    with pytest.raises(CheckpointError, match=r"decides on 3 blocks, the model has 6"):
        load_checkpoint(tmp_path / "with.t7", policy_network=other)
    assert other.answer is None
    assert "answer_weight" not in other.state_dict()


# ---- learning


def test_images_held_out_are_of_every_class_and_none_is_trained_on() -> None:
    images = DataSource("Digits").train
    training, held = hold_out(images, 0.1)
    assert held is not None
    assert len(training) + len(held) == len(images)
    assert len(held) == round(0.1 * len(images))
    counts = held.labels.bincount().double() / images.labels.bincount()
    assert counts.min() > 0.08
    assert counts.max() < 0.12
    assert hold_out(images, 0.0) == (images, None)


def test_a_temperature_and_a_weight_that_were_put_in_are_found_again() -> None:
    logits = 3 * torch.randn(4000, 5)
    labels = torch.distributions.Categorical(logits=logits / 2.5).sample()
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.1)
    answer = torch.randn(4000, 5).log_softmax(1)
    labels = torch.distributions.Categorical(logits=(logits + 0.4 * answer) / 3).sample()  # too sure by far
    assert fit_weight(logits, answer, labels) == pytest.approx(0.4, abs=0.1)
    assert fit_weight(logits, -answer, labels) == 0.0


def test_the_share_that_has_to_be_answered_follows_from_the_costs() -> None:
    assert answered_share(0.2, 0.6, 0.5) == pytest.approx(0.5)  # 0.2 + 0.5 * 0.6
    assert answered_share(0.2, 0.6, 0.9) == 0.0
    assert answered_share(0.2, 0.6, 0.1) == 1.0


def test_the_chance_to_be_answered_is_a_half_at_the_threshold_and_rises_with_confidence() -> None:
    sure = torch.tensor([0.5, 0.8, 0.95, 1.0])
    answer = torch.stack([sure, 1 - sure], 1).log()
    chances = chances_of_answers(answer, 0.8)
    assert chances[1].item() == pytest.approx(0.5, abs=1e-4)
    assert chances.diff().gt(0).all()
    assert chances.min() >= 0
    assert chances.max() <= 1


GLANCE = ("--recipe", "glance", "--model", "R8_Folder", "--batch_size", 6, "--answer_epochs", 2, "--max_epochs", 2)
MORE = ("--hold_out", 0.34, "--target_flops", 1.3, "--recalibrate", 6, "--test_every", 1, "--settle", 0.5)


@pytest.fixture
def backbone(tmp_path: Path, image_tree: Path, command: Command) -> Path:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--max_epochs", 1, "--batch_size", 6)
    assert command(pretrain, *flags, "--cv_dir", tmp_path / "backbone")[0] == 0
    return tmp_path / "backbone"


def test_the_recipe_teaches_answers_and_its_run_evaluates_as_it_was_tested(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    code, out, error = command(
        finetune, *GLANCE, *MORE, "--data_dir", image_tree, "--pretrained", backbone, "--cv_dir", tmp_path / "run"
    )
    assert code == 0, error
    assert "held-out accuracy of the answers" in out
    assert "of 4 training images that were held out, calibrated by a temperature of" in out
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.policy_network is not None
    assert "answer.weight" in checkpoint.policy_network
    code, out, _ = command(  # of a network that answers, without images to choose on
        finetune, "--model", "R8_Folder", "--data_dir", image_tree, "--pretrained", tmp_path / "run",
        "--batch_size", 6, "--max_epochs", 1, "--cv_dir", tmp_path / "again",
    )  # fmt: skip
    assert (code, "note: no image is answered, as none are held out" in out) == (0, True)
    assert read_checkpoint(tmp_path / "again").answer_threshold == NEVER
    report = tmp_path / "e.json"
    flags = ("--load", tmp_path / "run", "--data_dir", image_tree, "--no_speed", "--json", report)
    code, out, error = command(evaluate, *flags, "--model", "R8_Folder")
    assert code == 0, error
    assert "answered by the policy network:" in out
    found = json.loads(report.read_text())
    assert found["accuracy"] == pytest.approx(checkpoint.metrics["accuracy"])
    assert found["answered"] == pytest.approx(checkpoint.metrics["answered"])
    assert found["answer_threshold"] == (
        None if checkpoint.answer_threshold == NEVER else checkpoint.answer_threshold
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, dict[str, Any]]:
    """A whole run's checkpoint, and its flags; the second epoch of answers sees the first one's images again."""
    root = tmp_path_factory.mktemp("undisturbed")
    data = {"model": "R8_Folder", "data_dir": str(write_image_tree(root / "tree")), "batch_size": 6}
    pretrain.main(PretrainConfig(**data, max_epochs=1, cv_dir=str(root / "backbone")))
    flags: dict[str, Any] = {
        "recipe": "glance", **data, "answer_epochs": 2, "answer_views": 1, "max_epochs": 2, "hold_out": 0.34,
        "target_flops": 1.3, "recalibrate": 6, "settle": 0.5, "save_minutes": 1e-6, "precision": "float32",
        "pretrained": (str(root / "backbone"),),
    }  # fmt: skip
    finetune.main(FinetuneConfig(**flags, cv_dir=str(root / "run")))
    return read_checkpoint(root / "run"), flags


def test_one_policy_for_all_images_is_learned_behind_answers(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    flags = ("--recipe", "one_policy", *GLANCE[2:], *MORE, "--rest_flops", 1.1, "--lr", 0.1)
    code, _, error = command(
        finetune, *flags, "--data_dir", image_tree, "--pretrained", backbone, "--cv_dir", tmp_path / "run"
    )
    assert code == 0, error
    policies = read_checkpoint(tmp_path / "run").policy_network
    assert policies is not None
    assert not policies["logit.weight"].any()
    assert policies["logit.bias"].unique().numel() > 1
    assert policies["answer.weight"].any()


def test_answers_alone_leave_the_resnet_as_it_was_brought(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    flags = ("--recipe", "answers", "--model", "R8_Folder", "--batch_size", 6, "--answer_epochs", 2)
    more = ("--hold_out", 0.34, "--target_flops", 1.2, "--data_dir", image_tree, "--pretrained", backbone)
    code, out, error = command(finetune, *flags, *more, "--cv_dir", tmp_path / "run")
    assert code == 0, error
    assert "policies and ResNet: as they were loaded" in out
    before, after = read_checkpoint(backbone), read_checkpoint(tmp_path / "run")
    assert before.resnet is not None
    assert after.resnet is not None
    assert all(value.equal(after.resnet[key]) for key, value in before.resnet.items())
    dynamic = blockdrop.load(tmp_path / "run")
    assert dynamic.answer_threshold == after.answer_threshold
    data = DataSource("Folder", image_tree)
    outcomes = evaluate_images(dynamic, data.test)
    assert outcomes.answered is not None
    assert outcomes.policy[~outcomes.answered].all()
    assert outcomes.accuracy == pytest.approx(after.metrics["accuracy"])
    files = {file.name: file.read_bytes() for file in (tmp_path / "run").glob("[cm]*")}
    again = command(finetune, *flags, *more, "--cv_dir", tmp_path / "run", "--resume")
    assert again[0] == 0, again[2]
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").glob("[cm]*")} == files


def test_answers_are_a_recipe_of_python_whose_epochs_are_theirs(tmp_path: Path, image_tree: Path) -> None:
    dynamic = blockdrop.make_dynamic(blockdrop.build("R20_Folder", num_classes=2)[0], policy_net="reference")
    how: dict[str, Any] = {"epochs": 2, "batch_size": 6, "hold_out": 0.34, "budget": 0.9, "speed": False}
    trained, report = blockdrop.train(
        dynamic, DataSource("Folder", image_tree), recipe="answers", run_dir=tmp_path / "run", **how
    )
    assert [row.name for row in report.rows] == ["network as brought", "fine-tuned full network", "dynamic"]
    assert report.rows[0].accuracy == report.rows[1].accuracy
    assert trained.policy_network is not None
    assert trained.policy_network.answer is not None
    phases = [json.loads(line)["phase"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert phases.count("answer") == 2
    assert "train" not in phases


def test_the_full_network_teaches_each_view_of_the_images_once(
    image_tree: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Tensor] = []

    class Seen(HintonLoss):
        def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Step:
            lost.append(teacher)
            return super().__call__(student, teacher, labels)

    monkeypatch.setattr(answers, "TEACHING", Seen())
    flags = {"model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 8, "pretrained": (str(backbone),)}
    finetune.main(
        FinetuneConfig.of_recipe(
            "glance", **flags, answer_epochs=3, answer_views=2, max_epochs=2, hold_out=0.34, recalibrate=6,
            target_flops=1.3, cv_dir=str(tmp_path / "run"),
        )
    )  # fmt: skip
    first, second, again = lost  # eight images, one batch an epoch
    assert first.equal(again)
    assert not first.equal(second)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_run_cut_off_while_it_learns_answers_or_policies_goes_on_with_the_same_bits(
    steps: int, undisturbed: tuple[Checkpoint, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, common = undisturbed
    step, calls = Update.__call__, []

    def cut_off(self: Update, loss: Tensor, epoch: int, batch: int) -> Any:
        calls.append((epoch, batch))
        if len(calls) > steps:
            raise KeyboardInterrupt
        return step(self, loss, epoch, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Update, "__call__", cut_off)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(FinetuneConfig(**common, cv_dir=str(tmp_path / "cut")))
    finetune.main(FinetuneConfig(**common, cv_dir=str(tmp_path / "cut"), resume=True))
    two = read_checkpoint(tmp_path / "cut")
    assert one.operating_point == two.operating_point
    for first, second in ((one.resnet, two.resnet), (one.policy_network, two.policy_network)):
        assert first is not None
        assert second is not None
        assert all(value.equal(second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--answer_epochs", 2), "--answer_epochs 2: answers are calibrated on images that weren't trained on"),
        (
            ("--answer_epochs", 2, "--hold_out", 0.1, "--policy", "full"),
            "--answer_epochs 2: means nothing under --policy",
        ),
        (("--answer_lr", 0.2), "--answer_lr 0.2: means nothing here; it goes with --answer_epochs"),
        (
            ("--max_epochs", 0),
            "--max_epochs 0: nothing would be learned; pass --answer_epochs, or --recipe answers",
        ),
        (("--rest_flops", 0.5), "--rest_flops 0.5: means nothing here; it goes with --target_flops"),
        (
            ("--recipe", "glance", "--target_flops", 0.05),
            "--target_flops 0.05: with all images answered the reference",
        ),
    ],
)
def test_flags_that_make_no_sense_are_named(
    flags: tuple[object, ...], message: str, tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    code, _, error = command(
        finetune, "--model", "R8_Folder", "--data_dir", image_tree, "--pretrained", backbone,
        "--initial_keep", 0.9, "--cv_dir", tmp_path / "f", *flags,
    )  # fmt: skip
    assert code == 2
    assert message in error


def test_answering_is_learned_by_reinforce_in_both_commands(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    common = ("--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 6, "--max_epochs", 1)
    flags = ("--reinforce_answers", "--estimator", "leave_one_out", "--samples", 3)
    code, _, error = command(
        cl_train, *common, *flags, "--load", backbone, "--cl_step", 3, "--cv_dir", tmp_path / "c"
    )
    assert code == 0, error
    code, _, error = command(finetune, *common, *flags, "--pretrained", tmp_path / "c", "--cv_dir", tmp_path / "f")
    assert code == 0, error
    before, after = (read_checkpoint(tmp_path / run) for run in ("c", "f"))
    assert (before.answer_threshold, after.answer_threshold) == (0.5, 0.5)
    for run in ("c", "f"):
        lines = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        assert 0 <= next(line for line in lines if line["phase"] == "train")["answers"] <= 1
        assert 0 <= next(line for line in lines if line["phase"] == "test")["answered"] <= 1
    assert before.policy_network is not None
    assert after.policy_network is not None
    for key in ("answer.weight", "features.conv1.weight"):
        assert not before.policy_network[key].equal(after.policy_network[key]), key


def test_reinforce_of_answers_wants_rewards(tmp_path: Path, command: Command) -> None:
    flags = ("--pretrained", tmp_path, "--initial_keep", 0.9, "--estimator", "kept_straight_through")
    code, _, error = command(finetune, *flags, "--reinforce_answers")
    assert code == 2
    assert "--reinforce_answers True: means nothing here; it goes with estimators from rewards" in error
