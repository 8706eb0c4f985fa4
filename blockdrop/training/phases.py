"""Who learns from a batch of joint fine-tuning."""

from __future__ import annotations

from typing import NamedTuple


class Phase(NamedTuple):
    """Which of the two networks learn."""

    resnet: bool
    policy: bool


POLICIES_ALONE, JOINT, SETTLED = Phase(False, True), Phase(True, True), Phase(True, False)
