"""Joint residual distillation (JointRD): Li et al., "Residual Distillation: Towards Portable Deep Neural Networks
without Shortcuts", NeurIPS 2020.

The student's maps also run through the frozen teacher's later stages, so that gradients reach the student's early
layers past shortcuts. Features are compared by margin ReLU distillation (Heo et al. 2019, arXiv:1904.01866).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Backbone, Branch
from blockdrop.training.supervised import Step


def relu_margins(norm: nn.BatchNorm2d) -> Tensor:
    """The mean negative response of each channel of a BatchNorm, E[x | x < 0] for x ~ N(b, σ²): float (C,).

    With σ = |γ|, bias b and c = Φ(-b/σ): b - σ · exp(-(b/σ)²/2) / (√(2π) · c) if c > 0.001, else -3σ.
    """
    sigma, bias = norm.weight.detach().abs().double(), norm.bias.detach().double()
    ratio = bias / sigma.clamp_min(1e-12)
    share = torch.special.ndtr(-ratio)
    mean = bias - sigma * torch.exp(-(ratio**2) / 2) / (math.sqrt(2 * math.pi) * share.clamp_min(1e-300))
    return torch.where(share > 0.001, mean, -3 * sigma).float()


def margin_relu_distance(student: Tensor, teacher: Tensor, margins: Tensor) -> Tensor:
    """Partial L2 distance of maps before their ReLU, summed over each sample, mean over the batch; scalar.

    With target τ = max(teacher, μ): (student - τ)², but nothing where the student lies at or below it and the
    teacher isn't positive, since the ReLU hides the difference.

    Args:
        student, teacher: (N, C, H, W).
        margins: μ (C,), not positive.
    """
    target = torch.maximum(teacher, margins.view(-1, 1, 1))
    matters = (student > target) | (teacher > 0)
    return ((student - target) ** 2 * matters).sum() / len(student)


def side_weight(epoch: int, floor: float, epochs: int) -> float:
    """m(e), the weight of the side paths: a half cosine from 1 at epoch 0 to `floor` at `epochs`, and stays."""
    progress = min(epoch / epochs, 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def connector(in_channels: int, out_channels: int) -> nn.Sequential:
    """1×1 convolution and BatchNorm, between a student's features and the teacher's."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class JointRD(nn.Module):
    """The joint objective of a student and its frozen teacher.

    Args:
        student: a network of the teacher's stages.
        teacher: trained, its BatchNorms not folded; left as it is (a folded copy runs).
        feature_weight: w, of the distance of the final features.
        side_floor: m after the decay.
        side_epochs: epochs of the decay.
        side_paths: False = features of the student alone (procedure KD).
    Raises:
        BlockdropError: see `check_joint`.
    """

    student: Backbone
    teacher: Backbone
    margins: Tensor

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        feature_weight: float,
        side_floor: float = 0.5,
        side_epochs: int = 60,
        side_paths: bool = True,
    ):
        super().__init__()
        norm = check_joint(student, teacher)
        self.student = student
        self.teacher = teacher.folded()
        self.feature_weight, self.side_floor, self.side_epochs = feature_weight, side_floor, side_epochs
        self.stages = range(len(student.blocks) - 1) if side_paths else range(0)
        self.connectors = nn.ModuleList(
            connector(norm.num_features, norm.num_features) for _ in range(1 + len(self.stages))
        )
        self.register_buffer("margins", relu_margins(norm))

    def train(self, mode: bool = True) -> JointRD:
        """Student and connectors into train mode; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor, epoch: int) -> Step:
        """The loss of images (N, 3, H, W) and labels (N,) in an epoch, and its terms."""
        student, teacher = self.student, self.teacher
        last = len(student.blocks) - 1
        with torch.no_grad():
            target = features(teacher, teacher.stem(images)).float()
        x = student.stem(images)
        maps = []
        for stage in range(last):
            x = student.close(student.stage_sum(x, stage))
            maps.append(x)
        final = student.stage_sum(x, last)
        logits = student.head(F.relu(final))
        cross_entropy = F.cross_entropy(logits.float(), labels)
        distance = self._distance(final, target, 0)
        loss = cross_entropy + self.feature_weight * distance
        parts = {"cross_entropy": cross_entropy, "feature_distance": distance}
        if self.stages:
            sides = [self._side_loss(maps[stage], stage, target, labels) for stage in self.stages]
            parts["side_paths"] = torch.stack(sides).sum()
            loss = loss + side_weight(epoch, self.side_floor, self.side_epochs) * parts["side_paths"]
        return Step(loss, logits, parts)

    def _side_loss(self, x: Tensor, stage: int, target: Tensor, labels: Tensor) -> Tensor:
        final = features(self.teacher, x, stage + 1)
        logits = self.teacher.head(F.relu(final))
        distance = self._distance(final, target, 1 + stage)
        return F.cross_entropy(logits.float(), labels) + self.feature_weight * distance

    def _distance(self, final: Tensor, target: Tensor, path: int) -> Tensor:
        return margin_relu_distance(self.connectors[path](final).float(), target, self.margins)


def features(net: Backbone, x: Tensor, first_stage: int = 0) -> Tensor:
    """A stage's input to the last feature map before the final ReLU, (N, C, H, W)."""
    last = len(net.blocks) - 1
    for stage in range(first_stage, last):
        x = net.close(net.stage_sum(x, stage))
    return net.stage_sum(x, last)


def check_joint(student: Backbone, teacher: Backbone) -> nn.BatchNorm2d:
    """The teacher's last BatchNorm, whose statistics give the margins.

    Raises:
        BlockdropError: there is none, or a network's blocks don't end with a ReLU, whose inputs are compared.
    """
    if not (student.relu_after_sum and teacher.relu_after_sum):
        raise BlockdropError(
            "jointrd: compares maps before the blocks' closing ReLU, which shift nets and --reduction_mode mobile "
            "don't have"
        )
    branch, _ = teacher.branches()[-1]
    norm = branch.layers()[-1][1] if isinstance(branch, Branch) else None
    if not isinstance(norm, nn.BatchNorm2d):
        raise BlockdropError(
            "jointrd: the teacher's last block has no BatchNorm, whose statistics give the margins"
        )
    return norm
