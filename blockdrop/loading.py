"""Dynamic networks made of a model, of checkpoints, or of a file that says what it holds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from agents.policy_network import PolicyNetwork
from blockdrop.data.sets import DATASETS, LARGEST_IN_MEMORY, Normalisation, Preprocessing
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError, CheckpointError, require
from blockdrop.models.backbone import Backbone, Network
from blockdrop.models.checkpoints.dialects import Checkpoint, read_checkpoint
from blockdrop.models.checkpoints.filling import fill_brought, load_checkpoint
from blockdrop.models.checkpoints.saving import check_description
from blockdrop.models.conversion import convert, convert_like, preprocessing_of
from blockdrop.models.conversion.by_parts import Part
from blockdrop.models.parts import Residual
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.sources import Source, open_source
from blockdrop.models.specs import DEFAULT_MODEL, ForeignSpec, Variant, parse_model_name, parse_name
from blockdrop.names import DEFAULT_POLICY_NET, INITIAL_KEEP, PolicyNet, Shortcut

WhichPolicy = Literal["loaded", "fresh", "none"]
"""loaded: the checkpoints' policy network, if they hold one; fresh: else a new one; none: none, whatever they
hold."""


def assemble(
    source: Source,
    checkpoints: Sequence[Checkpoint] = (),
    *,
    num_classes: int | None = None,
    policy: WhichPolicy = "loaded",
    policy_net: PolicyNet | None = None,
    usual_net: PolicyNet = "reference",
    new_head: bool = False,
    initial_keep: float | None = None,
    normalisation: Normalisation | None = None,
    classes: Sequence[str] | None = None,
) -> DynamicNetwork:
    """The network of a source, filled from checkpoints in order; of several that hold a part the last one wins.

    Args:
        num_classes: overrides the checkpoint's, and the network's own.
        policy_net: name of the kind of policy network; default: the checkpoint's, else `usual_net`.
        new_head: keep a fresh classifier head.
        initial_keep: keep probability that a fresh policy network starts near.
        normalisation: overrides the checkpoint's, and the network's usual one.
        classes: overrides the checkpoint's.
    Raises:
        BlockdropError: a checkpoint of another network; a policy network for a net without blocks to drop.
    """
    backbones = [c for c in checkpoints if c.resnet is not None]
    policies = [c for c in checkpoints if c.policy_network is not None and policy != "none"]
    recorded = backbones[-1] if backbones else None
    network = source.filled(recorded, num_classes, new_head) if recorded else source.fresh(num_classes)
    # of a file of a library's own weights the library knows better than what they let guess
    trusted = recorded if recorded and (recorded.origin or not isinstance(source.spec, ForeignSpec)) else None
    preprocessing = source.preprocessing(normalisation or (trusted.normalisation if trusted else None))
    if trusted is not None and trusted.preprocessing is not None and normalisation is None:
        preprocessing = trusted.preprocessing
    recorded_net = policies[-1].policy_net if policies else usual_net
    policy_network: PolicyNetwork | None = None
    if policies and not source.spec.droppable:
        raise BlockdropError(
            f"{policies[-1].path}: holds a policy network, but {source.spec.architecture} has no blocks to drop"
        )
    require(
        policy != "fresh" or source.spec.droppable,
        f"{source.spec.name}: {source.spec.architecture} has no blocks that a policy could drop",
    )
    if policies or policy == "fresh":
        policy_network = build_policy_network(
            network.num_blocks,
            preprocessing.image_size > LARGEST_IN_MEMORY,
            policy_net or recorded_net,
            backbone=network,
            initial_keep=initial_keep,
        )
    if policies and policy_network is not None:
        load_checkpoint(policies[-1], policy_network=policy_network)
    facts: Any = policies[-1] if policies else recorded
    return DynamicNetwork(
        network,
        policy_network,
        model=source.spec.name,
        variant=source.variant,
        policy_net=policy_net or recorded_net,
        preprocessing=preprocessing,
        classes=classes or (recorded.classes if recorded else None),
        operating_point=policies[-1].operating_point if policies else None,
        origin=source.origin,
        metrics=facts.metrics if facts else {},
        epoch=facts.epoch if facts else None,
        config=facts.config if facts else {},
    )


def name_of_network(model: str | None, checkpoints: Sequence[Checkpoint]) -> str:
    """The network that is meant: the one that is named, else what the last checkpoint of a network says, else what
    that of a policy network says, else the reference's.

    Raises:
        BlockdropError: a function of a user's own builds it, which is never called because a file says so.
    """
    recorded = [c for c in checkpoints if c.resnet is None] + [c for c in checkpoints if c.resnet is not None]
    named = [c for c in recorded if c.model is not None]
    if model is not None or not named:
        return model or DEFAULT_MODEL
    last = named[-1]
    assert last.model is not None
    spec = parse_name(last.model) if ":" in last.model else None
    if last.origin is not None and (not isinstance(spec, ForeignSpec) or spec.is_function):
        raise BlockdropError(
            f"{last.path}: holds the weights of a {last.model}, but not how to build one; pass --model, as "
            "timm:<name>, torchvision:<name> or <module>:<function>"
        )
    return last.model


def open_files(
    paths: Sequence[str],
    model: str | None = None,
    *,
    shortcut: Shortcut | None = None,
    policy_net: PolicyNet | None = None,
) -> tuple[DynamicNetwork, list[Checkpoint]]:
    """The dynamic network of some checkpoints, in eval mode, without any data; and the checkpoints.

    Args:
        paths: files of any dialect, or run directories; backbone and policy network in one or in two. Later ones
            win.
        model, shortcut, policy_net: override what the checkpoints say.
    Raises:
        BlockdropError: no network in them; anything damaged, or not fitting together.
    """
    checkpoints = [read_checkpoint(path) for path in paths]
    if not any(c.resnet is not None for c in checkpoints):
        files = " ".join(paths)
        raise BlockdropError(f"--load {files}: a policy network without its backbone; name that checkpoint too")
    spec = parse_name(name_of_network(model, checkpoints))
    source = open_source(spec, shortcut=shortcut, image_size=recorded_size(checkpoints))
    return assemble(source, checkpoints, policy_net=policy_net).eval(), checkpoints


def recorded_size(checkpoints: Sequence[Checkpoint]) -> int | None:
    """Image size of a network that isn't the zoo's, as a checkpoint of it says."""
    sizes = [c.preprocessing.image_size for c in checkpoints if c.preprocessing and c.origin is not None]
    return sizes[-1] if sizes else None


def load(path: str | Path, model: nn.Module | str | None = None) -> DynamicNetwork:
    """The dynamic network that a file or a run directory holds, in eval mode: networks, operating point, image
    size, preprocessing and class names, as `DynamicNetwork.save` and the commands write them.

    Nothing in the file is executed. Files of other dialects hold weights alone, so `model` has to say of what.

    Args:
        path: a file, a run directory (its newest checkpoint), a published network's name (see `pretrained`),
            `hf://owner/repository/network` of the Hugging Face hub, or a URL.
        model: of a network that its owner's code builds, a network of the same class (which is left as it is), or
            the `DynamicNetwork` that `make_dynamic` makes of its parts; of other dialects the name of the network.
    Raises:
        BlockdropError: unreadable, damaged, or of another network than `model`; or `model` is needed.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.resnet is None:
        raise CheckpointError(f"{checkpoint.path}: holds a policy network but no backbone")
    if isinstance(model, nn.Module):
        return _load_into(checkpoint, _as_written(model))
    require(model is None or isinstance(model, str), f"model: got {model!r}; pass a network, or a name")
    name = model or checkpoint.model
    if name is None:
        raise CheckpointError(
            f"{checkpoint.path}: doesn't say which network it holds; pass its name, for example model='R110_C10' "
            "or 'torchvision:resnet50'"
        )
    if checkpoint.origin is not None and model is None:
        spec = parse_name(name) if ":" in name else None
        if not isinstance(spec, ForeignSpec) or spec.is_function:
            raise CheckpointError(f"{checkpoint.path}: holds the weights of a {name}; pass one as model=")
    source = open_source(parse_name(name), image_size=recorded_size([checkpoint]))
    return assemble(source, [checkpoint]).eval()


