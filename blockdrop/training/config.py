"""Flags that several commands share, the ranges of their values, and the boxes that --help shows them in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from agents.names import RewardName
from blockdrop.errors import BlockdropError, require
from blockdrop.models.specs import DEFAULT_MODEL, Variant, parse_name
from blockdrop.names import PolicyNet, Precision, ReductionMode, ServiceName, Shortcut
from blockdrop.ranges import (
    Count,
    CountOrNone,
    Folder,
    NotNegative,
    Positive,
    Range,
    Width,
    check_ranges,
)

if TYPE_CHECKING:
    from blockdrop.training.compute import Compute

Groups = dict[str, tuple[str, ...]]
"""Flags that belong together in --help, by the title of their box."""
Colour = Annotated[float, Range(least=0, most=1)]
"""Of an image scaled to [0, 1]."""
Share = Annotated[float, Range(above=0, most=2, meaning="a fraction of the full network's")]
"""Of the full network's FLOPs."""


@dataclass(kw_only=True)
class ModelConfig:
    """Flags of every command: which model, which data, on what."""

    FIRST: ClassVar[tuple[str, ...]] = ("model", "data_dir", "load", "cv_dir", "batch_size")
    """What a newcomer needs, shown first."""
    GROUPS: ClassVar[Groups] = {
        "network": (
            "arch", "shortcut", "expansion", "reduction", "reduction_mode", "image_size", "policy_net",
        ),
        "data": ("split", "normalisation", "mean", "std", "download", "workers", "skip_bad_images"),
        "device and seed": ("device", "precision", "channels_last", "seed"),
    }  # fmt: skip

    model: str | None = None
    """Name of the network and its data set, R<depth>_<dataset>: R20_Digits, R110_C10, R50_ImgNet, …
    (docs/reference.md lists depths and data sets); or a network of others on an image tree: timm:resnet50d,
    torchvision:resnext50_32x4d, or my_package.my_module:build, a function that returns the network. Default: what
    the checkpoint says, else R110_C10."""
    arch: str | None = None
    """Architecture that takes the place of --model's, on the same data set: plain20, dsplain20, shiftresnet20,
    resnet20, …."""
    expansion: Width | None = None
    """Inner channels of a shift net's blocks, as a multiple of their output channels. Default: the checkpoint's,
    else 1."""
    reduction: Width | None = None
    """Factor by which the widths of a ResNet or a plain net shrink. Default: the checkpoint's, else 1."""
    reduction_mode: ReductionMode | None = None
    """What --reduction shrinks: block (inner widths / reduction), net (all widths / √reduction), depthwise
    (inner convolutions become depthwise), shuffle (ShuffleNet's blocks) or mobile (MobileNetV2's blocks, with six
    times their input's channels / reduction inside). Default: the checkpoint's, else block."""
    image_size: Annotated[int, Range(least=8, most=4096)] | None = None
    """Side in pixels of the square images of a network from timm, torchvision or your own code. Default: the
    checkpoint's, else what the network says of itself."""
    data_dir: Folder = "data/"
    """Folder of the data: an image tree (train/<class>/…, and test/ or val/), tar shards (train/*.tar, …) or
    torchvision's CIFAR files."""
    split: Annotated[float, Range(above=0, below=1)] | None = None
    """Share of each class's images to use for tests. Use it if --data_dir holds class folders and no train/ and
    test/. The split depends on the images' names, so it is the same in every run. Default: no split; the folder
    has train/ and test/ (or val/)."""
    cv_dir: Folder = "cv/tmp/"
    """Run directory: checkpoints, logs and TensorBoard events are written here."""
    batch_size: Count = 256
    """Number of images in a batch."""
    download: bool = False
    """Download CIFAR if it is not in the data folder."""
    workers: CountOrNone = 2
    """Number of processes that read images of more than 64 px."""
    skip_bad_images: bool = False
    """Leave out images that can't be read, and list them, instead of stopping at the first one."""
    shortcut: Shortcut | None = None
    """Kind of the ResNet's downsampling shortcuts. Default: the checkpoint's, else that of the architecture."""
    normalisation: Literal["imagenet", "cifar", "none", "half"] | None = None
    """How input images are normalised. Default: the checkpoint's, else that of the data set."""
    mean: tuple[Colour, Colour, Colour] | None = None
    """Mean of red, green and blue that images, scaled to [0, 1], are normalised by, with --std; in the place of a
    name for --normalisation."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of red, green and blue that images are normalised by, with --mean."""
    policy_net: PolicyNet | None = None
    """Policy network: reference (a small ResNet), pooled and pooled4 (the same on images pooled by 2 and 4), stem
    (looks through the ResNet's own stem) or constant (the same policy for all images). Default: the checkpoint's,
    else reference."""
    device: str = "auto"
    """Device that computes: cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    precision: Precision = "auto"
    """Number format of activations: float32 or bfloat16 (autocast). In training auto means bfloat16 where the
    processor has it."""
    channels_last: bool = True
    """Store feature maps with the channels last, in which convolutions are faster."""
    seed: Annotated[int, Range(least=0, below=2**63)] = 0
    """Seed of all random numbers. The same seed, machine and number of threads give the same numbers (on a GPU, up
    to the order of atomic sums)."""

    def check(self) -> None:
        """Raises `BlockdropError` for a value out of range, and for flags that don't go together."""
        check_ranges(self)
        require((self.mean is None) == (self.std is None), "--mean, --std: pass both of them")
        require(self.mean is None or self.normalisation is None, "--normalisation, --mean: pass one of them")
        if self.model is not None or self.arch is not None:
            parse_name(self.network)
        Variant(self.expansion, self.reduction, self.reduction_mode)

    @property
    def network(self) -> str:
        """The network that the flags name: --model, else the reference's, or --arch on its data set."""
        return self.with_arch(self.model or DEFAULT_MODEL)

    def with_arch(self, name: str) -> str:
        """A network's name, or the one that --arch makes of it."""
        return name if self.arch is None else f"{self.arch}_{parse_name(name).dataset}"

    def compute(self) -> Compute:
        """The device, number format and memory layout that the flags ask for."""
        from blockdrop.training.compute import choose_compute  # torch, which flags do without

        return choose_compute(self.device, self.precision, self.channels_last)


