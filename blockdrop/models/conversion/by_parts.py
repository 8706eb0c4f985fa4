"""A network's parts: those of timm's ConvNeXts and vision transformers, or given by hand; what parts must do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.conversion.facts import class_name
from blockdrop.models.conversion.resnets import refuse_hooks
from blockdrop.models.parts import DroppableParts, Residual

Part = nn.Module | str
"""A module, or the name of one in the model."""


class Parts(NamedTuple):
    """What a network is made of."""

    stem: nn.Module
    blocks: list[list[nn.Module]]
    head: nn.Module
    transitions: list[nn.Module | None]

    def all(self) -> list[nn.Module]:
        """Every part, in running order."""
        stages = zip(self.transitions, self.blocks, strict=True)
        between = [part for first, stage in stages for part in (first, *stage) if part is not None]
        return [self.stem, *between, self.head]


def gather(
    model: nn.Module | None,
    stem: Part,
    blocks: Sequence[Part | Sequence[Part]] | nn.Module | str,
    head: Part,
    transitions: Sequence[Part | None] | None,
) -> Parts:
    """The modules that are meant by parts given by hand; see `convert`."""

    def module(part: Any, what: str) -> nn.Module:
        if isinstance(part, str):
            if model is None:
                raise BlockdropError(f"{what}: {part!r} is the name of a part, but no model was given")
            try:
                return model.get_submodule(part)
            except AttributeError:
                raise BlockdropError(f"{what}: {type(model).__name__} has no part named {part!r}") from None
        if not isinstance(part, nn.Module):
            raise BlockdropError(f"{what}: got a {type(part).__name__}; expected an nn.Module or the name of one")
        return part

    def several(part: Any, what: str) -> list[Any]:
        found = module(part, what) if isinstance(part, str | nn.Module) else part
        if not isinstance(found, nn.Sequential | nn.ModuleList | Sequence):
            raise BlockdropError(f"{what}: got a {type(found).__name__}; expected a list of stages, or of blocks")
        return list(found)

    def is_stage(part: Any) -> bool:
        return isinstance(
            module(part, "blocks") if isinstance(part, str) else part, nn.Sequential | nn.ModuleList | Sequence
        )

    given = several(blocks, "blocks")
    stages = given if given and all(map(is_stage, given)) else [given]
    found = [
        [module(block, f"blocks[{s}][{i}]") for i, block in enumerate(several(stage, f"blocks[{s}]"))]
        for s, stage in enumerate(stages)
    ]
    empty = [s for s, stage in enumerate(found) if not stage]
    if empty:
        raise BlockdropError(f"blocks[{empty[0]}]: a stage without blocks")
    between = list(transitions) if transitions is not None else [None] * len(found)
    if len(between) != len(found):
        raise BlockdropError(
            f"transitions: got {len(between)} for {len(found)} stages; None where a stage has none"
        )
    return Parts(
        module(stem, "stem"),
        found,
        module(head, "head"),
        [None if part is None else module(part, f"transitions[{s}]") for s, part in enumerate(between)],
    )


# ---- timm's


class _TokenStem(nn.Module):
    """A vision transformer up to its blocks."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to tokens (N, T, C)."""
        transformer: Any = self.transformer
        tokens = transformer._pos_embed(transformer.patch_embed(images))
        return transformer.norm_pre(transformer.patch_drop(tokens))


class _TokenHead(nn.Module):
    """A vision transformer behind its blocks."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (N, T, C) to logits (N, classes)."""
        transformer: Any = self.transformer
        return transformer.forward_head(transformer.norm(tokens))


TOKEN_HEAD = {"norm", "attn_pool", "fc_norm", "head_drop", "head"}


def _only(model: nn.Module, names: set[str]) -> nn.Module:
    """A model of the same class and options, the same modules and parameters, of which it has none but these."""
    some = copy.copy(model)
    some._modules = {name: part for name, part in model._modules.items() if name in names}
    some._parameters = {name: part for name, part in model._parameters.items() if name in names}
    return some


def timm_parts(model: Any) -> Parts | None:
    """The parts of a ConvNeXt or vision transformer of timm; None of any other model."""
    name = class_name(model)
    if name == "timm.models.convnext.ConvNeXt":
        refuse_hooks(type(model).__name__, model)
        for name, stage in model.stages.named_children():
            refuse_hooks(f"stages.{name}", stage)
        transitions = [stage.downsample for stage in model.stages]
        return Parts(
            model.stem,
            [list(stage.blocks) for stage in model.stages],
            nn.Sequential(model.norm_pre, model.head),
            [None if isinstance(part, nn.Identity) else part for part in transitions],
        )
    if name == "timm.models.vision_transformer.VisionTransformer":
        refuse_hooks(type(model).__name__, model)
        refuse_hooks("blocks", model.blocks)
        has = {*model._modules, *model._parameters}
        stem = _TokenStem(_only(model, has - TOKEN_HEAD - {"blocks"}))
        return Parts(stem, [list(model.blocks)], _TokenHead(_only(model, TOKEN_HEAD)), [None])
    return None


