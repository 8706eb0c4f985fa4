"""Count parameters, multiply-accumulates (MACs) and FLOPs of any network, beside the original's.

FLOPs are 2 × MACs of convolutions and linear layers for one image. The original of a reduced, shift or plain net
is the ResNet of its depth and kind of shortcuts; a network of others is its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.models.specs import ModelSpec, Variant, parse_name
from blockdrop.names import ReductionMode, Shortcut
from blockdrop.output import check_writable, write_json
from blockdrop.ranges import CheckpointName, Range, Width, check_ranges
from blockdrop.training.config import Groups

if TYPE_CHECKING:
    from blockdrop.dynamic import DynamicNetwork
    from blockdrop.flops import LayerCount
    from blockdrop.models.backbone import Network


@dataclass(kw_only=True)
class CountConfig:
    """Flags of `python -m blockdrop.count`."""

    FIRST: ClassVar[tuple[str, ...]] = ("model", "arch", "load", "layers", "json", "overwrite")
    GROUPS: ClassVar[Groups] = {
        "network": ("expansion", "reduction", "reduction_mode", "shortcut", "num_classes", "image_size"),
        "counting": ("convention",),
    }

    model: str | None = None
    """Name of the network and its data set, <architecture>_<dataset>: R110_C10, plain20_C100, …; or timm:<name>,
    torchvision:<name>, <module>:<function>. Default: the checkpoint's, else R110_C10."""
    arch: str | None = None
    """Architecture that takes the place of --model's, on the same data set: shiftresnet20, resnet20, plain20,
    …."""
    expansion: Width | None = None
    """Inner channels of a shift net's blocks, as a multiple of their output channels. Default: the checkpoint's,
    else 1."""
    reduction: Width | None = None
    """Factor by which the widths of a ResNet or a plain net shrink. Default: the checkpoint's, else 1."""
    reduction_mode: ReductionMode | None = None
    """What --reduction shrinks: block (inner widths / reduction), net (all widths / √reduction), depthwise
    (inner convolutions become depthwise), shuffle (ShuffleNet's blocks) or mobile (MobileNetV2's blocks, with six
    times their input's channels / reduction inside). Default: the checkpoint's, else block."""
    shortcut: Shortcut | None = None
    """Kind of the ResNet's downsampling shortcuts. Default: the checkpoint's, else that of the architecture."""
    num_classes: Annotated[int, Range(least=1, most=100_000)] | None = None
    """Number of classes. Default: the checkpoint's, else the data set's."""
    image_size: Annotated[int, Range(least=1, most=100_000)] | None = None
    """Side of the square images in pixels. Default: the data set's."""
    load: CheckpointName | None = None
    """Checkpoint whose network (and policy network) is counted. Default: a fresh network."""
    convention: Literal["true", "reference"] = "true"
    """How MACs are counted: true, or reference (as published with ShiftResNet, with the first convolution
    miscounted)."""
    layers: bool = False
    """Also print a table of all layers."""
    json: str | None = None
    """File to write all numbers to. Default: none is written."""
    overwrite: bool = False
    """Replace the file of --json if it exists."""

    def check(self) -> None:
        """Raises `BlockdropError` for a value out of range."""
        check_ranges(self)
        Variant(self.expansion, self.reduction, self.reduction_mode)
        if self.json is not None:
            check_writable("--json", self.json, self.overwrite)


