"""A network that somebody brings, as a droppable one with the same logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Network
from blockdrop.models.conversion import by_parts, resnets
from blockdrop.models.conversion.by_parts import Part, Parts
from blockdrop.models.conversion.facts import class_name, preprocessing_of
from blockdrop.models.conversion.resnets import keep_modes, layout_of
from blockdrop.models.droppable import Droppable
from blockdrop.models.parts import DroppableParts, Residual

TOLERANCE = 1e-5
"""Of logits, as a share of the largest where that is above 1."""
ROWS_TOLERANCE = 1e-4
"""Of the logits of the same images in other batches."""


Kind = Literal["torchvision", "timm", "parts", "zoo"]


class Origin(TypedDict, total=False):
    """How a network was made of a model: plain data, enough for `convert_like` to do the same with another."""

    kind: Kind
    class_name: str
    """Full name of the model's class; "" of parts without a model."""
    stage_sizes: list[int]
    residual: Residual
    """Of networks by their parts."""
    image_size: int
    """Of the batch on which it was compared, in pixels; not of networks of ours."""
    classes: int
    stem: str
    head: str
    blocks: list[list[str]]
    transitions: list[str]
    """Names of the parts in the model, where they were given by hand and have such; "" where there is no
    transition."""


def convert(
    model: nn.Module | None = None,
    *,
    stem: Part | None = None,
    blocks: Sequence[Part | Sequence[Part]] | nn.Module | str | None = None,
    head: Part | None = None,
    transitions: Sequence[Part | None] | None = None,
    residual: Literal["detect"] | Residual = "detect",
    image_size: int | None = None,
) -> tuple[Droppable, Origin]:
    """A droppable network of a model's modules (copied), with its logits, in its mode of training.

    A network of ours is given back as it is. Known are the parts of torchvision's and timm's ResNets, ResNeXts and
    wide ResNets (with ReLU; also with deep stems, average-pooling shortcuts, squeeze-and-excitation), and those of
    timm's ConvNeXts and vision transformers. Of any other model give the parts: modules, or their names in the
    model. They, too, are compared with the model, if there is one.

    Args:
        model: left as it is.
        stem: float images (N, 3, H, W) to the first block's input (N, …).
        blocks: a list per stage, or one of blocks alone; an `nn.Sequential` or `nn.ModuleList` stands for the list
            of its modules, but not inside a list of blocks. A block keeps its input's shape.
        head: the last block's output to logits (N, classes).
        transitions: what stands before each stage, if anything, and always runs; None where nothing does.
        residual: what the blocks compute: "whole" y = x + F(x), "branch" F alone. "detect" takes "whole" blocks,
            and looks whether they are: with all weights zero they must give their input back, or its ReLU.
        image_size: side of the square images, in pixels; default: what the model is known to want.
    Returns:
        a `DroppableResNet`, or a `DroppableParts`, and how it was made.
    Raises:
        BlockdropError: no residual blocks known or recognised, a part that can't be converted (by its name), or
            logits that differ from the model's.
    """
    kind: Kind = "parts"
    if blocks is not None or stem is not None or head is not None:
        if blocks is None or stem is None or head is None:
            raise BlockdropError("parts: stem, blocks and head go together")
        parts = by_parts.gather(model, stem, blocks, head, transitions)
        origin = _by_name(model, parts)
    elif isinstance(model, Network):
        return _ours(model)
    elif model is None:
        raise BlockdropError("give a model, or stem, blocks and head")
    else:
        parts, origin = None, Origin()
        layout = layout_of(model)
        if layout is None and by_parts.timm_parts(model) is None:
            raise BlockdropError(
                f"{_describe(model)}: no ResNet of torchvision or timm, and no ConvNeXt or vision transformer of "
                "timm; give the parts of a network of residual blocks: stem=, blocks=[[…], …], head="
            )
        kind = "timm" if layout is None else layout.library
    if image_size is None:
        image_size = _usual_size(model)
    bench = _copied(model, parts)
    if any(tensor.is_meta for module in bench.modules() for tensor in module.parameters()):
        raise BlockdropError(f"{_describe(model)}: has no weights yet, its parameters are on the meta device")
    for module in bench.modules():
        module.cpu().float().eval()
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    take_apart = _examined(bench, residual, images)
    classes = _compare(bench, take_apart(bench), images)
    network = take_apart(_copied(model, parts))
    origin |= Origin(
        kind=kind,
        class_name=_class_name(model),
        stage_sizes=list(network.stage_sizes),
        image_size=image_size,
        classes=classes,
    )
    if isinstance(network, DroppableParts):
        origin["residual"] = network.residual
    return network, origin


