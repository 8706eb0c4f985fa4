"""Every dialect written here and read back; every damaged or hostile file refused."""

import hashlib
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from blockdrop import build, load_checkpoint, save_checkpoint
from blockdrop.data import NORMALISATIONS, Images
from blockdrop.errors import CheckpointError
from blockdrop.measure import evaluate_images
from blockdrop.models.checkpoints import filling
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_policy_trunk, network_from
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.specs import Variant, parse_model_name
from blockdrop.models.zoo import build_static
from blockdrop.version import project_version
from experiments.robustness.samples import as_torchvision
from tests.conftest import SHARED, dynamic_of

State = dict[str, Tensor]


def prefixed(state: State, prefix: str = "module.") -> State:
    return {prefix + key: value for key, value in state.items()}


def assert_same_weights(module: torch.nn.Module, state: State) -> None:
    for key, value in module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert value.equal(state[key]), key


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pre-1.6"])
@pytest.mark.parametrize(
    ("wrap", "shortcut"),
    [
        (lambda s: as_torchvision(s), "pad_avgpool"),
        (lambda s: {"state_dict": prefixed(as_torchvision(s)), "best_prec1": 91.7}, "pad_avgpool"),
        (
            lambda s: {"state_dict": {k.replace("fc.", "linear."): v for k, v in as_torchvision(s).items()}},
            "pad_stride",
        ),
        (lambda s: as_torchvision(s), "projection"),
        (lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, "pad_avgpool"),
        (lambda s: {"resnet": prefixed(s), "epoch": 3}, "projection"),
    ],
    ids=["torchvision", "module prefix", "linear head", "downsample", "reference keys, no counters", "resnet key"],
)
def test_backbone_dialects(
    tmp_path: Path,
    make_resnet: Callable[..., DroppableResNet],
    wrap: Callable[[State], Any],
    shortcut: str,
    legacy: bool,
) -> None:
    source = make_resnet("R14_C10", shortcut=shortcut)
    torch.save(wrap(source.state_dict()), tmp_path / "c.th", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "c.th")
    assert checkpoint.shortcut == shortcut
    assert checkpoint.policy_network is None
    target, _ = build("R14_C10", shortcut=shortcut)
    load_checkpoint(tmp_path / "c.th", resnet=target)
    assert_same_weights(target, source.state_dict())


@pytest.mark.parametrize("key", ["agent", "net"])
def test_reference_t7_with_policy_and_backbone(tmp_path: Path, key: str) -> None:
    resnet, policy_network = build("R32_C10")
    stray = {"features.fc.weight": torch.zeros(10, 64), "features.fc.bias": torch.zeros(10)}
    content = {
        key: policy_network.state_dict() | (stray if key == "net" else {}),
        "resnet": resnet.state_dict(),
        "epoch": 60,
        "reward": 0.5,
        "acc": 0.93,
    }
    torch.save(content, tmp_path / "c.t7")
    fresh_resnet, fresh_policy = build("R32_C10")
    meta = load_checkpoint(tmp_path / "c.t7", resnet=fresh_resnet, policy_network=fresh_policy)
    assert_same_weights(fresh_resnet, resnet.state_dict())
    assert_same_weights(fresh_policy, policy_network.state_dict())
    assert (meta.dialect, meta.epoch, meta.metrics) == ("reference", 60, {"acc": 0.93, "reward": 0.5})
    assert meta.normalisation == NORMALISATIONS["cifar"], "the reference normalises R32_C10"


def test_policy_alone(tmp_path: Path) -> None:
    _, policy_network = build("R110_C10")
    torch.save({"agent": policy_network.state_dict()}, tmp_path / "c.t7")
    resnet, fresh = build("R110_C10")
    load_checkpoint(tmp_path / "c.t7", policy_network=fresh)
    assert_same_weights(fresh, policy_network.state_dict())
    with pytest.raises(CheckpointError, match="no backbone"):
        load_checkpoint(tmp_path / "c.t7", resnet=resnet)


def test_the_reference_normalises_no_other_cifar_model(tmp_path: Path) -> None:
    torch.save({"resnet": build("R110_C10")[0].state_dict()}, tmp_path / "c.t7")
    assert read_checkpoint(tmp_path / "c.t7").normalisation == NORMALISATIONS["none"]


