"""Exported files: the same network, whatever runs it; one clear line for what can't be exported."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.answers import ANSWER_ALL, NEVER, confidence
from blockdrop import export, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError
from blockdrop.export import ExportConfig
from blockdrop.inference import exported, formats
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_network
from blockdrop.models.zoo import build, build_static
from tests.blockdrop.test_answers import answering
from tests.conftest import randomise_statistics

Command = Callable[..., tuple[int, str, str]]
CLASSES = ["ant", "bee", "cat"]


def write_checkpoint(
    path: Path,
    model: str = "R8_C10",
    policy: bool = True,
    operating_point: dict[str, float] | None = None,
) -> Path:
    """Three classes, a pooled4 policy network whose decisions differ between images."""
    torch.manual_seed(1)
    resnet, policy_network = build(model, num_classes=3, policy_net="pooled4")
    randomise_statistics(resnet)
    randomise_statistics(policy_network)
    torch.nn.init.normal_(policy_network.logit.weight, std=1.0)
    save_checkpoint(
        path,
        model=model,
        resnet=resnet,
        normalisation=NORMALISATIONS["cifar"],
        policy_network=policy_network if policy else None,
        policy_net="pooled4",
        classes=CLASSES,
        operating_point=operating_point,
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return write_checkpoint(folder / "net.t7")


def networks_of(path: Path) -> exported.Networks:
    config = ExportConfig(model="R8_C10", load=(str(path),), format="onnx", output="unused.onnx")
    return export.open_networks(config)


def export_file(checkpoint: Path, output: Path, form: Any, threshold: float = 0.5) -> Path:
    return export.main(
        ExportConfig(model="R8_C10", load=(str(checkpoint),), format=form, output=str(output), threshold=threshold)
    )


@pytest.fixture(scope="module")
def onnx_file(folder: Path, checkpoint: Path) -> Path:
    for package in formats.PACKAGES["onnx"]:
        pytest.importorskip(package)
    return export_file(checkpoint, folder / "net.onnx", "onnx", threshold=0.25)


@pytest.fixture(scope="module")
def aoti_file(folder: Path, checkpoint: Path) -> Path:
    try:
        return export_file(checkpoint, folder / "net.pt2", "aoti", threshold=0.25)
    except BlockdropError as error:
        if "compiler" in str(error):
            pytest.skip(str(error))
        raise


def assert_same_as_torch(run: exported.Runner, networks: exported.Networks) -> None:
    """Every policy that thresholds can give, on images of which some keep none, some or all blocks."""
    assert networks.policy_network is not None
    seen = set()
    for image in torch.randn(4, 1, 3, 32, 32):
        with torch.no_grad():
            expected_probs, _ = networks.policy_network(image)
        middles = expected_probs.flatten().sort().values.unfold(0, 2, 1).mean(1)
        for threshold in (torch.tensor(0.0), *middles, torch.tensor(1.5)):
            expected_policy = expected_probs >= threshold
            with torch.no_grad():
                expected = networks.network(image, expected_policy)
            logits, policy, keep_probs = run(image, threshold)
            torch.testing.assert_close(keep_probs, expected_probs, atol=1e-5, rtol=0)
            assert policy.dtype == torch.bool
            assert policy.equal(expected_policy)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            seen.add(tuple(policy[0].tolist()))
    assert {(False,) * 3, (True,) * 3} < seen
    assert len(seen) > 3


def test_onnx_gives_torchs_logits_under_every_threshold(onnx_file: Path, checkpoint: Path) -> None:
    assert_same_as_torch(exported.open_onnx(onnx_file), networks_of(checkpoint))


def test_onnx_holds_one_condition_a_block_and_says_what_it_is(onnx_file: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    conditions = [node for node in model.graph.node if node.op_type == "If"]
    assert len(conditions) == 3
    for node in conditions:
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        assert sum(inner.op_type == "Conv" for inner in branches["then_branch"].node) == 2
        assert len(branches["then_branch"].initializer) >= 3
        assert [inner.op_type for inner in branches["else_branch"].node] == ["Identity"]
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    assert recorded["model"] == "R8_C10"
    assert recorded["shortcut"] == "pad_avgpool"
    assert recorded["policy_net"] == "pooled4"
    assert json.loads(recorded["threshold"]) == 0.25
    assert json.loads(recorded["classes"]) == CLASSES
    assert tuple(json.loads(recorded["normalisation"])["mean"]) == NORMALISATIONS["cifar"].mean
    assert recorded["version"]


def test_aoti_gives_torchs_logits_under_every_threshold(aoti_file: Path, checkpoint: Path) -> None:
    assert_same_as_torch(exported.open_aoti(aoti_file), networks_of(checkpoint))
    package = torch._inductor.aoti_load_package(str(aoti_file))
    assert package.get_metadata()["threshold"] == "0.25"


@pytest.fixture(scope="module")
def answering_file(folder: Path) -> tuple[Path, DynamicNetwork]:
    """The ONNX file of a network that answers, and the network."""
    for package in formats.PACKAGES["onnx"]:
        pytest.importorskip(package)
    dynamic = answering("pooled4")
    dynamic.operating_point = {"threshold": 0.4, "answer_threshold": 0.6}
    dynamic.save(folder / "answering.t7")
    path = export.main(
        ExportConfig(load=(str(folder / "answering.t7"),), format="onnx", output=str(folder / "answering.onnx"))
    )
    return path, dynamic


@torch.no_grad()
def test_onnx_answers_as_torch_does_under_every_pair_of_thresholds(
    answering_file: tuple[Path, DynamicNetwork],
) -> None:
    path, dynamic = answering_file
    run, seen = exported.open_onnx(path), set()
    assert dynamic.policy_network is not None
    for image in torch.randn(4, 1, 3, 32, 32):
        found = dynamic.policy_network.glance(image)
        assert found.answer is not None
        sure = float(confidence(found.answer))
        middle = float(found.keep_probs.sort().values[0, :2].mean())
        for keep in (0.0, middle, 1.5):
            for at in (ANSWER_ALL, sure - 1e-3, sure + 1e-3, NEVER):
                dynamic.policy_network.threshold, dynamic.policy_network.answer_threshold = keep, at
                expected = dynamic.run(image)
                logits, policy, keep_probs, answered, answer = run(image, torch.tensor(keep), torch.tensor(at))
                assert answered.equal(expected.answered)
                assert policy.equal(expected.policy)
                torch.testing.assert_close(keep_probs, expected.keep_probs, atol=1e-5, rtol=0)
                torch.testing.assert_close(answer, found.answer, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
                seen.add((bool(answered), int(policy.sum())))
    assert {(True, 0), (False, 0), (False, 3)} < seen


def test_onnx_says_at_which_thresholds_it_answers(answering_file: tuple[Path, DynamicNetwork]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(answering_file[0])
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in model.graph.input] == ["image", "threshold", "answer_threshold"]
    assert [entry.name for entry in model.graph.output] == ["logits", "policy", "keep_probs", "answered", "answer"]
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    assert (json.loads(recorded["threshold"]), json.loads(recorded["answer_threshold"])) == (0.4, 0.6)
    assert [node.op_type for node in model.graph.node].count("If") == 1


def test_onnx_runtime_runs_no_convolution_of_the_resnet_for_an_answered_image(
    answering_file: tuple[Path, DynamicNetwork], tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path, dynamic = answering_file
    assert dynamic.policy_network is not None
    looks = sum(isinstance(module, torch.nn.Conv2d) for module in dynamic.policy_network.modules())

    def convolutions(answer_threshold: float) -> int:
        """Those that ran for one image of which all blocks are kept, if it isn't answered."""
        options = runtime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        inputs = (torch.randn(1, 3, 32, 32), torch.tensor(0.0), torch.tensor(answer_threshold))
        session.run(None, {name: value.numpy() for name, value in zip(exported.INPUTS, inputs, strict=True)})
        events = json.loads(Path(session.end_profiling()).read_text())
        kernels = [event for event in events if event["name"].endswith("_kernel_time")]
        return sum("Conv" in event["args"]["op_name"] for event in kernels)

    assert convolutions(ANSWER_ALL) == looks
    assert convolutions(NEVER) == looks + 1 + 2 * 3  # the stem, and two in each of three blocks


