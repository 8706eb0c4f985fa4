"""The price of computation: how it moves, and that it makes a spender meet the budget."""

import pytest

from agents.budget import BudgetPrice


def test_the_price_rises_while_more_is_spent_than_the_target_and_falls_while_less_is() -> None:
    price = BudgetPrice(target=0.5, rate=0.1, damping=0)
    rising = [price.update(0.9) for _ in range(5)]
    falling = [price.update(0.4) for _ in range(5)]
    assert rising == sorted(set(rising))
    assert falling == sorted(set(falling), reverse=True)
    assert rising == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.20])
    assert falling == pytest.approx([0.19, 0.18, 0.17, 0.16, 0.15])


def test_the_damping_adds_the_error_itself() -> None:
    price = BudgetPrice(target=0.5, rate=0.1, damping=2)
    assert price.update(0.9) == pytest.approx(0.04 + 2 * 0.4)
    assert price.update(0.5) == pytest.approx(0.04), "on target only what has accumulated is left"


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_spending_is_paid_for_while_less_is_spent_than_the_target_but_not_without_end(damping: float) -> None:
    price = BudgetPrice(target=0.5, rate=0.1, damping=damping)
    prices = [price.update(0.0) for _ in range(100)]
    assert prices[0] == pytest.approx(-0.05 - damping * 0.5)
    assert prices[-1] == -1


def spending(price: BudgetPrice, updates: int) -> list[float]:
    """Of a spender who wants to spend 1 - price / 2, and learns slowly to do so."""
    spent, history = 1.0, []
    for _ in range(updates):
        wanted = max(0.0, 1 - price.update(spent) / 2)
        spent += 0.1 * (wanted - spent)
        history.append(spent)
    return history


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_a_spender_who_minds_the_price_settles_at_the_target(target: float, damping: float) -> None:
    price = BudgetPrice(target, rate=0.02, damping=damping)
    assert spending(price, 2000)[-1] == pytest.approx(target, abs=1e-4)
    assert price.value == pytest.approx(2 * (1 - target), abs=1e-3), "the price at which just so much is wanted"


def test_damping_makes_smaller_swings() -> None:
    swings = [min(spending(BudgetPrice(0.5, rate=0.2, damping=damping), 500)) for damping in (0.0, 1.0)]
    assert swings[0] < swings[1] < 0.5


@pytest.mark.parametrize("target", [0.0, -0.5, float("nan")])
def test_a_target_that_is_no_share_is_named(target: float) -> None:
    with pytest.raises(ValueError, match=f"target: got {target}; expected a positive share"):
        BudgetPrice(target)
