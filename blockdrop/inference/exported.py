"""Networks as files for other runtimes: written, read again, and compared with torch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.answers import ANSWER_ALL, NEVER, Thresholds, is_sure, with_answers
from agents.policy_network import PolicyNetwork
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import require
from blockdrop.inference.branching import BranchingNetwork, trace
from blockdrop.inference.formats import Format, optional_package
from blockdrop.models.backbone import Network
from blockdrop.models.checkpoints.dialects import FORMAT, read_checkpoint
from blockdrop.models.checkpoints.operating_points import thresholds_record
from blockdrop.models.checkpoints.safetensors_files import encode_metadata, write_safetensors_file
from blockdrop.models.checkpoints.saving import preprocessing_record
from blockdrop.version import project_version

Runner = Callable[..., tuple[Tensor, ...]]
"""image (1, 3, H, W) and threshold () to logits (1, classes), policy (1, K) and keep probabilities (1, K); without
a policy network image to logits. That of a policy network that answers takes an answer threshold (), too, and
gives whether the image is answered (1,) and the answer's log-probabilities (1, classes)."""
INPUTS = ["image", "threshold", "answer_threshold"]
OUTPUTS = ["logits", "policy", "keep_probs", "answered", "answer"]
TOLERANCE = 1e-4
"""Of keep probabilities, and of logits as a share of the largest logit where that is above 1."""
CHECK_IMAGES = 3
LATENCY_ROUNDS = 30


@dataclass(frozen=True)
class Networks:
    """A dynamic network, ready to export, and the thresholds that are recorded."""

    dynamic: DynamicNetwork
    thresholds: Thresholds

    @property
    def network(self) -> Network:
        """Whose blocks are dropped."""
        return self.dynamic.network

    @property
    def policy_network(self) -> PolicyNetwork | None:
        """None: all blocks run."""
        return self.dynamic.policy_network

    @property
    def answers(self) -> bool:
        """Whether the policy network can answer."""
        return self.policy_network is not None and self.policy_network.answer is not None

    def inputs(self, thresholds: Thresholds | None = None) -> tuple[Tensor, ...]:
        """The graph's inputs beside the image.

        Args:
            thresholds: default: those that are recorded.
        """
        if self.policy_network is None:
            return ()
        given = map(torch.tensor, thresholds or self.thresholds)
        return tuple(given)[: 2 if self.answers else 1]

    def names(self) -> tuple[list[str], list[str]]:
        """Of the graph's inputs and outputs."""
        if self.policy_network is None:
            return INPUTS[:1], OUTPUTS[:1]
        return (INPUTS, OUTPUTS) if self.answers else (INPUTS[:2], OUTPUTS[:3])

    def metadata(self) -> dict[str, str]:
        """What a file says of itself: plain text, or JSON."""
        dynamic = self.dynamic
        values: dict[str, Any] = {
            "format": FORMAT,
            "version": project_version(),
            "model": dynamic.model,
            "variant": dynamic.variant.numbers(),
            "shortcut": self.network.shortcut or "none",
            "normalisation": {"mean": dynamic.normalisation.mean, "std": dynamic.normalisation.std},
            "preprocessing": preprocessing_record(dynamic.preprocessing),
            "classes": dynamic.classes,
        }
        if dynamic.origin is not None:
            values |= {"origin": dynamic.origin, "outputs": dynamic.num_classes}
        if self.policy_network is not None:
            values |= {"policy_net": dynamic.policy_net, **thresholds_record(self.thresholds)}
        if dynamic.metrics:
            values |= {"metrics": dynamic.metrics, "epoch": dynamic.epoch}
        return encode_metadata(values)

    def random_images(self) -> list[Tensor]:
        """Normal noise in place of normalised images, each (1, 3, H, W)."""
        size = self.dynamic.image_size
        return list(torch.randn(CHECK_IMAGES, 1, 3, size, size, generator=torch.Generator().manual_seed(0)))


def without_policy(networks: Networks) -> Networks:
    """The full network alone."""
    return replace(networks, dynamic=networks.dynamic.with_network(networks.network))


