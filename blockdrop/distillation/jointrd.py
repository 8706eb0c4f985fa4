"""Joint residual distillation (Li et al. 2020, "Residual Distillation"): a plain net learns through the teacher's
shortcuts; and the procedures that the paper compares it with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from blockdrop.distillation.method import Distillation, StudentConfig
from blockdrop.errors import require
from blockdrop.models.specs import parse_model_name
from blockdrop.ranges import Count, NotNegative, Positive, Range
from blockdrop.training.config import Groups, Schedule

if TYPE_CHECKING:
    from torch import nn

    from blockdrop.distillation.report import Contender
    from blockdrop.models.backbone import Backbone
    from blockdrop.training.opening import Opened

Procedure = Literal["RES_NMT", "CNN_NMT", "TA", "KD", "KL"]
WITH_STUDENT: tuple[Procedure, ...] = ("CNN_NMT", "TA", "KD", "KL")
PROCEDURES_OF_FLAGS: dict[str, tuple[Procedure, ...]] = {
    "student": WITH_STUDENT,
    "student_init": WITH_STUDENT,
    "student_expansion": WITH_STUDENT,
    "student_reduction": WITH_STUDENT,
    "student_reduction_mode": WITH_STUDENT,
    "temperature": ("KL",),
    "alpha": ("KL",),
    "feature_weight": ("TA", "KD"),
    "side_floor": ("TA",),
    "side_epochs": ("TA",),
    "dirac": WITH_STUDENT,
}
"""Which procedures know a flag; all know those that aren't listed."""


@dataclass(kw_only=True)
class JointConfig(StudentConfig):
    """Flags of `python -m blockdrop.distill --method jointrd`."""

    GROUPS: ClassVar[Groups] = {
        "joint residual distillation": (
            "procedure", "feature_weight", "side_floor", "side_epochs", "temperature", "alpha", "dirac",
        ),
    }  # fmt: skip

    method: Literal["jointrd"] = "jointrd"
    schedule: Schedule | None = None
    """Course of the learning rate: one_cycle (it rises for a quarter of the run, then falls) or step (it falls in
    steps). Default: the paper's, which falls at 1/2 and 3/4 of --max_epochs."""
    procedure: Procedure = "TA"
    """Procedure: TA (joint), KD (final features only), KL (logits only), RES_NMT (the teacher's network alone) or
    CNN_NMT (the student alone)."""
    feature_weight: NotNegative | None = None
    """Weight of the distance of the final features, in TA and KD. Default: 1e-3 at 32 px, 1e-4 at 224 px."""
    side_floor: Annotated[float, Range(least=0, most=1)] | None = None
    """Weight of TA's side paths after its decay. Default: 0.5 at 32 px, 5e-3 at 224 px."""
    side_epochs: Count = 60
    """Number of epochs over which the weight of TA's side paths falls from 1."""
    temperature: Positive = 4.0
    """Temperature that softens both networks' logits in KL."""
    alpha: Annotated[float, Range(least=0, most=1, meaning="the KL term's share of the loss")] = 0.9
    """Weight of the KL term in KL; that of the cross-entropy is the rest of 1."""
    dirac: bool = False
    """Use Dirac-parametrised convolutions in the student's blocks, which are folded in its checkpoints."""

    def check(self) -> None:
        super().check()
        for flag, procedures in PROCEDURES_OF_FLAGS.items():
            require(
                self.procedure in procedures or getattr(self, flag) == getattr(type(self), flag),
                f"--{flag}: means nothing to {self.procedure}, only to {', '.join(procedures)}",
            )
        spec = parse_model_name(self.student_name)
        require(
            not self.dirac or not spec.droppable,
            f"--dirac: for plain students; {spec.architecture} has shortcuts",
        )

    @property
    def needs_teacher(self) -> bool:
        return self.procedure not in ("RES_NMT", "CNN_NMT")

    @property
    def student_name(self) -> str:
        teacher = parse_model_name(self.network)
        architecture = self.student or f"dsplain{teacher.depth}"
        return f"{teacher.architecture if self.procedure == 'RES_NMT' else architecture}_{teacher.dataset}"

    @property
    def one_cycle(self) -> bool:
        return self.schedule == "one_cycle"

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        if self.milestones or self.schedule is not None:
            return self.milestones
        return -(-self.max_epochs // 2), -(-3 * self.max_epochs // 4)  # the paper's 100 and 150 of 200

    def check_networks(self, student: Opened, teacher: Opened) -> str:
        from blockdrop.distillation.joint_loss import check_joint  # torch, which --help does without
        from blockdrop.distillation.stages import check_same_stages

        if self.procedure in ("TA", "KD"):
            own, its = cast("Backbone", student.dynamic.network), cast("Backbone", teacher.dynamic.network)
            check_same_stages(own, its, student.dynamic.image_size)
            check_joint(own, its)
        return super().check_networks(student, teacher)

    def run(self, job: Distillation) -> list[Contender]:
        """One of the five procedures."""
        from blockdrop.distillation.joint_loss import JointRD
        from blockdrop.distillation.report import Contender
        from blockdrop.models.plain import PlainNet, fold_dirac, use_dirac
        from blockdrop.training.hinton import HintonLoss, hinton_objective  # torch, which --help does without
        from blockdrop.training.supervised import cross_entropy_objective

        student = job.network
        if self.dirac:
            assert isinstance(student, PlainNet)
            use_dirac(student)
        if self.schedule is None and not self.milestones:
            epochs = " and ".join(map(str, self.decay_epochs))
            print(f"learning rate: {self.lr:g}, times {self.lr_decay_ratio:g} at epochs {epochs}, as in the paper")
        small = job.student.image_size <= 64
        trained: nn.Module = student
        if self.procedure in ("RES_NMT", "CNN_NMT"):
            objective = cross_entropy_objective(student)
        elif self.procedure == "KL":
            loss = HintonLoss(1 - self.alpha, self.alpha, self.temperature)
            objective = hinton_objective(student, job.frozen_teacher, loss)
        else:
            weight = (1e-3 if small else 1e-4) if self.feature_weight is None else self.feature_weight
            floor = (0.5 if small else 5e-3) if self.side_floor is None else self.side_floor
            joint = JointRD(student, job.teacher, weight, floor, self.side_epochs, self.procedure == "TA")
            trained = objective = job.session.compute.place(joint)

        def deployable() -> Backbone:
            return fold_dirac(student) if isinstance(student, PlainNet) else student

        job.fit_all_epochs(trained, objective, parameter_groups(trained), deployable)
        return [Contender("student", job.student.with_network(deployable()))]


def parameter_groups(trained: nn.Module) -> list[dict[str, Any]]:
    """What is trained, as an optimiser takes it; without weight decay of Dirac convolutions' α and β."""
    from blockdrop.models.backbone import DiracConv2d  # torch, which --help does without

    dirac = {p for m in trained.modules() if isinstance(m, DiracConv2d) for p in (m.alpha, m.beta)}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained.parameters() if p.requires_grad and p not in dirac]}
    ]
    if dirac:
        groups.append({"params": [p for p in trained.parameters() if p in dirac], "weight_decay": 0.0})
    return groups
