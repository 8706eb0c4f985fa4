"""An executor gives what its network gives, also after weights have changed, a compilation has failed, or it was
sent to another process."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockdrop
from agents.answers import confidence
from blockdrop.errors import BlockdropError
from blockdrop.inference import openvino_engine
from blockdrop.inference.bank import BankKey
from blockdrop.inference.executor import Executor
from blockdrop.inference.openvino_engine import Program
from blockdrop.inference.watch import Watch
from blockdrop.inference.workers import Workers
from blockdrop.models.resnet import DroppableResNet
from tests.conftest import randomise_statistics

needs_openvino = pytest.mark.skipif(not openvino_engine.is_installed(), reason="openvino is not installed")
ENGINES = ["torch", pytest.param("openvino", marks=needs_openvino)]
Make = Callable[..., DroppableResNet]


def assert_same(run: Executor, network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = network.eval()(images)
    torch.testing.assert_close(run(images)[0], expected, atol=1e-3, rtol=1e-3)


# ---- weights


def train_mode(network: DroppableResNet) -> None:
    """Only BatchNorm's statistics change."""
    network.train()
    for _ in range(20):
        with torch.no_grad():
            network(2 + 3 * torch.randn(8, 3, 32, 32))


def average(network: DroppableResNet) -> None:
    """As an exponential moving average is copied in."""
    for parameter in network.parameters():
        parameter.data.copy_(parameter.data * 0.5)


def assign(network: DroppableResNet) -> None:
    network.load_state_dict({key: 0.5 * value for key, value in network.state_dict().items()}, assign=True)


def from_vector(network: DroppableResNet) -> None:
    vector = torch.nn.utils.parameters_to_vector(network.parameters())
    torch.nn.utils.vector_to_parameters(vector * 0.5, network.parameters())


def step_of_one_block(network: DroppableResNet) -> None:
    block = network.branches()[1][0]
    for parameter in block.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(block.parameters(), 0.1).step()


def variance_alone(network: DroppableResNet) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.mul_(2)


def another_storage(network: DroppableResNet) -> None:
    weight = next(network.branches()[1][0].parameters())
    weight.data = 2 * weight.data


CHANGES = [train_mode, average, assign, from_vector, step_of_one_block, variance_alone, another_storage]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_next_call_follows_a_change(
    change: Callable[[DroppableResNet], None], count: int, engine: Any, make_resnet: Make
) -> None:
    network, images = make_resnet("R20_C10"), torch.randn(count, 3, 32, 32)
    run = blockdrop.compile(network, engine=engine, compile_after=1)
    assert_same(run, network, images)
    before = run(images)[0]
    change(network)
    assert_same(run, network, images)
    assert not run(images)[0].allclose(before, atol=1e-2)


@pytest.mark.parametrize("count", [1, 5])
def test_policies_and_answers_follow_their_network(count: int) -> None:
    network, policy_network = blockdrop.build("R8_C10")
    policy_network.add_answer(10)
    run = blockdrop.compile(network, policy_network.eval())
    images = torch.randn(count, 3, 32, 32)
    run(images)
    with torch.no_grad():
        for parameter in policy_network.own_parameters():
            parameter.data.add_(torch.randn(parameter.shape) / 10)
        expected = policy_network.glance(images)
    found = run.run(images)
    torch.testing.assert_close(found.keep_probs, expected.keep_probs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.answer, expected.answer, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_leaves_no_trace_needs_a_refresh_which_is_unconditional(engine: Any, make_resnet: Make) -> None:
    network, images = make_resnet("R20_C10"), torch.randn(3, 3, 32, 32)
    run = blockdrop.compile(network, engine=engine)
    run(images)
    weight = next(network.branches()[1][0].parameters())
    weight.data[1:] *= 3
    run.refresh()
    assert_same(run, network, images)
    network.fc = nn.Linear(network.fc.in_features, 10)
    run.refresh()
    assert_same(run, network, images)


def test_nothing_is_prepared_anew_without_a_change(make_resnet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_resnet("R8_C10")
    network.bn1.bias.data[0] = float("nan")
    run = blockdrop.compile(network)
    monkeypatch.setattr(run, "_prepare", lambda: pytest.fail("prepared anew"))
    for count in (1, 4, 1):
        run(torch.randn(count, 3, 32, 32))


def test_a_watch_takes_any_types_and_layouts() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Linear(4, 1).double())
    with torch.inference_mode():
        network.append(nn.Linear(1, 1))
    watch = Watch([network])
    assert not watch.changed()
    network[1].weight.data[0, 0] += 1
    assert watch.changed()
    watch = Watch([network])
    network[0].weight.data[0] += 1
    assert watch.changed()
    assert not Watch([network]).changed(single=True)
    assert not Watch([nn.ReLU()]).changed()


# ---- compilations that fail


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException, int], None]]:
    """Lets the so-and-so-many-th compilation fail, and none after it."""
    made, fails_at = 0, 0

    def fail(error: BaseException, at: int) -> None:
        nonlocal fails_at
        fails_at, compile_program = at, Program.compile

        def compile_or_fail(self: Program, copies: int) -> None:
            nonlocal made
            made += 1
            if made == at:
                raise error
            compile_program(self, copies)

        monkeypatch.setattr(Program, "compile", compile_or_fail)

    yield fail
    assert made >= fails_at > 0


