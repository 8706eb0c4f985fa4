"""Make a trained network dynamic: train its policy network and the network itself, and compare it with the one
brought.

--recipe fast, answers, glance and one_policy run `finetune` with that recipe, --recipe reference runs `cl_train`
and then `finetune`. In Python `blockdrop.train(dynamic, train_data, test_data, ...)` does the same with a network
and data of the program's own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from blockdrop import cl_train, finetune
from blockdrop.calls import check_dynamic, check_whole, speaking_of_arguments
from blockdrop.console import run_command
from blockdrop.errors import Interrupted, require
from blockdrop.lazy import make_callable
from blockdrop.names import DEFAULT_POLICY_NET, INITIAL_KEEP, PolicyNet
from blockdrop.ranges import CheckpointName, Count, Range
from blockdrop.training.config import Groups, PolicyTrainingConfig, RunConfig

if TYPE_CHECKING:
    from blockdrop.callbacks import Callback
    from blockdrop.data import Data
    from blockdrop.dynamic import DynamicNetwork
    from blockdrop.report.table import Report

Recipe = Literal["fast", "answers", "glance", "one_policy", "reference"]
DECIDED = {
    "recipe", "model", "arch", "shortcut", "expansion", "reduction", "reduction_mode", "image_size",
    "normalisation", "policy_net", "initial_keep", "policy", "policy_init", "data_dir", "download",
    "skip_bad_images", "cv_dir", "pretrained", "load",
}  # fmt: skip
"""Flags of the commands that the network, the data and the arguments of `train` stand for."""
BUDGET_TOLERANCE = 0.02
"""A report says so where the test images cost this fraction of the full network more or less than the budget."""
ARGUMENTS = {"cv_dir": "run_dir", "target_flops": "budget", "max_epochs": "epochs"}
"""The arguments of `train` by the flags of the commands, where their names differ."""


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """Flags of `python -m blockdrop.train`."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "data_dir", "load", "cv_dir", "recipe", "budget", "epochs", "batch_size", "resume",
    )  # fmt: skip
    GROUPS: ClassVar[Groups] = {"report": ("speed",)}

    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of the trained network, of any dialect, or run directories. For R18_ImgNet to R152_ImgNet also
    the word torchvision, which fetches its weights."""
    recipe: Recipe = "fast"
    """What is trained. fast: the policy network and the ResNet, to meet --budget. answers: only the policy
    network, which learns to answer easy images; the ResNet stays as it is. glance: answers, then a policy for each
    other image; the ResNet is fine-tuned. one_policy: answers, then one policy for all other images; the ResNet is
    fine-tuned. reference: curriculum learning, then joint fine-tuning, as BlockDrop was published."""
    budget: Annotated[float, Range(above=0, most=1, meaning="a fraction of the full network's FLOPs")] | None = (
        None
    )
    """Mean cost to aim for, as a fraction of the full network's FLOPs, policy network included. Default: the
    recipe's."""
    epochs: Count | None = None
    """Number of epochs to train. answers: epochs in which the policy network learns to answer. fast, glance,
    one_policy: epochs of fine-tuning, after those for answers. reference: epochs of the curriculum, and as many
    of fine-tuning. Default: the recipe's."""
    batch_size: Count | None = None  # type: ignore[assignment]
    """Number of images in a batch. Default: the recipe's."""
    speed: bool = True
    """Measure images/s at the end."""


