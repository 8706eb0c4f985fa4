"""Joint training: who learns when, what is counted, and every way of learning end to end."""

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.deciders import Decision, Learned, Shuffled
from agents.names import ESTIMATORS, PATHWISE
from agents.rewards import Reward
from blockdrop import build, cl_train, evaluate, finetune, load, load_checkpoint, save_checkpoint
from blockdrop.data import NORMALISATIONS, DataSource
from blockdrop.errors import BlockdropError
from blockdrop.finetune import Course, FinetuneConfig
from blockdrop.flops import count_flops
from blockdrop.measure import evaluate_images
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.torch_files import read_torch_file
from blockdrop.models.resnet import DroppableResNet
from blockdrop.training.compute import choose_compute
from blockdrop.training.joint import BlockRunner, JointBatch, PathwiseLearner, make_learner, make_optimizers
from blockdrop.training.policies import OperatingPoint
from blockdrop.training.update import Update
from tests.conftest import dynamic_of

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A ResNet-8 for two classes, without a policy network."""
    path = tmp_path / "resnet.t7"
    resnet, _ = build("R8_Folder", num_classes=2)
    save_checkpoint(path, model="R8_Folder", resnet=resnet, normalisation=NORMALISATIONS["half"])
    return path


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """The same with a policy network that keeps about half."""
    path = tmp_path / "both.t7"
    resnet, policy_network = build("R8_Folder", num_classes=2)
    save_checkpoint(
        path,
        model="R8_Folder",
        resnet=resnet,
        policy_network=policy_network,
        normalisation=NORMALISATIONS["half"],
    )
    return path


def records(folder: Path, phase: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["phase"] == phase]


@pytest.mark.parametrize("estimator", [*ESTIMATORS, *PATHWISE])
def test_every_estimator_trains_both_networks(
    estimator: str, tmp_path: Path, image_tree: Path, both: Path, command: Command
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 6, "--max_epochs", 1)
    execution = ("--execution", "masked") if estimator in ("straight_through", "gumbel") else ()
    code, _, error = command(
        finetune, *flags, "--pretrained", both, "--estimator", estimator, *execution, "--cv_dir", tmp_path / "f"
    )
    assert (code, error.startswith("error")) == (0, False)
    before, after = read_checkpoint(both), read_checkpoint(tmp_path / "f")
    assert before.policy_network is not None
    assert after.policy_network is not None
    assert not before.policy_network["logit.weight"].equal(after.policy_network["logit.weight"])
    assert before.resnet is not None
    assert after.resnet is not None
    assert not before.resnet["conv1.weight"].equal(after.resnet["conv1.weight"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_curriculum_takes_every_estimator_from_rewards(
    estimator: str, tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--max_epochs", 1, "--policy_net", "pooled4")
    more = ("--load", backbone, "--estimator", estimator, "--reward", "log_likelihood", "--target_flops", 0.5)
    assert command(cl_train, *flags, *more, "--cv_dir", tmp_path / "c")[0] == 0
    (epoch,) = records(tmp_path / "c", "train")
    # One decided block of three: the policies of an image share the two before it, and whatever they agree on.
    assert 12 * 2 <= epoch["block_executions"] <= 12 * 3
    assert epoch["spent"] > 0.5


def test_the_fast_recipe_starts_from_a_plain_backbone(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 6, "--pretrained", backbone)
    code, _, error = command(finetune, *flags, "--cv_dir", tmp_path / "r")
    assert code == 2
    assert "no policy network in it" in error

    fast = ("--recipe", "fast", "--max_epochs", 3, "--settle", 0.4, "--recalibrate", 6, "--keep_full", 0.2)
    code, out, _ = command(finetune, *flags, *fast, "--cv_dir", tmp_path / "f")
    assert code == 0
    assert "policies: learned for 2 epochs, then settled for 1, the ResNet from the weights as loaded\n" in out
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    recipe = FinetuneConfig.RECIPES["fast"]
    assert {
        **recipe,
        "batch_size": 6,
        "max_epochs": 3,
        "settle": 0.4,
        "recalibrate": 6,
        "keep_full": 0.2,
    }.items() <= config.items()
    assert config["recipe"] == "fast"
    assert {line["policy_net"] for line in [config]} == {recipe["policy_net"]}
    first, second, settled = records(tmp_path / "f", "train")
    assert first["block_executions"] < second["block_executions"] < settled["block_executions"]
    assert {"price", "spent", "divergence", "information"} <= first.keys()
    assert "information" not in settled


def test_the_threshold_meets_the_target_on_training_images_once_policies_settle(
    tmp_path: Path, image_tree: Path, backbone: Path
) -> None:
    settled: dict[str, Any] = {
        "settle": 0.5,
        "max_epochs": 2,
        "estimator": "kept_straight_through",
        "policy_net": "stem",
    }
    config = FinetuneConfig(
        model="R8_Folder", data_dir=str(image_tree), batch_size=6, pretrained=(str(backbone),), target_flops=0.8,
        cv_dir=str(tmp_path / "f"), initial_keep=0.7, **settled,
    )  # fmt: skip
    metrics = finetune.main(config)
    checkpoint = read_checkpoint(tmp_path / "f")
    point = checkpoint.operating_point
    assert point is not None
    assert point["threshold"] == metrics["threshold"] == records(tmp_path / "f", "test")[-1]["threshold"]
    assert point["budget"] == 0.8

    resnet, policy_network = build("R8_Folder", num_classes=2, policy_net="stem")
    load_checkpoint(checkpoint, resnet=resnet, policy_network=policy_network)
    data, flops = DataSource("Folder", str(image_tree)), count_flops(resnet, policy_network)

    def share(threshold: float) -> float:
        dynamic = dynamic_of(resnet, policy_network, threshold=threshold)
        return evaluate_images(dynamic, data.train).flops_per_image[0] / flops.full

    assert share(point["threshold"]) == pytest.approx(point["flops_fraction"])
    assert share(point["threshold"]) <= 0.8
    assert share(0.5) > 0.8


def test_settled_policies_are_those_of_the_tests_in_bfloat16_too(tmp_path: Path, image_tree: Path) -> None:
    """Keep probabilities of 0.5 and a little less, which bfloat16 rounds to 0.5, at a threshold of 0.5."""
    resnet, policy_network = build("R8_Folder", num_classes=2, policy_net="constant")
    policy_network.logit.bias.data = torch.tensor([0.0, -1e-4, -1e-4])
    keep_probs = policy_network(torch.zeros(1, 3, 32, 32))[0]
    assert (keep_probs >= 0.5).tolist() == [[True, False, False]]
    assert (keep_probs.bfloat16() >= 0.5).all(), "or there would be nothing to lose"
    save_checkpoint(
        path := tmp_path / "half.t7", model="R8_Folder", resnet=resnet, policy_network=policy_network,
        policy_net="constant", normalisation=NORMALISATIONS["half"],
    )  # fmt: skip
    config = FinetuneConfig(
        model="R8_Folder", data_dir=str(image_tree), pretrained=(str(path),), cv_dir=str(tmp_path / "f"),
        settle=1.0, max_epochs=1, precision="bfloat16",
    )  # fmt: skip
    finetune.main(config)
    for phase in ("train", "test"):
        assert [line["blocks"] for line in records(tmp_path / "f", phase)] == [1]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("bias_lr", [None, 0.5])
def test_every_weight_is_learned_once_and_the_bias_of_the_logits_at_its_own_rate(
    optimizer: str, bias_lr: float | None
) -> None:
    resnet, policy_network = build("R8_C10", policy_net="stem")
    optimizers = make_optimizers(
        resnet, policy_network,
        optimizer=optimizer, lr=0.25, wd=0.0, bias_lr=bias_lr, resnet_lr=0.125, resnet_wd=0.0,  # type: ignore[arg-type]
    )  # fmt: skip
    rates: dict[torch.nn.Parameter, float] = {}
    for group in (group for each in optimizers.values() for group in each.param_groups):
        for parameter in group["params"]:
            assert parameter not in rates
            rates[parameter] = group["lr"]
    assert rates.keys() == {*resnet.parameters(), *policy_network.parameters()}
    assert rates.pop(policy_network.logit.bias) == (bias_lr or 0.25)
    assert {rates[parameter] for parameter in policy_network.own_parameters() if parameter in rates} == {0.25}
    assert {rates[parameter] for parameter in resnet.parameters()} == {0.25 if optimizer == "adam" else 0.125}


def test_all_learning_rates_follow_the_schedule(
    tmp_path: Path, image_tree: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []
    step = Update.__call__

    def spy(self: Update, *given: Any) -> None:
        rates.append([group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups])
        step(self, *given)

    monkeypatch.setattr(Update, "__call__", spy)
    config = FinetuneConfig.of_recipe(
        "fast", model="R8_Folder", data_dir=str(image_tree), pretrained=(str(backbone),), batch_size=6,
        cv_dir=str(tmp_path / "f"), max_epochs=3, recalibrate=0,
    )  # fmt: skip
    finetune.main(config)
    assert config.bias_lr is not None
    bases = (config.lr, config.bias_lr, config.resnet_lr)
    shares = [[rate / base for rate, base in zip(each, bases, strict=True)] for each in rates]
    assert all(each == pytest.approx([each[0]] * 3) for each in shares)
    assert len({each[0] for each in shares}) > 2


def test_a_target_that_no_threshold_meets_leaves_the_threshold(
    tmp_path: Path, image_tree: Path, both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point, dynamic = OperatingPoint(), load(both)
    images = DataSource("Folder", image_tree).train
    point.choose(0.01, dynamic, images, choose_compute(precision="float32"), dynamic.flop_table())
    assert point.threshold == 0.5
    assert point.recorded() is None
    assert "threshold 0.5 stays: budget 0.01: can't be met" in capsys.readouterr().out


def test_a_recipe_sets_the_flags_that_are_not_given() -> None:
    fast = FinetuneConfig.RECIPES["fast"]
    for config in (
        FinetuneConfig(recipe="fast", alpha=0.8, load=("a",)),
        FinetuneConfig.of_recipe("fast", alpha=0.8, load=("a",)),
    ):
        expected = {**fast, "alpha": 0.8, "load": ("a",), "recipe": "fast"}
        assert {flag: getattr(config, flag) for flag in expected} == expected, "0.8 is the reference's, but given"
        for same in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
            assert (same, vars(same)) == (config, vars(config))
        assert vars(config).keys() == {field.name for field in dataclasses.fields(config)}
        assert dataclasses.replace(config, settle=0.0).settle == 0
    assert FinetuneConfig.of_recipe("reference") == FinetuneConfig()


@pytest.mark.parametrize(
    ("module", "config_class"), [(finetune, FinetuneConfig), (cl_train, cl_train.CurriculumConfig)]
)
def test_an_unknown_recipe_is_one_line_that_names_those_of_the_command(
    module: Any, config_class: Any, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(finetune.FinetuneConfig.RECIPES, "mine", {"alpha": 0.6})
    names = "reference, fast, answers, glance, one_policy, mine" if module is finetune else "reference, fast"
    line = f"--recipe slow: no recipe of this command; choose {names}"
    for how in (lambda: config_class(recipe="slow"), lambda: config_class.of_recipe("slow", lr=0.1)):
        with pytest.raises(BlockdropError, match=line):
            how()
    code, _, error = command(module, "--recipe", "slow")
    assert (code, error) == (2, f"error: {line}; --help lists the flags")
    assert finetune.FinetuneConfig(recipe="mine").alpha == 0.6
    if module is cl_train:
        code, _, error = command(module, "--recipe", "mine")
        assert (code, error) == (2, f"error: {line.replace('slow', 'mine')}; --help lists the flags")


def test_frozen_and_settling_epochs_train_one_network_each(tmp_path: Path, image_tree: Path, both: Path) -> None:
    common: dict[str, Any] = {
        "model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 6, "max_epochs": 1, "lr": 0.01,
        "pretrained": (str(both),), "estimator": "kept_straight_through",
    }  # fmt: skip
    finetune.main(FinetuneConfig(**common, cv_dir=str(tmp_path / "frozen"), freeze_epochs=1))
    finetune.main(FinetuneConfig(**common, cv_dir=str(tmp_path / "settled"), settle=1.0))
    start, frozen, settled = (read_checkpoint(path) for path in (both, tmp_path / "frozen", tmp_path / "settled"))

    def equal(a: dict[str, torch.Tensor] | None, b: dict[str, torch.Tensor] | None) -> bool:
        assert a is not None
        assert b is not None
        return all(a[key].equal(b[key]) for key in a)

    assert equal(start.resnet, frozen.resnet)
    assert not equal(start.policy_network, frozen.policy_network)
    assert equal(start.policy_network, settled.policy_network)
    assert not equal(start.resnet, settled.resnet)


def test_who_learns_when() -> None:
    config = FinetuneConfig(max_epochs=6, freeze_epochs=2, settle=0.17, alternate=True)
    course = Course(config, batches=10)
    assert [course.phase(step) for step in (0, 10, 50)] == [(False, True), (False, True), (True, False)]
    assert [course.phase(step) for step in (20, 21, 22)] == [(True, False), (False, True), (True, False)]
    config.accumulate = 2
    turns = [course.phase(step).resnet for step in range(20, 26)]
    assert turns == [True, True, False, False, True, True], "batches of one step go to one network"
    assert Course(FinetuneConfig(policy="full", freeze_epochs=1), 10).phase(0) == (True, False)
    assert Course(FinetuneConfig(), 10).phase(1) == (True, True)


def test_policies_settle_at_a_step_and_have_the_first_one_unless_they_learn_nothing_at_all() -> None:
    for epochs, settle, expected in (
        (1, 0.7, 3), (1, 0.6667, 3), (1, 0.99, 1), (1, 1.0, 0), (3, 0.9, 3), (15, 0.6667, 50), (4, 0.0, 40),
        (4, 0.001, 39),
    ):  # fmt: skip
        assert Course(FinetuneConfig(max_epochs=epochs, settle=settle), batches=10).settled_from == expected
    assert Course(FinetuneConfig(max_epochs=4, policy="full"), batches=10).settled_from == 0
    steps = [(3, 0.45, 10), (1, 0.99, 10), (1, 0.99, 2)]
    three = [Course(FinetuneConfig(max_epochs=e, settle=s, accumulate=3), b).settled_from for e, s, b in steps]
    assert three == [16, 3, 2], "batches whose gradients make one step stay together"


def test_policies_that_are_settled_from_the_start_keep_their_operating_point(
    tmp_path: Path, image_tree: Path
) -> None:
    """Keep probabilities of 0.6, 0.4 and 0.4 at a threshold of 0.3, and then within a budget of one block less."""
    resnet, policy_network = build("R8_Folder", num_classes=2, policy_net="constant")
    policy_network.logit.bias.data = torch.tensor([0.6, 0.4, 0.35]).logit()
    save_checkpoint(
        path := tmp_path / "point.t7", model="R8_Folder", resnet=resnet, policy_network=policy_network,
        normalisation=NORMALISATIONS["half"], policy_net="constant", operating_point={"threshold": 0.3},
    )  # fmt: skip
    common: dict[str, Any] = {
        "model": "R8_Folder", "data_dir": str(image_tree), "pretrained": (str(path),), "settle": 1.0,
        "max_epochs": 1,
    }  # fmt: skip
    for name, blocks, flags in (("kept", 3, {}), ("budget", 2, {"target_flops": 0.8})):
        finetune.main(FinetuneConfig(**common, **flags, cv_dir=str(tmp_path / name)))  # type: ignore[arg-type]
        for phase in ("train", "test"):
            assert [line["blocks"] for line in records(tmp_path / name, phase)] == [blocks]
    point = read_checkpoint(tmp_path / "kept").operating_point
    assert point is not None
    assert point["threshold"] == 0.3


def test_a_recipe_that_settles_nothing_rewinds_nothing_and_leaves_no_stem_behind(
    tmp_path: Path, image_tree: Path, backbone: Path
) -> None:
    config = FinetuneConfig.of_recipe(
        "fast", model="R8_Folder", data_dir=str(image_tree), batch_size=6, pretrained=(str(backbone),), settle=0.0,
        max_epochs=1, cv_dir=str(tmp_path / "f"),
    )  # fmt: skip
    dataclasses.replace(config, rewind=False).check()
    finetune.main(config)
    before, after = read_checkpoint(backbone).resnet, read_checkpoint(tmp_path / "f").resnet
    assert before is not None
    assert after is not None
    assert not before["conv1.weight"].equal(after["conv1.weight"])


def test_a_rewound_resnet_goes_on_from_the_weights_it_was_loaded_with(
    tmp_path: Path, image_tree: Path, backbone: Path
) -> None:
    """A learning rate too small to be seen in the one settled epoch shows what that one began with."""
    flags: dict[str, Any] = {
        "model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 6, "max_epochs": 2, "settle": 0.5,
        "keep_full": 0.2, "target_flops": 0.7, "pretrained": (str(backbone),), "test_every": 1, "recalibrate": 0,
    }  # fmt: skip
    loaded = read_checkpoint(backbone).resnet
    assert loaded is not None
    learned = [key for key in loaded if key.startswith("blocks") and key.endswith("conv1.weight")]
    for name, rewind in (("rewound", True), ("not", False)):
        config = FinetuneConfig.of_recipe("fast", cv_dir=str(tmp_path / name), rewind=rewind, **flags)
        finetune.main(config)
        first, last = (read_checkpoint(next((tmp_path / name).glob(f"ckpt_E_{epoch}_*"))).resnet for epoch in "01")
        assert first is not None
        assert last is not None
        for key in learned:
            moved = (first[key] - loaded[key]).norm()
            assert moved > 0
            ended = (last[key] - loaded[key]).norm(), (last[key] - first[key]).norm()
            assert (ended[0] < ended[1]) == rewind, "nearer to where it began anew"
        stem = [key for key in loaded if key.startswith(("conv1", "bn1"))]
        assert all(last[key].equal(loaded[key]) for key in stem) == rewind, "what the policy network looks through"


def test_the_optimisers_begin_anew_with_the_weights(tmp_path: Path, image_tree: Path, backbone: Path) -> None:
    """Momentum of the first epoch, if it were kept, would carry the rewound weights on at a learning rate of 0."""
    flags: dict[str, Any] = {
        "model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 6, "max_epochs": 2, "settle": 0.5,
        "pretrained": (str(backbone),), "recalibrate": 0, "save_minutes": 1e-6,
    }  # fmt: skip
    finetune.main(FinetuneConfig.of_recipe("fast", cv_dir=str(tmp_path / "f"), **flags))
    state = read_torch_file(tmp_path / "f" / "state.pt")
    steps = {int(moments["step"]) for moments in state["parts"]["adam"]["state"].values() if "step" in moments}
    assert steps == set(), "Adam's moments of the policy network, which no longer learns, are gone"


def test_after_a_rewind_the_learning_rate_begins_anew() -> None:
    plain = FinetuneConfig.of_recipe("fast", max_epochs=10, settle=0.5, rewind=False)
    config = FinetuneConfig.of_recipe("fast", max_epochs=10, settle=0.5)
    rewound, whole = Course(config, batches=100), Course(plain, batches=100)
    assert rewound.lr_factor(450) == whole.lr_factor(450)
    assert rewound.lr_factor(500) == Course(dataclasses.replace(plain, max_epochs=5), 100).lr_factor(0) < 0.05
    assert rewound.lr_factor(749) == whole.lr_factor(499) == pytest.approx(0.5)
    steps = Course(FinetuneConfig(max_epochs=10, settle=0.5, rewind=True, epoch_step=2), batches=10)
    assert [steps.lr_factor(step) for step in (19, 20, 49, 50, 69, 70)] == pytest.approx([1, 0.1, 0.01, 1, 1, 0.1])


def test_cosine_rises_then_falls_to_zero() -> None:
    course = Course(FinetuneConfig(schedule="cosine", max_epochs=10), batches=100)
    assert course.lr_factor(0) == pytest.approx(0.02, rel=1e-4)
    assert course.lr_factor(499) == pytest.approx(0.5)
    assert course.lr_factor(999) == pytest.approx(0.0)
    assert course.lr_factor(24) == pytest.approx((1 + math.cos(math.pi * 0.025)) / 4)


def test_executions_are_those_of_the_way_that_runs() -> None:
    policies = torch.tensor([[[True, True, False]], [[True, False, True]]])
    resnet, compute = build("R8_C10")[0], choose_compute("cpu", "float32")
    assert BlockRunner(resnet, compute, "masked").executions(policies) == 6
    assert BlockRunner(resnet, compute, "sparse").executions(policies) == 3


def test_counted_work_of_an_epoch(tmp_path: Path, image_tree: Path, both: Path) -> None:
    config = FinetuneConfig(
        model="R8_Folder", data_dir=str(image_tree), batch_size=6, max_epochs=1, pretrained=(str(both),),
        execution="masked", cv_dir=str(tmp_path / "f"),
    )  # fmt: skip
    finetune.main(config)
    (epoch,) = records(tmp_path / "f", "train")
    # 12 images, 3 blocks: forward and backward (which counts twice) of the draw, forward of the MAP policy
    assert epoch["block_executions"] == 12 * 3 * (3 + 1)


@pytest.mark.parametrize("estimator", ["leave_one_out", "kept_straight_through"])
@pytest.mark.parametrize("frozen", [False, True])
def test_counted_work_is_what_the_blocks_do(image_tree: Path, both: Path, estimator: str, frozen: bool) -> None:
    """Where weights don't learn, the backward pass is through the maps alone, or there is none."""
    dynamic = load(both).train()
    resnet = dynamic.network.requires_grad_(not frozen)
    assert isinstance(resnet, DroppableResNet)
    assert dynamic.policy_network is not None
    rows: list[int] = []
    for branch, _ in resnet.branches():
        branch.register_forward_hook(lambda _module, given, _out: rows.append(len(given[0])))
    reward = Reward("blockdrop", -5.0, torch.ones(3))
    learn = make_learner(
        BlockRunner(resnet, choose_compute("cpu", "float32")), estimator, reward,  # type: ignore[arg-type]
        samples=2, alpha=0.8, temperature=1.0, information=0.0,
    )  # fmt: skip
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1] * 3)
    keep_probs, values = dynamic.policy_network(images)
    draws = torch.Generator().manual_seed(0)
    step = learn(JointBatch(images, labels, Decision(keep_probs, keep_probs >= 0.5, values), draws))
    passes = 3 if not frozen else 2 if estimator == "kept_straight_through" else 1
    assert 0 < sum(rows) * passes == step.executions