def _load_into(checkpoint: Checkpoint, model: nn.Module) -> DynamicNetwork:
    """The checkpoint's dynamic network, its network a model's like that which it was made of."""
    if checkpoint.model is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds weights alone; load them into the model and hand it to make_dynamic, or "
            "pass the network's name as model="
        )
    if checkpoint.origin is None or checkpoint.preprocessing is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds {checkpoint.model}, which is made by its name; leave model out"
        )
    made_of = model.network if isinstance(model, DynamicNetwork) else model
    network: Network
    try:
        if not isinstance(made_of, Network):
            network = convert_like(made_of, checkpoint.origin)  # type: ignore[arg-type]
        elif list(made_of.stage_sizes) == checkpoint.origin.get("stage_sizes"):
            network = copy.deepcopy(made_of)
        else:
            raise BlockdropError(f"{type(made_of).__name__}: has other blocks than the network in the file")
    except BlockdropError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    network = network.float()
    fill_brought(checkpoint, network)
    policy_network = None
    if checkpoint.policy_network is not None:
        large = checkpoint.preprocessing.image_size > LARGEST_IN_MEMORY
        policy_network = build_policy_network(network.num_blocks, large, checkpoint.policy_net, backbone=network)
        load_checkpoint(checkpoint, policy_network=policy_network)
        policy_network.to(next(network.parameters()).device)
    return DynamicNetwork(
        network,
        policy_network,
        model=checkpoint.model or type(model).__name__,
        policy_net=checkpoint.policy_net,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        operating_point=checkpoint.operating_point,
        origin=checkpoint.origin,
        metrics=checkpoint.metrics,
        epoch=checkpoint.epoch,
        config=checkpoint.config,
    ).eval()


