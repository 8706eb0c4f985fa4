"""Stagewise distillation of a plain net from a ResNet ("ResNet with no Res").

The networks are cut at their downsampling layers. Stage by stage, with the student's earlier stages frozen, the
student's feature map is drawn to the teacher's by the per-pixel L1 (Manhattan) distance; then the whole student is
fine-tuned with labels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.data import Images, Normalisation
from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Backbone
from blockdrop.training.compute import Compute
from blockdrop.training.supervised import Objective, Step


def stage_map(net: Backbone, x: Tensor, stage: int) -> Tensor:
    """A stage (from 0), the stem included in the first: its input, or the images, to its feature map."""
    x = net.stem(x) if stage == 0 else x
    return net.close(net.stage_sum(x, stage))


def stage_modules(net: Backbone, stage: int) -> list[nn.Module]:
    """The modules of a stage (from 0), the stem's included in the first."""
    stem = [net.conv1, net.bn1] if stage == 0 else []
    return [*stem, net.blocks[stage], net.ds[stage]]


def stage_parameters(net: Backbone, stage: int) -> Iterator[nn.Parameter]:
    """What training a stage changes, beside its BatchNorms' statistics."""
    return (parameter for module in stage_modules(net, stage) for parameter in module.parameters())


def train_only(net: Backbone, stage: int) -> None:
    """One stage in train mode; everything else in eval mode, so that its BatchNorms stand still too."""
    net.eval()
    for module in stage_modules(net, stage):
        module.train()


def stage_objective(student: Backbone, teacher: Backbone, stage: int) -> Objective:
    """The mean absolute difference of the stage's feature maps; gradients reach this stage of the student only."""

    def objective(images: Tensor, labels: Tensor, epoch: int) -> Step:
        with torch.no_grad():
            target, x = images, images
            for s in range(stage + 1):
                target = stage_map(teacher, target, s)
            for s in range(stage):
                x = stage_map(student, x, s)
        return Step(F.l1_loss(stage_map(student, x, stage).float(), target.float()))

    return objective


class Hybrid(nn.Module):
    """The student's first stages, the teacher's later ones and the teacher's head: shows how good a stage has
    become before the student has a head.

    Args:
        stages: how many are the student's.
    """

    def __init__(self, student: Backbone, teacher: Backbone, stages: int):
        super().__init__()
        self.student, self.teacher, self.stages = student, teacher, stages

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) to logits (N, classes)."""
        x = images
        for stage in range(len(self.student.blocks)):
            x = stage_map(self.student if stage < self.stages else self.teacher, x, stage)
        return self.teacher.head(x)

    @torch.no_grad()
    def accuracy(self, images: Images, normalisation: Normalisation, compute: Compute) -> float:
        """Share of the images that come out right."""
        correct = 0
        for batch, labels in images.batches(256, normalisation, compute.device):
            correct += int((self(batch).argmax(1) == labels).sum())
        return correct / len(images)


def check_same_stages(student: Backbone, teacher: Backbone, image_size: int) -> None:
    """Raises `BlockdropError` unless every stage of the two gives maps of the same shape."""
    shapes = [_map_shapes(net, image_size) for net in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise BlockdropError(
            f"--student: its stages give maps of {' '.join(shapes[0])}, the teacher's of {' '.join(shapes[1])}; "
            "a student of the teacher's depth has the same"
        )


def _map_shapes(net: Backbone, image_size: int) -> list[str]:
    net = copy.deepcopy(net).eval().to("meta")
    x = torch.empty(1, 3, image_size, image_size, device="meta")
    shapes = []
    for stage in range(len(net.blocks)):
        x = stage_map(net, x, stage)
        shapes.append("×".join(map(str, x.shape[1:])))
    return shapes
