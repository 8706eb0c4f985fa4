"""Names to models: `R110_C10` is a CIFAR ResNet-110 with ten classes and its policy network; `plain20_C10` and
`shiftresnet20_C10` are static nets beside it."""

from __future__ import annotations

from typing import Any

from torch import nn

from agents.policy_network import PolicyNetwork
from blockdrop.data.sets import DATASETS
from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Backbone
from blockdrop.models.compact import reduced_branch, reduced_widths
from blockdrop.models.plain import make_exact_plain, make_plain
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.resnet import DroppableResNet, make_resnet
from blockdrop.models.shift import ShiftBranch, make_shift_resnet
from blockdrop.models.specs import ModelSpec, Variant, parse_model_name
from blockdrop.names import SHORTCUTS, ReductionMode, Shortcut


def build_backbone(
    spec: ModelSpec,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    variant: Variant = Variant(),
) -> Backbone:
    """Any network of the zoo, with fresh weights.

    Args:
        spec: from `parse_model_name`.
        num_classes: overrides the data set's (and is needed for `Folder`, which has none of its own).
        shortcut: "pad_avgpool", "pad_stride" or "projection"; default: the family's.
        variant: widths other than usual.
    Raises:
        BlockdropError: class count missing, an unknown shortcut, a shortcut for a family without any, a variant
            that doesn't suit the family.
    """
    classes = num_classes or DATASETS[spec.dataset].num_classes
    if classes is None:
        raise BlockdropError(f"{spec.name}: a Folder has no class count of its own; pass num_classes")
    if shortcut is not None and shortcut not in SHORTCUTS:
        raise BlockdropError(f"unknown shortcut {shortcut}; choose {', '.join(SHORTCUTS)}")
    if shortcut is not None and spec.default_shortcut is None:
        raise BlockdropError(f"shortcut {shortcut}: {spec.architecture} has no shortcuts")
    shortcut = shortcut or spec.default_shortcut
    network = _build_family(spec, classes, shortcut, variant)
    network.image_size, network.built_from = spec.image_size, (spec.name, variant)
    return network


def _build_family(spec: ModelSpec, classes: int, shortcut: Shortcut | None, variant: Variant) -> Backbone:
    if spec.family == "shiftresnet":
        if variant.reduction is not None or variant.reduction_mode is not None:
            given = f"mode {variant.reduction_mode}" if variant.reduction is None else variant.reduction
            raise BlockdropError(
                f"reduction {given}: for ResNets and plain nets; {spec.architecture} takes an expansion"
            )
        assert shortcut is not None
        return make_shift_resnet(spec.layers, spec.widths, classes, variant.expansion or 1.0, shortcut)
    if variant.expansion is not None:
        raise BlockdropError(
            f"expansion {variant.expansion}: for shift nets; {spec.architecture} takes a reduction"
        )
    widths, branch = spec.widths, None
    if variant.reduction is not None or variant.reduction_mode is not None:
        mode, reduction = variant.reduction_mode or "block", variant.reduction or 1.0
        branch = reduced_branch(mode, reduction, spec.bottleneck)
        widths = reduced_widths(widths, reduction) if mode == "net" else widths
    shape: dict[str, Any] = {
        "bottleneck": spec.bottleneck, "large_images": spec.large_images, "branch": branch,
    }  # fmt: skip
    if spec.family == "exactplain":
        return make_exact_plain(spec.layers, widths, classes, **shape)
    if spec.family in ("plain", "dsplain"):
        return make_plain(spec.layers, widths, classes, shortcut, **shape)
    assert shortcut is not None
    linear = variant.reduction_mode == "mobile"  # MobileNetV2's blocks end without a ReLU
    return make_resnet(spec.layers, widths, classes, shortcut, relu_after_sum=not linear, **shape)


def build(
    name: str,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    policy_net: str = "reference",
    variant: Variant = Variant(),
) -> tuple[DroppableResNet, PolicyNetwork]:
    """A ResNet with droppable blocks and its policy network, both with fresh weights.

    Args:
        name: `R<depth>_<dataset>`, for example R110_C10, R101_ImgNet, R32_Digits; or another droppable family's.
        num_classes: overrides the data set's (and is needed for `Folder`, which has none of its own).
        shortcut: "pad_avgpool", "pad_stride" or "projection"; default pad_avgpool for the CIFAR family,
            projection for the ImageNet family, as the reference has it.
        policy_net: "reference", "pooled" (its input average-pooled by 2: a quarter of the FLOPs), "pooled4" (by
            4), "stem" (looks through the ResNet's own stem, which the two share) or "constant" (one policy for
            all images).
        variant: widths other than usual.
    Raises:
        BlockdropError: unknown name, shortcut or policy network; class count missing; a net without shortcuts.

    >>> resnet, policy_network = build("R32_C10")
    >>> resnet.num_blocks, sum(p.numel() for p in resnet.parameters())
    (15, 464154)
    """
    spec = parse_model_name(name)
    resnet = build_backbone(spec, num_classes, shortcut, variant)
    if not isinstance(resnet, DroppableResNet):
        raise BlockdropError(f"{name}: a net without shortcuts has no blocks to drop; build_static makes it")
    return resnet, build_policy_network(resnet.num_blocks, spec.large_images, policy_net, backbone=resnet)


def build_static(
    name: str,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    *,
    expansion: float | None = None,
    reduction: float | None = None,
    reduction_mode: ReductionMode | None = None,
) -> Backbone:
    """Any network of the zoo without a policy network, with fresh weights.

    Args:
        name: `<architecture>_<dataset>`, for example plain20_C10, shiftresnet20_C100, resnet20_C10.
        num_classes, shortcut: as for `build`.
        expansion: of shift nets: inner channels of a block / its output channels.
        reduction, reduction_mode: of ResNets and plain nets: see `Variant`.
    Raises:
        BlockdropError: as `build_backbone`.

    >>> sum(p.numel() for p in build_static("shiftresnet20_C10", expansion=3).parameters())
    95642
    """
    variant = Variant(expansion, reduction, reduction_mode)
    return build_backbone(parse_model_name(name), num_classes, shortcut, variant)


def family_of(net: Backbone) -> str:
    """Which of `FAMILIES` a network is of; resnet for R, too, which has the same blocks."""
    if net.droppable:
        shifts = any(isinstance(branch, ShiftBranch) for branch, _ in net.branches())
        return "shiftresnet" if shifts else "resnet"
    if isinstance(net.bn1, nn.Identity):
        return "exactplain"
    return "plain" if net.shortcut is None else "dsplain"
