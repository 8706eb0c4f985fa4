"""The distill command: every method, from a trained teacher to a report and a checkpoint of the same accuracy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blockdrop import build, distill, evaluate, load_checkpoint, measure, pretrain, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.distill import JointConfig, KdConfig, StagewiseConfig, make_config
from blockdrop.distillation.joint_loss import JointRD
from blockdrop.distillation.jointrd import parameter_groups
from blockdrop.distillation.method import DistillConfig, StudentConfig
from blockdrop.errors import BlockdropError
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.plain import DiracConv2d, PlainNet, use_dirac
from blockdrop.models.zoo import build_static
from blockdrop.training.hinton import HintonLoss
from tests.conftest import write_image_tree

Command = Callable[..., tuple[int, str, str]]
FIELDS = {"role", "model", "accuracy", "parameters", "flops", "seconds", "engine", "eager_seconds"}
CLASSES = ["black", "dark", "light", "white"]
METHODS: dict[str, dict[str, Any]] = {
    "stagewise": {"method": "stagewise", "max_epochs": 5},
    "kd": {"method": "kd", "student": "plain8", "with_baseline": True},
    "kd of a shift net": {"method": "kd", "student": "shiftresnet8", "student_expansion": 2.0},
    "TA": {"method": "jointrd"},
    "TA with dirac": {"method": "jointrd", "dirac": True},
    "KD": {"method": "jointrd", "procedure": "KD"},
    "KL": {"method": "jointrd", "procedure": "KL"},
    "CNN_NMT": {"method": "jointrd", "procedure": "CNN_NMT"},
    "RES_NMT": {"method": "jointrd", "procedure": "RES_NMT"},
    "CNN_NMT without teacher": {"method": "jointrd", "procedure": "CNN_NMT", "load": ()},
    "RES_NMT without teacher": {"method": "jointrd", "procedure": "RES_NMT", "load": (), "shortcut": "projection"},
    "exact": {"method": "exact"},
}
STUDENTS = {
    "stagewise": "plain8",
    "kd": "plain8",
    "kd of a shift net": "shiftresnet8",
    "RES_NMT": "R8",
    "RES_NMT without teacher": "R8",
    "exact": "exactplain8",
}
"""Architectures; all others give dsplain8."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 40 test images of four shades of grey that overlap: quickly learnt, but never quite."""
    root, generator = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 10)):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                shade = 50 + 50 * label + generator.normal(0, 20)
                pixels = np.clip(generator.normal(shade, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:04}.png")
    return root


class Lab:
    """A teacher trained for a moment, and one run of each method, made when first asked for."""

    def __init__(self, root: Path, tree: Path):
        self.root, self.tree = root, tree
        self.common = {"model": "R8_Folder", "data_dir": str(tree), "batch_size": 8, "max_epochs": 1}
        flags = {**self.common, "max_epochs": 6, "cv_dir": str(root / "teacher"), "shortcut": "pad_stride"}
        pretrain.main(pretrain.PretrainConfig(**flags))
        self.teacher = root / "teacher"
        self.reports: dict[str, dict[str, Any]] = {}

    def config(self, cv_dir: Path, **flags: Any) -> DistillConfig:
        flags = {**self.common, "load": (str(self.teacher),), "cv_dir": str(cv_dir), **flags}
        if flags["method"] == "exact":  # trains nothing
            del flags["batch_size"], flags["max_epochs"]
        return make_config(**flags)

    def run(self, name: str) -> tuple[Path, dict[str, Any]]:
        """The run directory of one of `METHODS`, and what its main returned."""
        if name not in self.reports:
            config = self.config(self.root / name, **METHODS[name], overwrite=True)
            self.reports[name] = distill.main(config)
        return self.root / name, self.reports[name]

    def evaluate(self, path: Path, architecture: str) -> dict[str, Any]:
        config = evaluate.EvaluateConfig(
            model="R8_Folder", arch=architecture, data_dir=str(self.tree), load=(str(path),)
        )
        return evaluate.main(config).evaluation.to_json()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), tree)


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, Tensor]:
    found = read_checkpoint(path).resnet
    assert found is not None
    return found


