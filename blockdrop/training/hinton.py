"""Distillation of logits: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blockdrop.models.backbone import Backbone
from blockdrop.training.supervised import Objective, Step


@dataclass(frozen=True)
class HintonLoss:
    """α · CE(labels, z_s) + β · KL(softmax(z_t / T) ‖ softmax(z_s / T)), means over the batch."""

    alpha: float = 0.2
    beta: float = 0.8
    temperature: float = 10.0
    scale_kl: bool = True
    """Multiply the KL term by T², which keeps its gradient as large as the cross-entropy's whatever T."""

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Step:
        """Logits (N, classes) of both and labels (N,) to the loss and its two terms."""
        student, teacher = student.float(), teacher.float()
        cross_entropy = F.cross_entropy(student, labels)
        kl = kl_divergence(student, teacher, self.temperature)
        if self.scale_kl:
            kl = kl * self.temperature**2
        loss = self.alpha * cross_entropy + self.beta * kl
        return Step(loss, student, {"cross_entropy": cross_entropy, "kl": kl})


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch, of logits (N, classes); scalar."""
    return F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def hinton_objective(student: Backbone, teacher: Backbone, loss: HintonLoss) -> Objective:
    """Trains the student to be right and to agree with the frozen teacher."""

    def objective(images: Tensor, labels: Tensor, epoch: int) -> Step:
        with torch.no_grad():
            teacher_logits = teacher(images)
        return loss(student(images), teacher_logits, labels)

    return objective