def test_torchvision_weights_fill_r18_imgnet_and_a_policy_trunk(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    resnet, policy_network = build("R18_ImgNet")
    meta = load_checkpoint(tmp_path / "resnet18.pth", resnet=resnet)
    assert meta.normalisation == NORMALISATIONS["imagenet"]
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(resnet.eval()(images), model.eval()(images))
    load_policy_trunk(tmp_path / "resnet18.pth", policy_network)
    trunk = policy_network.features.state_dict()
    assert trunk["blocks.3.0.conv2.weight"].equal(model.layer4[0].conv2.weight)


def test_our_dialect_comes_back_whole(tmp_path: Path) -> None:
    resnet, policy_network = build("R8_C10", shortcut="pad_stride", policy_net="pooled")
    save_checkpoint(
        tmp_path / "ckpt_E_7_A_0.500.t7",
        model="R8_C10",
        resnet=resnet,
        policy_network=policy_network,
        policy_net="pooled",
        normalisation=NORMALISATIONS["half"],
        classes=["a", "b"],
        epoch=7,
        metrics={"accuracy": 0.5, "reward": 0.1},
        config={"lr": 0.1, "load": ("x",)},
    )
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt_E_7_A_0.500.t7"], "no temporary file stays"
    fresh, fresh_policy = build("R8_C10", shortcut="pad_stride", policy_net="pooled")
    meta = load_checkpoint(tmp_path, resnet=fresh, policy_network=fresh_policy)
    assert_same_weights(fresh, resnet.state_dict())
    assert_same_weights(fresh_policy, policy_network.state_dict())
    assert (meta.dialect, meta.model, meta.shortcut, meta.policy_net) == (
        "blockdrop",
        "R8_C10",
        "pad_stride",
        "pooled",
    )
    assert (meta.epoch, meta.classes, meta.normalisation) == (7, ["a", "b"], NORMALISATIONS["half"])
    assert meta.metrics == {"accuracy": 0.5, "reward": 0.1}
    assert meta.config["lr"] == 0.1
    assert meta.version == project_version()


def test_a_run_directory_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    resnet, _ = build("R8_C10")
    for epoch in (9, 10, 2):
        save_checkpoint(
            tmp_path / f"ckpt_E_{epoch}_A_0.100.t7",
            model="R8_C10",
            resnet=resnet,
            normalisation=NORMALISATIONS["none"],
            epoch=epoch,
        )
    assert read_checkpoint(tmp_path).epoch == 10
    with pytest.raises(CheckpointError, match="no ckpt_E_"):
        read_checkpoint(tmp_path.parent)


class _Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["zip", "pre-1.6", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, how: str) -> None:
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": _Payload(tmp_path / "touched")}
    if how == "pickle":
        (tmp_path / "c.t7").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "c.t7", _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError, match=r"refused: .* would run code"):
        read_checkpoint(tmp_path / "c.t7")
    assert not (tmp_path / "touched").exists()


def good_file(path: Path, legacy: bool = False) -> bytes:
    torch.save({"resnet": build("R8_C10")[0].state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pre-1.6"])
def test_truncated_files(tmp_path: Path, share: float, legacy: bool) -> None:
    content = good_file(tmp_path / "c.t7", legacy)
    (tmp_path / "c.t7").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"c\.t7: damaged"):
        read_checkpoint(tmp_path / "c.t7")


def test_a_flipped_bit_in_any_weight_is_noticed(tmp_path: Path) -> None:
    content = bytearray(good_file(tmp_path / "c.t7"))
    with zipfile.ZipFile(tmp_path / "c.t7") as archive:
        entries = [e for e in archive.infolist() if e.file_size > 1000]
    for entry in entries[::5]:
        damaged = content.copy()
        damaged[entry.header_offset + 1000] ^= 4
        (tmp_path / "c.t7").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / "c.t7")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not a checkpoint"),
        ({"weights": 3}, "neither a backbone nor a policy network"),
        ({"features.0.weight": torch.zeros(3)}, "not a ResNet backbone"),
        ({"agent": {"logit.weight": "no tensor"}}, "logit.weight is a str"),
        ({"resnet": {"blocks.0.0.conv1.weight": torch.tensor([float("nan")])}}, "aren't finite"),
        ({"resnet": {"blocks.0.0.conv1.weight": torch.ones(2, 2).to_sparse()}}, "not a plain tensor"),
        ({"resnet": {"layer1.1.downsample.0.weight": torch.ones(1)}}, "only the first block of a stage"),
        ({"format": "blockdrop", "resnet": {"blocks.0.0.conv1.weight": torch.ones(1)}}, "damaged header"),
    ],
)
def test_foreign_content(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "c.t7")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "c.t7")