def write_static(path: Path, model: str = "plain8_C10") -> Path:
    """A network of three classes without a policy network."""
    net = build_static(model, num_classes=3)
    randomise_statistics(net)
    save_checkpoint(path, model=model, resnet=net, normalisation=NORMALISATIONS["cifar"], classes=CLASSES)
    return path


def test_a_plain_net_becomes_one_onnx_graph_of_torchs_logits(tmp_path: Path, command: Command) -> None:
    for package in formats.PACKAGES["onnx"]:
        pytest.importorskip(package)
    onnx = pytest.importorskip("onnx")
    source, output = write_static(tmp_path / "net.t7"), tmp_path / "net.onnx"
    flags = ("--model", "plain8_C10", "--load", source, "--format", "onnx", "--output", output)
    code, out, _ = command(export, *flags)
    assert code == 0
    assert "check: 3 runs; largest difference from torch" in out
    assert "    all 3 blocks: " in out
    assert "note: " not in out
    model = onnx.load(output)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in model.graph.input] == ["image"]
    assert [entry.name for entry in model.graph.output] == ["logits"]
    assert not {node.op_type for node in model.graph.node} & {"If", "BatchNormalization"}
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    assert (recorded["model"], recorded["shortcut"]) == ("plain8_C10", "none")
    assert not {"threshold", "policy_net"} & recorded.keys()
    net, _ = load_network(source)
    for image in torch.randn(3, 1, 3, 32, 32):
        with torch.no_grad():
            (logits,) = exported.open_onnx(output)(image)
            torch.testing.assert_close(logits, net(image), atol=1e-4, rtol=1e-4)


