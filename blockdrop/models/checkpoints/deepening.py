"""A deeper ResNet from the weights of a shallower one: it starts with the same logits.

T. Chen, I. Goodfellow, J. Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016. A residual
block is the identity as soon as the scale of its last BatchNorm is 0, so no weights need to be found for it
(P. Goyal et al., "Accurate, Large Minibatch SGD", 2017, start all blocks so).
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.dialects import Checkpoint, State, stage_sizes
from blockdrop.models.checkpoints.filling import describe_depth
from blockdrop.models.specs import ModelSpec
from blockdrop.models.zoo import build_backbone


def deepened(checkpoint: Checkpoint, spec: ModelSpec, seed: int = 0) -> Checkpoint:
    """The checkpoint of a shallower ResNet as one of a deeper, with the same logits.

    The blocks of each stage are spread evenly over the deeper one's; the new blocks between them have fresh
    convolutions and start as identities.

    Args:
        checkpoint: of a backbone.
        spec: the deeper network, of the same kind of blocks.
        seed: of the fresh convolutions.
    Raises:
        CheckpointError: no shallower ResNet of the same kind of blocks.
    """
    path, state = checkpoint.path, checkpoint.resnet
    if state is None:
        raise CheckpointError(f"{path}: holds a policy network but no backbone")
    family = "R" if checkpoint.architecture is None else checkpoint.architecture.rstrip("0123456789")
    have, bottleneck = stage_sizes(state), "blocks.0.0.conv3.weight" in state
    if checkpoint.origin is not None or family not in ("R", "resnet") or spec.family not in ("R", "resnet"):
        held = checkpoint.model or checkpoint.architecture
        raise CheckpointError(f"{path}: holds {held}, the model is {spec.name}; only ResNets of ours deepen")
    deeper = len(have) == len(spec.layers) and all(a <= b for a, b in zip(have, spec.layers, strict=True))
    if not deeper or have == spec.layers or bottleneck != spec.bottleneck:
        raise CheckpointError(
            f"{path}: holds a {describe_depth(have, bottleneck)}, which can't become a deeper "
            f"{describe_depth(spec.layers, spec.bottleneck)}: it needs fewer blocks, of the same kind"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_backbone(spec, checkpoint.num_classes, checkpoint.shortcut, checkpoint.variant)
    last = "bn3" if bottleneck else "bn2"
    grown: State = {
        key: torch.zeros_like(value) if key.endswith(f".{last}.weight") else value
        for key, value in fresh.state_dict().items()
    }
    for key, value in state.items():
        grown[_moved(key, have, spec.layers)] = value
    return replace(
        checkpoint, resnet=grown, model=spec.name, policy_network=None, operating_point=None, metrics={}
    )


def _moved(key: str, have: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """A weight's name in the deeper network."""
    match = re.match(r"blocks\.(\d+)\.(\d+)\.(.*)", key)
    if match is None:
        return key
    stage, block = int(match[1]), int(match[2])
    return f"blocks.{stage}.{block * wanted[stage] // have[stage]}.{match[3]}"