def test_a_text_file_and_a_compressed_archive_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.t7").write_text("not a checkpoint at all\n" * 50)
    with pytest.raises(CheckpointError, match="damaged, or not a torch checkpoint"):
        read_checkpoint(tmp_path / "text.t7")
    with zipfile.ZipFile(tmp_path / "zip.t7", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"0" * 10_000)
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_checkpoint(tmp_path / "zip.t7")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "missing.t7")


def test_a_date_in_a_name_is_no_hash(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "r8-20240611.pt")
    assert read_checkpoint(tmp_path / "r8-20240611.pt").resnet is not None


def test_a_published_file_that_lost_a_bit_is_noticed_by_the_hash_in_its_name(tmp_path: Path) -> None:
    content = bytearray(good_file(tmp_path / "c.t7", legacy=True))
    path = tmp_path / f"resnet8-{hashlib.sha256(content).hexdigest()[:8]}.th"
    path.write_bytes(content)
    assert read_checkpoint(path).resnet is not None
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="doesn't have the hash that its name promises"):
        read_checkpoint(path)


def test_weights_of_another_kind_or_rank_are_named(tmp_path: Path) -> None:
    resnet, policy_network = build("R8_C10")
    for key, value in (("conv1.weight", torch.ones(16, 3, 3, 3).int()), ("fc.weight", torch.tensor(1.0))):
        torch.save({"resnet": resnet.state_dict() | {key: value}}, tmp_path / "c.t7")
        with pytest.raises(CheckpointError, match=key):
            load_checkpoint(tmp_path / "c.t7", resnet=build("R8_C10")[0])
    torch.save({"agent": policy_network.state_dict() | {"logit.weight": torch.tensor(1.0)}}, tmp_path / "c.t7")
    with pytest.raises(CheckpointError, match=r"logit\.weight has shape \(\)"):
        load_checkpoint(tmp_path / "c.t7", policy_network=policy_network)


def test_numbers_of_numpy_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    content = {"resnet": build("R8_C10")[0].state_dict(), "acc": np.float64(0.5), "reward": torch.tensor(0.25)}
    torch.save(content, tmp_path / "c.t7")
    assert read_checkpoint(tmp_path / "c.t7").metrics == {"acc": 0.5, "reward": 0.25}


def test_others_keep_backbones_under_net(tmp_path: Path) -> None:
    torch.save({"net": as_torchvision(build("R8_C10")[0].state_dict())}, tmp_path / "c.pth")
    load_checkpoint(tmp_path / "c.pth", resnet=build("R8_C10")[0])


def test_a_policy_network_with_pooled_input_is_not_taken_for_another(tmp_path: Path) -> None:
    resnet, policy_network = build("R8_C10", policy_net="pooled")
    save_checkpoint(
        tmp_path / "c.t7",
        model="R8_C10",
        resnet=resnet,
        policy_network=policy_network,
        policy_net="pooled",
        normalisation=NORMALISATIONS["none"],
    )
    with pytest.raises(CheckpointError, match="policy_net=pooled is needed"):
        load_checkpoint(tmp_path / "c.t7", policy_network=build("R8_C10")[1])


def test_another_depth_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    resnet, policy_network = build("R32_C10")
    torch.save({"agent": policy_network.state_dict(), "resnet": resnet.state_dict()}, tmp_path / "c.t7")
    other, other_policy = build("R20_C10")
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"ResNet-32 \(15 blocks\).*ResNet-20 \(9 blocks\)"):
        load_checkpoint(tmp_path / "c.t7", resnet=other)
    with pytest.raises(CheckpointError, match="decides on 15 blocks, the model has 9"):
        load_checkpoint(tmp_path / "c.t7", policy_network=other_policy)
    assert_same_weights(other, before)