def test_an_aoti_package_of_a_plain_net_returns_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(1, 3)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: lambda image: logits)
    assert exported.open_aoti(Path("net.pt2"))(torch.zeros(1, 3, 32, 32)) == (logits,)


def test_a_resnet_without_its_policy_network_runs_all_blocks_and_says_so(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[exported.Networks] = []
    monkeypatch.setattr(
        exported, "write_checked", lambda networks, form, path, half: (seen.append(networks), path.touch())
    )
    source = write_static(tmp_path / "net.t7", "R8_C10")
    flags = ("--model", "R8_C10", "--load", source, "--format", "aoti", "--output", tmp_path / "net.pt2")
    code, out, _ = command(export, *flags)
    assert code == 0
    assert "note: no policy network, so every block runs" in out
    module, inputs = exported._graph(seen[0])
    with torch.no_grad():
        assert module(*inputs).shape == (1, 3)


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "backbone alone"])
def test_safetensors_brings_the_same_weights_back(tmp_path: Path, command: Command, policy: bool) -> None:
    pytest.importorskip("safetensors")
    source = write_checkpoint(tmp_path / "net.t7", "R14_C10", policy)
    flags = ("--model", "R14_C10", "--load", source, "--format", "safetensors")
    code, out, _ = command(export, *flags, "--output", tmp_path / "net.safetensors")
    assert code == 0
    assert "all equal" in out
    found, written = read_checkpoint(tmp_path / "net.safetensors"), read_checkpoint(source)
    for part in ("resnet", "policy_network"):
        expected, state = getattr(written, part), getattr(found, part)
        assert (state is None) == (expected is None)
        assert state is None or state.keys() == expected.keys()
        assert state is None or all(value.equal(expected[key]) for key, value in state.items())
    for name in ("dialect", "model", "classes", "shortcut", "variant", "normalisation", "policy_net", "version"):
        assert getattr(found, name) == getattr(written, name)
    assert (found.operating_point or {}).get("threshold") == (0.5 if policy else None)


def test_the_operating_points_threshold_is_the_default(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "net.t7", operating_point={"threshold": 0.37})
    assert networks_of(path).thresholds == (0.37, math.inf)


