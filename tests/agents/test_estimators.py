"""Gradient estimators against exact gradients, over every draw they can make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from agents.answers import split_decisions, with_answer_chance, with_answers
from agents.estimators import (
    Estimator,
    block_credit_loss,
    draw_antithetic,
    draw_gates,
    draw_with_flips,
    draw_with_map,
    leave_one_out_loss,
    make_estimator,
    self_critical_loss,
    value_baseline_loss,
)
from agents.names import ESTIMATORS, PATHWISE, EstimatorName, PathwiseName
from agents.rewards import Reward

LOGITS = torch.tensor([0.3, -1.2, 2.0, -0.4], dtype=torch.float64)
REWARDS = {
    3: torch.tensor([-1.0, 0.9, -1.0, 0.6, 0.9, 0.5, -1.0, 0.0], dtype=torch.float64),
    4: torch.tensor(
        [-1.0, 0.9, -1.0, 0.7, 0.9, 0.7, -1.0, 0.4, 0.9, -1.0, 0.7, 0.4, -1.0, 0.4, 0.4, 0.0], dtype=torch.float64
    ),
}
"""One for each of the 2^K policies, the first decision counting most: all dropped, …, all kept."""

VALUE = 0.37
"""Of value_baseline; any number will do."""

CASES: list[tuple[EstimatorName, int, int]] = [
    ("self_critical", 2, 3), ("self_critical", 2, 4),
    ("leave_one_out", 2, 3), ("leave_one_out", 3, 3), ("leave_one_out", 2, 4),
    ("antithetic", 2, 3), ("antithetic", 2, 4), ("antithetic", 4, 3),
    ("value_baseline", 1, 3), ("value_baseline", 2, 3), ("value_baseline", 1, 4),
    ("block_credit", 3, 3), ("block_credit", 4, 4), ("block_credit", 1, 3), ("block_credit", 2, 3),
    ("block_credit", 1, 4), ("block_credit", 3, 4), ("block_credit", 9, 4),
]  # fmt: skip
"""Name, samples, K."""


def reward_of(policies: Tensor, table: Tensor) -> Tensor:
    """Rewards float64 (…,) of policies bool (…, K)."""
    place = 2 ** torch.arange(policies.shape[-1] - 1, -1, -1)
    return table[(policies * place).sum(-1)]


def exact_gradient(num_blocks: int, table: Tensor) -> Tensor:
    """Of minus the expected reward by the logits: (K,)."""
    logits = LOGITS[:num_blocks].clone().requires_grad_()
    policies = torch.tensor(list(itertools.product([False, True], repeat=num_blocks)))
    chances = torch.where(policies, logits.sigmoid(), 1 - logits.sigmoid()).prod(-1)
    (gradient,) = torch.autograd.grad(-(chances * reward_of(policies, table)).sum(), logits)
    return gradient


class Uniforms:
    """Stands in for torch.rand and hands out, image by image, every choice that uniform numbers can make.

    The numbers compared with p fall in one of the intervals into which p and 1 - p cut [0, 1]; those that are only
    sorted, in one of the orders.
    """

    def __init__(self, keep_probs: Tensor, count: int, mirrored: bool, sorted_after: bool):
        cuts = torch.stack([keep_probs, 1 - keep_probs if mirrored else keep_probs]).sort(0).values
        edges = torch.cat([torch.zeros(1, len(keep_probs)), cuts, torch.ones(1, len(keep_probs))]).double()
        lengths, middles = edges.diff(dim=0), (edges[1:] + edges[:-1]) / 2  # (3, K)
        intervals = torch.tensor([0, 1, 2] if mirrored else [0, 2])
        chosen = torch.cartesian_prod(*[intervals] * (count * len(keep_probs)))  # (M, count · K)
        decisions = torch.arange(len(keep_probs)).repeat(count)
        compared = middles[chosen, decisions].unflatten(1, (count, -1)).transpose(0, 1)  # (count, M, K)
        self.weights = lengths[chosen, decisions].prod(-1)  # (M,)
        self.hands = [compared]
        if sorted_after:
            orders = torch.tensor(list(itertools.permutations(range(len(keep_probs))))) / len(keep_probs)
            self.hands = [compared.repeat_interleave(len(orders), 1), orders.repeat(compared.shape[1], 1)]
            self.weights = self.weights.repeat_interleave(len(orders)) / len(orders)

    def __call__(self, shape: tuple[int, ...], **_options: object) -> Tensor:
        return self.hands.pop(0).reshape(shape)


Enumerate = Callable[[EstimatorName, int, int], tuple[Estimator, Tensor, Tensor]]


@pytest.fixture
def every_draw(monkeypatch: pytest.MonkeyPatch) -> Enumerate:
    """(name, samples, K) to the estimator, all its draws bool (S, M, K) and their probabilities (M,)."""

    def enumerate_draws(name: EstimatorName, samples: int, num_blocks: int) -> tuple[Estimator, Tensor, Tensor]:
        estimator, keep_probs = make_estimator(name, samples), LOGITS[:num_blocks].sigmoid()
        count = {"leave_one_out": samples, "value_baseline": samples, "antithetic": samples // 2}.get(name, 1)
        uniforms = Uniforms(keep_probs, count, name == "antithetic", name == "block_credit")
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", uniforms)
            policies = estimator.draw(keep_probs.expand(len(uniforms.weights), -1), None)
        assert not uniforms.hands, "all numbers are asked for"
        torch.testing.assert_close(uniforms.weights.sum(), torch.tensor(1.0).double())
        return estimator, policies, uniforms.weights

    return enumerate_draws


def gradients(estimator: Estimator, policies: Tensor, table: Tensor) -> Tensor:
    """The loss's gradient by the logits for each draw taken alone: (S, M, K) to (M, K)."""
    count, num_blocks = policies.shape[1:]
    logits = LOGITS[:num_blocks].expand(count, -1).clone().requires_grad_()
    values = (torch.full((count,), VALUE, dtype=torch.float64),) if estimator.wants_values else ()
    loss = estimator.loss(logits.sigmoid(), policies, reward_of(policies, table), *values)
    (gradient,) = torch.autograd.grad(loss * count, logits)  # the loss is the mean over images
    return gradient