def test_other_classes_and_other_shortcuts_are_named(tmp_path: Path) -> None:
    resnet, _ = build("R8_C100")
    torch.save({"resnet": resnet.state_dict()}, tmp_path / "c.t7")
    with pytest.raises(CheckpointError, match="made for 100 classes, the model has 10"):
        load_checkpoint(tmp_path / "c.t7", resnet=build("R8_C10")[0])
    load_checkpoint(tmp_path / "c.t7", resnet=build("R8_C10")[0], ignore_head=True)
    with pytest.raises(CheckpointError, match="shortcut=pad_avgpool is needed"):
        load_checkpoint(tmp_path / "c.t7", resnet=build("R8_C100", shortcut="pad_stride")[0])


def save_static(path: Path, model: str, shortcut: Any = None, variant: Variant = Variant()) -> State:
    """Saves a net of the zoo with fresh weights; returns them."""
    net = build_static(model, shortcut=shortcut, **variant.numbers())
    save_checkpoint(path, model=model, variant=variant, resnet=net, normalisation=NORMALISATIONS["none"])
    return net.state_dict()


@pytest.mark.parametrize(
    ("model", "shortcut"),
    [
        ("plain14_C10", None),
        ("exactplain14_C10", None),
        ("dsplain14_C10", "projection"),
        ("dsplain14_C10", "pad_stride"),
    ],
)
def test_a_plain_nets_checkpoint_loads_into_the_same_plain_net(tmp_path: Path, model: str, shortcut: Any) -> None:
    state = save_static(tmp_path / "c.t7", model, shortcut)
    net = build_static(model, shortcut=shortcut)
    checkpoint = load_checkpoint(tmp_path / "c.t7", resnet=net)
    assert_same_weights(net, state)
    assert f"{checkpoint.architecture}_C10" == checkpoint.model == model
    assert checkpoint.shortcut == shortcut


@pytest.mark.parametrize(
    ("saved", "wanted", "message"),
    [
        ("plain14", "R14", "holds plain14, .* pass --arch plain14"),
        ("plain14", "resnet14", "holds plain14, .* pass --arch plain14"),
        ("plain14", "dsplain14", "holds plain14, .* pass --arch plain14"),
        ("plain14", "shiftresnet14", "holds plain14, .* pass --arch plain14"),
        ("plain14", "exactplain14", "holds plain14, the model is of the exactplain family; pass --arch plain14"),
        ("plain14", "plain20", r"holds a ResNet-14 \(6 blocks\), the model is a ResNet-20"),
        ("exactplain14", "R14", "holds exactplain14, .* pass --arch exactplain14"),
        ("dsplain14", "resnet14", "holds dsplain14, .* pass --arch dsplain14"),
        ("dsplain14", "plain14", "holds dsplain14, .* pass --arch dsplain14"),
        ("R14", "plain14", "holds R14, the model is of the plain family; pass --arch R14"),
        ("resnet14", "dsplain14", "holds resnet14, the model is of the dsplain family; pass --arch resnet14"),
        ("shiftresnet14", "plain14", "holds shiftresnet14, the model is of the plain family; pass --arch"),
        ("shiftresnet14", "resnet14", "holds shiftresnet14, the model is of the resnet family; pass --arch"),
    ],
)
def test_a_net_with_and_one_without_shortcuts_are_not_mixed_up(
    tmp_path: Path, saved: str, wanted: str, message: str
) -> None:
    save_static(tmp_path / "c.t7", f"{saved}_C10")
    net = build_static(f"{wanted}_C10")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"c\.t7: {message}"):
        load_checkpoint(tmp_path / "c.t7", resnet=net)
    assert_same_weights(net, before)


def test_the_shortcuts_that_a_plain_net_keeps_are_of_one_kind(tmp_path: Path) -> None:
    save_static(tmp_path / "c.t7", "dsplain14_C10", "pad_avgpool")
    with pytest.raises(CheckpointError, match="shortcut=pad_avgpool is needed"):
        load_checkpoint(tmp_path / "c.t7", resnet=build_static("dsplain14_C10", shortcut="pad_stride"))


