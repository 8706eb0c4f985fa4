"""What every network of the zoo is built of: a stem, stages of blocks with or without shortcuts, a head.

State-dict keys are the BlockDrop reference's (`conv1`, `blocks.<stage>.<i>.conv1`, `ds.<stage>.<i>`, `fc`), so
checkpoints go both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeGuard, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from blockdrop.errors import BlockdropError
from blockdrop.models.specs import Variant
from blockdrop.names import Shortcut

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Branch(nn.Module):
    """The branch F of a block: convolutions with BatchNorm, a ReLU between but none at the end.

    The shortcut and the closing ReLU of y = relu(shortcut(x) + F(x)) belong to the `Backbone`.
    """

    def __init__(self, convs: Sequence[nn.Module], norms: Sequence[nn.Module]):
        super().__init__()
        self.depth = len(convs)
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True), start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", norm)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C_in, H, W) to (N, C_out, H/stride, W/stride)."""
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            if i < self.depth:
                x = F.relu(x, inplace=True)
        return x

    def layers(self) -> list[tuple[nn.Module, nn.Module]]:
        """(convolution, norm) in running order."""
        return [(self.get_submodule(f"conv{i}"), self.get_submodule(f"bn{i}")) for i in range(1, self.depth + 1)]


class EndedBranch(Branch):
    """A branch with something at its end: squeeze and excitation, stochastic depth (`end`)."""

    def __init__(self, branch: Branch, end: nn.Module):
        convs, norms = zip(*branch.layers(), strict=True)
        super().__init__(convs, norms)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        """As `Branch.forward`."""
        return self.end(super().forward(x))


BranchMaker = Callable[[int, int, int], Branch]
"""(input channels, width, stride) to a branch with fresh weights."""


NARROW = 16


class NarrowProjection(nn.Conv2d):
    """A 1×1 convolution with a stride, from fewer than `NARROW` channels, that takes every stride-th pixel itself.

    oneDNN's own way writes behind the memory that it has booked, when it computes the gradient of such weights in
    float32 from a map with channels last (version 3.12; github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)


def conv2d(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the map's size but for the stride."""
    safe = kernel > 1 or stride == 1 or groups > 1 or in_channels >= NARROW
    return (nn.Conv2d if safe else NarrowProjection)(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )


def basic_branch(in_channels: int, width: int, stride: int, inner: int | None = None) -> Branch:
    """Two 3×3 convolutions with `inner` channels between them (default `width`); output channels = `width`."""
    inner = inner or width
    return Branch(
        [conv2d(in_channels, inner, 3, stride), conv2d(inner, width, 3)],
        [nn.BatchNorm2d(inner), nn.BatchNorm2d(width)],
    )


def bottleneck_branch(in_channels: int, width: int, stride: int, inner: int | None = None) -> Branch:
    """1×1, 3×3 (carrying the stride, as torchvision does), 1×1, with `inner` channels between them (default
    `width`); output channels = 4 · `width`."""
    inner = inner or width
    return Branch(
        [conv2d(in_channels, inner, 1), conv2d(inner, inner, 3, stride), conv2d(inner, 4 * width, 1)],
        [nn.BatchNorm2d(inner), nn.BatchNorm2d(inner), nn.BatchNorm2d(4 * width)],
    )


class PadShortcut(nn.Module):
    """A shortcut without parameters: shrink the map by the stride, fill the missing channels with zeros.

    `pad_avgpool` averages over stride × stride and appends the zeros (the BlockDrop reference on CIFAR);
    `pad_stride` takes every stride-th pixel and puts half the zeros before, half after (option A of He et al.).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, kind: Shortcut):
        super().__init__()
        self.stride, self.kind = stride, kind
        missing = out_channels - in_channels
        before = missing // 2 if kind == "pad_stride" else 0
        self.channel_padding = (before, missing - before)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C_in, H, W) to (N, C_out, ceil(H/stride), ceil(W/stride))."""
        if self.stride > 1:
            if self.kind == "pad_avgpool":
                x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
            else:
                x = x[:, :, :: self.stride, :: self.stride]
        if is_channels_last(x):
            return F.pad(x.permute(0, 2, 3, 1), self.channel_padding).permute(0, 3, 1, 2)
        return F.pad(x, (0, 0, 0, 0, *self.channel_padding))

    def extra_repr(self) -> str:
        return f"{self.kind}, stride={self.stride}, channel_padding={self.channel_padding}"


