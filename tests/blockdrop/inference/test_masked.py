"""Batches of policies that hardly ever come again."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

import blockdrop
from blockdrop.inference import openvino_engine
from blockdrop.inference.choice import Choice
from blockdrop.inference.copies import write
from blockdrop.inference.executor import Executor
from blockdrop.inference.openvino_engine import OpenVINOEngine
from blockdrop.models.backbone import Network
from blockdrop.models.resnet import DroppableResNet
from tests.blockdrop.inference.test_bank import bottlenecks
from tests.conftest import randomise_statistics

Make = Callable[..., DroppableResNet]
pytestmark = pytest.mark.skipif(not openvino_engine.is_installed(), reason="openvino is not installed")


def basic_blocks() -> Network:
    """Its shortcuts may be negative from the third block on."""
    model = ResNet(BasicBlock, [2, 2, 1, 1], num_classes=5)
    randomise_statistics(model)
    return blockdrop.from_torchvision(model.eval())


BROUGHT = {"bottlenecks": bottlenecks, "basic blocks": basic_blocks}


@pytest.mark.parametrize("name", ["R14_C10", "shiftresnet14_C10", *BROUGHT])
@pytest.mark.parametrize("rows", [4, 3])
@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 3, 6)])
def test_programs_of_all_blocks_give_each_row_the_logits_of_its_own_policy(
    name: str, rows: int, cuts: tuple[int, ...], make_resnet: Make
) -> None:
    network = BROUGHT[name]() if name in BROUGHT else make_resnet(name).eval()
    engine = OpenVINOEngine(network.folded(), None, torch.float32, threads=1)
    programs, shape = [], (32, 32, 3)
    for blocks in itertools.pairwise(cuts):
        programs.append(engine.masking_program(blocks, shape, batch=4))
        programs[-1].compile(1)
        shape = engine.map_shape(blocks, shape)
    for _ in range(2):
        images, policy = torch.randn(rows, 3, 32, 32), torch.rand(rows, network.num_blocks) < 0.5
        policy[0], policy[1] = False, True
        with torch.no_grad():
            expected = network(images, policy)
        maps = images
        for blocks, program in zip(itertools.pairwise(cuts), programs, strict=True):
            out = torch.empty_like(program.outputs[:rows])
            program.run(functools.partial(write, maps), out, policy[:, slice(*blocks)].numpy())
            maps = out
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_only_blocks_whose_shortcuts_may_be_negative_select(make_resnet: Make) -> None:
    def never_negative(network: Network) -> list[bool]:
        return OpenVINOEngine(network.folded(), None, torch.float32, threads=1)._never_negative

    assert never_negative(make_resnet("R14_C10")) == [True] * 6
    assert never_negative(make_resnet("shiftresnet14_C10")) == [False] * 6
    assert never_negative(basic_blocks()) == [True] * 2 + [False] * 4


def all_policies(blocks: int) -> Tensor:
    """Each once, in random order, bool (2 ** K, K)."""
    numbers = torch.randperm(2**blocks).unsqueeze(1)
    return (numbers >> torch.arange(blocks)) % 2 == 1


def check(run: Executor, policies: Tensor, tolerance: float = 1e-3) -> None:
    for policy in policies:
        images = torch.randn(policy.shape[-2], 3, 32, 32)
        with torch.no_grad():
            expected = run.resnet(images, policy)
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(run(images, policy=policy)[0], expected, rtol=tolerance, atol=atol)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_several_policies_of_an_image_and_other_number_formats_are_right_too(
    dtype: torch.dtype, tolerance: float, make_resnet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockdrop.inference.pieces.Choice", lambda retry_after: Choice(retry_after, only=1))
    run = blockdrop.compile(make_resnet("R20_C10"), dtype=dtype, engine="openvino", compile_after=40)
    check(run, all_policies(9)[:480].view(6, 2, 40, 9), tolerance)
    assert run.account.images["by all blocks, masked"] > 100


def test_rows_of_ever_new_policies_try_both_ways_once_a_program_of_all_blocks_is_worth_it(
    make_resnet: Make,
) -> None:
    run = blockdrop.compile(make_resnet("R20_C10"), engine="openvino")
    check(run, all_policies(9)[:480].view(12, 40, 9))
    ways = run.account.images
    assert sum(ways.values()) == pytest.approx(480)
    assert ways["by the torch engine"] >= 128
    assert ways["by all blocks, masked"] > 0
    assert any(all(len(seconds) == 3 for seconds in one._seconds) for one in run._cutter._choices.values())


def test_blocks_that_only_rows_of_other_policies_keep_count_as_run(
    make_resnet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockdrop.inference.pieces.Choice", lambda retry_after: Choice(retry_after, only=1))
    run = blockdrop.compile(make_resnet("R20_C10"), engine="openvino", compile_after=40)
    policies = all_policies(9)[:480].view(12, 40, 9)
    check(run, policies[:4])
    run.account.clear()
    before = run.block_executions
    check(run, policies[4:])
    masked = run.account.images["by all blocks, masked"]
    assert masked > 100
    executions, asked = run.block_executions - before, int(policies[4:].sum())
    assert asked < executions <= asked + round(masked) * 9


def test_the_next_process_has_them_too(make_resnet: Make, tmp_path: Path) -> None:
    run = blockdrop.compile(make_resnet("R20_C10"), engine="openvino")
    check(run, all_policies(9)[:160].view(4, 40, 9))
    run.save_programs(tmp_path / "programs.json")
    again = blockdrop.compile(run.resnet, engine="openvino", programs=tmp_path / "programs.json")
    assert run._programs is not None
    assert again._programs is not None
    assert any(not key.kept for key in run._programs.cache.programs)
    assert set(again._programs.cache.programs) == set(run._programs.cache.programs)
