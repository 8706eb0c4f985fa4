"""Networks filled from checkpoints, all or nothing, and built from what checkpoints say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.policy_network import PolicyNetwork
from blockdrop.errors import CheckpointError
from blockdrop.models.backbone import Backbone, Network
from blockdrop.models.checkpoints.dialects import FORMAT, Checkpoint, State, read_checkpoint, stage_sizes
from blockdrop.models.policy_networks import name_of
from blockdrop.models.specs import CIFAR_DEPTHS, IMAGENET_LAYERS, ModelSpec, Variant, parse_model_name
from blockdrop.models.zoo import build_backbone, family_of
from blockdrop.names import Shortcut


def load_checkpoint(
    path: str | Path | Checkpoint,
    resnet: Backbone | None = None,
    policy_network: PolicyNetwork | None = None,
    ignore_head: bool = False,
) -> Checkpoint:
    """Loads a checkpoint of any dialect into either or both networks, all or nothing.

    Args:
        path: file, run directory, or a checkpoint already read.
        resnet: filled from the backbone weights. Its shortcut kind must be the checkpoint's: zero-padding
            shortcuts have no weights, so only this check notices the wrong kind.
        policy_network: filled from the policy network's weights, but for what it shares with a backbone: that must
            have been loaded before, or come in the same call. It gets the file's operating point as its
            thresholds, and an answer head if, and only if, the file's has one.
        ignore_head: leave `resnet.fc` as it is (fine-tuning for other classes).
    Returns:
        what else the checkpoint says: model name, normalisation, epoch, metrics, ….
    Raises:
        CheckpointError: unreadable, the part asked for isn't in it, or another architecture.
    """
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    filled: list[tuple[nn.Module, State]] = []
    if resnet is not None:
        filled.append((resnet, _backbone_state(checkpoint, resnet, ignore_head)))
    if policy_network is not None:
        before = policy_network.answer, policy_network.answer_weight, policy_network.answer_threshold
        try:
            _fit_answer(checkpoint, policy_network)
            filled.append((policy_network, _policy_state(checkpoint, policy_network, filled)))
        except CheckpointError:
            policy_network.answer, policy_network.answer_weight, policy_network.answer_threshold = before
            raise
    for module, state in filled:
        module.load_state_dict(state)
    if policy_network is not None:
        policy_network.threshold = checkpoint.threshold
        policy_network.answer_threshold = checkpoint.answer_threshold
    return checkpoint


def network_from(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    variant: Variant | None = None,
    new_head: bool = False,
) -> Backbone:
    """Builds the network that a model name stands for and fills it from a checkpoint of any dialect.

    Args:
        num_classes, shortcut, variant: default: the checkpoint's. A kind of zero padding overrules the one that
            was only inferred from another dialect.
        new_head: leave the classifier head fresh.
    Raises:
        CheckpointError: no backbone in it, or another network's.
        BlockdropError: see `build_backbone`.
    """
    if checkpoint.resnet is None:
        raise CheckpointError(f"{checkpoint.path}: holds a policy network but no backbone")
    check_family(checkpoint, spec.family)
    num_classes, shortcut = num_classes or checkpoint.num_classes, shortcut or checkpoint.shortcut
    variant = checkpoint.variant if variant is None else variant
    if checkpoint.dialect != FORMAT and "projection" not in (shortcut, checkpoint.shortcut):
        checkpoint = replace(checkpoint, shortcut=shortcut)
    with torch.device("meta"):  # without memory: what the file describes may be far larger than what it holds
        described = build_backbone(spec, num_classes, shortcut, variant)
    _backbone_state(checkpoint, described, new_head)
    network = build_backbone(spec, num_classes, shortcut, variant)
    load_checkpoint(checkpoint, resnet=network, ignore_head=new_head)
    return network


def load_network(path: str | Path) -> tuple[Backbone, Checkpoint]:
    """The backbone of a checkpoint of ours, whichever architecture it records, in eval mode; and the checkpoint.

    Raises:
        CheckpointError: unreadable, no backbone in it, or another dialect, which doesn't record the architecture
            (`build` and `load_checkpoint` read those).
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.model is None or checkpoint.resnet is None:
        raise CheckpointError(
            f"{checkpoint.path}: doesn't say which network it holds; use build and load_checkpoint"
        )
    if checkpoint.origin is not None:
        raise CheckpointError(f"{checkpoint.path}: holds {checkpoint.model}, which blockdrop.load reads")
    return network_from(checkpoint, parse_model_name(checkpoint.model)).eval(), checkpoint


