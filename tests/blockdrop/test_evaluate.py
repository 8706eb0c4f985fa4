"""`evaluate` with a budget, a curve, and a checkpoint that remembers its threshold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop import bench, build, build_static, evaluate, save_checkpoint
from blockdrop.bench import images_digest
from blockdrop.data import NORMALISATIONS, DataSource
from blockdrop.flops import count_flops
from blockdrop.inference.operating_point import KEEP_ALL, held_out_halves
from blockdrop.measure import evaluate_images
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_checkpoint
from blockdrop.models.specs import Variant
from tests.conftest import dynamic_of, randomise_statistics, write_image_tree

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An R14_Folder for two classes whose policy network decides image by image."""
    resnet, policy_network = build("R14_Folder", num_classes=2, policy_net="pooled")
    randomise_statistics(resnet)
    randomise_statistics(policy_network)
    torch.nn.init.normal_(policy_network.logit.weight, std=0.5)
    save_checkpoint(
        tmp_path / "start.t7",
        model="R14_Folder",
        resnet=resnet,
        policy_network=policy_network,
        policy_net="pooled",
        normalisation=NORMALISATIONS["half"],
        classes=["cat", "dog"],
        epoch=7,
        metrics={"accuracy": 0.5, "reward": 0.1, "decided": 6.0},
        config={"lr": 0.1},
    )
    return tmp_path / "start.t7"


@pytest.fixture
def run(image_tree: Path, checkpoint: Path, command: Command) -> Command:
    """Runs evaluate on the checkpoint and the image tree."""

    def run(*flags: object) -> tuple[int, str, str]:
        common = ("--model", "R14_Folder", "--data_dir", image_tree, "--batch_size", 4)
        return command(evaluate, *common, *(() if "--load" in flags else ("--load", checkpoint)), *flags)

    return run


def test_a_budget_is_met_on_one_half_and_reported_on_the_other(
    tmp_path: Path, image_tree: Path, checkpoint: Path, run: Command
) -> None:
    flags = ("--budget", 0.7, "--curve", "--save", tmp_path / "point.t7", "--json", tmp_path / "e.json")
    code, out, _ = run(*flags)
    assert code == 0
    assert "6 of the test images choose the threshold, the other 6 are reported" in out
    numbers = json.loads((tmp_path / "e.json").read_text())
    point = numbers["operating_point"]
    assert (point["budget"], point["held_out_images"], numbers["images"]) == (0.7, 6, 6)
    used = f"{point['flops_fraction']:.2%} on the images that chose the threshold"
    assert f"FLOPs used, of a budget of 70.00%: {used}, {numbers['flops_mean'] / numbers['full_flops']:.2%}" in out

    images = DataSource("Folder", image_tree).test
    resnet, policy_network = build("R14_Folder", num_classes=2, policy_net="pooled")
    load_checkpoint(checkpoint, resnet=resnet, policy_network=policy_network)
    threshold = numbers["threshold"]
    choosing, reported = (
        evaluate_images(dynamic_of(resnet, policy_network, threshold=threshold), images.subset(rows), batch_size=4)
        for rows in held_out_halves(images.labels)
    )
    full = numbers["full_flops"]
    assert choosing.flops_per_image[0] / full == point["flops_fraction"] <= 0.7
    assert choosing.keep_probs is not None
    lower = choosing.keep_probs[choosing.keep_probs < threshold].max().item()
    choosers = images.subset(held_out_halves(images.labels)[0])
    cheaper = evaluate_images(dynamic_of(resnet, policy_network, threshold=lower), choosers, batch_size=4)
    assert cheaper.flops_per_image[0] > 0.7 * full, "no lower threshold meets the budget"
    assert numbers["accuracy"] == reported.accuracy
    assert numbers["flops_mean"] == reported.flops_per_image[0]

    curve = numbers["curve"]
    assert [row["threshold"] for row in curve] == sorted(row["threshold"] for row in curve)
    assert {0.5, threshold, KEEP_ALL} <= {row["threshold"] for row in curve}
    assert 4 <= len(curve) <= 11
    (own,) = [row for row in curve if row["threshold"] == threshold]
    assert own.items() <= {**numbers, "flops_fraction": numbers["flops_mean"] / full}.items()
    assert curve[0]["block_usage_mean"] == 6
    assert curve[0]["accuracy"] == numbers["full_accuracy"]
    assert curve[-1]["block_usage_mean"] == 0
    costs = [row["flops_mean"] for row in curve]
    assert costs == sorted(costs, reverse=True)
    assert "< reported above" in out

    before, after = read_checkpoint(checkpoint), read_checkpoint(tmp_path / "point.t7")
    assert after.operating_point == {**point, "threshold": threshold, "curve": curve}
    assert numbers["right"] == "".join(str(int(hit)) for hit in reported.correct)
    for part in ("resnet", "policy_network"):
        old, new = getattr(before, part), getattr(after, part)
        assert old.keys() == new.keys()
        assert all(old[key].equal(new[key]) for key in old)
    for name in ("model", "shortcut", "normalisation", "policy_net", "classes", "epoch", "metrics", "config"):
        assert getattr(before, name) == getattr(after, name), name


