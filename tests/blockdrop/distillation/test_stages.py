"""Stagewise distillation: the distance by hand, what trains and what stands still, networks that don't match."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from blockdrop.data import NORMALISATIONS, MemoryImages
from blockdrop.distillation.stages import (
    Hybrid,
    check_same_stages,
    stage_map,
    stage_objective,
    stage_parameters,
    train_only,
)
from blockdrop.errors import BlockdropError
from blockdrop.measure import evaluate_images
from blockdrop.models.backbone import Backbone
from blockdrop.models.zoo import build_static
from blockdrop.training.compute import Compute
from tests.conftest import dynamic_of

Make = Callable[..., Backbone]
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3])


def make_constant(net: Backbone, stage: int, levels: Tensor) -> None:
    """The last BatchNorm of a plain net's stage gives these values, whatever comes in; a ReLU follows."""
    block = net.blocks[stage][-1]
    nn.init.zeros_(block.bn2.weight)
    block.bn2.bias.data.copy_(levels)


def test_the_stages_in_turn_are_the_network(make_static: Make) -> None:
    for name in ("R14_Digits", "plain14_Digits", "shiftresnet8_Digits"):
        net, x = make_static(name), IMAGES
        with torch.no_grad():
            for stage in range(3):
                x = stage_map(net, x, stage)
            assert net.head(x).equal(net(IMAGES)), name


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_loss_is_the_mean_absolute_difference_of_the_maps(make_static: Make, stage: int) -> None:
    student, teacher = make_static("plain8_Digits"), make_static("plain8_Digits")
    quarter = (16, 32, 64)[stage] // 4
    make_constant(teacher, stage, torch.tensor([0.5, 0.5, 2.0, -1.0]).repeat_interleave(quarter))
    make_constant(student, stage, torch.tensor([0.25, 1.5, 2.0, -3.0]).repeat_interleave(quarter))
    # (|0.25 - 0.5| + |1.5 - 0.5| + |2 - 2| + |0 - 0|) / 4: the last quarter is zero after the ReLU
    step = stage_objective(student, teacher, stage)(IMAGES, LABELS, 0)
    assert step.loss.item() == pytest.approx(0.3125)
    assert step.logits is None, "a stage has no logits"


def test_a_student_of_the_teachers_maps_has_no_loss(make_static: Make) -> None:
    teacher = make_static("R14_Digits")
    other = copy.deepcopy(teacher)
    nn.init.zeros_(other.blocks[1][0].bn1.weight)
    for stage in range(3):
        assert stage_objective(teacher, teacher, stage)(IMAGES, LABELS, 0).loss.item() == 0
        assert (stage_objective(other, teacher, stage)(IMAGES, LABELS, 0).loss.item() > 0) == (stage >= 1)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_only_the_trained_stage_changes(make_static: Make, stage: int) -> None:
    student = make_static("dsplain14_Digits", shortcut="projection")
    teacher = make_static("R14_Digits", shortcut="projection")
    before = [copy.deepcopy(net.state_dict()) for net in (student, teacher)]
    train_only(student, stage)
    optimizer = torch.optim.SGD(stage_parameters(student, stage), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        stage_objective(student, teacher, stage)(IMAGES, LABELS, 0).loss.backward()
        optimizer.step()
    own = (f"blocks.{stage}.", f"ds.{stage}.", *(("conv1.", "bn1.") if stage == 0 else ()))
    for key, value in student.state_dict().items():
        assert value.equal(before[0][key]) != key.startswith(own), key
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == name.startswith(own), name
    assert all(value.equal(before[1][key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_stages_and_the_head_share_out_all_parameters() -> None:
    net = build_static("dsplain14_Digits", shortcut="projection")
    stages = [parameter for stage in range(3) for parameter in stage_parameters(net, stage)]
    everything = [*stages, *net.fc.parameters()]
    assert len({id(p) for p in everything}) == len(everything) == len(list(net.parameters()))


def test_a_hybrid_goes_from_the_teacher_to_the_student(make_static: Make) -> None:
    student, teacher = make_static("plain8_Digits"), make_static("R8_Digits")
    student.fc.load_state_dict(teacher.fc.state_dict())
    with torch.no_grad():
        logits = [Hybrid(student, teacher, stages)(IMAGES) for stages in range(4)]
        assert logits[0].equal(teacher(IMAGES))
        x = stage_map(teacher, stage_map(student, IMAGES, 0), 1)
        assert logits[1].equal(teacher.head(stage_map(teacher, x, 2)))
        assert logits[3].equal(student(IMAGES))


def test_a_hybrids_accuracy_is_the_share_of_images_it_gets_right(make_static: Make) -> None:
    net = make_static("R8_Digits")
    images = MemoryImages(
        torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8), torch.zeros(10, dtype=torch.long)
    )
    compute = Compute(torch.device("cpu"), torch.float32, channels_last=True)
    normalisation = NORMALISATIONS["half"]
    images.labels = evaluate_images(dynamic_of(net), images, compute).predictions.clone()
    images.labels[:3] = (images.labels[:3] + 1) % 10
    assert Hybrid(net, net, 2).accuracy(images, normalisation, compute) == 0.7


def test_networks_of_the_same_stages_match() -> None:
    for name in ("R8", "plain8", "plain20", "shiftresnet8", "exactplain8"):
        check_same_stages(build_static(f"{name}_Digits"), build_static("R8_Digits"), 32)


@pytest.mark.parametrize(
    ("student", "options", "maps"),
    [
        ("plain18_Digits", {}, "64×32×32 128×16×16 256×8×8 512×4×4, the teacher's of 16×32×32 32×16×16 64×8×8"),
        ("plain8_Digits", {"reduction": 2.0, "reduction_mode": "net"}, "11×32×32 22×16×16 45×8×8, the teacher's"),
    ],
    ids=["four stages", "narrower"],
)
def test_networks_of_other_stages_are_one_clear_error(student: str, options: dict, maps: str) -> None:
    with pytest.raises(BlockdropError, match=f"^--student: its stages give maps of {maps}") as error:
        check_same_stages(build_static(student, **options), build_static("R8_Digits"), 32)
    assert "\n" not in str(error.value)