# ---- every method


@pytest.mark.parametrize("name", METHODS)
def test_a_run_leaves_a_report_and_a_checkpoint_that_evaluate_scores_alike(lab: Lab, name: str) -> None:
    path, report = lab.run(name)
    assert json.loads((path / "report.json").read_text()) == report
    assert report["method"] == METHODS[name]["method"]
    assert (report["dataset"], report["images"], report["batch_size"]) == ("Folder", 40, 1024)
    assert report["timed_images"] == 40, "there are no more"
    rows = report["networks"]
    assert all(row.keys() == FIELDS for row in rows)
    assert all(row["seconds"] > 0 and row["eager_seconds"] > 0 for row in rows)

    *others, student = rows
    if METHODS[name].get("load", "teacher"):
        teacher = others.pop(0)
        assert (teacher["role"], teacher["model"]) == ("teacher", "R8_Folder")
        assert teacher["accuracy"] == read_checkpoint(lab.teacher).metrics["accuracy"]
    assert [row["role"] for row in others] == (["alone"] if name == "kd" else [])
    architecture = STUDENTS.get(name, "dsplain8")
    assert student["model"] == f"{architecture}_Folder"

    numbers = lab.evaluate(path, architecture)
    assert numbers["accuracy"] == student["accuracy"] == read_checkpoint(path).metrics["accuracy"]
    assert numbers["parameters"] == student["parameters"]
    assert numbers["flops_mean"] == student["flops"]
    assert (numbers["block_usage_mean"], numbers["block_usage_std"]) == (3, 0)
    record = json.loads((path / "config.json").read_text())
    assert (record["command"], record["method"]) == ("distill", METHODS[name]["method"])
    assert (path / "profile.txt").exists() == (METHODS[name]["method"] == "kd")


def test_a_student_inherits_the_teachers_normalisation_and_shortcuts(lab: Lab) -> None:
    teacher = read_checkpoint(lab.teacher)
    assert teacher.shortcut == "pad_stride", "not the default"
    for name, shortcut in (
        ("TA", "pad_stride"),
        ("RES_NMT", "pad_stride"),
        ("RES_NMT without teacher", "projection"),
        ("stagewise", None),
        ("kd of a shift net", "projection"),
    ):
        student = read_checkpoint(lab.run(name)[0])
        assert student.shortcut == shortcut, name
        assert student.normalisation == teacher.normalisation
        assert student.classes == CLASSES
    assert student.variant.numbers() == {"expansion": 2.0}


def test_same_seed_same_student(tmp_path: Path, lab: Lab) -> None:
    distill.main(lab.config(tmp_path / "again", **METHODS["TA"]))
    first, again = weights(lab.run("TA")[0]), weights(tmp_path / "again")
    assert all(value.equal(again[key]) for key, value in first.items())


def test_the_command_prints_what_runs_and_a_table(tmp_path: Path, lab: Lab, command: Command) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", lab.tree, "--load", lab.teacher, "--cv_dir", tmp_path / "run")
    code, out, _ = command(distill, "--method", "exact", *flags)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("distill --method exact exactplain8_Folder (")
    assert "data: Folder, 48 training, 40 test images" in lines
    assert f"teacher: R8_Folder (74,900 parameters) from {lab.teacher}" in lines
    teacher, student = (" ".join(line.split()) for line in lines[-3:-1])
    assert teacher.startswith("teacher R8_Folder 0.")
    assert teacher.count("(1.00 ×)") == 2, "times are relative to the teacher's"
    assert student.startswith("student exactplain8_Folder 0.")
    assert lines[-1] == f"report: {tmp_path / 'run' / 'report.json'}"
    assert lines[-5] == "all 40 test images, at batch 1024, BatchNorm folded, in turns:"