def moments(gradient: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (K,) of gradients (M, K)."""
    mean = weights @ gradient
    return mean, weights @ (gradient - mean).square()


@pytest.fixture
def variance(every_draw: Enumerate) -> Callable[[EstimatorName, int, Tensor], Tensor]:
    """(name, samples, rewards) to the variance of each decision's gradient, (K,)."""

    def of(name: EstimatorName, samples: int, table: Tensor) -> Tensor:
        estimator, policies, weights = every_draw(name, samples, int(math.log2(len(table))))
        return moments(gradients(estimator, policies, table), weights)[1]

    return of


Variance = Callable[[EstimatorName, int, Tensor], Tensor]


# ---- unbiased


@pytest.mark.parametrize(("name", "samples", "num_blocks"), CASES)
def test_mean_gradient_over_all_draws_is_the_exact_gradient(
    every_draw: Enumerate, name: EstimatorName, samples: int, num_blocks: int
) -> None:
    estimator, policies, weights = every_draw(name, samples, num_blocks)
    mean, _ = moments(gradients(estimator, policies, REWARDS[num_blocks]), weights)
    torch.testing.assert_close(mean, exact_gradient(num_blocks, REWARDS[num_blocks]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "samples", "num_blocks"), CASES)
def test_each_policy_counted_as_a_plain_draw_is_one(
    every_draw: Enumerate, name: EstimatorName, samples: int, num_blocks: int
) -> None:
    estimator, policies, weights = every_draw(name, samples, num_blocks)
    keep_probs = LOGITS[:num_blocks].sigmoid()
    for policy in torch.tensor(list(itertools.product([False, True], repeat=num_blocks))):
        chance = torch.where(policy, keep_probs, 1 - keep_probs).prod()
        for sampled in policies[: estimator.samples]:
            torch.testing.assert_close(weights[(sampled == policy).all(-1)].sum(), chance)


def test_every_estimator_is_held_against_the_exact_gradient() -> None:
    assert {name for name, _, _ in CASES} == set(ESTIMATORS)


# ---- with the answer as one more decision

CLASSES = LOGITS[3].sigmoid() * torch.tensor([0.0, 1.0, 0.0]).double() + (1 - LOGITS[3].sigmoid()) * torch.tensor(
    [0.55, 0.0, 0.45]
)
"""Probabilities of an answer that is class 1, with as much confidence as the fourth decision has chance."""
RIGHT = torch.tensor([False, True, False, True, True, True, False, True])
"""Whether the network is right under each policy of three blocks, the first counting most."""


def reward_with_answers(decisions: Tensor, label: int, penalty: float = -0.7) -> Tensor:
    """By the package's own functions: rewards float64 (…,) of decisions bool (…, 4), of an image of a class."""
    policies, answered = split_decisions(decisions)
    right = reward_of(policies, RIGHT.double()).bool()
    logits = torch.nn.functional.one_hot(torch.where(right, label, 2), 3).double()
    answer = CLASSES.log().expand(decisions.shape[-2], 3) if decisions.dim() > 1 else CLASSES.log()
    labels = torch.full(decisions.shape[-2:-1], label)
    found = Reward("blockdrop", penalty)(with_answers(logits, answer, answered, 0.0), labels, policies)
    return found.double()


def gradient_of_decisions(keep_logits: Tensor, class_logits: Tensor) -> Tensor:
    """The chances of all four decisions, (…, 4), with gradient."""
    return with_answer_chance(keep_logits.sigmoid(), class_logits.log_softmax(-1))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(("name", "samples", "num_blocks"), [case for case in CASES if case[2] == 4])
def test_with_an_answer_the_mean_gradient_over_all_draws_is_the_exact_gradient(
    every_draw: Enumerate, name: EstimatorName, samples: int, num_blocks: int, label: int
) -> None:
    estimator, decisions, weights = every_draw(name, samples, num_blocks)  # three blocks, and the answer
    count = decisions.shape[1]

    def leaves(rows: int) -> list[Tensor]:
        return [part.expand(rows, -1).clone().requires_grad_() for part in (LOGITS[:3], CLASSES.log())]

    keep_logits, class_logits = leaves(1)
    every = torch.tensor(list(itertools.product([False, True], repeat=4)))
    chances = gradient_of_decisions(keep_logits, class_logits)
    torch.testing.assert_close(chances[0], LOGITS.sigmoid())
    chance = torch.where(every, chances, 1 - chances).prod(-1)
    rewards = reward_with_answers(every, label)
    assert rewards[1::2].unique().tolist() == [1.0 if label == 1 else pytest.approx(-0.7)]  # answered
    exact = torch.autograd.grad(-(chance * rewards).sum(), (keep_logits, class_logits))

    keep_logits, class_logits = leaves(count)
    values = (torch.full((count,), VALUE, dtype=torch.float64),) if estimator.wants_values else ()
    rewards = reward_with_answers(decisions, label)
    loss = estimator.loss(gradient_of_decisions(keep_logits, class_logits), decisions, rewards, *values)
    found = torch.autograd.grad(loss * count, (keep_logits, class_logits))
    for gradient, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(weights @ gradient, expected[0], rtol=1e-6, atol=1e-7)


# ---- variance, exact


@pytest.mark.parametrize("num_blocks", [3, 4])
def test_credit_for_every_block_is_never_noisier_than_self_critical(variance: Variance, num_blocks: int) -> None:
    # It is self_critical's gradient by a decision, averaged over that decision given all others (Rao, Blackwell).
    for table in (REWARDS[num_blocks], *torch.randn(10, 2**num_blocks, dtype=torch.float64)):
        credit = variance("block_credit", num_blocks, table)
        assert (credit <= variance("self_critical", 2, table) + 1e-12).all()
    self_critical = variance("self_critical", 2, REWARDS[num_blocks]).sum()
    assert variance("block_credit", num_blocks, REWARDS[num_blocks]).sum() < self_critical / 4


@pytest.mark.parametrize("num_blocks", [3, 4])
def test_the_more_decisions_are_tried_both_ways_the_less_noise(variance: Variance, num_blocks: int) -> None:
    noise = torch.stack([variance("block_credit", n, REWARDS[num_blocks]) for n in range(1, num_blocks + 1)])
    assert (noise.diff(dim=0) < 0).all()


def test_credit_for_one_block_alone_can_be_noisier_than_self_critical(variance: Variance) -> None:
    assert variance("block_credit", 1, REWARDS[4]).sum() > variance("self_critical", 2, REWARDS[4]).sum()


@pytest.mark.parametrize("num_blocks", [3, 4])
def test_of_two_policies_antithetic_makes_most_self_critical_least(variance: Variance, num_blocks: int) -> None:
    names: list[EstimatorName] = ["antithetic", "leave_one_out", "self_critical"]
    noise = [variance(name, 2, REWARDS[num_blocks]).sum() for name in names]
    assert noise[0] < 0.75 * noise[1] < 0.75 * noise[2]


def test_noise_falls_with_the_samples(variance: Variance) -> None:
    table = REWARDS[3]
    for name, fewer, more in (("antithetic", 2, 4), ("value_baseline", 1, 2)):
        torch.testing.assert_close(variance(name, more, table), variance(name, fewer, table) / 2)  # type: ignore[arg-type]
    # Two pairs of two are among the six pairs of four: more than twice the policies' worth.
    assert (variance("leave_one_out", 4, table) < variance("leave_one_out", 2, table) / 2).all()


def test_the_mean_reward_is_a_better_baseline_than_none(
    variance: Variance, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifted = REWARDS[3] + 2
    without = variance("value_baseline", 1, lifted).sum()
    monkeypatch.setattr(f"{__name__}.VALUE", lifted.mean().item())
    assert variance("value_baseline", 1, lifted).sum() < without / 4


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "value_baseline"])
def test_only_differences_of_rewards_count(every_draw: Enumerate, name: EstimatorName) -> None:
    estimator, policies, _ = every_draw(name, 2, 3)
    plain, lifted = (gradients(estimator, policies, REWARDS[3] + lift) for lift in (0.0, 100.0))
    torch.testing.assert_close(lifted, plain, rtol=1e-9, atol=1e-9)


