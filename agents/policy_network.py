"""The network that looks at an image once, gives a keep probability to every block, and may answer."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.answers import NEVER
from agents.names import DEFAULT_THRESHOLD
from agents.policies import map_policy


class Glance(NamedTuple):
    """What a policy network makes of N images."""

    keep_probs: Tensor
    """(N, K), float32, in (0, 1)."""
    values: Tensor | None = None
    """(N, 1), estimates of each image's reward; None where none are made."""
    answer: Tensor | None = None
    """(N, classes), float32 log-probabilities; None without an answer head."""


class PolicyNetwork(nn.Module):
    """Keep probabilities and a value estimate from an image (Wu et al. 2018, arXiv:1711.08393, section 3.2).

    It may have a third head, `answer`, over the same features: class logits, by which it answers images that it is
    sure of.

    Args:
        features: float images (N, C, H, W) to float features (N, feature_dim). If it looks through modules of the
            network to be decided on, its attribute `borrowed` lists them.
        feature_dim: width of the features.
        num_blocks: K, the number of decisions.
        input_pool: average-pool the image by this factor before `features`; 2 makes the network about four
            times cheaper.
        threshold: its operating point: a block runs where its keep probability is at least this.
        num_answers: classes of the answer head; None: there is none.

    Attributes:
        answer_threshold: an image is answered where its largest probability is at least this; at first none is.
        answer_weight: of the answer's log-probabilities beside the logits of other images; at first 0.

    >>> network = PolicyNetwork(nn.Flatten(), feature_dim=3 * 2 * 2, num_blocks=5, input_pool=4)
    >>> keep_probs, value = network(torch.zeros(7, 3, 8, 8))
    >>> keep_probs.shape, value.shape
    (torch.Size([7, 5]), torch.Size([7, 1]))
    """

    def __init__(
        self,
        features: nn.Module,
        feature_dim: int,
        num_blocks: int,
        input_pool: int = 1,
        threshold: float = DEFAULT_THRESHOLD,
        num_answers: int | None = None,
    ):
        super().__init__()
        self.threshold = threshold
        self.features = features
        self.logit = nn.Linear(feature_dim, num_blocks)
        self.vnet = nn.Linear(feature_dim, 1)
        self.input_pool = input_pool
        self.answer: nn.Linear | None = None
        self.answer_weight: nn.Parameter | None = None
        self.answer_threshold = NEVER
        if num_answers is not None:
            self.add_answer(num_answers)

    def add_answer(self, num_classes: int) -> None:
        """Gives it an answer head with fresh weights, in place of one that it has; it answers nothing yet."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.answer = nn.Linear(self.logit.in_features, num_classes).to(self.logit.bias)
        self.answer_weight = nn.Parameter(torch.zeros_like(self.logit.bias[0]))
        self.answer_threshold = NEVER

    def remove_answer(self) -> None:
        """Takes the answer head away, if it has one."""
        self.answer, self.answer_weight, self.answer_threshold = None, None, NEVER

    @property
    def num_answers(self) -> int | None:
        """Classes of the answer head; None: there is none."""
        return None if self.answer is None else self.answer.out_features

    @property
    def num_blocks(self) -> int:
        """K, the number of blocks that it decides on."""
        return self.logit.out_features

    @property
    def borrowed(self) -> tuple[nn.Module, ...]:
        """The modules that it shares with the network to be decided on, and that its training must not change."""
        return tuple(getattr(self.features, "borrowed", ()))

    def own_parameters(self) -> list[nn.Parameter]:
        """What an optimiser may train: all parameters but the borrowed modules'."""
        theirs = {id(parameter) for module in self.borrowed for parameter in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in theirs]

    def look(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) to the features (N, feature_dim) that both heads see."""
        if self.input_pool > 1:
            images = F.avg_pool2d(images, self.input_pool)
        return self.features(images)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (N, C, H, W) to the keep probabilities' logits (N, K), float32, and values (N, 1)."""
        features = self.look(images)
        return self.logit(features).float(), self.vnet(features)

    def policy(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) to bool (N, K): the blocks that run at the network's own threshold, for images that
        aren't answered."""
        return map_policy(self(images)[0], self.threshold)

    def glance(self, images: Tensor) -> Glance:
        """images (N, C, H, W) to all that the network says of them."""
        features = self.look(images)
        answer = None if self.answer is None else self.answer(features).float().log_softmax(-1)
        return Glance(torch.sigmoid(self.logit(features).float()), self.vnet(features), answer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (N, C, H, W) to keep probabilities (N, K) in (0, 1), float32, and values (N, 1)."""
        logits, values = self.logits(images)
        return torch.sigmoid(logits), values
