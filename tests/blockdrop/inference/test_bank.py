from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

import blockdrop
from agents.answers import confidence
from blockdrop.errors import BlockdropError
from blockdrop.inference import openvino_engine
from blockdrop.inference.bank import BankKey, Banks, GrowingBank
from blockdrop.inference.cache import AGEING_ROWS
from blockdrop.inference.choice import Choice
from blockdrop.inference.executor import Executor
from blockdrop.models.backbone import Network
from blockdrop.models.resnet import DroppableResNet
from tests.conftest import randomise_statistics

Make = Callable[..., DroppableResNet]
needs_openvino = pytest.mark.skipif(not openvino_engine.is_installed(), reason="openvino is not installed")


# ---- when it grows, with banks that are sets of policies


class Maker:
    """Makes a bank when it is told to."""

    def __init__(self) -> None:
        self.made: list[list[bytes]] = []
        self.ready = threading.Event()
        self.ready.set()
        self.error: Exception | None = None

    def __call__(self, policies: Sequence[bytes]) -> set[bytes]:
        self.ready.wait(60)
        self.made.append(list(policies))
        if self.error is not None:
            raise self.error
        return set(policies)


def growing_bank(make: Maker, grow_after: int, most: int) -> GrowingBank[set[bytes]]:
    return GrowingBank(make, grow_after, choose=lambda policies: policies[:most])


def ask(growing: GrowingBank[set[bytes]], policy: bytes, times: int = 1) -> set[bytes] | None:
    """What serves the last of so many rows."""
    for _ in range(times):
        bank = growing.find(policy)
    return bank


def test_a_bank_is_made_once_enough_rows_went_without_and_nobody_waits_for_it() -> None:
    make = Maker()
    make.ready.clear()
    growing = growing_bank(make, grow_after=10, most=4)
    assert ask(growing, b"a", 6) is None
    assert ask(growing, b"b", 3) is None
    assert not growing._thread._threads, "nothing has begun"
    assert ask(growing, b"b", 50) is None, "it is being made"
    make.ready.set()
    growing.wait()
    assert ask(growing, b"a") == {b"a", b"b"}
    assert make.made == [[b"a", b"b"]]


def test_the_old_bank_serves_until_the_new_one_is_ready() -> None:
    make = Maker()
    growing = growing_bank(make, grow_after=2, most=4)
    growing.warm(Counter({b"a": 5}))
    make.ready.clear()
    assert ask(growing, b"b", 9) == {b"a"}
    make.ready.set()
    growing.wait()
    assert ask(growing, b"b") == {b"a", b"b"}


def test_the_most_used_policies_stay_and_the_long_forgotten_make_room() -> None:
    growing = growing_bank(Maker(), grow_after=1, most=2)
    growing.warm(Counter({b"a": 5, b"b": 3, b"c": 4}))
    assert growing.bank == {b"a", b"c"}
    ask(growing, b"d", 6)
    growing.wait()
    assert growing.bank == {b"a", b"c"}, "6 is no more than twice 4"
    ask(growing, b"d", 3)
    growing.wait()
    assert growing.bank == {b"a", b"d"}
    for _ in range(12):
        growing.warm(Counter({b"e": AGEING_ROWS, b"f": AGEING_ROWS}))
    assert growing.bank == {b"e", b"f"}


def test_a_bank_that_would_hold_the_same_is_not_made_again() -> None:
    make = Maker()
    growing = growing_bank(make, grow_after=3, most=1)
    growing.warm(Counter({b"a": 100}))
    ask(growing, b"b", 50)
    growing.wait()
    assert make.made == [[b"a"]]


def test_what_goes_wrong_in_the_background_comes_out_once() -> None:
    make = Maker()
    make.error = RuntimeError("no such primitive")
    growing = growing_bank(make, grow_after=1, most=4)
    assert growing.find(b"a") is None
    with pytest.raises(RuntimeError, match="no such primitive"):
        growing.wait()
    make.error = None
    ask(growing, b"a", 2)
    growing.wait()
    assert growing.bank == {b"a"}


class Engine:
    """Makes banks of 10 bytes, and 10 more for each policy, when it is told to."""

    def __init__(self) -> None:
        self.bank_of = Maker()

    def bank(self, policies: Sequence[bytes], key: BankKey) -> set[bytes]:
        return self.bank_of(policies)

    def bank_bytes(self, policies: Sequence[bytes], key: BankKey) -> int:
        return 10 + 10 * len(policies)