def main(config: TrainConfig) -> Report:
    """Opens the network and the data, trains, and prints the report."""
    from blockdrop.training.opening import open_networks  # torch, which --help does without
    from blockdrop.training.run_directory import check_usable

    config.check()
    check_usable(config.cv_dir, config.overwrite, config.load, config.resume)
    require(bool(config.load), "--load: name a trained network (python -m blockdrop.pretrain makes one)")
    opened = open_networks(
        config, config.load, policy="fresh", initial_keep=INITIAL_KEEP, usual_net=usual_net(config.recipe)
    )
    require(
        opened.has_backbone,
        f"--load {' '.join(config.load)}: no trained backbone in it; add a checkpoint that has one",
    )
    shared = ("seed", "device", "precision", "channels_last", "save_minutes", "keep_checkpoints", "report_to")
    given: dict[str, Any] = {flag: getattr(config, flag) for flag in shared}
    if config.batch_size is not None:
        given["batch_size"] = config.batch_size
    _, report = train(
        opened.dynamic,
        opened.data,
        recipe=config.recipe,
        budget=config.budget,
        epochs=config.epochs,
        run_dir=config.cv_dir,
        resume=config.resume,
        overwrite=config.overwrite,
        speed=config.speed,
        **given,
    )
    print(report)
    return report


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
    callbacks: Sequence[Callback] = (),
    **flags: Any,
) -> tuple[DynamicNetwork, Report]:
    """Trains a policy network that drops blocks, answers or both, and the network to do without dropped blocks.

    What `python -m blockdrop.finetune` does (`recipe="fast"`, "answers", "glance", "one_policy"), or `cl_train`,
    in `run_dir/curriculum`, and then `finetune` (`recipe="reference"`): with a progress bar, TensorBoard's curves,
    checkpoints, and several processes under torchrun.

    Args:
        dynamic: left as it is; see `make_dynamic`. Its parameters that require no gradient don't learn.
        train_data: a `torch.utils.data.Dataset` of (image, label) whose images are normalised float tensors
            (3, H, W), as `dynamic.transform` makes them, or a `DataLoader` of one; or a
            `blockdrop.data.DataSource`, which holds test images, too.
        test_data: the same, to test and report on.
        recipe: "fast": from a trained network, toward a budget; "answers": the policy network learns to answer
            easy images by itself, and the network stays as it is; "glance": both; "one_policy": answers in front
            of one policy that is learned for all images. To answer, a policy network has to see much of an image,
            as `make_dynamic(…, policy_net="reference")` makes. "reference": curriculum learning and joint
            fine-tuning, as BlockDrop was published.
        budget: mean cost to aim for, a fraction of the full network's FLOPs, policy network included; default: the
            recipe's.
        epochs: of each command, those in which answers are learned not counted; of "answers" just those; default:
            the recipe's.
        run_dir: folder of the run: checkpoints, curves, `report.json`; `blockdrop.load` takes it, too.
        resume: go on with the run in `run_dir`, if there is one, as if it had never stopped.
        overwrite: delete the run in `run_dir`.
        workers: processes that read a Dataset; a DataLoader has its own.
        speed: whether to measure images/s at the end.
        callbacks: are told what is logged, see `blockdrop.callbacks`.
        flags: any other flag of the commands, by its name: `batch_size=64, seed=1, lr=1e-4, device="cuda"`.
    Returns:
        the trained network in eval mode, and what it does on the test images beside the network as it was brought.
    Raises:
        BlockdropError: data that the network doesn't take, a flag that there isn't or that is out of range, a
            folder that holds another run.
        NumericalError: a loss that is no longer finite.
        KeyboardInterrupt: Ctrl-C; the state is saved, and `resume=True` goes on.
    """
    from agents.deciders import keep_all
    from blockdrop.data import as_data
    from blockdrop.measure import evaluate_images
    from blockdrop.output import write_json
    from blockdrop.reporting import report_on
    from blockdrop.training.opening import open_session
    from blockdrop.training.run_directory import check_usable, own_files

    check_dynamic(dynamic)
    check_whole("workers", workers, 0)
    data = as_data(
        train_data,
        test_data,
        image_size=dynamic.image_size,
        num_classes=dynamic.num_classes,
        classes=dynamic.classes,
        workers=workers,
    )
    given = {"target_flops": budget, "max_epochs": epochs, "batch_size": getattr(train_data, "batch_size", None)}
    wanted = {flag: value for flag, value in given.items() if value is not None} | flags
    wanted |= {"resume": resume, "overwrite": overwrite}
    if "device" in wanted:
        wanted["device"] = str(wanted["device"])  # a torch.device, too
    configs = plan(recipe, Path(run_dir), dynamic, wanted)
    for config in configs:
        config.check()
        check_usable(config.cv_dir, overwrite, resume=resume)
    report_file = Path(configs[-1].cv_dir) / "report.json"
    require(
        overwrite or not report_file.exists() or report_file in own_files(report_file.parent),
        f"--cv_dir {run_dir}: holds a report.json that is no run's; name another folder, or pass --overwrite to "
        "replace it",
    )
    trained = copy_to_train(dynamic, data, configs[-1].seed, recipe)
    compute = configs[-1].compute()
    brought = evaluate_images(trained, data.test, compute.in_float32(), decider=keep_all(trained.num_blocks))
    for config in configs:
        command: Any = cl_train if isinstance(config, cl_train.CurriculumConfig) else finetune
        name = command.__name__.rpartition(".")[2]
        session = open_session(config, name, trained, data, compute, network=digest(trained), callbacks=callbacks)
        with session.run:
            session.announce(f"{name}, recipe {recipe}:", trained, data, ["the network given"])
            command.train(trained, data, session)
    trained.eval()
    report = report_on(trained, data.test, compute.in_float32(), brought, speed)
    target = getattr(configs[-1], "target_flops", None)
    share = report.flops_share(report.rows[-1])
    if target is not None and abs(share - target) > BUDGET_TOLERANCE:
        note = f"The budget of {100 * target:.4g}% isn't met: images cost {100 * share:.1f}%."
        if report.rows[-1].policies == 1:
            note += " All images have the same policy yet, so no threshold meets it; train for more epochs."
        report = replace(report, notes=[*report.notes, note])
    if compute.processes.first:
        write_json("run_dir", report_file, report.to_json())
    return trained, report


