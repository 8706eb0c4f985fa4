"""Make a static net out of a trained ResNet, and compare the two.

stagewise: a plain net drawn to the teacher's feature maps stage by stage, then fine-tuned with labels.
kd: any student drawn to the teacher's logits (Hinton).
jointrd: a plain net that learns through the teacher's shortcuts (joint residual distillation).
exact: the plain net that has the teacher's logits, without training.

The last lines compare teacher and student: accuracy, and seconds for all test images, with BatchNorm folded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from blockdrop.console import run_command
from blockdrop.distillation.hinton import HintonLoss, hinton_objective
from blockdrop.distillation.jointrd import JointRD, check_joint
from blockdrop.distillation.report import Contender, compare, print_table, profile_inference
from blockdrop.distillation.stagewise import (
    Hybrid,
    check_same_stages,
    stage_objective,
    stage_parameters,
    train_only,
)
from blockdrop.errors import UserError, require
from blockdrop.models.backbone import Backbone, DiracConv2d
from blockdrop.models.plain import PlainNet, fold_dirac, remove_shortcuts, use_dirac
from blockdrop.models.specs import Variant, parse_model_name
from blockdrop.models.zoo import build_backbone
from blockdrop.names import EngineName, ReductionMode
from blockdrop.output import write_json, write_text
from blockdrop.processes import ALONE
from blockdrop.training.compute import Compute
from blockdrop.training.config import Schedule, SupervisedConfig
from blockdrop.training.run_directory import RunDirectory, check_usable
from blockdrop.training.setup import Setup, open_setup
from blockdrop.training.supervised import Objective, TestAndSave, cross_entropy_objective, fit

SAME_LOGITS = 1e-3
"""Largest difference that exact removal may make, for logits within ±1; in proportion for larger ones."""
CHECKED_IMAGES = 1024
"""Test images that it is checked on."""

Procedure = Literal["RES_NMT", "CNN_NMT", "TA", "KD", "KL"]
WITH_STUDENT = ("stagewise", "kd", "CNN_NMT", "TA", "KD", "KL")
TRAINED = ("stagewise", "kd", *get_args(Procedure))
TRAINING_FLAGS = (
    "lr", "wd", "momentum", "batch_size", "max_epochs", "test_every", "precision",
    "schedule", "epoch_step", "lr_decay_ratio", "milestones", "clip_grad", "accumulate",
)  # fmt: skip
WAYS_OF_FLAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRAINING_FLAGS, TRAINED),
    "student": WITH_STUDENT,
    "student_init": WITH_STUDENT,
    "student_expansion": WITH_STUDENT,
    "student_reduction": WITH_STUDENT,
    "student_reduction_mode": WITH_STUDENT,
    "stage_epochs": ("stagewise",),
    "stage_lr": ("stagewise",),
    "finetune_lr": ("stagewise",),
    "temperature": ("kd", "KL"),
    "alpha": ("kd", "KL"),
    "beta": ("kd",),
    "scale_kl": ("kd",),
    "with_baseline": ("kd",),
    "procedure": get_args(Procedure),
    "feature_weight": ("TA", "KD"),
    "side_floor": ("TA",),
    "side_epochs": ("TA",),
    "dirac": ("CNN_NMT", "TA", "KD", "KL"),
}
"""Which methods, or procedures of jointrd, know a flag; all know those that aren't listed."""


