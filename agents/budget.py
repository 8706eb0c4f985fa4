"""A budget instead of a penalty: the price of computation that makes a policy spend just so much."""

from __future__ import annotations


class BudgetPrice:
    """The Lagrange multiplier of the constraint "mean cost ≤ target", adapted as training goes.

    Dual ascent (Boyd and Vandenberghe 2004, "Convex Optimization", section 5): the price rises while more is spent
    than the target and falls while less is, but not below zero. A term proportional to the error damps the swings.

    Args:
        target: cost aimed at, a share of the full network's; may be changed between updates.
        rate: how much the price rises for each update at an error of one.
        damping: weight of the error itself in the price.

    >>> price = BudgetPrice(target=0.5, rate=0.1, damping=0)
    >>> [round(price.update(spent), 3) for spent in (1.0, 0.8, 0.4, 0.0)]
    [0.05, 0.08, 0.07, 0.02]
    """

    def __init__(self, target: float, rate: float = 0.01, damping: float = 1.0):
        if not target > 0:
            raise ValueError(f"target: got {target}; expected a positive share")
        self.target, self.rate, self.damping = target, rate, damping
        self.accumulated = 0.0
        self.value = 0.0
        """The price to pay now."""

    def update(self, spent: float) -> float:
        """Takes the mean cost of the last batch, a share of the full network's; returns the new price."""
        error = spent - self.target
        self.accumulated = max(0.0, self.accumulated + self.rate * error)
        self.value = max(0.0, self.accumulated + self.damping * error)
        return self.value
