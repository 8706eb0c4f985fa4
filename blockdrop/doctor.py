"""One screen: what this machine can do, what a data folder holds, whether a run can go on, what ails a checkpoint.

Without flags only the machine is looked at. Exit code 1 if something asked about is not in order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blockdrop.console import run_command
from blockdrop.models.specs import parse_name
from blockdrop.ranges import CheckpointName, Folder, check_ranges


@dataclass(kw_only=True)
class DoctorConfig:
    """Flags of `python -m blockdrop.doctor`."""

    data_dir: Folder | None = None
    """Data folder to look at."""
    cv_dir: Folder | None = None
    """Run directory to look at."""
    load: CheckpointName | None = None
    """Checkpoint to look at, or run directory, for its newest one."""
    model: str | None = None
    """Name of the network and its data set, R<depth>_<dataset>, that the data and the checkpoint are for. Default:
    a folder of any classes, and what the checkpoint says of itself."""


def main(config: DoctorConfig) -> bool:
    """Prints what there is to say; returns whether all is in order.

    Raises:
        SystemExit: with exit code 1 where it isn't.
    """
    check_ranges(config)
    if config.model is not None:
        parse_name(config.model)
    from blockdrop import diagnosis  # torch, which --help does without

    parts: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {"machine": diagnosis.machine}
    if config.data_dir is not None:
        parts["data"] = lambda: diagnosis.data_folder(str(config.data_dir), config.model)
    if config.cv_dir is not None:
        parts["run"] = lambda: diagnosis.run_directory(Path(str(config.cv_dir)))
    if config.load is not None:
        parts["checkpoint"] = lambda: diagnosis.checkpoint_file(str(config.load), config.model, config.data_dir)
    well = [diagnosis.show(title, find) for title, find in parts.items()]
    if not all(well):
        sys.exit(1)
    return True


if __name__ == "__main__":
    run_command(main, DoctorConfig, __doc__)
