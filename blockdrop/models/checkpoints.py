"""Every checkpoint dialect in, one dialect out. A file is data: reading it never runs code from it, and takes
memory in proportion to its size.

Dialects read:
- ours: what `save_checkpoint` writes;
- the BlockDrop reference's `.t7`: `agent` (older: `net`, with stray `features.fc*`), perhaps `resnet`;
- torchvision-style backbones: `layer1.0.conv1.weight`, `fc` or `linear`, perhaps under `state_dict`, perhaps
  prefixed `module.`;
each in torch's zip or pre-1.6 serialisation (`read_torch_file`), or as safetensors.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.data.sets import NORMALISATIONS, Normalisation
from blockdrop.errors import CheckpointError, NumericalError
from blockdrop.models.backbone import Backbone
from blockdrop.models.checkpoint_files import read_torch_file
from blockdrop.models.policy_networks import name_of
from blockdrop.models.safetensors_files import SUFFIX as SAFETENSORS
from blockdrop.models.safetensors_files import read_safetensors_file
from blockdrop.models.specs import CIFAR_DEPTHS, IMAGENET_LAYERS, ModelSpec, Variant, parse_model_name
from blockdrop.models.tensor_pickle import one_line
from blockdrop.models.zoo import build_backbone
from blockdrop.names import DEFAULT_THRESHOLD, POLICY_NETS, SHORTCUTS, Shortcut
from blockdrop.output import write_whole
from blockdrop.version import project_version

FORMAT = "blockdrop"
LONGEST_KEY = 200
State = dict[str, Tensor]


@dataclass
class Checkpoint:
    """What a checkpoint file says, whichever dialect it speaks."""

    path: str
    dialect: str
    """"blockdrop", "reference" or "torchvision"."""
    resnet: State | None
    """Backbone weights under our names, or None."""
    policy_network: State | None
    """Policy network weights, or None."""
    shortcut: Shortcut | None
    """Recorded by our dialect, inferred for others; None without a backbone or without shortcuts."""
    normalisation: Normalisation | None
    """Recorded by our dialect, the dialect's custom for others; None without a backbone."""
    model: str | None = None
    variant: Variant = Variant()
    policy_net: str = "reference"
    classes: list[str] | None = None
    epoch: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    operating_point: dict[str, Any] | None = None
    """The threshold chosen after training, and how: see `check_operating_point`."""

    @property
    def threshold(self) -> float:
        """The operating point's, else the default of MAP policies."""
        return (self.operating_point or {}).get("threshold", DEFAULT_THRESHOLD)

    @property
    def architecture(self) -> str | None:
        """Recorded family and depth, such as plain20; None for other dialects, which know ResNets only."""
        return None if self.model is None else parse_model_name(self.model).architecture

    @property
    def num_classes(self) -> int | None:
        """Outputs of the backbone's head; None without a backbone or with a head that isn't linear."""
        head = (self.resnet or {}).get("fc.weight")
        return None if head is None or head.dim() != 2 else len(head)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint file, or the newest checkpoint of a run directory.

    Raises:
        CheckpointError: missing, damaged, foreign, or a file that would run code.
        UserError: a file of safetensors, which is not installed.
    """
    path = _newest_checkpoint(Path(path))
    safetensors = path.suffix == SAFETENSORS
    content = read_safetensors_file(path, FORMAT) if safetensors else read_torch_file(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint")

    policy_state, resnet_state = content.get("agent"), content.get("resnet")
    if isinstance(net := content.get("net"), Mapping):  # older files of the reference, or others' backbones
        if any("logit." in str(key) for key in net):
            policy_state = net if policy_state is None else policy_state
        else:
            resnet_state = net if resnet_state is None else resnet_state
    bare = content.get("state_dict", content) if policy_state is None and resnet_state is None else None
    if bare is not None:
        if not isinstance(bare, Mapping) or not any(isinstance(value, Tensor) for value in bare.values()):
            keys = ", ".join(one_line(key, 40) for key in list(content)[:4]) or "nothing"
            raise CheckpointError(f"{path}: neither a backbone nor a policy network in it (found {keys})")
        is_policy = any("logit." in str(key) for key in bare)
        policy_state, resnet_state = (bare, None) if is_policy else (None, bare)

    resnet, was_torchvision, linear_head = _canonical_backbone(path, resnet_state)
    policy_network = _tensors(path, policy_state)
    if policy_network is not None:
        policy_network = {k: v for k, v in policy_network.items() if not k.startswith("features.fc")}
    if content.get("format") == FORMAT:
        return _ours(path, content, resnet, policy_network)
    checkpoint = Checkpoint(
        path=str(path),
        dialect="torchvision" if was_torchvision else "reference",
        resnet=resnet,
        policy_network=policy_network,
        shortcut=_infer_shortcut(resnet, linear_head),
        normalisation=_customary_normalisation(resnet, linear_head),
        epoch=_integer(content.get("epoch")),
    )
    for key in ("acc", "reward", "best_prec1"):
        value = content.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if _is_number(value):
            checkpoint.metrics[key] = value
    return checkpoint


def torchvision_checkpoint(spec: ModelSpec) -> Checkpoint:
    """torchvision's best ImageNet weights of a ResNet, downloaded at first and kept in torch's hub folder.

    Raises:
        CheckpointError: there are none for this network, or they can't be fetched.
    """
    if spec.depth not in IMAGENET_LAYERS or not spec.droppable:
        depths = ", ".join(map(str, IMAGENET_LAYERS))
        raise CheckpointError(
            f"torchvision has no weights for {spec.architecture}; it has ResNets of depth {depths}"
        )
    weights = torchvision.models.get_model_weights(f"resnet{spec.depth}").DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not path.exists():
        hash_start = re.search(r"-([0-9a-f]{8,})\.", path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), hash_start and hash_start[1], progress=False)
        except (OSError, RuntimeError, HTTPException) as error:  # another hash is a RuntimeError
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(
                f"torchvision: {weights.url} can't be fetched to {path.parent} ({reason}); fetch it by other "
                "means and name the file"
            ) from None
    return read_checkpoint(path)


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
            have been loaded before, or come in the same call.
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
        filled.append((policy_network, _policy_state(checkpoint, policy_network, filled)))
    for module, state in filled:
        module.load_state_dict(state)
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
        UserError: see `build_backbone`.
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
    if _family(resnet) == ("resnet" if spec.family == "R" else spec.family):
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


def check_operating_point(point: Any) -> dict[str, Any]:
    """A copy of an operating point, of plain numbers only.

    Keys: `threshold`, above 0 and below 1; `budget` and `flops_fraction`, what was asked for and what the
    held-out images cost, as fractions of the full network's FLOPs, and `held_out_images`, their number (all
    three None where the threshold was set by hand); `curve`, a list of what several thresholds gave, each a dict
    of numbers with a `threshold`.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(point, Mapping) or not isinstance(point.get("curve", []), list):
        raise ValueError("the operating point is no dict with a list as its curve")
    choice = ("budget", "flops_fraction", "held_out_images")
    checked = _numbers({k: v for k, v in point.items() if k != "curve" and (k not in choice or v is not None)})
    if any(checked.get(name, 1) <= 0 for name in choice):
        raise ValueError(f"the operating point's {', '.join(choice)} aren't all positive")
    return {**dict.fromkeys(choice), **checked, "curve": [_numbers(row) for row in point.get("curve", [])]}


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise ValueError(f"the operating point's curve holds a {type(values).__name__}")
    for name, value in values.items():
        if not isinstance(name, str) or type(value) not in (int, float) or not abs(value) < 1e300:
            raise ValueError(f"the operating point's {str(name)[:40]} is no finite number")
    if not 0 < values.get("threshold", 0) < 1:
        raise ValueError(f"the operating point's threshold {values.get('threshold')} isn't between 0 and 1")
    return dict(values)


