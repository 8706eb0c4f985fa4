"""The honest rival of a policy network that answers: two networks that never met, and a threshold.

A small static network answers an image where its largest probability reaches the threshold; the others go on to
the big one. The small one, a ResNet-8, has the shape of the reference policy network, and its head is the answer
head. So the two make a dynamic network whose policy network decides nothing: `evaluate`, the executor and every
study run it like any other.

    python -m blockdrop.distill kd --model R32_C10 --load cv/r32 --student R8 --temperature 4 --cv_dir cv/r8
    python -m experiments.cascade --small cv/r8 --big cv/r32 --data_dir data/ --cv_dir cv/cascade
    python -m blockdrop.evaluate --load cv/cascade/cascade-45.t7 --data_dir data/
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from agents.answers import with_answers
from agents.policy_network import PolicyNetwork
from blockdrop.console import run_command
from blockdrop.data import DataSource, Images
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError, require
from blockdrop.inference.operating_point import AnswerOutcomes, RestOutcomes, held_out_halves, pair_for_budget
from blockdrop.loading import load
from blockdrop.models.backbone import Backbone
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.specs import parse_model_name
from blockdrop.training.answers import fit_weight, look_at, run_under
from blockdrop.training.compute import choose_compute

SURE = 20.0
"""Logit of the keep probability of a block that every image runs; of one that none runs minus it."""


@dataclass(kw_only=True)
class CascadeConfig:
    """Flags of `python -m experiments.cascade`."""

    small: str
    """Checkpoint or run directory of a ResNet-8, or of a dynamic network, whose policy network then answers."""
    big: str
    """That of the big network: all its blocks run, or those of the one policy that it was fine-tuned under
    (--policy_net constant)."""
    data_dir: str = "data/"
    """Image tree or torchvision's CIFAR files; Digits need none."""
    cv_dir: str = "cv/cascade"
    """Folder that the checkpoints are written to, cascade-<percent>.t7."""
    budgets: tuple[float, ...] = (0.6, 0.45, 0.3)
    """Mean costs to choose thresholds for on half of the test images, as fractions of the big network's FLOPs with
    all its blocks, the small network included."""
    device: str = "auto"
    """Device that computes: auto, cpu, cuda, …."""
    overwrite: bool = False
    """Replace checkpoints of these names."""

    def check(self) -> None:
        """Raises `BlockdropError` for a value out of range."""
        require(len(self.budgets) > 0, "--budgets: name at least one")
        for budget in self.budgets:
            require(0 < budget <= 1, f"--budgets {budget}: must be above 0 and at most 1, a fraction")