# ---- what they must do


def names_of(model: nn.Module | None, parts: Parts) -> dict[nn.Module, str]:
    """Every part's name: the one that it has in the model, or its place among the parts."""
    names: dict[nn.Module, str] = {parts.stem: "stem", parts.head: "head"}
    for s, (transition, stage) in enumerate(zip(parts.transitions, parts.blocks, strict=True)):
        names |= {} if transition is None else {transition: f"transitions[{s}]"}
        names |= {block: f"blocks[{s}][{i}]" for i, block in enumerate(stage)}
    return names | own_names(model, parts)


def own_names(model: nn.Module | None, parts: Parts) -> dict[nn.Module, str]:
    """The names in the model of those parts that are its submodules."""
    wanted = set(parts.all())
    named = () if model is None else model.named_modules()
    return {module: name for name, module in named if module in wanted and name}


@torch.no_grad()
def examine(
    parts: Parts, names: dict[nn.Module, str], residual: Literal["detect"] | Residual, images: Tensor
) -> tuple[Residual, tuple[int, ...]]:
    """Runs the parts on a small batch, in eval mode, to see that they make a network of residual blocks.

    Returns:
        the blocks' form, and the shape of the stem's output for one image.
    Raises:
        BlockdropError: which part is none, and why.
    """
    blocks = [block for stage in parts.blocks for block in stage]
    for block in blocks:
        if blocks.count(block) > 1:
            raise BlockdropError(f"{names[block]}: stands in two places; each block must be a module of its own")
    x = stem = _run(parts.stem, names, images)
    for transition, stage in zip(parts.transitions, parts.blocks, strict=True):
        x = x if transition is None else _run(transition, names, x)
        for block in stage:
            before = x.clone()
            y = _run(block, names, x)
            name = f"{names[block]} ({type(block).__name__})"
            if y.shape != before.shape:
                shapes = f"from {tuple(before.shape[1:])} to {tuple(y.shape[1:])}"
                raise BlockdropError(
                    f"{name} changes the shape of an image's map {shapes}; give it as a transition"
                )
            if not x.equal(before) and bool(before.isfinite().all()):
                raise BlockdropError(f"{name} writes to its input; make its in-place operations ordinary ones")
            if residual != "whole":
                _check_form(name, block, before, residual)
            x = before + y if residual == "branch" else y
    logits = _run(parts.head, names, x)
    if logits.dim() != 2:
        raise BlockdropError(f"{names[parts.head]}: gives {tuple(logits.shape)}; expected logits (N, classes)")
    return "branch" if residual == "branch" else "whole", tuple(stem.shape[1:])


def _run(part: nn.Module, names: dict[nn.Module, str], x: Tensor) -> Tensor:
    name = f"{names[part]} ({type(part).__name__})"
    try:
        y = part(x)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BlockdropError(f"{name} fails on an input of shape {tuple(x.shape)}: {reason}") from error
    if not isinstance(y, Tensor):
        raise BlockdropError(f"{name} gives a {type(y).__name__}; a part must give one tensor")
    if y.dim() < 2 or len(y) != len(x):
        raise BlockdropError(
            f"{name} gives {tuple(y.shape)} for {len(x)} images; images must be rows along dimension 0"
        )
    return y


def _check_form(name: str, block: nn.Module, like: Tensor, residual: Literal["detect", "branch"]) -> None:
    """Without weights F is 0, so that y = x + F(x) is x."""
    still = copy.deepcopy(block)
    for tensor in (*still.parameters(), *(b for key, b in still.named_buffers() if key.endswith("running_mean"))):
        tensor.zero_()
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype)
    y = still(x.clone())
    is_whole = any(torch.allclose(y, whole, rtol=1e-5, atol=1e-5) for whole in (x, F.relu(x)))
    if residual == "branch" and is_whole:
        raise BlockdropError(f'{name} adds its input itself: residual="whole"')
    if residual == "detect" and not (is_whole and next(block.parameters(), None) is not None):
        raise BlockdropError(
            f"{name} isn't recognised as a residual block y = x + F(x): with all its weights zero it doesn't give "
            'its input back; residual="branch" if the module is F alone, residual="whole" to take it as it is'
        )


def network_of(parts: Parts, residual: Residual, stem_shape: tuple[int, ...]) -> DroppableParts:
    """The network of the parts, none of them copied."""
    return DroppableParts(*parts, residual=residual, stem_shape=stem_shape)