def test_the_student_is_named_after_the_teacher_that_the_checkpoint_says(tmp_path: Path, lab: Lab) -> None:
    for method, student in (
        ({"method": "exact"}, "exactplain8_Folder"),
        (METHODS["stagewise"], "plain8_Folder"),
        ({"method": "kd", "student": "R8"}, "R8_Folder"),
    ):
        path = tmp_path / student
        report = distill.main(lab.config(path, model=None, **method))
        assert [report["networks"][row]["model"] for row in (0, -1)] == ["R8_Folder", student]
        assert read_checkpoint(path).model == student


def test_the_comparison_compiles_each_network_once_and_says_how_many_images_it_timed(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[nn.Module] = []
    timed: list[int] = []

    def count_compiled(network: Any, *args: Any, **options: Any) -> Any:
        compiled.append(network)
        return compile_network(network, *args, **options)

    def count_timed(runs: Any, batches: list[Tensor], device: torch.device) -> list[float]:
        timed.extend(map(len, batches))
        return [0.25 for _ in runs]

    compile_network = measure.compile
    monkeypatch.setattr(measure, "compile", count_compiled)
    monkeypatch.setattr(measure, "seconds_in_turns", count_timed)
    report = distill.main(lab.config(tmp_path / "run", method="exact", timed_images=16))
    assert len(compiled) == 3, "one tests the student, two compare"
    assert timed == [16]
    assert (report["images"], report["timed_images"]) == (40, 16)
    assert {row["seconds"] for row in report["networks"]} == {0.25 * 40 / 16}
    assert "all 40 test images, seconds scaled from 16 of them, at batch 1024" in capsys.readouterr().out


def test_the_first_lines_say_where_the_students_head_is_from(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(config: DistillConfig, job: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(StagewiseConfig, "run", stop)
    monkeypatch.setattr(KdConfig, "run", stop)
    init = {"student_init": (str(lab.run("CNN_NMT")[0]),), "student": "dsplain8"}
    for name, flags, weights_from, head in (
        ("a", {**METHODS["stagewise"], **init}, "CNN_NMT", True),
        ("b", METHODS["stagewise"], "scratch", True),
        ("c", {"method": "kd", **init}, "CNN_NMT", False),
    ):
        capsys.readouterr()
        with pytest.raises(StoppedError):
            distill.main(lab.config(tmp_path / name, **flags))
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("weights from: ") and weights_from in line for line in lines)
        assert any(line.startswith("the student's head: the teacher's") for line in lines) == head


# ---- stagewise


def test_the_epochs_of_all_stages_and_of_fine_tuning_add_up(lab: Lab) -> None:
    path, _ = lab.run("stagewise")
    lines = metrics(path)
    trained = [(line["epoch"], line["phase"]) for line in lines if line["phase"] not in ("test", "stages")]
    # of five epochs a fifth for each of the three stages
    assert trained == [(0, "stage1"), (1, "stage2"), (2, "stage3"), (3, "train"), (4, "train")]
    hybrids = [(line["epoch"], line["stage"]) for line in lines if line["phase"] == "stages"]
    assert hybrids == [(0, 1), (1, 2), (2, 3)]
    assert [line["epoch"] for line in lines if line["phase"] == "test"] == [2, 4], (
        "with the teacher's head, and tuned"
    )


def test_stages_may_take_all_epochs(tmp_path: Path, lab: Lab) -> None:
    report = distill.main(lab.config(tmp_path / "run", method="stagewise", max_epochs=6, stage_epochs=2))
    phases = [line["phase"] for line in metrics(tmp_path / "run") if line["phase"] not in ("test", "stages")]
    assert phases == ["stage1", "stage1", "stage2", "stage2", "stage3", "stage3"]
    student, teacher = read_checkpoint(tmp_path / "run"), read_checkpoint(lab.teacher)
    assert student.metrics["accuracy"] == report["networks"][-1]["accuracy"]
    assert student.resnet is not None
    assert teacher.resnet is not None
    for key in ("fc.weight", "fc.bias"):
        assert student.resnet[key].equal(teacher.resnet[key]), "without fine-tuning the head is the teacher's"


def test_stages_and_fine_tuning_have_learning_rates_of_their_own(tmp_path: Path, lab: Lab) -> None:
    flags = {"method": "stagewise", "max_epochs": 5, "schedule": "step", "stage_lr": 0.03, "finetune_lr": 0.01}
    distill.main(lab.config(tmp_path / "run", **flags))
    rates = [line["lr"] for line in metrics(tmp_path / "run") if "lr" in line]
    assert rates == pytest.approx([0.03, 0.03, 0.03, 0.01, 0.01])


def test_stages_that_need_more_epochs_than_there_are(tmp_path: Path, lab: Lab, command: Command) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", lab.tree, "--load", lab.teacher, "--cv_dir", tmp_path / "run")
    for given, message in (
        (("--max_epochs", 2), "--max_epochs 2: 3 stages of 1 epochs take 3"),
        (("--max_epochs", 8, "--stage_epochs", 3), "--max_epochs 8: 3 stages of 3 epochs take 9"),
    ):
        code, _, error = command(distill, "--method", "stagewise", *flags, *given, "--overwrite")
        assert (code, error) == (2, f"error: {message}")


# ---- kd


def test_a_baseline_is_the_same_student_alone(lab: Lab) -> None:
    path, report = lab.run("kd")
    teacher, alone, distilled = report["networks"]
    assert [row["role"] for row in (teacher, alone, distilled)] == ["teacher", "alone", "distilled"]
    assert alone["model"] == distilled["model"] == "plain8_Folder"
    assert alone["flops"] == distilled["flops"]
    assert lab.evaluate(path / "baseline", "plain8")["accuracy"] == alone["accuracy"]
    lines = {name: metrics(path / name) for name in (".", "baseline")}
    assert [len(part) for part in lines.values()] == [2, 2], "an epoch and a test each"
    assert "kl" in lines["."][0]
    assert "kl" not in lines["baseline"][0]
    tables = (path / "profile.txt").read_text()
    for role in ("teacher R8_Folder", "alone plain8_Folder", "distilled plain8_Folder"):
        assert f"one inference of {role}:" in tables
    assert tables.count("Self CPU time total") == 3


def test_both_terms_have_their_weights(lab: Lab) -> None:
    for name, alpha, beta in (("kd", 0.2, 0.8), ("KL", 0.1, 0.9)):
        line = metrics(lab.run(name)[0])[0]
        assert line["loss"] == pytest.approx(alpha * line["cross_entropy"] + beta * line["kl"], rel=1e-4)


class StoppedError(Exception):
    """Ends a run where the test has seen enough."""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"method": "kd", "student": "R8"}, HintonLoss(0.2, 0.8, 10, True)),
        (
            {"method": "kd", "student": "R8", "alpha": 0.0, "beta": 2.0, "temperature": 3.0, "scale_kl": False},
            HintonLoss(0.0, 2.0, 3.0, False),
        ),
        ({"method": "jointrd", "procedure": "KL"}, HintonLoss(0.1, 0.9, 4, True)),
        (
            {"method": "jointrd", "procedure": "KL", "alpha": 1.0, "temperature": 2.0},
            HintonLoss(0.0, 1.0, 2, True),
        ),
    ],
    ids=["kd", "kd by flags", "KL", "KL by flags"],
)
def test_flags_and_defaults_of_the_loss(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], expected: HintonLoss
) -> None:
    seen: list[HintonLoss] = []

    def stop(student: nn.Module, teacher: nn.Module, loss: HintonLoss) -> None:
        seen.append(loss)
        raise StoppedError

    monkeypatch.setattr("blockdrop.training.hinton.hinton_objective", stop)
    with pytest.raises(StoppedError):
        distill.main(lab.config(tmp_path / "run", **flags))
    (loss,) = seen
    found = (loss.alpha, loss.beta, loss.temperature, loss.scale_kl)
    assert found == pytest.approx((expected.alpha, expected.beta, expected.temperature, expected.scale_kl))


