"""Python's door to training and evaluation: what the commands do, for networks and data that a program holds."""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from agents.deciders import Learned, keep_all
from blockdrop import cl_train, finetune
from blockdrop.data import Data, as_data, as_images
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import Interrupted, require
from blockdrop.loading import INITIAL_KEEP
from blockdrop.measure import evaluate_images, executor, look_through, measure_speed
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.names import EngineName, Precision
from blockdrop.output import write_json
from blockdrop.policy_stats import Outcomes
from blockdrop.processes import joined
from blockdrop.report.table import Report, Row
from blockdrop.training.compute import Compute, choose_compute
from blockdrop.training.config import PolicyTrainingConfig
from blockdrop.training.opening import open_session

DECIDED = {
    "recipe", "model", "arch", "shortcut", "expansion", "reduction", "reduction_mode", "image_size",
    "normalisation", "policy_net", "initial_keep", "policy", "policy_init", "data_dir", "download",
    "skip_bad_images", "cv_dir",
    "pretrained", "load",
}  # fmt: skip
"""Flags of the commands that the network, the data and the arguments of `train` stand for."""
BROUGHT, TUNED, DYNAMIC = "as brought", "full network, fine-tuned", "dynamic"
"""Names of a report's rows."""
Recipe = Literal["fast", "reference"]


def train(
    dynamic: DynamicNetwork,
    train_data: Any,
    test_data: Any = None,
    *,
    recipe: Recipe = "fast",
    budget: float | None = None,
    epochs: int | None = None,
    run_dir: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    speed: bool = True,
    **flags: Any,
) -> tuple[DynamicNetwork, Report]:
    """Teaches the policy network which blocks each image needs, and the network to do without the others.

    What `python -m blockdrop.finetune` does (`recipe="fast"`), or `cl_train` and then `finetune`
    (`recipe="reference"`, in two folders of `run_dir`): with a progress bar, TensorBoard's curves, checkpoints,
    and several processes under torchrun.

    Args:
        dynamic: left as it is; see `make_dynamic`.
        train_data: a `torch.utils.data.Dataset` of (image, label) whose images are normalised float tensors
            (3, H, W), as `dynamic.transform` makes them, or a `DataLoader` of one; or a
            `blockdrop.data.DataSource`, which holds test images, too.
        test_data: the same, to test and report on.
        recipe: "fast": from a trained network, toward a budget; "reference": curriculum learning and joint
            fine-tuning, as BlockDrop was published.
        budget: mean cost to aim for, a fraction of the full network's FLOPs, policy network included; default: the
            recipe's.
        epochs: of each command; default: the recipe's.
        run_dir: folder of the run: checkpoints, curves, `report.json`.
        resume: go on with the run in `run_dir`, if there is one, as if it had never stopped.
        overwrite: delete the run in `run_dir`.
        workers: processes that read a Dataset; a DataLoader has its own.
        speed: whether to measure images/s at the end.
        flags: any other flag of the commands, by its name: `batch_size=64, seed=1, lr=1e-4, device="cuda"`.
    Returns:
        the trained network in eval mode, and what it does on the test images beside the network as it was brought.
    Raises:
        BlockdropError: data that the network doesn't take, a flag that there isn't or that is out of range, a
            folder that holds another run.
        NumericalError: a loss that is no longer finite.
        KeyboardInterrupt: Ctrl-C; the state is saved, and `resume=True` goes on.
    """
    data = as_data(
        train_data,
        test_data,
        image_size=dynamic.image_size,
        num_classes=dynamic.num_classes,
        classes=dynamic.classes,
        workers=workers,
    )
    batch_size = getattr(train_data, "batch_size", None)
    given = {"target_flops": budget, "max_epochs": epochs, "batch_size": batch_size}
    wanted = {flag: value for flag, value in given.items() if value is not None} | flags
    wanted |= {"resume": resume, "overwrite": overwrite}
    configs = _configs(recipe, Path(run_dir), dynamic, wanted)
    for config in configs:
        config.check()
    trained = _copy_to_train(dynamic, data, configs[-1])
    with _torchrun(configs[-1].device), _ctrl_c():
        compute = configs[-1].compute()
        brought = evaluate_images(trained, data.test, compute.in_float32(), decider=keep_all(trained.num_blocks))
        for config in configs:
            command = _command(config)
            name = command.__name__.rpartition(".")[2]
            session = open_session(config, name, trained, data, compute, network=_digest(trained))
            with session.run:
                session.announce(f"{name}, recipe {recipe}:", trained, data, ["the network given"])
                command.train(trained, data, session)
        trained.eval()
        report = _report(trained, data.test, compute.in_float32(), brought, speed)
        if compute.processes.first:
            write_json("run_dir", Path(run_dir) / "report.json", report.to_json())
    return trained, report