def _contiguous_state(module: nn.Module) -> State:
    return {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}


def _newest_checkpoint(path: Path) -> Path:
    if os.path.isdir(path):
        try:
            found = [
                (int(m[1]), p.stat().st_mtime, p)
                for p in path.iterdir()
                if (m := re.match(r"ckpt_E_(\d+)_.*\.t7$", p.name)) and p.is_file()
            ]
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
        if not found:
            raise CheckpointError(f"{path}: no ckpt_E_*.t7 checkpoint in this folder")
        return max(found)[2]
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint file")
    return path


def _tensors(path: Path, state: Any) -> State | None:
    if state is None:
        return None
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: expected a state dict, found {type(state).__name__}")
    tensors = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: not a state dict: {one_line(key, 60)} is a {type(value).__name__}")
        if len(key) > LONGEST_KEY or not key.isprintable():
            raise CheckpointError(f"{path}: not a state dict: {one_line(key, 60)} is no tensor's name")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {key} holds values that aren't finite; the file is damaged")
        tensors[key.removeprefix("module.")] = value
    return tensors


def _canonical_backbone(path: Path, state: Any) -> tuple[State | None, bool, bool]:
    """(weights under our names, whether they were in torchvision style, whether the head was called linear)."""
    tensors = _tensors(path, state)
    if tensors is None:
        return None, False, False
    canonical, torchvision_style, linear_head = {}, False, False
    for key, value in tensors.items():
        name = key
        if match := re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", key):
            torchvision_style = True
            stage, rest = int(match[1]) - 1, match[3]
            short = re.fullmatch(r"(?:downsample|shortcut)\.(.+)", rest)
            if short and match[2] != "0":
                raise CheckpointError(f"{path}: {key}: only the first block of a stage has a shortcut of its own")
            name = f"ds.{stage}.{short[1]}" if short else f"blocks.{stage}.{match[2]}.{rest}"
        elif key.startswith("linear."):
            linear_head, name = True, key.replace("linear.", "fc.", 1)
        canonical[name] = value
    if not any(key.startswith("blocks.") for key in canonical):
        raise CheckpointError(
            f"{path}: no residual blocks in it (found {', '.join(list(tensors)[:3])}, …); not a ResNet backbone"
        )
    return canonical, torchvision_style, linear_head