def test_weights_without_a_name_are_a_resnets(tmp_path: Path) -> None:
    torch.save(build_static("plain14_C10").state_dict(), tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth").architecture is None
    with pytest.raises(CheckpointError, match="holds a ResNet, the model is of the plain family; change --arch"):
        load_checkpoint(tmp_path / "c.pth", resnet=build_static("plain14_C10"))


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        ("R8_C10", Variant()),
        ("shiftresnet8_C10", Variant(expansion=2.5)),
        ("resnet8_C10", Variant(reduction=2.8, reduction_mode="net")),
        ("plain8_C10", Variant(reduction=3)),
        ("dsplain8_C10", Variant(reduction=2, reduction_mode="depthwise")),
    ],
    ids=str,
)
def test_a_variant_comes_back(tmp_path: Path, model: str, variant: Variant) -> None:
    state = save_static(tmp_path / "c.t7", model, variant=variant)
    checkpoint = read_checkpoint(tmp_path / "c.t7")
    assert checkpoint.variant == variant
    net = build_static(model, **checkpoint.variant.numbers())
    load_checkpoint(checkpoint, resnet=net)
    assert_same_weights(net, state)


def test_another_variant_is_named(tmp_path: Path) -> None:
    save_static(tmp_path / "c.t7", "shiftresnet8_C10", variant=Variant(expansion=2.5))
    with pytest.raises(CheckpointError, match=r"conv1\.weight has shape \(40, 16, 1, 1\), .*\(48, 16, 1, 1\)"):
        load_checkpoint(tmp_path / "c.t7", resnet=build_static("shiftresnet8_C10", expansion=3))


def test_a_checkpoint_from_before_there_were_variants_is_as_usual(tmp_path: Path) -> None:
    save_static(tmp_path / "c.t7", "R8_C10")
    content = torch.load(tmp_path / "c.t7", weights_only=True)
    del content["variant"]
    torch.save(content, tmp_path / "old.t7")
    assert read_checkpoint(tmp_path / "old.t7").variant == Variant()


