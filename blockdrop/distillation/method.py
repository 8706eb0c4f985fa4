"""What all methods of distillation share: their flags, and what a method works with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from blockdrop.errors import BlockdropError, require
from blockdrop.models.specs import Variant, parse_model_name
from blockdrop.names import EngineName, ReductionMode
from blockdrop.ranges import CheckpointName, Count, Width
from blockdrop.training.config import Groups, RunConfig, SupervisedConfig

if TYPE_CHECKING:
    from torch import nn

    from blockdrop.data import Data
    from blockdrop.distillation.report import Contender
    from blockdrop.dynamic import DynamicNetwork
    from blockdrop.models.backbone import Backbone
    from blockdrop.training.opening import Opened
    from blockdrop.training.session import Session
    from blockdrop.training.supervised import Objective, TestAndSave


@dataclass(kw_only=True)
class DistillConfig(RunConfig):
    """Flags of all methods. --model, --arch, --expansion, … are about the teacher."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "method", "model", "data_dir", "load", "student", "cv_dir", "max_epochs", "batch_size", "lr", "resume",
    )  # fmt: skip
    GROUPS: ClassVar[Groups] = {"comparison": ("report_batch_size", "timed_images", "engine")}

    method: str
    """Method that makes the student. Together with --help it shows the flags of the method, too."""
    model: str | None = None
    """Name of the teacher and its data set, R<depth>_<dataset>: R20_Digits, R110_C10, R50_ImgNet, …. The README
    lists depths and data sets. Default: what the checkpoint says, else R110_C10."""
    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of the teacher, of any dialect, or run directories."""
    report_batch_size: Count = 1024
    """Number of images in a batch of the comparison at the end."""
    timed_images: Count = 1024
    """Number of test images that the comparison's clock runs on. Seconds are scaled to all test images."""
    engine: EngineName = "auto"
    """Engine that runs the comparison: torch, openvino, or auto (openvino if it is installed and knows the
    network's layers)."""

    def check(self) -> None:
        super().check()
        require(
            len(self.load) > 0 or not self.needs_teacher,
            "--load: name a trained teacher (python -m blockdrop.pretrain makes one)",
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is asked of a trained teacher."""
        return True

    @property
    def student_name(self) -> str:
        """Architecture and data set of the student."""
        raise NotImplementedError

    @property
    def folders(self) -> tuple[Path, ...]:
        """The run directories that are filled."""
        return (Path(self.cv_dir),)

    def open_student(self, teacher: Opened) -> Opened:
        """The student, with the teacher's data and normalisation.

        Raises:
            BlockdropError: it doesn't suit the teacher.
        """
        raise NotImplementedError

    def check_networks(self, student: Opened, teacher: Opened) -> str:
        """What there is to say of these two networks; "" is nothing.

        Raises:
            BlockdropError: the method can't work with them, or with so many epochs.
        """
        return ""

    def run(self, job: Distillation) -> list[Contender]:
        """Trains the student; returns the networks to compare with the teacher, the student last."""
        raise NotImplementedError

    def profile(self, contenders: list[Contender], image_size: int) -> str:
        """Tables of what an inference of each network spends its time on; "" where the method makes none."""
        return ""


@dataclass(kw_only=True)
class StudentConfig(SupervisedConfig, DistillConfig):
    """Flags of the methods that train a student."""

    FIRST: ClassVar[tuple[str, ...]] = DistillConfig.FIRST
    GROUPS: ClassVar[Groups] = {
        "student": ("student_init", "student_expansion", "student_reduction", "student_reduction_mode"),
        "optimisation": ("milestones",),
    }

    student: str | None = None
    """Architecture of the student: R8, plain20, shiftresnet20, …. Default: the teacher's, without shortcuts."""
    student_init: tuple[CheckpointName, ...] = ()
    """Checkpoint that the student starts from, or the word torchvision (all but its head). Default: fresh
    weights."""
    student_expansion: Width | None = None
    """Inner channels of a shift net's blocks, as a multiple of their output channels, in the student."""
    student_reduction: Width | None = None
    """Factor by which the widths of a student that is a ResNet or a plain net shrink."""
    student_reduction_mode: ReductionMode | None = None
    """What --student_reduction shrinks: block, net, depthwise, shuffle or mobile, as --reduction_mode."""
    milestones: tuple[int, ...] = ()
    """With --schedule step: epochs at which the learning rate is multiplied by --lr_decay_ratio, in place of every
    --epoch_step."""

    def check(self) -> None:
        super().check()
        require(
            list(self.milestones) == sorted(set(self.milestones)) and min(self.milestones, default=1) >= 1,
            f"--milestones {' '.join(map(str, self.milestones))}: must be rising epoch numbers",
        )
        require(not self.milestones or not self.one_cycle, "--milestones: only --schedule step knows it")
        require(
            self.epoch_step == type(self).epoch_step or not (self.one_cycle or self.decay_epochs),
            "--epoch_step: only --schedule step without --milestones knows it",
        )
        parse_model_name(self.student_name)
        self.student_variant()

    def student_variant(self) -> Variant:
        """The widths that the flags ask for."""
        with about_the_student():
            return Variant(self.student_expansion, self.student_reduction, self.student_reduction_mode)

    @property
    def student_name(self) -> str:
        teacher = parse_model_name(self.network)
        return f"{self.student or f'plain{teacher.depth}'}_{teacher.dataset}"

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        """When step decay multiplies the learning rate; () = every --epoch_step."""
        return self.milestones

    def step_factor(self, epoch: int) -> float:
        if not self.decay_epochs:
            return super().step_factor(epoch)
        return self.lr_decay_ratio ** sum(epoch >= decay for decay in self.decay_epochs)

    def open_student(self, teacher: Opened) -> Opened:
        """The student, fresh or from `--student_init`."""
        import torch  # here, as --help does without

        from blockdrop.models.zoo import build_backbone
        from blockdrop.training.opening import Opened, open_networks

        spec, its = parse_model_name(self.student_name), teacher.dynamic
        require(
            spec.image_size == its.image_size,
            f"--student {self.student}: for {spec.image_size} px images, the teacher's have {its.image_size}",
        )
        wanted = self.student_variant()
        if self.student is None and not wanted.numbers():
            wanted = its.variant if spec.droppable else replace(its.variant, expansion=None)
        if self.student_init:
            own = replace(
                self,
                model=self.student_name,
                arch=None,
                shortcut=None,
                expansion=wanted.expansion,
                reduction=wanted.reduction,
                reduction_mode=wanted.reduction_mode,
            )
            fresh_head = "torchvision" in self.student_init  # made for ImageNet's classes
            opened = open_networks(own, self.student_init, policy="none", new_head=fresh_head)
            student, wanted, checkpoints = opened.dynamic.network, opened.dynamic.variant, opened.checkpoints
        else:
            torch.manual_seed(self.seed)
            like_teacher = spec.family == "dsplain" or spec.name == its.model
            shortcut = its.network.shortcut if like_teacher else None
            with about_the_student():
                student, checkpoints = build_backbone(spec, teacher.data.num_classes, shortcut, wanted), []
        return Opened(its.with_network(student, self.student_name, wanted), teacher.data, checkpoints)

    def check_networks(self, student: Opened, teacher: Opened) -> str:
        if "torchvision" in self.student_init:
            return "the student's head: fresh, since torchvision's is for ImageNet's classes"
        return ""


@contextlib.contextmanager
def about_the_student() -> Iterator[None]:
    """A `BlockdropError` inside says that it is about the student, whose widths have flags of their own."""
    try:
        yield
    except BlockdropError as error:
        raise BlockdropError(f"student: {error}") from None


@dataclass
class Distillation:
    """What every method works with."""

    session: Session[Any]
    student: DynamicNetwork
    """Without a policy network."""
    data: Data
    teacher: Backbone
    """Trained (but in procedures that need none), in eval mode."""

    @property
    def network(self) -> Backbone:
        """The student's network, which is trained."""
        return cast("Backbone", self.student.network)

    @property
    def frozen_teacher(self) -> Backbone:
        """A copy that runs fast and never changes."""
        return self.session.compute.place(self.teacher.folded())

    def tests(self, network: Callable[[], Backbone] | None = None) -> TestAndSave:
        """Tests and saves, at the ends of epochs, the student's network, or what `network` gives in its place."""
        from blockdrop.training.supervised import TestAndSave  # torch, which --help does without

        return TestAndSave(self.session, self.student, self.data, network)

    def fit(self, module: nn.Module, objective: Objective, **options: Any) -> None:
        """`blockdrop.training.supervised.fit` with this run's data."""
        from blockdrop.training.supervised import fit

        fit(self.session, self.data, self.student.normalisation, objective, module=module, **options)

    def fit_all_epochs(
        self,
        module: nn.Module,
        objective: Objective,
        parameters: Any,
        network: Callable[[], Backbone] | None = None,
    ) -> None:
        """Trains for `--max_epochs` epochs.

        Args:
            module: holds all that changes; goes into train mode.
            network: gives what is tested and saved, if that isn't the student's network.
        """
        self.fit(
            module,
            objective,
            parameters=parameters,
            begin_epoch=module.train,
            end_epoch=self.tests(network),
            epochs=self.session.config.max_epochs,
        )
