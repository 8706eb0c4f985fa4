"""What `doctor` finds out about the machine, a data folder, a run directory and a checkpoint."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from blockdrop.data import DataSource, UnreadableImageError
from blockdrop.data.files import ImageFiles
from blockdrop.data.sets import LARGEST_IN_MEMORY
from blockdrop.data.shards import find_shards
from blockdrop.errors import BlockdropError, DataError, require
from blockdrop.loading import assemble, recorded_size
from blockdrop.models.checkpoints.dialects import Checkpoint, read_checkpoint, stage_sizes
from blockdrop.models.checkpoints.filling import describe_depth, load_checkpoint, network_from
from blockdrop.models.checkpoints.tensor_pickle import one_line
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.sources import open_source
from blockdrop.models.specs import ForeignSpec, ModelSpec, parse_model_name, parse_name
from blockdrop.training.compute import has_fast_bfloat16
from blockdrop.training.opening import check_classes, renamed
from blockdrop.training.run_directory import LOCK_FILE, check_usable, own_files, read_flags, read_metrics
from blockdrop.training.state import read_state
from blockdrop.version import project_version

GIB = 1 << 30
Fact = tuple[str, str]
"""What it is about, and what there is to say."""
LONGEST = 2000
"""So many letters of a fact are shown."""
SHARED_MEMORY, LITTLE_SHARED = "/dev/shm", 0.5
"""Where processes that read images put them, and GiB that are too little for some."""
TRIED = 32
"""So many images of a part are read."""
CIFAR_FOLDERS = {"cifar-10-batches-py": "C10", "cifar-100-python": "C100"}
"""As torchvision unpacks them."""


def show(title: str, find: Callable[[], Iterator[Fact]]) -> bool:
    """Prints a part; returns whether it is in order."""
    print(title)
    try:
        for name, value in find():
            print(f"  {name:<18} {one_line(value, LONGEST)}")  # names and flags may hold a terminal's commands
    except BlockdropError as error:
        print(f"  {'PROBLEM':<18} {one_line(error, LONGEST)}")
        return False
    except BrokenPipeError:  # nobody reads on
        raise
    except OSError as error:
        print(f"  {'PROBLEM':<18} {one_line(f'{error.filename}: {error.strerror or error}', LONGEST)}")
        return False
    return True


def machine() -> Iterator[Fact]:
    """Processor, memory, torch and what stands beside it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    yield "processor", f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB"
    if os.path.isdir(SHARED_MEMORY):
        found = os.statvfs(SHARED_MEMORY)
        free = found.f_bavail * found.f_frsize / GIB
        mend = "; images of more than 64 px want more (docker run --shm-size=8g), or --workers 0"
        yield "shared memory", f"{free:.2f} GiB free{mend if free < LITTLE_SHARED else ''}"
    yield "blockdrop", project_version()
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    fast = has_fast_bfloat16(torch.device("cpu"))
    yield "bfloat16", "fast: --precision auto trains with it" if fast else "slow here: --precision auto is float32"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            yield f"cuda:{number}", f"{device.name}, {device.total_memory / GIB:.0f} GiB"
    else:
        yield "GPU", "none that torch can use"
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    yield "torch.compile", f"C++ compiler {compiler}" if compiler else "no C++ compiler, so none on the CPU"
    backends = [name for name in ("gloo", "nccl") if getattr(torch.distributed, f"is_{name}_available")()]
    yield "torchrun", f"processes talk by {' or '.join(backends)}" if backends else "not in this torch"
    for package, use in {"openvino": "the fastest inference on CPUs", "onnx": "export"}.items():
        yield package, f"{installed(package)} ({use})"


def installed(package: str) -> str:
    """The version of a package, without importing it."""
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return version(package)
    except PackageNotFoundError:
        return "version unknown"


def data_folder(folder: str, model: str | None) -> Iterator[Fact]:
    """What `--data_dir` holds for a model's data set."""
    yield "folder", folder
    if Path(folder).name in CIFAR_FOLDERS and not os.path.isdir(Path(folder) / "train"):
        raise DataError(f"{folder}: torchvision's CIFAR itself; --data_dir is the folder that it lies in")
    for name in [model] if model else [f"R32_{dataset}" for dataset in data_sets(Path(folder))]:
        yield from data_set(folder, name)


