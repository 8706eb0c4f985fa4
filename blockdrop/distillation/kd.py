"""Knowledge distillation: any student is drawn to the teacher's softened logits (Hinton et al. 2015,
arXiv:1503.02531).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from blockdrop.distillation.method import Distillation, StudentConfig
from blockdrop.errors import require
from blockdrop.ranges import NotNegative, Positive
from blockdrop.training.config import Groups

if TYPE_CHECKING:
    from blockdrop.distillation.report import Contender


@dataclass(kw_only=True)
class KdConfig(StudentConfig):
    """Flags of `python -m blockdrop.distill --method kd`."""

    GROUPS: ClassVar[Groups] = {
        "loss": ("temperature", "alpha", "beta", "scale_kl"),
        "student": ("with_baseline",),
    }

    method: Literal["kd"] = "kd"
    student: str | None = None
    """Architecture of the student: R8, plain20, shiftresnet20, …."""
    temperature: Positive = 10.0
    """Temperature that softens both networks' logits in the KL term."""
    alpha: NotNegative = 0.2
    """Weight of the cross-entropy."""
    beta: NotNegative = 0.8
    """Weight of the KL term."""
    scale_kl: bool = True
    """Multiply the KL term by the square of the temperature, as Hinton et al. do."""
    with_baseline: bool = False
    """Also train the student alone, from the same start for the same epochs, in <cv_dir>/baseline."""

    def check(self) -> None:
        super().check()
        require(self.student is not None, "--student: name the student's architecture, for example R8")

    @property
    def folders(self) -> tuple[Path, ...]:
        own = super().folders
        return (*own, self.baseline) if self.with_baseline else own

    @property
    def baseline(self) -> Path:
        """Run directory of the student alone."""
        return Path(self.cv_dir) / "baseline"

    def run(self, job: Distillation) -> list[Contender]:
        """The student drawn to the teacher's logits; with `--with_baseline` also the student alone."""
        from blockdrop.data import identify
        from blockdrop.distillation.report import Contender
        from blockdrop.training.hinton import HintonLoss, hinton_objective  # torch, which --help does without
        from blockdrop.training.run_directory import RunDirectory
        from blockdrop.training.supervised import cross_entropy_objective

        student, contenders = job.network, []
        if self.with_baseline:
            alone = job.student.with_network(copy.deepcopy(student))
            print("the student alone")
            with RunDirectory(
                self.baseline,
                "distill",
                self,
                overwrite=self.overwrite,
                resume=self.resume,
                processes=job.session.processes,
                data=identify(job.data),
            ) as run:
                baseline = replace(job, session=replace(job.session, run=run), student=alone)
                network = baseline.network
                baseline.fit_all_epochs(network, cross_entropy_objective(network), network.parameters())
                run.finish_with_test()
            contenders = [Contender("alone", alone)]
            print("the student with the teacher")
        loss = HintonLoss(self.alpha, self.beta, self.temperature, self.scale_kl)
        objective = hinton_objective(student, job.frozen_teacher, loss)
        job.fit_all_epochs(student, objective, student.parameters())
        return [*contenders, Contender("distilled", job.student)]

    def profile(self, contenders: list[Contender], image_size: int) -> str:
        from blockdrop.distillation.report import profile_inference  # torch, which --help does without

        return profile_inference(contenders, image_size)
