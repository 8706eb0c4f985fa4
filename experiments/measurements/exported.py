"""What its conditions cost an exported dynamic network: ONNX Runtime, one image at a time.

The rival is what no mixture of policies can beat in the same runtime: a straight graph of each image's own blocks
and one of the policy network, run one after the other. Weights are fresh. Policies are as learned ones are: most
blocks are always on or always off, and a fifth of them is kept for every other image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from agents.answers import NEVER, Thresholds
from agents.policy_network import PolicyNetwork
from blockdrop.console import run_command
from blockdrop.data import NORMALISATIONS, Preprocessing
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import require
from blockdrop.inference.exported import Networks, onnx_model, onnx_session, write_onnx
from blockdrop.inference.formats import optional_package
from blockdrop.measure import seconds_in_turns
from blockdrop.models.droppable import Droppable
from blockdrop.models.specs import parse_model_name
from blockdrop.models.zoo import build
from blockdrop.names import PolicyNet
from blockdrop.output import check_writable, write_json
from blockdrop.ranges import Count, Range, check_ranges

VARIED = 0.2
"""Share of the blocks that hang on the image."""


@dataclass(kw_only=True)
class ExportedConfig:
    """Flags of `python -m experiments.measurements.exported`."""

    model: str = "R101_ImgNet"
    """Name of the network, R<depth>_<dataset>."""
    policy_net: PolicyNet = "reference"
    """Kind of policy network."""
    kept: Annotated[float, Range(above=0, most=1)] = 0.76
    """Share of the blocks that an image keeps on average."""
    images: Count = 10
    """Number of images, each of which has a policy of its own."""
    seed: int = 0
    """Seed of weights and images."""
    json: str | None = None
    """File that all numbers are written to."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""


class Straight(nn.Module):
    """The blocks of one policy, bool (K,), without any condition."""

    def __init__(self, network: Droppable, policy: Tensor):
        super().__init__()
        self.network, self.policy = network, policy.tolist()

    def forward(self, images: Tensor) -> Tensor:
        x = self.network.stem(images)
        for (branch, always), kept in zip(self.network.branches(), self.policy, strict=True):
            inner, shortcut = self.network.enter(x, always)
            x = self.network.kept(branch, shortcut if inner is None else inner, shortcut) if kept else shortcut
        return self.network.head(x)


class Looking(nn.Module):
    """The policy network's keep probabilities alone."""

    def __init__(self, network: PolicyNetwork):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def main(config: ExportedConfig) -> dict[str, Any]:
    """Measures and prints; returns the numbers."""
    check_ranges(config)
    if config.json is not None:
        check_writable("--json", config.json, config.overwrite)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        optional_package(package)
    torch.manual_seed(config.seed)
    spec = parse_model_name(config.model)
    require(spec.droppable, f"--model {config.model}: {spec.architecture} has no blocks that a policy could drop")
    network, policy_network = build(config.model, policy_net=config.policy_net)
    assert isinstance(network, Droppable)
    images = torch.randn(config.images, 1, 3, spec.image_size, spec.image_size)
    spread_policies(policy_network.eval(), images, config.kept)
    dynamic = DynamicNetwork(
        network.eval(), policy_network, model=config.model, policy_net=config.policy_net,
        preprocessing=Preprocessing.usual(spec.image_size, NORMALISATIONS["imagenet"]),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "net.onnx"
        write_onnx(Networks(dynamic, Thresholds(0.5, NEVER)), path)
        run = session_of(path.read_bytes())
        policies = torch.cat([torch.from_numpy(run(image)[1]) for image in images])
        look = session_of(graph_of(Looking(policy_network), images[0]))
        folded = network.folded()
        whole = torch.ones(network.num_blocks, dtype=torch.bool)
        full, *straight = (
            session_of(graph_of(Straight(folded, policy), images[0])) for policy in (whole, *policies)
        )

        timed: dict[str, Callable[[int], object]] = {
            "full network": lambda i: full(images[i]),
            "dynamic network": lambda i: run(images[i]),
            "straight graphs": lambda i: (look(images[i]), straight[i](images[i])),
            "policy network": lambda i: look(images[i]),
        }
        passes = seconds_in_turns([*timed.values()], range(len(images)), images.device)
    seconds = {name: one / len(images) for name, one in zip(timed, passes, strict=True)}
    table = dynamic.flop_table()
    spent = table.per_image(policies).double().mean().item()
    found = {
        "model": config.model,
        "policy_net": config.policy_net,
        "threads": torch.get_num_threads(),
        "policies": len(policies.unique(dim=0)),
        "blocks": policies.sum(1).double().mean().item(),
        "milliseconds": {name: 1000 * value for name, value in seconds.items()},
        "flops_ratio": table.full / spent,
        "speed_up": seconds["full network"] / seconds["dynamic network"],
        "program_efficiency": seconds["straight graphs"] / seconds["dynamic network"],
    }
    report(found, network.num_blocks)
    if config.json is not None:
        write_json("--json", Path(config.json), found)
    return found


@torch.no_grad()
def spread_policies(policy_network: PolicyNetwork, images: Tensor, kept: float) -> None:
    """Sets the last layer so that images (N, 1, 3, H, W) keep this share of the blocks on average, most of them
    always or never."""
    layer = policy_network.logit
    blocks = layer.out_features
    varied = round(VARIED * blocks)
    always = min(max(round(kept * blocks - varied / 2), 0), blocks - varied)
    order = torch.randperm(blocks)
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    logits = torch.cat([policy_network(image)[0] for image in images]).double().logit().float()
    layer.bias[:] = -logits.median(0).values
    layer.weight[order[varied:]] = 0
    layer.bias[order[varied : varied + always]] = 10.0
    layer.bias[order[varied + always :]] = -10.0


def graph_of(network: nn.Module, image: Tensor) -> bytes:
    """A network of one image (1, 3, H, W) as an ONNX file's content."""
    content: bytes = onnx_model(network.eval(), (image,), ["image"], ["result"]).SerializeToString()
    return content


def session_of(content: bytes) -> Callable[[Tensor], list[Any]]:
    """An ONNX file in ONNX Runtime, from an image (1, 3, H, W) to its outputs. Sessions take turns: none spins."""
    session = onnx_session(content, spinning=False)
    fixed = {"threshold": torch.tensor(0.5).numpy()} if len(session.get_inputs()) > 1 else {}
    return lambda image: session.run(None, {"image": image.numpy(), **fixed})


def report(found: dict[str, Any], blocks: int) -> None:
    """Prints a table and what it says."""
    print(
        f"{found['model']}, {found['policy_net']} policy network, {found['policies']} policies that keep "
        f"{found['blocks']:.1f} of {blocks} blocks, one image at a time, {found['threads']} threads\n"
    )
    print("| | milliseconds |\n| --- | ---: |")
    for name, value in found["milliseconds"].items():
        print(f"| {name} | {value:.2f} |")
    print(
        f"\nspeed-up {found['speed_up']:.2f}, FLOPs say {found['flops_ratio']:.2f}; program efficiency "
        f"{found['program_efficiency']:.2f}"
    )


if __name__ == "__main__":
    run_command(main, ExportedConfig, __doc__)