@dataclass(kw_only=True)
class DistillConfig(SupervisedConfig):
    """Flags of `python -m blockdrop.distill`. --model, --arch, --expansion, … are about the teacher."""

    method: Literal["stagewise", "kd", "jointrd", "exact"]
    """stagewise, kd, jointrd or exact."""
    load: tuple[str, ...] = ()
    """The teacher: checkpoints of any dialect, or run directories."""
    student: str | None = None
    """Architecture of the student: R8, plain20, shiftresnet20, …; default: the teacher's without shortcuts."""
    student_init: tuple[str, ...] = ()
    """Checkpoint that the student starts from, or the word torchvision (all but its head); default: fresh weights.
    Under stagewise the student's head is the teacher's in any case."""
    student_expansion: float | None = None
    """As --expansion, of the student."""
    student_reduction: float | None = None
    """As --reduction, of the student."""
    student_reduction_mode: ReductionMode | None = None
    """As --reduction_mode, of the student."""
    max_epochs: int = 200
    """Epochs to train, those of the stages included."""
    stage_epochs: int | None = None
    """stagewise: epochs for each stage; the rest fine-tunes with labels. Default: a fifth of max_epochs."""
    stage_lr: float = 0.02
    """stagewise: Adam's learning rate in the stages; the L1 distance's gradients are too small for SGD's."""
    finetune_lr: float | None = None
    """stagewise: learning rate of the fine-tuning; default: lr."""
    schedule: Schedule | None = None
    """one_cycle or step; default: one_cycle, for jointrd the paper's: step at 1/2 and 3/4 of max_epochs."""
    milestones: tuple[int, ...] = ()
    """Under step: multiply the learning rate by lr_decay_ratio at these epochs instead of every epoch_step."""
    temperature: float | None = None
    """T of the softened logits; default: 10, for jointrd KL 4."""
    alpha: float | None = None
    """kd: weight of the cross-entropy, default 0.2. jointrd KL: weight of the KL term, default 0.9."""
    beta: float | None = None
    """kd: weight of the KL term, default 0.8."""
    scale_kl: bool = True
    """kd: multiply the KL term by T², as Hinton et al. do."""
    with_baseline: bool = False
    """kd: also train the student alone, from the same start for the same epochs, in cv_dir/baseline."""
    procedure: Procedure = "TA"
    """jointrd: TA joint; KD final features only; KL logits only; RES_NMT teacher alone; CNN_NMT student alone."""
    feature_weight: float | None = None
    """jointrd: weight of the distance of the final features; default: 1e-3 at 32 px, 1e-4 at 224 px."""
    side_floor: float | None = None
    """jointrd TA: weight of the side paths after its decay; default: 0.5 at 32 px, 5e-3 at 224 px."""
    side_epochs: int = 60
    """jointrd TA: epochs over which the side paths' weight falls from 1."""
    dirac: bool = False
    """jointrd: Dirac-parametrised convolutions in the student's blocks, folded in its checkpoints."""
    report_batch_size: int = 1024
    """Images per batch of the last lines' comparison."""
    timed_images: int = 1024
    """Test images that its clock runs on; seconds are scaled to all of them."""
    engine: EngineName = "auto"
    """What runs the comparison: torch, openvino, or auto (see evaluate)."""

    def check(self) -> None:
        super().check()
        require("" not in self.student_init, "--student_init: an empty name; name a checkpoint")
        for name in ("temperature", "alpha", "beta", "feature_weight"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1e6, f"--{name} {value}: must be zero or a positive number")
        require(self.temperature != 0, "--temperature 0: must be positive")
        floor, lr = self.side_floor, self.finetune_lr
        require(floor is None or 0 <= floor <= 1, f"--side_floor {floor}: must be in [0, 1]")
        require(lr is None or 0 < lr < 1e6, f"--finetune_lr {lr}: must be a positive number")
        require(0 < self.stage_lr < 1e6, f"--stage_lr {self.stage_lr}: must be a positive number")
        for name in ("side_epochs", "report_batch_size", "timed_images", "stage_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name} {value}: must be at least 1")
        require(
            list(self.milestones) == sorted(set(self.milestones)) and min(self.milestones, default=1) >= 1,
            f"--milestones {' '.join(map(str, self.milestones))}: must be rising epoch numbers",
        )
        for flag in fields(self):
            ways = WAYS_OF_FLAGS.get(flag.name, (self.way,))
            require(
                self.way in ways or getattr(self, flag.name) == flag.default,
                f"--{flag.name}: means nothing to {self.way}, only to {', '.join(ways)}",
            )
        require(not self.milestones or not self.one_cycle, "--milestones: only --schedule step knows it")
        require(
            self.epoch_step == type(self).epoch_step or not (self.one_cycle or self.decay_epochs),
            "--epoch_step: only --schedule step without --milestones knows it",
        )
        require(
            self.way != "KL" or self.alpha is None or self.alpha <= 1,
            f"--alpha {self.alpha}: the KL term's share of the loss, at most 1",
        )
        require(
            len(self.load) > 0 or not self.needs_teacher,
            "--load: name a trained teacher (python -m blockdrop.pretrain makes one)",
        )
        require(
            self.way != "kd" or self.student is not None,
            "--student: name the student's architecture, for example R8",
        )
        spec = parse_model_name(self.student_name)
        require(
            not self.dirac or not spec.droppable,
            f"--dirac: for plain students; {spec.architecture} has shortcuts",
        )
        self.student_variant()

    def student_variant(self) -> Variant:
        """The widths that the flags ask for."""
        with about_the_student():
            return Variant(self.student_expansion, self.student_reduction, self.student_reduction_mode)

    @property
    def way(self) -> str:
        """The method, or of jointrd the procedure."""
        return self.procedure if self.method == "jointrd" else self.method

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is asked of a trained teacher."""
        return self.way not in ("RES_NMT", "CNN_NMT")

    @property
    def student_name(self) -> str:
        """Architecture and data set of the student."""
        teacher = parse_model_name(self.network)
        family = {"jointrd": "dsplain", "exact": "exactplain"}.get(self.method, "plain")
        architecture = self.student or f"{family}{teacher.depth}"
        if self.way == "RES_NMT":
            architecture = teacher.architecture
        return f"{architecture}_{teacher.dataset}"

    @property
    def one_cycle(self) -> bool:
        return super().one_cycle and not (self.schedule is None and self.method == "jointrd")

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        """When step decay multiplies the learning rate; () = every --epoch_step."""
        if self.milestones or self.schedule is not None or self.method != "jointrd":
            return self.milestones
        return -(-self.max_epochs // 2), -(-3 * self.max_epochs // 4)  # the paper's 100 and 150 of 200

    def step_factor(self, epoch: int) -> float:
        if not self.decay_epochs:
            return super().step_factor(epoch)
        return self.lr_decay_ratio ** sum(epoch >= decay for decay in self.decay_epochs)


@contextlib.contextmanager
def about_the_student() -> Iterator[None]:
    """A `UserError` inside says that it is about the student, whose widths have flags of their own."""
    try:
        yield
    except UserError as error:
        raise UserError(f"student: {error}") from None


@dataclass
class Distillation:
    """What every method works with."""

    config: DistillConfig
    compute: Compute
    run: RunDirectory
    setup: Setup
    """Of the student, with the data."""
    teacher: Backbone
    """Trained (but in procedures that need none), in eval mode."""
    student: Backbone

    @property
    def frozen_teacher(self) -> Backbone:
        """A copy that runs fast and never changes."""
        return self.compute.place(self.teacher.folded())

    def fit(
        self, objective: Objective, parameters: Any, network: Callable[[], Backbone], module: nn.Module
    ) -> None:
        """Trains for `--max_epochs` epochs.

        Args:
            network: gives what is tested and saved.
            module: holds all that changes; goes into train mode.
        """
        tests = TestAndSave(self.config, self.setup, self.compute, self.run, network)
        how = (self.config, self.setup, self.compute, self.run)
        fit(*how, module, objective, parameters, module.train, tests, self.config.max_epochs)


def main(config: DistillConfig) -> dict[str, Any]:
    """Opens teacher, student and data, distils, and compares; returns what report.json holds."""
    config.check()
    compute = config.compute()
    inputs = (*config.load, *config.student_init)
    folders = [Path(config.cv_dir), *([Path(config.cv_dir) / "baseline"] if config.with_baseline else [])]
    for folder in folders:
        check = functools.partial(check_usable, folder, config.overwrite, inputs, config.resume)
        compute.processes.from_first(check)
    teacher_setup = open_setup(config, config.load)
    require(
        teacher_setup.has_backbone or not config.needs_teacher,
        f"--load {' '.join(config.load)}: no trained backbone in it",
    )
    setup = open_student(config, teacher_setup)
    check_method(config, setup.resnet, teacher_setup.resnet)
    setup.check_shares(config, compute.processes)
    note = check_same_logits(setup.resnet, teacher_setup.resnet.eval(), setup) if config.way == "exact" else ""
    method = {"stagewise": stagewise, "kd": kd, "jointrd": jointrd, "exact": exact}[config.method]
    files = [checkpoint.path for checkpoint in (*teacher_setup.checkpoints, *setup.checkpoints)]
    how = (config.overwrite, config.resume, files, compute.processes, setup.identify_data())
    with RunDirectory(config.cv_dir, "distill", config, *how) as run:
        setup.announce(f"distill --method {config.method}", compute, run)
        if teacher_setup.has_backbone:
            count = sum(p.numel() for p in teacher_setup.resnet.parameters())
            print(f"teacher: {teacher_setup.model} ({count:,} parameters) from {' '.join(config.load)}")
        for line in filter(None, (head_origin(config), note)):
            print(line)
        job = Distillation(config, compute, run, setup, teacher_setup.resnet.eval(), compute.place(setup.resnet))
        contenders = method(job)
        if teacher_setup.has_backbone:
            contenders = [Contender("teacher", teacher_setup.model, teacher_setup.resnet), *contenders]
        images, timed = len(setup.data.test), min(config.timed_images, len(setup.data.test))
        if not compute.processes.first:
            return {}  # one compares
        one = replace(compute, dtype=torch.float32, processes=ALONE)
        rows = compare(contenders, setup, one, config.engine, config.report_batch_size, timed)
        print_table(rows, config.report_batch_size, images, timed)
        report = {
            "method": config.method,
            "dataset": setup.data.name,
            "images": images,
            "timed_images": timed,
            "batch_size": config.report_batch_size,
            "networks": rows,
        }
        write_json("--cv_dir", run.path / "report.json", report)
        if config.method == "kd":
            tables = profile_inference(contenders, setup.image_size)
            print(tables)
            write_text("--cv_dir", run.path / "profile.txt", tables + "\n")
        run.finish({"accuracy": rows[-1]["accuracy"], "seconds": rows[-1]["seconds"]})
        print(f"report: {run.path / 'report.json'}")
    return report


def open_student(config: DistillConfig, teacher: Setup) -> Setup:
    """The student, fresh or from `--student_init`, with the teacher's data and normalisation.

    Raises:
        UserError: it doesn't suit the teacher or the method.
    """
    spec = parse_model_name(config.student_name)
    require(
        spec.image_size == teacher.image_size,
        f"--student {config.student}: for {spec.image_size} px images, the teacher's have {teacher.image_size}",
    )
    if config.way == "exact":
        require(teacher.resnet.droppable, f"--method exact: {teacher.model} has no identity shortcuts to remove")
        plain = remove_shortcuts(teacher.resnet, teacher.image_size)
        return replace(teacher, model=config.student_name, resnet=plain, has_policy=False)
    wanted = config.student_variant()
    if config.student is None and not wanted.numbers():
        wanted = teacher.variant if spec.droppable else replace(teacher.variant, expansion=None)
    if config.student_init:
        own = replace(
            config,
            model=config.student_name,
            arch=None,
            shortcut=None,
            expansion=wanted.expansion,
            reduction=wanted.reduction,
            reduction_mode=wanted.reduction_mode,
        )
        fresh_head = "torchvision" in config.student_init  # made for ImageNet's classes
        opened = open_setup(own, config.student_init, fresh_head)
        student, wanted, checkpoints = opened.resnet, opened.variant, opened.checkpoints
    else:
        torch.manual_seed(config.seed)
        like_teacher = spec.family == "dsplain" or spec.name == teacher.model
        shortcut = teacher.resnet.shortcut if like_teacher else None
        with about_the_student():
            student, checkpoints = build_backbone(spec, teacher.data.num_classes, shortcut, wanted), []
    return replace(
        teacher,
        model=config.student_name,
        variant=wanted,
        resnet=student,
        has_policy=False,
        checkpoints=checkpoints,
    )


def head_origin(config: DistillConfig) -> str:
    """Says where the student's head is from, if not from where its other weights are."""
    if config.way == "stagewise":
        return "the student's head: the teacher's, which reads maps of the same meaning"
    if "torchvision" in config.student_init:
        return "the student's head: fresh, since torchvision's is for ImageNet's classes"
    return ""


