"""Exact FLOPs of every image: 2 × multiply-accumulates of convolutions and linear layers, nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.models.backbone import Backbone


@dataclass(frozen=True)
class FlopTable:
    """What each part of a dynamic network costs for one image, in FLOPs."""

    fixed: int
    """Stem, shortcuts and head: what runs with all blocks dropped."""
    blocks: tuple[int, ...]
    """One entry per block (its branch; the shortcut runs anyway)."""
    policy_network: int
    """Feature extractor and both heads; 0 without a policy network."""

    @property
    def full(self) -> int:
        """The ordinary ResNet: all blocks, no policy network."""
        return self.fixed + sum(self.blocks)

    def least_share(self, decided: int | None = None) -> float:
        """The smallest cost that dropping the last `decided` blocks (default: all) can reach, a share of the full
        network's."""
        kept = self.blocks[: len(self.blocks) - (len(self.blocks) if decided is None else decided)]
        return (self.fixed + self.policy_network + sum(kept)) / self.full

    def per_image(self, policy: Tensor) -> Tensor:
        """FLOPs under a policy, the policy network included: bool (N, K) to int64 (N,)."""
        costs = torch.tensor(self.blocks, device=policy.device)
        return self.fixed + self.policy_network + (policy.long() * costs).sum(-1)


def count_module_flops(module: nn.Module, *inputs: Tensor) -> dict[nn.Module, int]:
    """FLOPs of every convolution and linear layer that runs when `module` is called on `inputs`."""
    counts: dict[nn.Module, int] = {}

    def count(layer: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> None:
        # Every output number of a layer is a sum over weight.numel() / out_channels products.
        weight: Tensor = layer.weight  # type: ignore[assignment]
        counts[layer] = counts.get(layer, 0) + 2 * out.numel() * (weight.numel() // len(weight))

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counts


@dataclass(frozen=True)
class LayerCount:
    """One layer of a network, counted for one image."""

    name: str
    kind: str
    output: tuple[int, ...]
    """(C, H, W), or (C,) of linear layers."""
    parameters: int
    macs: int
    """Multiply-accumulates; 0 for all but convolutions and linear layers."""


def count_layers(net: nn.Module, image_size: int = 32) -> list[LayerCount]:
    """Every layer that runs, in running order, without computing anything."""
    net = copy.deepcopy(net).eval().to("meta")
    names = {module: name for name, module in net.named_modules()}
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> None:
        outputs[layer] = tuple(out.shape[1:])

    leaves = [m for m in net.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    handles = [layer.register_forward_hook(note) for layer in leaves]
    macs = count_module_flops(net, torch.empty(1, 3, image_size, image_size, device="meta"))
    for handle in handles:
        handle.remove()
    return [
        LayerCount(
            names[layer],
            type(layer).__name__,
            shape,
            sum(p.numel() for p in layer.parameters()),
            macs.get(layer, 0) // 2,
        )
        for layer, shape in outputs.items()
    ]


def reference_stem_surplus(net: Backbone, image_size: int = 32) -> int:
    """MACs by which the counts published with ShiftResNet exceed the true ones.

    They take the first convolution for one from a single input channel to the last stage's width.
    """
    stem, head = net.conv1, net.fc
    assert isinstance(stem, nn.Conv2d)
    assert isinstance(head, nn.Linear)
    positions = image_size**2 // (stem.stride[0] * stem.stride[1])
    return positions * (stem.kernel_size[0] * stem.kernel_size[1] * head.in_features - stem.weight.numel())


def count_flops(resnet: Backbone, policy_network: PolicyNetwork | None = None, image_size: int = 32) -> FlopTable:
    """Counts both networks on images of image_size × image_size pixels, without computing anything."""
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    net = copy.deepcopy(resnet).eval().to("meta")
    counts = count_module_flops(net, image)
    blocks = tuple(sum(counts.get(m, 0) for m in branch.modules()) for branch, _ in net.branches())
    policy_flops = 0
    if policy_network is not None:
        policy_flops = sum(count_module_flops(copy.deepcopy(policy_network).eval().to("meta"), image).values())
    return FlopTable(sum(counts.values()) - sum(blocks), blocks, policy_flops)


def flops_per_image(
    resnet: Backbone, policy_network: PolicyNetwork | None, policy: Tensor, image_size: int = 32
) -> Tensor:
    """FLOPs of each image under its policy, policy network included (None: not counted).

    Args:
        policy: bool (N, K).
        image_size: side of the square images, in pixels.
    Returns:
        int64 (N,).
    """
    return count_flops(resnet, policy_network, image_size).per_image(policy)
