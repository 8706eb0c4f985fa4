"""Our dialect, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.data.sets import Normalisation, Preprocessing
from blockdrop.errors import CheckpointError, NumericalError
from blockdrop.models.backbone import Backbone, Network
from blockdrop.models.checkpoints.dialects import FORMAT, State, check_origin
from blockdrop.models.checkpoints.operating_points import check_operating_point
from blockdrop.models.checkpoints.safetensors_files import PARTS, encode_metadata, write_safetensors_file
from blockdrop.models.checkpoints.safetensors_files import SUFFIX as SAFETENSORS
from blockdrop.models.specs import Variant, parse_model_name
from blockdrop.models.zoo import build_backbone, family_of
from blockdrop.output import write_whole
from blockdrop.version import project_version


def save_checkpoint(
    path: str | Path,
    *,
    model: str,
    variant: Variant = Variant(),
    resnet: Network,
    normalisation: Normalisation,
    policy_network: PolicyNetwork | None = None,
    policy_net: str = "reference",
    classes: list[str] | None = None,
    epoch: int = 0,
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    operating_point: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    origin: Mapping[str, Any] | None = None,
    outputs: int | None = None,
) -> None:
    """Writes our dialect, atomically: the file appears whole or not at all.

    Keys `agent`, `resnet`, `epoch`, `acc` and `reward` are where the BlockDrop reference looks for them.

    Args:
        path: of the safetensors format if it ends in `.safetensors`, else of torch's.
        model, variant: what `build` or `build_static` make the network from; with an origin just its name.
        preprocessing: what the network wants, if that isn't usual for its size and `normalisation`.
        origin: of a network that isn't the zoo's: plain values that say how its parts were found.
        outputs: width of the logits.
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
    if origin is None:
        assert isinstance(resnet, Backbone), "others have an origin"
        check_description(model, variant, resnet)
    metrics = dict(metrics or {})
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": project_version(),
        "model": model,
        "variant": variant.numbers(),
        "shortcut": resnet.shortcut,
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        "classes": classes,
        "outputs": outputs,
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
    if preprocessing is not None:
        content["preprocessing"] = preprocessing_record(preprocessing)
    if origin is not None:
        content["origin"] = check_origin(origin)
    try:
        if Path(path).suffix == SAFETENSORS:
            _save_safetensors(Path(path), content)
        else:
            write_whole(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: can't write the checkpoint ({reason})") from None


def preprocessing_record(preprocessing: Preprocessing) -> dict[str, Any]:
    """As files hold it, beside the normalisation."""
    return {
        "image_size": preprocessing.image_size,
        "resize": preprocessing.resize,
        "interpolation": preprocessing.interpolation,
    }


def _save_safetensors(path: Path, content: Mapping[str, Any]) -> None:
    tensors = {
        f"{part}.{key}": value.clone()  # safetensors refuses what is shared
        for part, name in PARTS.items()
        for key, value in (content.get(name) or {}).items()
    }
    facts = {key: value for key, value in content.items() if key not in (*PARTS.values(), "config")}
    write_safetensors_file(path, tensors, encode_metadata(facts))


def check_description(model: str, variant: Variant, resnet: Backbone) -> None:
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
