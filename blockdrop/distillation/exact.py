"""Exact removal of shortcuts (RMNet, arXiv:2111.00687): the plain net that has the teacher's logits, untrained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from blockdrop.distillation.method import Distillation, DistillConfig
from blockdrop.errors import BlockdropError, require
from blockdrop.models.specs import parse_model_name

if TYPE_CHECKING:
    from blockdrop.distillation.report import Contender
    from blockdrop.models.backbone import Backbone
    from blockdrop.training.opening import Opened

SAME_LOGITS = 1e-3
"""Largest difference that exact removal may make, for logits within ±1; in proportion for larger ones."""
CHECKED_IMAGES = 1024
"""Test images that it is checked on."""


@dataclass(kw_only=True)
class ExactConfig(DistillConfig):
    """Flags of `python -m blockdrop.distill --method exact`, which trains nothing."""

    method: Literal["exact"] = "exact"

    def check(self) -> None:
        super().check()
        for flag in ("batch_size", "precision"):
            require(
                getattr(self, flag) == getattr(type(self), flag),
                f"--{flag}: means nothing to exact, only to stagewise, kd, jointrd",
            )

    @property
    def student_name(self) -> str:
        teacher = parse_model_name(self.network)
        return f"exactplain{teacher.depth}_{teacher.dataset}"

    def open_student(self, teacher: Opened) -> Opened:
        from blockdrop.models.plain import remove_shortcuts  # torch, which --help does without

        dynamic = teacher.dynamic
        require(dynamic.network.droppable, f"--method exact: {dynamic.model} has no identity shortcuts to remove")
        plain = remove_shortcuts(cast("Backbone", dynamic.network), dynamic.image_size)
        return replace(teacher, dynamic=dynamic.with_network(plain, self.student_name))

    def check_networks(self, student: Opened, teacher: Opened) -> str:
        """By how much logits differ on test images; raises `BlockdropError` if it is more than `SAME_LOGITS`."""
        import torch  # here, as --help does without

        own, its = student.dynamic.network, teacher.dynamic.network.eval()
        batch, _ = next(iter(student.data.test.batches(CHECKED_IMAGES, student.dynamic.normalisation)))
        with torch.no_grad():
            pairs = [(own(images), its(images)) for images in batch.split(128)]
        difference = max((found - expected).abs().max().item() for found, expected in pairs)
        largest = max(expected.abs().max().item() for _, expected in pairs)
        if not difference <= SAME_LOGITS * max(1.0, largest):
            raise BlockdropError(
                f"exact removal: logits differ by {difference:.1e}, the teacher's weights lie too many orders of "
                "magnitude apart; train it with weight decay"
            )
        return (
            f"largest difference of a logit on {len(batch):,} test images: {difference:.1e} "
            f"(the teacher's reach {largest:.1f})"
        )

    def run(self, job: Distillation) -> list[Contender]:
        """The equivalent plain net: `open_student` has made it, so it is only tested and saved."""
        from blockdrop.distillation.report import Contender  # torch, which --help does without
        from blockdrop.training.supervised import test_and_save

        for epoch in job.session.run.state.epochs(1):
            print(f"exact plain net{test_and_save(job.student, job.data, job.session, epoch)}")
        return [Contender("student", job.student)]