def plan(
    recipe: Recipe, run_dir: Path, dynamic: DynamicNetwork, flags: dict[str, Any]
) -> list[PolicyTrainingConfig]:
    """The flags of a recipe's commands, one after the other.

    Raises:
        BlockdropError: a recipe or a flag that there isn't.
    """
    import difflib
    import inspect

    classes: dict[str, type[PolicyTrainingConfig]] = {"": finetune.FinetuneConfig}
    if recipe == "reference":
        classes = {"curriculum": cl_train.CurriculumConfig, "": finetune.FinetuneConfig}
    require(recipe in get_args(Recipe), f"recipe {recipe!r}: choose {', '.join(get_args(Recipe))}")
    budget = flags.get("target_flops")
    require(
        budget is None or 0 < budget <= 1,
        f"budget {budget}: must be above 0 and at most 1, a fraction of the full network's FLOPs",
    )
    known = {field.name for cls in classes.values() for field in fields(cls)} - DECIDED
    own_names = set(inspect.signature(train).parameters) - {"flags"}
    for flag in flags:
        nearest = difflib.get_close_matches(flag, sorted(known - ARGUMENTS.keys() | own_names), 1)
        mend = f"did you mean {nearest[0]}?" if nearest else f"choose {', '.join(sorted(known))}"
        require(flag in known, f"{flag}: blockdrop.train has no such flag; {mend}")
    configs = []
    for folder, cls in classes.items():
        own = {flag: value for flag, value in flags.items() if flag in {field.name for field in fields(cls)}}
        if recipe == "answers" and "max_epochs" in own:
            own["answer_epochs"] = own.pop("max_epochs")
        if cls is cl_train.CurriculumConfig and "max_epochs" in own:
            # so that the curriculum comes to decide all blocks
            own.setdefault("cl_step", -(-dynamic.num_blocks // own["max_epochs"]))
        own |= {"cv_dir": str(run_dir / folder), "policy_net": dynamic.policy_net or usual_net(recipe)}
        configs.append(cls.of_recipe(recipe, **own))
    return configs


def usual_net(recipe: Recipe) -> PolicyNet:
    """The policy network of a network that has none."""
    return "reference" if recipe in ("answers", "glance", "one_policy") else DEFAULT_POLICY_NET


def copy_to_train(dynamic: DynamicNetwork, data: Data, seed: int, recipe: Recipe = "fast") -> DynamicNetwork:
    """A copy with the data's class names, and with a fresh policy network if there was none."""
    import copy

    import torch

    from blockdrop.data.sets import LARGEST_IN_MEMORY
    from blockdrop.models.policy_networks import build_policy_network

    require(dynamic.network.droppable, f"{dynamic.model}: has no blocks that could be dropped")
    trained = copy.deepcopy(dynamic)
    trained.classes = trained.classes or list(data.classes)
    if trained.policy_network is None:
        torch.manual_seed(seed)
        policy_network = build_policy_network(
            trained.num_blocks,
            trained.image_size > LARGEST_IN_MEMORY,
            usual_net(recipe),
            backbone=trained.network,
            initial_keep=INITIAL_KEEP,
        )
        trained.set_policy_network(policy_network)
    return trained


def digest(dynamic: DynamicNetwork) -> str:
    """What a resumed run must find again of the networks that it began with: 16 hexadecimal digits."""
    import hashlib

    import torch

    found = hashlib.sha256()
    for name, value in dynamic.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


@contextlib.contextmanager
def _as_a_program(device: str) -> Iterator[None]:
    """What the commands' console does for them: torchrun's processes, of which one speaks; Ctrl-C in a program's
    words."""
    import io

    import torch.distributed as dist

    from blockdrop.processes import current_processes, joined

    try:
        with contextlib.ExitStack() as stack:
            if not dist.is_initialized():
                stack.enter_context(joined(device))
            if not current_processes().first:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            yield
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop}; call again with resume=True to go on") from None


def _call(dynamic: DynamicNetwork, *data: Any, **options: Any) -> tuple[DynamicNetwork, Report]:
    """See `blockdrop.train.train`."""
    with speaking_of_arguments(ARGUMENTS), _as_a_program(str(options.get("device", "auto"))):
        return train(dynamic, *data, **options)


make_callable(sys.modules[__name__], _call)

if __name__ == "__main__":
    run_command(main, TrainConfig, __doc__)
