"""The names of estimators and rewards, and the usual threshold.

Without torch, so that a command line is understood without loading it.
"""

from __future__ import annotations

from typing import Literal, get_args

EstimatorName = Literal["self_critical", "leave_one_out", "antithetic", "value_baseline", "block_credit"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)
PathwiseName = Literal["straight_through", "kept_straight_through", "gumbel"]
PATHWISE: tuple[PathwiseName, ...] = get_args(PathwiseName)
RewardName = Literal["blockdrop", "flops", "log_likelihood"]
REWARDS: tuple[RewardName, ...] = get_args(RewardName)
DEFAULT_THRESHOLD = 0.5
"""Of MAP policies, where nothing else was chosen."""