def make_dynamic(
    model: nn.Module | str | None = None,
    policy_net: PolicyNet = DEFAULT_POLICY_NET,
    *,
    stem: Part | None = None,
    blocks: Sequence[Part | Sequence[Part]] | nn.Module | str | None = None,
    head: Part | None = None,
    transitions: Sequence[Part | None] | None = None,
    residual: Literal["detect"] | Residual = "detect",
    image_size: int | None = None,
    normalisation: Normalisation | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    initial_keep: float = INITIAL_KEEP,
    seed: int = 0,
) -> DynamicNetwork:
    """Any residual network, with a fresh policy network that keeps all its blocks until it has learned better.

    Fresh weights are drawn from torch's generator: `torch.manual_seed` makes a run from here on repeatable.

    Taken as they are: ResNets, ResNeXts and wide ResNets of torchvision; ResNets of timm (deep stems, average-pool
    shortcuts, squeeze-and-excitation), its ConvNeXts and vision transformers; networks of ours. Any other comes by
    its parts: `make_dynamic(stem=…, blocks=[[…], …], head=…)`, modules or, beside a model, their names in it. A
    block is a module x -> y of the same shape with y = x + F(x); dropped, it is the identity.

    Args:
        model: a network, which is left as it is, or a name: of the zoo (`R32_Digits`), `timm:resnet50d`,
            `torchvision:resnext50_32x4d`; those come with fresh weights.
        policy_net: kind of policy network; see `blockdrop.build`.
        stem, blocks, head, transitions, residual: see `blockdrop.models.conversion.convert`.
        image_size: side of the square images in pixels; default: what the network is known to want.
        normalisation: mean and standard deviation of its images, scaled to [0, 1]; default: what it is known to
            want, else ImageNet's.
        num_classes: of a network by its name; default: its own.
        classes: names in label order.
        initial_keep: keep probability of every block for every image, before training.
        seed: of the policy network's weights.
    Raises:
        BlockdropError: what can't be converted, with the name of the module and why.

    >>> import torch, torchvision
    >>> dynamic = make_dynamic(torchvision.models.resnet18(num_classes=10), image_size=64)
    >>> logits, policy = dynamic.eval()(torch.zeros(2, 3, 64, 64))
    >>> logits.shape, policy.all().item()
    (torch.Size([2, 10]), True)
    """
    for argument, number in (("image_size", image_size), ("num_classes", num_classes)):
        require(
            number is None or (isinstance(number, int) and number >= 1),
            f"{argument} {number}: not a whole number of at least 1",
        )
    if normalisation is not None:
        normalisation = Normalisation(*normalisation)
        require(min(normalisation.std) > 0, f"normalisation: a standard deviation of {min(normalisation.std)}")
    if isinstance(model, nn.Module):
        model = _as_written(model)
    origin: Any = None
    variant = Variant()
    if isinstance(model, str):
        source = open_source(parse_name(model), image_size=image_size)
        network, name = source.fresh(num_classes), model
        facts, origin = source.preprocessing(normalisation), source.origin
    else:
        require(num_classes is None, "num_classes: of a network by its name; this one has its classes")
        network, origin = convert(
            model, stem=stem, blocks=blocks, head=head, transitions=transitions, residual=residual,
            image_size=image_size,
        )  # fmt: skip
        name = type(model).__name__ if model is not None else "parts"
        known = None if model is None else preprocessing_of(model)
        if isinstance(model, Network):
            name, variant, origin, known = _of_the_zoo(model)
        facts = _facts(known, image_size or origin.get("image_size") if origin else image_size, normalisation)
    _check_weights(network, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy_network = build_policy_network(
            network.num_blocks,
            facts.image_size > LARGEST_IN_MEMORY,
            policy_net,
            backbone=network,
            initial_keep=initial_keep,
        ).to(next(network.parameters()).device)
    dynamic = DynamicNetwork(
        network,
        policy_network,
        model=name,
        variant=variant,
        policy_net=policy_net,
        preprocessing=facts,
        classes=classes,
        origin=origin,
    )
    names = len(dynamic.classes or ())
    require(
        names in (0, dynamic.num_classes),
        f"classes: {names} names, but {name} has {dynamic.num_classes} classes",
    )
    dynamic.training = network.training  # its modules keep theirs, such as BatchNorm that is frozen
    policy_network.train(network.training)
    return dynamic


def _as_written(model: nn.Module) -> nn.Module:
    """What torch.compile or a parallel wrapper holds."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _as_written(model.module)
    compiled_from = getattr(model, "_orig_mod", None)
    return compiled_from if isinstance(compiled_from, nn.Module) else model


def _check_weights(network: Network, name: str) -> None:
    """Raises `BlockdropError` for weights that training, the executor or a file couldn't hold."""
    for key, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise BlockdropError(f"{name}: {key} is a {type(value).__name__}, no tensor, which no file could hold")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise BlockdropError(
                f"{name}: {key} is {value.dtype}; hand the network in as float32 (model.float()), compile and "
                "precision= choose other types"
            )
        if not bool(torch.isfinite(value).all()):
            raise BlockdropError(
                f"{name}: {key} holds values that aren't finite; a mask is a buffer with persistent=False"
            )


def _of_the_zoo(network: Network) -> tuple[str, Variant, None, Preprocessing]:
    """Name, widths, no origin, and preprocessing of a network of ours."""
    if network.built_from is None:
        raise BlockdropError(
            f"a {type(network).__name__} that was made by hand has no name to be saved under; make it by "
            "blockdrop.build, or hand in the network that it was converted from"
        )
    name, variant = network.built_from
    spec = parse_model_name(name)
    assert isinstance(network, Backbone)
    try:
        check_description(name, variant, network)
    except ValueError as error:
        raise BlockdropError(f"{name}: is no longer what blockdrop.build made ({error})") from None
    return name, variant, None, Preprocessing.usual(spec.image_size, DATASETS[spec.dataset].normalisation)


def _facts(
    known: Preprocessing | None, image_size: int | None, normalisation: Normalisation | None
) -> Preprocessing:
    if known is None:
        if image_size is None:
            raise BlockdropError("image_size: the network doesn't say the side of its images; pass it, in pixels")
        return Preprocessing.usual(image_size, normalisation or DATASETS["Folder"].normalisation)
    return known.at(image_size, normalisation)
