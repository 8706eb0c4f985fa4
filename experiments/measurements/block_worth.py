"""What each block is worth to each image, and how much of that a decider can tell from the image.

A block's worth to an image is the log-likelihood of its label with the block minus that without it, all other
blocks as the network's most frequent policy has them: what any estimator's gradient teaches in the end, so that a
policy network can learn no more than it can tell of this from the image. Deciders by name are trained to tell it
outright, by regression, from scratch, and as classifiers, on whose features a linear model tells it; beside them
stands what no decider has, such a model of the network's own last features.
Then each image gets the blocks that seem to be worth most for their FLOPs, at the cost of the one policy.

Name a network that is used to serving many policies, as from before its policies settled: one of settled policies
knows no others. To try it: --model R8_Digits --load cv/digits --images 1000 --epochs 2
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from agents.policies import map_policy
from agents.policy_network import PolicyNetwork
from blockdrop.console import run_command
from blockdrop.data import Augment, Images, split_rows
from blockdrop.data.sets import LARGEST_IN_MEMORY
from blockdrop.errors import require
from blockdrop.flops import FlopTable, count_flops
from blockdrop.inference.executor import Executor
from blockdrop.inference.operating_point import threshold_for_budget
from blockdrop.measure import MAPS_PER_IMAGE, TIMED_BYTES, executor, predict_under
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.names import POLICY_NETS
from blockdrop.output import check_writable, write_json
from blockdrop.progress import progress
from blockdrop.studies.worth_of_looking import DEALS
from blockdrop.tables import table
from blockdrop.training.compute import Compute
from blockdrop.training.config import ModelConfig
from blockdrop.training.opening import Opened, open_networks
from blockdrop.training.policies import training_keep_probs

DECIDERS = tuple(name for name in POLICY_NETS if name != "constant")
LAST = "last features"
CLASSES_FIRST = ", classes first"
SHRINKS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.0)
"""How much a prediction counts beside the mean worth of each block; 0 is one policy for all images."""
HELD_OUT = 0.2
"""Share of the training images on which the shrinking is chosen."""


@dataclass(kw_only=True)
class BlockWorthConfig(ModelConfig):
    """Flags of `python -m experiments.measurements.block_worth`."""

    load: tuple[str, ...] = ()
    """Checkpoints or run directories with a backbone and its policy network."""
    deciders: tuple[str, ...] = DECIDERS
    """Which to train: stem, pooled4, pooled, reference."""
    images: int = 20_000
    """Training images to learn from, drawn from all; a fifth of them is held out."""
    epochs: int = 10
    """Epochs of that."""
    class_epochs: int = 5
    """Epochs for which a second copy of each decider learns to classify all training images but those held out,
    before a linear model tells worths from what it sees; 0: none."""
    json: str | None = None
    """Write the rows to this file."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""

    def check(self) -> None:
        super().check()
        require(len(self.load) > 0, "--load: name a checkpoint or run directory")
        for name in self.deciders:
            require(name in DECIDERS, f"--deciders {name}: choose {', '.join(DECIDERS)}")
        require(self.images >= 10, f"--images {self.images}: must be at least 10")
        require(self.epochs >= 1, f"--epochs {self.epochs}: must be at least 1")
        require(self.class_epochs >= 0, f"--class_epochs {self.class_epochs}: must be at least 0")
        if self.json is not None:
            check_writable("--json", self.json, self.overwrite)


def main(config: BlockWorthConfig) -> dict[str, Any]:
    """Measures, trains the deciders, prints the table; returns the numbers."""
    config.check()
    opened, compute = open_networks(config, config.load), config.compute()
    files = " ".join(config.load)
    require(opened.has_backbone, f"--load {files}: a policy network without its backbone; name that too")
    require(
        opened.has_policy,
        f"--load {files}: no policy network in it; run blockdrop.finetune --recipe fast first",
    )
    study = Study(opened, compute, config)
    rows = [study.row("one policy", None), study.row("mean worth", study.mean.expand_as(study.truth))]
    rows.append(study.last_features_row())
    for name in config.deciders:
        rows += study.decider_rows(name)
    numbers = {
        "policy": "".join(str(int(bit)) for bit in study.base),
        "mean_worth": study.mean.tolist(),
        "deviation": study.deviation.tolist(),
        "rows": rows,
        "config": asdict(config),
    }
    print(f"\nworth of the blocks around {numbers['policy']}, nats: mean, and deviation between images")
    for title, values in (("mean", study.mean), ("deviation", study.deviation)):
        print(f"{title:9} {' '.join(f'{value:6.3f}' for value in values.tolist())}")
    print(f"\n{markdown(rows)}")
    if config.json is not None:
        write_json("--json", config.json, numbers)
    return numbers


