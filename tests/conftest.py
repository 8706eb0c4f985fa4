"""Tiny image trees, models and commands that the tests share."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from agents.policy_network import PolicyNetwork
from blockdrop import bench, findings, measure, reporting
from blockdrop.console import run_command
from blockdrop.data import NORMALISATIONS, DataSource, Images, Normalisation, Preprocessing
from blockdrop.dynamic import DynamicNetwork
from blockdrop.inference import programs, rows
from blockdrop.measure import Latency
from blockdrop.models.backbone import Backbone, Network
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.zoo import build, build_static
from blockdrop.training import policy_epoch

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they share the processors
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # the programs that tests start share them, too

SHARED = Path(os.environ.get("BLOCKDROP_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first, so that workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The 10,000 CIFAR-10 test photos."""
    archive = SHARED / "data" / "cifar10-jpeg.tar.gz"
    if not archive.exists():
        pytest.skip("needs the CIFAR-10 photos, which are not part of the project")
    root = tmp_path_factory.mktemp("photos")
    with tarfile.open(archive) as tar:
        tar.extractall(root, [m for m in tar.getmembers() if "test/" in m.name], filter="data")
    test = next(root.glob("**/test"))
    for folder in test.iterdir():
        (test.parent / "train" / folder.name).mkdir(parents=True)
    return DataSource("C10", test.parent).test


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _timed_once() -> Iterator[None]:
    """No test is about how fast a network is, so whatever is timed runs once, on one batch. What commands print of
    speed is made up, as the programs for it take seconds to compile; `test_measure.py` measures. How many rows a
    program takes isn't measured, either, but in `test_rows.py`."""

    def no_speed(*_: Any, policies: Sequence[Any], **__: Any) -> tuple[float, list[float]]:
        return 100.0, [200.0] * len(policies)

    def no_latency(*_: Any) -> tuple[Latency, Latency]:
        return Latency(2.0, 3.0), Latency(1.0, 2.0)

    speed = create_autospec(measure.measure_speed, side_effect=no_speed)
    latency = create_autospec(measure.measure_latency, side_effect=no_latency)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SPEED_ROUNDS", "SPEED_BATCHES", "SPEED_IMAGES"):
            patch.setattr(measure, name, 1)
        patch.setattr(programs, "worthwhile", lambda _seconds, _most: rows.USUAL)
        for room in (bench, findings):
            patch.setattr(room, "measure_latency", latency)
        for room in (bench, findings, reporting):
            patch.setattr(room, "measure_speed", speed)
        yield


@pytest.fixture(autouse=True, scope="session")
def _drawn_small() -> Iterator[None]:
    """What the figure of each tested epoch looks like is a matter of test_figures.py; in hundreds of small runs it
    is blank."""

    def blank(usage: list[float], stage_sizes: tuple[int, ...]) -> Figure:
        assert len(usage) == sum(stage_sizes)
        return Figure(figsize=(0.1, 0.1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_epoch, "usage_per_block", blank)
        yield


def randomise_statistics(module: torch.nn.Module) -> None:
    """Gives every BatchNorm statistics and weights that matter, as a trained network has."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, std=0.1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, std=0.1)


@pytest.fixture
def make_resnet() -> Callable[..., DroppableResNet]:
    """A ResNet of the zoo in eval mode, with BatchNorm statistics that matter."""

    def make(name: str, **options: Any) -> DroppableResNet:
        resnet, _ = build(name, **options)
        randomise_statistics(resnet)
        return resnet.eval()

    return make


@pytest.fixture
def make_static() -> Callable[..., Backbone]:
    """Any network of the zoo in eval mode, with BatchNorm statistics that matter."""

    def make(name: str, **options: Any) -> Backbone:
        net = build_static(name, **options)
        randomise_statistics(net)
        return net.eval()

    return make


def dynamic_of(
    network: Network,
    policy_network: PolicyNetwork | None = None,
    normalisation: Normalisation = NORMALISATIONS["half"],
    threshold: float | None = None,
) -> DynamicNetwork:
    """A network of the zoo, and its policy network at a threshold."""
    assert network.built_from is not None
    assert network.image_size is not None
    point = None if threshold is None else {"threshold": threshold}
    model, variant = network.built_from
    preprocessing = Preprocessing.usual(network.image_size, normalisation)
    return DynamicNetwork(
        network, policy_network, model=model, variant=variant, preprocessing=preprocessing, operating_point=point
    )


def write_image_tree(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6, size: int = 32
) -> Path:
    """train/ and test/ with `count` noise images a class; each class has its own brightness."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                low = 100 * number % 150
                pixels = generator.integers(low, low + 100, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:04}.png")
    return root


@pytest.fixture
def image_tree(tmp_path: Path) -> Path:
    """Two classes, six training and six test images each, 32 px."""
    return write_image_tree(tmp_path / "tree")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command module as its command line would: (exit code, stdout, last line of stderr)."""

    def run(module: Any, *flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
        config_class = getattr(module, "METHODS", None) or next(
            value
            for name, value in vars(module).items()
            if name.endswith("Config") and getattr(value, "__module__", "") == module.__name__
        )
        capsys.readouterr()
        try:
            run_command(module.main, config_class, module.__doc__)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        lines = [line for line in captured.err.replace("\r", "\n").splitlines() if line.strip()]
        return code, captured.out, lines[-1] if lines else ""

    return run