def test_a_stored_threshold_is_used_unless_a_flag_says_otherwise(tmp_path: Path, run: Command) -> None:
    def threshold(*flags: object) -> tuple[float, str]:
        code, out, _ = run(*flags, "--json", tmp_path / "e.json", "--overwrite")
        assert code == 0
        return json.loads((tmp_path / "e.json").read_text())["threshold"], out

    assert threshold()[0] == 0.5
    chosen, _ = threshold("--budget", 0.7, "--save", tmp_path / "point.t7")
    assert chosen != 0.5
    stored, out = threshold("--load", tmp_path / "point.t7")
    assert stored == chosen
    line = f"threshold {chosen:.9g}: the checkpoint's operating point, chosen for a budget of 0.7 on 6 test images"
    assert line in out
    given, out = threshold("--load", tmp_path / "point.t7", "--threshold", 0.25)
    assert given == 0.25
    assert "operating point" not in out

    threshold("--load", tmp_path / "point.t7", "--curve", "--save", tmp_path / "copy.t7")
    copied, point = (read_checkpoint(tmp_path / name).operating_point for name in ("copy.t7", "point.t7"))
    assert copied is not None
    assert point is not None
    assert copied["curve"]
    assert {**copied, "curve": []} == point, "saved again, it still says how it was chosen"
    threshold("--threshold", 0.25, "--save", tmp_path / "hand.t7")
    assert "threshold 0.25: the checkpoint's operating point\n" in threshold("--load", tmp_path / "hand.t7")[1]


def test_a_budget_above_the_cost_of_all_blocks_keeps_them(tmp_path: Path, run: Command) -> None:
    code, out, _ = run("--budget", 1.5, "--json", tmp_path / "e.json")
    assert code == 0
    assert "threshold 1e-60 meets the budget (the budget pays for all blocks)" in out
    assert json.loads((tmp_path / "e.json").read_text())["usage_per_block"] == [1.0] * 6


