"""Two processes do what one does: the same gradients, the same outcomes, one writer."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from agents.policy_network import PolicyNetwork
from blockdrop import build, cl_train, distill, finetune, load_network, pretrain, save_checkpoint
from blockdrop.cl_train import CurriculumConfig
from blockdrop.data import NORMALISATIONS, DataSource
from blockdrop.distill import KdConfig, StagewiseConfig
from blockdrop.errors import BlockdropError, Interrupted
from blockdrop.finetune import FinetuneConfig
from blockdrop.measure import evaluate_images
from blockdrop.models.backbone import Backbone
from blockdrop.pretrain import PretrainConfig
from blockdrop.processes import ALONE, Processes, current_processes, joined
from blockdrop.training.compute import choose_compute
from blockdrop.training.config import TrainingConfig
from blockdrop.training.opening import check_shares
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.supervised import TestAndSave
from blockdrop.training.update import Update
from tests.conftest import dynamic_of

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def in_processes(size: int, work: Callable[[Processes], Any], port: int | None = None) -> list[Any]:
    """What the work returns in each of so many processes that know of each other, by a store at the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    torch.set_num_threads(1)
                    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
                    os.environ.update({key: str(value) for key, value in {**address, **place}.items()})
                    with joined("cpu") as processes:
                        torch.save(work(processes), Path(folder, str(rank)))
                    code = 0
                except BaseException as error:
                    print(f"process {rank}: {error!r}")
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * size
        return [torch.load(Path(folder, str(rank))) for rank in range(size)]


def test_gathered_rows_are_in_the_batchs_order_and_each_gets_its_gradient() -> None:
    batch = torch.arange(10.0).view(5, 2)

    def work(processes: Processes) -> tuple[torch.Tensor, torch.Tensor]:
        mine = batch.tensor_split(processes.size)[processes.rank]
        assert batch[processes.rows(len(mine))].equal(mine)
        own = mine.clone().requires_grad_()
        everything = processes.gather(own)
        (everything.square().sum() / processes.size).backward()
        return everything.detach(), own.grad  # type: ignore[return-value]

    for size in (1, 2, 3):
        for rank, (everything, gradient) in enumerate(in_processes(size, work)):
            assert everything.equal(batch)
            assert gradient.allclose(2 * batch.tensor_split(size)[rank])


def test_sums_and_gradients_are_those_of_all() -> None:
    def work(processes: Processes) -> tuple[Any, ...]:
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.full((2,), processes.rank + 1.0)
        if processes.rank == 1:
            parameters[1].grad = torch.full((2,), 5.0)
        processes.sum_gradients(parameters)
        gradients = [None if p.grad is None else p.grad.tolist() for p in parameters]
        return (
            processes.sum(1, processes.rank),
            processes.any(processes.rank == 1),
            processes.any(False),
            gradients,
        )

    expected = ([2.0, 1.0], True, False, [[3.0, 3.0], [5.0, 5.0], None])
    assert in_processes(2, work) == [expected, expected]


def test_a_gradient_from_before_its_parameter_was_frozen_is_summed_too() -> None:
    def work(processes: Processes) -> list[float] | None:
        parameter = nn.Parameter(torch.zeros(2), requires_grad=False)
        parameter.grad = torch.full((2,), processes.rank + 1.0)
        processes.sum_gradients([parameter])
        return parameter.grad.tolist()

    assert in_processes(2, work) == [[3.0, 3.0]] * 2


def test_statistics_are_averaged_where_they_change() -> None:
    def work(processes: Processes) -> list[list[float]]:
        learning, frozen = nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval()
        for norm in (learning, frozen):
            norm.running_mean.fill_(processes.rank + 0.1)  # type: ignore[union-attr, operator]
        processes.average_statistics([nn.Sequential(learning, frozen), learning])
        return [norm.running_mean.tolist() for norm in (learning, frozen)]  # type: ignore[union-attr, operator]

    for rank, (learning, frozen) in enumerate(in_processes(3, work)):
        assert learning == pytest.approx([1.1] * 2)
        assert frozen == torch.full((2,), rank + 0.1).tolist()


def test_after_a_restart_the_dead_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's store, which a new attempt finds with the addresses of the last."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for attempt in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        assert in_processes(2, lambda processes: processes.sum(1), store.port) == [[2.0]] * 2


