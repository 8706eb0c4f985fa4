"""Sound checkpoints of each dialect and serialisation, small ones, which mutants are made of."""

from __future__ import annotations

import argparse
import functools
import io
import json
import pickle
import re
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.data import NORMALISATIONS
from blockdrop.models.backbone import Backbone
from blockdrop.models.checkpoints.dialects import FORMAT
from blockdrop.models.checkpoints.safetensors_files import PARTS, encode_metadata, write_safetensors_file
from blockdrop.models.checkpoints.saving import save_checkpoint
from blockdrop.models.checkpoints.tensor_pickle import STORAGES
from blockdrop.models.checkpoints.torch_files import PRE_16_START, read_torch_file
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.resnet import make_resnet
from blockdrop.models.specs import ModelSpec, Variant, parse_model_name
from blockdrop.models.zoo import build_backbone

MODEL = "R8_C10"
SMALL = Variant(reduction=64, reduction_mode="net")  # widths of 2, 4 and 8: most of a file is structure
SAFETENSORS_METADATA = (
    "format", "version", "model", "variant", "shortcut", "normalisation", "classes", "policy_net"
)  # fmt: skip
"""What of a checkpoint's content `blockdrop.export` writes there."""

State = dict[str, Tensor]
Content = dict[str, Any]


def small_backbone(shortcut: Any = None, spec: ModelSpec | None = None, variant: Variant = SMALL) -> Backbone:
    return build_backbone(spec or parse_model_name(MODEL), None, shortcut, variant)


def small_policy_network() -> PolicyNetwork:
    """Of the reference's shape, for the three blocks of a ResNet-8."""
    trunk = make_resnet((1, 1, 1), (2, 4, 8), 1, "pad_avgpool")
    trunk.fc = nn.Identity()
    return PolicyNetwork(trunk, feature_dim=8, num_blocks=3)


def blockdrop_contents() -> list[Content]:
    """A backbone; one with a policy network, an operating point and all else; a shift net."""
    point = {"threshold": 0.25, "budget": 0.5, "flops_fraction": 0.49, "held_out_images": 6}
    curve = [{"threshold": 0.5, "accuracy": 0.1}, {"threshold": 0.75, "accuracy": 0.2}]
    resnet, shift = small_backbone(), small_backbone(None, parse_model_name("shiftresnet8_C10"), Variant(0.5))
    stem = build_policy_network(3, policy_net="stem", backbone=resnet)
    files: list[dict[str, Any]] = [
        {"model": MODEL, "variant": SMALL, "resnet": resnet},
        {
            "model": MODEL, "variant": SMALL, "resnet": resnet, "policy_network": stem, "policy_net": "stem",
            "classes": [f"class {n}" for n in range(10)], "epoch": 7, "metrics": {"accuracy": 0.5, "decided": 3},
            "config": {"lr": 0.1, "load": ("x",), "arch": None}, "operating_point": point | {"curve": curve},
        },
        {
            "model": "shiftresnet8_C10", "variant": Variant(0.5), "resnet": shift, "policy_net": "constant",
            "policy_network": build_policy_network(3, policy_net="constant"),
        },
    ]  # fmt: skip
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.t7")
        for file in files:
            save_checkpoint(path, normalisation=NORMALISATIONS["half"], **file)
            contents.append(read_torch_file(path))
    return contents


def reference_contents() -> list[Content]:
    """Policy network and backbone; an older file of both; a policy network alone."""
    policy, resnet = small_policy_network().state_dict(), small_backbone("projection").state_dict()
    stray = {"features.fc.weight": torch.zeros(10, 8), "features.fc.bias": torch.zeros(10)}
    return [
        {"agent": policy, "resnet": resnet, "epoch": 60, "reward": 0.5, "acc": torch.tensor(0.93)},
        {"net": policy | stray, "resnet": small_backbone().state_dict(), "epoch": 60, "reward": 0.5, "acc": 0.93},
        {"agent": policy},
    ]


def torchvision_contents() -> list[Content]:
    """Bare weights; weights among what a training script leaves."""
    bare = as_torchvision(small_backbone("projection").state_dict())
    linear = as_torchvision(small_backbone("pad_stride").state_dict())
    prefixed = {f"module.{key}".replace("fc.", "linear."): value for key, value in linear.items()}
    optimiser = torch.optim.SGD(small_backbone().parameters(), 0.1, momentum=0.9).state_dict()
    return [
        bare,
        {"state_dict": prefixed, "epoch": 3, "best_prec1": np.float64(91.7), "optimizer": optimiser},
    ]