def test_old_and_new_banks_of_all_keys_share_the_memory() -> None:
    engine = Engine()
    banks: Banks[set[bytes]] = Banks(engine, 1, 100, most=64)
    held = []
    keys = BankKey((1, 1, 3)), BankKey((1, 1, 3), apart=True)
    for turn, key in enumerate((*keys, *keys)):
        for round_ in range(4):
            engine.bank_of.ready.clear()
            for policy in list(range(20)) * 4**turn:  # wanted more than what is held
                banks.find(b"%d %d %d" % (turn, round_, policy), key)
                held.append(banks.num_bytes)
            engine.bank_of.ready.set()
            for growing in banks.by_key.values():
                growing.wait()
    assert max(held) <= 100
    assert all(growing.bank for growing in banks.by_key.values()), "none is left without programs"


# ---- compiled ones


def executor(network: Network, **options: object) -> Executor:
    return blockdrop.compile(network, engine="openvino", **options)  # type: ignore[arg-type]


def only_bank(run: Executor) -> GrowingBank[Any]:
    assert run._programs is not None
    (growing,) = run._programs.banks.by_key.values()
    return growing


def one_by_one(run: Executor, images: Tensor, policy: Tensor) -> Tensor:
    return torch.cat([run(image[None], policy=row[None])[0] for image, row in zip(images, policy, strict=True)])


def bottlenecks() -> Network:
    """Its shortcuts may be negative, so that nothing may rectify what passes a dropped block."""
    model = ResNet(Bottleneck, [2, 1, 2, 1], num_classes=5, width_per_group=8)
    randomise_statistics(model)
    return blockdrop.from_torchvision(model.eval())


@needs_openvino
@pytest.mark.parametrize("name", ["R14_C10", "shiftresnet14_C10", "bottlenecks"])
def test_a_bank_gives_the_logits_of_masked_execution_with_and_without_a_program_of_the_policy(
    name: str, make_resnet: Make
) -> None:
    network = bottlenecks() if name == "bottlenecks" else make_resnet(name).eval()
    images, policy = torch.randn(9, 3, 32, 32), torch.rand(9, network.num_blocks) < 0.5
    policy[0], policy[1] = False, True
    with torch.no_grad():
        expected = network(images, policy)
    for known in (policy[:1], policy[:4], policy):
        run = executor(network)
        run.warm(known, 32, batch_size=1)
        torch.testing.assert_close(
            one_by_one(run, images, policy), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )
        own = (policy.unsqueeze(1) == known).all(-1).any(-1).sum()
        assert run.account.images["by a program of their policy"] == own
        assert run.account.images["by all blocks, masked"] == 9 - own