def data_sets(folder: Path) -> list[str]:
    """Names of the data sets that a folder seems to hold."""
    if os.path.isdir(folder / "train") or find_shards(folder):
        return ["Folder"]
    return [name for part, name in CIFAR_FOLDERS.items() if os.path.isdir(folder / part)] or ["Folder"]


def data_set(folder: str, model: str) -> Iterator[Fact]:
    """What there is of a model's data set, by its labels and a few of its images; it isn't decoded whole.

    Raises:
        DataError: it is missing or damaged; some of those images can't be read.
    """
    spec = parse_name(model)
    start = time.perf_counter()
    side = spec.image_size if isinstance(spec, ModelSpec) else 2 * LARGEST_IN_MEMORY  # large images aren't decoded
    source = DataSource(spec.dataset, folder, side)
    if source.cifar is not None:
        yield "data set", f"torchvision's {'CIFAR-10' if spec.dataset == 'C10' else 'CIFAR-100'}, checksums right"
    names = ", ".join(one_line(name, 40) for name in source.classes[:8])
    yield "classes", f"{source.num_classes} ({names}{', …' if source.num_classes > 8 else ''})"
    bad: list[UnreadableImageError] = []
    tried = 0
    for title, train in (("training images", True), ("test images", False)):
        files = source.files(train)
        labels = (source.train if train else source.test).labels.numpy() if files is None else files.labels
        counts = np.bincount(labels, minlength=source.num_classes)
        yield title, f"{len(labels):,}; {counts.min():,} to {counts.max():,} of a class"
        if files is not None:
            rows = np.unique(np.linspace(0, len(labels) - 1, TRIED).astype(int)).tolist()
            tried += len(rows)
            bad += filter(None, (fault(files, row) for row in rows))
    yield "opened in", f"{time.perf_counter() - start:.1f} s"
    if bad:
        said = f"{len(bad)} of {tried} images tried can't be read, the first {bad[0].name} ({bad[0].reason})"
        mend = "remove or replace them, or pass --skip_bad_images"
        raise DataError(f"{said}; {mend if len(bad) < tried else 'see that the data are all there'}")
    if tried:
        yield "images tried", f"{tried}, all readable"


def fault(files: ImageFiles, row: int) -> UnreadableImageError | None:
    """What is wrong with an image."""
    try:
        files.read(row)
    except UnreadableImageError as error:
        return error
    return None


