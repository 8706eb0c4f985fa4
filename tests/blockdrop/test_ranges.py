"""Declared ranges: what is inside, what is outside, and how it is said."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from blockdrop.errors import BlockdropError
from blockdrop.ranges import CheckpointName, Count, NotNegative, Positive, Range, check_ranges


@dataclass(kw_only=True)
class Flags:
    lr: Positive = 0.1
    wd: NotNegative | None = None
    epochs: Count = 1
    share: Annotated[float, Range(least=0, below=1)] | None = None
    penalty: Annotated[float, Range()] = -1.0
    factor: Annotated[float, Range(least=0.01, most=100)] = 1.0
    budget: Annotated[float, Range(above=0, most=2, meaning="a fraction")] = 0.5
    seed: Annotated[int, Range(least=0, below=2**63)] = 0
    steps: tuple[Count, ...] = ()
    load: tuple[CheckpointName, ...] = ()
    start: CheckpointName | None = None
    anything: float = math.nan


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lr": 0.0}, "--lr 0.0: must be a positive number"),
        ({"lr": math.nan}, "--lr nan: must be a positive number"),
        ({"lr": math.inf}, "--lr inf: must be a positive number"),
        ({"lr": None}, "--lr None: must be a positive number"),
        ({"lr": "0.1"}, "--lr 0.1: must be a positive number"),
        ({"wd": -1e-9}, "--wd -1e-09: must be at least 0"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"epochs": 1.5}, "--epochs 1.5: must be a whole number"),
        ({"epochs": True}, "--epochs True: must be at least 1"),
        ({"share": 1.0}, "--share 1.0: must be at least 0 and below 1"),
        ({"penalty": -math.inf}, "--penalty -inf: must be a finite number"),
        ({"factor": 100.1}, "--factor 100.1: must be between 0.01 and 100"),
        ({"budget": 2.5}, "--budget 2.5: must be above 0 and at most 2, a fraction"),
        ({"seed": 2**63}, f"--seed {2**63}: must be at least 0 and below 2^63"),
        ({"seed": 10**400}, f"--seed {10**400}: must be at least 0 and below 2^63"),
        ({"steps": (3, 0)}, "--steps 0: must be at least 1"),
        ({"load": ("a", "")}, "--load: an empty name; name a checkpoint"),
        ({"start": ""}, "--start: empty; name a checkpoint"),
    ],
)
def test_what_is_outside_is_named_with_its_range(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockdropError) as caught:
        check_ranges(Flags(**flags))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"lr": 1, "wd": 0.0, "share": 0.0, "seed": 2**63 - 1},
        {"factor": 0.01, "budget": 2.0, "penalty": 0.0},
        {"factor": 100, "steps": (1, 2), "load": ("a", "b"), "start": "c"},
    ],
)
def test_bounds_that_may_be_reached_and_none_where_the_type_allows_it(flags: dict[str, Any]) -> None:
    check_ranges(Flags(**flags))
