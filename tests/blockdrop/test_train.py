"""One call from a trained network to one that drops blocks: both recipes, on data that a program holds."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import blockdrop
from blockdrop import train
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError
from blockdrop.finetune import FinetuneConfig
from tests.conftest import randomise_statistics, write_image_tree

SIDE, CLASSES = 32, 3
Command = Callable[..., tuple[int, str, str]]


def own_network() -> DynamicNetwork:
    torch.manual_seed(1)
    dynamic = blockdrop.make_dynamic("R8_C10", num_classes=CLASSES, classes=["a", "b", "c"])
    randomise_statistics(dynamic.network)
    return dynamic


def own_data(count: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator) + labels[:, None, None, None]
    return TensorDataset(images, labels)


def train_own(run_dir: Path, dynamic: DynamicNetwork | None = None, **options: Any) -> Any:
    options = {"epochs": 2, "batch_size": 8, "seed": 3, "device": "cpu", "speed": False, **options}
    return blockdrop.train(dynamic or own_network(), own_data(), own_data(12), run_dir=run_dir, **options)


def assert_same_weights(found: DynamicNetwork, expected: DynamicNetwork) -> None:
    found_state, state = found.state_dict(), expected.state_dict()
    assert found_state.keys() == state.keys()
    assert [name for name, value in state.items() if not found_state[name].equal(value)] == []


@pytest.mark.parametrize("recipe", ["fast", "glance", "reference"])
def test_a_recipe_gives_a_dynamic_network_its_report_and_its_files(tmp_path: Path, recipe: str) -> None:
    dynamic = own_network()
    before = copy.deepcopy(dynamic)
    budget = {} if recipe == "reference" else {"budget": 0.6}
    trained, report = train_own(tmp_path / "run", dynamic, recipe=recipe, **budget)
    assert_same_weights(dynamic, before)
    assert not trained.training
    assert any(not value.equal(before.state_dict()[name]) for name, value in trained.state_dict().items())
    assert [row.name for row in report.rows] == ["network as brought", "fine-tuned full network", "dynamic"]

    images, labels = own_data(12).tensors
    with torch.no_grad():
        logits, policy, answered, *_ = trained.run(images)
        full = before.eval().network(images, torch.ones(12, 3, dtype=torch.bool))
    brought, _, own = report.rows
    assert own.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert brought.accuracy == pytest.approx((full.argmax(1) == labels).double().mean().item())
    assert own.flops == pytest.approx(trained.flops(policy, answered).double().mean().item())

    last = tmp_path / "run"
    assert json.loads((last / "report.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert list(last.glob("events.out.tfevents*"))
    assert_same_weights(blockdrop.load(last), trained)
    assert blockdrop.load(last).threshold == trained.threshold
    if recipe == "reference":
        assert blockdrop.load(tmp_path / "run" / "curriculum").policy_network is not None


def test_the_command_line_has_the_same_defaults() -> None:
    (config,) = train.plan("fast", Path("run"), own_network(), {})
    assert isinstance(config, FinetuneConfig)
    expected = FinetuneConfig(recipe="fast", cv_dir="run", policy_net="stem")
    assert config == expected
    assert FinetuneConfig(recipe="fast") != FinetuneConfig()


def test_a_run_that_is_stopped_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = train_own(tmp_path / "whole", epochs=3)

    class Stopped(TensorDataset):
        """Stops the program in the second epoch."""

        reads = 0

        def __getitem__(self, index: int) -> Any:
            Stopped.reads += 1
            if Stopped.reads == 60:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    options = {"epochs": 3, "batch_size": 8, "seed": 3, "device": "cpu", "speed": False}
    with pytest.raises(KeyboardInterrupt):
        blockdrop.train(
            own_network(), Stopped(*own_data().tensors), own_data(12), run_dir=tmp_path / "parts", **options
        )
    resumed, _ = train_own(tmp_path / "parts", epochs=3, resume=True)
    assert_same_weights(resumed, whole)


def test_another_network_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    train_own(tmp_path / "run", epochs=1)
    other = own_network()
    torch.nn.init.zeros_(next(other.network.parameters()))
    with pytest.raises(BlockdropError, match=r"/run: the run began with another network; name another folder, or"):
        train_own(tmp_path / "run", other, epochs=1, resume=True)
    with pytest.raises(BlockdropError, match=r"^run_dir .*/run: already holds a run .*; .* resume .* overwrite"):
        train_own(tmp_path / "run", epochs=1)
    train_own(tmp_path / "run", epochs=1, overwrite=True)


def test_a_report_that_is_no_runs_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("mine")
    for resume in (False, True):
        with pytest.raises(
            BlockdropError, match=r"^run_dir .*: holds a report\.json that is no run's; .* overwrite"
        ):
            train_own(tmp_path, epochs=1, resume=resume)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.json", "mine")]
    _, report = train_own(tmp_path, epochs=1, overwrite=True)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report.to_json()))
    train_own(tmp_path, epochs=1, resume=True)


FROZEN: dict[str, Callable[[DynamicNetwork], list[torch.nn.Parameter]]] = {
    "first layer": lambda dynamic: list(dynamic.network.parameters())[:3],
    "network": lambda dynamic: list(dynamic.network.parameters()),
    "all": lambda dynamic: list(dynamic.parameters()),
}


@pytest.mark.parametrize("recipe", ["fast", "reference"])
@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_frozen_parameters_stay_as_they_are(
    tmp_path: Path, frozen: Callable[[DynamicNetwork], list[torch.nn.Parameter]], recipe: str
) -> None:
    dynamic = own_network()
    for parameter in frozen(dynamic):
        parameter.requires_grad_(False)
    trained, _ = train_own(tmp_path / "run", dynamic, recipe=recipe, epochs=3)
    before, after = dict(dynamic.named_parameters()), dict(trained.named_parameters())
    assert {name: value.requires_grad for name, value in after.items()} == {
        name: value.requires_grad for name, value in before.items()
    }
    assert all(after[name].equal(value) for name, value in before.items() if not value.requires_grad)
    learned = [name for name, value in before.items() if value.requires_grad and not after[name].equal(value)]
    assert bool(learned) == any(value.requires_grad for value in before.values())


def test_a_data_loader_and_a_data_source_train_too(tmp_path: Path) -> None:
    loader = DataLoader(own_data(), batch_size=6, shuffle=True, drop_last=True)
    trained, _ = blockdrop.train(
        own_network(), loader, DataLoader(own_data(12), 4), epochs=1, run_dir=tmp_path / "loader", device="cpu",
        speed=False,
    )  # fmt: skip
    assert trained.config["batch_size"] == 6

    from blockdrop.data import DataSource

    root = write_image_tree(tmp_path / "tree", classes=("a", "b", "c"))
    source = DataSource("Folder", root, image_size=SIDE)
    trained, _ = blockdrop.train(
        own_network(), source, epochs=1, batch_size=6, run_dir=tmp_path / "source", device="cpu", speed=False
    )
    assert trained.classes == ["a", "b", "c"]


class Wrong(TensorDataset):
    """One image and label, again and again."""

    def __init__(self, image: torch.Tensor, label: Any):
        super().__init__(image)
        self.image, self.label = image, label

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return self.image, self.label


IMAGE = torch.zeros(3, SIDE, SIDE)
BAD_DATA = {
    "uint8": (Wrong(IMAGE.to(torch.uint8), 0), "uint8"),
    "size": (Wrong(torch.zeros(3, 20, 20), 0), "20"),
    "label": (Wrong(IMAGE, 7), "label 7"),
    "not finite": (Wrong(IMAGE + torch.nan, 0), "finite"),
    "no data set": (3, "int"),
    "loader of uint8": (DataLoader(Wrong(IMAGE.to(torch.uint8), 0), 4), "uint8"),
}


@pytest.mark.parametrize(("data", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_the_network_does_not_take_is_named(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        blockdrop.train(own_network(), data, own_data(12), run_dir=tmp_path / "run", epochs=1, device="cpu")
    with pytest.raises(BlockdropError, match=message):
        blockdrop.evaluate(own_network(), data, speed=False)


BAD_FLAGS: list[tuple[dict[str, Any], str]] = [
    ({"bath_size": 8}, "bath_size: blockdrop.train has no such flag; did you mean batch_size?"),
    ({"epoch": 3}, "epoch: blockdrop.train has no such flag; did you mean epochs?"),
    ({"bugdet": 0.5}, "did you mean budget?"),
    ({"recipe": "quick"}, "choose fast, answers, glance, one_policy, reference"),
    ({"budget": 1.5}, "budget 1.5: must be above 0 and at most 1"),
    ({"epochs": 0}, "^epochs 0"),
    ({"lr": -1.0}, "^lr -1.0"),
    ({"policy_net": "constant"}, "policy_net: blockdrop.train has no such flag"),
    ({"workers": -1}, "^workers -1: must be a whole number, at least 0"),
    ({"precision": "half"}, "^precision half: choose one of auto, float32, bfloat16"),
    ({"device": torch.device("meta")}, "^device meta: not available"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message[:30] for _, message in BAD_FLAGS])
def test_a_flag_that_is_wrong_is_named_and_nothing_is_written(
    tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(BlockdropError, match=message):
        train_own(tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


NO_DYNAMIC: list[tuple[Any, str]] = [
    (torch.nn.Linear(1, 1), "dynamic: got Linear, no DynamicNetwork; blockdrop.make_dynamic\\(model\\) first"),
    ("net.t7", "dynamic: got the path net.t7, no DynamicNetwork; blockdrop.load\\(path\\) first"),
    (Path("net.t7"), "dynamic: got the path net.t7, .*; blockdrop.load\\(path\\) first"),
    (None, "dynamic: got NoneType, no DynamicNetwork; blockdrop.make_dynamic and blockdrop.load make one"),
]


@pytest.mark.parametrize(("what", "message"), NO_DYNAMIC)
def test_what_is_no_dynamic_network_is_told_how_it_becomes_one(tmp_path: Path, what: Any, message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        blockdrop.train(what, own_data(), own_data(12), run_dir=tmp_path / "run")
    with pytest.raises(BlockdropError, match=message):
        blockdrop.evaluate(what, own_data())
    assert not (tmp_path / "run").exists()


def test_a_device_may_be_torchs(tmp_path: Path) -> None:
    trained, _ = train_own(tmp_path / "run", epochs=1, device=torch.device("cpu"))
    assert trained.config["device"] == "cpu"


def test_a_network_without_blocks_to_drop_is_refused(tmp_path: Path) -> None:
    plain = own_network().with_network(blockdrop.build_static("plain8_C10", num_classes=CLASSES), "plain8_C10")
    with pytest.raises(BlockdropError, match="plain8_C10: has no blocks that could be dropped"):
        train_own(tmp_path / "run", plain)


def test_the_command_trains_what_a_file_holds(tmp_path: Path, command: Command) -> None:
    root = write_image_tree(tmp_path / "tree", classes=("a", "b", "c"))
    brought = own_network().with_network(own_network().network)
    brought.save(tmp_path / "net.t7")
    flags = ("--model", "R8_Folder", "--load", tmp_path / "net.t7", "--data_dir", root, "--device", "cpu")
    code, out, error = command(
        train,
        *flags,
        "--epochs",
        1,
        "--batch_size",
        6,
        "--budget",
        0.7,
        "--cv_dir",
        tmp_path / "run",
        "--no_speed",
    )
    assert code == 0, error
    assert "as brought" in out
    assert blockdrop.load(tmp_path / "run").config["target_flops"] == 0.7
    run_flags = ("--cv_dir", tmp_path / "run", "--overwrite")
    code, _, error = command(train, *flags[:2], *flags[4:], "--load", tmp_path / "run", *run_flags)
    assert code == 2
    assert "which this run starts from; name another folder" in error
    assert blockdrop.load(tmp_path / "run").num_blocks == 3
    code, _, error = command(train, "--data_dir", root, "--cv_dir", tmp_path / "none")
    assert code == 2
    assert "--load: name a trained network" in error


@pytest.mark.long
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tests.blockdrop.test_train import train_own\n"
        "_, report = train_own(Path(sys.argv[1]), epochs=1)\n"
        "Path(sys.argv[1] + os.environ['RANK']).write_text(str(report.to_json()))"
    )
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            tmp_path / "program.py", tmp_path / "run",
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"run{rank}").read_text() for rank in range(2))
    assert first == second
    assert done.stdout.count("checkpoint: ") == 1  # one of them speaks
    assert blockdrop.load(tmp_path / "run").policy_network is not None
