"""What checkpoint files say, whichever dialect they speak.

Dialects read:
- ours: what `save_checkpoint` writes (`saving`);
- the BlockDrop reference's `.t7`: `agent` (older: `net`, with stray `features.fc*`), perhaps `resnet`;
- torchvision-style backbones: `layer1.0.conv1.weight`, `fc` or `linear`, perhaps under `state_dict`, perhaps
  prefixed `module.`;
each in torch's zip or pre-1.6 serialisation (`read_torch_file`), or as safetensors.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockdrop.data.sets import INTERPOLATIONS, LARGEST_IN_MEMORY, NORMALISATIONS, Normalisation, Preprocessing
from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.containers import find_state, head_as_fc, plain_names
from blockdrop.models.checkpoints.operating_points import check_operating_point, thresholds_of
from blockdrop.models.checkpoints.places import MODEL_FILE, find, pretrained
from blockdrop.models.checkpoints.safetensors_files import SUFFIX as SAFETENSORS
from blockdrop.models.checkpoints.safetensors_files import read_safetensors_file
from blockdrop.models.checkpoints.tensor_pickle import one_line
from blockdrop.models.checkpoints.torch_files import read_torch_file
from blockdrop.models.specs import CIFAR_WIDTHS, Variant, parse_model_name
from blockdrop.names import POLICY_NETS, SHORTCUTS, Shortcut

FORMAT = "blockdrop"
LONGEST_KEY = 200
LARGEST_ORIGIN = 100_000
State = dict[str, Tensor]


WEIGHTS = (".pt", ".pth", ".th", ".t7", ".bin", ".ckpt", ".safetensors")
"""Endings that files of weights have."""


@dataclass
class Checkpoint:
    """What a checkpoint file says, whichever dialect it speaks."""

    path: str
    dialect: str
    """"blockdrop", "reference" or "torchvision"."""
    resnet: State | None = field(repr=False)
    """Backbone weights under our names, or None."""
    policy_network: State | None = field(repr=False)
    """Policy network weights, or None."""
    shortcut: Shortcut | None
    """Recorded by our dialect, inferred for others; None without a backbone or without shortcuts."""
    normalisation: Normalisation | None
    """Recorded by our dialect, the dialect's custom for others; None without a backbone."""
    model: str | None = None
    variant: Variant = Variant()
    policy_net: str = "reference"
    classes: list[str] | None = field(default=None, repr=False)
    epoch: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    version: str | None = None
    operating_point: dict[str, Any] | None = field(default=None, repr=False)
    """The threshold chosen after training, and how: see `check_operating_point`."""
    preprocessing: Preprocessing | None = None
    """Recorded by our dialect, where it was known."""
    origin: dict[str, Any] | None = None
    """Of a network that isn't the zoo's: how its parts were found."""
    outputs: int | None = None
    """Width of the logits, where it is recorded."""
    family: str | None = None
    """Of a network that isn't recorded, as its weights' shapes tell: "shiftresnet", else None."""
    passed_over: str | None = None
    """Key of averaged weights that the file holds beside those that were taken."""

    @property
    def threshold(self) -> float:
        """The operating point's, else the default of MAP policies."""
        return thresholds_of(self.operating_point).keep

    @property
    def answer_threshold(self) -> float:
        """The operating point's; infinite where no image is answered."""
        return thresholds_of(self.operating_point).answer

    @property
    def architecture(self) -> str | None:
        """Recorded family and depth, such as plain20; None for other dialects, which know ResNets only."""
        if self.model is None or self.origin is not None:
            return None
        return parse_model_name(self.model).architecture

    @property
    def large_images(self) -> bool | None:
        """Whether its network is for images of more than 64 px; None where the file doesn't say."""
        if self.preprocessing is not None:
            return self.preprocessing.image_size > LARGEST_IN_MEMORY
        return None if self.model is None or self.origin is not None else parse_model_name(self.model).large_images

    @property
    def num_classes(self) -> int | None:
        """Outputs of the backbone's head; None without a backbone or with a head that isn't linear."""
        head = (self.resnet or {}).get("fc.weight")
        return self.outputs if head is None or head.dim() != 2 else len(head)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint file, or the newest checkpoint of a run directory.

    Args:
        path: of either; or a published network: the folder that holds it, or its name, see `places`.
    Raises:
        CheckpointError: missing, damaged, foreign, or a file that would run code.
        BlockdropError: a file of safetensors, which is not installed.
    """
    path = _newest_checkpoint(find(path))
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
    passed_over = None
    if policy_state is None and resnet_state is None:
        bare, passed_over = find_state(content)
        if bare is None:
            keys = ", ".join(one_line(key, 40) for key in list(content)[:4]) or "nothing"
            raise CheckpointError(
                f"{path}: neither a backbone nor a policy network in it (found {keys}); save the network's "
                'state_dict(), alone or under "state_dict"'
            )
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
        passed_over=passed_over,
        variant=_variant_of(resnet) if resnet else Variant(),
        family="shiftresnet" if resnet and _shifts(resnet) else None,
    )
    for key in ("acc", "reward", "best_prec1"):
        value = content.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if _is_number(value):
            checkpoint.metrics[key] = value
    return checkpoint


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
        if not found and (path / MODEL_FILE).is_file():
            return path / MODEL_FILE
        if not found:
            others = sorted(p.name for p in path.iterdir() if p.suffix in WEIGHTS)
            hint = f"; name a file of it: {', '.join(others[:3])}" if others else ""
            raise CheckpointError(f"{path}: no ckpt_E_*.t7 checkpoint in this folder{hint}")
        return max(found)[2]
    if not os.path.isfile(path):
        names = ", ".join(pretrained())
        known = f"; known by name: {names}" if names and path.name == str(path) and not path.suffix else ""
        raise CheckpointError(f"{path}: no such checkpoint file{known}")
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
    tensors = plain_names(tensors)
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
    canonical = head_as_fc(canonical)
    if not any(key.startswith("blocks.") for key in canonical):
        raise CheckpointError(
            f"{path}: no residual blocks in it (found {', '.join(list(tensors)[:3])}, …); not a ResNet backbone. "
            "Any other network comes by its parts: blockdrop.make_dynamic"
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
        normalisation, origin = Normalisation(mean, std), content.get("origin")
        outputs = _integer(content.get("outputs"))
        return Checkpoint(
            path=str(path),
            dialect=FORMAT,
            resnet=resnet,
            policy_network=policy,
            shortcut=shortcut,
            normalisation=normalisation,
            preprocessing=_preprocessing(content.get("preprocessing"), normalisation),
            origin=None if origin is None else check_origin(origin),
            outputs=outputs if outputs is not None and 0 < outputs < 10**6 else None,
            model=_text(content["model"]) if origin is not None else _model_name(content["model"]),
            variant=read_variant(content.get("variant", {})),
            policy_net=policy_net,
            classes=classes,
            epoch=_integer(content.get("epoch")),
            metrics={str(k): v for k, v in _mapping(content.get("metrics")).items() if _is_number(v)},
            config=dict(_mapping(content.get("config"))),
            version=version if isinstance(version, str) else None,
            operating_point=None if point is None else check_operating_point(point),
        )
    except (KeyError, RecursionError, TypeError, ValueError) as error:
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


def _preprocessing(recorded: Any, normalisation: Normalisation) -> Preprocessing | None:
    if recorded is None:
        return None
    values = _mapping(recorded)
    image_size, resize, interpolation = (values.get(key) for key in ("image_size", "resize", "interpolation"))
    sizes = (image_size, resize)
    if (
        not all(type(size) is int and 1 <= size <= 100_000 for size in sizes)
        or interpolation not in INTERPOLATIONS
    ):
        raise ValueError("preprocessing")
    return Preprocessing(sizes[0], normalisation, sizes[1], interpolation)  # type: ignore[arg-type]


def check_origin(origin: Any) -> dict[str, Any]:
    """A copy of a record of how a network's parts were found: text, numbers, None, and lists and dicts of them.

    Raises:
        ValueError: anything else, or more than `LARGEST_ORIGIN` letters of it as JSON.
    """
    text = json.dumps(origin)
    if not isinstance(origin, Mapping) or len(text) > LARGEST_ORIGIN:
        raise ValueError("origin")
    return json.loads(text)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST_KEY:
        raise ValueError(f"{one_line(value)} is no name")
    return value


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


def _variant_of(state: State) -> Variant:
    """Widths other than usual, as the shapes of a CIFAR network's weights tell."""
    try:
        blocks = [(state[f"blocks.{s}.0.conv1.weight"], state[f"blocks.{s}.0.conv2.weight"]) for s in range(3)]
        stem = state["conv1.weight"]
    except KeyError:
        return Variant()
    if (
        any(weight.dim() != 4 for pair in blocks for weight in pair)
        or stem.dim() != 4
        or len(stage_sizes(state)) > 3
    ):
        return Variant()
    (inner, outer), last = map(len, blocks[-1]), len(blocks[-1][1])
    if "blocks.0.0.conv3.weight" in state or not 0.01 <= inner / outer <= 100:
        return Variant()
    if _shifts(state):
        return Variant(expansion=inner / outer) if inner != outer else Variant()
    if inner < outer:
        return Variant(reduction=outer / inner, reduction_mode="block")
    if len(stem) < CIFAR_WIDTHS[0] and last < CIFAR_WIDTHS[-1]:
        return Variant(reduction=(CIFAR_WIDTHS[-1] / last) ** 2, reduction_mode="net")
    return Variant()


def _shifts(state: State) -> bool:
    """Whether its blocks are of two 1×1 convolutions, as those of shift nets are."""
    weights = [state.get(f"blocks.0.0.conv{number}.weight") for number in (1, 2)]
    pointwise = all(weight is not None and weight.shape[2:] == (1, 1) for weight in weights)
    return pointwise and "blocks.0.0.conv3.weight" not in state


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and _is_number(value) else None


def stage_sizes(state: Mapping[str, Any]) -> tuple[int, ...]:
    sizes: dict[int, int] = {}
    for key in state:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.", key):
            stage = int(match[1])
            sizes[stage] = max(sizes.get(stage, 0), int(match[2]) + 1)
    return tuple(sizes[stage] for stage in sorted(sizes))