@pytest.mark.parametrize(
    "variant",
    [
        {"expansions": 2.0},
        {"expansion": "2"},
        {"expansion": 10**400},
        {"expansion": math.inf},
        {"expansion": math.nan},
        {"expansion": 0},
        {"expansion": [2.0]},
        {"expansion": torch.tensor(2.0)},
        {"expansion": torch.tensor([2.0, 3.0])},
        {"expansion": True},
        {"reduction": 1e-300},
        {"reduction": -2.8},
        {"reduction": 1j},
        {"reduction_mode": "wide"},
        {"reduction_mode": ["net"]},
        {"reduction_mode": torch.ones(2)},
        {1: 2.0},
        [2.0],
        "net",
        None,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_damaged_variant_is_refused(tmp_path: Path, variant: Any) -> None:
    save_static(tmp_path / "c.t7", "shiftresnet8_C10")
    content = torch.load(tmp_path / "c.t7", weights_only=True)
    torch.save(content | {"variant": variant}, tmp_path / "damaged.t7")
    with pytest.raises(CheckpointError, match=r"damaged\.t7: .*damaged"):
        read_checkpoint(tmp_path / "damaged.t7")


@pytest.mark.parametrize("model", ["squeezenet8_C10", "plain9_C10", "plain8", 8, None])
def test_a_checkpoint_of_an_unknown_model_is_refused(tmp_path: Path, model: Any) -> None:
    save_static(tmp_path / "c.t7", "plain8_C10")
    content = torch.load(tmp_path / "c.t7", weights_only=True)
    torch.save(content | {"model": model}, tmp_path / "damaged.t7")
    with pytest.raises(CheckpointError, match=rf"damaged\.t7: .* damaged header \({model}"):
        read_checkpoint(tmp_path / "damaged.t7")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"classes": 3}, "classes"),
        ({"classes": ["a", 3]}, "classes"),
        ({"metrics": [1]}, "a list in place of a dict"),
        ({"metrics": torch.ones(2)}, "a Tensor in place of a dict"),
        ({"config": torch.ones(2)}, "a Tensor in place of a dict"),
        ({"normalisation": None}, "'mean'"),
        ({"normalisation": {"mean": torch.ones(3), "std": [1, 1, 1]}}, "not by three numbers"),
        ({"normalisation": {"mean": [0, 0, 10**400], "std": [1, 1, 1]}}, "not by finite numbers"),
        ({"normalisation": {"mean": [0, 0, 0], "std": [1, math.nan, 1]}}, "not by finite numbers"),
        ({"normalisation": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, "normalisation"),
        ({"shortcut": torch.ones(2)}, "shortcut"),
        ({"policy_net": ["reference"]}, "policy network"),
        ({"model": f"R{'8' * 5000}_C10"}, "limit"),
        ({"model": "R8_C10\n\x1b[2J"}, r"R8_C10\\n\\x1b"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_header_of_other_types_is_refused_in_one_line(
    tmp_path: Path, header: dict[str, Any], message: str
) -> None:
    save_static(tmp_path / "c.t7", "R8_C10")
    torch.save(torch.load(tmp_path / "c.t7", weights_only=True) | header, tmp_path / "damaged.t7")
    with pytest.raises(CheckpointError, match=rf"damaged\.t7: .* damaged header .*{message}") as caught:
        read_checkpoint(tmp_path / "damaged.t7")
    assert str(caught.value).isprintable()


def test_numbers_too_large_to_be_any_count_are_left_out(tmp_path: Path) -> None:
    save_static(tmp_path / "c.t7", "R8_C10")
    content = torch.load(tmp_path / "c.t7", weights_only=True)
    damage = {"epoch": 10**30, "metrics": {"decided": 10**400, "accuracy": 0.5}}
    torch.save(content | damage, tmp_path / "c.t7")
    checkpoint = read_checkpoint(tmp_path / "c.t7")
    assert (checkpoint.epoch, checkpoint.metrics) == (None, {"accuracy": 0.5})


def test_a_network_that_the_file_doesnt_hold_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head for a million classes takes as many numbers in the file, and 64 times as many in the network."""
    state = build("R8_C10")[0].state_dict()
    heads = {"fc.weight": torch.ones(1_000_000, 1), "fc.bias": torch.ones(1_000_000)}
    torch.save(state | heads, tmp_path / "c.pth")
    built, build_backbone = [], filling.build_backbone

    def build_and_note(*how: Any) -> Any:
        built.append(build_backbone(*how))
        return built[-1]

    monkeypatch.setattr(filling, "build_backbone", build_and_note)
    with pytest.raises(CheckpointError, match=r"fc\.weight has shape \(1000000, 1\)"):
        network_from(read_checkpoint(tmp_path / "c.pth"), parse_model_name("R8_C10"))
    assert {parameter.device.type for network in built for parameter in network.parameters()} == {"meta"}


@pytest.mark.parametrize("key", ["blocks.0.0.conv1.weight" * 20, "blocks.0.0\n.weight", "blocks.0.0.\ud800"])
def test_a_name_that_no_tensor_has_is_refused_in_one_line(tmp_path: Path, key: str) -> None:
    torch.save({"resnet": {key: torch.ones(1)}}, tmp_path / "c.t7")
    with pytest.raises(CheckpointError, match="is no tensor's name") as caught:
        read_checkpoint(tmp_path / "c.t7")
    assert str(caught.value).isprintable()


def test_what_only_looks_like_a_checkpoint_is_not_a_runs_newest(tmp_path: Path) -> None:
    save_static(tmp_path / "ckpt_E_1_A_0.100.t7", "R8_C10")
    (tmp_path / "ckpt_E_2_A_0.100.t7").symlink_to(tmp_path / "gone")
    (tmp_path / "ckpt_E_3_A_0.100.t7").mkdir()
    assert Path(read_checkpoint(tmp_path).path).name == "ckpt_E_1_A_0.100.t7"


@pytest.mark.parametrize(
    ("file", "name", "every", "accuracy"),
    [("resnet20-12fca82f.th", "R20_C10", 1, 0.8103), ("resnet32-d509ac18.th", "R32_C10", 5, 0.8190)],
)
def test_published_weights_score_what_they_should(
    photos: Images, file: str, name: str, every: int, accuracy: float
) -> None:
    """The larger one on every fifth photo (on all of them 82.56 %)."""
    if not (SHARED / "checkpoints" / file).exists():
        pytest.skip("needs the published weights, which are not part of the project")
    checkpoint = read_checkpoint(SHARED / "checkpoints" / file)
    resnet, _ = build(name, shortcut=checkpoint.shortcut)
    load_checkpoint(checkpoint, resnet=resnet)
    assert checkpoint.normalisation is not None
    some = photos.subset(torch.arange(0, len(photos), every))
    outcomes = evaluate_images(dynamic_of(resnet, normalisation=checkpoint.normalisation), some)
    assert abs(outcomes.accuracy - accuracy) <= 0.0005