class Study:
    """The worths of the blocks on three sets of images (learned from, held out, test), and what is done with them.

    Args:
        opened: a backbone and its policy network; both are left as they are.
    """

    def __init__(self, opened: Opened, compute: Compute, config: BlockWorthConfig):
        self.opened, self.compute, self.config = opened, compute, config
        self.resnet = compute.place(opened.dynamic.network).eval()
        self.run = executor(self.resnet, None, compute)
        self.flops = count_flops(opened.dynamic.network, None, opened.dynamic.image_size)
        self.base = most_frequent_policy(opened, compute)  # (K,)
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(opened.data.train), generator=generator)
        chosen = order[: config.images]
        held_out = max(1, round(HELD_OUT * len(chosen)))
        self.training = opened.data.train.subset(chosen[held_out:])
        self.held_out = opened.data.train.subset(chosen[:held_out])
        self.rest = opened.data.train.subset(order[held_out:])
        self.test = opened.data.test
        self.worths = self.measure(self.training, "training images")
        self.mean = self.worths.mean(0)
        """(K,), over the images learned from."""
        self.deviation = self.worths.std(0)
        self.truth = self.measure(self.test, "test images")

    def batches(self, images: Images, augment: Augment | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images and labels, in order without `augment`."""
        yield from images.batches(
            self.config.batch_size,
            self.opened.dynamic.normalisation,
            self.compute.device,
            augment,
            self.compute.channels_last,
        )

    @torch.no_grad()
    def measure(self, images: Images, title: str) -> Tensor:
        """The worth of every block to every image, as many images at a time as fit in about a GiB: float32 (N, K),
        on the CPU."""
        found = []
        for batch, labels in progress(self.batches(images), title, -(-len(images) // self.config.batch_size)):
            together = TIMED_BYTES // (MAPS_PER_IMAGE * batch[0].nbytes * (len(self.base) + 1))
            for part in zip(*(each.split(max(1, together)) for each in (batch, labels)), strict=True):
                found.append(block_worths(self.run, self.base, *part).cpu())
        return torch.cat(found)

    def policies(self, worths: Tensor) -> Tensor:
        """What runs for each image where blocks are worth so much, at the cost of the one policy: bool (N, K)."""
        return richest_policies(worths, self.flops, self.flops.per_image(self.base[None]).item())

    def accuracy(self, policies: Tensor, images: Images) -> Tensor:
        """Shares of right predictions under policies (S, N, K): float64 (S,)."""
        found = predict_under(
            self.run, policies, images, self.opened.dynamic.normalisation, self.compute, self.config.batch_size
        )
        return (found == images.labels).double().mean(1)

    def row(self, name: str, predicted: Tensor | None, shrink: float | None = None) -> dict[str, Any]:
        """What predicted worths (N, K) of the test images are good for; None = the one policy for all."""
        policies = self.base.expand(self.truth.shape) if predicted is None else self.policies(predicted)
        generator = torch.Generator().manual_seed(0)
        dealt = [policies[torch.randperm(len(policies), generator=generator)] for _ in range(DEALS)]
        own, *others = self.accuracy(torch.stack([policies, *dealt]), self.test).tolist()
        return {
            "name": name,
            "explained": None,
            "shrink": shrink,
            "accuracy": own,
            "dealt_accuracy": sum(others) / DEALS,
            "flops": self.flops.per_image(policies).double().mean().item() / self.flops.full,
            "unique_policies": len(policies.unique(dim=0)),
            "decider_flops": 0.0,
            "class_accuracy": None,
        }

    def predicted_row(self, name: str, held_out: Tensor, test: Tensor, flops: int) -> dict[str, Any]:
        """A row of policies by what was told of images, nats beside the mean worths (N, K), at such a cost."""
        choices = torch.stack([self.policies(self.mean + shrink * held_out) for shrink in SHRINKS])
        shrink = SHRINKS[int(self.accuracy(choices, self.held_out).argmax())]
        return self.row(name, self.mean + shrink * test, shrink) | {
            "explained": variance_explained(self.truth, self.mean + test),
            "decider_flops": flops / self.flops.full,
        }

    def last_features_row(self) -> dict[str, Any]:
        """What a linear model of the network's own last features tells, under the one policy."""
        body = copy.deepcopy(self.resnet)
        head, body.fc = body.fc, nn.Identity()
        assert isinstance(head, nn.Module)

        def look(images: Tensor) -> Tensor:
            return body(images, self.base.expand(len(images), -1).to(images.device))

        return self.predicted_row(LAST, *self.tell_linearly(look, head), 0)

    def decider_rows(self, name: str) -> Iterator[dict[str, Any]]:
        """What a decider tells when it learns from the worths alone, and when it has learned the classes first."""
        network = self.build(name)
        flops = count_flops(self.opened.dynamic.network, network, self.opened.dynamic.image_size).policy_network
        self.learn_worths(name, network)
        held_out, test = (
            self.deviation * self.collect(lambda images: network.logits(images)[0], of)
            for of in (self.held_out, self.test)
        )
        yield self.predicted_row(name, held_out, test, flops)
        if self.config.class_epochs:
            network = self.build(name)
            head = nn.Linear(network.logit.in_features, self.opened.data.num_classes)
            self.learn_classes(name, network, self.compute.place(head))
            classes = self.collect(lambda images: head(network.look(images)), self.test).argmax(1)
            right = (classes == self.test.labels).double().mean().item()
            row = self.predicted_row(name + CLASSES_FIRST, *self.tell_linearly(network.look, head), flops)
            yield row | {"class_accuracy": right}

    def build(self, name: str) -> PolicyNetwork:
        """A decider with fresh weights."""
        torch.manual_seed(self.config.seed)
        large_images = self.opened.dynamic.image_size > LARGEST_IN_MEMORY
        network = build_policy_network(self.resnet.num_blocks, large_images, name, backbone=self.resnet)
        return self.compute.place(network)

    def learn_worths(self, name: str, network: PolicyNetwork) -> None:
        """Trains all of it by least squares on the worths as they deviate from their means, in standard
        deviations."""
        wanted = (self.worths - self.mean) / self.deviation.clamp_min(1e-6)
        size = min(self.config.batch_size, len(wanted))
        steps = len(wanted) // size
        generator = torch.Generator().manual_seed(self.config.seed)

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(wanted), generator=generator)[: steps * size]
            batches = self.batches(self.training.subset(order))
            for rows, (images, _) in zip(order.split(size), batches, strict=True):
                yield images, wanted[rows].to(images.device)

        def loss(images: Tensor, worths: Tensor) -> Tensor:
            return F.mse_loss(network.logits(images)[0], worths)

        self.train(name, (network,), batches, steps, self.config.epochs, loss)

    def learn_classes(self, name: str, network: PolicyNetwork, head: nn.Module) -> None:
        """Trains its trunk, and a head on it, to classify all training images but those held out, augmented."""
        data, seed = self.rest, self.config.seed

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            return self.batches(data, Augment(seed, epoch))

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(head(network.look(images)).float(), labels)

        steps = len(split_rows(torch.arange(len(data)), self.config.batch_size, keep_single=False))
        self.train(f"{name}, classes", (network, head), batches, steps, self.config.class_epochs, loss)

    def train(
        self,
        title: str,
        modules: Sequence[nn.Module],
        batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
        steps: int,
        epochs: int,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Minimises the loss of (images, wanted), so many steps an epoch; leaves the modules in eval mode."""
        optimizer = torch.optim.AdamW(
            [parameter for module in modules for parameter in module.parameters()], weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * steps)
        for module in modules:
            module.train()
        for epoch in range(epochs):
            for images, wanted in progress(batches(epoch), f"{title}, epoch {epoch}", steps):
                with self.compute.autocast():
                    value = loss(images, wanted)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
        for module in modules:
            module.eval()

    @torch.no_grad()
    def collect(self, function: Callable[[Tensor], Tensor], images: Images) -> Tensor:
        """A function (N, C, H, W) to (N, …) of all images: float32, on the CPU."""
        found = []
        for batch, _ in self.batches(images):
            with self.compute.autocast():
                found.append(function(batch).float().cpu())
        return torch.cat(found)

    def tell_linearly(self, look: Callable[[Tensor], Tensor], head: nn.Module) -> tuple[Tensor, Tensor]:
        """What a ridge regression tells from a classifier's last features and its class probabilities, sorted.

        Args:
            look: images (N, C, H, W) to features (N, D).
            head: features (N, D) to logits (N, classes).
        Returns:
            of the held-out and of the test images, in nats beside the mean worths: float32 (N, K).
        """

        def seen(images: Tensor) -> Tensor:
            features = look(images)
            chances = head(features).float().softmax(-1).sort(descending=True).values
            return torch.cat([features.float(), chances], 1)

        learned, held_out, test = (self.collect(seen, of) for of in (self.training, self.held_out, self.test))
        ridge = RidgeCV(np.logspace(0, 6, 13), alpha_per_target=True)  # chosen by leaving one image out
        model = make_pipeline(StandardScaler(), ridge).fit(learned.numpy(), (self.worths - self.mean).numpy())
        first, second = (torch.from_numpy(model.predict(of.numpy())).float() for of in (held_out, test))
        return first, second


def most_frequent_policy(opened: Opened, compute: Compute) -> Tensor:
    """Of some training images, at the checkpoint's threshold: bool (K,)."""
    dynamic = opened.dynamic
    assert dynamic.policy_network is not None
    compute.place(dynamic.policy_network)
    keep_probs = training_keep_probs(dynamic, opened.data.train, compute)
    policies, counts = map_policy(keep_probs, dynamic.threshold).unique(dim=0, return_counts=True)
    return policies[counts.argmax()]


def block_worths(run: Executor, base: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of the labels with each block minus that without it, the others as in `base`, nats.

    Args:
        base: bool (K,).
        images, labels: (N, 3, H, W), normalised, and (N,).
    Returns:
        float32 (N, K).
    """
    turned = base ^ torch.eye(len(base), dtype=torch.bool)  # (K, K)
    policies = torch.cat([base[None], turned])[:, None].expand(-1, len(images), -1)  # (K + 1, N, K)
    logits, _ = run(images, policy=policies.to(images.device))
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.repeat(len(policies)), reduction="none")
    base_loss, *other_losses = losses.view(len(policies), -1)
    gained = torch.stack(other_losses, 1) - base_loss[:, None]  # (N, K)
    return torch.where(base.to(gained.device), gained, -gained)


def richest_policies(worths: Tensor, flops: FlopTable, cost: float) -> Tensor:
    """Keeps the blocks that are worth most for their FLOPs, as many of all images' as cost `cost` FLOPs an image.

    Args:
        worths: float32 (N, K).
    Returns:
        bool (N, K).
    """
    for_flops = worths.double() / torch.tensor(flops.blocks)
    order = for_flops.flatten().unique(return_inverse=True)[1].view(worths.shape)  # their rank, without gaps
    ranks = (order + 1).float() / (order.max() + 2)
    budget = math.ceil(cost / flops.full * 1e9) / 1e9  # rounded up, as it is one that can be met
    return map_policy(ranks, threshold_for_budget(ranks, flops, budget))


def variance_explained(truth: Tensor, predicted: Tensor) -> float:
    """1 - Σ (truth - predicted)² / Σ (truth - its mean)², over all images and blocks (N, K); below 0 where the
    prediction is worse than the mean of each block."""
    return 1 - ((truth - predicted).square().sum() / (truth - truth.mean(0)).square().sum()).item()


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    return table(
        [
            {
                "policies from": row["name"],
                "FLOPs of it %": f"{100 * row['decider_flops']:.1f}",
                "classes %": "" if row["class_accuracy"] is None else f"{100 * row['class_accuracy']:.2f}",
                "variance explained": "" if row["explained"] is None else f"{row['explained']:+.3f}",
                "of it used": "" if row["shrink"] is None else f"{row['shrink']:g}",
                "policies": str(row["unique_policies"]),
                "FLOPs %": f"{100 * row['flops']:.1f}",
                "accuracy %": f"{100 * row['accuracy']:.2f}",
                "dealt %": f"{100 * row['dealt_accuracy']:.2f}",
            }
            for row in rows
        ],
        words=1,
    )


if __name__ == "__main__":
    run_command(main, BlockWorthConfig, __doc__)