def write_checked(networks: Networks, form: Format, path: Path, half: bool = False) -> None:
    """Writes the file, compares it with torch, and prints its latency.

    Raises:
        BlockdropError: its outputs differ from torch's.
    """
    if form == "safetensors":
        write_safetensors(networks, path, half)
        _check_weights(networks, path, half)
        return
    start = time.perf_counter()
    write, open_file = {"onnx": (write_onnx, open_onnx), "aoti": (write_aoti, open_aoti)}[form]
    write(networks, path)
    print(f"exported in {time.perf_counter() - start:.0f} s")
    run = open_file(path)
    if networks.policy_network is None:
        check_static_graph(run, networks)
        report_latency({f"all {networks.network.num_blocks} blocks": run}, networks)
    else:
        check_graph(run, networks)
        report_dynamic_latency(run, networks, open_full_onnx(networks) if form == "onnx" else None)


def write_onnx(networks: Networks, path: Path) -> None:
    """One graph with an `If` per block: image, threshold to logits, policy, keep_probs; see `BranchingNetwork`.

    Of a policy network that answers there is an `If` around the ResNet, too, answer_threshold is another input,
    and answered and answer are outputs. Without a policy network the graph is image to logits, and has no `If`.
    """
    model = onnx_model(*_graph(networks), *networks.names())
    expected = 0 if networks.policy_network is None else networks.network.num_blocks + networks.answers
    conditions = _count_conditions(model.graph)
    if conditions != expected:
        raise RuntimeError(f"{conditions} If nodes where {expected} are expected; update torch")
    _move_weights_into_branches(model.graph)
    optional_package("onnx").helper.set_model_props(model, networks.metadata())
    path.write_bytes(model.SerializeToString())


def open_onnx(path: Path) -> Runner:
    """The file in ONNX Runtime, on the CPU with as many threads as torch uses."""
    session = onnx_session(path.read_bytes())

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)})
        return tuple(torch.from_numpy(np.asarray(value)) for value in found)

    return run


def open_full_onnx(networks: Networks) -> Callable[[Tensor], object]:
    """The full network, without policy network or branches, in ONNX Runtime: what the dynamic one must beat."""
    alone = without_policy(networks)
    model = onnx_model(*_graph(alone), *alone.names())
    session = onnx_session(model.SerializeToString())
    return lambda image: session.run(OUTPUTS[:1], {"image": image.numpy()})


def onnx_model(network: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> Any:
    """A network that is called with `example` as an ONNX ModelProto, with these names of inputs and outputs."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            trace(network, example), dynamo=True, input_names=inputs, output_names=outputs, verbose=False
        )
    assert program is not None, "dynamo=True returns the program"
    return program.model_proto


def _move_weights_into_branches(graph: Any) -> None:
    """ONNX Runtime packs weights and fuses convolutions only where both stand in one graph: R110 with 18 of 54
    blocks kept takes 3.0 ms instead of 4.7 (1 thread, ONNX Runtime 1.31)."""
    outer = {name for node in graph.node for name in node.input}
    movable = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in outer}
    for branch in _branches(graph):
        used = _used_within(branch) & movable.keys()
        branch.initializer.extend(movable[name] for name in sorted(used))
        _move_weights_into_branches(branch)
    stay = [tensor for tensor in graph.initializer if tensor.name in outer]
    del graph.initializer[:]
    graph.initializer.extend(stay)


def _branches(graph: Any) -> list[Any]:
    """Of the graph's own conditions."""
    return [attribute.g for node in graph.node if node.op_type == "If" for attribute in node.attribute]


def _used_within(graph: Any) -> set[str]:
    """Names that nodes read, those of the conditions' branches included."""
    return {name for node in graph.node for name in node.input}.union(*map(_used_within, _branches(graph)))


def _count_conditions(graph: Any) -> int:
    """Those of the conditions' branches included."""
    return sum(node.op_type == "If" for node in graph.node) + sum(map(_count_conditions, _branches(graph)))


def onnx_session(content: bytes, spinning: bool = True) -> Any:
    """An ONNX file's content in ONNX Runtime, on the CPU with as many threads as torch uses.

    Args:
        spinning: threads wait actively for the next run, and disturb other sessions meanwhile.
    """
    runtime = optional_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def write_aoti(networks: Networks, path: Path) -> None:
    """The same graph compiled to a shared library in a .pt2 package, for CPUs with this one's instructions.

    With a policy network about half as fast as ONNX Runtime: AOTInductor hands a branch its weights as arguments,
    so it can't pack them ahead nor fuse the convolutions (torch 2.14; freezing packs only those outside of the
    branches).
    """
    with torch.no_grad():
        program = trace(*_graph(networks))
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={
                # With its layouts free, the two branches of a condition return maps in different ones, and
                # the rest of the graph reads both in the same: wrong logits (torch 2.14).
                "layout_optimization": False,
                "aot_inductor.metadata": networks.metadata(),
            },
        )


