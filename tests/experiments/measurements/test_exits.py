"""Early exits beside answers: the maps and costs are those of the network, and the pair is the best one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blockdrop import build, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.dynamic import DynamicNetwork
from blockdrop.flops import count_module_flops
from blockdrop.training.opening import open_networks
from experiments.measurements import exits
from experiments.measurements.exits import ExitsConfig, Seen, costs_of_exit, rows_of_exit, rows_without_exit, see
from tests.conftest import randomise_statistics


@pytest.fixture
def config(tmp_path: Path) -> ExitsConfig:
    """Of a network whose blocks, answers and policies differ from image to image."""
    torch.manual_seed(0)
    resnet, policy_network = build("R8_Digits", policy_net="pooled4", shortcut="projection")
    for network in (resnet, policy_network):
        randomise_statistics(network)
    policy_network.add_answer(10)
    assert policy_network.answer is not None
    for head in (policy_network.logit, policy_network.answer):
        nn.init.normal_(head.weight, std=1.0)
    save_checkpoint(
        tmp_path / "net.t7", model="R8_Digits", resnet=resnet, normalisation=NORMALISATIONS["half"],
        policy_network=policy_network, policy_net="pooled4",
    )  # fmt: skip
    return ExitsConfig(load=(str(tmp_path / "net.t7"),), images=200, json=str(tmp_path / "exits.json"))


def seen_by(config: ExitsConfig, keep: float = 0.5) -> tuple[DynamicNetwork, Seen]:
    opened = open_networks(config, config.load)
    return opened.dynamic, see(opened.dynamic, opened.data.test, config.compute(), keep, 200)


def test_what_is_seen_is_what_the_network_does(config: ExitsConfig) -> None:
    dynamic, seen = seen_by(config)
    images, labels = next(iter(open_networks(config, config.load).data.test.batches(50, dynamic.normalisation)))
    result = dynamic.run(images)  # its answer threshold is one that nothing reaches
    torch.testing.assert_close(seen.logits[:50], result.logits, atol=1e-3, rtol=1e-3)
    assert seen.policy[:50].equal(result.policy)
    assert seen.labels[:50].equal(labels)
    assert [maps.shape for maps in seen.pooled] == [(450, 16), (450, 32)]


def test_an_exit_saves_the_later_stages_and_costs_its_head(config: ExitsConfig) -> None:
    dynamic, seen = seen_by(config, keep=0.0)
    flops = dynamic.flop_table()
    counts = count_module_flops(dynamic.network, torch.zeros(1, 3, 32, 32))
    names = {module: name for name, module in dynamic.network.named_modules()}
    for stage, channels in ((0, 16), (1, 32)):
        gone = ("fc", *(f"{part}.{later}" for part in ("blocks", "ds") for later in range(stage + 1, 3)))
        later = sum(count for module, count in counts.items() if names[module].startswith(gone))
        leaving, going_on = costs_of_exit(dynamic, flops, stage, seen)
        head = 2 * channels * 10
        assert set(going_on.tolist()) == {flops.full + flops.policy_network + head}
        assert set(leaving.tolist()) == {flops.full + flops.policy_network + head - later}


def test_the_pair_is_the_best_of_all_pairs_and_an_exit_that_knows_nothing_is_not_used() -> None:
    labels = torch.arange(40) % 2
    logits = nn.functional.one_hot(labels, 2).float()
    answer = torch.tensor([0.5, 0.5]).log().expand(40, 2)
    seen = Seen([torch.zeros(40, 4)], logits, answer, torch.ones(40, 3, dtype=torch.bool), labels)
    flops = exits.FlopTable(10, (30, 30, 30), 20)
    costs = (torch.full((40,), 50), torch.full((40,), 120))
    knows, guesses = nn.functional.one_hot(labels, 2) * 0.8 + 0.1, torch.tensor([[0.6, 0.4]]).expand(40, 2)
    (alone,) = rows_without_exit(seen, flops, [1.3])
    assert (alone["accuracy"], alone["flops"], alone["left"]) == (1, 1.2, 0)
    (row,) = rows_of_exit(0, knows, costs, seen, flops, [1.3])
    assert (row["accuracy"], row["flops"], row["left"]) == (1, 0.5, 1)
    (row,) = rows_of_exit(0, guesses, costs, seen, flops, [1.3])
    assert (row["accuracy"], row["flops"], row["left"]) == (1, 1.2, 0)


def test_a_table_and_a_file_come_out(config: ExitsConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.budgets = (1.2, 0.9)
    numbers = exits.main(config)
    assert json.loads(Path(config.json or "").read_text()) == json.loads(json.dumps(numbers))
    found = [(row["exit"], row["budget"]) for row in numbers["rows"]]
    names = ("none", "after stage 1", "after stage 2")
    assert found == [(name, budget) for name in names for budget in (1.2, 0.9)]
    assert capsys.readouterr().out.count("| after stage") == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--load: name a checkpoint or run directory"),
        (("--load", "x.t7", "--all_blocks", "--threshold", 0.4), "--threshold: means nothing with --all_blocks"),
        (("--load", "{net}", "--budgets", 3), "--budgets"),
    ],
)
def test_bad_flags_are_named(flags: tuple, message: str, config: ExitsConfig, command: Any) -> None:
    code, _, error = command(exits, *(config.load[0] if flag == "{net}" else flag for flag in flags))
    assert code == 2
    assert message in error
