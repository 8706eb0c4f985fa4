"""Stagewise distillation: a plain net is drawn to the teacher's feature maps stage by stage, earlier stages
frozen, then fine-tuned with labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from blockdrop.distillation.method import Distillation, StudentConfig
from blockdrop.errors import require
from blockdrop.ranges import Count, Positive
from blockdrop.training.config import Groups

if TYPE_CHECKING:
    from blockdrop.distillation.report import Contender
    from blockdrop.models.backbone import Backbone
    from blockdrop.training.opening import Opened


@dataclass(kw_only=True)
class StagewiseConfig(StudentConfig):
    """Flags of `python -m blockdrop.distill --method stagewise`. The student's head is the teacher's."""

    GROUPS: ClassVar[Groups] = {"stages": ("stage_epochs", "stage_lr", "finetune_lr")}

    method: Literal["stagewise"] = "stagewise"
    max_epochs: Count = 200
    """Number of epochs to train, those of the stages included."""
    stage_epochs: Count | None = None
    """Number of epochs for each stage. The rest of --max_epochs fine-tunes with labels. Default: a fifth of
    --max_epochs."""
    stage_lr: Positive = 0.02
    """Learning rate of Adam in the stages, where the L1 distance's gradients are too small for SGD."""
    finetune_lr: Positive | None = None
    """Learning rate of the fine-tuning with labels. Default: --lr."""

    @property
    def epochs_of_a_stage(self) -> int:
        """--stage_epochs, or a fifth of all."""
        return self.stage_epochs or max(1, self.max_epochs // 5)

    def check_networks(self, student: Opened, teacher: Opened) -> str:
        """Where the student's head is from; raises `BlockdropError` if stages' maps differ, or need more
        epochs."""
        from blockdrop.distillation.stages import check_same_stages  # torch, which --help does without

        own, its = student.dynamic, teacher.dynamic
        student_network, teacher_network = cast("Backbone", own.network), cast("Backbone", its.network)
        check_same_stages(student_network, teacher_network, own.image_size)
        stages, epochs = len(own.network.stage_sizes), self.epochs_of_a_stage
        require(
            self.max_epochs >= stages * epochs,
            f"--max_epochs {self.max_epochs}: {stages} stages of {epochs} epochs take {stages * epochs}",
        )
        return "the student's head: the teacher's, which reads maps of the same meaning"

    def run(self, job: Distillation) -> list[Contender]:
        """Every stage drawn to the teacher's, the earlier ones frozen; then fine-tuning with labels."""
        from blockdrop.distillation.report import Contender  # torch, which --help does without
        from blockdrop.distillation.stages import Hybrid, stage_objective, stage_parameters, train_only
        from blockdrop.training.supervised import cross_entropy_objective

        student, teacher = job.network, job.frozen_teacher
        stages, stage_epochs = len(student.blocks), self.epochs_of_a_stage
        student.fc.load_state_dict(teacher.fc.state_dict())
        tests = job.tests()
        images, session = job.data.test, job.session
        for stage in range(stages):

            def end_epoch(epoch: int, last: bool, stage: int = stage) -> str:
                if not last:
                    return ""
                hybrid = Hybrid(student, teacher, stage + 1).eval()
                accuracy = hybrid.accuracy(images, job.student.normalisation, session.compute)
                session.run.log(epoch, "stages", {"stage": stage + 1, "hybrid_accuracy": accuracy})
                if stage == stages - 1:
                    return tests(epoch, True)  # no stage of the teacher's is left
                return f", test accuracy with the teacher's later stages {accuracy:.4f}"

            print(f"stage {stage + 1} of {stages}: the student's map against the teacher's")
            job.fit(
                student,
                stage_objective(student, teacher, stage),
                parameters=stage_parameters(student, stage),
                begin_epoch=lambda stage=stage: train_only(student, stage),
                end_epoch=end_epoch,
                epochs=stage_epochs,
                first_epoch=stage * stage_epochs,
                lr=self.stage_lr,
                phase=f"stage{stage + 1}",
                adam=True,
            )
        if rest := self.max_epochs - stages * stage_epochs:
            print("fine-tuning the whole student with labels")
            job.fit(
                student,
                cross_entropy_objective(student),
                parameters=student.parameters(),
                begin_epoch=student.train,
                end_epoch=tests,
                epochs=rest,
                first_epoch=stages * stage_epochs,
                lr=self.finetune_lr,
            )
        return [Contender("student", job.student)]