def _infer_shortcut(resnet: State | None, linear_head: bool) -> Shortcut | None:
    """Projections show in the weights. Zero padding doesn't: backbones whose head is called `linear` (He et
    al.'s CIFAR ResNets as published for PyTorch) subsample, those of the BlockDrop reference average."""
    if resnet is None:
        return None
    if any(key.startswith("ds.") for key in resnet):
        return "projection"
    return "pad_stride" if linear_head else "pad_avgpool"


def _customary_normalisation(resnet: State | None, linear_head: bool) -> Normalisation | None:
    """ImageNet's, but for the CIFAR models of the BlockDrop reference: only its R32_C10 normalises at all."""
    if resnet is None:
        return None
    if linear_head or any(key.startswith("ds.") for key in resnet):
        return NORMALISATIONS["imagenet"]
    return NORMALISATIONS["cifar" if stage_sizes(resnet) == (5, 5, 5) else "none"]


def _ours(path: Path, content: Mapping[str, Any], resnet: State | None, policy: State | None) -> Checkpoint:
    try:
        recorded = _mapping(content["normalisation"])
        mean, std = (_three_numbers(recorded[key]) for key in ("mean", "std"))
        shortcut, policy_net = content["shortcut"], content.get("policy_net", "reference")
        if shortcut not in (*SHORTCUTS, None) or policy_net not in POLICY_NETS or min(std) <= 0:
            raise ValueError("shortcut, policy network or normalisation")
        classes, version, point = (content.get(key) for key in ("classes", "version", "operating_point"))
        if not (classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))):
            raise ValueError("classes")
        return Checkpoint(
            path=str(path),
            dialect=FORMAT,
            resnet=resnet,
            policy_network=policy,
            shortcut=shortcut,
            normalisation=Normalisation(mean, std),
            model=_model_name(content["model"]),
            variant=read_variant(content.get("variant", {})),
            policy_net=policy_net,
            classes=classes,
            epoch=_integer(content.get("epoch")),
            metrics={str(k): v for k, v in _mapping(content.get("metrics")).items() if _is_number(v)},
            config=dict(_mapping(content.get("config"))),
            version=version if isinstance(version, str) else None,
            operating_point=None if point is None else check_operating_point(point),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: a blockdrop checkpoint with a damaged header ({one_line(error)})"
        ) from None


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping | None):
        raise ValueError(f"a {type(value).__name__} in place of a dict")
    return value or {}


