"""The methods that studies train and compare, one list: static ways to make a ResNet cheaper, static policies, and
policies that are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from blockdrop.cl_train import CurriculumConfig
from blockdrop.distill import make_config
from blockdrop.errors import require
from blockdrop.finetune import FinetuneConfig
from blockdrop.models.specs import parse_model_name
from blockdrop.pretrain import PretrainConfig
from blockdrop.training.config import TrainingConfig

Kind = Literal["full", "dynamic", "cascade", "static policy", "plain", "distilled", "shift", "reduced", "variant"]
"""What a method is among the others. full: all blocks of the network that a policy network decides on. dynamic: a
policy network decides. cascade: a small static network answers what it is sure of, a big one the rest (its
checkpoints are made by `experiments.cascade`). static policy: the same blocks for all images, or drawn at random.
plain: no shortcuts. distilled: it learned from another network. shift: shifts in place of 3 × 3 convolutions.
reduced: a smaller ResNet. variant: the fast recipe with one thing exchanged, to see what that thing does."""
RIVALS: tuple[Kind, ...] = ("plain", "distilled", "shift", "reduced")
"""Kinds of static networks."""
Start = Literal["full", "scratch", "weights", "r20", "resnet32"]
"""What a method's first command starts from. full: the full network. weights: those that the study's --init names,
or scratch. r20: the run of that method. resnet32: the ResNet-32 of --teacher32."""
Command = Literal["pretrain", "cl_train", "finetune", "distill"]
Stage = Literal["curriculum", "finetune", "fast", "glance", "rival"]
"""What a study's flags give numbers of epochs for: cl_train, fine-tuning by the reference's recipe, by the fast
one, by answers and glance (always the recipe's own number), and the commands of static networks."""


@dataclass(frozen=True)
class Step:
    """A command; each starts from the last checkpoint of the one before."""

    command: Command
    stage: Stage
    recipe: str = "reference"
    flags: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    """Name of its run, which methods may share; default: the method's."""


@dataclass(frozen=True)
class Method:
    """How a network is trained, from what, and what decides on its blocks."""

    name: str
    title: str
    """`{network}` and `{k}`, blocks that static policies keep, are filled in."""
    kind: Kind
    steps: tuple[Step, ...] = ()
    """Commands, one after the other; the last one's network is the method's."""
    start: Start = "full"
    policy: str | None = None
    """Static policy to fine-tune and evaluate under; `{k}` as above, `{results}` and `{seed}` as they are."""
    network: str | None = None
    """Architecture that --model names, for distill the teacher's; default: the full network's."""
    also: str | None = None
    """Another name that a study has for it."""


# ---- the list


def fast(**flags: Any) -> tuple[Step, ...]:
    return (Step("finetune", "fast", "fast", flags),)


def reference(**flags: Any) -> tuple[Step, ...]:
    return (Step("cl_train", "curriculum", run="curriculum"), Step("finetune", "finetune", flags=flags))


def pretrained(**flags: Any) -> tuple[Step, ...]:
    return (Step("pretrain", "rival", flags={"lr": 0.1, **flags}),)


def distilled(**flags: Any) -> tuple[Step, ...]:
    return (Step("distill", "rival", flags={"lr": 0.1, **flags}),)


STAGEWISE = distilled(method="stagewise", stage_epochs=2, finetune_lr=0.05)
JOINTRD = distilled(method="jointrd", student="plain20", side_epochs=5, schedule="one_cycle")
ANSWERS = (Step("finetune", "glance", "answers"),)
GLANCE = (Step("finetune", "glance", "glance"),)
KD = distilled(method="kd", student="R8", temperature=4.0)
SHIFT = pretrained(arch="shiftresnet20", expansion=3.0)
BLOCK = pretrained(arch="resnet20", reduction=2.8, reduction_mode="block")
METHODS = (
    Method("full", "{network}, all blocks", "full"),
    Method("fast", "dynamic, 59 %", "dynamic", fast()),
    Method("fast-45", "dynamic, 45 %", "dynamic", fast(target_flops=0.45)),
    Method("fast-75", "dynamic, 75 %", "dynamic", fast(target_flops=0.75)),
    Method("answers", "answers, ResNet as brought", "dynamic", ANSWERS),
    Method("glance", "answers, policies for the rest", "dynamic", GLANCE),
    *(Method(f"cascade-{cost}", f"cascade, {cost} %", "cascade") for cost in (60, 45, 30)),
    Method("reference-p1", "curriculum, penalty -1", "dynamic", reference(penalty=-1.0)),
    Method("reference-p5", "curriculum, penalty -5", "dynamic", reference(penalty=-5.0), also="reference"),
    # By the means and with the work of fast: of the policy network only the bias is left.
    Method("fixed", "one learned policy", "static policy", fast(policy_net="constant")),
    *(
        Method(
            f"fixed-{cost}",
            f"one learned policy, {cost} %",
            "static policy",
            fast(policy_net="constant", target_flops=cost / 100),
        )
        for cost in (45, 30)
    ),
    Method("first_k", "first {k} blocks", "static policy", fast(), policy="first_k:{k}"),
    Method("random_k", "random {k} blocks", "static policy", fast(), policy="random_k:{k}"),
    Method(
        "dist_k", "{k} blocks by usage", "static policy", fast(), policy="dist_k:{k}:{results}/fast-s{seed}.json"
    ),
    Method("r20", "ResNet-20, the teacher", "reduced", pretrained(), "weights", network="R20"),
    Method("plain20", "plain-20, alone", "plain", pretrained(arch="plain20"), "scratch", network="R20"),
    Method("stagewise", "plain-20, stagewise", "distilled", STAGEWISE, "r20", network="R20"),
    Method("jointrd", "plain-20, jointrd", "distilled", JOINTRD, "r20", network="R20"),
    Method("r8", "ResNet-8, alone", "reduced", pretrained(), "scratch", network="R8"),
    Method("kd", "ResNet-8, kd from ResNet-32", "distilled", KD, "resnet32", network="R32"),
    Method("shift", "ShiftResNet-20, e = 3", "shift", SHIFT, "scratch", network="R20"),
    Method("block", "ResNet-20, blocks / 2.8", "reduced", BLOCK, "scratch", network="R20"),
    # Each image runs under another one's policy, in training and in tests.
    Method("random", "dynamic, policies shuffled", "variant", fast(shuffle_policies=True)),
    *(
        Method(f"fast_{name}", f"dynamic, policy network {name}", "variant", fast(policy_net=name))
        for name in ("pooled4", "pooled", "reference")
    ),
)
"""What studies train, in this order, each those of some kinds and names. To add a method, add a line."""


def find(name: str) -> Method:
    """The method of that name, or that a study calls so.

    Raises:
        KeyError: there is none.
    """
    for method in METHODS:
        if name in (method.name, method.also):
            return method
    raise KeyError(name)


def of_kinds(*kinds: Kind) -> tuple[Method, ...]:
    """The methods of some kinds, as listed."""
    return tuple(method for method in METHODS if method.kind in kinds)


# ---- their commands


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a study's flags say about all its runs."""

    model: str
    """The full network, on whose data set all methods are trained."""
    starts: Mapping[Start, str | None]
    """Checkpoints or run directories that methods start from."""
    epochs: Mapping[Stage, int | None]
    """None: the recipe's."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Of all commands; a method's own win."""
    fast_flags: Mapping[str, Any] = field(default_factory=dict)
    """Of commands by the fast recipe; a method's own win."""


FLAGS_OF_STARTS: dict[Start, str] = {
    "full": "--load: name the trained full network, which runs start from",
    "resnet32": "--teacher32: name a trained ResNet-32",
}
TUNING_LR = 0.05
"""Of a network that starts from weights instead of scratch."""


def plan(method: Method, folders: Sequence[str], conditions: Conditions, **flags: Any) -> list[TrainingConfig]:
    """A method's commands, one after the other.

    Args:
        folders: the run directory of each.
        flags: of this run, such as the seed.
    Raises:
        BlockdropError: what it starts from isn't named.
    """
    start = conditions.starts.get(method.start)
    require(start is not None or method.start not in FLAGS_OF_STARTS, FLAGS_OF_STARTS.get(method.start, ""))
    model = conditions.model
    if method.network is not None:
        model = f"{method.network}_{parse_model_name(model).dataset}"
    shared = {**conditions.flags, **flags, "model": model}
    commands: list[TrainingConfig] = []
    for step, folder in zip(method.steps, folders, strict=True):
        own = {**(conditions.fast_flags if step.recipe == "fast" else {}), **step.flags}
        if method.start == "weights" and start is not None:
            own["lr"] = TUNING_LR
        count = conditions.epochs.get(step.stage)
        if count is not None:
            own["max_epochs"] = count
        if step.command == "cl_train":
            blocks = sum(parse_model_name(model).layers)
            own.setdefault("cl_step", -(-blocks // (count or blocks)))  # so that it comes to decide all
        commands.append(_config(step, () if start is None else (start,), {**shared, "cv_dir": folder, **own}))
        start = folder
    return commands


def _config(step: Step, start: tuple[str, ...], flags: Mapping[str, Any]) -> TrainingConfig:
    match step.command:
        case "pretrain":
            return PretrainConfig(init=start, **flags)
        case "distill":
            config = make_config(load=start, **flags)
            assert isinstance(config, TrainingConfig)
            return config
        case "cl_train":
            return CurriculumConfig.of_recipe(step.recipe, load=start, **flags)
    return FinetuneConfig.of_recipe(step.recipe, pretrained=start, **flags)
