"""The operating point that a checkpoint keeps, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agents.answers import NEVER, Thresholds
from agents.names import DEFAULT_THRESHOLD


def check_operating_point(point: Any) -> dict[str, Any]:
    """A copy of an operating point, of plain numbers only.

    Keys: `threshold`, above 0 and below 1; `answer_threshold`, above 0, where images are answered; `budget` and
    `flops_fraction`, what was asked for and what the held-out images cost, as fractions of the full network's
    FLOPs, and `held_out_images`, their number (all three None where the threshold was set by hand); `curve`, a
    list of what several thresholds gave, each a dict of numbers with a `threshold`.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(point, Mapping) or not isinstance(point.get("curve", []), list):
        raise ValueError("the operating point is no dict with a list as its curve")
    choice = ("budget", "flops_fraction", "held_out_images")
    checked = _numbers({k: v for k, v in point.items() if k != "curve" and (k not in choice or v is not None)})
    if any(checked.get(name, 1) <= 0 for name in choice):
        raise ValueError(f"the operating point's {', '.join(choice)} aren't all positive")
    return {**dict.fromkeys(choice), **checked, "curve": [_numbers(row) for row in point.get("curve", [])]}


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise ValueError(f"the operating point's curve holds a {type(values).__name__}")
    numpys = {name: float(value) for name, value in values.items() if isinstance(value, np.floating)}
    values = {**values, **numpys}
    for name, value in values.items():
        if not isinstance(name, str) or type(value) not in (int, float) or not abs(value) < 1e300:
            raise ValueError(f"the operating point's {str(name)[:40]} is no finite number")
    if not 0 < values.get("threshold", 0) < 1:
        raise ValueError(f"the operating point's threshold {values.get('threshold')} isn't between 0 and 1")
    if not values.get("answer_threshold", 1) > 0:
        raise ValueError(f"the operating point's answer threshold {values['answer_threshold']} isn't above 0")
    return dict(values)


def thresholds_of(point: Mapping[str, Any] | None) -> Thresholds:
    """Those of an operating point; None: the usual ones."""
    point = point or {}
    return Thresholds(point.get("threshold", DEFAULT_THRESHOLD), point.get("answer_threshold", NEVER))


def thresholds_record(thresholds: Thresholds) -> dict[str, float]:
    """As an operating point holds them; no image being answered is said by nothing."""
    answer = {} if thresholds.answer == NEVER else {"answer_threshold": thresholds.answer}
    return {"threshold": thresholds.keep, **answer}