def module_contents() -> list[Content]:
    """A whole module among what a training script leaves."""
    module = nn.DataParallel(Tree(as_torchvision(small_backbone("projection").state_dict())))
    return [{"net": module, "acc": 91.7, "epoch": 3, "args": argparse.Namespace(lr=0.1)}]


class Tree(nn.Module):
    """Submodules and parameters by their names in a state dict."""

    def __init__(self, state: State):
        super().__init__()
        parts: dict[str, State] = {}
        for key, value in state.items():
            first, _, rest = key.partition(".")
            if rest:
                parts.setdefault(first, {})[rest] = value
            elif value.is_floating_point() and "running" not in key:
                self.register_parameter(key, nn.Parameter(value))
            else:
                self.register_buffer(key, value)
        for name, part in parts.items():
            self.add_module(name, Tree(part))


def as_torchvision(state: State) -> State:
    """Our key names to torchvision's."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^blocks\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.", key)
        key = re.sub(r"^ds\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.0.downsample.", key)
        renamed[key] = value
    return renamed


CONTENTS: dict[str, Callable[[], list[Content]]] = {
    "blockdrop": blockdrop_contents,
    "reference": reference_contents,
    "torchvision": torchvision_contents,
    "modules": module_contents,
}
DIALECTS = (
    *(f"{name}-{how}" for name in CONTENTS for how in ("zip", "pre16")),
    "blockdrop-safetensors",
    "torchvision-safetensors",
)


@dataclass(frozen=True)
class Sample:
    """A sound checkpoint."""

    content: Content
    file: bytes


@functools.cache
def samples(dialect: str) -> list[Sample]:
    """The sound checkpoints of a dialect in one serialisation, always the same."""
    name, serialisation = dialect.split("-")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        contents = CONTENTS[name]()
    if serialisation == "safetensors":
        return [Sample(content, save_safetensors(content)) for content in contents]
    return [Sample(content, save(content, serialisation == "pre16")) for content in contents]


def file_name(dialect: str) -> str:
    """Under which its mutants are opened."""
    return "mutant.safetensors" if dialect.endswith("safetensors") else "mutant.t7"


def save(content: Any, pre_16: bool) -> bytes:
    file = io.BytesIO()
    if pre_16:
        save_pre_16(content, file)
    else:
        torch.save(content, file)
    return file.getvalue()


def save_pre_16(content: Any, file: io.BytesIO) -> None:
    """As torch.save did before version 1.6, but names storages by their number: it does so by their address, which
    isn't the same twice."""
    keys: dict[int, str] = {}
    storages: list[bytes] = []
    alive = []  # so that an address stays one storage's
    kinds = {dtype: getattr(torch, name.removeprefix("torch.")) for name, dtype in STORAGES.items()}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, torch.storage.TypedStorage):
                return None
            alive.append(value)
            storage, count = value.untyped(), value.untyped().nbytes() // value.dtype.itemsize
            if storage.data_ptr() not in keys:
                keys[storage.data_ptr()] = str(len(keys))
                raw = torch.empty(0, dtype=torch.uint8).set_(storage)
                storages.append(struct.pack("<q", count) + raw.numpy().tobytes())
            return "storage", kinds[value.dtype], keys[storage.data_ptr()], "cpu", count, None

    header = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    file.write(PRE_16_START + b"." + pickle.dumps(1001, 2) + pickle.dumps(header, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        Pickler(file, 2).dump(content)
    file.write(pickle.dumps([str(number) for number in range(len(keys))], 2) + b"".join(storages))


def save_safetensors(content: Content) -> bytes:
    """As `blockdrop.export` does, or bare weights."""
    metadata, parts = None, {"": content.get("state_dict", content)}
    if content.get("format") == FORMAT:
        metadata = {key: value for key, value in content.items() if key in SAFETENSORS_METADATA}
        point = content.get("operating_point") or {"threshold": 0.5}
        metadata = encode_metadata(metadata | {"threshold": point["threshold"]})
        parts = {f"{part}.": content[kept_as] for part, kept_as in PARTS.items() if content.get(kept_as)}
    tensors = {f"{part}{key}": value.clone() for part, state in parts.items() for key, value in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.safetensors")
        write_safetensors_file(path, tensors, metadata)
        return with_sorted_metadata(path.read_bytes())


def with_sorted_metadata(file: bytes) -> bytes:
    """A safetensors file with its metadata by name: the library writes them in any order."""
    (length,) = struct.unpack("<Q", file[:8])
    header = json.loads(file[8 : 8 + length])
    if metadata := header.pop("__metadata__", None):
        header = {"__metadata__": dict(sorted(metadata.items()))} | header
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + file[8 + length :]


def unzip(file: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()
