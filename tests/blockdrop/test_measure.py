"""Speeds: runs take turns on the same batches, and the median of the rounds counts."""

import itertools
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import Tensor

from agents.answers import Thresholds
from blockdrop import build, build_static, compile, measure
from blockdrop.data import NORMALISATIONS, MemoryImages
from blockdrop.training.compute import Compute
from tests.conftest import randomise_statistics

CPU = torch.device("cpu")


def test_runs_take_turns_and_the_median_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(measure, "SPEED_ROUNDS", 3)
    # seconds of each call: one to warm up, then two batches in each of three rounds
    costs = {"a": iter([100, 1, 1, 9, 9, 2, 2]), "b": iter([100, 5, 5, 3, 3, 8, 8])}

    def run(name: str, batch: Tensor) -> None:
        calls.append((name, int(batch)))
        clock[0] += next(costs[name])

    runs = [lambda batch, name=name: run(name, batch) for name in "ab"]
    seconds = measure.seconds_in_turns(runs, [torch.tensor(0), torch.tensor(1)], CPU)
    assert seconds == [4, 10]  # medians of 2, 18, 4 and of 10, 6, 16
    a_round = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert calls == [("a", 0), ("b", 0), *a_round, *a_round, *a_round]


def test_every_network_passes_all_images_by_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    images = MemoryImages(torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    networks = [build_static(f"{name}_Digits").eval() for name in ("plain8", "R8")]
    passes: list[list[Tensor]] = []

    def time_them(runs: list, batches: list[Tensor], device: torch.device) -> list[float]:
        assert torch.cat(batches).shape == (5, 3, 32, 32)
        assert [len(batch) for batch in batches] == [2, 2, 1]
        for run in runs:
            found = [run(batch) for batch in batches]
            passes.append([logits[0] if isinstance(logits, tuple) else logits for logits in found])
        return list(itertools.islice(itertools.count(1.0), len(runs)))

    monkeypatch.setattr(measure, "seconds_in_turns", time_them)
    compute = Compute(CPU, torch.float32, channels_last=True)
    seconds = measure.measure_passes(
        networks, images, NORMALISATIONS["half"], compute, batch_size=2, engines=("torch", "eager")
    )
    assert seconds == [{"torch": 1, "eager": 2}, {"torch": 3, "eager": 4}]
    (batch,) = images.batches(5, NORMALISATIONS["half"])
    for number, logits in enumerate(passes):
        with torch.no_grad():
            expected = networks[number // 2](batch[0])
        torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-4)


def test_some_images_stand_for_all_and_executors_that_there_are_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    images = MemoryImages(torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    compute = Compute(CPU, torch.float32, channels_last=True)
    networks = [build_static(f"{name}_Digits").eval() for name in ("plain8", "R8")]
    ready = [measure.executor(network, None, compute, "torch") for network in networks]
    monkeypatch.setattr(measure, "executor", lambda *args: pytest.fail("made another"))

    def time_them(runs: list, batches: list[Tensor], device: torch.device) -> list[float]:
        assert [len(batch) for batch in batches] == [2, 1]
        assert runs == ready
        return [3.0, 6.0]

    monkeypatch.setattr(measure, "seconds_in_turns", time_them)
    seconds = measure.measure_passes(
        networks, images, NORMALISATIONS["half"], compute,
        batch_size=2, engines=("torch",), timed_images=3, executors={"torch": ready},
    )  # fmt: skip
    assert seconds == [{"torch": 5.0}, {"torch": 10.0}], "of five images, three of which were timed"


def test_predictions_don_t_hang_on_how_many_policies_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = build("R8_Digits")[0].eval()
    randomise_statistics(resnet)
    images = MemoryImages(torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8), torch.zeros(7, dtype=torch.long))
    policies = torch.tensor(list(itertools.product([False, True], repeat=3)))[:, None].expand(8, 7, 3)
    compute = Compute(CPU, torch.float32, channels_last=True)
    run = measure.executor(resnet, None, compute, "torch")
    how = (run, policies, images, NORMALISATIONS["half"], compute, 4)
    together = measure.predict_under(*how)
    monkeypatch.setattr(measure, "TIMED_BYTES", 1)
    assert measure.predict_under(*how).equal(together)
    (batch,) = images.batches(7, NORMALISATIONS["half"])
    for policy, predictions in zip(policies, together, strict=True):
        assert resnet(batch[0], policy).argmax(1).equal(predictions)


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_full_and_dynamic_network_run_the_same_batches_in_turns(engine: Literal["torch", "auto"]) -> None:
    resnet, policy_network = build("R8_Digits")
    torch.nn.init.normal_(policy_network.logit.weight, std=1.0)
    images = MemoryImages(torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    full, dynamic = compile(resnet, engine=engine), compile(resnet, policy_network, engine=engine)
    policies = torch.tensor([[True, False, False]]).repeat(5, 1)
    full_speed, speeds = measure.measure_speed(
        full, dynamic, images, NORMALISATIONS["half"], batch_size=2, policies=[policies, Thresholds(1e-6)]
    )
    assert full_speed > 0
    assert len(speeds) == 2
    assert min(speeds) > 0
    rounds = full.block_executions // (2 * 3)  # one batch of two images, all three blocks
    assert rounds > 0
    assert dynamic.block_executions == rounds * 2 * (1 + 3)


@pytest.mark.parametrize("given", [True, False])
def test_single_images_run_in_turns_under_their_own_policies(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    monkeypatch.setattr(measure, "LATENCY_IMAGES", 3)
    resnet, policy_network = build("R8_Digits")
    torch.nn.init.normal_(policy_network.logit.weight, std=1.0)
    images = MemoryImages(torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    full = compile(resnet, engine="torch")
    dynamic = compile(resnet, policy_network, engine="torch")
    policies = torch.tensor([[True, False, False]]).repeat(5, 1)
    before = dynamic.block_executions
    latencies = measure.measure_latency(
        full, dynamic, images, NORMALISATIONS["half"], policies if given else Thresholds(1e-6)
    )
    assert all(0 < latency.median <= latency.p95 for latency in latencies)
    calls = 2 + 3 + 2 + 3  # to know how long they take, their policies, to warm up, timed
    assert dynamic.block_executions - before == calls * (1 if given else 3)


def test_of_twenty_images_the_slowest_lies_beyond_the_95th_percentile() -> None:
    latency = measure.Latency.of([0.001 * i for i in range(1, 22)])
    assert (latency.median, latency.p95) == (pytest.approx(11.0), pytest.approx(20.0))
