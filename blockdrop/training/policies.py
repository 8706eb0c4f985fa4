"""Policies that training doesn't learn: under a threshold that meets a budget, and static ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.answers import NEVER, Thresholds
from agents.names import DEFAULT_THRESHOLD
from agents.policies import map_policy
from agents.static_policies import StaticPolicy, make_static_policy
from blockdrop.data import Data, Images
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError
from blockdrop.flops import FlopTable
from blockdrop.inference.operating_point import threshold_for_budget
from blockdrop.models.checkpoints.operating_points import check_operating_point, thresholds_record
from blockdrop.training.compute import Compute

SOME_IMAGES = 5000
"""Training images on which thresholds are chosen and usage is counted."""


@torch.no_grad()
def training_keep_probs(dynamic: DynamicNetwork, images: Images, compute: Compute) -> Tensor:
    """Keep probabilities, (N, K) on the CPU, of some training images as they are, not augmented; always the same.

    Args:
        dynamic: its policy network is left in eval mode.
        images: the training images.
    """
    policy_network = dynamic.policy_network
    assert policy_network is not None
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:SOME_IMAGES]
    policy_network.eval()
    batches = images.subset(some.sort().values).batches(
        256, dynamic.normalisation, compute.device, channels_last=compute.channels_last
    )
    return torch.cat([policy_network(batch)[0].cpu() for batch, _ in batches])


class OperatingPoint:
    """The thresholds of MAP policies and answers: those that they came with, until some are chosen that meet a
    budget.

    Attributes:
        found: what the chosen ones cost, and for what budget; empty until then.
        calibrated: whether the answers are.
    """

    def __init__(self, threshold: float = DEFAULT_THRESHOLD, answer_threshold: float = NEVER) -> None:
        self.threshold, self.answer_threshold = threshold, answer_threshold
        self.found: dict[str, float] = {}
        self.calibrated = False

    def choose(
        self, budget: float, dynamic: DynamicNetwork, images: Images, compute: Compute, flops: FlopTable
    ) -> None:
        """The lowest threshold under which training images as they are, not augmented, cost at most the budget.

        Training meets its target on augmented images, at a threshold of 0.5. Where no threshold does (a policy
        network that costs more alone), it stays as it was.

        Args:
            budget: mean FLOPs per image, as a fraction of the full network's.
            dynamic: its policy network is left in eval mode.
            images: the training images.
        """
        keep_probs = training_keep_probs(dynamic, images, compute)
        try:
            self.threshold = threshold_for_budget(keep_probs, flops, budget)
        except BlockdropError as error:
            print(f"    threshold {self.threshold:g} stays: {error}")
            return
        cost = flops.per_image(map_policy(keep_probs, self.threshold)).double().mean().item()
        self.found = {"budget": budget, "flops_fraction": cost / flops.full}

    def recorded(self) -> dict[str, Any] | None:
        """For a checkpoint; None where nothing was chosen and the threshold is the usual one."""
        point = {**thresholds_record(Thresholds(self.threshold, self.answer_threshold)), **self.found}
        return None if point == {"threshold": DEFAULT_THRESHOLD} else check_operating_point(point)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {
            "threshold": self.threshold,
            "answer_threshold": self.answer_threshold,
            "found": self.found,
            "calibrated": self.calibrated,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was called."""
        self.threshold, self.found = state_dict["threshold"], dict(state_dict["found"])
        self.answer_threshold, self.calibrated = state_dict["answer_threshold"], state_dict["calibrated"]


def open_static_policy(text: str, dynamic: DynamicNetwork, data: Data, compute: Compute) -> StaticPolicy:
    """The policy of a --policy flag; `dist_k` draws by what the policy network does with training images, or, as
    `dist_k:K:FILE`, by the usage in a file that evaluate --json wrote.

    Raises:
        BlockdropError: see `make_static_policy`; or the file holds no usage of so many blocks.
    """
    blocks, usage = dynamic.num_blocks, None
    kind, *rest = text.split(":", 2)
    name = text
    if kind == "dist_k" and len(rest) == 2:
        if not rest[1]:
            raise BlockdropError(f"--policy {text}: names no file after the second colon")
        usage, name = _recorded_usage(text, rest[1], blocks), f"{kind}:{rest[0]}"
    elif kind == "dist_k" and dynamic.policy_network is not None:
        compute.place(dynamic.policy_network)
        keep_probs = training_keep_probs(dynamic, data.train, compute)
        usage = map_policy(keep_probs, dynamic.threshold).double().mean(0).tolist()
    try:
        return replace(make_static_policy(name, blocks, usage), name=text)
    except ValueError as error:
        raise BlockdropError(f"--policy {error}") from None


def policy_file(text: str) -> str | None:
    """The file that a --policy flag reads, if it does."""
    file = text.split(":", 2)[2] if text.startswith("dist_k:") and text.count(":") > 1 else text
    return file if os.path.isfile(file) else None


def _recorded_usage(text: str, file: str, blocks: int) -> list[float]:
    try:
        usage = json.loads(Path(file).read_text())["usage_per_block"]
        if len(usage) != blocks or not all(0 <= share <= 1 for share in usage):
            raise ValueError
    except OSError as error:
        raise BlockdropError(f"--policy {text}: {file} can't be read ({error.strerror})") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise BlockdropError(
            f"--policy {text}: {file} holds no usage_per_block of {blocks} blocks; name what evaluate --json wrote"
        ) from None
    return [float(share) for share in usage]