def run_directory(folder: Path) -> Iterator[Fact]:
    """What a run directory holds, and whether `--resume` can go on with it."""
    yield "folder", str(folder)
    require(bool(own_files(folder)), f"{folder}: no run in it")
    flags = read_flags(folder)
    command = flags.get("command", "unknown: config.json is missing or damaged")
    shown = (one_line(value, 60) for value in (command, flags.get("model", ""), flags.get("max_epochs", "?")))
    yield "command", "{} {}, {} epochs".format(*shown)
    yield "checkpoints", str(len(list(folder.glob("ckpt_E_*.t7"))))
    yield "free on its disk", f"{shutil.disk_usage(folder).free / GIB:.1f} GiB"
    check_usable(folder, overwrite=False, resume=True)
    state, training = read_state(folder), in_use(folder)
    sizes = {} if state is None else state["logs"]
    for name, size in sizes.items():
        long_enough = not (folder / name).exists() or (folder / name).stat().st_size >= size
        require(long_enough, f"{folder / name}: shorter than it was; the run can't go on with it")
    lines = read_metrics(folder, None if training else sizes.get("metrics.jsonl"))
    tests = [line for line in lines if line["phase"] == "test"]
    if tests:
        accuracy = tests[-1].get("accuracy")
        is_share = isinstance(accuracy, float) or accuracy in (0, 1)
        known = f"accuracy {accuracy:.4f}" if is_share else "without an accuracy"
        yield "last test", f"epoch {one_line(tests[-1]['epoch'], 40)}, {known}"
    if training:
        yield "resume", "a process trains there now"
    elif state is None:
        yield "resume", "nothing was done yet: --resume begins the run"
    elif state["finished"]:
        yield "resume", "the run is finished"
    else:
        yield "resume", f"the same command with --resume goes on at epoch {state['epoch']}, batch {state['batch']}"


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder's lock.

    Raises:
        BlockdropError: it can't be asked.
    """
    path = folder / LOCK_FILE
    if not os.path.lexists(path):
        return False
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BlockdropError(f"{path}: can't be locked ({reason}), so no run can go on here; remove it") from None


def checkpoint_file(path: str, model: str | None, data_dir: str | None = None) -> Iterator[Fact]:
    """What a checkpoint holds; raises `BlockdropError` where it doesn't fit together, or doesn't fit the data."""
    checkpoint = read_checkpoint(path)
    yield "file", f"{checkpoint.path} ({os.path.getsize(checkpoint.path):,} bytes)"
    kinds = {"blockdrop": f"ours, version {checkpoint.version}", "reference": "the BlockDrop reference's"}
    yield "dialect", kinds.get(checkpoint.dialect, "torchvision's")
    name = model or checkpoint.model
    if checkpoint.resnet is not None:
        depth = describe_depth(stage_sizes(checkpoint.resnet), "blocks.0.0.conv3.weight" in checkpoint.resnet)
        yield "backbone", f"{name or depth}, {parameters(checkpoint.resnet)}, {checkpoint.num_classes} classes"
        yield "shortcuts", str(checkpoint.shortcut)
    if checkpoint.policy_network is not None:
        yield "policy network", f"{checkpoint.policy_net}, {parameters(checkpoint.policy_network)}"
    if checkpoint.operating_point is not None:
        yield "operating point", operating_point(checkpoint.operating_point)
    if checkpoint.metrics:
        shown = (f"{key} {value:.4g}" for key, value in list(checkpoint.metrics.items())[:5])
        after = "" if checkpoint.epoch is None else f"after epoch {checkpoint.epoch}: "
        yield "metrics", after + ", ".join(shown)
    if name is None:
        yield "fits", "not tried: the file doesn't say which model it is of; pass --model"
    elif checkpoint.origin is not None and model is None and not built_by_name(checkpoint):
        yield "fits", f"not tried: only its owner's code builds a {name}; pass its function as --model"
    else:
        build_from(checkpoint, name)
        yield "fits", f"{name}: every tensor has its place"
    if data_dir is not None:
        yield "classes", classes_beside(checkpoint, name, data_dir)


def classes_beside(checkpoint: Checkpoint, model: str | None, folder: str) -> str:
    """Whether a checkpoint and a data folder mean the same classes; raises `CheckpointError` where they don't."""
    dataset = data_sets(Path(folder))[0] if model is None else parse_name(model).dataset
    try:
        data = DataSource(dataset, folder, classes=checkpoint.classes or ())
    except BlockdropError:  # the part about the data says why
        return "not compared: the data can't be opened"
    if checkpoint.num_classes is None:
        return "not compared: the file holds no classifier"
    check_classes(checkpoint, data)
    if checkpoint.classes is not None:
        return "those of the data, in the same order"
    return next(renamed([checkpoint], data), "as many as the data have; the file doesn't name its own")


def operating_point(point: dict[str, Any]) -> str:
    """The thresholds that are stored, and what for."""
    threshold, budget = f"threshold {point['threshold']:.4g}", point["budget"]
    if "answer_threshold" in point:
        threshold += f", answers from {point['answer_threshold']:.4g} on"
    return threshold if budget is None else f"{threshold}, for {100 * budget:.4g} % of the full network's FLOPs"


def built_by_name(checkpoint: Checkpoint) -> bool:
    """Whether the name in the file is a library's network: nobody's function is called because a file names it."""
    spec = parse_name(checkpoint.model) if checkpoint.model and ":" in checkpoint.model else None
    return isinstance(spec, ForeignSpec) and not spec.is_function


def build_from(checkpoint: Checkpoint, name: str) -> None:
    """Raises `BlockdropError` unless the checkpoint fills the networks that it holds."""
    if ":" in name:
        assemble(open_source(parse_name(name), image_size=recorded_size([checkpoint])), [checkpoint])
        return
    spec = parse_model_name(name)
    network = None if checkpoint.resnet is None else network_from(checkpoint, spec)
    if checkpoint.policy_network is not None:
        blocks = len(checkpoint.policy_network["logit.weight"]) if network is None else network.num_blocks
        decider = build_policy_network(blocks, spec.large_images, checkpoint.policy_net, backbone=network)
        load_checkpoint(checkpoint, policy_network=decider)


def parameters(state: dict[str, Any]) -> str:
    """How many numbers a state dict holds, BatchNorm's statistics included."""
    return f"{sum(tensor.numel() for tensor in state.values()):,} values"
