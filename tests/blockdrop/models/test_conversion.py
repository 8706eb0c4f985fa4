"""Networks that people bring: the same logits when converted, and what can't be is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from blockdrop import build, build_static, from_torchvision
from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import EndedBranch
from blockdrop.models.conversion import convert, convert_like, num_classes_of, preprocessing_of
from blockdrop.models.droppable import Droppable
from blockdrop.models.parts import DroppableParts
from blockdrop.models.resnet import DroppableResNet
from tests.blockdrop.models.brought import BY_NAME, MapBlock, MapNet, Pooled, TokenNet, images_of, make
from tests.conftest import randomise_statistics

SIZE = 64


def torchvisions(name: str, **options: Any) -> nn.Module:
    model = getattr(torchvision.models, name)(**options)
    randomise_statistics(model)
    return model.eval()


def timms(name: str, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model(name, num_classes=7, **options)
    randomise_statistics(model)
    for module in model.modules():
        if isinstance(getattr(module, "gamma", None), nn.Parameter):  # a scale that starts at 1e-6
            nn.init.uniform_(module.gamma, 0.5, 1)
    return model.eval()


def assert_converted(model: nn.Module, network: Droppable, size: int = SIZE) -> None:
    """The same logits to 1e-5, and sparse execution gives what masked execution gives."""
    images, policy = torch.randn(3, 3, size, size), torch.rand(3, network.num_blocks) < 0.5
    with torch.no_grad():
        expected, found = model(images), network(images)
        assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
        masked = network(images, policy, "masked")
        assert (network(images, policy) - masked).abs().max() <= 1e-4 * max(1, masked.abs().max())
        assert not masked.allclose(expected, rtol=1e-2)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvisions_resnets_keep_their_logits(name: str) -> None:
    size = 32 if "wide" in name else SIZE
    model = torchvisions(name)
    network, origin = convert(model, image_size=size)
    assert isinstance(network, DroppableResNet)
    assert (origin["kind"], origin["classes"]) == ("torchvision", 1000)
    assert_converted(model, network, size)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {"replace_stride_with_dilation": [False, True, True]}),
        ("resnet18", {"norm_layer": lambda width: nn.GroupNorm(8, width)}),
    ],
    ids=["dilated", "groupnorm"],
)
def test_options_and_a_replaced_head_come_along(name: str, options: dict[str, Any]) -> None:
    model: Any = torchvisions(name, **options)
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(model.fc.in_features, 7)).eval()
    network, origin = convert(model, image_size=SIZE)
    assert origin["classes"] == 7
    assert_converted(model, network)
    assert_converted(model, from_torchvision(model))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50d", "seresnet50", "resnext50_32x4d", "ecaresnet26t"],
)
def test_timms_resnets_keep_their_logits(name: str) -> None:
    model = timms(name)
    network, origin = convert(model, image_size=SIZE)
    assert isinstance(network, DroppableResNet)
    assert (origin["kind"], origin["classes"]) == ("timm", 7)
    assert_converted(model, network)
    folded = network.folded()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images, policy = torch.randn(2, 3, SIZE, SIZE), torch.rand(2, network.num_blocks) < 0.5
    with torch.no_grad():
        torch.testing.assert_close(folded(images, policy), network(images, policy), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "stages"),
    [
        ("convnext_atto", {}, [2, 2, 6, 2]),
        ("vit_tiny_patch16_224", {"img_size": SIZE}, [12]),
        ("vit_tiny_patch16_224", {"img_size": SIZE, "global_pool": "avg", "class_token": False}, [12]),
    ],
)
def test_the_parts_of_timms_convnexts_and_vision_transformers_are_known(
    name: str, options: dict[str, Any], stages: list[int]
) -> None:
    model = timms(name, **options)
    network, origin = convert(model, image_size=SIZE)
    assert isinstance(network, DroppableParts)
    assert origin == {
        "kind": "timm",
        "class_name": f"{type(model).__module__}.{type(model).__name__}",
        "stage_sizes": stages,
        "image_size": SIZE,
        "classes": 7,
        "residual": "whole",
    }
    assert_converted(model, network)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in model.parameters())


def test_convnexts_and_swins_come_by_hand_too() -> None:
    model: Any = timms("convnext_atto")
    network, origin = convert(
        model,
        stem="stem",
        blocks=[f"stages.{i}.blocks" for i in range(4)],
        transitions=[None, *(f"stages.{i}.downsample" for i in (1, 2, 3))],
        head=nn.Sequential(model.norm_pre, model.head),
        image_size=SIZE,
    )
    assert "blocks" not in origin, "one of the parts has no name in the model"
    assert_converted(model, network)

    model = timms("swin_tiny_patch4_window7_224", img_size=SIZE, window_size=2)
    network, _ = convert(
        model,
        stem=model.patch_embed,
        blocks=[layer.blocks for layer in model.layers],
        transitions=[None, *(layer.downsample for layer in model.layers[1:])],
        head=nn.Sequential(model.norm, model.head),
    )
    assert_converted(model, network)


@pytest.mark.parametrize("kind", [MapNet, TokenNet])
def test_parts_by_name_keep_the_logits(kind: type[nn.Module]) -> None:
    model = make(kind)
    network, origin = convert(model, **BY_NAME[kind], image_size=16)
    assert_converted(model, network, 16)
    assert json.loads(json.dumps(origin)) == origin
    assert (origin["kind"], origin["residual"], origin["classes"]) == ("parts", "whole", 5)


def test_parts_need_no_model() -> None:
    model: Any = make(MapNet)
    network, origin = convert(
        stem=model.stem, blocks=[model.first, [*model.second]], transitions=[None, model.down], head=model.head,
        image_size=16,
    )  # fmt: skip
    assert_converted(model, network, 16)
    assert origin["class_name"] == ""
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert not model.stem.weight.eq(0).all(), "parts are copied"


class Branches(nn.Module):
    """y = x + F(x) by the network's own forward, its blocks F alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)) for _ in range(3))
        self.head = Pooled(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_branches_alone_are_named_with_the_mend_and_taken_as_such() -> None:
    model = make(Branches)
    # a list of Sequentials is one of stages, so blocks that are Sequentials stand in a stage's list
    parts: dict[str, Any] = {"stem": "stem", "blocks": [[f"blocks.{i}" for i in range(3)]], "head": "head"}
    with pytest.raises(
        BlockdropError, match=r'blocks\.0 \(Sequential\) isn\'t recognised .* residual="branch" if'
    ):
        convert(model, **parts, image_size=16)
    with pytest.raises(BlockdropError, match="Branches computes something else than its parts"):
        convert(model, **parts, residual="whole", image_size=16)
    network, origin = convert(model, **parts, residual="branch", image_size=16)
    assert origin["residual"] == "branch"
    assert_converted(model, network, 16)
    whole = make(MapNet)
    with pytest.raises(BlockdropError, match=r'first\.0 \(MapBlock\) adds its input itself: residual="whole"'):
        convert(whole, **BY_NAME[MapNet], residual="branch", image_size=16)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_is_and_modes_come_along(training: bool) -> None:
    for model, parts in [(torchvisions("resnet18"), {}), (make(MapNet), BY_NAME[MapNet])]:
        model.train(training)
        frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        frozen.training = not training
        before = copy.deepcopy(model.state_dict())
        network, _ = convert(model, **parts, image_size=32)
        modes = [(type(module), module.training) for module in network.modules()]
        assert [mode for mode in modes if mode[1] != training] == [(nn.BatchNorm2d, not training)]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        assert all(value.equal(before[key]) for key, value in model.state_dict().items())
        assert model.training == training
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_frozen_weights_stay_frozen_and_double_precision_double() -> None:
    model = torchvisions("resnet18").double()
    model.get_submodule("layer1").requires_grad_(False)
    network, _ = convert(model, image_size=32)
    assert network.get_submodule("blocks.0").state_dict()["0.conv1.weight"].dtype == torch.float64
    assert not any(p.requires_grad for p in network.get_submodule("blocks.0").parameters())
    assert all(p.requires_grad for p in network.get_submodule("blocks.1").parameters())


def test_conversion_leaves_the_random_numbers_alone() -> None:
    model = make(TokenNet)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    convert(model, **BY_NAME[TokenNet], image_size=16)
    assert torch.rand(3).equal(expected)


def test_what_training_does_to_a_branch_comes_along() -> None:
    model = timms("resnet18", drop_path_rate=0.5, drop_rate=0.25)
    network, _ = convert(model, image_size=SIZE)
    assert isinstance(network, DroppableResNet)
    assert isinstance(network.fc, nn.Sequential)
    assert isinstance(network.fc[0], nn.Dropout)
    assert network.fc[0].p == 0.25
    last, _ = network.branches()[-1]
    assert isinstance(last, EndedBranch)
    assert type(last.end).__name__ == "DropPath"
    assert_converted(model, network)


# ---- networks of ours


def test_a_network_of_ours_passes_through_and_a_plain_net_is_refused() -> None:
    resnet, _ = build("R8_C10")
    network, origin = convert(resnet)
    assert network is resnet
    assert origin["kind"] == "zoo"
    assert convert(convert(make(MapNet), **BY_NAME[MapNet], image_size=16)[0])[1]["stage_sizes"] == [2, 1]
    with pytest.raises(BlockdropError, match="PlainNet has no shortcuts, so none of its blocks can be dropped"):
        convert(build_static("plain8_C10"))


# ---- the same again


@pytest.mark.parametrize("kind", [MapNet, TokenNet])
def test_another_model_of_the_class_is_converted_alike(kind: type[nn.Module]) -> None:
    network, origin = convert(make(kind), **BY_NAME[kind], image_size=16)
    other = make(kind)
    again = convert_like(other, json.loads(json.dumps(origin)))
    assert_converted(other, again, 16)
    assert again.state_dict().keys() == network.state_dict().keys()
    again.load_state_dict(network.state_dict())
    images = images_of()
    torch.testing.assert_close(again(images), network(images))


def test_another_model_must_be_of_the_same_class_with_the_same_blocks() -> None:
    _, origin = convert(torchvisions("resnet18"), image_size=32)
    assert convert_like(torchvisions("resnet18"), origin).stage_sizes == (2, 2, 2, 2)
    with pytest.raises(
        BlockdropError, match=r"ResNet: has \[3, 4, 6, 3\] blocks per stage; .* had \[2, 2, 2, 2\]"
    ):
        convert_like(torchvisions("resnet50"), origin)
    with pytest.raises(BlockdropError, match="has 7 classes; the other network had 1000"):
        convert_like(torchvisions("resnet18", num_classes=7), origin)
    with pytest.raises(BlockdropError, match=r"made of torchvision\.models\.resnet\.ResNet, not of MapNet"):
        convert_like(make(MapNet), origin)


def test_parts_without_a_name_are_needed_again() -> None:
    model: Any = make(MapNet)

    def parts(model: Any) -> dict[str, Any]:
        return {
            "stem": nn.Sequential(model.stem), "blocks": [model.first, model.second],
            "transitions": [None, model.down], "head": model.head,
        }  # fmt: skip

    _, origin = convert(model, **parts(model), image_size=16)
    other = make(MapNet)
    with pytest.raises(BlockdropError, match="parts that have no names in a model; give stem, blocks and head"):
        convert_like(other, origin)
    assert_converted(other, convert_like(other, origin, **parts(other)), 16)
    with pytest.raises(BlockdropError, match="made of parts without a model, not of MapNet"):
        convert_like(other, convert(**parts(model), image_size=16)[1])


# ---- what it says of itself


def test_preprocessing_is_the_networks_own() -> None:
    facts = preprocessing_of(timms("test_vit", img_size=64))
    assert facts is not None
    assert (facts.image_size, facts.normalisation.mean) == (64, (0.5, 0.5, 0.5)), "made for that size"
    facts = preprocessing_of(timms("resnet50d"))
    assert facts is not None
    assert (facts.image_size, facts.resize, facts.interpolation) == (224, 256, "bicubic")
    facts = preprocessing_of(torchvisions("resnet18"))
    assert facts is not None
    assert (facts.image_size, facts.resize, facts.interpolation) == (224, 256, "bilinear")
    assert preprocessing_of(make(MapNet)) is None


def test_classes_are_counted() -> None:
    assert num_classes_of(torchvisions("resnet18", num_classes=7), 224) == 7
    assert num_classes_of(make(TokenNet), 16) == 5
    with pytest.raises(BlockdropError, match=r"Conv2d: gives .* for one image, not logits"):
        num_classes_of(nn.Conv2d(3, 4, 1), 8)


# ---- refusals


class OwnForward(torchvision.models.ResNet):
    """A ResNet that scales its images first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class WithoutActivation(torchvision.models.resnet.BasicBlock):
    """A block that computes something else of the usual parts."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(shortcut + self.bn2(self.conv2(self.bn1(self.conv1(x)))))


def changed(model: nn.Module, change: Callable[[Any], object]) -> nn.Module:
    change(model)
    return model


def with_hook(name: str) -> nn.Module:
    return changed(torchvisions("resnet18"), lambda m: m.get_submodule(name).register_forward_hook(print))


SmallBlock = torchvision.models.resnet.BasicBlock


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: OwnForward(SmallBlock, [1, 1, 1, 1]), "OwnForward computes something else than its parts"),
        (
            lambda: torchvision.models.ResNet(WithoutActivation, [1, 1, 1, 1]),
            "ResNet computes something else than its parts",
        ),
        (
            lambda: torchvision.models.ResNet(WithoutActivation, [1, 1, 1, 1], zero_init_residual=True),
            "ResNet computes something else than its parts",
        ),
        (lambda: with_hook("layer2.1"), "layer2.1 has a forward hook"),
        (lambda: with_hook("layer3"), "layer3 has a forward hook"),
        (lambda: with_hook(""), "ResNet has a forward hook"),
        (
            lambda: changed(torchvisions("resnet18"), lambda m: setattr(m.layer2[0], "attention", nn.Identity())),
            "layer2.0.attention is a Identity: no block of a torchvision ResNet has such a part",
        ),
        (
            lambda: changed(torchvisions("resnet18"), lambda m: setattr(m.layer1[1], "relu", nn.SiLU())),
            "layer1.1.relu is a SiLU: a DroppableResNet has ReLU alone",
        ),
        (
            lambda: changed(torchvisions("resnet18"), lambda m: setattr(m, "relu", nn.LeakyReLU())),
            "relu is a LeakyReLU: a DroppableResNet has ReLU alone",
        ),
        (
            lambda: changed(torchvisions("resnet18"), lambda m: setattr(m.layer1[1], "downsample", nn.Identity())),
            "layer1.1.downsample: only the first block of a stage",
        ),
        (
            lambda: changed(torchvisions("resnet18"), lambda m: delattr(m.layer1[1], "bn2")),
            r"layer1.1 \(BasicBlock\) has no bn2",
        ),
        (
            lambda: changed(torchvisions("resnet18"), lambda m: nn.init.constant_(m.fc.bias, float("nan"))),
            "ResNet: its logits aren't finite",
        ),
        (lambda: torchvision.models.resnet18().to("meta"), "ResNet: has no weights yet"),
        (torchvision.models.mobilenet_v3_small, "MobileNetV3: no ResNet of torchvision or timm, .*give the parts"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "Sequential: no ResNet"),
    ],
)
def test_what_cannot_be_converted_is_named(make_model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        convert(make_model(), image_size=32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnetaa50", {}, "layer2.0.aa is a AvgPool2d: a branch can have nothing but ReLUs"),
        ("resnetblur18", {}, "layer2.0.aa is a BlurPool2d"),
        ("resnet18", {"drop_block_rate": 0.1}, "layer3.0.drop_block is a DropBlock2d"),
        ("seresnet33ts", {}, "ByobNet: no ResNet"),
        ("res2net50_14w_8s", {}, "layer1.0.convs is a ModuleList: no block of a timm ResNet"),
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled: no ResNet"),
        ("resnet18", {"act_layer": "silu"}, "act1 is a SiLU"),
    ],
)
def test_timms_other_networks_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    model = timms(name, **options)
    with pytest.raises(BlockdropError, match=message):
        convert(model, image_size=SIZE)