@needs_openvino
def test_single_images_from_several_threads_are_right_while_the_bank_grows(make_resnet: Make) -> None:
    network = make_resnet("R14_C10")
    images, policy = torch.randn(40, 3, 32, 32), torch.rand(40, network.num_blocks) < 0.5
    with torch.no_grad():
        expected = network(images, policy)
    run = executor(network, compile_after=5)
    found: dict[int, Tensor] = {}

    def work(own: int) -> None:
        for _ in range(3):
            found[own] = one_by_one(run, images[own::3], policy[own::3])

    threads = [threading.Thread(target=work, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in range(3):
        torch.testing.assert_close(found[own], expected[own::3], rtol=1e-3, atol=1e-3)
    growing = only_bank(run)
    growing.wait()
    assert growing.bank is not None


@needs_openvino
@pytest.mark.parametrize(("engine", "left"), [("auto", "torch (OpenVINO can't compile"), ("openvino", "openvino")])
def test_a_bank_that_cannot_be_compiled_leaves_torch_or_an_error(
    engine: str, left: str, make_resnet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(openvino_engine.OpenVINOEngine, "bank", fail)
    network, images = make_resnet("R8_C10"), torch.randn(1, 3, 32, 32)
    run = blockdrop.compile(network, engine=engine, compile_after=1)  # type: ignore[arg-type]
    run(images)
    growing = only_bank(run)
    assert growing._made is not None
    growing._made.exception()  # waits
    if engine == "auto":
        with pytest.warns(RuntimeWarning, match="no such primitive"):
            run(images)
    else:
        with pytest.raises(BlockdropError, match=r"no such primitive\); choose torch"):
            run(images)
    with torch.no_grad():
        torch.testing.assert_close(run(images)[0], network(images), atol=1e-3, rtol=1e-3)
    assert run.engine.startswith(left)


@needs_openvino
def test_warming_goes_on_where_openvino_fails(make_resnet: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(openvino_engine.Program, "compile", fail)
    network, (_, policy_network) = make_resnet("R8_C10"), blockdrop.build("R8_C10")
    run = blockdrop.compile(network, policy_network.eval())
    with pytest.warns(RuntimeWarning, match="no such primitive"):
        run.warm(torch.rand(40, 3) < 0.5, 32, batch_size=40)
    assert run.engine.startswith("torch (OpenVINO can't compile")


@needs_openvino
def test_a_bank_takes_its_memory_from_the_programs_of_batches(make_resnet: Make) -> None:
    network = make_resnet("R8_C10")
    run = executor(network, cache_bytes=10_000_000)
    run.warm(torch.rand(99, 3) < 0.5, 32, batch_size=99)
    assert run._programs is not None
    before = run._programs.cache.num_bytes
    run.warm(torch.tensor([[True, False, True]]), 32, batch_size=1)
    growing = only_bank(run)
    assert growing.bank is not None
    assert before + run._programs.banks.num_bytes > 10_000_000 >= run._programs.num_bytes


@needs_openvino
def test_banks_of_several_image_sizes_stay_within_the_bound_with_those_that_are_being_made() -> None:
    network = bottlenecks()
    run = executor(network, cache_bytes=40_000_000, compile_after=1)
    policy = torch.rand(60, network.num_blocks) < 0.5
    for side in (32, 48, 64):
        images = torch.randn(60, 3, side, side)
        one_by_one(run, images, policy)
        assert run._programs is not None
        assert run._programs.num_bytes <= 40_000_000
    for growing in run._programs.banks.by_key.values():
        growing.wait()
    assert len(run._programs.banks.by_key[BankKey((32, 32, 3))].policies) > 1


@needs_openvino
def test_the_torch_engine_packs_weights_only_while_it_is_needed(
    make_resnet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockdrop.inference.executor.TORCH_UNUSED", 5)
    network = make_resnet("R8_C10")
    images, policy = torch.randn(12, 3, 32, 32), torch.tensor([[True, False, True]]).expand(12, 3)
    with torch.no_grad():
        expected = network(images, policy)
    run = executor(network)
    run.warm(policy, 32, batch_size=12)
    assert run._torch_engine is None
    torch.testing.assert_close(run(images, policy=policy)[0], expected, rtol=1e-3, atol=1e-3)
    assert run._torch_engine is None
    torch.testing.assert_close(run(images, policy=~policy)[0], network(images, ~policy), rtol=1e-3, atol=1e-3)
    assert run._torch_engine is not None
    for _ in range(5):
        assert run._torch_engine is not None
        run(images, policy=policy)
    assert run._torch_engine is None


@needs_openvino
@pytest.mark.parametrize("count", [1, 6])
def test_logits_are_float32_whatever_the_default_type(count: int, make_resnet: Make) -> None:
    network, images = make_resnet("R8_C10"), torch.randn(count, 3, 32, 32)
    policy = torch.rand(count, 3) < 0.5
    with torch.no_grad():
        expected = network(images, policy)
    run = executor(network)
    torch.set_default_dtype(torch.float64)
    try:
        run.warm(policy, 32, batch_size=count)
        logits, _ = run(images, policy=policy)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


@needs_openvino
def test_memory_too_small_for_a_bank_leaves_the_general_way(make_resnet: Make) -> None:
    network, images = make_resnet("R8_C10"), torch.randn(1, 3, 32, 32)
    run = executor(network, cache_bytes=100_000, compile_after=1)
    policy = torch.tensor([[True, False, True]])
    run.warm(policy, 32, batch_size=1)
    with torch.no_grad():
        torch.testing.assert_close(run(images, policy=policy)[0], network(images, policy), atol=1e-4, rtol=1e-4)
    assert "100% by the torch engine" in run.explain()


def test_the_account_adds_up(make_resnet: Make) -> None:
    network, (_, policy_network) = make_resnet("R14_C10"), blockdrop.build("R14_C10")
    policy_network.add_answer(10)
    assert policy_network.answer is not None
    nn.init.normal_(policy_network.answer.weight)
    answer = policy_network.eval().glance(torch.randn(99, 3, 32, 32)).answer
    assert answer is not None
    half = confidence(answer).median().item()
    run = blockdrop.compile(network, policy_network, compile_after=8, answer_threshold=half)
    answered = 0
    for count in (1, 33, 1, 12):
        answered += int(run.run(torch.randn(count, 3, 32, 32)).answered.sum())
    run(torch.randn(4, 3, 32, 32), policy=torch.rand(3, 4, network.num_blocks) < 0.5)
    assert 0 < answered < 47
    assert run.account.images["answered"] == answered
    assert sum(run.account.images.values()) == pytest.approx(47 + 12)
    assert run.explain().startswith(f"{run!r}: 59 images: {answered / 59:.0%} answered, ")
    assert min(run.account.seconds.values()) > 0
    run.account.clear()
    assert run.explain() == f"{run!r}: 0 images: none; 0 s: none"


# ---- batches of small groups


def test_the_faster_way_is_found_and_the_slower_one_tried_again() -> None:
    choice, seconds = Choice(retry_after=10), [2.0, 1.0]
    picks = []
    for step in range(70):
        if step == 30:
            seconds = [0.1, 1.0]
        picks.append(choice.pick())
        choice.note(picks[-1], seconds[picks[-1]])
    assert picks[:8] == [0] * 4 + [1] * 4
    assert picks[8:22] == [1] * 10 + [0] * 4
    assert picks[22:32] == [1] * 10
    assert picks[32:46] == [0] * 14, "it has become the faster way"
    assert picks[46:].count(1) == 8


def test_one_slow_call_does_not_turn_the_choice() -> None:
    choice = Choice()
    for step in range(100):
        way = choice.pick()
        choice.note(way, 50.0 if step in (3, 20) else (1.0, 2.0)[way])
        assert way == 0 or step < 8


@needs_openvino
def test_a_batch_of_many_policies_is_right_whichever_way_it_goes(make_resnet: Make) -> None:
    network = make_resnet("R14_C10")
    run = executor(network, compile_after=4)
    ways = []
    for _ in range(8):
        images, policy = torch.randn(6, 3, 32, 32), torch.rand(6, network.num_blocks) < 0.5
        with torch.no_grad():
            expected = network(images, policy)
        torch.testing.assert_close(run(images, policy=policy)[0], expected, rtol=1e-3, atol=1e-3)
        only_bank(run).wait()
        ways.append(sum(run.account.images.values()))
    assert ways == [6 * calls for calls in range(1, 9)]
    assert run.account.images["by all blocks, masked"] + run.account.images["by a program of their policy"] >= 6


@needs_openvino
def test_images_side_by_side_have_the_logits_of_their_own_policies(make_resnet: Make) -> None:
    network = make_resnet("R14_C10")
    run = executor(network)
    policy = torch.rand(24, network.num_blocks) < 0.5
    run.warm(policy[:16], 32, batch_size=16)  # of the others the bank knows nothing
    run._choices[(32, 32, 3), 24] = Choice(only=1)
    before = run.block_executions
    images = torch.randn(24, 3, 32, 32)
    with torch.no_grad():
        expected = network(images, policy)
    torch.testing.assert_close(run(images, policy=policy)[0], expected, rtol=1e-3, atol=1e-3)
    known = {row.tobytes() for row in policy[:16].numpy()}
    own = torch.tensor([row.tobytes() in known for row in policy.numpy()])
    assert run.account.images["by a program of their policy"] == own.sum()
    assert run.account.images["by all blocks, masked"] == (~own).sum()
    blocks = policy.sum(1).where(own, torch.tensor(network.num_blocks)).sum()
    assert run.block_executions - before == blocks


@needs_openvino
def test_the_last_image_of_small_batches_goes_through_their_bank(make_resnet: Make) -> None:
    network = make_resnet("R8_C10")
    run = executor(network)
    policy = torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    run.warm(policy, 32, batch_size=3)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(images, policy[:1])
    torch.testing.assert_close(run(images, policy=policy[:1])[0], expected, rtol=1e-3, atol=1e-3)
    assert run.account.images["by a program of their policy"] == 1


@needs_openvino
def test_small_groups_go_one_by_one_where_their_programs_do_not_fit(make_resnet: Make) -> None:
    network = make_resnet("R14_C10")
    run = executor(network, cache_bytes=40_000_000)
    policy = torch.rand(24, network.num_blocks) < 0.5
    run.warm(policy, 32, batch_size=24)
    images = torch.randn(24, 3, 32, 32)
    with torch.no_grad():
        expected = network(images, policy)
    for _ in range(3):
        torch.testing.assert_close(run(images, policy=policy)[0], expected, rtol=1e-3, atol=1e-3)
    assert run.account.images["by the torch engine"] == 0
    assert run._torch_engine is None


@needs_openvino
def test_the_ways_are_compared_only_once_a_bank_is_there(
    make_resnet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = executor(make_resnet("R8_C10"))
    monkeypatch.setattr(run, "_bank", lambda *_: None)
    policy = torch.tensor([[True, False, False], [False, True, False]])
    run(torch.randn(2, 3, 32, 32), policy=policy)
    (choice,) = run._choices.values()
    assert choice.pick() == 0
    choice.note(0, 1.0)
    assert choice.pick() == 0, "its first time was not yet noted"
