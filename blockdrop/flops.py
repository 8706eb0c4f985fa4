"""Exact FLOPs of every image: 2 × multiply-accumulates of convolutions and linear layers, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from agents.policy_network import PolicyNetwork
from blockdrop.models.backbone import Backbone, Network, known_image_size
from blockdrop.models.dry_run import run_for_nothing


@dataclass(frozen=True)
class FlopTable:
    """What each part of a dynamic network costs for one image, in FLOPs."""

    fixed: int
    """Stem, shortcuts and head: what runs with all blocks dropped."""
    blocks: tuple[int, ...]
    """One entry per block (its branch; the shortcut runs anyway)."""
    policy_network: int
    """Feature extractor and all heads, all that an answered image costs; 0 without a policy network."""

    @property
    def full(self) -> int:
        """The ordinary ResNet: all blocks, no policy network."""
        return self.fixed + sum(self.blocks)

    def least_share(self, decided: int | None = None) -> float:
        """The smallest cost that dropping the last `decided` blocks (default: all) can reach, a share of the full
        network's."""
        kept = self.blocks[: len(self.blocks) - (len(self.blocks) if decided is None else decided)]
        return (self.fixed + self.policy_network + sum(kept)) / self.full

    def per_image(self, policy: Tensor, answered: Tensor | None = None) -> Tensor:
        """FLOPs of each image, the policy network included.

        Args:
            policy: bool (N, K).
            answered: bool (N,), images for which no part of the ResNet runs; None: there are none.
        Returns:
            int64 (N,).
        """
        costs = torch.tensor(self.blocks, device=policy.device)
        flops = self.fixed + self.policy_network + (policy.long() * costs).sum(-1)
        return flops if answered is None else flops.where(~answered, self.policy_network)


def count_module_flops(module: nn.Module, *inputs: Tensor) -> dict[nn.Module, int]:
    """FLOPs of every convolution and linear layer that runs when `module` is called on `inputs`; those of an
    attention's projections stand under the attention."""
    counts: dict[nn.Module, int] = {}

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.MultiheadAttention):  # its linear layers run without being called
            flops = 2 * layer.embed_dim * (2 * args[0].numel() + args[1].numel() + args[2].numel())
        else:
            # Every output number of a layer is a sum over weight.numel() / out_channels products; if transposed,
            # every input number goes into weight.numel() / in_channels of them.
            weight: Tensor = layer.weight  # type: ignore[assignment]
            one = args[0] if getattr(layer, "transposed", False) else out
            assert isinstance(one, Tensor)
            flops = 2 * one.numel() * (weight.numel() // len(weight))
        counts[layer] = counts.get(layer, 0) + flops

    layers = [m for m in module.modules() if isinstance(m, _ConvNd | nn.Linear | nn.MultiheadAttention)]
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
    return run_for_nothing(net, image_size, _count_layers)


def _count_layers(net: nn.Module, image: Tensor) -> list[LayerCount]:
    names = {module: name for name, module in net.named_modules()}
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> None:
        outputs[layer] = tuple(out.shape[1:])

    leaves = [m for m in net.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    handles = [layer.register_forward_hook(note) for layer in leaves]
    macs = count_module_flops(net, image)
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


class _Glancing(nn.Module):
    """A policy network with all its heads."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> None:
        assert isinstance(self.network, PolicyNetwork)
        self.network.glance(images)


def count_flops(
    resnet: Network, policy_network: PolicyNetwork | None = None, image_size: int | None = None
) -> FlopTable:
    """Counts both networks on images of image_size × image_size pixels, without computing anything.

    Args:
        image_size: default: the one that the network is made for.
    Raises:
        BlockdropError: the network doesn't say its image size.
    """
    image_size = known_image_size(resnet, image_size)

    def count(net: nn.Module, image: Tensor) -> tuple[int, tuple[int, ...]]:
        assert isinstance(net, Network)
        counts = count_module_flops(net, image)
        blocks = (sum(counts.get(m, 0) for m in branch.modules()) for branch, _ in net.branches())
        return sum(counts.values()), tuple(blocks)

    total, blocks = run_for_nothing(resnet, image_size, count)
    policy_flops = 0
    if policy_network is not None:
        policy_flops = run_for_nothing(
            policy_network, image_size, lambda net, image: sum(count_module_flops(_Glancing(net), image).values())
        )
    return FlopTable(total - sum(blocks), blocks, policy_flops)


def flops_per_image(
    resnet: Network, policy_network: PolicyNetwork | None, policy: Tensor, image_size: int | None = None
) -> Tensor:
    """FLOPs of each image under its policy, policy network included (None: not counted).

    Args:
        policy: bool (N, K).
        image_size: side of the square images, in pixels; default: the one that the network is made for.
    Returns:
        int64 (N,).
    Raises:
        BlockdropError: the network doesn't say its image size.
    """
    return count_flops(resnet, policy_network, image_size).per_image(policy)