@pytest.mark.parametrize("reward", ["blockdrop", "flops", "log_likelihood"])
def test_the_logged_and_stored_reward_is_the_one_that_is_trained_on(
    reward: str, tmp_path: Path, image_tree: Path, both: Path
) -> None:
    config = FinetuneConfig(
        model="R8_Folder", data_dir=str(image_tree), max_epochs=1, pretrained=(str(both),), settle=1.0, lr=1e-12,
        cv_dir=str(tmp_path / "f"), reward=reward, penalty=-2.0, precision="float32",  # type: ignore[arg-type]
    )  # fmt: skip
    finetune.main(config)
    (test,) = records(tmp_path / "f", "test")
    dynamic = load(tmp_path / "f")
    outcomes = evaluate_images(dynamic, DataSource("Folder", image_tree).test)
    assert outcomes.losses is not None
    costs = torch.tensor(dynamic.flop_table().blocks)
    share = outcomes.policy.double() @ (costs / costs.sum()).double()
    expected = {
        "blockdrop": torch.where(outcomes.correct, 1 - outcomes.policy.double().mean(1) ** 2, -2.0),
        "flops": torch.where(outcomes.correct, 1 - share**2, -2.0),
        "log_likelihood": 1 - share**2 - 2 * outcomes.losses,
    }[reward]
    assert test["reward"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert dynamic.metrics["reward"] == test["reward"]


@pytest.mark.parametrize("keep_full", [0.0, 0.5])
def test_the_price_of_a_block_for_an_image_is_the_same_beside_images_that_keep_all(keep_full: float) -> None:
    resnet, _ = build("R8_C10")
    compute, costs = choose_compute("cpu", "float32"), torch.ones(3)
    blocks = BlockRunner(resnet.eval(), compute, keep_full=keep_full)
    learn = PathwiseLearner(blocks, "kept_straight_through", costs, alpha=1.0, penalty=-5.0)
    images, labels = torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)

    def gradient(price: float) -> torch.Tensor:
        keep_probs = torch.full((8, 3), 0.5).requires_grad_()
        draws = torch.Generator().manual_seed(0)
        decision = Decision(keep_probs, keep_probs.detach() >= 0.5)
        step = learn(JointBatch(images, labels, decision, draws, price))
        return torch.autograd.grad(step.loss, keep_probs)[0][-1]

    torch.testing.assert_close(gradient(1.0) - gradient(0.0), torch.full((3,), 1 / 3 / 8), atol=1e-5, rtol=1e-4)


