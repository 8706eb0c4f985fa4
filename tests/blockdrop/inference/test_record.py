"""Programs that go from one process to the next."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import blockdrop
from blockdrop.errors import BlockdropError
from blockdrop.inference import openvino_engine
from blockdrop.inference.executor import Executor
from blockdrop.models.resnet import DroppableResNet
from tests.blockdrop.inference.test_executor import make_policy_network

pytestmark = pytest.mark.skipif(not openvino_engine.is_installed(), reason="openvino is not installed")
Make = Callable[..., DroppableResNet]


def compiled(network: DroppableResNet, **options: Any) -> Executor:
    return blockdrop.compile(network, make_policy_network(network.num_blocks), engine="openvino", **options)


def facts(run: Executor) -> tuple[Any, ...]:
    """Which programs there are."""
    programs = run._programs
    assert programs is not None
    for growing in programs.banks.by_key.values():
        growing.wait()
    return (
        {key: program.copies for key, program in programs.cache.programs.items()},
        {shape: growing.policies for shape, growing in programs.banks.by_key.items()},
        set(programs.of_policy_network),
        programs._sizes,
    )


def warmed(network: DroppableResNet, monkeypatch: pytest.MonkeyPatch) -> tuple[Executor, Tensor]:
    monkeypatch.setattr("blockdrop.inference.programs.worthwhile", lambda _seconds, _most: (1, 4, 16))
    run, policy = compiled(network), torch.rand(99, network.num_blocks) < 0.5
    policy[50:] = policy[0]
    run.warm(policy, 32, batch_size=99)
    run.warm(policy[:9], 32, batch_size=1)
    return run, policy


def test_the_next_process_has_the_same_programs_and_right_logits(
    make_resnet: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = make_resnet("R8_C10"), torch.randn(99, 3, 32, 32)
    run, policy = warmed(network, monkeypatch)
    assert all(facts(run))
    file = tmp_path / "programs.json"
    run.save_programs(file)
    other = make_resnet("R8_C10")  # other weights
    again = compiled(other, programs=file)
    assert facts(again) == facts(run)
    with torch.no_grad():
        expected = other(images, policy)
    torch.testing.assert_close(again(images, policy=policy)[0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again(images[:1], policy=policy[:1])[0], expected[:1], rtol=1e-3, atol=1e-3)
    assert again.account.images["by a program of their policy"] == pytest.approx(100)
    again.save_programs(file)
    assert facts(compiled(network, programs=file)) == facts(run)


def test_how_many_rows_pay_is_forgotten_on_another_machine(
    make_resnet: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = make_resnet("R8_C10"), tmp_path / "programs.json"
    warmed(network, monkeypatch)[0].save_programs(file)
    monkeypatch.setattr("blockdrop.inference.programs.machine_of", lambda *_: "another machine")
    run = compiled(network, programs=file)
    programs, banks, of_policy_network, sizes = facts(run)
    assert programs
    assert banks
    assert of_policy_network
    assert not sizes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record | {"blocks": 4}, "of a network of 4 blocks, this one has 3"),
        (lambda record: record | {"format": "other"}, "no record of programs of this version"),
        (lambda record: {"format": record["format"]}, "damaged in its blocks, which is missing"),
        (lambda record: record | {"banks": [{"image_size": [32, 32], "policies": ["12"]}]}, "other than 3 digits"),
        (lambda record: record | {"banks": [{"image_size": [32], "policies": []}]}, "height and width"),
        (lambda _: [], "no record of programs"),
    ],
)
def test_a_file_that_does_not_fit_is_passed_over_with_a_warning(
    change: Callable[[Any], Any], says: str, make_resnet: Make, tmp_path: Path
) -> None:
    network, file = make_resnet("R8_C10"), tmp_path / "programs.json"
    compiled(network).save_programs(file)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.warns(RuntimeWarning, match=rf"programs .*programs\.json: .*{says}.*; programs are found anew"):
        run = compiled(network, programs=file)
    run(torch.randn(2, 3, 32, 32))


def test_no_damage_ends_in_anything_but_a_warning(
    make_resnet: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = make_resnet("R8_C10"), tmp_path / "programs.json"
    warmed(network, monkeypatch)[0].save_programs(file)
    text, chance, images = file.read_text(), random.Random(0), torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
    for _ in range(10):
        at = chance.randrange(len(text))
        file.write_text(text[:at] + chance.choice('0123456789"[]{},x') + text[at + 1 :])
        run = compiled(network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            run.load_programs(file)
        every = torch.ones(5, network.num_blocks, dtype=torch.bool)
        torch.testing.assert_close(run(images, policy=every)[0], expected, rtol=1e-3, atol=1e-3)
        assert run.engine == "openvino"


def test_a_file_of_somebody_elses_is_not_replaced(make_resnet: Make, tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text("{}")
    with pytest.raises(BlockdropError, match=r"programs .*notes\.json: exists, and is no such file"):
        compiled(make_resnet("R8_C10")).save_programs(file)
    assert file.read_text() == "{}"


def test_a_file_that_is_not_there_yet_is_passed_over(make_resnet: Make, tmp_path: Path) -> None:
    run = compiled(make_resnet("R8_C10"), programs=tmp_path / "none.json")
    assert run(torch.randn(1, 3, 32, 32))[0].shape == (1, 10)
