"""Residual networks whose blocks can be dropped per image.

ResNets: He et al. 2016, arXiv:1512.03385. Dropping blocks per image: Wu et al. 2018 (BlockDrop),
arXiv:1711.08393.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor, nn

from blockdrop.models.backbone import (
    Backbone,
    BranchMaker,
    PadShortcut,
    backbone_parts,
    basic_branch,
    bottleneck_branch,
    conv2d,
    initialise,
)
from blockdrop.models.droppable import Droppable
from blockdrop.names import Shortcut


class DroppableResNet(Droppable, Backbone):
    """A ResNet that runs, for each image, the blocks its policy keeps.

    A kept block computes y = relu(shortcut(x) + F(x)); a dropped one y = shortcut(x): the identity within a stage,
    the downsampling shortcut (and no ReLU after it) at a stage's first block. Arguments as for `Backbone`.
    """

    def kept(self, branch: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
        """relu(shortcut + F(x))."""
        return self.close(shortcut + branch(x))


def make_shortcut(in_channels: int, out_channels: int, stride: int, kind: Shortcut) -> nn.Module:
    """The first shortcut of a stage: identity where shapes agree, else of the kind asked for."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if kind == "projection":
        return nn.Sequential(conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    return PadShortcut(in_channels, out_channels, stride, kind)


def make_resnet(
    layers: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    shortcut: Shortcut,
    *,
    bottleneck: bool = False,
    large_images: bool = False,
    branch: BranchMaker | None = None,
    relu_after_sum: bool = True,
) -> DroppableResNet:
    """A `DroppableResNet` with fresh weights (He initialisation, fan out).

    Args:
        layers: blocks per stage. Every stage but the first halves the map.
        widths: channels per stage (of the inner convolutions if `bottleneck`).
        large_images: stem of a 7×7 convolution of stride 2 and max-pooling (224 px) instead of a 3×3
            convolution (32 px).
        branch: (input channels, width, stride) to a branch of as many output channels as the usual one.
    """
    branch = branch or (bottleneck_branch if bottleneck else basic_branch)
    ds = functools.partial(make_shortcut, kind=shortcut)
    parts = backbone_parts(layers, widths, num_classes, branch, ds, 4 if bottleneck else 1, large_images)
    return initialise(DroppableResNet(**parts, shortcut=shortcut, relu_after_sum=relu_after_sum))