def convert_like(
    model: nn.Module | None,
    origin: Origin,
    *,
    stem: Part | None = None,
    blocks: Sequence[Part | Sequence[Part]] | nn.Module | str | None = None,
    head: Part | None = None,
    transitions: Sequence[Part | None] | None = None,
) -> Droppable:
    """Converts a model as another of its class has been.

    Args:
        model, stem, blocks, head, transitions: as for `convert`; parts are only needed where the other's have no
            name in the model.
        origin: what `convert` gave for the other model.
    Raises:
        BlockdropError: a model of another class, with other blocks or classes; parts are needed; and as `convert`.
    """
    name = origin.get("class_name", "")
    found_name = _class_name(model)
    # a class of a program that is run has another module's name where it is imported
    as_program = "__main__" in (name.partition(".")[0], found_name.partition(".")[0])
    if found_name != name and not (as_program and found_name.rpartition(".")[2] == name.rpartition(".")[2]):
        raise BlockdropError(
            f"the network was made of {name or 'parts without a model'}, not of {_describe(model)}"
        )
    parts: dict[str, Any] = {"stem": stem, "blocks": blocks, "head": head, "transitions": transitions}
    if origin.get("kind") == "parts" and blocks is None:
        if "stem" not in origin:
            raise BlockdropError(
                "the network was made of parts that have no names in a model; give stem, blocks and head"
            )
        parts = {key: origin[key] for key in ("stem", "blocks", "head")}
        parts["transitions"] = [part or None for part in origin["transitions"]]
    residual = origin.get("residual", "detect") if origin.get("kind") == "parts" else "detect"
    network, found = convert(model, **parts, residual=residual, image_size=origin.get("image_size"))
    for key, what in (("stage_sizes", "blocks per stage"), ("classes", "classes")):
        if key in origin and found.get(key) != origin.get(key):
            have, want = found.get(key), origin.get(key)
            raise BlockdropError(f"{_describe(model)}: has {have} {what}; the other network had {want}")
    return network


# ---- the steps


class _Bench(NamedTuple):
    """Copies of a model and of the parts that were given; they share what the originals share."""

    model: nn.Module | None
    parts: Parts | None

    def modules(self) -> list[nn.Module]:
        """The model, or whatever isn't in one."""
        return [*([] if self.model is None else [self.model]), *([] if self.parts is None else self.parts.all())]


def _copied(model: nn.Module | None, parts: Parts | None) -> _Bench:
    try:
        return _Bench(*copy.deepcopy((model, parts)))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BlockdropError(f"{_describe(model)}: can't be copied ({reason})") from error


def _examined(
    bench: _Bench, residual: Literal["detect"] | Residual, images: Tensor
) -> Callable[[_Bench], Droppable]:
    """How to make a network of a model's, or of given, modules, once it is known that it can be done."""
    layout = layout_of(bench.model) if bench.parts is None and bench.model is not None else None
    if layout is not None:
        return lambda some: resnets.take_apart(some.model, layout)

    def parts_of(some: _Bench) -> Parts:
        parts = some.parts or by_parts.timm_parts(some.model)
        assert parts is not None, "looked for before"
        return parts

    parts = parts_of(bench)
    form, stem_shape = by_parts.examine(parts, by_parts.names_of(bench.model, parts), residual, images)

    def take_apart(some: _Bench) -> Droppable:
        network = by_parts.network_of(parts_of(some), form, stem_shape)
        modules = some.modules()
        return keep_modes(network, modules, modules[0].training)

    return take_apart