def test_what_the_first_process_cannot_do_all_hear_of() -> None:
    def fail() -> None:
        raise BlockdropError("no such folder")

    def work(processes: Processes) -> str:
        try:
            processes.from_first(fail)
        except BlockdropError as error:
            return str(error)
        return "nothing heard"

    assert in_processes(2, work) == ["no such folder"] * 2
    assert ALONE.from_first(lambda: 3) == 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "both.t7"
    resnet, policy_network = build("R8_Folder", num_classes=2)
    how: dict[str, Any] = {"model": "R8_Folder", "normalisation": NORMALISATIONS["half"]}
    save_checkpoint(path, resnet=resnet, policy_network=policy_network, **how)
    return path


@pytest.fixture
def stay_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm in train mode is where processes differ."""
    for kind in (PolicyNetwork, Backbone):
        monkeypatch.setattr(kind, "train", lambda self, mode=True: nn.Module.train(self, False))


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Those of every step that an optimiser is asked to take; none is taken."""
    found: list[torch.Tensor] = []

    def step(self: torch.optim.Optimizer) -> None:
        found.extend(p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None)

    for kind in (torch.optim.Adam, torch.optim.SGD):
        monkeypatch.setattr(kind, "step", step)
    return found


COMMANDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "cl_train": (cl_train, {"cl_step": 3}),
    "cl_train fast": (cl_train, {"estimator": "leave_one_out", "target_flops": 1.1, "cl_step": 3}),
    "finetune": (finetune, {}),
    "finetune pathwise": (
        finetune,
        {
            "estimator": "kept_straight_through", "target_flops": 1.1, "information": 0.5, "distill": 1.0,
            "keep_full": 0.2,
        },
    ),
    "finetune shuffled": (finetune, {"shuffle_policies": True}),
    "finetune answers": (
        finetune,
        {
            "recipe": "glance", "answer_epochs": 2, "answer_views": 1, "hold_out": 0.34, "target_flops": 1.3,
            "answered_weight": 0.5, "settle": 0.0, "rewind": False, "settled_distill": None, "recalibrate": 0,
        },
    ),
    "pretrain": (pretrain, {}),
}  # fmt: skip


