"""Our dialect, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.data.sets import Normalisation
from blockdrop.errors import CheckpointError, NumericalError
from blockdrop.models.backbone import Backbone
from blockdrop.models.checkpoints.dialects import FORMAT, State
from blockdrop.models.checkpoints.operating_points import check_operating_point
from blockdrop.models.specs import Variant, parse_model_name
from blockdrop.models.zoo import build_backbone, family_of
from blockdrop.output import write_whole
from blockdrop.version import project_version


def save_checkpoint(
    path: str | Path,
    *,
    model: str,
    variant: Variant = Variant(),
    resnet: Backbone,
    normalisation: Normalisation,
    policy_network: PolicyNetwork | None = None,
    policy_net: str = "reference",
    classes: list[str] | None = None,
    epoch: int = 0,
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    operating_point: Mapping[str, Any] | None = None,
) -> None:
    """Writes our dialect, atomically: the file appears whole or not at all.

    Keys `agent`, `resnet`, `epoch`, `acc` and `reward` are where the BlockDrop reference looks for them.

    Args:
        model, variant: what `build` or `build_static` make the network from.
        operating_point: see `check_operating_point`.
    Raises:
        ValueError: an operating point that couldn't be read back; a model name and variant of another network.
        NumericalError: a weight isn't finite; nothing is written.
        CheckpointError: it can't be written (full disk, read-only folder).
    """
    for network in (resnet, policy_network):
        for key, value in network.state_dict().items() if network is not None else ():
            if not bool(torch.isfinite(value).all()):
                raise NumericalError(f"{key} is no longer finite after epoch {epoch}; try a smaller --lr")
    _check_description(model, variant, resnet)
    metrics = dict(metrics or {})
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": project_version(),
        "model": model,
        "variant": variant.numbers(),
        "shortcut": resnet.shortcut,
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        "classes": classes,
        "epoch": epoch,
        "metrics": metrics,
        "acc": metrics.get("accuracy", metrics.get("acc")),
        "reward": metrics.get("reward"),
        "config": dict(config or {}),
        "resnet": _contiguous_state(resnet),
    }
    if policy_network is not None:
        content |= {"agent": _contiguous_state(policy_network), "policy_net": policy_net}
    if operating_point is not None:
        content["operating_point"] = check_operating_point(operating_point)
    try:
        write_whole(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: can't write the checkpoint ({str(error).splitlines()[0]})") from None


def _check_description(model: str, variant: Variant, resnet: Backbone) -> None:
    """A file that says another network than it holds could never be read back."""
    spec = parse_model_name(model)
    odd: str | None = "its kind of blocks"
    if family_of(resnet) == ("resnet" if spec.family == "R" else spec.family):
        classes = len(resnet.fc.weight) if isinstance(resnet.fc, nn.Linear) else None
        with torch.device("meta"):
            described = build_backbone(spec, classes, resnet.shortcut, variant).state_dict()
        held = resnet.state_dict()
        odd = next((key for key in described.keys() | held if _shape(described, key) != _shape(held, key)), None)
    if odd is not None:
        raise ValueError(
            f"model {model} (variant: {variant}): describes another network than the one to be saved, which "
            f"differs in {odd}; pass the model name and the Variant that it was built from"
        )


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def _contiguous_state(module: nn.Module) -> State:
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
