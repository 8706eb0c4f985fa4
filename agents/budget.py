"""A budget instead of a penalty: the price of computation that makes a policy spend just so much."""

from __future__ import annotations

from collections.abc import Mapping

LOWEST = -1.0
"""Of prices, so that a target that can't be reached doesn't drive them on and on."""


class BudgetPrice:
    """The Lagrange multiplier of the constraint "mean cost = target", adapted as training goes.

    Dual ascent (Boyd and Vandenberghe 2004, "Convex Optimization", section 5): the price rises while more is spent
    than the target and falls while less is. It may become negative: blocks that had to go while the target came
    down return only if something speaks for them. A term proportional to the error damps the swings.

    Args:
        target: cost aimed at, a share of the full network's; may be changed between updates.
        rate: how much the price rises for each update at an error of one.
        damping: weight of the error itself in the price.

    >>> price = BudgetPrice(target=0.5, rate=0.1, damping=0)
    >>> [round(price.update(spent), 3) for spent in (1.0, 0.8, 0.4, 0.0)]
    [0.05, 0.08, 0.07, 0.02]
    >>> round(price.update(0.0), 3)
    -0.03
    """

    def __init__(self, target: float, rate: float = 0.002, damping: float = 5.0):
        if not target > 0:
            raise ValueError(f"target: got {target}; expected a positive share")
        self.target, self.rate, self.damping = target, rate, damping
        self.accumulated = 0.0
        self.value = 0.0
        """The price to pay now."""

    def state_dict(self) -> dict[str, float]:
        """What `load_state_dict` needs to go on from here."""
        return {"accumulated": self.accumulated, "value": self.value}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        """Goes on from where `state_dict` was called."""
        self.accumulated, self.value = state_dict["accumulated"], state_dict["value"]

    def update(self, spent: float) -> float:
        """Takes the mean cost of the last batch, a share of the full network's; returns the new price."""
        error = spent - self.target
        self.accumulated = max(LOWEST, self.accumulated + self.rate * error)
        self.value = max(LOWEST, self.accumulated + self.damping * error)
        return self.value