def check_method(config: DistillConfig, student: Backbone, teacher: Backbone) -> None:
    """Raises `UserError` if the method can't work with these two networks and so many epochs."""
    if config.way in ("stagewise", "TA", "KD"):
        check_same_stages(student, teacher, parse_model_name(config.student_name).image_size)
    if config.way in ("TA", "KD"):
        check_joint(student, teacher)
    if config.way == "stagewise":
        stages, stage_epochs = len(student.blocks), stage_epochs_of(config)
        require(
            config.max_epochs >= stages * stage_epochs,
            f"--max_epochs {config.max_epochs}: {stages} stages of {stage_epochs} epochs take "
            f"{stages * stage_epochs}",
        )


def check_same_logits(student: Backbone, teacher: Backbone, setup: Setup) -> str:
    """Says by how much logits differ on test images; raises `UserError` if it is more than `SAME_LOGITS`."""
    batch, _ = next(iter(setup.data.test.batches(CHECKED_IMAGES, setup.normalisation)))
    with torch.no_grad():
        pairs = [(student(images), teacher(images)) for images in batch.split(128)]
    difference = max((found - expected).abs().max().item() for found, expected in pairs)
    largest = max(expected.abs().max().item() for _, expected in pairs)
    if not difference <= SAME_LOGITS * max(1.0, largest):
        raise UserError(
            f"exact removal: logits differ by {difference:.1e}, the teacher's weights lie too many orders of "
            "magnitude apart; train it with weight decay"
        )
    return (
        f"largest difference of a logit on {len(batch):,} test images: {difference:.1e} "
        f"(the teacher's reach {largest:.1f})"
    )