# ---- losses by hand


def test_self_critical_by_hand() -> None:
    # d/dp of -log π · advantage for p = ½, averaged over two images: ∓ advantage / ½ / 2
    keep_probs = torch.full((2, 2), 0.5, requires_grad=True)
    policies = torch.tensor([[[False, True], [True, True]], [[True, True], [True, True]]])
    self_critical_loss(keep_probs, policies, torch.tensor([[1.0, 0.5], [0.0, 1.0]])).backward()
    assert keep_probs.grad is not None
    torch.testing.assert_close(keep_probs.grad, torch.tensor([[1.0, -1.0], [0.5, 0.5]]))


def test_better_than_the_other_draw_is_made_more_probable() -> None:
    keep_probs = torch.tensor([[0.5, 0.5]], requires_grad=True)
    policies = torch.tensor([[[True, False]], [[False, False]]])
    leave_one_out_loss(keep_probs, policies, torch.tensor([[1.0], [0.0]])).backward()
    assert keep_probs.grad is not None
    assert keep_probs.grad[0, 0] < 0
    assert keep_probs.grad[0, 1] == 0, "both draws drop it: nothing to tell"


def test_credit_by_hand() -> None:
    # With the first block kept as drawn 0.9, without it 0.4; without the second as drawn 0.9, with it 0.6.
    keep_probs = torch.tensor([[0.3, 0.8]], requires_grad=True)
    policies = torch.tensor([[[True, False]], [[False, False]], [[True, True]]])
    block_credit_loss(keep_probs, policies, torch.tensor([[0.9], [0.4], [0.6]])).backward()
    assert keep_probs.grad is not None
    torch.testing.assert_close(keep_probs.grad, -torch.tensor([[0.9 - 0.4, 0.6 - 0.9]]))