def test_a_checkpoint_in_two_files_of_other_dialects_is_saved_in_one(
    tmp_path: Path, checkpoint: Path, run: Command
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["resnet"], tmp_path / "resnet.pth")
    torch.save({"agent": content["agent"], "epoch": 3, "acc": 0.75}, tmp_path / "policy.t7")
    files = ("--load", tmp_path / "resnet.pth", tmp_path / "policy.t7", "--policy_net", "pooled")
    assert run(*files, "--threshold", 0.25, "--save", tmp_path / "both.t7")[0] == 0
    both = read_checkpoint(tmp_path / "both.t7")
    assert (both.model, both.classes, both.epoch, both.policy_net) == ("R14_Folder", ["cat", "dog"], 3, "pooled")
    assert torch.load(tmp_path / "both.t7", weights_only=True)["acc"] == 0.75
    assert both.resnet is not None
    assert both.policy_network is not None
    assert all(both.resnet[key].equal(value) for key, value in content["resnet"].items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--budget", "0.5", "--threshold", "0.5"), "--threshold and --budget: pass one of them"),
        (("--budget", "0"), "--budget 0.0: must be above 0 and at most 2"),
        (("--budget", "nan"), "--budget nan: must be above 0 and at most 2"),
        (("--threshold", "1"), "--threshold 1.0: must be above 0 and below 1"),
        (("--budget", "0.01"), "budget 0.01: can't be met; the least possible, with all blocks dropped"),
        (("--budget", "0.5", "--load", "{tmp}/resnet.t7"), "--budget: needs a policy network"),
        (("--curve", "--load", "{tmp}/resnet.t7"), "--curve: needs a policy network"),
        (("--save", "{tmp}/new.t7", "--load", "{tmp}/resnet.t7"), "--save: needs a policy network"),
        (("--save", "{tmp}/start.t7"), "start.t7: exists; pass --overwrite to replace it"),
        (("--save", "{tmp}/start.t7", "--overwrite"), "is the checkpoint that --load reads"),
        (("--json", "{tmp}/start.t7", "--overwrite"), "is the checkpoint that --load reads"),
        (("--save", "{tmp}/link.t7", "--overwrite"), "is the checkpoint that --load reads"),
        (("--save", "{tmp}"), "not a file name"),
        (("--save", "{tmp}/none/new.t7"), "no folder"),
        (("--save", "{tmp}/new.t7", "--json", "{tmp}/new.t7"), "two files are needed"),
        (("--load", "{tmp}/damaged.t7"), "damaged header"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_flags_end_with_one_line_and_leave_every_file_alone(
    tmp_path: Path, checkpoint: Path, run: Command, flags: tuple[str, ...], message: str
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["resnet"], tmp_path / "resnet.t7")
    torch.save(content | {"operating_point": {"threshold": 2.0}}, tmp_path / "damaged.t7")
    (tmp_path / "link.t7").symlink_to(checkpoint)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.t7")}
    code, _, error = run(*(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.t7")} == before


def test_a_file_says_which_images_it_is_about(tmp_path: Path, run: Command) -> None:
    def digest(*flags: object) -> tuple[str, int]:
        assert run(*flags, "--json", tmp_path / "e.json", "--overwrite")[0] == 0
        numbers = json.loads((tmp_path / "e.json").read_text())
        assert len(numbers["right"]) == numbers["images"]
        return numbers["images_digest"], numbers["images"]

    assert digest() == digest("--threshold", 0.9)
    assert digest()[1] == 12
    half = digest("--budget", 0.7)
    assert half[1] == 6
    assert half[0] != digest()[0]
    assert digest("--data_dir", write_image_tree(tmp_path / "other", count=7))[0] != digest()[0]


def test_digests_tell_labels_their_order_and_class_names() -> None:
    labels = torch.tensor([0, 1, 1])
    found = images_digest(["cat", "dog"], labels)
    assert found == images_digest(["cat", "dog"], labels.int())
    assert len(found) == 16
    assert found != images_digest(["cat", "dog"], labels.flip(0))
    assert found != images_digest(["cat", "cow"], labels)
    assert images_digest(["caf\udce9"], labels), "a folder's name that isn't UTF-8"


def test_speed_can_be_left_out(tmp_path: Path, checkpoint: Path, run: Command, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "measure_speed", lambda *args, **options: pytest.fail("measured"))
    flags = ("--no_speed", "--curve", "--json", tmp_path / "e.json", "--save", tmp_path / "point.t7")
    code, out, _ = run(*flags)
    assert code == 0
    assert "images/s at batch" not in out
    numbers = json.loads((tmp_path / "e.json").read_text())
    assert (numbers["images_per_second"], numbers["full_images_per_second"]) == (None, None)
    assert all(row["images_per_second"] is None for row in numbers["curve"])
    stored = read_checkpoint(tmp_path / "point.t7").operating_point
    assert stored is not None
    assert len(stored["curve"]) == len(numbers["curve"])
    assert run("--no_speed", "--policy", "first_k:2")[0] == 0
    static = ("--no_speed", "--arch", "plain8", "--load", save_static(tmp_path, "plain8"))
    assert run(*static)[0] == 0


def test_a_single_image_can_not_both_choose_and_be_reported(tmp_path: Path, command: Command) -> None:
    tree = write_image_tree(tmp_path / "one", classes=("cat",), count=1)
    resnet, policy_network = build("R8_Folder", num_classes=1)
    content: dict[str, Any] = {"agent": policy_network.state_dict(), "resnet": resnet.state_dict()}
    torch.save(content, tmp_path / "c.t7")
    flags = ("--model", "R8_Folder", "--data_dir", tree, "--load", tmp_path / "c.t7", "--budget", 1)
    code, _, error = command(evaluate, *flags)
    assert code == 2
    assert "needs at least two test images" in error


# ---- static nets

STATIC: dict[str, dict[str, Any]] = {
    "plain8": {},
    "dsplain8": {"shortcut": "projection"},
    "exactplain8": {},
    "shiftresnet8": {"expansion": 2.0},
}


def save_static(path: Path, architecture: str) -> Path:
    """A checkpoint of a static net for two classes, as pretrain and distill write them."""
    options = STATIC[architecture]
    net = build_static(f"{architecture}_Folder", 2, **options)
    randomise_statistics(net)
    save_checkpoint(
        path / f"{architecture}.t7",
        model=f"{architecture}_Folder",
        variant=Variant(**{name: value for name, value in options.items() if name != "shortcut"}),
        resnet=net,
        normalisation=NORMALISATIONS["half"],
        classes=["cat", "dog"],
        epoch=1,
        metrics={"accuracy": 0.5},
    )
    return path / f"{architecture}.t7"


@pytest.mark.parametrize("architecture", ["plain8", "dsplain8", "shiftresnet8"])
def test_a_static_net_writes_the_fields_of_a_dynamic_one(
    tmp_path: Path, image_tree: Path, run: Command, architecture: str
) -> None:
    assert run("--json", tmp_path / "dynamic.json")[0] == 0
    flags = ("--arch", architecture, "--load", save_static(tmp_path, architecture))
    code, out, _ = run(*flags, "--json", tmp_path / "static.json")
    assert code == 0
    dynamic, numbers = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("dynamic", "static"))
    assert numbers.keys() == dynamic.keys()
    assert numbers["operating_point"].keys() == dynamic["operating_point"].keys()
    assert numbers["model"] == f"{architecture}_Folder"

    assert "    Block Usage: 3.000 ± 0.000\n" in out
    assert (numbers["block_usage_mean"], numbers["block_usage_std"], numbers["num_blocks"]) == (3, 0, 3)
    assert numbers["usage_per_block"] == [1, 1, 1]
    assert (numbers["unique_policies"], numbers["policy_network_flops"]) == (1, 0)
    assert numbers["full_accuracy"] == numbers["accuracy"]

    resnet = build_static(f"{architecture}_Folder", 2, **STATIC[architecture])
    load_checkpoint(tmp_path / f"{architecture}.t7", resnet=resnet)
    assert numbers["flops_mean"] == numbers["full_flops"] == count_flops(resnet, None, 32).full
    assert (numbers["flops_std"], numbers["flops_saved"]) == (0, 0)
    assert numbers["parameters"] == sum(p.numel() for p in resnet.parameters())
    images = DataSource("Folder", image_tree).test
    (batch,) = images.batches(12, NORMALISATIONS["half"])
    with torch.no_grad():
        right = resnet.eval()(batch[0]).argmax(1) == batch[1]
    assert numbers["accuracy"] == right.double().mean().item()


def test_a_static_net_has_no_use_for_a_threshold(tmp_path: Path, run: Command) -> None:
    flags = ("--arch", "plain8", "--load", save_static(tmp_path, "plain8"), "--json", tmp_path / "e.json")
    found = []
    for threshold in ((), ("--threshold", 0.9)):
        code, _, _ = run(*flags, "--overwrite", *threshold)
        assert code == 0
        numbers = json.loads((tmp_path / "e.json").read_text())
        found.append(
            {k: v for k, v in numbers.items() if "per_second" not in k and k not in ("threshold", "config")}
        )
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--budget", "0.5"),
            "--budget: needs a policy network, which it is about; --load {tmp}/plain8.t7",
        ),
        (("--curve",), "--curve: needs a policy network"),
        (("--save", "{tmp}/new.t7"), "--save: needs a policy network"),
        (("--threshold", "1"), "--threshold 1.0: must be above 0 and below 1"),
        (("--budget", "0.5", "--threshold", "0.5"), "--threshold and --budget: pass one of them"),
        (("--json", "{tmp}/plain8.t7", "--overwrite"), "is the checkpoint that --load reads"),
        (("--shortcut", "projection"), "shortcut projection: plain8 has no shortcuts"),
        (("--expansion", "2"), "expansion 2.0: for shift nets; plain8 takes a reduction"),
        (("--reduction", "0"), "reduction 0.0: must be "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_that_do_not_suit_a_static_net(
    tmp_path: Path, run: Command, flags: tuple[str, ...], message: str
) -> None:
    path = save_static(tmp_path, "plain8")
    content = path.read_bytes()
    common = ("--arch", "plain8", "--load", path)
    code, _, error = run(*common, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    assert code == 2
    assert error.startswith("error: ")
    assert message.replace("{tmp}", str(tmp_path)) in error
    assert path.read_bytes() == content
    assert not (tmp_path / "new.t7").exists()


@pytest.mark.parametrize("given", [(), ("--arch", "resnet8")])
@pytest.mark.parametrize("architecture", ["plain8", "dsplain8", "exactplain8"])
def test_a_plain_net_without_its_arch_says_which_to_pass(
    tmp_path: Path, run: Command, architecture: str, given: tuple[str, ...]
) -> None:
    path = save_static(tmp_path, architecture)
    code, _, error = run("--load", path, *given)
    assert code == 2
    assert error.startswith(f"error: {path}: ")
    assert error.endswith(f"pass --arch {architecture}")


def test_a_checkpoint_of_another_depth_or_width_is_refused(tmp_path: Path, run: Command) -> None:
    plain, shift = (save_static(tmp_path, name) for name in ("plain8", "shiftresnet8"))
    assert "holds a ResNet-8 (3 blocks), the model is a ResNet-14" in run("--load", plain, "--arch", "plain14")[2]
    code, _, error = run("--load", shift, "--arch", "shiftresnet8", "--expansion", 3)
    assert code == 2
    assert "has shape (32, 16, 1, 1), the model wants (48, 16, 1, 1)" in error
