"""The network as the user brought it: tested before it is trained, so that what comes of it can be compared."""

from __future__ import annotations

from typing import Any

from agents.deciders import keep_all
from blockdrop.data import Data
from blockdrop.dynamic import DynamicNetwork
from blockdrop.measure import evaluate_images, executor
from blockdrop.training.session import Session

ACCURACY, IMAGES = "brought_accuracy", "brought_images"
"""Names in the metrics of a checkpoint."""


def brought_accuracy(dynamic: DynamicNetwork, images: int) -> float | None:
    """Accuracy of the network before it was trained to drop blocks, if the checkpoint says so of as many test
    images."""
    known = dynamic.metrics.get(ACCURACY)
    return known if known is not None and dynamic.metrics.get(IMAGES) == images else None


def test_brought(dynamic: DynamicNetwork, data: Data, session: Session[Any], keep: bool) -> None:
    """Tests the network with all its blocks, prints its accuracy and, if told to, notes it for all checkpoints of
    the run. What a checkpoint of an earlier training says of the same number of images is kept, since that one
    began with the network that was brought.
    """
    known = {name: dynamic.metrics[name] for name in (ACCURACY, IMAGES) if keep and name in dynamic.metrics}
    if session.run.state.saved is not None:
        known = session.run.last_or_none("brought") or known
    if known.get(IMAGES) != len(data.test):
        compute = session.compute.in_float32()
        network = session.compute.place(dynamic.network)
        run = executor(network, None, compute, engine="torch")
        outcomes = evaluate_images(dynamic, data.test, compute, decider=keep_all(dynamic.num_blocks), run=run)
        known = {ACCURACY: outcomes.accuracy, IMAGES: len(data.test)}
        session.run.log(0, "brought", known)
    print(f"network as brought: accuracy {known[ACCURACY]:.4f} on {len(data.test):,} test images")
    if keep:
        session.brought.update(known)


test_brought.__test__ = False  # type: ignore[attr-defined]  # no test