@pytest.mark.parametrize("flips", [1, 2, 3])
def test_credit_is_exact_in_the_mean_where_images_are_sure_of_different_numbers_of_decisions(flips: int) -> None:
    """For a reward that is linear in the decisions, whose gradient is the same whatever is drawn."""
    weights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    of_each = torch.tensor(
        [[0.3, 0.6, 1.0], [0.3, 0.6, 0.7], [0.0, 0.6, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64
    )
    keep_probs = of_each.repeat(3000, 1).requires_grad_()
    policies = draw_with_flips(keep_probs.detach(), torch.Generator().manual_seed(0), flips)
    loss = block_credit_loss(keep_probs, policies, (policies * weights).sum(-1))
    (gradient,) = torch.autograd.grad(len(keep_probs) * loss, keep_probs)
    uncertain = (of_each > 0) & (of_each < 1)
    torch.testing.assert_close(gradient.view(-1, 4, 3).mean(0), -weights * uncertain, atol=0.25, rtol=0)


def test_value_estimates_are_drawn_to_the_mean_reward() -> None:
    keep_probs, values = torch.full((2, 3), 0.5), torch.tensor([1.0, -1.0], requires_grad=True)
    policies, rewards = torch.ones(2, 2, 3).bool(), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    value_baseline_loss(keep_probs.requires_grad_(), policies, rewards, values).backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([1.0 - 0.5, -1.0 - 0.5]) / 2)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("ends", [0.0, 1.0])
def test_sure_decisions_give_finite_gradients(name: EstimatorName, ends: float) -> None:
    estimator, keep_probs = make_estimator(name), torch.tensor([[ends, 0.5, 1 - ends]], requires_grad=True)
    policies = estimator.draw(keep_probs.detach(), torch.Generator().manual_seed(0))
    values = (torch.zeros(1),) if estimator.wants_values else ()
    estimator.loss(keep_probs, policies, policies.float().mean(-1), *values).backward()
    assert keep_probs.grad is not None
    assert keep_probs.grad.isfinite().all()


# ---- draws


def test_one_decision_is_turned_round_in_each_copy_another_each_time() -> None:
    keep_probs = torch.rand(50, 6)
    for flips in (1, 4, 6, 9):
        policies = draw_with_flips(keep_probs, torch.Generator().manual_seed(0), flips)
        assert policies.shape == (1 + min(flips, 6), 50, 6)
        turned = policies[0] ^ policies[1:]  # (flips, N, K)
        assert (turned.sum(-1) == 1).all()
        assert (turned.sum(0) <= 1).all()


def test_every_decision_is_turned_round_as_often() -> None:
    policies = draw_with_flips(torch.rand(12_000, 6), torch.Generator().manual_seed(0), flips=2)
    share = (policies[0] ^ policies[1:]).sum(0).double().mean(0)
    torch.testing.assert_close(share, torch.full((6,), 2 / 6, dtype=torch.float64), atol=0.015, rtol=0)


def test_the_most_probable_policy_is_the_second_one() -> None:
    keep_probs = torch.tensor([[0.2, 0.5, 0.9]])
    assert draw_with_map(keep_probs)[1].tolist() == [[False, True, True]]


def test_a_pair_keeps_what_is_sure_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the lowest number that a draw can give, too, which comes up once in millions of draws."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert draw_antithetic(torch.tensor([[1.0, 0.0]])).tolist() == [[[True, False]], [[True, False]]]


def test_a_pair_differs_as_often_as_can_be() -> None:
    keep_probs = torch.tensor([0.3, 0.8]).expand(20_000, 2)
    pairs = draw_antithetic(keep_probs, torch.Generator().manual_seed(0), samples=4).unflatten(0, (2, 2))
    first, second = pairs.unbind(1)  # (2, N, K)
    assert not (first & second)[..., 0].any(), "p < ½: never both kept"
    assert (first | second)[..., 1].all(), "p > ½: never both dropped"
    differ = (first ^ second).double().mean((0, 1))
    torch.testing.assert_close(differ, torch.tensor([0.6, 0.4]).double(), atol=0.01, rtol=0)
    across = (pairs[0, 0] ^ pairs[1, 0]).double().mean(0)
    expected = torch.tensor([2 * 0.3 * 0.7, 2 * 0.8 * 0.2]).double()
    torch.testing.assert_close(across, expected, atol=0.01, rtol=0)  # pairs know nothing of each other


# ---- pathwise


@pytest.mark.parametrize("name", PATHWISE)
def test_gates_are_the_policy_itself(name: PathwiseName) -> None:
    keep_probs = torch.cat([torch.rand(500, 7), torch.zeros(1, 7), torch.ones(1, 7)]).requires_grad_()
    policy, gates = draw_gates(name, keep_probs, torch.Generator().manual_seed(0))
    assert gates.equal(policy.float())
    assert policy[-2:].tolist() == [[False] * 7, [True] * 7]
    gates.sum().backward()
    assert keep_probs.grad is not None
    assert keep_probs.grad.isfinite().all()


@pytest.mark.parametrize("name", ["straight_through", "kept_straight_through"])
@pytest.mark.parametrize("num_blocks", [3, 4])
def test_straight_through_is_exact_for_a_loss_linear_in_each_gate(
    monkeypatch: pytest.MonkeyPatch, name: PathwiseName, num_blocks: int
) -> None:
    uniforms = Uniforms(LOGITS[:num_blocks].sigmoid(), 1, mirrored=False, sorted_after=False)
    logits = LOGITS[:num_blocks].expand(len(uniforms.weights), -1).clone().requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", uniforms)
        _, gates = draw_gates(name, logits.sigmoid())
    every = torch.tensor(list(itertools.product([False, True], repeat=num_blocks)))
    # The one function linear in each gate that has these rewards where all gates are 0 or 1.
    chosen = torch.where(every, gates[:, None], 1 - gates[:, None]).prod(-1)  # (M, 2^K)
    (gradient,) = torch.autograd.grad(-(chosen @ REWARDS[num_blocks]).sum(), logits)
    exact = exact_gradient(num_blocks, REWARDS[num_blocks])
    torch.testing.assert_close(uniforms.weights @ gradient, exact, rtol=1e-10, atol=1e-10)


def test_dropped_decisions_get_no_gradient_and_kept_ones_one_over_p() -> None:
    keep_probs = (0.1 + 0.8 * torch.rand(100, 5)).requires_grad_()
    policy, gates = draw_gates("kept_straight_through", keep_probs, torch.Generator().manual_seed(0))
    gates.sum().backward()
    torch.testing.assert_close(keep_probs.grad, torch.where(policy, 1 / keep_probs.detach(), 0.0))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_gumbel_keeps_with_the_frequency_of_p_at_every_temperature(temperature: float) -> None:
    keep_probs = torch.tensor([0.0, 0.05, 0.5, 0.8, 1.0]).expand(40_000, 5)
    policy, _ = draw_gates("gumbel", keep_probs, torch.Generator().manual_seed(0), temperature)
    torch.testing.assert_close(policy.float().mean(0), keep_probs[0], atol=0.01, rtol=0)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1 / 6), (0.02, 1 / 4)])