def with_two_workers(make_resnet: Make) -> tuple[DroppableResNet, Executor]:
    """A network with a policy network; each program is compiled at its first use."""
    network, (_, policy_network) = make_resnet("R8_C10"), blockdrop.build("R8_C10")
    run = blockdrop.compile(network, policy_network.eval(), compile_after=1)
    run.threads = run._workers.count = 2
    return network, run


@needs_openvino
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("count", [1, 16])
def test_an_interrupted_compilation_leaves_an_executor_that_goes_on(
    count: int, at: int, failing: Callable[[BaseException, int], None], make_resnet: Make
) -> None:
    network, run = with_two_workers(make_resnet)
    images = torch.randn(count, 3, 32, 32)
    failing(KeyboardInterrupt(), at)
    for _ in range(3):
        try:
            logits, policy = run(images)
        except KeyboardInterrupt:
            continue
        with torch.no_grad():
            torch.testing.assert_close(logits, network(images, policy), atol=1e-3, rtol=1e-3)
    assert run._programs is not None
    assert all(program.copies == program.compiled for program in run._programs.cache.programs.values())


@needs_openvino
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("count", [1, 16])
def test_where_openvino_cannot_compile_torch_goes_on_with_one_warning(
    count: int, at: int, failing: Callable[[BaseException, int], None], make_resnet: Make
) -> None:
    network, run = with_two_workers(make_resnet)
    images = torch.randn(count, 3, 32, 32)
    failing(RuntimeError("Exception from src/inference:\nno such primitive\n"), at)

    def run_and_compare() -> None:
        for batch in (images, images, torch.randn(16, 3, 32, 32)):  # one image needs two programs
            logits, policy = run(batch)
            with torch.no_grad():
                torch.testing.assert_close(logits, network(batch, policy), atol=1e-3, rtol=1e-3)

    with pytest.warns(RuntimeWarning, match=r"so torch runs the network: Exception from \S+: no such") as seen:
        run_and_compare()
    assert len(seen) == 1
    assert run.engine.startswith("torch (OpenVINO can't compile")