def _geometry(conv: Any) -> tuple[Any, ...]:
    shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return *shape, conv.groups, conv.bias is not None


class DiracConv2d(nn.Conv2d):
    """A convolution of effective weight α · δ + β · W, with α and β per output channel; δ is the identity
    (Zagoruyko and Komodakis 2017, arXiv:1706.00388).

    `folded` gives the plain convolution for deployment. α and β are to be left out of weight decay.

    Args:
        conv: geometry and initial W.
        alpha, beta: initial values.
    """

    delta: Tensor

    def __init__(self, conv: nn.Conv2d, alpha: float = 1.0, beta: float = 0.1):
        super().__init__(*_geometry(conv))
        self.to(conv.weight)
        self.load_state_dict(conv.state_dict())
        self.alpha = nn.Parameter(torch.full_like(conv.weight[:, 0, 0, 0], alpha))
        self.beta = nn.Parameter(torch.full_like(conv.weight[:, 0, 0, 0], beta))
        self.register_buffer("delta", nn.init.dirac_(torch.empty_like(conv.weight), conv.groups), persistent=False)

    def effective_weight(self) -> Tensor:
        """(C_out, C_in / groups, k, k)."""
        return self.alpha.view(-1, 1, 1, 1) * self.delta + self.beta.view(-1, 1, 1, 1) * self.weight

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        return self._conv_forward(x, self.effective_weight(), self.bias)

    def folded(self) -> nn.Conv2d:
        """The plain convolution of the same outputs."""
        conv = nn.Conv2d(*_geometry(self)).to(self.weight).train(self.training)
        state = {"weight": self.effective_weight().detach()}
        conv.load_state_dict(state if self.bias is None else state | {"bias": self.bias})
        return conv


class NoShortcut(nn.Module):
    """Stands where a plain net has no shortcut at all: its block computes y = relu(F(x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Raises `TypeError`: there is nothing to compute."""
        raise TypeError("a plain net's block has no shortcut")