def test_a_file_that_differs_from_torch_does_not_appear(
    tmp_path: Path, checkpoint: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in formats.PACKAGES["onnx"]:
        pytest.importorskip(package)

    class Wrong(exported.BranchingNetwork):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            logits, *others = super().forward(*inputs)
            return logits + 0.01, *others

    monkeypatch.setattr(exported, "BranchingNetwork", Wrong)
    code, out, error = command(
        export, "--model", "R8_C10", "--load", checkpoint, "--format", "onnx", "--output", tmp_path / "net.onnx"
    )
    assert code == 2
    assert "latency" not in out
    assert "the file's logits differ from torch's by" in error
    assert list(tmp_path.iterdir()) == []


def test_the_check_notices_another_policy_than_the_keep_probabilities_give(checkpoint: Path) -> None:
    networks = networks_of(checkpoint)

    def keeps_all(image: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        assert networks.policy_network is not None
        return networks.network(image), torch.ones(1, 3, dtype=torch.bool), networks.policy_network(image)[0]

    with pytest.raises(BlockdropError, match="isn't keep_probs >= "):
        exported.check_graph(keeps_all, networks)


@pytest.mark.parametrize(("error", "message"), [(0.01, "by "), (torch.nan, "by nan")])
def test_the_check_notices_other_logits_than_torchs(checkpoint: Path, error: float, message: str) -> None:
    networks = networks_of(checkpoint)
    assert networks.policy_network is not None
    for network in (networks.network, networks.policy_network):
        network.requires_grad_(False)

    def static(image: Tensor) -> tuple[Tensor, ...]:
        return (networks.network(image) + error,)

    def dynamic(image: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        assert networks.policy_network is not None
        keep_probs, _ = networks.policy_network(image)
        return networks.network(image, keep_probs >= threshold) + error, keep_probs >= threshold, keep_probs

    for check, run in ((exported.check_static_graph, static), (exported.check_graph, dynamic)):
        with pytest.raises(BlockdropError, match=f"the file's logits differ from torch's {message}"):
            check(run, networks)


ONNX = ("--format", "onnx", "--output", "{tmp}/new.onnx")
BAD_INPUT = [
    (("--load", "{net}"), "--format"),
    (("--load", "{net}", "--format", "onnx"), "--output"),
    (ONNX, "--load: name a checkpoint"),
    (("--load", "", *ONNX), "--load: an empty name"),
    (("--load", "{net}", "--threshold", "1", *ONNX), "--threshold 1.0"),
    (("--load", "{net}", "--model", "R33_C10", *ONNX), "no ResNet has depth 33"),
    (("--load", "{net}", "--model", "R14_C10", *ONNX), "change --model"),
    (("--load", "{net}", "--policy_net", "pooled", *ONNX), "policy_net=pooled4 is needed"),
    (("--load", "{tmp}/none.t7", *ONNX), "no such checkpoint file"),
    (("--load", "{tmp}/backbone.t7", "--threshold", "0.4", *ONNX), "backbone.t7 holds no policy network; name"),
    (("--load", "{tmp}/backbone.t7", "--policy_net", "pooled4", *ONNX), "--policy_net: --load "),
    (("--load", "{net}", "--answer_threshold", "0.9", *ONNX), "holds no policy network that answers"),
    (("--load", "{tmp}/policy.t7", *ONNX), "a policy network without its backbone"),
    (("--load", "{net}", "--format", "onnx", "--output", "{tmp}/new.pt2"), "ends in .onnx"),
    (("--load", "{net}", "--format", "aoti", "--output", "{tmp}/new"), "ends in .pt2"),
    (("--load", "{net}", "--format", "onnx", "--output", "{tmp}/none/new.onnx"), "no folder"),
    (("--load", "{net}", "--format", "onnx", "--output", "{tmp}/folder.onnx"), "a folder; name a file"),
    (("--load", "{net}", "--format", "onnx", "--output", "{tmp}/old.onnx"), "exists; pass --overwrite"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_input_ends_with_one_line_and_exit_code_2(
    tmp_path: Path, checkpoint: Path, command: Command, flags: tuple[str, ...], message: str
) -> None:
    for package in formats.PACKAGES["onnx"]:
        pytest.importorskip(package)
    write_checkpoint(tmp_path / "backbone.t7", policy=False)
    torch.save({"agent": build("R8_C10")[1].state_dict()}, tmp_path / "policy.t7")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "old.onnx").write_text("mine")
    before = sorted(tmp_path.iterdir())
    given = [flag.replace("{tmp}", str(tmp_path)).replace("{net}", str(checkpoint)) for flag in flags]
    code, _, error = command(export, *([] if "--model" in given else ["--model", "R8_C10"]), *given)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old.onnx").read_text() == "mine"


def test_overwrite_replaces_the_file_only_once_the_new_one_is_whole(
    tmp_path: Path, checkpoint: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    output = tmp_path / "net.safetensors"
    output.write_text("mine")
    flags = (
        "--model",
        "R8_C10",
        "--load",
        checkpoint,
        "--format",
        "safetensors",
        "--output",
        output,
        "--overwrite",
    )

    def full_disk(networks: Any, path: Path, half: bool) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(exported, "write_safetensors", full_disk)
        code, _, error = command(export, *flags)
    assert code == 2
    assert "not writable (No space left on device)" in error
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert output.read_text() == "mine"
    assert command(export, *flags)[0] == 0
    assert load_network(output)[0].num_blocks == 3


def test_a_missing_package_is_named_with_its_mend(
    tmp_path: Path, checkpoint: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(formats, "import_module", missing)
    code, _, error = command(
        export, "--model", "R8_C10", "--load", checkpoint, "--format", "onnx", "--output", tmp_path / "net.onnx"
    )
    assert code == 2
    assert error == "error: onnx is missing (No module named 'onnx'); pip install blockdrop[export]"