def open_aoti(path: Path) -> Runner:
    """The package loaded into this process."""
    package = torch._inductor.aoti_load_package(str(path))

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = package(*inputs)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    return run


def write_safetensors(networks: Networks, path: Path, half: bool = False) -> None:
    """Weights under `resnet.` and `policy_network.`, BatchNorm not folded, with the metadata in the header; read
    like any checkpoint; floating-point numbers as float16 if `half`."""
    write_safetensors_file(path, _state(networks.network, networks.policy_network, half), networks.metadata())


def check_graph(run: Runner, networks: Networks) -> None:
    """Compares the file with torch on random images, at thresholds that keep some, all and no blocks; of a policy
    network that answers, with each of them answered and not.

    Raises:
        BlockdropError: its policy isn't the one its keep probabilities give, or what is answered isn't what its
            answers give, or a difference above `TOLERANCE`.
    """
    assert networks.policy_network is not None
    differences: dict[str, list[float]] = {"logits": [], "keep_probs": []}
    if networks.answers:
        differences["answer"] = []
    kept, answers = [], 0
    for image in networks.random_images():
        with torch.inference_mode():
            glance = networks.policy_network.glance(image)
        own, expected_probs = networks.thresholds, glance.keep_probs
        for keep in (own.keep, float(expected_probs.median()), 0.0, 2.0):
            for at in {Thresholds(keep, answer) for answer in _answer_thresholds(networks)}:
                logits, policy, keep_probs, *found = run(image, *networks.inputs(at))
                answered = found[0] if networks.answers else torch.zeros(1, dtype=torch.bool)
                answer = found[1] if networks.answers else None
                require(
                    policy.equal((keep_probs >= torch.tensor(keep)) & ~answered.unsqueeze(-1)),
                    f"the file's policy isn't keep_probs >= {keep:g}; nothing written; try another version of "
                    "torch or of the runtime",
                )
                require(
                    answered.equal(is_sure(answer, torch.tensor(at.answer), policy)),
                    f"what the file answers isn't what reaches {at.answer:g}; nothing written; try another "
                    "version of torch or of the runtime",
                )
                # under the file's own policy: rounding may flip a close decision
                with torch.inference_mode():
                    alone = networks.network(image, policy)
                    weight = networks.policy_network.answer_weight
                    expected = with_answers(alone, glance.answer, answered, weight)
                differences["logits"].append(_difference(logits, expected))
                differences["keep_probs"].append(float((keep_probs - expected_probs).abs().max()))
                if answer is not None and glance.answer is not None:
                    differences["answer"].append(_difference(answer, glance.answer))
                kept.append(int(policy.sum()))
                answers += int(answered.sum())
    largest = {name: float(np.max(values)) for name, values in differences.items()}  # NaN where there is one
    answering = f", {answers} of them answered" if networks.answers else ""
    print(
        f"check: {len(kept)} runs that keep {min(kept)} to {max(kept)} blocks{answering}; largest difference from "
        f"torch {largest['logits']:.1e} of the largest logit, {largest['keep_probs']:.1e} in keep probabilities"
    )
    for name, value in largest.items():
        _require_close(name, value)