def load_policy_trunk(path: str | Path, policy_network: PolicyNetwork) -> None:
    """Starts a policy network's trunk from a backbone's weights: the first block of each stage.

    For 224 px the reference starts from an ImageNet ResNet-18.

    Raises:
        CheckpointError: unreadable, no backbone in it, or widths that don't fit.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.resnet is None:
        raise CheckpointError(f"{checkpoint.path}: holds no backbone to start the policy network's trunk from")
    wanted = policy_network.features.state_dict()
    if policy_network.borrowed or not wanted:
        raise CheckpointError(
            f"{checkpoint.path}: this kind of policy network has no trunk to start from a backbone; "
            "reference, pooled and pooled4 have one"
        )
    state = {key: value for key, value in checkpoint.resnet.items() if key in wanted}
    policy_network.features.load_state_dict(_complete(checkpoint.path, state, policy_network.features))


def describe_depth(stage_sizes: tuple[int, ...], bottleneck: bool) -> str:
    """A name for a network of so many blocks a stage, such as "ResNet-32 (15 blocks)"."""
    blocks = f"{sum(stage_sizes)} blocks"
    depth = 2 + sum(stage_sizes) * (3 if bottleneck else 2)
    if len(stage_sizes) == 3 and not bottleneck and depth in CIFAR_DEPTHS:
        return f"ResNet-{depth} ({blocks})"
    if IMAGENET_LAYERS.get(depth) == stage_sizes:
        return f"ResNet-{depth} ({blocks})"
    return f"ResNet of {'+'.join(map(str, stage_sizes))} blocks"


def check_family(checkpoint: Checkpoint, family: str) -> None:
    """Raises `CheckpointError` unless the backbone is of this family (see `FAMILIES`).

    Networks of several families have weights of the same names and shapes, so nothing else would notice a mix-up.
    """
    wanted = "resnet" if family == "R" else family
    held = checkpoint.family or "resnet"
    if checkpoint.model is not None:
        held = parse_model_name(checkpoint.model).family
    if wanted != ("resnet" if held == "R" else held):
        name = checkpoint.architecture or ("a shift net" if held == "shiftresnet" else "a ResNet")
        mend = f"pass --arch {name}" if checkpoint.architecture else "change --arch"
        raise CheckpointError(f"{checkpoint.path}: holds {name}, the model is of the {wanted} family; {mend}")


def fill_brought(checkpoint: Checkpoint, network: Network, ignore_head: bool = False) -> None:
    """Fills a network that isn't the zoo's, all or nothing.

    Args:
        ignore_head: leave the head's weights as they are.
    Raises:
        CheckpointError: no network in the file, or another one.
    """
    if checkpoint.resnet is None:
        raise CheckpointError(f"{checkpoint.path}: holds a policy network but no backbone")
    state = dict(checkpoint.resnet)
    if ignore_head:
        state |= {key: value for key, value in network.state_dict().items() if key.startswith(HEADS)}
    network.load_state_dict(_complete(checkpoint.path, state, network))


HEADS = ("fc.", "head_part.")
"""What the names of a head's weights begin with."""


def _check_same_network(path: str, state: State, resnet: Backbone) -> None:
    def name(weights: Mapping[str, Any]) -> str:
        return describe_depth(stage_sizes(weights), "blocks.0.0.conv3.weight" in weights)

    wanted = resnet.state_dict()
    if name(state) != name(wanted):
        raise CheckpointError(f"{path}: holds a {name(state)}, the model is a {name(wanted)}; change --model")
    if (kind := _wider_kind(state)) is not None and kind != _wider_kind(wanted):
        raise CheckpointError(f"{path}: holds a {kind}")
    have, want = state.get("fc.weight"), wanted.get("fc.weight")
    if have is not None and want is not None and have.dim() == want.dim() and len(have) != len(want):
        raise CheckpointError(f"{path}: made for {len(have)} classes, the model has {len(want)}")


TORCHVISION_WIDTHS = {(128, 4): "resnext{}_32x4d", (256, 8): "resnext{}_32x8d", (256, 4): "resnext{}_64x4d"}
"""ResNeXts by the width of their first block and of each of its groups."""


def _wider_kind(state: Mapping[str, Any]) -> str | None:
    """What a network of unusual widths is, and how it can be opened; None of a usual one."""
    first, second = state.get("blocks.0.0.conv1.weight"), state.get("blocks.0.0.conv2.weight")
    stem = state.get("conv1.weight")
    if first is None or second is None or stem is None or {first.dim(), second.dim(), stem.dim()} != {4}:
        return None
    sizes, width, in_group = stage_sizes(state), len(first), second.shape[1]
    if "blocks.0.0.conv3.weight" in state:
        if (width, in_group) == (64, 64) or sizes not in IMAGENET_LAYERS.values():
            return None
        depth = 2 + 3 * sum(sizes)
        name = f"wide_resnet{depth}_2" if (width, in_group) == (128, 128) else None
        name = TORCHVISION_WIDTHS.get((width, in_group), "").format(depth) if name is None else name
        kind = f"ResNet of {width // in_group} groups of {in_group} channels"
        mend = f"pass --model torchvision:{name}" if name else "hand the module to blockdrop.make_dynamic"
        return f"{kind}; {mend}"
    usual = 16 if len(sizes) == 3 else 64
    if width <= usual or len(second) != width or first.shape[-1] == 1:
        return None
    factor = f"{width / usual:g} times as wide as usual"
    return f"{describe_depth(sizes, False)} that is {factor}; hand the module to blockdrop.make_dynamic"