def _three_numbers(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError("normalisation is not by three numbers")
    if not all(_is_number(value) and math.isfinite(value) for value in values):
        raise ValueError("normalisation is not by finite numbers")
    return float(values[0]), float(values[1]), float(values[2])


def _model_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{one_line(value)} is no model name")
    return parse_model_name(value).name


def read_variant(recorded: Any) -> Variant:
    """A variant from plain values.

    Raises:
        TypeError, ValueError: they aren't one.
    """
    if not isinstance(recorded, Mapping):
        raise ValueError("the variant is no dict")
    for name, value in recorded.items():
        wanted = (str,) if name == "reduction_mode" else (int, float)
        if type(value) not in wanted:
            raise ValueError(f"variant: {name} is no {wanted[-1].__name__}")
    return Variant(**recorded)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and _is_number(value) else None


def stage_sizes(state: Mapping[str, Any]) -> tuple[int, ...]:
    sizes: dict[int, int] = {}
    for key in state:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.", key):
            stage = int(match[1])
            sizes[stage] = max(sizes.get(stage, 0), int(match[2]) + 1)
    return tuple(sizes[stage] for stage in sorted(sizes))


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
    held = "resnet" if checkpoint.model is None else parse_model_name(checkpoint.model).family
    if wanted != ("resnet" if held == "R" else held):
        name = checkpoint.architecture or "a ResNet"
        mend = f"pass --arch {name}" if checkpoint.architecture else "change --arch"
        raise CheckpointError(f"{checkpoint.path}: holds {name}, the model is of the {wanted} family; {mend}")


def _family(net: Backbone) -> str:
    if net.droppable:
        return "resnet" if net.relu_after_sum else "shiftresnet"
    if isinstance(net.bn1, nn.Identity):
        return "exactplain"
    return "plain" if net.shortcut is None else "dsplain"


def _check_same_network(path: str, state: State, resnet: Backbone) -> None:
    def name(weights: Mapping[str, Any]) -> str:
        return describe_depth(stage_sizes(weights), "blocks.0.0.conv3.weight" in weights)

    wanted = resnet.state_dict()
    if name(state) != name(wanted):
        raise CheckpointError(f"{path}: holds a {name(state)}, the model is a {name(wanted)}; change --model")
    have, want = state.get("fc.weight"), wanted.get("fc.weight")
    if have is not None and want is not None and have.dim() == want.dim() and len(have) != len(want):
        raise CheckpointError(f"{path}: made for {len(have)} classes, the model has {len(want)}")


def _backbone_state(checkpoint: Checkpoint, resnet: Backbone, ignore_head: bool) -> State:
    """What fills the backbone, checked against it."""
    if checkpoint.resnet is None:
        raise CheckpointError(f"{checkpoint.path}: holds a policy network but no backbone")
    check_family(checkpoint, _family(resnet))
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


def _check_policy_network(checkpoint: Checkpoint, state: State, policy_network: PolicyNetwork) -> None:
    if checkpoint.model is not None:  # pooling has no weights, so only this check notices another kind
        large_images = parse_model_name(checkpoint.model).large_images
        if checkpoint.policy_net != name_of(policy_network, large_images):
            raise CheckpointError(
                f"{checkpoint.path}: its policy network is {checkpoint.policy_net}; "
                f"policy_net={checkpoint.policy_net} is needed"
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