def test_self_distillation_counts_its_teacher(tmp_path: Path, image_tree: Path, both: Path) -> None:
    config = FinetuneConfig(
        model="R8_Folder", data_dir=str(image_tree), batch_size=6, max_epochs=1, pretrained=(str(both),),
        execution="masked", cv_dir=str(tmp_path / "f"), estimator="straight_through", distill=1.0,
    )  # fmt: skip
    finetune.main(config)
    (epoch,) = records(tmp_path / "f", "train")
    assert epoch["block_executions"] == 12 * 3 * (3 + 1)
    assert epoch["divergence"] >= 0


def test_settled_policies_may_have_another_weight_of_the_divergence(
    tmp_path: Path, image_tree: Path, backbone: Path
) -> None:
    config = FinetuneConfig.of_recipe(
        "fast", model="R8_Folder", data_dir=str(image_tree), pretrained=(str(backbone),), batch_size=6,
        cv_dir=str(tmp_path / "f"), max_epochs=2, settle=0.5, keep_full=0.5, recalibrate=0,
        distill=0.0, settled_distill=2.0, distill_temperature=3.0,
    )  # fmt: skip
    course = Course(config, batches=2)
    assert [course.distill_weight(step) for step in range(4)] == [0, 0, 2, 2]
    finetune.main(config)
    before, settled = records(tmp_path / "f", "train")
    assert "divergence" not in before, "nor has the teacher run"
    assert before["block_executions"] <= 3 * 12 * 3
    expected = settled["cross_entropy"] + 2 * 3**2 * settled["divergence"]
    assert settled["loss"] == pytest.approx(expected, rel=1e-5)

    usual = FinetuneConfig(distill=3.0, settle=0.5, max_epochs=2)
    assert [Course(usual, 1).distill_weight(step) for step in range(2)] == [3, 3]
    none = dataclasses.replace(usual, settled_distill=0.0)
    assert [Course(none, 1).distill_weight(step) for step in range(2)] == [3, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--estimator", "straight_through"), "--execution masked"),
        (("--estimator", "antithetic", "--samples", 3), "even"),
        (("--estimator", "leave_one_out", "--samples", 1), "at least 2"),
        (("--keep_full", 1), "--keep_full 1.0"),
        (("--target_flops", 0), "--target_flops 0.0"),
        (("--initial_keep", 1), "--initial_keep 1.0"),
        (("--settle", 1.5), "--settle 1.5"),
        (("--rewind",), "--rewind True: means nothing here; it goes with --settle"),
        (("--max_epochs", 2, "--freeze_epochs", 2, "--settle", 0.5), "more than the --max_epochs 2"),
        (("--distill", -1), "--distill -1.0"),
        (("--distill", 1, "--distill_temperature", 0), "--distill_temperature 0.0"),
        (("--distill_temperature", 3), "goes with --distill"),
        (("--settled_distill", 2), "goes with --settle"),
        (("--settle", 0.5, "--settled_distill", -2), "--settled_distill -2.0"),
        (("--temperature", 2), "goes with --estimator gumbel"),
        (("--samples", 4), "goes with --estimator leave_one_out"),
        (("--price_rate", 0.1), "goes with --target_flops"),
        (("--resnet_lr", 0.1), "goes with --optimizer sgd"),
        (("--bias_lr", 0), "--bias_lr 0.0: must be a positive number"),
        (("--schedule", "cosine", "--epoch_step", 3), "goes with --schedule step"),
        (("--estimator", "kept_straight_through", "--reward", "flops"), "goes with estimators from rewards"),
        (("--estimator", "kept_straight_through", "--penalty", 0), "--penalty 0"),
        (("--reward", "log_likelihood", "--penalty", 0), "--penalty 0"),
        (("--keep_full", 0.001), "not even one image"),
        (("--target_flops", 0.5, "--anneal", 1), "--anneal 1.0"),
    ],
)
def test_bad_flags_are_named(flags: tuple[object, ...], message: str, both: Path, command: Command) -> None:
    code, _, error = command(finetune, "--model", "R8_Folder", "--pretrained", both, *flags)
    assert code == 2
    assert message in error


