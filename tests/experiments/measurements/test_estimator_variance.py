"""The study of the estimators' variance: what it enumerates, what it draws, and what its table says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.policies import bound_keep_probs
from blockdrop import build, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.models.droppable import block_executions
from experiments.measurements import estimator_variance
from experiments.measurements.estimator_variance import (
    Contender,
    EstimatorVarianceConfig,
    all_draws,
    contenders,
    draw_tables,
    every_policy,
    exact_moments,
    executions,
    gradients,
    sampled_variance,
)
from tests.conftest import randomise_statistics

LOGITS = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
TABLE = torch.tensor([-1.0, 0.9, -1.0, 0.6, 0.9, 0.5, -1.0, 0.0], dtype=torch.float64)
CONTENDERS = contenders((2, 4), 3)


def rewards_of(policies: Tensor) -> Tensor:
    return (policies.unsqueeze(-2) == every_policy(3)).all(-1).double() @ TABLE


def patterns(policies: Tensor) -> Tensor:
    """One number for each image's draw: bool (S, M, K) to (M,)."""
    bits = policies.transpose(0, 1).flatten(1).long()
    return (bits * 2 ** torch.arange(bits.shape[1])).sum(-1)


@pytest.mark.parametrize("contender", [c for c in CONTENDERS if c.samples < 4], ids=str)
def test_enumerated_draws_come_up_as_often_as_they_should(contender: Contender) -> None:
    keep_probs, count = LOGITS.sigmoid(), 40_000
    policies, chances = all_draws(contender, keep_probs)
    drawn = contender.estimator.draw(keep_probs.expand(count, -1), torch.Generator().manual_seed(0))
    size = 2 ** (policies.shape[0] * 3)
    expected = torch.zeros(size, dtype=torch.float64).index_add_(0, patterns(policies), chances)
    frequency = patterns(drawn).bincount(minlength=size).double() / count
    torch.testing.assert_close(frequency, expected, atol=0.01, rtol=0)
    assert (frequency[expected == 0] == 0).all()


@pytest.mark.parametrize("contender", CONTENDERS, ids=str)
def test_all_have_the_mean_of_the_exact_gradient_before_bounding(contender: Contender) -> None:
    logits = LOGITS.clone().requires_grad_()
    keep_probs = bound_keep_probs(logits.sigmoid(), 0.8)
    every = every_policy(3)
    mean_reward = torch.where(every, keep_probs, 1 - keep_probs).prod(-1) @ TABLE
    (exact,) = torch.autograd.grad(-mean_reward, logits)
    policies, chances = all_draws(contender, keep_probs.detach())
    count = len(chances)
    found = gradients(contender, LOGITS.expand(count, -1), 0.8, policies, rewards_of(policies), torch.zeros(count))
    torch.testing.assert_close(chances @ found, exact)


@pytest.mark.parametrize("contender", [c for c in CONTENDERS if c.name != "value_baseline"], ids=str)
def test_sampled_variance_and_cost_come_near_the_exact_ones(contender: Contender) -> None:
    repeats, images = 400, 20
    logits = LOGITS.expand(images, -1)
    keep_probs = bound_keep_probs(logits.sigmoid(), 0.8)
    draws = torch.Generator().manual_seed(0)
    policies = torch.stack([contender.estimator.draw(keep_probs, draws) for _ in range(repeats)])
    variance = sampled_variance(contender, logits, 0.8, policies, rewards_of(policies)).mean().item()
    cost = sum(map(block_executions, policies)) / repeats / images
    assert [variance, cost] == pytest.approx(exact_moments(contender, LOGITS, TABLE, 0.8).tolist(), rel=0.05)


def test_executions_of_each_image_add_up() -> None:
    policies = torch.rand(3, 50, 4) < 0.5
    each = executions(policies)
    assert each.sum() == block_executions(policies)
    assert each[7] == block_executions(policies[:, 7:8])


def test_tables_come_from_the_seed_and_pay_what_blockdrop_pays() -> None:
    logits, tables = draw_tables(EstimatorVarianceConfig(tables=50, penalty=-3.0), 2)
    assert (logits.shape, tables.shape) == ((50, 2), (50, 4))
    for paid, right in zip(tables.T, (1.0, 0.75, 0.75, 0.0), strict=True):
        assert set(paid.tolist()) <= {right, -3.0}
    assert tables.equal(draw_tables(EstimatorVarianceConfig(tables=50, penalty=-3.0), 2)[1])
    assert not tables.equal(draw_tables(EstimatorVarianceConfig(tables=50, penalty=-3.0, seed=1), 2)[1])


