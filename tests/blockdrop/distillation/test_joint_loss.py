"""Joint residual distillation: margins and distance by hand, where gradients go, and how the terms add up."""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockdrop.distillation.joint_loss import (
    JointRD,
    features,
    margin_relu_distance,
    relu_margins,
    side_weight,
)
from blockdrop.distillation.stages import stage_map
from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Backbone

Make = Callable[..., Backbone]
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3])


def margins(gamma: list[float], bias: list[float]) -> list[float]:
    norm = nn.BatchNorm2d(len(gamma))
    norm.weight.data, norm.bias.data = torch.tensor(gamma), torch.tensor(bias)
    return relu_margins(norm).tolist()


# ---- margins


def test_margins_by_hand() -> None:
    # with c = Φ(-b/σ) and φ the normal density, μ = b - σ · φ(b/σ) / c
    cases = [
        (1, 0, -0.797885),  # -0.398942 / 0.5 = -√(2/π)
        (-2, 0, -1.595769),  # σ = |γ| = 2: twice that
        (1, 1, -0.525135),  # 1 - 0.241971 / 0.158655
        (1, -1, -1.287600),  # -1 - 0.241971 / 0.841345
        (2, 2, -1.050271),  # twice that of (1, 1)
        (-1, 3, -0.283099),  # 3 - 0.00443185 / 0.00134990
        (1, 3.09, -0.276874),  # c = 0.0010008: 3.09 - 0.00336951 / 0.00100078
    ]
    gamma, bias, expected = (list(map(float, column)) for column in zip(*cases, strict=True))
    assert margins(gamma, bias) == pytest.approx(expected, abs=2e-6)


def test_channels_that_are_hardly_ever_negative_get_three_deviations() -> None:
    # Φ(-3.091) = 0.000997 and less
    assert margins([1, 1, -2, 0.5], [3.091, 40, 8, 2]) == [-3, -3, -6, -1.5]


@pytest.mark.parametrize("gamma", [1.0, -1.0, 0.3, -2.5])
@pytest.mark.parametrize("ratio", [-4.0, -1.0, -0.2, 0.0, 0.5, 1.5, 3.0])
def test_the_margin_is_the_mean_of_the_negative_responses(gamma: float, ratio: float) -> None:
    sigma, bias = abs(gamma), ratio * abs(gamma)
    edges = torch.linspace(bias - 12 * sigma, 0, 100_001, dtype=torch.float64)
    x = (edges[1:] + edges[:-1]) / 2
    density = torch.exp(-(((x - bias) / sigma) ** 2) / 2)
    (margin,) = margins([gamma], [bias])
    assert margin == pytest.approx(((x * density).sum() / density.sum()).item(), rel=1e-5)


def test_margins_are_never_nan_nor_positive() -> None:
    values = [0.0, 1e-6, 0.1, 1.0, 10.0, 1e4]
    signed = [sign * value for value in values for sign in (1, -1)]
    gamma, bias = (list(column) for column in zip(*itertools.product(signed, signed), strict=True))
    found = margins(gamma, bias)
    assert all(math.isfinite(margin) and margin <= 0 for margin in found)
    constant = dict(zip(zip(gamma, bias, strict=True), found, strict=True))
    assert constant[0.0, -1.0] == -1, "without spread every response is the bias"
    assert constant[0.0, 1.0] == 0, "and where that is positive, none is negative: three deviations of zero"


# ---- distance


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        # the margin is -1
        (0.5, -2.0, 2.25),  # t ≤ μ < s: (s - μ)² = 1.5²
        (-0.5, -1.0, 0.25),  # t = μ: the same case
        (-1.0, -2.0, 0.0),  # s not above μ
        (-3.0, -2.0, 0.0),
        (0.25, -0.5, 0.5625),  # μ < t ≤ 0, t < s: (s - t)² = 0.75²
        (-0.25, -0.5, 0.0625),
        (-0.75, -0.5, 0.0),  # s not above t
        (1.0, 0.0, 1.0),  # t = 0: the same case
        (-1.0, 0.0, 0.0),
        (3.0, 2.0, 1.0),  # t > 0: (s - t)² on either side
        (-1.0, 2.0, 9.0),
        (2.0, 2.0, 0.0),
    ],
)
def test_each_case_of_the_distance_by_hand(student: float, teacher: float, expected: float) -> None:
    pixel = [torch.tensor(value).view(1, 1, 1, 1) for value in (student, teacher)]
    assert margin_relu_distance(*pixel, torch.tensor([-1.0])).item() == expected