# ---- jointrd


def rates(config: StudentConfig) -> dict[int, float]:
    """The epochs whose learning rate is another than that of the epoch before, under step decay."""
    factors = [config.step_factor(epoch) for epoch in range(config.max_epochs)]
    changes = [epoch for epoch in range(config.max_epochs) if epoch == 0 or factors[epoch] != factors[epoch - 1]]
    return {epoch: pytest.approx(config.lr * factors[epoch]) for epoch in changes}


def test_jointrds_schedule_is_its_papers_unless_another_is_asked_for() -> None:
    joint: dict[str, Any] = {"load": ("teacher",)}
    config = JointConfig(**joint)
    assert not config.one_cycle
    assert rates(config) == {0: 0.1, 100: 0.01, 150: 0.001}, "of the 200 epochs that are the default"
    assert rates(JointConfig(**joint, max_epochs=15)) == {0: 0.1, 8: 0.01, 12: 0.001}
    assert rates(JointConfig(**joint, max_epochs=1)) == {0: 0.1}
    assert rates(JointConfig(**joint, max_epochs=9, milestones=(4,))) == {0: 0.1, 4: 0.01}
    assert rates(JointConfig(**joint, max_epochs=9, schedule="step", epoch_step=5)) == {0: 0.1, 5: 0.01}
    assert JointConfig(**joint, schedule="one_cycle").one_cycle
    assert KdConfig(student="R8", load=("teacher",)).one_cycle
    assert not KdConfig(student="R8", load=("teacher",), schedule="step").one_cycle


