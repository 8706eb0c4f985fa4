"""The cascade: what a small network, a big one and a threshold can do, as one dynamic network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import blockdrop
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError
from experiments import cascade
from experiments.cascade import make_cascade
from tests.conftest import dynamic_of, randomise_statistics

Command = Callable[..., tuple[int, str, str]]


def network(model: str) -> DynamicNetwork:
    """A static network that gives images different logits."""
    net = blockdrop.build_static(model)
    randomise_statistics(net)
    return dynamic_of(net).eval()


@torch.no_grad()
def test_it_answers_as_the_small_network_does_and_goes_on_as_the_big_one() -> None:
    small, big = network("R8_Digits"), network("R14_Digits")
    both = make_cascade(small, big)
    assert both.policy_network is not None
    images = torch.randn(8, 3, 32, 32)
    expected = small.network(images)
    answer = both.run(images).answer
    assert answer is not None
    torch.testing.assert_close(answer, expected.log_softmax(1), atol=1e-5, rtol=1e-5)
    both.policy_network.answer_threshold = answer.exp().amax(1).median().item() + 1e-6
    logits, policy, answered, _, _ = both.run(images)
    assert answered.sum() in (3, 4, 5)
    assert policy[~answered].all()
    torch.testing.assert_close(logits[answered], answer[answered])
    torch.testing.assert_close(logits[~answered], big.network(images)[~answered])
    table, own = both.flop_table(), small.flop_table()
    heads = 2 * 64 * (both.num_blocks + 1)  # of keep probabilities and values, which it could do without
    assert table.policy_network == own.full + heads
    assert both.flops(policy, answered)[answered].unique().tolist() == [table.policy_network]
    assert both.flops(policy, answered)[~answered].unique().tolist() == [
        table.policy_network + big.flop_table().full
    ]


@torch.no_grad()
def test_a_big_network_under_one_learned_policy_keeps_it() -> None:
    resnet, policy_network = blockdrop.build("R14_Digits", policy_net="constant")
    policy_network.logit.bias.copy_(torch.tensor([1.0, -1.0, 2.0, 0.3, -0.2, 0.0]))
    policy_network.threshold = 0.55
    both = make_cascade(network("R8_Digits"), dynamic_of(resnet, policy_network, threshold=0.55).eval())
    policy = both.run(torch.randn(2, 3, 32, 32)).policy
    assert policy.tolist() == [[True, False, True, True, False, False]] * 2


def test_networks_that_make_no_cascade_are_named() -> None:
    big = network("R14_Digits")
    with pytest.raises(
        BlockdropError, match=r"--small R14_Digits: a ResNet-8 with pad_avgpool shortcuts is needed"
    ):
        make_cascade(big, big)
    resnet, policy_network = blockdrop.build("R14_Digits", policy_net="pooled4")
    with pytest.raises(
        BlockdropError, match=r"--big R14_Digits: its policy network pooled4 gives images different"
    ):
        make_cascade(network("R8_Digits"), dynamic_of(resnet, policy_network))
    with pytest.raises(BlockdropError, match=r"--small R8_C100: made for other"):
        make_cascade(network("R8_C100"), big)


def test_a_checkpoint_for_each_budget_is_written_and_read_back(tmp_path: Path, command: Command) -> None:
    network("R8_Digits").save(tmp_path / "small.t7")
    network("R14_Digits").save(tmp_path / "big.t7")
    flags = ("--small", tmp_path / "small.t7", "--big", tmp_path / "big.t7", "--cv_dir", tmp_path / "c")
    code, out, error = command(cascade, *flags, "--budgets", 0.9, 0.7)
    assert code == 0, error
    assert "images that chose" in out
    for percent in (90, 70):
        point = blockdrop.load(tmp_path / "c" / f"cascade-{percent}.t7").operating_point
        assert point is not None
        assert point["budget"] == percent / 100
        assert 0 < point["flops_fraction"] <= percent / 100
    code, _, error = command(cascade, *flags, "--budgets", 0.9)
    assert (code, "exists; pass --overwrite" in error) == (2, True)
    code, _, error = command(cascade, *flags, "--budgets", 45)
    assert (code, "--budgets 45.0: must be above 0 and at most 1, a fraction" in error) == (2, True)