@dataclass(kw_only=True)
class RunConfig(ModelConfig):
    """Flags of the commands that fill a run directory."""

    GROUPS: ClassVar[Groups] = {
        "run directory": ("test_every", "keep_checkpoints", "save_minutes", "report_to", "overwrite")
    }

    overwrite: bool = False
    """Delete the run that the run directory already holds."""
    resume: bool = False
    """Continue the run in the run directory as if it had never stopped; start it if there is none."""
    keep_checkpoints: Count | None = None
    """Number of the newest checkpoints that stay, beside the best one. Default: all stay."""
    save_minutes: Positive = 10.0
    """Minutes between two savings of the state that --resume needs. It is saved at the end of each epoch, too."""

    report_to: tuple[ServiceName, ...] = ()
    """Services that metrics are sent to, beside TensorBoard: wandb (Weights & Biases) and mlflow, each if its
    package is installed."""

    def check(self) -> None:
        super().check()
        require(not (self.resume and self.overwrite), "--resume, --overwrite: pass one of them")


@dataclass(kw_only=True)
class TrainingConfig(RunConfig):
    """Flags of the commands that train."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "data_dir", "load", "cv_dir", "max_epochs", "batch_size", "lr", "resume",
    )  # fmt: skip
    GROUPS: ClassVar[Groups] = {
        "optimisation": ("wd", "schedule", "epoch_step", "lr_decay_ratio", "patience", "clip_grad", "accumulate")
    }

    lr: Positive = 1e-3
    """Learning rate."""
    wd: NotNegative = 0.0
    """Weight decay."""
    max_epochs: Count = 100
    """Number of epochs to train."""
    epoch_step: Count = 10000
    """Number of epochs after which the learning rate is multiplied by --lr_decay_ratio, again and again."""
    lr_decay_ratio: Annotated[float, Range(above=0, most=1)] = 0.1
    """Factor that the learning rate is multiplied by at each step of its decay."""
    patience: Count | None = None
    """Number of tests in a row, no better than the best one before, after which training stops early. Tests count
    from when all blocks are decided and policies are settled. Default: all epochs are trained."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient: a longer one is scaled down to it. Default: no limit."""
    accumulate: Count = 1
    """Number of batches whose gradients make one step, for large batches on a small machine."""
    test_every: Count = 10
    """Number of epochs from one test to the next. After each test, and so after the last epoch, a checkpoint is
    saved."""

    def tests_after(self, epoch: int) -> bool:
        """Whether `epoch` (from 0) is followed by a test and a checkpoint."""
        return epoch % self.test_every == 0 or epoch == self.max_epochs - 1

    def step_lr(self, epoch: int) -> float:
        """The learning rate of `epoch` (from 0) under step decay."""
        return self.lr * self.step_factor(epoch)

    def step_factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in `epoch` (from 0) under step decay."""
        return self.lr_decay_ratio ** (epoch // self.epoch_step)


Schedule = Literal["one_cycle", "step"]


@dataclass(kw_only=True)
class SupervisedConfig(TrainingConfig):
    """Flags of the commands that train a network with SGD on labelled images."""

    GROUPS: ClassVar[Groups] = {"optimisation": ("wd", "momentum")}

    lr: Positive = 0.1
    """Learning rate; with --schedule one_cycle its highest value."""
    wd: NotNegative = 5e-4
    batch_size: Count = 128
    max_epochs: Count = 200
    epoch_step: Count = 60
    """With --schedule step: number of epochs after which the learning rate is multiplied by --lr_decay_ratio,
    again and again."""
    schedule: Schedule | None = None
    """Course of the learning rate: one_cycle (it rises for a quarter of the run, then falls) or step (it falls in
    steps). Default: one_cycle."""
    momentum: Annotated[float, Range(above=0, below=1)] = 0.9
    """Momentum of SGD (Nesterov's)."""

    @property
    def one_cycle(self) -> bool:
        """Whether the learning rate follows one cycle; otherwise it decays in steps."""
        return self.schedule != "step"


Recipe = dict[str, Any]
"""Flags that a recipe sets, without their dashes."""


@dataclass(kw_only=True)
class PolicyTrainingConfig(TrainingConfig):
    """Flags of both commands that train a policy network.

    From Python, too, a recipe sets all flags that aren't given: `FinetuneConfig(recipe="fast", lr=1e-3)`.
    """

    RECIPES: ClassVar[dict[str, Recipe]] = {"reference": {}}
    """The flags of each recipe of the command, by its name."""
    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "data_dir", "load", "pretrained", "cv_dir", "recipe", "target_flops", "max_epochs", "batch_size",
        "lr", "resume",
    )  # fmt: skip
    GROUPS: ClassVar[Groups] = {
        "policy learning": ("estimator", "samples", "reward", "penalty", "alpha", "reinforce_answers"),
        "budget": ("anneal", "price_rate"),
    }

    recipe: str = "reference"
    """Name of a set of defaults for the other flags. Flags that you pass overrule the recipe. --recipe NAME --help
    shows the defaults of that recipe."""
    penalty: Annotated[float, Range()] = -1.0
    """Reward of a wrong prediction. It sets the trade-off of accuracy and blocks."""
    reinforce_answers: bool = False
    """Let whether to answer be one more decision that estimators from rewards learn, with the policy network's
    largest probability as its chance. A right answer earns what a right prediction without any block earns. A
    policy network without an answer head gets one."""
    alpha: Annotated[float, Range(above=0.5, most=1)] = 0.8
    """Bound of the keep probabilities: they are limited to [1 - alpha, alpha] before policies are sampled."""
    estimator: str = "self_critical"
    """How rewards become a gradient."""
    samples: Count = 2
    """Number of policies drawn for each image by leave_one_out, antithetic (an even number) and value_baseline;
    number of decisions that block_credit tries both ways."""
    reward: RewardName = "blockdrop"
    """Reward of a policy: blockdrop (right or wrong, and the share of blocks), flops (weighs each block by its
    FLOPs) or log_likelihood (how wrong, not just whether)."""
    target_flops: Share | None = None
    """Mean cost to train for, as a fraction of the full network's FLOPs, policy network included. A price on
    computation adapts until it is met, in place of the reward's own trade-off. Default: no target."""
    anneal: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the run in which --target_flops comes down from the full network's FLOPs."""
    price_rate: Annotated[float, Range(above=0, most=1)] = 0.002
    """Speed of the price on computation: its rise in each batch if all of the full network's FLOPs were too
    much."""

    def __new__(cls, **given: Any) -> Self:
        """Notes which flags are given, as the others are the recipe's."""
        config = super().__new__(cls)
        if given:
            vars(config)["given"] = given.keys()
        return config

    def __post_init__(self) -> None:
        given = vars(self).pop("given", ())
        for flag, value in self.recipe_flags(self.recipe).items():
            if flag not in given:
                setattr(self, flag, value)

    @classmethod
    def recipe_flags(cls, recipe: str) -> Recipe:
        """The flags that a recipe sets; raises `BlockdropError` if the command has no such recipe."""
        require(
            recipe in cls.RECIPES,
            f"--recipe {recipe}: no recipe of this command; choose {', '.join(cls.RECIPES)}",
        )
        return cls.RECIPES[recipe]

    @classmethod
    def of_recipe(cls, recipe: str, **flags: Any) -> Self:
        """A recipe's flags, and others, which win."""
        return cls(recipe=recipe, **flags)

    def check(self) -> None:
        super().check()
        if self.model is not None or self.arch is not None:
            spec = parse_name(self.network)
            require(spec.droppable, f"{self.network}: {spec.architecture} has no blocks that a policy could drop")
        for flag in ("anneal", "price_rate"):
            self.check_meaning(flag, self.target_flops is not None, "--target_flops")
        sampling = ("leave_one_out", "antithetic", "value_baseline", "block_credit")
        self.check_meaning("samples", self.estimator in sampling, f"--estimator {', '.join(sampling)}")
        require(
            self.penalty != 0 or self.reward != "log_likelihood",
            "--penalty 0: leaves no accuracy in the log_likelihood reward; pass another",
        )

    def check_meaning(self, flag: str, has_meaning: bool, needed: str) -> None:
        """Raises `BlockdropError` if a flag was given that does nothing without another, and isn't off."""
        usual = self.recipe_flags(self.recipe).get(flag, getattr(type(self), flag))
        value = getattr(self, flag)
        require(
            has_meaning or not value or value == usual,
            f"--{flag} {value}: means nothing here; it goes with {needed}",
        )

    @property
    def annealed_from(self) -> int:
        """The first epoch in which --target_flops has come down."""
        return math.ceil(self.anneal * self.max_epochs) if self.target_flops is not None else 0

    def target_after(self, epochs: float, target: float | None = None) -> float:
        """The target in force after so many epochs, a fraction of the full network's FLOPs.

        Args:
            target: that of the end; default: --target_flops.
        Raises:
            ValueError: there is no target.
        """
        target = self.target_flops if target is None else target
        if target is None:
            raise ValueError("no target")
        left = max(0.0, 1 - epochs / (self.anneal * self.max_epochs)) if self.anneal else 0.0
        return target + left * (1 - target)


