"""Flags that several commands share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from agents.estimators import make_estimator
from agents.names import RewardName
from blockdrop.errors import UserError, require
from blockdrop.models.specs import Variant, parse_model_name
from blockdrop.names import PolicyNet, Precision, ReductionMode, Shortcut
from blockdrop.training.compute import Compute, choose_compute


@dataclass(kw_only=True)
class ModelConfig:
    """Flags of every command: which model, which data, on what."""

    model: str = "R110_C10"
    """R<depth>_<dataset>: R20_Digits, R110_C10, R50_ImgNet, …; the README lists depths and data sets."""
    arch: str | None = None
    """Architecture in place of --model's, on the same data set: plain20, dsplain20, shiftresnet20, resnet20, …."""
    expansion: float | None = None
    """Of shift nets: inner channels of a block / its output channels; default: the checkpoint's, else 1."""
    reduction: float | None = None
    """Of ResNets and plain nets: by how much widths shrink; default: the checkpoint's, else 1."""
    reduction_mode: ReductionMode | None = None
    """block (inner widths / reduction), net (all widths / √reduction) or depthwise; default: block."""
    data_dir: str = "data/"
    """Image tree (train/<class>/…, test/ or val/), tar shards (train/*.tar, …), or the folder of torchvision's
    CIFAR files."""
    cv_dir: str = "cv/tmp/"
    """Run directory: checkpoints, logs, TensorBoard events."""
    batch_size: int = 256
    """Images per batch."""
    download: bool = False
    """Fetch CIFAR where it is missing."""
    workers: int = 2
    """Processes that read images of more than 64 px."""
    skip_bad_images: bool = False
    """Leave out images that can't be read, and list them, instead of stopping at the first."""
    shortcut: Shortcut | None = None
    """pad_avgpool, pad_stride or projection; default: the checkpoint's, else the reference's."""
    normalisation: Literal["imagenet", "cifar", "none", "half"] | None = None
    """Input normalisation; default: the checkpoint's, else the data set's."""
    policy_net: PolicyNet | None = None
    """Policy network: reference; pooled, pooled4 (input pooled by 2, 4); stem (looks through the ResNet's stem);
    constant (one policy for all); default: the checkpoint's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …."""
    precision: Precision = "auto"
    """float32 or bfloat16 (autocast); auto: bfloat16 in training where the processor has it."""
    channels_last: bool = True
    """Keep feature maps with channels last, which convolutions like."""
    seed: int = 0
    """Same seed, machine and thread count: same numbers (on a GPU, up to the order of atomic sums)."""

    def check(self) -> None:
        """Raises `UserError` for a value out of range."""
        parse_model_name(self.network)
        Variant(self.expansion, self.reduction, self.reduction_mode)
        require(self.cv_dir != "", "--cv_dir: empty; name a folder")
        require(self.data_dir != "", "--data_dir: empty; name a folder")
        for flag in ("init", "load", "pretrained"):
            require("" not in getattr(self, flag, ()), f"--{flag}: an empty name; name a checkpoint")
        require(self.batch_size >= 1, f"--batch_size {self.batch_size}: must be at least 1")
        require(self.workers >= 0, f"--workers {self.workers}: must be at least 0")
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must be at least 0 and below 2^63")

    @property
    def network(self) -> str:
        """Architecture and data set: --model, or --arch on --model's data set."""
        return self.model if self.arch is None else f"{self.arch}_{parse_model_name(self.model).dataset}"

    def variant(self, recorded: Variant = Variant()) -> Variant:
        """The widths that the flags ask for, or where they don't, the recorded ones."""
        return recorded.overridden_by(Variant(self.expansion, self.reduction, self.reduction_mode))

    def compute(self) -> Compute:
        return choose_compute(self.device, self.precision, self.channels_last)


@dataclass(kw_only=True)
class TrainingConfig(ModelConfig):
    """Flags of the commands that train."""

    lr: float = 1e-3
    """Learning rate."""
    wd: float = 0.0
    """Weight decay."""
    max_epochs: int = 100
    """Epochs to train."""
    epoch_step: int = 10000
    """Multiply the learning rate by lr_decay_ratio every so many epochs."""
    lr_decay_ratio: float = 0.1
    """See epoch_step."""
    clip_grad: float | None = None
    """Scale the gradient down to this norm where it is larger."""
    accumulate: int = 1
    """Batches whose gradients make one step, for large batches on a small machine."""
    test_every: int = 10
    """Test, and save a checkpoint, every so many epochs and after the last one."""
    overwrite: bool = False
    """Delete the run that cv_dir already holds."""
    resume: bool = False
    """Go on with the run that cv_dir holds, as if it had never stopped; begin it where there is none."""
    save_minutes: float = 10.0
    """Minutes between two savings of the state that --resume needs; each epoch's end saves it as well."""

    def check(self) -> None:
        super().check()
        require(self.lr > 0 and math.isfinite(self.lr), f"--lr {self.lr}: must be a positive number")
        require(self.wd >= 0 and math.isfinite(self.wd), f"--wd {self.wd}: must be zero or a positive number")
        require(self.max_epochs >= 1, f"--max_epochs {self.max_epochs}: must be at least 1")
        require(self.epoch_step >= 1, f"--epoch_step {self.epoch_step}: must be at least 1")
        require(self.accumulate >= 1, f"--accumulate {self.accumulate}: must be at least 1")
        require(
            self.clip_grad is None or self.clip_grad > 0,
            f"--clip_grad {self.clip_grad}: must be a positive number",
        )
        require(self.test_every >= 1, f"--test_every {self.test_every}: must be at least 1")
        require(not (self.resume and self.overwrite), "--resume, --overwrite: pass one of them")
        require(self.save_minutes > 0, f"--save_minutes {self.save_minutes}: must be a positive number")
        require(
            0 < self.lr_decay_ratio <= 1,
            f"--lr_decay_ratio {self.lr_decay_ratio}: must be above 0 and at most 1",
        )

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

    lr: float = 0.1
    """Learning rate; under one_cycle its peak."""
    wd: float = 5e-4
    """Weight decay."""
    batch_size: int = 128
    """Images per batch."""
    max_epochs: int = 200
    """Epochs to train."""
    epoch_step: int = 60
    """Under step: multiply the learning rate by lr_decay_ratio every so many epochs."""
    schedule: Schedule | None = None
    """Learning rate: one_cycle (up for a quarter of the run, then down) or step; default: one_cycle."""
    momentum: float = 0.9
    """SGD momentum (Nesterov)."""

    def check(self) -> None:
        super().check()
        require(0 < self.momentum < 1, f"--momentum {self.momentum}: must be in (0, 1)")

    @property
    def one_cycle(self) -> bool:
        """Whether the learning rate follows one cycle; otherwise it decays in steps."""
        return self.schedule != "step"