def test_a_joint_run_follows_and_names_its_papers_schedule(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = (line for line in metrics(lab.run("CNN_NMT")[0]) if line["phase"] == "train")
    assert line["lr"] == 0.1, "one cycle would end near zero"

    def stop(*args: Any, **options: Any) -> None:
        raise StoppedError

    monkeypatch.setattr("blockdrop.training.supervised.fit", stop)
    with pytest.raises(StoppedError):
        distill.main(lab.config(tmp_path / "run", method="jointrd", max_epochs=15))
    assert "learning rate: 0.1, times 0.1 at epochs 8 and 12, as in the paper" in capsys.readouterr().out


def test_the_procedures_differ_in_their_terms(lab: Lab) -> None:
    terms = {name: set(metrics(lab.run(name)[0])[0]) for name in ("TA", "KD", "KL", "CNN_NMT", "RES_NMT")}
    own = {name: found - {"epoch", "phase", "time", "lr", "images_per_second"} for name, found in terms.items()}
    assert own == {
        "TA": {"loss", "accuracy", "cross_entropy", "feature_distance", "side_paths"},
        "KD": {"loss", "accuracy", "cross_entropy", "feature_distance"},
        "KL": {"loss", "accuracy", "cross_entropy", "kl"},
        "CNN_NMT": {"loss", "accuracy"},
        "RES_NMT": {"loss", "accuracy"},
    }


def test_flags_and_defaults_of_the_joint_loss(tmp_path: Path, lab: Lab) -> None:
    # at 32 px w = 1e-3, and m = 1 in epoch 0 and 0.5 after the last of --side_epochs
    distill.main(lab.config(tmp_path / "a", method="jointrd", side_epochs=1, max_epochs=2))
    flags = {"side_epochs": 1, "max_epochs": 2, "side_floor": 0.1, "feature_weight": 0.0}
    distill.main(lab.config(tmp_path / "b", method="jointrd", **flags))
    for name, weight, floor in (("a", 1e-3, 0.5), ("b", 0.0, 0.1)):
        epochs = [line for line in metrics(tmp_path / name) if line["phase"] == "train"]
        for line, side in zip(epochs, (1.0, floor), strict=True):
            terms = (line["cross_entropy"], weight * line["feature_distance"], side * line["side_paths"])
            assert line["loss"] == pytest.approx(sum(terms), rel=1e-4)


def test_dirac_convolutions_are_folded_in_the_checkpoint(lab: Lab) -> None:
    path, report = lab.run("TA with dirac")
    net = build_static("dsplain8_Folder", 4, "pad_stride")
    assert weights(path).keys() == net.state_dict().keys(), "a plain net, to whoever reads it"
    load_checkpoint(path, resnet=net)
    centres = [block.conv2.weight[:, :, 1, 1].diagonal().mean().item() for (block,) in net.blocks]
    assert min(centres) > 0.5, "α · δ is in the weights"
    assert report["networks"][-1]["parameters"] == sum(p.numel() for p in net.parameters())


def test_dirac_weights_are_excluded_from_weight_decay() -> None:
    student = build_static("dsplain8_Folder", len(CLASSES))
    assert isinstance(student, PlainNet)
    use_dirac(student)
    joint = JointRD(student, build_static("R8_Folder", len(CLASSES)), feature_weight=1e-3)
    decayed, kept = parameter_groups(joint)
    assert kept["weight_decay"] == 0
    assert "weight_decay" not in decayed
    dirac = [module for module in joint.modules() if isinstance(module, DiracConv2d)]
    assert len(dirac) == 6, "every convolution of every block"
    assert {id(p) for p in kept["params"]} == {id(p) for conv in dirac for p in (conv.alpha, conv.beta)}
    everything = [id(p) for p in [*decayed["params"], *kept["params"]]]
    assert sorted(everything) == sorted(id(p) for p in joint.parameters() if p.requires_grad)


# ---- exact


def test_exact_has_the_teachers_accuracy(lab: Lab) -> None:
    teacher, student = lab.run("exact")[1]["networks"]
    assert student["accuracy"] == teacher["accuracy"]
    assert student["flops"] > teacher["flops"]
    assert 1 / 4 < teacher["accuracy"] < 1, "it has learnt something, and not all"


# ---- bad input


@pytest.fixture
def bad_inputs(tmp_path: Path) -> Path:
    """Data of two classes, checkpoints for them, and folders in use."""
    write_image_tree(tmp_path / "tree", count=1)
    resnet, policy_network = build("R8_Folder", num_classes=2)
    torch.save(resnet.state_dict(), tmp_path / "r8.t7")
    torch.save(build("R8_Digits")[0].state_dict(), tmp_path / "digits.t7")
    torch.save({"agent": policy_network.state_dict()}, tmp_path / "policy.t7")
    for folder in ("used", "half/baseline"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    return tmp_path


LOADED = ("--load", "{tmp}/r8.t7")
KD = (*LOADED, "--method", "kd")
JOINT = (*LOADED, "--method", "jointrd")
STAGEWISE = (*LOADED, "--method", "stagewise")
EXACT = (*LOADED, "--method", "exact")
FOUR_STAGES = ("--model", "R8_Digits", "--load", "{tmp}/digits.t7", "--student", "plain18")
BAD_INPUT = [
    (LOADED, "--method"),
    ((*LOADED, "--method", "magic"), "invalid choice 'magic' for argument '--method'"),
    (("--method", "stagewise"), "--load: name a trained teacher (python -m blockdrop.pretrain makes one)"),
    (("--method", "exact"), "--load: name a trained teacher"),
    (("--method", "kd", "--student", "R8"), "--load: name a trained teacher"),
    (("--method", "jointrd"), "--load: name a trained teacher"),
    (("--method", "jointrd", "--procedure", "KL"), "--load: name a trained teacher"),
    ((*EXACT[2:], "--load", "{tmp}/none.t7"), "none.t7: no such checkpoint file"),
    ((*EXACT[2:], "--load", ""), "--load: an empty name"),
    ((*EXACT[2:], "--load", "{tmp}/policy.t7"), "policy.t7: no trained backbone in it"),
    ((*EXACT[2:], "--load", "{tmp}/digits.t7"), "digits.t7: made for 10 classes, the data has 2"),
    (KD, "--student: name the student's architecture, for example R8"),
    ((*KD, "--student", "vgg8"), "vgg8_Folder: unknown architecture vgg"),
    ((*KD, "--student", "R9"), "R9_Folder: no ResNet has depth 9"),
    ((*KD, "--student", "R18"), "--student R18: for 224 px images, the teacher's have 32"),
    (
        (*KD, "--student", "R8", "--student_expansion", "2"),
        "student: expansion 2.0: for shift nets; R8 takes a reduction",
    ),
    (
        (*KD, "--student", "R8", "--student_reduction", "70"),
        "student: reduction 70.0: leaves nothing of a width of 16; choose a smaller one",
    ),
    (
        (*KD, "--student", "R8", "--student_reduction", "0"),
        "--student_reduction 0.0: must be between 0.01 and 100",
    ),
    ((*KD, "--student", "R8", "--student_init", ""), "--student_init: an empty name"),
    ((*KD, "--student", "R14", "--student_init", "{tmp}/r8.t7"), "r8.t7: holds a ResNet-8 (3 blocks)"),
    ((*EXACT, "--student", "plain8"), "--student: means nothing to exact, only to stagewise, kd"),
    ((*STAGEWISE, *FOUR_STAGES), "--student: its stages give maps of 64×32×32"),
    ((*JOINT, *FOUR_STAGES), "--student: its stages give maps of 64×32×32"),
    ((*JOINT, "--dirac", "--student", "R8"), "--dirac: for plain students; R8 has shortcuts"),
    ((*JOINT, "--dirac", "--procedure", "RES_NMT"), "--dirac: means nothing to RES_NMT"),
    ((*KD, "--dirac", "--student", "plain8"), "--dirac: means nothing to kd, only to jointrd"),
    ((*STAGEWISE, "--with_baseline"), "--with_baseline: means nothing to stagewise, only to kd"),
    ((*JOINT, "--stage_epochs", "1"), "--stage_epochs: means nothing to jointrd, only to stagewise"),
    ((*EXACT, "--finetune_lr", "0.1"), "--finetune_lr: means nothing to exact, only to stagewise"),
    ((*STAGEWISE, "--stage_epochs", "0"), "--stage_epochs 0: must be at least 1"),
    ((*STAGEWISE, "--finetune_lr", "-1"), "--finetune_lr -1.0: must be a positive number"),
    ((*KD, "--student", "R8", "--temperature", "0"), "--temperature 0.0: must be a positive number"),
    ((*KD, "--student", "R8", "--temperature", "-1"), "--temperature -1.0: must be a positive number"),
    ((*KD, "--student", "R8", "--alpha", "nan"), "--alpha nan"),
    ((*KD, "--student", "R8", "--beta", "-1"), "--beta -1.0"),
    ((*KD, "--student", "R8", "--momentum", "1"), "--momentum 1.0: must be above 0 and below 1"),
    ((*JOINT, "--feature_weight", "-1"), "--feature_weight -1.0"),
    ((*JOINT, "--side_floor", "2"), "--side_floor 2.0: must be between 0 and 1"),
    ((*JOINT, "--side_epochs", "0"), "--side_epochs 0: must be at least 1"),
    ((*JOINT, "--procedure", "XY"), "invalid choice 'XY' for argument '--procedure'"),
    ((*JOINT, "--milestones", "2", "1"), "--milestones 2 1: must be rising epoch numbers"),
    ((*JOINT, "--milestones", "0"), "--milestones 0: must be rising epoch numbers"),
    ((*EXACT, "--report_batch_size", "0"), "--report_batch_size 0: must be at least 1"),
    ((*EXACT, "--timed_images", "0"), "--timed_images 0: must be at least 1"),
    ((*EXACT, "--cv_dir", "{tmp}/used"), "used: already holds a run (config.json)"),
    (
        (*KD, "--student", "R8", "--with_baseline", "--cv_dir", "{tmp}/half"),
        "half/baseline: already holds a run (config.json)",
    ),
]


@pytest.mark.parametrize(("flags", "message"), BAD_INPUT, ids=lambda value: str(value)[-40:])
def test_bad_input_ends_with_one_line_and_no_trace(
    bad_inputs: Path, command: Command, flags: tuple[str, ...], message: str
) -> None:
    before = sorted(bad_inputs.rglob("*.*"))
    common = ("--model", "R8_Folder", "--data_dir", "{tmp}/tree")
    flags = (*common, *(() if "--cv_dir" in flags else ("--cv_dir", "{tmp}/run")), *flags)
    code, _, error = command(distill, *(flag.replace("{tmp}", str(bad_inputs)) for flag in flags))
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not (bad_inputs / "run").exists()
    assert sorted(path for path in bad_inputs.rglob("*.*") if ".blockdrop-cache" not in path.parts) == before


def test_a_run_may_not_delete_the_teacher_it_learns_from(lab: Lab, command: Command) -> None:
    before = sorted(lab.teacher.iterdir())
    flags = ("--model", "R8_Folder", "--data_dir", lab.tree, "--load", lab.teacher, "--cv_dir", lab.teacher)
    code, _, error = command(distill, "--method", "exact", *flags, "--overwrite")
    assert code == 2
    assert "which this run starts from" in error
    assert sorted(lab.teacher.iterdir()) == before


@pytest.mark.parametrize(
    ("architecture", "flags"),
    [
        ("R8", {"method": "stagewise", "max_epochs": 2}),
        ("R8", {"method": "jointrd", "procedure": "KL", "alpha": 1.5}),
        ("exactplain8", {"method": "jointrd"}),
        ("shiftresnet8", {"method": "jointrd"}),
        ("R8", {"method": "jointrd", "student": "shiftresnet8"}),
        ("shiftresnet8", {"method": "exact"}),
        ("plain8", {"method": "exact"}),
        ("dsplain8", {"method": "exact"}),
    ],
)
def test_a_run_that_cannot_start_leaves_no_trace_and_deletes_nothing(
    tmp_path: Path, lab: Lab, architecture: str, flags: dict[str, Any]
) -> None:
    save_checkpoint(
        tmp_path / "teacher.t7",
        model=f"{architecture}_Folder",
        resnet=build_static(f"{architecture}_Folder", len(CLASSES)),
        normalisation=NORMALISATIONS["half"],
        classes=CLASSES,
    )
    earlier = tmp_path / "earlier" / "ckpt_E_1_A_0.900.t7"
    earlier.parent.mkdir()
    earlier.write_text("dear")
    common = {"load": (str(tmp_path / "teacher.t7"),), "arch": architecture, **flags}
    with pytest.raises(BlockdropError):
        distill.main(lab.config(earlier.parent, overwrite=True, **common))
    assert earlier.read_text() == "dear"
    with pytest.raises(BlockdropError):
        distill.main(lab.config(tmp_path / "new", **common))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"method": "jointrd", "procedure": "RES_NMT", "student": "plain8"},
            "--student: means nothing to RES_NMT",
        ),
        ({"method": "stagewise", "procedure": "KL"}, "--procedure: means nothing to stagewise"),
        (
            {"method": "stagewise", "temperature": 3.0},
            "--temperature: means nothing to stagewise, only to kd, jointrd",
        ),
        ({"method": "jointrd", "alpha": 0.5}, "--alpha: means nothing to TA"),
        ({"method": "jointrd", "procedure": "KL", "feature_weight": 0.5}, "--feature_weight: means nothing to KL"),
        ({"method": "kd", "student": "R8", "side_floor": 0.5}, "--side_floor: means nothing to kd"),
        ({"method": "exact", "student_init": ("x.t7",)}, "--student_init: means nothing to exact"),
        ({"method": "kd", "student": "R8", "milestones": (1,)}, "--milestones: only --schedule step"),
        ({"method": "kd", "student": "R8", "epoch_step": 3}, "--epoch_step: only --schedule step"),
        ({"method": "jointrd", "epoch_step": 3}, "--epoch_step: only --schedule step without --milestones"),
        ({"method": "jointrd", "schedule": "one_cycle", "milestones": (1,)}, "--milestones: only --schedule step"),
        *(
            ({"method": "exact", **flag}, f"--{next(iter(flag))}: means nothing to exact, only to stagewise, kd,")
            for flag in (
                {"lr": 0.05},
                {"wd": 0.0},
                {"momentum": 0.8},
                {"test_every": 1},
                {"precision": "float32"},
                {"schedule": "step"},
                {"epoch_step": 3},
                {"lr_decay_ratio": 0.2},
                {"milestones": (1,)},
            )
        ),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(
    tmp_path: Path, lab: Lab, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(BlockdropError, match=message):
        distill.main(lab.config(tmp_path / "run", **flags))
