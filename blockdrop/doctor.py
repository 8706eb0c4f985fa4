"""One screen: what this machine can do, what a data folder holds, whether a run can go on, what ails a checkpoint.

Without flags only the machine is looked at. Exit code 1 if something asked about is not in order.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from blockdrop.console import run_command
from blockdrop.data import DataSource
from blockdrop.errors import UserError, require
from blockdrop.models.checkpoints import (
    Checkpoint,
    describe_depth,
    load_checkpoint,
    network_from,
    project_version,
    read_checkpoint,
    stage_sizes,
)
from blockdrop.models.deciders import build_policy_network
from blockdrop.models.zoo import parse_model_name
from blockdrop.training.compute import has_fast_bfloat16
from blockdrop.training.run_directory import LOCK_FILE, check_usable, own_files, read_flags, read_metrics
from blockdrop.training.state import read_state

GIB = 1 << 30
Fact = tuple[str, str]
"""What it is about, and what there is to say."""


@dataclass(kw_only=True)
class DoctorConfig:
    """Flags of `python -m blockdrop.doctor`."""

    model: str | None = None
    """R<depth>_<dataset>: whose data set --data_dir holds and whose weights --load; default: a folder of any
    classes, and what the checkpoint says of itself."""
    data_dir: str | None = None
    """Data folder to look at."""
    cv_dir: str | None = None
    """Run directory to look at."""
    load: str | None = None
    """Checkpoint (or run directory, for its newest) to look at."""


def main(config: DoctorConfig) -> bool:
    """Prints what there is to say; returns whether all is in order.

    Raises:
        SystemExit: with exit code 1 where it isn't.
    """
    if config.model is not None:
        parse_model_name(config.model)
    parts: dict[str, Callable[[], Iterator[Fact]]] = {"machine": machine}
    if config.data_dir is not None:
        parts["data"] = lambda: data_folder(str(config.data_dir), config.model)
    if config.cv_dir is not None:
        parts["run"] = lambda: run_directory(Path(str(config.cv_dir)))
    if config.load is not None:
        parts["checkpoint"] = lambda: checkpoint_file(str(config.load), config.model)
    well = [show(title, find) for title, find in parts.items()]
    if not all(well):
        sys.exit(1)
    return True


def show(title: str, find: Callable[[], Iterator[Fact]]) -> bool:
    """Prints a part; returns whether it is in order."""
    print(title)
    try:
        for name, value in find():
            print(f"  {name:<18} {value}")
    except UserError as error:
        print(f"  {'PROBLEM':<18} {error}")
        return False
    return True


def machine() -> Iterator[Fact]:
    """Processor, memory, torch and what stands beside it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    yield "processor", f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB"
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
    spec = parse_model_name(model or "R32_Folder")
    yield "folder", folder
    source = DataSource(spec.dataset, folder, spec.image_size)
    names = ", ".join(source.classes[:8]) + (", …" if source.num_classes > 8 else "")
    yield "classes", f"{source.num_classes} ({names})"
    start = time.perf_counter()
    for name, images in (("training images", source.train), ("test images", source.test)):
        counts = images.labels.bincount(minlength=source.num_classes).tolist()
        yield name, f"{len(images):,}; {min(counts):,} to {max(counts):,} of a class"
    yield "opened in", f"{time.perf_counter() - start:.1f} s, for {spec.image_size} px"


def run_directory(folder: Path) -> Iterator[Fact]:
    """What a run directory holds, and whether `--resume` can go on with it."""
    yield "folder", str(folder)
    require(bool(own_files(folder)), f"{folder}: no run in it")
    flags = read_flags(folder)
    command = flags.get("command", "unknown: config.json is missing or damaged")
    yield "command", f"{command} {flags.get('model', '')}, {flags.get('max_epochs', '?')} epochs"
    tests = [line for line in read_metrics(folder) if line["phase"] == "test"]
    if tests:
        yield "last test", f"epoch {tests[-1]['epoch']}, accuracy {tests[-1]['accuracy']:.4f}"
    yield "checkpoints", str(len(list(folder.glob("ckpt_E_*.t7"))))
    yield "free on its disk", f"{shutil.disk_usage(folder).free / GIB:.1f} GiB"
    check_usable(folder, overwrite=False, resume=True)
    state = read_state(folder)
    if in_use(folder):
        yield "resume", "a process trains there now"
    elif state is None:
        yield "resume", "nothing was done yet: --resume begins the run"
    elif state["finished"]:
        yield "resume", "the run is finished"
    else:
        yield "resume", f"the same command with --resume goes on at epoch {state['epoch']}, batch {state['batch']}"


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    if not (folder / LOCK_FILE).exists():
        return False
    try:
        with FileLock(folder / LOCK_FILE, blocking=False):
            return False
    except Timeout:
        return True


def checkpoint_file(path: str, model: str | None) -> Iterator[Fact]:
    """What a checkpoint holds; raises `UserError` where it doesn't fit together."""
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
    if checkpoint.metrics:
        shown = (f"{key} {value:.4g}" for key, value in list(checkpoint.metrics.items())[:5])
        yield "metrics", f"after epoch {checkpoint.epoch}: {', '.join(shown)}"
    if name is None:
        yield "fits", "not tried: the file doesn't say which model it is of; pass --model"
    else:
        build_from(checkpoint, name)
        yield "fits", f"{name}: every tensor has its place"


def build_from(checkpoint: Checkpoint, name: str) -> None:
    """Raises `UserError` unless the checkpoint fills the networks that it holds."""
    spec = parse_model_name(name)
    network = None if checkpoint.resnet is None else network_from(checkpoint, spec)
    if checkpoint.policy_network is not None:
        blocks = len(checkpoint.policy_network["logit.weight"]) if network is None else network.num_blocks
        decider = build_policy_network(blocks, spec.large_images, checkpoint.policy_net, backbone=network)
        load_checkpoint(checkpoint, policy_network=decider)


def parameters(state: dict[str, Any]) -> str:
    """How many numbers a state dict holds, BatchNorm's statistics included."""
    return f"{sum(tensor.numel() for tensor in state.values()):,} values"


if __name__ == "__main__":
    run_command(main, DoctorConfig, __doc__)