def test_gumbel_is_biased_the_more_the_warmer(
    monkeypatch: pytest.MonkeyPatch, temperature: float, expected: float
) -> None:
    # dp / dlogit at p = ½ is ¼. At temperature 1 the relaxed draw's is u (1 - u), in the mean over u 1/6.
    logits = torch.zeros(100_000, 1, dtype=torch.float64, requires_grad=True)
    uniform = (torch.arange(100_000).double().unsqueeze(1) + 0.5) / 100_000
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda _shape, **_options: uniform)
        _, gates = draw_gates("gumbel", logits.sigmoid(), temperature=temperature)
    (gradient,) = torch.autograd.grad(gates.mean(), logits)
    assert gradient.sum().item() == pytest.approx(expected, rel=1e-3)


# ---- errors


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match="unknown estimator reinforce; choose self_critical, leave_one_out, "):
        make_estimator("reinforce")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown pathwise estimator self_critical; choose straight_through, "):
        draw_gates("self_critical", torch.full((1, 2), 0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("leave_one_out", 1, "leave_one_out with 1 samples: needs at least 2"),
        ("antithetic", 1, "antithetic with 1 samples: needs at least 2"),
        ("antithetic", 3, "antithetic with 3 samples: they come in pairs; choose an even number"),
        ("value_baseline", 0, "value_baseline with 0 samples: needs at least 1"),
        ("block_credit", 0, "block_credit with 0 samples: needs at least 1"),
    ],
)
def test_samples_that_an_estimator_cannot_work_with_are_named(
    name: EstimatorName, samples: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_estimator(name, samples)