@needs_openvino
def test_an_engine_that_was_asked_for_by_name_is_not_replaced(
    failing: Callable[[BaseException, int], None], make_resnet: Make
) -> None:
    network, images = make_resnet("R8_C10"), torch.randn(2, 3, 32, 32)
    run = blockdrop.compile(network, engine="openvino", compile_after=1)
    failing(RuntimeError("no such primitive"), 1)
    with pytest.raises(
        BlockdropError, match=r"openvino: can't compile a program \(no such primitive\); choose torch"
    ):
        run(images)
    assert_same(run, network, images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_networks_in_other_numbers_run_in_those_of_the_executor(
    dtype: torch.dtype, engine: Any, make_resnet: Make
) -> None:
    network, images = make_resnet("R8_C10"), torch.randn(6, 3, 32, 32)
    _, policy_network = blockdrop.build("R8_C10")
    rounded = copy.deepcopy(network).to(dtype)
    run = blockdrop.compile(rounded, policy_network.to(dtype).eval(), engine=engine)
    logits, policy = run(images)
    assert logits.dtype == torch.float32
    assert next(rounded.parameters()).dtype == dtype
    with torch.no_grad():
        expected = rounded.float()(images, policy)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_workers_end_before_an_error_comes_out() -> None:
    done: list[int] = []

    def work(task: int) -> None:
        if task == 0:
            raise KeyboardInterrupt
        torch.randn(200, 200) @ torch.randn(200, 200)
        done.append(task)

    workers = Workers(2)
    with pytest.raises(KeyboardInterrupt):
        workers.run(work, range(100))
    count = len(done)
    assert count < 99
    workers.run(done.append, [7, 8])
    assert sorted(done[count:]) == [7, 8]


# ---- other processes


def answering() -> Executor:
    """Answers about half of any images."""
    torch.manual_seed(0)
    network, policy_network = blockdrop.build("R8_C10")
    for one in (network, policy_network):
        randomise_statistics(one)
    policy_network.add_answer(10)
    assert policy_network.answer is not None
    nn.init.normal_(policy_network.answer.weight)
    with torch.no_grad():
        answer = policy_network.eval().glance(torch.randn(99, 3, 32, 32)).answer
    assert answer is not None
    half = confidence(answer).median().item()
    return blockdrop.compile(network, policy_network, threshold=0.4, answer_threshold=half, compile_after=7)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
def test_a_copy_runs_as_the_first_one_does(how: Callable[[Executor], Executor]) -> None:
    run, images = answering(), torch.randn(9, 3, 32, 32)
    expected, found = run.run(images), how(run).run(images)
    assert 0 < expected.answered.sum() < 9
    for one, other in zip(expected, found, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)
    assert repr(how(run)) == repr(run)


def _send(run: Executor, images: Tensor, pipe: Any) -> None:
    pipe.send(run(images)[0].tolist())


def test_it_can_be_sent_to_a_spawned_process() -> None:
    run, images = answering(), torch.randn(2, 3, 32, 32)
    expected, context = run(images)[0], multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(run, images, there))
    process.start()
    assert here.poll(120)
    torch.testing.assert_close(torch.tensor(here.recv()), expected, atol=1e-4, rtol=1e-4)
    process.join()


def test_in_a_forked_process_it_says_that_it_cannot_run() -> None:
    run, images = answering(), torch.randn(2, 3, 32, 32)
    run(images)
    child = os.fork()
    if child == 0:
        try:
            run(images)
        except BlockdropError as error:
            os._exit(0 if "made in another process" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_says_what_it_is() -> None:
    run = answering()
    run.answer_threshold = 0.75
    found = re.fullmatch(r"Executor\((.*), float32 by (openvino|torch) on cpu, \d+ threads\)", repr(run))
    assert found
    assert found[1] == "R8_C10, 3 blocks, policy network at threshold 0.4, answer threshold 0.75"
    assert repr(blockdrop.compile(run.resnet, engine="torch")).startswith(
        "Executor(R8_C10, 3 blocks, float32 by torch"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_executor_that_nobody_holds_is_gone_at_once(make_resnet: Make, engine: Any) -> None:
    run = blockdrop.compile(make_resnet("R8_C10"), engine=engine)
    run(torch.randn(2, 3, 32, 32))
    gc.disable()
    try:
        gone = weakref.ref(run)
        del run
        assert gone() is None
    finally:
        gc.enable()


@needs_openvino
def test_a_stream_that_an_interrupted_call_has_lost_is_made_anew(make_resnet: Make) -> None:
    network = make_resnet("R8_C10").eval()
    run = blockdrop.compile(network, engine="openvino")
    run.warm(torch.ones(1, 3, dtype=torch.bool), 32, batch_size=1)
    assert run._programs is not None
    bank = run._programs.banks.there(BankKey((32, 32, 3)))
    assert bank is not None
    bank._idle.clear()
    for _ in range(2):
        assert_same(run, network, torch.randn(1, 3, 32, 32))
    assert len(bank._idle) == 1