class Network(nn.Module):
    """A stem, stages of residual blocks and a head: what every network here is, whoever made it."""

    droppable = False
    """Whether a policy may drop blocks."""
    stage_sizes: tuple[int, ...]
    """Blocks per stage."""
    shortcut: Shortcut | None
    """The kind of the stages' first shortcuts, for checkpoints; None where there are none of a known kind."""
    image_size: int | None = None
    """Side in pixels of the square images that it is made for, where that is known."""
    built_from: tuple[str, Variant] | None = None
    """Name and widths that the zoo made it from."""

    @property
    def num_blocks(self) -> int:
        """K, the number of blocks."""
        return sum(self.stage_sizes)

    def stem(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to the first block's input (N, …)."""
        raise NotImplementedError

    def branches(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """Per block in running order what a policy drops, and what runs in every case (None: nothing)."""
        raise NotImplementedError

    def head(self, x: Tensor) -> Tensor:
        """The last block's output (N, …) to logits (N, classes)."""
        raise NotImplementedError

    def folded(self) -> Self:
        """A copy for inference, in eval mode, without BatchNorm where it can be folded; same logits."""
        raise NotImplementedError

    def check_policy(self, policy: Tensor, images: Tensor) -> None:
        """Raises `BlockdropError` unless `policy` is bool (N, K) or (S, N, K) for images (N, 3, H, W), and keeps
        every block of a network that can't drop any."""
        expected = (len(images), self.num_blocks)
        if policy.dtype != torch.bool or policy.dim() not in (2, 3) or policy.shape[-2:] != expected:
            raise BlockdropError(
                f"policy: got {policy.dtype} of shape {tuple(policy.shape)}; "
                f"expected torch.bool of shape (N, K) = {expected} or (S, N, K)"
            )
        if not self.droppable and not bool(policy.all()):
            raise BlockdropError(
                f"policy: drops blocks, but the blocks of a {type(self).__name__} have no shortcuts"
            )


def known_image_size(network: Network, image_size: int | None) -> int:
    """The side in pixels that is asked for, else the one that the network is made for.

    Raises:
        BlockdropError: neither is known.
    """
    side = image_size or network.image_size
    if side is None:
        raise BlockdropError(f"image_size: a {type(network).__name__} doesn't say the side of its images; pass it")
    return side


class Backbone(Network):
    """Stem, stages of blocks, head. Blocks are numbered 0 … K-1 from the input and all run.

    A block computes y = relu(shortcut(x) + F(x)); without `relu_after_sum` y = shortcut(x) + F(x) (shift nets,
    whose branches end with their own ReLU); where there is `NoShortcut` y = relu(F(x)).

    Args:
        conv1, bn1: stem, followed by a ReLU and `maxpool`; conv1 may be an `nn.Sequential` (a deep stem).
        maxpool: `nn.MaxPool2d`, or `nn.Identity()` for small images.
        blocks: one list of branches per stage.
        ds: the first shortcut of each stage (`nn.Identity()` where shapes agree).
        fc: head on the globally average-pooled features.
        shortcut: the kind of `ds`, for checkpoints; None where there are no shortcuts.
        avgpool: pooling before the head.
        relu_after_sum: whether a block ends with a ReLU.
        inner_shortcut: the shortcut of a stage's other blocks; None = the identity.
    """

    def __init__(
        self,
        conv1: nn.Module,
        bn1: nn.Module,
        maxpool: nn.Module,
        blocks: Sequence[Sequence[nn.Module]],
        ds: Sequence[nn.Module],
        fc: nn.Module,
        *,
        shortcut: Shortcut | None,
        avgpool: nn.Module | None = None,
        relu_after_sum: bool = True,
        inner_shortcut: nn.Module | None = None,
    ):
        super().__init__()
        self.conv1 = conv1
        self.bn1 = bn1
        self.maxpool = maxpool
        self.blocks = nn.ModuleList(nn.ModuleList(stage) for stage in blocks)
        self.ds = nn.ModuleList(ds)
        self.inner_shortcut = inner_shortcut
        self.avgpool = avgpool or nn.AdaptiveAvgPool2d(1)
        self.fc = fc
        self.shortcut = shortcut
        self.stage_sizes = tuple(len(stage) for stage in blocks)
        self.relu_after_sum = relu_after_sum

    def branches(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(branch, shortcut) per block in running order; shortcut is None where it is the identity."""
        return [pair for stage in range(len(self.blocks)) for pair in self.stage_branches(stage)]

    def stage_branches(self, stage: int) -> list[tuple[nn.Module, nn.Module | None]]:
        """`branches` of one stage, from 0."""
        branches = cast(nn.ModuleList, self.blocks[stage])
        return [(branch, self.ds[stage] if i == 0 else self.inner_shortcut) for i, branch in enumerate(branches)]

    def stem(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to the first block's input (N, C, H', W')."""
        return self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=True))

    def head(self, x: Tensor) -> Tensor:
        """Last feature map (N, C, H, W) to logits (N, classes)."""
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def block_sum(self, x: Tensor, branch: nn.Module, shortcut: nn.Module | None) -> Tensor:
        """A block without its closing ReLU."""
        if isinstance(shortcut, NoShortcut):
            return branch(x)
        return (x if shortcut is None else shortcut(x)) + branch(x)

    def close(self, total: Tensor) -> Tensor:
        """The end of a block: a ReLU in place, or nothing."""
        return F.relu(total, inplace=True) if self.relu_after_sum else total

    def stage_sum(self, x: Tensor, stage: int) -> Tensor:
        """Runs a stage (from 0) on its input (N, C, H, W), but for the last block's closing ReLU."""
        *first, last = self.stage_branches(stage)
        for branch, shortcut in first:
            x = self.close(self.block_sum(x, branch, shortcut))
        return self.block_sum(x, *last)

    def forward(self, images: Tensor, policy: Tensor | None = None) -> Tensor:
        """images float (N, 3, H, W), normalised, to logits (N, classes); a policy must keep all blocks."""
        if policy is not None:
            self.check_policy(policy, images)
        x = self.stem(images)
        for branch, shortcut in self.branches():
            x = self.close(self.block_sum(x, branch, shortcut))
        return self.head(x)

    def folded(self) -> Self:
        """A copy for inference with each BatchNorm folded into the convolution before it; same logits.

        The copy is in eval mode and doesn't follow later changes of this module.
        """
        net = copy.deepcopy(self).eval()
        net.conv1, net.bn1 = _fold(net.conv1, net.bn1)
        for branch, ds in net.branches():
            if isinstance(branch, Branch):
                for i, layers in enumerate(branch.layers(), start=1):
                    conv, norm = _fold(*layers)
                    branch.add_module(f"conv{i}", conv)
                    branch.add_module(f"bn{i}", norm)
            _fold_chain(ds)
        _fold_chain(net.maxpool)
        return net.requires_grad_(False)


def is_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, H, W) lies in memory with its channels last."""
    return x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()


def is_plain_conv(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer computes `nn.Conv2d`'s convolution of its own weight: no subclass with another forward, and
    no hook that makes the weight anew."""
    return type(layer) in (nn.Conv2d, NarrowProjection) and not layer._forward_pre_hooks