@pytest.mark.usefixtures("stay_in_eval_mode")
@pytest.mark.parametrize("name", COMMANDS)
def test_gradients_and_metrics_do_not_depend_on_the_number_of_processes(
    name: str, tmp_path: Path, image_tree: Path, checkpoint: Path, gradients: list[torch.Tensor]
) -> None:
    module, flags = COMMANDS[name]
    source = {"cl_train": "load", "finetune": "pretrained", "pretrain": "init"}[name.split()[0]]
    config_class = {cl_train: CurriculumConfig, finetune: FinetuneConfig, pretrain: PretrainConfig}[module]
    common = {"model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 5, "max_epochs": 1}
    common |= {"precision": "float32", source: (str(checkpoint),)}

    def work(processes: Processes) -> list[torch.Tensor]:
        module.main(config_class(**common, **flags, cv_dir=str(tmp_path / f"{processes.size}")))
        return gradients

    def metrics(size: int) -> list[dict[str, Any]]:
        lines = map(json.loads, (tmp_path / f"{size}" / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if "time" not in k and "second" not in k} for line in lines]

    (alone,) = in_processes(1, work)
    assert len(alone) > 10
    for found in in_processes(2, work):
        assert len(found) == len(alone)
        for expected, gradient in zip(alone, found, strict=True):
            assert gradient.allclose(expected, atol=1e-5, rtol=1e-4)
    for expected, line in zip(metrics(1), metrics(2), strict=True):
        assert line == pytest.approx(expected, abs=1e-5)


SUPERVISED: dict[str, Callable[..., TrainingConfig]] = {
    "pretrain": PretrainConfig,
    "stagewise": functools.partial(StagewiseConfig, max_epochs=4, stage_epochs=1, timed_images=1),
    "kd": functools.partial(KdConfig, student="R8", max_epochs=1, timed_images=1),
}


@pytest.mark.parametrize("name", SUPERVISED)
def test_two_processes_train_one_network_and_report_its_true_accuracy(
    name: str, tmp_path: Path, image_tree: Path, checkpoint: Path
) -> None:
    """BatchNorm in train mode: what they compute differs, what they end with doesn't."""
    common = {"model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 5, "cv_dir": str(tmp_path / "run")}
    common |= {"precision": "float32", "max_epochs": 1} if name == "pretrain" else {"load": (str(checkpoint),)}
    config = SUPERVISED[name](**common)
    networks: list[Backbone] = []
    test_and_save = TestAndSave.__call__

    def remember(tests: TestAndSave, epoch: int, last: bool) -> str:
        networks.append(tests.dynamic.network if tests.network is None else tests.network())
        return test_and_save(tests, epoch, last)

    def work(_: Processes) -> dict[str, torch.Tensor]:
        main = pretrain.main if isinstance(config, PretrainConfig) else distill.main
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(TestAndSave, "__call__", remember)
            main(config)  # type: ignore[arg-type]
        return networks[-1].state_dict()

    one, other = in_processes(2, work)
    assert all(value.equal(other[key]) for key, value in one.items())
    network, saved = load_network(tmp_path / "run")
    test = DataSource("Folder", image_tree).test
    assert saved.normalisation is not None
    outcomes = evaluate_images(dynamic_of(network, normalisation=saved.normalisation), test)
    assert outcomes.accuracy == pytest.approx(saved.metrics["accuracy"])


def test_two_processes_go_on_with_the_same_bits(tmp_path: Path, image_tree: Path) -> None:
    """In BatchNorm's train mode, whose statistics each process takes of its own rows."""
    common = {"model": "R8_Folder", "data_dir": str(image_tree), "batch_size": 4, "max_epochs": 2}
    how = {"precision": "float32", "save_minutes": 1e-6}
    step = Update.__call__

    def cut_off(self: Update, loss: torch.Tensor, epoch: int, batch: int) -> None:
        if (epoch, batch) == (1, 1):
            raise BlockdropError("cut off")
        step(self, loss, epoch, batch)

    def work(_: Processes) -> str:
        pretrain.main(PretrainConfig(**common, **how, cv_dir=str(tmp_path / "undisturbed")))  # type: ignore[arg-type]
        cut = PretrainConfig(**common, **how, cv_dir=str(tmp_path / "cut"))  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Update, "__call__", cut_off)
            with pytest.raises(BlockdropError, match="cut off"):
                pretrain.main(cut)
        again = PretrainConfig(**common, **how, cv_dir=str(tmp_path / "cut"), resume=True)  # type: ignore[arg-type]
        pretrain.main(again)
        return "done"

    assert in_processes(2, work) == ["done"] * 2
    expected, found = (load_network(tmp_path / name)[0].state_dict() for name in ("undisturbed", "cut"))
    assert all(value.equal(found[key]) for key, value in expected.items())


@pytest.mark.parametrize("count", [5, 6])
def test_each_test_image_is_counted_once(count: int, image_tree: Path) -> None:
    resnet, policy_network = build("R8_Folder", num_classes=2)
    data = DataSource("Folder", image_tree)
    images = data.test.subset(torch.arange(count))

    def work(_: Processes) -> tuple[torch.Tensor, ...]:
        dynamic = dynamic_of(resnet, policy_network)
        outcomes = evaluate_images(dynamic, images, choose_compute("cpu", "float32"), batch_size=2)
        return outcomes.policy, outcomes.predictions, outcomes.labels

    ((policy, predictions, labels),) = in_processes(1, work)
    assert len(labels) == count
    for found in in_processes(2, work):
        assert all(a.equal(b) for a, b in zip(found, (policy, predictions, labels), strict=True))


def test_a_signal_to_one_process_stops_all_and_all_go_on_together(tmp_path: Path) -> None:
    def work(processes: Processes) -> float | str:
        counter = nn.Linear(1, 1)
        nn.init.zeros_(counter.bias)
        try:
            with RunDirectory(tmp_path, "test", PretrainConfig(), resume=True, processes=processes) as run:
                run.state.track(counter=counter)
                for epoch in run.state.epochs(3):
                    run.state.track_epoch()
                    for batch, _ in run.state.batches(lambda start: range(start, 2)):
                        counter.bias.data += 1
                        if (epoch, batch, processes.rank) == (1, 0, 1):
                            os.kill(os.getpid(), signal.SIGTERM)
                    run.log(epoch, "test", {"accuracy": 0.5})
        except Interrupted as stop:
            return f"{stop} after {counter.bias.item():.0f}"
        return counter.bias.item()

    assert in_processes(2, work) == ["interrupted by SIGTERM after 3"] * 2
    assert in_processes(2, work) == [6.0, 6.0]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2], "one of them writes"


def test_a_batch_too_small_for_all_is_named(image_tree: Path) -> None:
    data, config = DataSource("Folder", image_tree), PretrainConfig(batch_size=5)
    check_shares(config, data, Processes(0, 2))
    with pytest.raises(
        BlockdropError, match="--batch_size 5: one of the batches would be of 2 images, too few for 3"
    ):
        check_shares(config, data, Processes(0, 3))


def test_alone_nothing_is_exchanged() -> None:
    assert current_processes() == ALONE
    x = torch.ones(3)
    assert ALONE.gather(x) is x
    assert ALONE.sum(2.5) == [2.5]
    assert ALONE.rows(3) == slice(0, 3)
    assert ALONE.each("it") == ["it"]