def _answer_thresholds(networks: Networks) -> list[float]:
    """To check at: that which is recorded, and such that all and none are answered."""
    return [networks.thresholds.answer, ANSWER_ALL, NEVER] if networks.answers else [NEVER]


def check_static_graph(run: Runner, networks: Networks) -> None:
    """Compares the file of a network without policy network with torch on random images.

    Raises:
        BlockdropError: a difference above `TOLERANCE`.
    """
    images = networks.random_images()
    with torch.inference_mode():
        largest = float(np.max([_difference(run(image)[0], networks.network(image)) for image in images]))
    print(f"check: {len(images)} runs; largest difference from torch {largest:.1e} of the largest logit")
    _require_close("logits", largest)


def _difference(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def _require_close(name: str, difference: float) -> None:
    require(
        difference <= TOLERANCE,
        f"the file's {name} differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}; nothing written; "
        "try another version of torch or of the runtime",
    )


def report_dynamic_latency(run: Runner, networks: Networks, run_full: Callable[[Tensor], object] | None) -> None:
    """`report_latency` at the threshold, with all blocks kept, and of the full network alone."""
    images = networks.random_images()
    # none answered: random images are nothing that anybody is sure of
    own, keep_all = (networks.inputs(Thresholds(keep)) for keep in (networks.thresholds.keep, 0.0))
    kept = sum(int(run(image, *own)[1].sum()) for image in images) / len(images)
    graphs: dict[str, Callable[[Tensor], object]] = {
        f"dynamic, {kept:.1f} of {networks.network.num_blocks} blocks kept": lambda image: run(image, *own),
        "dynamic, all blocks kept": lambda image: run(image, *keep_all),
    }
    if networks.answers:
        answer_all = networks.inputs(Thresholds(networks.thresholds.keep, ANSWER_ALL))
        graphs["dynamic, answered"] = lambda image: run(image, *answer_all)
    if run_full is not None:
        graphs["full network alone"] = run_full
    report_latency(graphs, networks, f" at threshold {networks.thresholds.keep:g}")


def report_latency(graphs: dict[str, Callable[[Tensor], object]], networks: Networks, where: str = "") -> None:
    """Prints medians over rounds in which all take their turn, one image at a time."""
    images = networks.random_images()
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(-CHECK_IMAGES, LATENCY_ROUNDS):  # the first few warm up
        for name, graph in graphs.items():
            start = time.perf_counter()
            graph(images[turn % CHECK_IMAGES])
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    print(f"latency on {torch.get_num_threads()} threads{where}, random images:")
    for name, found in seconds.items():
        print(f"    {name}: {1000 * median(found):.2f} ms")


def _check_weights(networks: Networks, path: Path, half: bool) -> None:
    found = read_checkpoint(path)
    parts = {"resnet": found.resnet or {}, "policy_network": found.policy_network or {}}
    read_back = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
    expected = _state(networks.network, networks.policy_network, half)
    same = read_back.keys() == expected.keys() and all(read_back[key].equal(expected[key]) for key in expected)
    require(same, f"{path}: read back, the weights aren't those written; nothing written")
    print(f"check: {len(read_back)} tensors read back, all equal")


def _state(resnet: Network, policy_network: PolicyNetwork | None, half: bool = False) -> dict[str, Tensor]:
    parts = {"resnet": resnet, "policy_network": policy_network}

    def stored(value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)  # safetensors refuses what is shared
        if not half or not value.is_floating_point():
            return value
        rounded = value.half()
        require(bool(rounded.isfinite().all()), "--half: a weight is too large for float16; leave --half out")
        return rounded

    return {
        f"{part}.{key}": stored(value)
        for part, network in parts.items()
        if network is not None
        for key, value in network.state_dict().items()
    }


def _graph(networks: Networks) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """What is exported, and an example of its inputs."""
    image = networks.random_images()[0]
    if networks.policy_network is None:
        return networks.network.folded(), (image,)
    return BranchingNetwork(networks.network, networks.policy_network), (image, *networks.inputs())