def evaluate(
    dynamic: DynamicNetwork,
    data: Any,
    *,
    threshold: float | None = None,
    batch_size: int = 256,
    speed: bool = True,
    engine: EngineName = "auto",
    device: str = "auto",
    precision: Precision = "float32",
    workers: int = 0,
) -> Report:
    """What a dynamic network does on images, beside the same network with all its blocks.

    Args:
        dynamic: left as it is.
        data: test images, as for `train`; a `DataSource` stands for its test part.
        threshold: in place of the network's own.
        batch_size: images per batch; of a DataLoader its collate function and workers are kept.
        speed: whether to measure images/s.
        engine, precision: see `blockdrop.compile`.
    Raises:
        BlockdropError: data that the network doesn't take.
    """
    images = as_images(data, dynamic.image_size, dynamic.num_classes, workers=workers)
    compute = choose_compute(device, precision)
    return _report(
        dynamic, images, compute, None, speed, threshold=threshold, batch_size=batch_size, engine=engine
    )


def _report(
    dynamic: DynamicNetwork,
    images: Any,
    compute: Compute,
    brought: Outcomes | None,
    speed: bool,
    *,
    threshold: float | None = None,
    batch_size: int = 256,
    engine: EngineName = "auto",
) -> Report:
    policy_network, num_blocks = dynamic.policy_network, dynamic.num_blocks
    full_run = executor(dynamic.network, None, compute, engine)
    run = full_run if policy_network is None else executor(dynamic.network, policy_network, compute, engine)
    full = evaluate_images(
        dynamic, images, compute, decider=keep_all(num_blocks), run=full_run, batch_size=batch_size
    )
    own, at = full, dynamic.threshold if threshold is None else threshold
    if policy_network is not None:
        decider = Learned(look_through(run, compute.processes), num_blocks, at)
        own = evaluate_images(dynamic, images, compute, decider=decider, run=run, batch_size=batch_size)
    full_speed: float | None = None
    own_speed: float | None = None
    if speed:
        policies = [] if policy_network is None else [at]
        full_speed, speeds = measure_speed(
            full_run, run, images, dynamic.normalisation, batch_size=batch_size, policies=policies
        )
        own_speed = speeds[0] if speeds else full_speed
    rows = [Row.of("full network", full, full_speed)]
    if brought is not None:
        rows = [Row.of(BROUGHT, brought, full_speed), Row.of(TUNED, full, full_speed)]
    if policy_network is not None:
        rows.append(Row.of(DYNAMIC, own, own_speed))
    return Report(rows)


def _configs(
    recipe: Recipe, run_dir: Path, dynamic: DynamicNetwork, flags: dict[str, Any]
) -> list[PolicyTrainingConfig]:
    """The commands of a recipe, one after the other."""
    classes: list[type[PolicyTrainingConfig]] = [finetune.FinetuneConfig]
    if recipe == "reference":
        classes = [cl_train.CurriculumConfig, finetune.FinetuneConfig]
    require(recipe in ("fast", "reference"), f"recipe {recipe!r}: choose fast or reference")
    known = {field.name for cls in classes for field in fields(cls)} - DECIDED
    for flag in flags:
        nearest = difflib.get_close_matches(flag, known, 1)
        mend = f"did you mean {nearest[0]}?" if nearest else f"choose {', '.join(sorted(known))}"
        require(flag in known, f"{flag}: blockdrop.train has no such flag; {mend}")
    configs = []
    for cls in classes:
        own = {flag: value for flag, value in flags.items() if flag in {field.name for field in fields(cls)}}
        folder = run_dir if len(classes) == 1 else run_dir / _command_name(cls)
        if cls is cl_train.CurriculumConfig and "max_epochs" in own:
            # so that the curriculum comes to decide all blocks
            own.setdefault("cl_step", -(-dynamic.num_blocks // own["max_epochs"]))
        own |= {"cv_dir": str(folder), "policy_net": dynamic.policy_net}
        configs.append(cls.of_recipe(recipe, **own))
    return configs


def _command_name(config_class: type[PolicyTrainingConfig]) -> str:
    return "curriculum" if config_class is cl_train.CurriculumConfig else "finetune"


def _command(config: PolicyTrainingConfig) -> Any:
    """The module whose loop runs a config."""
    return cl_train if isinstance(config, cl_train.CurriculumConfig) else finetune


def _copy_to_train(dynamic: DynamicNetwork, data: Data, config: PolicyTrainingConfig) -> DynamicNetwork:
    """A copy with the data's class names, and a policy network if there was none."""
    require(dynamic.network.droppable, f"{dynamic.model}: has no blocks that could be dropped")
    trained = copy.deepcopy(dynamic)
    trained.classes = trained.classes or list(data.classes)
    if trained.policy_network is None:
        torch.manual_seed(config.seed)
        network = build_policy_network(
            trained.num_blocks,
            trained.image_size > 64,
            "stem",
            backbone=trained.network,
            initial_keep=INITIAL_KEEP,
        )
        trained.set_policy_network(network, "stem")
    return trained


def _digest(dynamic: DynamicNetwork) -> str:
    """What a resumed run must find again of the networks that it began with."""
    found = hashlib.sha256()
    for name, value in dynamic.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


@contextlib.contextmanager
def _torchrun(device: str) -> Iterator[None]:
    """The process group that torchrun asks for, unless the program has made it."""
    with contextlib.nullcontext() if dist.is_initialized() else joined(device):
        yield


@contextlib.contextmanager
def _ctrl_c() -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop}; call again with resume=True to go on") from None