def test_a_hook_on_a_timm_networks_blocks_is_refused() -> None:
    for name, part in [("vit_tiny_patch16_224", "blocks"), ("convnext_atto", "stages.1")]:
        model = timms(name)
        model.get_submodule(part).register_forward_hook(lambda *_: None)
        with pytest.raises(BlockdropError, match=f"{part} has a forward hook"):
            convert(model)


def test_what_is_no_torchvision_resnet_is_refused_without_being_run() -> None:
    with pytest.raises(BlockdropError, match="MobileNetV3 has no conv1; expected a torchvision ResNet"):
        from_torchvision(torchvision.models.mobilenet_v3_small())


class Widening(nn.Module):
    """A block that changes the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class InPlace(MapBlock):
    """A block that writes to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.norm(self.conv(x)))


class Mixing(MapBlock):
    """A block whose rows depend on each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x - x.mean(0)))


class Two(nn.Module):
    """Gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class TokensFirst(nn.Module):
    """Rows are not images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).permute(2, 0, 1)


REPEATED = MapBlock(6)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"blocks": [[MapBlock(6), Widening()]]},
            r"blocks\[0\]\[1\] \(Widening\) changes the shape .* as a transition",
        ),
        ({"blocks": [[InPlace(6)]]}, r"blocks\[0\]\[0\] \(InPlace\) writes to its input"),
        ({"blocks": [[Mixing(6)]]}, "parts: an image's logits depend on the other images"),
        ({"blocks": [[nn.Identity()]]}, r"blocks\[0\]\[0\] \(Identity\) isn't recognised"),
        ({"blocks": [[REPEATED, REPEATED]]}, r"blocks\[0\]\[1\]: stands in two places"),
        ({"blocks": [[MapBlock(7)]]}, r"blocks\[0\]\[0\] \(MapBlock\) fails on an input of shape \(2, 6, 8, 8\)"),
        ({"blocks": [[Two()]]}, r"blocks\[0\]\[0\] \(Two\) gives a tuple; a part must give one tensor"),
        ({"blocks": [[]]}, r"blocks\[0\]: a stage without blocks"),
        ({"blocks": [MapBlock(6), 3]}, r"blocks\[0\]\[1\]: got a int; expected an nn.Module"),
        ({"blocks": MapBlock(6)}, "blocks: got a MapBlock; expected a list of stages"),
        ({"blocks": ["first"]}, "'first' is the name of a part, but no model was given"),
        ({"transitions": []}, "transitions: got 0 for 1 stages"),
        ({"stem": TokensFirst()}, r"stem \(TokensFirst\) gives \(64, 2, 3\) for 2 images; images must be rows"),
        ({"head": nn.ReLU()}, r"head: gives \(2, 6, 8, 8\); expected logits \(N, classes\)"),
        ({"head": None}, "stem, blocks and head go together"),
    ],
)
def test_parts_that_make_no_network_of_residual_blocks_are_named(parts: dict[str, Any], message: str) -> None:
    usual = {"stem": nn.Conv2d(3, 6, 1), "blocks": [[MapBlock(6)]], "head": Pooled(6, 5), "image_size": 8}
    with pytest.raises(BlockdropError, match=message):
        convert(None, **(usual | parts))


def test_a_model_and_parts_of_its_names() -> None:
    model = make(MapNet)
    with pytest.raises(BlockdropError, match="stem: MapNet has no part named 'root'"):
        convert(model, **(BY_NAME[MapNet] | {"stem": "root"}), image_size=16)
    with pytest.raises(BlockdropError, match="MapNet: image_size is needed"):
        convert(model, **BY_NAME[MapNet])
    with pytest.raises(BlockdropError, match="give a model, or stem, blocks and head"):
        convert()
    with pytest.raises(BlockdropError, match="MapNet computes something else than its parts"):
        convert(model, **(BY_NAME[MapNet] | {"blocks": [["first.1", "first.0"], "second"]}), image_size=16)


class Branching(MapNet):
    """Its forward depends on the data."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 1e6 else -images)


def test_a_forward_that_depends_on_the_data_is_caught() -> None:
    with pytest.raises(BlockdropError, match="Branching computes something else than its parts"):
        convert(make(Branching), **BY_NAME[MapNet], image_size=16)


def test_a_hook_that_changes_a_block_of_given_parts_comes_along() -> None:
    model: Any = make(MapNet)
    model.first[0].register_forward_hook(lambda _module, _args, out: out * 2)
    with pytest.raises(BlockdropError, match=r"first\.0 \(MapBlock\) isn't recognised as a residual block"):
        convert(model, **BY_NAME[MapNet], image_size=16)
    network, _ = convert(model, **BY_NAME[MapNet], residual="whole", image_size=16)
    assert_converted(model, network, 16)