RecipeName = Literal["reference", "fast"]
Recipe = dict[str, Any]
"""Flags that a recipe sets, without their dashes."""


@dataclass(kw_only=True)
class PolicyTrainingConfig(TrainingConfig):
    """Flags of both commands that train a policy network."""

    RECIPES: ClassVar[dict[RecipeName, Recipe]] = {"reference": {}, "fast": {}}

    recipe: RecipeName = "reference"
    """Set of defaults for the other flags; --help shows them, after --recipe fast those of fast."""
    penalty: float = -1.0
    """Reward of a wrong prediction."""
    alpha: float = 0.8
    """Keep probabilities are bounded to [1 - alpha, alpha] before sampling."""
    estimator: str = "self_critical"
    """How rewards become a gradient."""
    samples: int = 2
    """Policies drawn for each image, of leave_one_out, antithetic (even) and value_baseline; of block_credit
    decisions tried both ways."""
    reward: RewardName = "blockdrop"
    """blockdrop, flops (weighs blocks by their FLOPs) or log_likelihood (how wrong); see agents/rewards.py."""
    target_flops: float | None = None
    """Mean cost to aim for, a fraction of the full network's FLOPs, policy network included; a price on
    computation adapts to it, in place of the reward's own trade-off."""
    anneal: float = 0.0
    """Share of the run over which that target comes down from the full network's FLOPs."""
    price_rate: float = 0.002
    """How fast the price follows: its rise for each batch, were all of the full network's FLOPs too much."""

    @classmethod
    def of_recipe(cls, recipe: RecipeName, **flags: Any) -> Self:
        """A recipe's flags, and others: from Python the way to a recipe, as the field alone sets no other."""
        return cls(recipe=recipe, **{**cls.RECIPES[recipe], **flags})

    def check(self) -> None:
        super().check()
        recipe = self.RECIPES[self.recipe]
        require(
            not recipe or any(getattr(self, flag) != getattr(type(self), flag) for flag in recipe),
            f"recipe={self.recipe!r} has set none of its flags; from Python write "
            f"{type(self).__name__}.of_recipe({self.recipe!r}, ...)",
        )
        spec = parse_model_name(self.network)
        require(spec.droppable, f"{self.network}: {spec.architecture} has no blocks that a policy could drop")
        require(math.isfinite(self.penalty), f"--penalty {self.penalty}: must be a finite number")
        require(0.5 < self.alpha <= 1, f"--alpha {self.alpha}: must be above 0.5 and at most 1")
        require(self.samples >= 1, f"--samples {self.samples}: must be at least 1")
        require(
            self.target_flops is None or 0 < self.target_flops <= 2,
            f"--target_flops {self.target_flops}: must be above 0 and at most 2, a fraction of the full network's",
        )
        require(0 < self.price_rate <= 1, f"--price_rate {self.price_rate}: must be above 0 and at most 1")
        require(0 <= self.anneal < 1, f"--anneal {self.anneal}: must be at least 0 and below 1")
        for flag in ("anneal", "price_rate"):
            self.check_meaning(flag, self.target_flops is not None, "--target_flops")
        sampling = ("leave_one_out", "antithetic", "value_baseline", "block_credit")
        self.check_meaning("samples", self.estimator in sampling, f"--estimator {', '.join(sampling)}")
        require(
            self.penalty != 0 or self.reward != "log_likelihood",
            "--penalty 0: leaves no accuracy in the log_likelihood reward; pass another",
        )

    def check_meaning(self, flag: str, has_meaning: bool, needed: str) -> None:
        """Raises `UserError` if a flag was given that does nothing without another, and isn't off."""
        usual = self.RECIPES[self.recipe].get(flag, getattr(type(self), flag))
        value = getattr(self, flag)
        require(
            has_meaning or not value or value == usual,
            f"--{flag} {value}: means nothing here; it goes with {needed}",
        )

    def target_after(self, epochs: float) -> float:
        """The target in force after so many epochs, a fraction of the full network's FLOPs.

        Raises:
            ValueError: there is no target.
        """
        if self.target_flops is None:
            raise ValueError("no target")
        left = max(0.0, 1 - epochs / (self.anneal * self.max_epochs)) if self.anneal else 0.0
        return self.target_flops + left * (1 - self.target_flops)


def check_estimator(name: str, samples: int) -> None:
    """Raises `UserError` for a number of samples that the estimator can't work with."""
    try:
        make_estimator(name, samples)
    except ValueError as error:
        raise UserError(f"--estimator {error}") from None