def test_the_distance_is_summed_over_a_sample_and_averaged_over_the_batch() -> None:
    # two images, two channels of margins -1 and -0.25, maps of 1 × 3
    student = torch.tensor([[[[0.5, -3, 1]], [[0.75, 0, -1]]], [[[3, 0.25, 0]], [[0, 0, 0]]]])
    teacher = torch.tensor([[[[-2, -2, 1]], [[-2, -0.5, 1]]], [[[2, -0.5, -0.5]], [[-0.125, -9, 0]]]])
    first = [2.25, 0, 0, 1.0, 0.0625, 4]  # (0.5+1)²; s ≤ μ; equal; (0.75+0.25)²; (0+0.25)²; (-1-1)²
    second = [1, 0.5625, 0.25, 0.015625, 0.0625, 0]  # 1²; 0.75²; 0.5²; 0.125²; 0.25²; equal
    distance = margin_relu_distance(student, teacher, torch.tensor([-1.0, -0.25]))
    assert distance.item() == (sum(first) + sum(second)) / 2


# ---- weight of the side paths


def test_the_side_paths_weight_falls_by_a_half_cosine() -> None:
    assert side_weight(0, 0.5, 60) == 1
    assert side_weight(30, 0.5, 60) == pytest.approx(0.75)  # half way between 1 and the floor
    assert side_weight(20, 0.5, 60) == pytest.approx(0.875)  # cos(π/3) = 1/2: three quarters of the way up
    assert side_weight(40, 0.2, 60) == pytest.approx(0.4)  # cos(2π/3) = -1/2: 0.2 + 0.8 / 4
    assert [side_weight(epoch, 0.5, 60) for epoch in (60, 61, 200)] == [0.5, 0.5, 0.5]
    assert side_weight(1, 5e-3, 1) == 5e-3
    falling = [side_weight(epoch, 5e-3, 60) for epoch in range(61)]
    assert falling == sorted(falling, reverse=True)


# ---- features of the teacher


@pytest.mark.parametrize("name", ["R14_Digits", "R18_Digits", "dsplain8_Digits"])
def test_features_lie_before_the_final_relu(make_static: Make, name: str) -> None:
    net = make_static(name)
    with torch.no_grad():
        final = features(net, net.stem(IMAGES))
        assert final.min() < 0 < final.max()
        assert net.head(F.relu(final)).equal(net(IMAGES))
        x = IMAGES
        for stage in range(len(net.blocks) - 1):
            x = stage_map(net, x, stage)
            assert features(net, x, stage + 1).equal(final), "from any stage's input on"