def _fold(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The two as one convolution and the identity, where they can be."""
    if isinstance(conv, DiracConv2d):
        conv = conv.folded()
    if isinstance(conv, nn.Sequential):
        _fold_chain(conv)
        if len(conv):
            conv[-1], norm = _fold(conv[-1], norm)
        return conv, norm
    if is_plain_conv(conv) and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
        return fuse_conv_bn_eval(conv, norm), nn.Identity()
    return conv, norm


def _fold_chain(chain: nn.Module | None) -> None:
    """Folds each BatchNorm of an `nn.Sequential` into the convolution right before it, in place."""
    if not isinstance(chain, nn.Sequential):
        return
    for i in range(len(chain) - 1):
        chain[i], chain[i + 1] = _fold(chain[i], chain[i + 1])


def backbone_parts(
    layers: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    make_branch: BranchMaker,
    make_ds: Callable[[int, int, int], nn.Module],
    out_per_width: int = 1,
    large_images: bool = False,
) -> dict[str, Any]:
    """Stem, blocks, first shortcuts and head of a `Backbone`, with fresh weights.

    Args:
        layers: blocks per stage. Every stage but the first halves the map.
        widths: channels per stage (of the inner convolutions of bottlenecks).
        make_branch: (input channels, width, stride) to a branch of `out_per_width` · width output channels.
        make_ds: (input channels, output channels, stride) to a stage's first shortcut.
        large_images: stem of a 7×7 convolution of stride 2 and max-pooling (224 px) instead of a 3×3
            convolution (32 px).
    """
    channels = widths[0]
    if large_images:
        conv1 = conv2d(3, channels, 7, 2)
        maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
    else:
        conv1, maxpool = conv2d(3, channels, 3), nn.Identity()
    blocks: list[list[nn.Module]] = []
    ds: list[nn.Module] = []
    bn1 = nn.BatchNorm2d(channels)
    for stage, (depth, width) in enumerate(zip(layers, widths, strict=True)):
        stride = 1 if stage == 0 else 2
        ds.append(make_ds(channels, width * out_per_width, stride))
        blocks.append([])
        for i in range(depth):
            blocks[-1].append(make_branch(channels, width, stride if i == 0 else 1))
            channels = width * out_per_width
    fc = nn.Linear(channels, num_classes)
    return {"conv1": conv1, "bn1": bn1, "maxpool": maxpool, "blocks": blocks, "ds": ds, "fc": fc}


def initialise(net: AnyModule) -> AnyModule:
    """He initialisation (fan out) of every convolution, unless it has no numbers; returns the module."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