@dataclass(kw_only=True)
class AnswerConfig(PolicyTrainingConfig):
    """Flags of a command that teaches a policy network to answer; see `blockdrop.training.answers`."""

    GROUPS: ClassVar[Groups] = {
        "answers": (
            *("answer_epochs", "answer_views", "answer_lr", "answer_wd", "hold_out"),
            *("rest_flops", "answer_weight", "answered_weight"),
        )
    }

    answer_epochs: CountOrNone = 0
    """Number of epochs, before the others, in which the policy network learns to answer images by itself, taught
    by the full network's logits. After them its trunk and its answers stay. 0: it learns no answers."""
    answer_views: CountOrNone = 0
    """Number of epochs of --answer_epochs after which the same augmented images come again. The full network's
    logits of the first time are kept in memory (2 bytes a number) and used again, so that it need not run. 0: the
    images of each epoch are new."""
    answer_lr: Positive = 0.1
    """Highest learning rate of SGD while the policy network learns to answer."""
    answer_wd: NotNegative = 1e-4
    """Weight decay of SGD while the policy network learns to answer. It is low, as so small a network doesn't
    overfit."""
    hold_out: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the training images that isn't trained on. On these, answers are calibrated and thresholds chosen;
    a policy network that answers needs some."""
    rest_flops: Share | None = None
    """Mean cost of the ResNet for an image that isn't answered, as a fraction of the full network's FLOPs, policy
    network not included. A price on computation meets it, and the share of answered images then meets
    --target_flops. Default: what is left of --target_flops if no image is answered."""
    answer_weight: Annotated[float, Range(least=0, most=2)] | None = None
    """Weight of the answer's log-probabilities beside the ResNet's logits, for images that aren't answered.
    Default: that which fits the images of --hold_out best, which is too low if the network that was brought was
    trained on them."""
    answered_weight: Annotated[float, Range(least=0, most=1)] = 1.0
    """Weight, in the training of the ResNet, of an image that is certain to be answered. An image that is
    certainly not answered has weight 1; between the two the weight falls with the chance of an answer. Images are
    left out at random so that their share is their weight."""

    def check(self) -> None:
        super().check()
        answers = self.answer_epochs > 0
        for flag in ("answer_views", "answer_lr", "answer_wd", "answer_weight"):
            self.check_meaning(flag, answers, "--answer_epochs")
        require(
            not answers or self.hold_out > 0,
            f"--answer_epochs {self.answer_epochs}: answers are calibrated on images that weren't trained on; "
            "pass --hold_out, for example 0.1",
        )
        self.check_meaning("rest_flops", self.target_flops is not None, "--target_flops")


def check_estimator(name: str, samples: int) -> None:
    """Raises `BlockdropError` for a number of samples that the estimator can't work with."""
    from agents.estimators import make_estimator  # torch, which flags do without

    try:
        make_estimator(name, samples)
    except ValueError as error:
        raise BlockdropError(f"--estimator {error}") from None