def test_the_frozen_teacher_gives_the_teachers_logits(make_static: Make) -> None:
    teacher = make_static("R14_Digits")
    joint = JointRD(make_static("dsplain14_Digits"), teacher, 1e-3).train()
    assert any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules()), (
        "the given one is left as it is"
    )
    with torch.no_grad():
        torch.testing.assert_close(joint.teacher(IMAGES), teacher(IMAGES), rtol=1e-4, atol=1e-4)
        final = features(joint.teacher, joint.teacher.stem(IMAGES))
        torch.testing.assert_close(joint.teacher.head(F.relu(final)), teacher(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_teacher_without_batchnorm_has_no_margins(make_static: Make) -> None:
    teacher = make_static("R8_Digits").folded()
    with pytest.raises(BlockdropError, match="the teacher's last block has no BatchNorm"):
        JointRD(make_static("dsplain8_Digits"), teacher, 1e-3)


# ---- gradients


@pytest.fixture
def teacher(make_static: Make) -> Backbone:
    return make_static("R8_Digits", shortcut="projection")


@pytest.fixture
def joint(make_static: Make, teacher: Backbone) -> JointRD:
    return JointRD(make_static("dsplain8_Digits", shortcut="projection"), teacher, 1e-3).train()


def test_every_parameter_of_the_student_learns(joint: JointRD) -> None:
    joint(IMAGES, LABELS, 0).loss.backward()
    for module in (joint.student, joint.connectors):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("cut", [0, 1])
def test_a_side_path_teaches_the_stages_before_its_cut_alone(joint: JointRD, cut: int) -> None:
    joint.stages = range(cut, cut + 1)
    joint(IMAGES, LABELS, 0).parts["side_paths"].backward()
    earlier = ("conv1.", "bn1.", *(f"{part}.{stage}." for part in ("blocks", "ds") for stage in range(cut + 1)))
    for name, parameter in joint.student.named_parameters():
        assert (parameter.grad is not None) == name.startswith(earlier), name
        assert parameter.grad is None or bool(parameter.grad.any()), name
    learning = [any(p.grad is not None for p in connector.parameters()) for connector in joint.connectors]
    assert learning == [path == 1 + cut for path in range(3)], "each side path has a connector of its own"


def test_the_teacher_never_changes(joint: JointRD, teacher: Backbone) -> None:
    before = copy.deepcopy((teacher.state_dict(), joint.teacher.state_dict()))
    student = copy.deepcopy(joint.student.state_dict())
    optimizer = torch.optim.SGD(joint.parameters(), 0.1, weight_decay=0.1)  # all there are, the teacher's or not
    for epoch in range(2):
        optimizer.zero_grad()
        joint(IMAGES, LABELS, epoch).loss.backward()
        optimizer.step()
    for net, state in zip((teacher, joint.teacher), before, strict=True):
        assert not net.training, "though the objective is in train mode"
        assert all(parameter.grad is None for parameter in net.parameters())
        assert all(value.equal(state[key]) for key, value in net.state_dict().items())
    assert not any(value.equal(student[key]) for key, value in joint.student.state_dict().items())


# ---- how the terms add up


def test_the_loss_is_the_weighted_sum_of_its_terms(joint: JointRD) -> None:
    joint.side_floor, joint.side_epochs, joint.feature_weight = 0.2, 60, 0.01
    for epoch, weight in ((0, 1.0), (40, 0.4), (60, 0.2), (100, 0.2)):
        step = joint(IMAGES, LABELS, epoch)
        assert step.logits is not None
        cross_entropy, distance, sides = (
            step.parts[name].item() for name in ("cross_entropy", "feature_distance", "side_paths")
        )
        assert cross_entropy == F.cross_entropy(step.logits, LABELS).item()
        assert step.loss.item() == pytest.approx(cross_entropy + 0.01 * distance + weight * sides, rel=1e-5)


def test_a_side_path_is_the_students_map_in_the_teachers_later_stages(joint: JointRD) -> None:
    student, frozen, weight = joint.student, joint.teacher, joint.feature_weight
    with torch.no_grad():
        step = joint(IMAGES, LABELS, 0)
        target, x, sides = features(frozen, frozen.stem(IMAGES)), IMAGES, []
        for stage, connector in enumerate([*joint.connectors][1:]):
            x = stage_map(student, x, stage)
            final = features(frozen, x, stage + 1)
            logits = frozen.head(F.relu(final))
            distance = margin_relu_distance(connector(final), target, joint.margins)
            sides.append(F.cross_entropy(logits, LABELS) + weight * distance)
        final = student.stage_sum(x, 2)
        distance = margin_relu_distance(joint.connectors[0](final), target, joint.margins)
    assert len(sides) == 2, "one at the end of every stage but the last"
    assert step.parts["side_paths"].item() == pytest.approx(sum(sides).item(), rel=1e-5)
    assert step.parts["feature_distance"].item() == pytest.approx(distance.item(), rel=1e-5)
    assert step.logits is not None
    torch.testing.assert_close(step.logits, student.head(F.relu(final)))


def test_margins_come_from_the_teachers_last_batchnorm(joint: JointRD, teacher: Backbone) -> None:
    assert joint.margins.equal(relu_margins(teacher.blocks[2][0].bn2))


def test_features_alone_have_no_side_paths(make_static: Make, teacher: Backbone) -> None:
    joint = JointRD(make_static("dsplain8_Digits"), teacher, 0.01, side_paths=False).train()
    step = joint(IMAGES, LABELS, 0)
    assert step.parts.keys() == {"cross_entropy", "feature_distance"}
    cross_entropy, distance = (part.item() for part in step.parts.values())
    assert step.loss.item() == pytest.approx(cross_entropy + 0.01 * distance, rel=1e-6)
    assert len(joint.connectors) == 1


def test_a_network_of_four_stages_has_three_side_paths(make_static: Make) -> None:
    joint = JointRD(make_static("dsplain18_Digits"), make_static("R18_Digits"), 1e-3)
    assert len(joint.stages) == 3
    assert len(joint.connectors) == 4