def main(config: CascadeConfig) -> list[Path]:
    """Writes a checkpoint for each budget; returns their paths."""
    config.check()
    cascade = make_cascade(load(config.small), load(config.big))
    paths = [Path(config.cv_dir, f"cascade-{round(100 * budget)}.t7") for budget in config.budgets]
    for path in paths:
        require(config.overwrite or not path.exists(), f"{path}: exists; pass --overwrite to replace it")
    spec = parse_model_name(cascade.model)
    source = DataSource(spec.dataset, config.data_dir, spec.image_size, cache_dir=config.cv_dir)
    choosing, _ = held_out_halves(source.test.labels)
    points = choose_points(cascade, source.test.subset(choosing), config.budgets, config.device)
    try:
        Path(config.cv_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BlockdropError(f"--cv_dir {config.cv_dir}: can't be made ({error.strerror})") from None
    for path, point in zip(paths, points, strict=True):
        cascade.operating_point = point
        cascade.save(path, overwrite=True)
        print(
            f"{path}: answers from {point['answer_threshold']:.4g} on, {point['flops_fraction']:.1%} of the FLOPs "
            f"on the {len(choosing):,} images that chose"
        )
    return paths


def make_cascade(small: DynamicNetwork, big: DynamicNetwork) -> DynamicNetwork:
    """Both as one dynamic network, which answers by the small one and decides as the big one's only policy does.

    Args:
        small: a static ResNet-8, or a dynamic network whose policy network answers, for the same images as `big`.
        big: without a policy network, or with one that gives all images the same policy; left as it is.
    Raises:
        BlockdropError: other networks.
    """
    policy_network = _answering(small, big)
    nn.init.zeros_(policy_network.logit.weight)
    policy_network.logit.bias.data = torch.where(only_policy(big), SURE, -SURE)
    cascade = copy.deepcopy(big.with_network(big.network))
    cascade.set_policy_network(policy_network)
    return cascade.eval()


def _answering(small: DynamicNetwork, big: DynamicNetwork) -> PolicyNetwork:
    """The small network as a policy network that answers, for the blocks of the big one."""
    require(small.preprocessing == big.preprocessing, f"--small {small.model}: made for other images than --big")
    require(small.num_classes == big.num_classes, f"--small {small.model}: made for other classes than --big")
    if small.policy_network is not None:
        own_trunk = small.policy_network.answer is not None and not small.policy_network.borrowed
        require(own_trunk, f"--small {small.model}: its policy network answers nothing, or not without its ResNet")
        require(small.num_blocks == big.num_blocks, f"--small {small.model}: made for other blocks than --big")
        return copy.deepcopy(small.policy_network)
    network = small.network
    policy_network = build_policy_network(big.num_blocks)
    own = policy_network.features
    assert isinstance(own, Backbone)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    same = isinstance(network, Backbone) and shapes == {key: value.shape for key, value in state.items()}
    require(
        same and network.shortcut == own.shortcut,
        f"--small {small.model}: a ResNet-8 with {own.shortcut} shortcuts is needed, which has the policy "
        "network's shape",
    )
    assert isinstance(network, Backbone)
    assert isinstance(network.fc, nn.Linear)
    own.load_state_dict(state)
    policy_network.add_answer(big.num_classes)
    assert policy_network.answer is not None
    policy_network.answer.load_state_dict(network.fc.state_dict())
    return policy_network


def only_policy(dynamic: DynamicNetwork) -> torch.Tensor:
    """The policy that all images get, bool (K,).

    Raises:
        BlockdropError: not all get the same.
    """
    if dynamic.policy_network is None:
        return torch.ones(dynamic.num_blocks, dtype=torch.bool)
    require(
        dynamic.policy_net == "constant",
        f"--big {dynamic.model}: its policy network {dynamic.policy_net} gives images different policies; name "
        "a run with --policy_net constant, or a network without one",
    )
    side = dynamic.image_size
    with torch.no_grad():
        return dynamic.policy_network.policy(torch.zeros(1, 3, side, side))[0]


def choose_points(
    cascade: DynamicNetwork, images: Images, budgets: tuple[float, ...], device: str = "auto"
) -> list[dict[str, float]]:
    """Fits the weight of the small network's log-probabilities beside the big one's logits, and chooses for each
    budget the threshold of the highest accuracy within it, on images that were not trained on.

    Raises:
        BlockdropError: a budget that can't be met.
    """
    compute = choose_compute(device, "float32")
    network = cascade.policy_network
    assert isinstance(network, PolicyNetwork)
    assert network.answer_weight is not None
    compute.place(cascade)
    found = look_at(cascade, images, compute)
    policy = found.keep_probs >= cascade.threshold
    logits = run_under(cascade, policy, images, compute)
    weight = fit_weight(logits, found.answer, found.labels)
    with torch.no_grad():
        network.answer_weight.fill_(weight)
    right = with_answers(logits, found.answer, None, weight).argmax(1) == found.labels
    table = cascade.flop_table()
    rest = RestOutcomes(cascade.threshold, right, table.per_image(policy))
    answers = AnswerOutcomes(found.confidence, found.right)
    points = []
    for budget in budgets:
        pair = pair_for_budget([rest], answers, table, budget)
        points.append(
            {
                "threshold": pair.threshold,
                "answer_threshold": pair.answer_threshold,
                "budget": budget,
                "flops_fraction": pair.flops / len(images) / table.full,
                "held_out_images": len(images),
            }
        )
    return points


if __name__ == "__main__":
    run_command(main, CascadeConfig, __doc__)