def _backbone_state(checkpoint: Checkpoint, resnet: Backbone, ignore_head: bool) -> State:
    """What fills the backbone, checked against it."""
    if checkpoint.resnet is None:
        raise CheckpointError(f"{checkpoint.path}: holds a policy network but no backbone")
    check_family(checkpoint, family_of(resnet))
    if checkpoint.shortcut != resnet.shortcut:
        raise CheckpointError(
            f"{checkpoint.path}: its shortcuts are of kind {checkpoint.shortcut}, the model's are "
            f"{resnet.shortcut}; shortcut={checkpoint.shortcut} is needed"
        )
    state = dict(checkpoint.resnet)
    if ignore_head:
        state |= {f"fc.{key}": value for key, value in resnet.fc.state_dict().items()}
    _check_same_network(checkpoint.path, state, resnet)
    return _complete(checkpoint.path, state, resnet)


def _policy_state(
    checkpoint: Checkpoint, policy_network: PolicyNetwork, others: list[tuple[nn.Module, State]]
) -> State:
    """What fills the policy network, checked against it and against the modules about to be filled."""
    if checkpoint.policy_network is None:
        raise CheckpointError(f"{checkpoint.path}: holds a backbone but no policy network")
    _check_policy_network(checkpoint, checkpoint.policy_network, policy_network)
    unchanged = {  # of stem policy networks from before their features were standardised
        key: torch.full_like(value, key.endswith("var"))
        for key, value in policy_network.state_dict().items()
        if key.startswith("features.standardise.running_")
    }
    state = _complete(checkpoint.path, unchanged | checkpoint.policy_network, policy_network)
    return _with_borrowed(checkpoint.path, state, policy_network, others)


def _fit_answer(checkpoint: Checkpoint, policy_network: PolicyNetwork) -> None:
    """Gives the policy network an answer head as wide as the file's, or takes it away."""
    head = (checkpoint.policy_network or {}).get("answer.weight")
    if head is None or head.dim() != 2:
        policy_network.remove_answer()
    elif policy_network.num_answers != len(head):
        policy_network.add_answer(len(head))


def _check_policy_network(checkpoint: Checkpoint, state: State, policy_network: PolicyNetwork) -> None:
    large_images = checkpoint.large_images
    kind = None if large_images is None else name_of(policy_network, large_images)
    # pooling has no weights, so only this check notices another kind
    if large_images is not None and checkpoint.policy_net != kind:
        raise CheckpointError(
            f"{checkpoint.path}: its policy network is {checkpoint.policy_net}; "
            f"policy_net={checkpoint.policy_net} is needed, or blockdrop.load, which makes both networks"
        )
    logit = state.get("logit.weight")
    if logit is not None and logit.dim() == 2 and len(logit) != policy_network.num_blocks:
        raise CheckpointError(
            f"{checkpoint.path}: its policy network decides on {len(logit)} blocks, the model has "
            f"{policy_network.num_blocks}; change --model"
        )


def _with_borrowed(
    path: str, state: State, policy_network: PolicyNetwork, others: list[tuple[nn.Module, State]]
) -> State:
    """A policy network's state with the live tensors of the modules it borrows in place of their saved copies, so
    that loading it leaves them alone.

    Args:
        others: modules about to be filled, each with its state.
    Raises:
        CheckpointError: they aren't, or won't be, what the policy network was trained with.
    """
    borrowed = {id(tensor) for part in policy_network.borrowed for tensor in _live_state(part).values()}
    coming = {id(tensor): values[key] for module, values in others for key, tensor in _live_state(module).items()}
    live = {key: tensor for key, tensor in _live_state(policy_network).items() if id(tensor) in borrowed}
    for key, tensor in live.items():
        expected = coming.get(id(tensor), tensor).detach()
        if tensor.is_floating_point() and not state[key].to(expected).equal(expected):
            raise CheckpointError(
                f"{path}: its policy network was trained with the stem of another backbone than this one; load "
                "its own backbone before it, or with it"
            )
    return {**state, **live}


def _live_state(module: nn.Module) -> State:
    """The parameters and buffers themselves, by name."""
    return module.state_dict(keep_vars=True)


def _complete(path: str, state: State, module: nn.Module) -> State:
    """The state with BatchNorm's step counters added where an old file lacks them, checked against the module."""
    wanted = module.state_dict()
    state = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")} | state
    for key, value in wanted.items():
        if key not in state:
            raise CheckpointError(f"{path}: {key} is missing; another architecture, or an incomplete file")
        if state[key].is_floating_point() != value.is_floating_point():
            raise CheckpointError(f"{path}: {key} is {state[key].dtype}, the model wants {value.dtype}")
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, the model wants {tuple(value.shape)}"
            )
    extra = [key for key in state if key not in wanted]
    if extra:
        raise CheckpointError(f"{path}: {extra[0]} has no place in the model; another architecture")
    return state