def test_the_first_row_is_the_measure_of_the_others(tmp_path: Path, command: Callable[..., Any]) -> None:
    flags = ("--blocks", 2, 3, "--samples", 2, "--tables", 3, "--json", tmp_path / "rows.json")
    code, out, _ = command(estimator_variance, *flags)
    assert code == 0
    assert out.count("exact, ") == 2
    rows = json.loads((tmp_path / "rows.json").read_text())["exact"]
    assert [(row["blocks"], row["name"], row["samples"]) for row in rows] == [
        (blocks, contender.name, contender.samples) for blocks in (2, 3) for contender in contenders((2,), blocks)
    ]
    for row in rows:
        first = next(r for r in rows if r["blocks"] == row["blocks"])
        assert first["title"] == "self_critical"
        work = row["variance"] * row["executions"] / (first["variance"] * first["executions"])
        assert row["relative"] == pytest.approx(work)
    assert command(estimator_variance, *flags)[0] == 2, "the file is not replaced"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An R8_Digits whose policy network decides image by image."""
    resnet, policy_network = build("R8_Digits", policy_net="pooled4")
    for network in (resnet, policy_network):
        randomise_statistics(network)
    torch.nn.init.normal_(policy_network.logit.weight, std=0.5)
    save_checkpoint(
        tmp_path / "net.t7",
        model="R8_Digits",
        resnet=resnet,
        policy_network=policy_network,
        policy_net="pooled4",
        normalisation=NORMALISATIONS["half"],
    )
    return tmp_path / "net.t7"


def test_a_trained_network_is_measured_under_both_rewards(
    tmp_path: Path, checkpoint: Path, command: Callable[..., Any]
) -> None:
    flags = ("--model", "R8_Digits", "--load", checkpoint, "--images", 5, "--repeats", 3, "--batch_size", 4)
    code, out, _ = command(estimator_variance, *flags, "--blocks", "--json", tmp_path / "rows.json")
    assert code == 0
    assert "R8_Digits, reward log_likelihood, 5 test images, 3 draws each" in out
    numbers = json.loads((tmp_path / "rows.json").read_text())
    assert numbers["exact"] == []
    names = [str(contender) for contender in contenders((2, 4), 3)]
    for reward in ("blockdrop", "log_likelihood"):
        rows = [row for row in numbers["measured"] if row["reward"] == reward]
        assert [row["title"] for row in rows] == names
        assert all(row["variance"] > 0 for row in rows)
        assert all(0 < row["executions"] <= 3 * 5 for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--samples", 3), "--samples 3: must be even, antithetic policies are pairs"),
        (("--samples", 0), "--samples 0: must be even, antithetic policies are pairs"),
        (("--blocks", 0), "--blocks 0: must be at least 1"),
        (("--blocks", 5), "--blocks 5 with --samples 4: 2^20 draws are too many to enumerate; at most 2^16"),
        (("--blocks",), "--blocks and --load: nothing to do without both"),
        (("--tables", 0), "--tables 0: must be at least 1"),
        (("--images", 0), "--images 0: must be at least 1"),
        (("--repeats", 1), "--repeats 1: a variance needs at least 2"),
        (("--alpha", 0.5), "--alpha 0.5: must be above 0.5 and at most 1"),
        (("--penalty", "inf"), "--penalty inf: must be a finite number"),
    ],
)
def test_flags_out_of_range_are_named(
    command: Callable[..., Any], flags: tuple[object, ...], message: str
) -> None:
    assert command(estimator_variance, *flags)[::2] == (2, f"error: {message}")


def test_a_checkpoint_without_policy_network_is_refused(tmp_path: Path, command: Callable[..., Any]) -> None:
    resnet, _ = build("R8_Digits")
    save_checkpoint(tmp_path / "b.t7", model="R8_Digits", resnet=resnet, normalisation=NORMALISATIONS["half"])
    code, out, error = command(estimator_variance, "--model", "R8_Digits", "--load", tmp_path / "b.t7")
    assert code == 2
    assert error.endswith("b.t7: no policy network in it; run blockdrop.cl_train first")
    assert out == "", "before anything is enumerated"


def test_rewards_that_never_differ_leave_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    alike = torch.zeros(1, 2).double(), torch.ones(1, 4).double()
    monkeypatch.setattr(estimator_variance, "draw_tables", lambda *_: alike)
    code, _, error = command(estimator_variance, "--blocks", 2)
    assert code == 2
    assert "self_critical's gradient has no variance" in error