def main(config: CountConfig) -> dict[str, Any]:
    """Prints the counts; returns what `--json` writes."""
    config.check()
    from blockdrop.flops import count_flops, count_layers  # torch, which --help does without

    dynamic = open_network(config)
    new, image_size = dynamic.network, config.image_size or dynamic.image_size
    original = original_of(dynamic, config)
    surplus = config.convention == "reference"
    numbers: dict[str, Any] = {
        "model": dynamic.model, "image_size": image_size, "convention": config.convention,
    }  # fmt: skip
    print(f"{dynamic.model}, {new.num_blocks} blocks, {image_size} × {image_size} px", end="")
    print(", MACs by the reference's convention" if surplus else "")
    parameters = [sum(p.numel() for p in net.parameters()) for net in (new, original)]
    macs = [count_macs(net, image_size, surplus) for net in (new, original)]
    for kind, values in (("Parameters", parameters), ("MACs", macs), ("FLOPs", [2 * count for count in macs])):
        print(f"{kind}: (new) {values[0]} (original) {values[1]} (reduction) {values[1] / values[0]:.2f}")
        numbers[kind.lower()] = dict(zip(("new", "original"), values, strict=True))
    if dynamic.policy_network is not None:
        size = sum(p.numel() for p in dynamic.policy_network.own_parameters())
        flops = count_flops(new, dynamic.policy_network, image_size).policy_network
        print(f"Policy network ({dynamic.policy_net}): {size} parameters, {flops} FLOPs")
        numbers["policy_network"] = {"parameters": size, "flops": flops}
    if config.layers:
        rows = count_layers(new, image_size)
        print_layers(rows)
        numbers["layers"] = [asdict(row) for row in rows]
    if config.json is not None:
        write_json("--json", config.json, numbers)
        print(f"numbers: {config.json}")
    return numbers


def open_network(config: CountConfig) -> DynamicNetwork:
    """The network asked for, with the checkpoint's weights and policy network if there is one."""
    from blockdrop.loading import assemble, name_of_network, recorded_size  # torch, which --help does without
    from blockdrop.models.checkpoints.dialects import read_checkpoint
    from blockdrop.models.sources import open_source

    checkpoints = [] if config.load is None else [read_checkpoint(config.load)]
    require(all(c.resnet is not None for c in checkpoints), f"--load {config.load}: holds no backbone to count")
    name = name_of_network(config.model, checkpoints)
    if config.arch is not None:
        name = f"{config.arch}_{parse_name(name).dataset}"
    spec = parse_name(name)
    source = open_source(
        spec,
        shortcut=config.shortcut,
        variant=Variant(config.expansion, config.reduction, config.reduction_mode),
        image_size=None if isinstance(spec, ModelSpec) else config.image_size or recorded_size(checkpoints),
    )
    return assemble(source, checkpoints, num_classes=config.num_classes)


def original_of(dynamic: DynamicNetwork, config: CountConfig) -> Network:
    """The ResNet that a network is made from; a network that isn't the zoo's is its own original."""
    from torch import nn  # here, as --help does without

    from blockdrop.models.backbone import Backbone
    from blockdrop.models.zoo import build_backbone

    spec, network = parse_name(dynamic.model), dynamic.network
    if not isinstance(spec, ModelSpec) or not isinstance(network, Backbone):
        return network
    family = "R" if spec.family in ("R", "plain", "exactplain") else "resnet"
    original = replace(spec, family=family, name=f"{family}{spec.depth}_{spec.dataset}")
    classes = network.fc.out_features if isinstance(network.fc, nn.Linear) else config.num_classes
    return build_backbone(original, classes, network.shortcut)


def count_macs(net: Network, image_size: int, reference: bool) -> int:
    """Multiply-accumulates for one image; by the reference's convention if `reference`."""
    from blockdrop.flops import count_flops, reference_stem_surplus
    from blockdrop.models.backbone import Backbone

    macs = count_flops(net, None, image_size).full // 2
    if not reference:
        return macs
    require(
        isinstance(net, Backbone) and net.built_from is not None,
        "--convention reference: for networks of the zoo, as ShiftResNet's were counted",
    )
    return macs + reference_stem_surplus(cast("Backbone", net), image_size)


def print_layers(rows: list[LayerCount]) -> None:
    """A line per layer, and their sums."""
    width = max(len(row.name) for row in rows)
    print(f"{'layer':{width}}  {'kind':12}  {'output':>12}  {'parameters':>10}  {'MACs':>13}")
    for row in rows:
        output = "×".join(map(str, row.output))
        print(f"{row.name:{width}}  {row.kind:12}  {output:>12}  {row.parameters:>10,}  {row.macs:>13,}")
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    print(f"{'total':{width}}  {'':12}  {'':>12}  {parameters:>10,}  {macs:>13,}")


if __name__ == "__main__":
    run_command(main, CountConfig, __doc__)