def _ours(model: Network) -> tuple[Droppable, Origin]:
    if not isinstance(model, Droppable):
        raise BlockdropError(f"a {type(model).__name__} has no shortcuts, so none of its blocks can be dropped")
    return model, Origin(kind="zoo", class_name=_class_name(model), stage_sizes=list(model.stage_sizes))


def _by_name(model: nn.Module | None, parts: Parts) -> Origin:
    """The parts' names in the model, if all have one."""
    names = by_parts.own_names(model, parts)
    if any(part not in names for part in parts.all()):
        return Origin()
    return Origin(
        stem=names[parts.stem],
        head=names[parts.head],
        blocks=[[names[block] for block in stage] for stage in parts.blocks],
        transitions=["" if part is None else names[part] for part in parts.transitions],
    )


def _usual_size(model: nn.Module | None) -> int:
    preprocessing = None if model is None else preprocessing_of(model)
    if preprocessing is None:
        raise BlockdropError(f"{_describe(model)}: image_size is needed, the side of its square images in pixels")
    return preprocessing.image_size


def _class_name(model: nn.Module | None) -> str:
    return "" if model is None else class_name(model)


def _describe(model: nn.Module | None) -> str:
    return "parts" if model is None else type(model).__name__


# ---- the comparison


@torch.no_grad()
def _compare(bench: _Bench, network: Droppable, images: Tensor) -> int:
    """Compares the network's logits with those of the model, whose modules it is made of; returns how many classes
    there are.

    First with the weights as they are; then those are changed that hide what a block computes, such as a BatchNorm
    or a scale that starts at zero.
    """
    name = _describe(bench.model)
    logits = _logits(name, network, images)
    if not bool(logits.isfinite().all()):
        raise BlockdropError(f"{name}: its logits aren't finite")
    if bench.model is not None:
        _check_same(name, _logits(name, bench.model, images), logits)
    modules = nn.ModuleList(bench.modules() if bench.model is None else [bench.model])
    if {*map(id, network.parameters())} <= {*map(id, modules.parameters())}:
        _stir(modules)
        stirred = _logits(name, network, images)
        if bench.model is not None and bool(stirred.isfinite().all()):
            _check_same(name, _logits(name, bench.model, images), stirred)
    if isinstance(network, DroppableParts):
        _check_rows(name, network, images)
    return logits.shape[1]


def _logits(name: str, network: nn.Module, images: Tensor, *policy: Tensor | str) -> Tensor:
    try:
        logits = network(images, *policy)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BlockdropError(f"{name} fails on images of shape {tuple(images.shape)}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise BlockdropError(f"{name} gives {what} for {len(images)} images; expected logits (N, classes)")
    return logits


def _check_same(name: str, expected: Tensor, found: Tensor) -> None:
    if found.shape != expected.shape:
        shapes = f"{tuple(expected.shape)}, not {tuple(found.shape)}"
        raise BlockdropError(f"{name} computes something else than its parts: logits of shape {shapes}")
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise BlockdropError(
            f"{name} computes something else than its parts (an own forward, hooks?): logits differ by "
            f"{difference:.1e}"
        )


def _stir(model: nn.Module) -> None:
    """Gives weights to what starts without: scales near zero, and what is zero altogether."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() <= 1 and parameter.numel() and parameter.abs().max() < 1e-3:
            parameter.copy_(0.1 + 0.4 * torch.rand(parameter.shape, generator=generator))
        elif not bool(parameter.any()):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def _check_rows(name: str, network: Droppable, images: Tensor) -> None:
    """An image's logits may depend on its own policy alone."""
    policy = torch.arange(network.num_blocks) % 2 == torch.arange(2)[:, None]  # the images share no block
    expected = _logits(name, network, images, policy, "masked")
    alone = [_logits(name, network, image[None], kept[None]) for image, kept in zip(images, policy, strict=True)]
    limit = ROWS_TOLERANCE * max(1.0, expected.abs().max().item())
    for found in (_logits(name, network, images, policy), torch.cat(alone)):
        if not bool((found - expected).abs().max() <= limit) and bool(expected.isfinite().all()):
            raise BlockdropError(f"{name}: an image's logits depend on the other images of its batch")
