"""torchvision's and timm's ResNets as `DroppableResNet`s, told by the names of their parts: timm isn't needed."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeVar

from torch import nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Branch, EndedBranch, Network
from blockdrop.models.resnet import DroppableResNet

AnyNetwork = TypeVar("AnyNetwork", bound=Network)


class _Layout(NamedTuple):
    """How a library names what its ResNets are made of."""

    library: Literal["torchvision", "timm"]
    network: tuple[str, ...]
    """What stands beside layer1, layer2, …: conv1, bn1, activation, maxpool, pooling before the head, fc."""
    block: frozenset[str]
    """What a block may have."""


CONVS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample")
TORCHVISION = _Layout(
    "torchvision", ("conv1", "bn1", "relu", "maxpool", "avgpool", "fc"), frozenset({*CONVS, "relu"})
)
TIMM = _Layout(
    "timm",
    ("conv1", "bn1", "act1", "maxpool", "global_pool", "fc"),
    frozenset({*CONVS, "act1", "act2", "act3", "drop_block", "aa", "se", "drop_path"}),
)


def layout_of(model: nn.Module) -> _Layout | None:
    """Whose ResNet a model looks like; None if it is none."""
    for layout in (TIMM, TORCHVISION):
        if all(hasattr(model, name) for name in (*layout.network, "layer1")):
            return layout
    return None


def from_torchvision(model: Any) -> DroppableResNet:
    """Any torchvision ResNet, ResNeXt or wide ResNet as a `DroppableResNet` with the same logits.

    The modules are copied, so weights, dilation, groups, norm layers and a replaced `fc` come along, and the
    model handed in stays as it is. Nothing is run: `convert` also compares the logits.

    Args:
        model: a `torchvision.models.ResNet` (any depth, width, groups), trained or not.
    Raises:
        BlockdropError: anything that isn't built like one.

    >>> import torchvision
    >>> from_torchvision(torchvision.models.resnext50_32x4d()).num_blocks
    16
    """
    return take_apart(copy.deepcopy(model), TORCHVISION)


def take_apart(model: Any, layout: _Layout) -> DroppableResNet:
    """The `DroppableResNet` of a ResNet's own modules, each in its mode of training.

    Raises:
        BlockdropError: a part that it can't express, by its name.
    """
    missing = [name for name in (*layout.network, "layer1") if not hasattr(model, name)]
    if missing:
        raise BlockdropError(f"{type(model).__name__} has no {missing[0]}; expected a {layout.library} ResNet")
    conv1, bn1, activation, maxpool, pool, fc = layout.network
    stages: list[list[tuple[str, Any]]] = []
    while hasattr(model, name := f"layer{len(stages) + 1}"):
        stages.append([(f"{name}.{i}", block) for i, block in enumerate(getattr(model, name))])
        refuse_hooks(name, getattr(model, name))
    refuse_hooks(type(model).__name__, model)
    _check_relu(activation, getattr(model, activation))
    blocks = [[_branch(name, block, layout) for name, block in stage] for stage in stages]
    ds: list[nn.Module] = []
    for (_, first), *others in stages:
        for name, block in others:
            if block.downsample is not None:
                raise BlockdropError(
                    f"{name}.downsample: only the first block of a stage can have a shortcut of its own"
                )
        ds.append(nn.Identity() if first.downsample is None else first.downsample)
    head = getattr(model, fc)
    if rate := getattr(model, "drop_rate", 0):  # timm's dropout is a function call
        head = nn.Sequential(nn.Dropout(rate), head)
    inner_pool = getattr(getattr(model, pool), "pool", None)
    avgpool = inner_pool if isinstance(inner_pool, nn.AdaptiveAvgPool2d) else getattr(model, pool)
    network = DroppableResNet(
        getattr(model, conv1),
        getattr(model, bn1),
        getattr(model, maxpool),
        blocks,
        ds,
        head,
        shortcut="projection",
        avgpool=avgpool,
    )
    return keep_modes(network, [model], model.training)


def _branch(name: str, block: Any, layout: _Layout) -> Branch:
    refuse_hooks(name, block)
    parts = dict(block.named_children())
    for part in parts:
        if part not in layout.block:
            raise BlockdropError(
                f"{name}.{part} is a {type(parts[part]).__name__}: no block of a {layout.library} ResNet has such "
                "a part"
            )
    for part, module in parts.items():
        if part.startswith(("relu", "act")):
            _check_relu(f"{name}.{part}", module)
    for part in ("drop_block", "aa"):
        if not isinstance(parts.get(part, nn.Identity()), nn.Identity):
            what = type(parts[part]).__name__
            raise BlockdropError(
                f"{name}.{part} is a {what}: a branch can have nothing but ReLUs between convolutions"
            )
    numbers = "123" if "conv3" in parts else "12"
    for kind in ("conv", "bn"):
        for number in numbers:
            if kind + number not in parts:
                raise BlockdropError(f"{name} ({type(block).__name__}) has no {kind}{number}")
    branch = Branch([parts[f"conv{i}"] for i in numbers], [parts[f"bn{i}"] for i in numbers])
    ends = [
        parts[part] for part in ("se", "drop_path") if not isinstance(parts.get(part, nn.Identity()), nn.Identity)
    ]
    return EndedBranch(branch, ends[0] if len(ends) == 1 else nn.Sequential(*ends)) if ends else branch


def _check_relu(name: str, module: nn.Module) -> None:
    if type(module) is not nn.ReLU:
        raise BlockdropError(f"{name} is a {type(module).__name__}: a DroppableResNet has ReLU alone")


def refuse_hooks(name: str, module: nn.Module) -> None:
    """Raises `BlockdropError` for a forward hook of a module that is taken apart."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise BlockdropError(f"{name} has a forward hook, which its conversion would lose; remove the hook before")


def keep_modes(network: AnyNetwork, modules: Iterable[nn.Module], training: bool) -> AnyNetwork:
    """Sets a network made of others' modules to a mode of training; those modules keep theirs."""
    modes = {module: module.training for part in modules for module in part.modules()}
    for module in network.modules():
        module.training = modes.get(module, training)
    return network
