"""Distillation of logits: the divergence by hand, its scaling with the temperature, and who learns."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockdrop.models.backbone import Backbone
from blockdrop.training.hinton import HintonLoss, hinton_objective, kl_divergence

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
TEACHER = torch.tensor([[1.0, 0.5, -2.0], [-1.0, 0.0, 4.0]])
LABELS = torch.tensor([0, 2])

# At T = 2 these are p = (3/4, 1/4) of the teacher and q = (1/2, 1/2) of the student:
# KL(p ‖ q) = 3/4 · ln(3/2) + 1/4 · ln(1/2) = 0.304099 - 0.173287 = 0.130812
TWO_CLASSES = (torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]))
BY_HAND = 0.130812


def test_the_divergence_of_equal_distributions_is_zero() -> None:
    for temperature in (0.5, 1.0, 10.0):
        assert kl_divergence(LOGITS, LOGITS, temperature).item() == pytest.approx(0, abs=1e-7)
        assert kl_divergence(LOGITS, LOGITS + 7, temperature).item() == pytest.approx(0, abs=1e-6), "same softmax"


def test_the_divergence_of_two_classes_by_hand() -> None:
    student, teacher = TWO_CLASSES
    assert kl_divergence(student, teacher, 2.0).item() == pytest.approx(BY_HAND, abs=1e-6)
    # the other way round it is 1/2 · ln(2/3) + 1/2 · ln 2 = 1/2 · ln(4/3) = 0.143841
    assert kl_divergence(teacher, student, 2.0).item() == pytest.approx(0.143841, abs=1e-6)


def test_the_divergence_is_the_mean_over_the_batch() -> None:
    student, teacher = TWO_CLASSES
    half_equal = kl_divergence(student.repeat(2, 1), torch.cat([teacher, student]), 2.0)
    assert half_equal.item() == pytest.approx(BY_HAND / 2, abs=1e-6)


def test_scaling_multiplies_by_the_temperature_squared() -> None:
    for temperature in (1.0, 4.0, 10.0):
        plain = HintonLoss(0, 1, temperature, scale_kl=False)(LOGITS, TEACHER, LABELS)
        scaled = HintonLoss(0, 1, temperature, scale_kl=True)(LOGITS, TEACHER, LABELS)
        assert scaled.loss.item() == pytest.approx(temperature**2 * plain.loss.item(), rel=1e-6)
        assert plain.loss.item() == kl_divergence(LOGITS, TEACHER, temperature).item()


def kl_gradient(temperature: float, scale_kl: bool) -> Tensor:
    student = LOGITS.clone().requires_grad_()
    HintonLoss(0, 1, temperature, scale_kl)(student, TEACHER, LABELS).loss.backward()
    assert student.grad is not None
    return student.grad


def test_for_high_temperatures_the_scaled_gradient_depends_on_them_no_longer() -> None:
    # Hinton et al., equation 4: ∂(T² · KL)/∂z → (z_s - z_t) / classes where logits are centred; a mean over two
    difference = (LOGITS - LOGITS.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    for temperature in (500.0, 1000.0):
        torch.testing.assert_close(kl_gradient(temperature, True), difference / 3 / 2, rtol=0.01, atol=0.003)
    # unscaled it falls like 1/T²: doubling T divides it by four
    torch.testing.assert_close(kl_gradient(200, False) * 4, kl_gradient(100, False), rtol=0.03, atol=0.03 / 100**2)


def test_without_the_teachers_term_the_loss_is_the_cross_entropy() -> None:
    step = HintonLoss(alpha=1, beta=0)(LOGITS, TEACHER, LABELS)
    assert step.loss.item() == F.cross_entropy(LOGITS, LABELS).item()
    assert step.parts["cross_entropy"].item() == step.loss.item()
    assert step.logits is not None
    assert step.logits.equal(LOGITS)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # the cross-entropy of q = (1/2, 1/2) is ln 2 = 0.693147 whatever the label
        (HintonLoss(0.2, 0.8, 2.0, scale_kl=False), 0.2 * 0.693147 + 0.8 * BY_HAND),
        (HintonLoss(0.2, 0.8, 2.0), 0.2 * 0.693147 + 0.8 * 4 * BY_HAND),
        # jointrd's KL: (1 - α) · CE + α · T² · KL at α = 0.9, T = 4, of logits twice as large
        (HintonLoss(0.1, 0.9, 4.0), 0.0693147 + 14.4 * BY_HAND),
    ],
    ids=["unscaled", "scaled", "jointrd"],
)
def test_the_sum_of_both_terms_by_hand(loss: HintonLoss, expected: float) -> None:
    student, teacher = TWO_CLASSES
    step = loss(student, teacher * loss.temperature / 2, torch.tensor([0]))
    assert step.loss.item() == pytest.approx(expected, abs=1e-5)


def test_the_defaults_are_the_published_ones() -> None:
    assert HintonLoss() == HintonLoss(alpha=0.2, beta=0.8, temperature=10.0, scale_kl=True)


def test_the_student_learns_and_the_teacher_does_not(make_static: Callable[..., Backbone]) -> None:
    student, teacher = make_static("plain8_Digits").train(), make_static("R8_Digits")
    before = copy.deepcopy(teacher.state_dict())
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    step = hinton_objective(student, teacher, HintonLoss())(images, labels, 0)
    step.loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters()), "though they ask for gradients"
    assert all(value.equal(before[key]) for key, value in teacher.state_dict().items())


def test_a_student_that_is_its_teacher_has_no_divergence(make_static: Callable[..., Backbone]) -> None:
    net = make_static("R8_Digits")
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    step = hinton_objective(net, net, HintonLoss(0, 1))(images, labels, 0)
    assert step.loss.item() == pytest.approx(0, abs=1e-4)
