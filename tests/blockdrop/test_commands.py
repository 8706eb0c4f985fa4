"""The commands as a user meets them: a whole small run, and one clear line for every bad input."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blockdrop import (
    build,
    build_static,
    cl_train,
    evaluate,
    finetune,
    load_checkpoint,
    pretrain,
    save_checkpoint,
)
from blockdrop.data import NORMALISATIONS
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.training.run_directory import TAGS
from tests.conftest import write_image_tree

Command = Callable[..., tuple[int, str, str]]
FOUR_LINES = re.compile(
    r"^    Accuracy: \d\.\d{3}\n"
    r"    Block Usage: \d+\.\d{3} ± \d+\.\d{3}\n"
    r"    FLOPs/img: \d\.\d{2}E\+\d{2} ± \d\.\d{2}E\+\d{2}\n"
    r"    Unique Policies: \d+$",
    re.MULTILINE,
)


def test_from_pretraining_to_evaluation(tmp_path: Path, image_tree: Path, command: Command) -> None:
    common = ("--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 5)
    code, out, _ = command(pretrain, *common, "--max_epochs", 2, "--cv_dir", tmp_path / "p", "--lr", 0.05)
    assert code == 0
    assert "pretrain R8_Folder" in out.splitlines()[0]
    curriculum = ("--load", tmp_path / "p", "--policy_net", "pooled", "--max_epochs", 3, "--test_every", 2)
    code, out, _ = command(cl_train, *common, *curriculum, "--cv_dir", tmp_path / "c")
    assert code == 0
    assert "2 of 3 blocks decided" in out
    frozen, kept = (read_checkpoint(tmp_path / part).resnet for part in "pc")
    assert frozen is not None
    assert kept is not None
    assert all(frozen[key].equal(kept[key]) for key in frozen), "the curriculum leaves the backbone alone"

    code, _, _ = command(
        finetune, *common, "--pretrained", tmp_path / "c", "--max_epochs", 1, "--cv_dir", tmp_path / "f"
    )
    assert code == 0
    tuned = read_checkpoint(tmp_path / "f")
    assert tuned.policy_net == "pooled"
    assert tuned.classes == ["cat", "dog"]
    assert re.fullmatch(
        r"ckpt_E_0_A_\d\.\d{3}_R_-?\d\.\d{2}E[+-]\d{2}_S_\d\.\d{2}_#_\d+\.t7", Path(tuned.path).name
    )
    assert tuned.resnet is not None
    assert not all(tuned.resnet[key].equal(kept[key]) for key in kept), "fine-tuning trains the backbone too"

    code, out, _ = command(evaluate, *common, "--load", tmp_path / "f", "--json", tmp_path / "e.json")
    assert code == 0
    assert FOUR_LINES.search(out)
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert numbers["accuracy"] == tuned.metrics["accuracy"]
    pretrained = read_checkpoint(tmp_path / "p").metrics["accuracy"]
    assert numbers["brought_accuracy"] == tuned.metrics["brought_accuracy"] == pretrained
    change = f"{100 * (numbers['accuracy'] - pretrained):+.2f} points since"
    assert f"network as brought: accuracy {pretrained:.4f} before it was trained to drop blocks; {change}" in out
    assert numbers["block_usage_mean"] == tuned.metrics["blocks"]
    assert numbers["flops_mean"] == tuned.metrics["flops"]
    assert len(numbers["usage_per_block"]) == 3
    assert numbers["images_per_second"] > 0
    assert command(evaluate, *common, "--load", tmp_path / "f", "--json", tmp_path / "e.json")[0] == 2

    lines = [json.loads(line) for line in (tmp_path / "c" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["phase"]) for line in lines] == [
        (0, "brought"), (0, "train"), (0, "test"), (1, "train"), (2, "train"), (2, "test"),
    ]  # fmt: skip
    events = EventAccumulator(str(tmp_path / "c"))
    events.Reload()
    logged = {"accuracy", "reward", "blocks", "blocks_std", "unique_policies", "flops", "lr", "entropy"}
    tags = {f"train/{TAGS.get(name, name)}" for name in logged | {"images_per_second", "flops_share"}}
    assert tags | {"test/loss"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["test/usage_per_block"]
    assert [event.step for event in events.Scalars("train/reward")] == [0, 1, 2]
    assert json.loads((tmp_path / "c" / "config.json").read_text())["alpha"] == 0.8


def test_same_seed_same_numbers(tmp_path: Path, image_tree: Path, command: Command) -> None:
    common = ("--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 4, "--max_epochs", 2)
    metrics = []
    for name in "ab":
        command(pretrain, *common, "--cv_dir", tmp_path / f"p{name}")
        command(cl_train, *common, "--load", tmp_path / f"p{name}", "--cv_dir", tmp_path / f"c{name}")
        command(finetune, *common, "--pretrained", tmp_path / f"c{name}", "--cv_dir", tmp_path / f"f{name}")
        state = read_checkpoint(tmp_path / f"f{name}")
        assert state.resnet is not None
        assert state.policy_network is not None
        metrics.append({**state.resnet, **state.policy_network})
    assert all(metrics[0][key].equal(metrics[1][key]) for key in metrics[0])


def test_evaluation_without_a_checkpoint_keeps_every_block(command: Command) -> None:
    code, out, _ = command(evaluate, "--model", "R8_Digits")
    assert code == 0
    assert "Block Usage: 3.000 ± 0.000\n    FLOPs/img: 2.45E+07 ± 0.00E+00\n    Unique Policies: 1" in out


def test_numbers_do_not_depend_on_the_batch_size(tmp_path: Path, command: Command) -> None:
    resnet, policy_network = build("R14_Digits")
    torch.nn.init.normal_(policy_network.logit.weight, std=0.5)
    torch.save({"agent": policy_network.state_dict(), "resnet": resnet.state_dict()}, tmp_path / "c.t7")
    reports = []
    for batch_size in (7, 64, 450):
        config = evaluate.EvaluateConfig(
            model="R14_Digits", load=(str(tmp_path / "c.t7"),), batch_size=batch_size, speed=False
        )
        found = evaluate.main(config).evaluation.to_json()
        reports.append({k: v for k, v in found.items() if k not in ("batch_size", "config")})
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["unique_policies"] > 1


def test_a_backbone_and_a_policy_network_may_come_in_two_files(tmp_path: Path, command: Command) -> None:
    resnet, policy_network = build("R8_Digits")
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    torch.save({"agent": policy_network.state_dict()}, tmp_path / "policy.t7")
    both = ("--load", tmp_path / "resnet.pth", tmp_path / "policy.t7")
    code, out, _ = command(evaluate, "--model", "R8_Digits", *both)
    assert code == 0
    assert "no policy network" not in out
    code, _, error = command(evaluate, "--model", "R8_Digits", "--load", tmp_path / "policy.t7")
    assert code == 2
    assert "policy network without its backbone" in error


def test_fine_tuning_for_other_classes_keeps_all_but_the_head(
    tmp_path: Path, image_tree: Path, command: Command
) -> None:
    torch.save(build("R8_C10")[0].state_dict(), tmp_path / "ten.pth")
    common = ("--model", "R8_Folder", "--data_dir", image_tree, "--max_epochs", 1, "--init", tmp_path / "ten.pth")
    code, _, error = command(pretrain, *common, "--cv_dir", tmp_path / "p")
    assert code == 2
    assert "made for 10 classes, the data has 2" in error
    assert command(pretrain, *common, "--cv_dir", tmp_path / "p", "--new_head")[0] == 0
    resnet, _ = build("R8_Folder", num_classes=2)
    load_checkpoint(tmp_path / "p", resnet=resnet)


@pytest.mark.parametrize(
    ("architecture", "flags", "fields"),
    [
        ("plain8", (), {}),
        ("shiftresnet8", ("--expansion", 2), {"expansion": 2.0}),
        (
            "resnet8",
            ("--reduction", 2, "--reduction_mode", "depthwise"),
            {"reduction": 2.0, "reduction_mode": "depthwise"},
        ),
    ],
)
def test_a_static_net_is_trained_and_evaluated(
    tmp_path: Path, image_tree: Path, command: Command, architecture: str, flags: Any, fields: dict[str, Any]
) -> None:
    common = ("--model", "R14_Folder", "--arch", architecture, "--data_dir", image_tree, "--batch_size", 5)
    trained = (*common, *flags, "--max_epochs", 1, "--cv_dir", tmp_path / "p")
    code, out, _ = command(pretrain, *trained)
    assert code == 0
    assert out.startswith(f"pretrain {architecture}_Folder (")
    found = read_checkpoint(tmp_path / "p")
    assert (found.model, found.architecture, found.variant.numbers()) == (
        f"{architecture}_Folder", architecture, fields,
    )  # fmt: skip
    code, out, _ = command(evaluate, *common, "--load", tmp_path / "p", "--json", tmp_path / "e.json")
    assert code == 0, "the widths are the checkpoint's"
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert numbers["accuracy"] == found.metrics["accuracy"]
    assert numbers["variant"] == fields


def test_a_policy_may_drop_the_blocks_of_a_shift_net(tmp_path: Path, image_tree: Path, command: Command) -> None:
    common = ("--model", "R8_Folder", "--arch", "shiftresnet8", "--data_dir", image_tree, "--batch_size", 5)
    short = (*common, "--max_epochs", 1)
    assert command(pretrain, *short, "--expansion", 2, "--cv_dir", tmp_path / "p")[0] == 0
    assert command(cl_train, *short, "--load", tmp_path / "p", "--cv_dir", tmp_path / "c")[0] == 0
    assert command(finetune, *short, "--pretrained", tmp_path / "c", "--cv_dir", tmp_path / "f")[0] == 0
    code, _, _ = command(evaluate, *common, "--load", tmp_path / "f", "--json", tmp_path / "e.json")
    assert code == 0
    numbers, tuned = json.loads((tmp_path / "e.json").read_text()), read_checkpoint(tmp_path / "f")
    assert numbers["accuracy"] == tuned.metrics["accuracy"]
    assert numbers["flops_mean"] == tuned.metrics["flops"]
    assert numbers["policy_network_flops"] > 0
    assert tuned.variant.numbers() == {"expansion": 2.0}


@pytest.mark.parametrize("module", [pretrain, cl_train, finetune])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, image_tree: Path, command: Command, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    resnet, policy_network = build("R8_Folder", num_classes=2)
    torch.save({"agent": policy_network.state_dict(), "resnet": resnet.state_dict()}, tmp_path / "start.t7")
    flag = {pretrain: "--init", cl_train: "--load", finetune: "--pretrained"}[module]
    original = torch.optim.Optimizer.zero_grad
    steps = []

    def poison(self: Any, set_to_none: bool = True) -> None:
        original(self, set_to_none)
        steps.append(1)
        if len(steps) == 4:  # three batches an epoch: the first of the second epoch
            for parameter in self.param_groups[0]["params"]:
                parameter.data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", poison)
    code, _, error = command(
        module, "--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 4, "--max_epochs", 3,
        flag, tmp_path / "start.t7", "--cv_dir", tmp_path / "run", "--test_every", 1,
    )  # fmt: skip
    (checkpoint,) = (tmp_path / "run").glob("ckpt_E_0_*.t7")
    assert code == 3
    named = r"error: the gradient of the (network|ResNet|policy network)'s [\w.]+ is nan in epoch 1, batch 0; "
    assert re.match(named, error)
    assert error.endswith(f"try a smaller --lr; the last good checkpoint is {checkpoint}")
    weights = read_checkpoint(checkpoint)
    assert weights.resnet is not None


def test_weights_that_the_last_step_of_an_epoch_broke_are_not_saved(
    tmp_path: Path, image_tree: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.optim.SGD.step
    steps = []

    def poison(self: Any, closure: Any = None) -> None:
        original(self, closure)
        steps.append(1)
        if len(steps) == 6:  # three batches an epoch
            self.param_groups[0]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", poison)
    flags = ("--batch_size", 4, "--max_epochs", 3, "--test_every", 1, "--cv_dir", tmp_path / "run")
    code, _, error = command(
        pretrain, "--model", "R8_Folder", "--data_dir", image_tree, "--schedule", "step", *flags
    )
    assert code == 3
    assert "conv1.weight is no longer finite after epoch 1" in error
    assert [p.name[:9] for p in (tmp_path / "run").glob("ckpt_*")] == ["ckpt_E_0_"]


def test_a_run_that_cannot_start_leaves_no_trace_and_deletes_nothing(
    tmp_path: Path, image_tree: Path, command: Command
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--max_epochs", 1, "--cv_dir", tmp_path / "run")
    assert command(pretrain, *flags)[0] == 0
    (checkpoint,) = (tmp_path / "run").glob("ckpt_*")
    (image_tree / "train" / "cat" / "0000.png").write_bytes(b"broken")
    code, _, error = command(pretrain, *flags, "--overwrite")
    assert code == 2
    assert "cat/0000.png: not a readable image" in error
    assert checkpoint.exists()
    assert command(pretrain, *flags[:-1], tmp_path / "other")[0] == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("by_name", ["file", "folder"])
def test_a_run_may_not_delete_the_checkpoint_it_starts_from(
    tmp_path: Path, command: Command, by_name: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    torch.save(build("R8_Digits")[0].state_dict(), run / "ckpt_E_1_A_0.5.t7")
    start = run if by_name == "folder" else run / "ckpt_E_1_A_0.5.t7"
    code, _, error = command(cl_train, "--model", "R8_Digits", "--load", start, "--cv_dir", run, "--overwrite")
    assert code == 2
    assert "which this run starts from" in error
    assert (run / "ckpt_E_1_A_0.5.t7").exists()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_cycle_of_any_length(tmp_path: Path, command: Command, steps: int) -> None:
    tree = write_image_tree(tmp_path / "tree", count=2)
    flags = ("--model", "R8_Folder", "--data_dir", tree, "--max_epochs", steps, "--cv_dir", tmp_path / "run")
    assert command(pretrain, *flags)[0] == 0


def test_a_curriculum_cut_short_says_so(tmp_path: Path, image_tree: Path, command: Command) -> None:
    torch.save(build("R8_Folder", num_classes=2)[0].state_dict(), tmp_path / "start.t7")
    common = ("--model", "R8_Folder", "--data_dir", image_tree)
    flags = ("--load", tmp_path / "start.t7", "--max_epochs", 2, "--cv_dir", tmp_path / "run")
    assert command(cl_train, *common, *flags)[0] == 0
    _, out, _ = command(evaluate, *common, "--load", tmp_path / "run")
    assert "curriculum had reached 2 of 3 blocks" in out


BAD_INPUT = [
    (pretrain, ("--model", "R33_Digits"), "no ResNet has depth 33"),
    (pretrain, ("--model", "R32_MNIST"), "unknown data set MNIST"),
    (pretrain, ("--model", "ResNet32"), "R<depth>_<dataset>"),
    (evaluate, ("--model", "R8_Folder", "--data_dir", "{tmp}/none"), "no such folder"),
    (evaluate, ("--model", "R8_Folder", "--data_dir", "{tmp}/empty"), "no train folder"),
    (evaluate, ("--model", "R8_Folder", "--data_dir", "{tmp}/three", "--load", "{tmp}/two.t7"), "the data has 3"),
    (evaluate, ("--model", "R8_Digits", "--load", "{tmp}/truncated.t7"), "truncated.t7: damaged"),
    (evaluate, ("--model", "R8_Digits", "--load", "{tmp}/flipped.t7"), "flipped.t7: damaged"),
    (evaluate, ("--model", "R8_Digits", "--load", "{tmp}/text.t7"), "damaged, or not a torch checkpoint"),
    (evaluate, ("--model", "R8_Digits", "--load", "{tmp}/code.t7"), "no residual blocks in it"),
    (evaluate, ("--model", "R14_Digits", "--load", "{tmp}/two.t7"), "made for 2 classes"),
    (evaluate, ("--model", "R14_Digits", "--load", "{tmp}/ten.t7"), "holds a ResNet-8 (3 blocks)"),
    (cl_train, ("--model", "R8_Digits", "--load", "{tmp}/missing.t7"), "no such checkpoint file"),
    (cl_train, ("--model", "R8_Digits", "--arch", "plain8"), "plain8_Digits: plain8 has no blocks that a policy"),
    (
        cl_train,
        ("--model", "R8_Digits", "--arch", "plain8", "--load", "{tmp}/plain.t7"),
        "plain8_Digits: plain8 has no blocks that a policy could drop",
    ),
    (
        finetune,
        ("--model", "R8_Digits", "--arch", "plain8", "--pretrained", "{tmp}/plain.t7"),
        "plain8_Digits: plain8 has no blocks that a policy could drop",
    ),
    # the checkpoint says which network, and that one is plain
    (cl_train, ("--load", "{tmp}/plain.t7"), "plain8_Digits: plain8 has no blocks that a policy could drop"),
    (finetune, ("--pretrained", "{tmp}/plain.t7", "--recipe", "fast"), "plain8 has no blocks that a policy"),
    (finetune, ("--pretrained", "{tmp}/plain.t7", "--recipe", "fast", "--policy", "full"), "plain8_Digits has no"),
    (finetune, ("--model", "R8_Digits", "--arch", "dsplain8"), "dsplain8 has no blocks that a policy could drop"),
    (cl_train, ("--model", "R8_Digits", "--load", "{tmp}/plain.t7"), "pass --arch plain8"),
    (pretrain, ("--model", "R8_Digits", "--init", "{tmp}/plain.t7"), "pass --arch plain8"),
    (pretrain, ("--model", "R8_Digits", "--arch", "vgg8"), "vgg8_Digits: unknown architecture vgg"),
    (pretrain, ("--model", "R8_Digits", "--arch", "shiftresnet18"), "shift nets have 3 stages"),
    (pretrain, ("--model", "R8_Digits", "--arch", "plain8_C10"), "plain8_C10_Digits: unknown data set C10_Digits"),
    (pretrain, ("--model", "R8_Digits", "--expansion", "2"), "expansion 2.0: for shift nets"),
    (pretrain, ("--model", "R8_Digits", "--reduction", "70"), "reduction 70.0: leaves nothing of a width of 16"),
    (pretrain, ("--model", "R8_Digits", "--reduction", "-1"), "reduction -1.0: must be "),
    (pretrain, ("--model", "R8_Digits", "--reduction_mode", "half"), "invalid choice 'half'"),
    (
        pretrain,
        ("--model", "R8_Digits", "--arch", "shiftresnet8", "--expansion", "0.01"),
        "expansion 0.01: leaves blocks of 16 channels no inner channel",
    ),
    (
        pretrain,
        ("--model", "R8_Digits", "--arch", "shiftresnet8", "--reduction", "2"),
        "reduction 2.0: for ResNets and plain nets; shiftresnet8 takes an expansion",
    ),
    (pretrain, ("--model", "R8_Digits", "--momentum", "0"), "--momentum 0.0: must be above 0 and below 1"),
    (pretrain, ("--model", "R8_Digits", "--cv_dir", "{tmp}/file/run"), "not writable"),
    (pretrain, ("--model", "R8_Digits", "--cv_dir", "{tmp}/used"), "already holds a run"),
    (pretrain, ("--model", "R8_Digits", "--batch_size", "0"), "--batch_size 0"),
    (pretrain, ("--model", "R8_Digits", "--lr", "-1"), "--lr -1.0"),
    (pretrain, ("--model", "R8_Digits", "--lr", "nan"), "--lr nan"),
    (pretrain, ("--model", "R8_Digits", "--max_epochs", "0"), "--max_epochs 0"),
    (pretrain, ("--model", "R8_Digits", "--label_smoothing", "1"), "--label_smoothing 1.0"),
    (pretrain, ("--model", "R8_Digits", "--device", "abacus"), "--device abacus"),
    (cl_train, ("--model", "R8_Digits"), "--load: name a trained backbone"),
    (cl_train, ("--model", "R8_Digits", "--load", "{tmp}/ten.t7", "--alpha", "0.4"), "--alpha 0.4"),
    (cl_train, ("--model", "R8_Digits", "--load", "{tmp}/ten.t7", "--cl_step", "0"), "--cl_step 0"),
    (finetune, ("--model", "R8_Digits"), "--pretrained: name a checkpoint"),
    (finetune, ("--model", "R8_Digits", "--pretrained", "{tmp}/ten.t7"), "no policy network in it"),
    (evaluate, ("--model", "R8_Digits", "--threshold", "1.5"), "--threshold 1.5"),
    (pretrain, ("--model", "R8_Digits", "--cv_dir", "{tmp}/" + 300 * "x"), "not writable"),
    (pretrain, ("--model", "R8_Digits", "--cv_dir", ""), "--cv_dir: empty"),
    (pretrain, ("--model", "R8_Digits", "--init", ""), "--init: an empty name"),
    (pretrain, ("--model", "R8_Digits", "--device", "meta"), "choose cpu or cuda"),
    (evaluate, ("--model", "R8_Digits", "--load", "{tmp}/" + 300 * "x"), "no such checkpoint file"),
    (evaluate, ("--model", "R8_Folder", "--data_dir", "{tmp}/" + 300 * "x"), "no such folder"),
    (evaluate, ("--model", "R8_Digits", "--json", "{tmp}/" + 300 * "x"), "not a file name"),
    (evaluate, ("--model", "R8_Digits", "--json", "{tmp}"), "not a file name"),
    (evaluate, ("--model", "R8_Digits", "--batch_size", "abc"), "--batch_size: invalid literal"),
    (evaluate, ("--model", "R8_Digits", "--colour", "red"), "--colour"),
    (
        evaluate,
        ("--model", "R8_Digits", "--precision", "float8"),
        "invalid choice 'float8' for argument '--precision'",
    ),
    (pretrain, ("--model", "R8_Digits", "--seed", str(2**64)), "--seed 18446744073709551616"),
    (pretrain, ("--model", "R8_Digits", "--init", "{tmp}/flipped.t7"), "flipped.t7: damaged"),
    (finetune, ("--model", "R8_Digits", "--pretrained", "{tmp}/code.t7"), "no residual blocks in it"),
    (pretrain, ("--model", "R8_Folder", "--data_dir", "{tmp}/bad"), "dog/0001.png: not a readable image"),
    (evaluate, ("--model", "R8_Digits", "--json", "{tmp}/none/e.json"), "no folder"),
    (evaluate, ("--model", "R8_Folder", "--data_dir", "{tmp}/bad"), "dog/0001.png: not a readable image"),
]


@pytest.fixture
def bad_inputs(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.json").write_text("{}")
    write_image_tree(tmp_path / "three", classes=("a", "b", "c"), count=1)
    write_image_tree(tmp_path / "bad", count=2)
    for part in ("train", "test"):
        (tmp_path / "bad" / part / "dog" / "0001.png").write_bytes(b"broken")
    torch.save(build("R8_Folder", num_classes=2)[0].state_dict(), tmp_path / "two.t7")
    torch.save(build("R8_Digits")[0].state_dict(), tmp_path / "ten.t7")
    plain = build_static("plain8_Digits")
    how = {"normalisation": NORMALISATIONS["half"], "epoch": 1}
    save_checkpoint(tmp_path / "plain.t7", model="plain8_Digits", resnet=plain, **how)
    content = (tmp_path / "ten.t7").read_bytes()
    (tmp_path / "truncated.t7").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    (tmp_path / "flipped.t7").write_bytes(flipped)
    (tmp_path / "text.t7").write_text("hello")
    torch.save({"net": torch.nn.Linear(1, 1)}, tmp_path / "code.t7")
    return tmp_path


@pytest.mark.parametrize(("module", "flags", "message"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_input_ends_with_one_line_and_exit_code_2(
    bad_inputs: Path, command: Command, module: Any, flags: tuple[str, ...], message: str
) -> None:
    flags = tuple(flag.replace("{tmp}", str(bad_inputs)) for flag in flags)
    if "--cv_dir" not in flags:
        flags += ("--cv_dir", str(bad_inputs / "run"))
    code, _, error = command(module, *flags)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert (bad_inputs / "used" / "config.json").read_text() == "{}"


def test_overwrite_deletes_the_earlier_run_alone(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "notes.txt").write_text("mine")
    flags = ("--model", "R8_Digits", "--max_epochs", 1, "--cv_dir", run, "--batch_size", 512)
    assert command(pretrain, *flags, "--overwrite")[0] == 0
    assert json.loads((run / "config.json").read_text())["command"] == "pretrain"
    assert (run / "notes.txt").read_text() == "mine"


def test_a_real_process_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blockdrop.evaluate", "--model", "R33_C10"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: R33_C10: no ResNet has depth 33; choose 8, 14")
    assert len(done.stderr.splitlines()) == 1


def test_evaluation_needs_no_training_images(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    tree = write_image_tree(tmp_path / "data", ("ant", "bee", "cat"), count=2)
    flags = ("--model", "R8_Folder", "--data_dir", tree)
    assert command(pretrain, *flags, "--max_epochs", 1, "--cv_dir", tmp_path / "p")[0] == 0
    everything = command(evaluate, "--data_dir", tree, "--load", tmp_path / "p", "--no_speed")[1]
    shutil.rmtree(tree / "train")
    alone = command(evaluate, "--data_dir", tree, "--load", tmp_path / "p", "--no_speed")
    assert alone[:2] == (0, everything)
    code, _, error = command(pretrain, *flags, "--init", tmp_path / "p", "--cv_dir", tmp_path / "q")
    assert code == 2
    assert "no train folder" in error
