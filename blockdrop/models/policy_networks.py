"""Policy networks by name: what looks at an image, and how closely, before blocks are kept or dropped."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Backbone, Branch, Network, NoShortcut, conv2d, initialise
from blockdrop.models.parts import DroppableParts
from blockdrop.models.resnet import make_resnet
from blockdrop.names import POLICY_NETS

INPUT_POOLS: dict[str, int] = {"reference": 1, "pooled": 2, "pooled4": 4}


class Standardise(nn.BatchNorm1d):
    """Features (N, D) with mean 0 and variance 1 over the images: what a head on them has in common for all images
    lies in its bias alone, and however fast that moves, images stay apart.

    A single image is standardised by the running statistics in training, too.
    """

    def __init__(self, width: int):
        super().__init__(width, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to (N, D)."""
        if self.training and len(features) == 1:
            return F.batch_norm(features, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(features)

    def fold_into(self, head: nn.Linear) -> None:
        """Changes a head so that it gives for plain features what it gives for those standardised here."""
        assert self.running_mean is not None
        assert self.running_var is not None
        head.weight.data = head.weight / (self.running_var + self.eps).sqrt()
        head.bias.data = head.bias - head.weight @ self.running_mean


class StemFeatures(nn.Module):
    """Features of the output of another network's stem, for C channels of which there are 4 C features.

    The stem's output is average-pooled and goes through two convolutions of width 3 (to 2 C channels; to 4 C, with
    stride 2), each with BatchNorm and ReLU, and a global average; then features are standardised. The stem's
    modules are the network's own, shared and not copied, and training these features changes nothing of them: no
    gradient reaches them, in every mode they work as in eval mode, and `train()` leaves their mode alone (`eval()`
    goes for all).
    """

    standardise: nn.Module

    @property
    def borrowed(self) -> tuple[nn.Module, ...]:
        """The other network's modules."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but `train()` leaves the borrowed modules' mode alone."""
        theirs = [(part, part.training) for module in self.borrowed for part in module.modules()]
        super().train(mode)
        if mode:
            for part, training in theirs:
                part.training = training
        return self

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """No gradient, and the borrowed modules as in eval mode: keep probabilities are the same in training."""
        modes = [part for module in self.borrowed for part in module.modules() if part.training]
        for part in modes:
            part.training = False
        try:
            with torch.no_grad():
                yield
        finally:
            for part in modes:
                part.training = True


class BackboneStemFeatures(StemFeatures, Backbone):
    """Those of a `Backbone`'s stem; themselves one, so that they run as fast.

    Args:
        backbone: whose `conv1`, `bn1` and `maxpool` are shared.
        pool: the factor of the average-pooling.
    """

    def __init__(self, backbone: Backbone, pool: int):
        convs = [layer for layer in backbone.conv1.modules() if isinstance(layer, nn.Conv2d)]
        channels = convs[-1].out_channels
        pools = nn.Sequential(backbone.maxpool, nn.AvgPool2d(pool))
        blocks = [[_branch(channels)]]
        super().__init__(
            backbone.conv1, backbone.bn1, pools, blocks, [NoShortcut()], fc=nn.Identity(), shortcut=None
        )
        self.feature_dim = 4 * channels
        self.standardise = Standardise(self.feature_dim)

    @property
    def borrowed(self) -> tuple[nn.Module, ...]:
        """The backbone's modules."""
        return self.conv1, self.bn1, self.get_submodule("maxpool.0")

    def stem(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to the pooled map (N, C, H', W'), without a gradient."""
        with self._looking():
            return super().stem(images)

    def head(self, x: Tensor) -> Tensor:
        """Last feature map (N, 4 C, H, W) to standardised features (N, 4 C)."""
        return self.standardise(super().head(x))


class PartsStemFeatures(StemFeatures):
    """Those of the stem of a network that is given by its parts: of maps (N, C, H, W) or (N, H, W, C); of tokens
    (N, T, C), pooled and convolved along T.

    Args:
        network: whose stem is shared.
        pool: the factor of the average-pooling; less where a map is smaller.
    Raises:
        BlockdropError: the shape of the stem's output isn't known, or is another.
    """

    def __init__(self, network: DroppableParts, pool: int):
        super().__init__()
        shape = network.stem_shape
        if shape is None or len(shape) not in (2, 3):
            raise BlockdropError(
                f"policy network stem: looks at a map (C, H, W) or tokens (T, C), not at a shape {shape}; choose "
                'policy_net="pooled"'
            )
        *sides, channels = shape
        # Only channels differ from both sides of a map, which is square.
        self.channels_last = len(shape) == 2 or (shape[0] == shape[1] != shape[2])
        if not self.channels_last:
            channels, *sides = shape
        self.stem_part = network.stem_part
        pool = min(pool, *sides)
        self.pool: nn.Module = nn.AvgPool1d(pool) if len(shape) == 2 else nn.AvgPool2d(pool)
        self.branch = _branch(channels, tokens=len(shape) == 2)
        self.feature_dim = 4 * channels
        self.standardise = Standardise(self.feature_dim)

    @property
    def borrowed(self) -> tuple[nn.Module, ...]:
        """The network's stem."""
        return (self.stem_part,)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to standardised features (N, 4 C)."""
        with self._looking():
            x = self.stem_part(images)
            x = self.pool(x.movedim(-1, 1) if self.channels_last else x)
        x = F.relu(self.branch(x))
        return self.standardise(x.flatten(2).mean(2))


def _branch(channels: int, tokens: bool = False) -> nn.Module:
    if not tokens:
        return initialise(
            Branch(
                [conv2d(channels, 2 * channels, 3), conv2d(2 * channels, 4 * channels, 3, stride=2)],
                [nn.BatchNorm2d(2 * channels), nn.BatchNorm2d(4 * channels)],
            )
        )
    return Branch(
        [
            nn.Conv1d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.Conv1d(2 * channels, 4 * channels, 3, stride=2, padding=1, bias=False),
        ],
        [nn.BatchNorm1d(2 * channels), nn.BatchNorm1d(4 * channels)],
    )


class NoFeatures(nn.Module):
    """Features of width 0: of the linear heads on them only the biases remain, and nothing is multiplied."""

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) to (N, 0)."""
        return images.new_zeros(len(images), 0)


def build_policy_network(
    num_blocks: int,
    large_images: bool = False,
    policy_net: str = "reference",
    *,
    backbone: Network | None = None,
    initial_keep: float | None = None,
) -> PolicyNetwork:
    """A policy network for K blocks, with fresh weights.

    Args:
        policy_net: see `PolicyNet`.
        backbone: the network that it decides on; "stem" shares its stem.
        initial_keep: keep probability that every image starts from: the logits' bias is set to its logit, their
            weights to zero.
    Raises:
        BlockdropError: unknown name, an initial keep probability outside (0, 1).
        BlockdropError: "stem" without a backbone.
    """
    if policy_net not in POLICY_NETS:
        raise BlockdropError(f"unknown policy network {policy_net}; choose {', '.join(POLICY_NETS)}")
    if initial_keep is not None and not 0 < initial_keep < 1:
        raise BlockdropError(f"initial keep probability {initial_keep}: must be above 0 and below 1")
    if policy_net == "stem":
        if backbone is None:
            raise BlockdropError("policy network stem: looks through a backbone's stem; pass backbone=")
        pool = 7 if large_images else 4  # 56 × 56 or 32 × 32 to 8 × 8
        stem: BackboneStemFeatures | PartsStemFeatures
        if isinstance(backbone, DroppableParts):
            stem = PartsStemFeatures(backbone, pool)
        else:
            assert isinstance(backbone, Backbone)
            stem = BackboneStemFeatures(backbone, pool)
        network = PolicyNetwork(stem, stem.feature_dim, num_blocks)
    elif policy_net == "constant":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            network = PolicyNetwork(NoFeatures(), 0, num_blocks)
    else:
        network = _with_own_trunk(num_blocks, large_images, INPUT_POOLS[policy_net])
    if initial_keep is not None:
        nn.init.zeros_(network.logit.weight)
        nn.init.constant_(network.logit.bias, math.log(initial_keep / (1 - initial_keep)))
    return network


def _with_own_trunk(num_blocks: int, large_images: bool, pool: int) -> PolicyNetwork:
    """The reference's, its input pooled by `pool` beyond the reference's pooling."""
    if large_images:
        trunk = make_resnet((1, 1, 1, 1), (64, 128, 256, 512), 1, "projection", large_images=True)
        pool *= 2
    else:
        trunk = make_resnet((1, 1, 1), (16, 32, 64), 1, "pad_avgpool")
    head = trunk.fc
    assert isinstance(head, nn.Linear)
    trunk.fc = nn.Identity()
    return PolicyNetwork(trunk, head.in_features, num_blocks, input_pool=pool)


def name_of(policy_network: PolicyNetwork, large_images: bool) -> str | None:
    """The name by which `build_policy_network` makes such a network, to go by its input's pooling and whether its
    features are of a kind of ours; None if there is none."""
    if isinstance(policy_network.features, StemFeatures):
        return "stem"
    if isinstance(policy_network.features, NoFeatures):
        return "constant"
    pools = {pool * (2 if large_images else 1): name for name, pool in INPUT_POOLS.items()}
    return pools.get(policy_network.input_pool)


def folded_policy_network(policy_network: PolicyNetwork) -> PolicyNetwork:
    """A copy for inference with BatchNorm folded into the trunk's convolutions and the heads; same keep
    probabilities and answers."""
    network = copy.deepcopy(policy_network).eval().requires_grad_(False)
    if isinstance(network.features, Backbone):
        network.features = network.features.folded()
    if isinstance(network.features, StemFeatures) and isinstance(network.features.standardise, Standardise):
        for head in (network.logit, network.vnet, network.answer):
            if head is not None:
                network.features.standardise.fold_into(head)
        network.features.standardise = nn.Identity()
    return network