def stage_epochs_of(config: DistillConfig) -> int:
    """Epochs for each stage of stagewise."""
    return config.stage_epochs or max(1, config.max_epochs // 5)


def stagewise(job: Distillation) -> list[Contender]:
    """Every stage drawn to the teacher's, the earlier ones frozen; then fine-tuning with labels."""
    config, student, teacher = job.config, job.student, job.frozen_teacher
    stages = len(student.blocks)
    stage_epochs = stage_epochs_of(config)
    student.fc.load_state_dict(teacher.fc.state_dict())
    how = (config, job.setup, job.compute, job.run)
    tests = TestAndSave(*how, lambda: student)
    images = job.setup.data.test
    for stage in range(stages):

        def end_epoch(epoch: int, last: bool, stage: int = stage) -> str:
            if not last:
                return ""
            hybrid = Hybrid(student, teacher, stage + 1).eval()
            accuracy = hybrid.accuracy(images, job.setup.normalisation, job.compute)
            job.run.log(epoch, "stages", {"stage": stage + 1, "hybrid_accuracy": accuracy})
            if stage == stages - 1:
                return tests(epoch, True)  # no stage of the teacher's is left
            return f", test accuracy with the teacher's later stages {accuracy:.4f}"

        print(f"stage {stage + 1} of {stages}: the student's map against the teacher's")
        fit(
            *how,
            student,
            stage_objective(student, teacher, stage),
            stage_parameters(student, stage),
            begin_epoch=lambda stage=stage: train_only(student, stage),  # type: ignore[misc]
            end_epoch=end_epoch,
            epochs=stage_epochs,
            first_epoch=stage * stage_epochs,
            lr=config.stage_lr,
            phase=f"stage{stage + 1}",
            adam=True,
        )
    if rest := config.max_epochs - stages * stage_epochs:
        print("fine-tuning the whole student with labels")
        fit(
            *how,
            student,
            cross_entropy_objective(student),
            student.parameters(),
            begin_epoch=student.train,
            end_epoch=tests,
            epochs=rest,
            first_epoch=stages * stage_epochs,
            lr=config.finetune_lr,
        )
    return [Contender("student", job.setup.model, student)]


def kd(job: Distillation) -> list[Contender]:
    """The student drawn to the teacher's logits; with `--with_baseline` also the student alone."""
    config, student = job.config, job.student
    contenders = []
    if config.with_baseline:
        alone = copy.deepcopy(student)
        print("the student alone")
        folder, how = (
            Path(config.cv_dir) / "baseline",
            (config.overwrite, config.resume, (), job.compute.processes, job.setup.identify_data()),
        )
        with RunDirectory(folder, "distill", config, *how) as run:
            baseline = replace(job, run=run, student=alone)
            baseline.fit(cross_entropy_objective(alone), alone.parameters(), lambda: alone, alone)
            run.finish_with_test()
        contenders = [Contender("alone", job.setup.model, alone)]
        print("the student with the teacher")
    loss = HintonLoss(
        0.2 if config.alpha is None else config.alpha,
        0.8 if config.beta is None else config.beta,
        config.temperature or 10.0,
        config.scale_kl,
    )
    job.fit(hinton_objective(student, job.frozen_teacher, loss), student.parameters(), lambda: student, student)
    return [*contenders, Contender("distilled", job.setup.model, student)]


def jointrd(job: Distillation) -> list[Contender]:
    """One of the five procedures of joint residual distillation."""
    config, student = job.config, job.student
    if config.dirac:
        assert isinstance(student, PlainNet)
        use_dirac(student)
    if config.schedule is None and not config.milestones:
        epochs = " and ".join(map(str, config.decay_epochs))
        print(f"learning rate: {config.lr:g}, times {config.lr_decay_ratio:g} at epochs {epochs}, as in the paper")
    small = job.setup.image_size <= 64
    trained: nn.Module = student
    if config.procedure in ("RES_NMT", "CNN_NMT"):
        objective = cross_entropy_objective(student)
    elif config.procedure == "KL":
        weight = 0.9 if config.alpha is None else config.alpha
        loss = HintonLoss(1 - weight, weight, config.temperature or 4.0)
        objective = hinton_objective(student, job.frozen_teacher, loss)
    else:
        weight = (1e-3 if small else 1e-4) if config.feature_weight is None else config.feature_weight
        floor = (0.5 if small else 5e-3) if config.side_floor is None else config.side_floor
        joint = JointRD(student, job.teacher, weight, floor, config.side_epochs, config.procedure == "TA")
        trained = objective = job.compute.place(joint)

    def deployable() -> Backbone:
        return fold_dirac(student) if isinstance(student, PlainNet) else student

    dirac = {p for m in student.modules() if isinstance(m, DiracConv2d) for p in (m.alpha, m.beta)}
    decayed = [p for p in trained.parameters() if p.requires_grad and p not in dirac]
    groups: list[dict[str, Any]] = [{"params": decayed}]
    if dirac:
        kept = [p for p in trained.parameters() if p in dirac]
        groups.append({"params": kept, "weight_decay": 0.0})
    job.fit(objective, groups, deployable, trained)
    return [Contender("student", job.setup.model, deployable())]


def exact(job: Distillation) -> list[Contender]:
    """The equivalent plain net: `open_student` has made it, so it is only tested and saved."""
    tests = TestAndSave(job.config, job.setup, job.compute, job.run, lambda: job.student)
    for epoch in job.run.state.epochs(1):
        print(f"exact plain net{tests(epoch, True)}")
    return [Contender("student", job.setup.model, job.student)]


if __name__ == "__main__":
    run_command(main, DistillConfig, __doc__)