def test_the_full_network_is_kept_by_its_share_of_the_batch(tmp_path: Path, image_tree: Path, both: Path) -> None:
    """With a policy network that drops everything, only the images of --keep_full run any block."""
    resnet, policy_network = build("R8_Folder", num_classes=2)
    meta = load_checkpoint(both, resnet=resnet, policy_network=policy_network)
    torch.nn.init.constant_(policy_network.logit.bias, -30.0)
    path = tmp_path / "drops.t7"
    save_checkpoint(
        path, model="R8_Folder", resnet=resnet, policy_network=policy_network, normalisation=meta.normalisation
    )
    config = FinetuneConfig(
        model="R8_Folder", data_dir=str(image_tree), batch_size=6, max_epochs=1, pretrained=(str(path),),
        alpha=1.0, cv_dir=str(tmp_path / "f"), estimator="kept_straight_through", keep_full=0.5,
    )  # fmt: skip
    finetune.main(config)
    (epoch,) = records(tmp_path / "f", "train")
    assert epoch["block_executions"] == 3 * 6 * 3
    assert epoch["blocks"] == 1.5


def test_a_target_below_what_dropping_can_reach_is_refused(
    image_tree: Path, both: Path, tmp_path: Path, command: Command
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--pretrained", both, "--cv_dir", tmp_path / "f")
    code, _, error = command(finetune, *flags, "--target_flops", 0.5)
    assert code == 2
    assert "the reference policy network and the rest cost 1.0" in error
    assert not (tmp_path / "f").exists()


def test_the_price_of_a_curriculum_waits_for_blocks_that_are_not_decided_yet(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    """With one block of three decided the target can't be met, and what can't be saved isn't charged for."""
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--policy_net", "constant", "--load", backbone)
    more = ("--max_epochs", 1, "--batch_size", 2, "--target_flops", 0.1, "--price_rate", 1)
    assert command(cl_train, *flags, *more, "--cv_dir", tmp_path / "c")[0] == 0
    (epoch,) = records(tmp_path / "c", "train")
    share_of_a_block = 7_077_888 / 24_478_720  # the last one of a ResNet-8
    assert epoch["price"] <= (1 + 6) * share_of_a_block


def test_shuffled_policies_are_those_of_other_images() -> None:
    resnet, policy_network = build("R8_Digits", policy_net="pooled4")
    images = DataSource("Digits").test.subset(torch.arange(60))
    dynamic = dynamic_of(resnet, policy_network)
    keep_probs = evaluate_images(dynamic, images).keep_probs
    assert keep_probs is not None
    learned = Learned(policy_network.glance, 3, keep_probs.median().item())
    own, shuffled = (evaluate_images(dynamic, images, decider=decider) for decider in (learned, Shuffled(learned)))
    assert own.unique_policies > 1
    assert not own.policy.equal(shuffled.policy)
    assert sorted(own.policy.tolist()) == sorted(shuffled.policy.tolist())


@pytest.mark.parametrize("policy", ["first_k:2", "random_k:1", "dist_k:2", "full"])
def test_the_resnet_is_fine_tuned_under_a_static_policy(
    policy: str, tmp_path: Path, image_tree: Path, both: Path, command: Command
) -> None:
    start = read_checkpoint(both)
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 6)
    more = ("--recipe", "fast", "--max_epochs", 1, "--recalibrate", 6, "--keep_full", 0, "--policy", policy)
    code, out, error = command(finetune, *flags, *more, "--pretrained", both, "--cv_dir", tmp_path / "f")
    assert code == 0, error
    assert f"under the policy {policy}" in out
    saved = read_checkpoint(tmp_path / "f")
    assert saved.policy_network is None
    assert saved.resnet is not None
    assert start.resnet is not None
    assert not saved.resnet["fc.weight"].equal(start.resnet["fc.weight"])
    blocks = {"full": 3, "first_k:2": 2, "dist_k:2": 2, "random_k:1": 1}[policy]
    (test,), (train,) = records(tmp_path / "f", "test"), records(tmp_path / "f", "train")
    assert test["blocks"] == train["blocks"] == blocks
    flops = count_flops(build("R8_Folder", num_classes=2)[0], None)
    assert (test["flops"] == flops.full) == (policy == "full")
    assert test["flops"] <= flops.full

    given = (both, tmp_path / "f") if policy == "dist_k:2" else (tmp_path / "f",)
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--policy", policy, "--load", *given)
    assert command(evaluate, *flags, "--json", tmp_path / "e.json")[0] == 0
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert numbers["policy"] == policy
    assert numbers["accuracy"] == pytest.approx(test["accuracy"])
    assert numbers["flops_mean"] == pytest.approx(test["flops"])
    assert numbers["policy_network_flops"] == 0


def test_usage_for_dist_k_can_come_from_an_evaluation(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    (tmp_path / "evaluation.json").write_text('{"usage_per_block": [1, 0, 0.5]}')
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--load", backbone)
    policy = f"dist_k:2:{tmp_path / 'evaluation.json'}"
    code, out, error = command(evaluate, *flags, "--policy", policy, "--json", tmp_path / "e.json")
    assert code == 0, error
    assert policy in out
    assert json.loads((tmp_path / "e.json").read_text())["usage_per_block"] == [1, 0, 1]


def test_a_run_does_not_go_on_under_another_usage(
    tmp_path: Path, image_tree: Path, backbone: Path, command: Command
) -> None:
    usage = tmp_path / "evaluation.json"
    usage.write_text('{"usage_per_block": [1, 0, 0.5]}')
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--pretrained", backbone, "--batch_size", 6)
    more = ("--max_epochs", 1, "--policy", f"dist_k:2:{usage}", "--cv_dir", tmp_path / "f", "--resume")
    assert command(finetune, *flags, *more)[0] == 0
    usage.write_text('{"usage_per_block": [0, 1, 0.5]}')
    code, _, error = command(finetune, *flags, *more)
    assert code == 2
    assert "evaluation.json, which the run started from, has changed since" in error


REWINDING = {
    "policy_net": "stem", "initial_keep": 0.9, "estimator": "kept_straight_through", "optimizer": "sgd",
    "settle": 0.6, "rewind": True, "max_epochs": 3,
}  # fmt: skip
WITHIN_AN_EPOCH: dict[str, Any] = {**REWINDING, "settle": 0.5, "target_flops": 0.8}


@pytest.mark.parametrize(
    ("flags", "moment"),
    [
        ({"policy": "random_k:2"}, (1, 1)),
        (REWINDING, (1, 0)),
        (REWINDING, (1, 1)),
        (REWINDING, (2, 0)),
        (WITHIN_AN_EPOCH, (1, 1)),
        (WITHIN_AN_EPOCH, (2, 0)),
    ],
)
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(
    flags: dict[str, Any],
    moment: tuple[int, int],
    tmp_path: Path,
    image_tree: Path,
    both: Path,
    backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common: dict[str, Any] = {
        "model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 6, "max_epochs": 2, "save_minutes": 1e-6,
        "precision": "float32", "pretrained": (str(both if "policy" in flags else backbone),), **flags,
    }  # fmt: skip
    finetune.main(FinetuneConfig(**common, cv_dir=str(tmp_path / "undisturbed")))
    step = Update.__call__

    def cut_off(self: Update, loss: torch.Tensor, epoch: int, batch: int) -> Any:
        if (epoch, batch) == moment:
            raise KeyboardInterrupt
        return step(self, loss, epoch, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Update, "__call__", cut_off)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(FinetuneConfig(**common, cv_dir=str(tmp_path / "cut")))
    finetune.main(FinetuneConfig(**common, cv_dir=str(tmp_path / "cut"), resume=True))
    undisturbed, cut = (read_checkpoint(tmp_path / name) for name in ("undisturbed", "cut"))
    one, two = undisturbed.resnet, cut.resnet
    assert one is not None
    assert two is not None
    assert all(value.equal(two[key]) for key, value in one.items())
    assert undisturbed.operating_point == cut.operating_point


def test_the_policy_network_may_learn_alone_until_the_policies_settle() -> None:
    FinetuneConfig.of_recipe("fast", pretrained=("a",), freeze_epochs=5).check()
    with pytest.raises(BlockdropError, match=r"--freeze_epochs 6 and --settle 0\.6667: more than"):
        FinetuneConfig.of_recipe("fast", pretrained=("a",), freeze_epochs=6).check()


def test_policies_settle_within_the_only_epoch(
    tmp_path: Path, image_tree: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """Of 6 steps two are for the policies: then the threshold is chosen and the ResNet starts anew."""
    as_loaded: list[bool] = []
    step = Update.__call__
    loaded = read_checkpoint(backbone).resnet
    assert loaded is not None
    key = "blocks.0.0.conv1.weight"

    def watch(self: Update, loss: torch.Tensor, epoch: int, batch: int) -> Any:
        weight = self.modules["ResNet"].state_dict()[key]
        as_loaded.append(weight.equal(loaded[key]))
        return step(self, loss, epoch, batch)

    chosen_after: list[int] = []
    choose = OperatingPoint.choose

    def note(self: OperatingPoint, *given: Any) -> None:
        chosen_after.append(len(as_loaded))
        choose(self, *given)

    monkeypatch.setattr(Update, "__call__", watch)
    monkeypatch.setattr(OperatingPoint, "choose", note)
    code, out, _ = command(
        finetune, "--recipe", "fast", "--model", "R8_Folder", "--data_dir", image_tree, "--pretrained", backbone,
        "--batch_size", 2, "--max_epochs", 1, "--target_flops", 0.8, "--cv_dir", tmp_path / "f",
    )  # fmt: skip
    assert code == 0
    assert "policies: learned for 0.33 epochs, then settled for 0.67, the ResNet from the weights as load" in out
    assert as_loaded == [True, False, True, False, False, False]
    assert chosen_after == [2, 6], "before the first settled step, and for the test"
    checkpoint = read_checkpoint(tmp_path / "f")
    assert checkpoint.operating_point is not None
    assert checkpoint.operating_point["budget"] == 0.8
    assert checkpoint.metrics["policy_steps"] == 2


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("first_k:9", "--policy first_k:9: write first_k:K, with K from 0 to 3"),
        ("dist_k:2", "--policy dist_k:2: draws by a learned policy's usage, and no policy network is given"),
        ("best", "--policy best: neither a file nor one of full"),
        ("dist_k:2:missing.json", "missing.json can't be read (No such file or directory)"),
        ("dist_k:2:{}", "evaluation.json holds no usage_per_block of 3 blocks; name what evaluate --json wrote"),
    ],
)
def test_a_static_policy_that_cannot_be_is_named(
    policy: str, message: str, image_tree: Path, backbone: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "evaluation.json").write_text('{"usage_per_block": [0.5, 1]}')
    policy = policy.format(tmp_path / "evaluation.json")
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--policy", policy)
    for module, more in (
        (finetune, ("--pretrained", backbone, "--cv_dir", tmp_path / "f")), (evaluate, ("--load", backbone)),
    ):  # fmt: skip
        code, _, error = command(module, *flags, *more)
        assert code == 2
        assert message in error
    assert not (tmp_path / "f").exists()
