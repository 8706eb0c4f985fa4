"""Make a static net out of a trained ResNet, and compare the two.

stagewise: a plain net drawn to the teacher's feature maps stage by stage, then fine-tuned with labels.
kd: any student drawn to the teacher's logits (Hinton).
jointrd: a plain net that learns through the teacher's shortcuts (joint residual distillation).
exact: the plain net that has the teacher's logits, without training.

The last lines compare teacher and student: accuracy, and seconds for all test images, with BatchNorm folded.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from blockdrop.command_line import refuse_flags_of_others
from blockdrop.console import run_command
from blockdrop.distillation.exact import ExactConfig
from blockdrop.distillation.jointrd import JointConfig
from blockdrop.distillation.kd import KdConfig
from blockdrop.distillation.method import DistillConfig
from blockdrop.distillation.stagewise import StagewiseConfig
from blockdrop.errors import require
from blockdrop.output import write_json, write_text

METHODS: dict[str, type[DistillConfig]] = {
    "stagewise": StagewiseConfig,
    "kd": KdConfig,
    "jointrd": JointConfig,
    "exact": ExactConfig,
}


def make_config(method: str, **flags: Any) -> DistillConfig:
    """The flags of a method; raises `BlockdropError` for a method that there isn't, or a flag of another one."""
    require(method in METHODS, f"--method {method}: choose {', '.join(METHODS)}")
    refuse_flags_of_others(METHODS, method, flags)
    return METHODS[method](method=method, **flags)


def main(config: DistillConfig) -> dict[str, Any]:
    """Opens teacher, student and data, distils, and compares; returns what report.json holds."""
    config.check()
    from blockdrop.distillation.method import Distillation  # torch, which --help does without
    from blockdrop.distillation.report import Contender, compare, print_table
    from blockdrop.loading import name_of_network
    from blockdrop.models.checkpoints.dialects import read_checkpoint
    from blockdrop.processes import ALONE
    from blockdrop.training.opening import open_networks, open_session
    from blockdrop.training.run_directory import check_usable

    compute = config.compute()
    inputs = (*config.load, *getattr(config, "student_init", ()))
    for folder in config.folders:
        check = functools.partial(check_usable, folder, config.overwrite, inputs, config.resume)
        compute.processes.from_first(check)
    if config.model is None and config.load:
        # the student is named after the teacher, so that must be known first
        named = [read_checkpoint(path) for path in config.load if path != "torchvision"]
        config = replace(config, model=name_of_network(None, named))
        config.check()
    teacher = open_networks(config, config.load, policy="none")
    require(
        teacher.has_backbone or not config.needs_teacher,
        f"--load {' '.join(config.load)}: no trained backbone in it",
    )
    student = config.open_student(teacher)
    note = config.check_networks(student, teacher)
    data, files = teacher.data, [*teacher.origins, *student.origins]
    session = open_session(config, "distill", student.dynamic, data, compute, files)
    with session.run as run:
        session.announce(f"distill --method {config.method}", student.dynamic, data, student.origins)
        if teacher.has_backbone:
            count = sum(p.numel() for p in teacher.dynamic.network.parameters())
            print(f"teacher: {teacher.dynamic.model} ({count:,} parameters) from {' '.join(config.load)}")
        if note:
            print(note)
        network: Any = teacher.dynamic.network.eval()
        compute.place(student.dynamic.network)
        contenders = config.run(Distillation(session, student.dynamic, data, network))
        if teacher.has_backbone:
            contenders = [Contender("teacher", teacher.dynamic), *contenders]
        images, timed = len(data.test), min(config.timed_images, len(data.test))
        if not compute.processes.first:
            return {}  # one compares
        one = replace(compute.in_float32(), processes=ALONE)
        rows = compare(contenders, data.test, one, config.engine, config.report_batch_size, timed)
        print_table(rows, config.report_batch_size, images, timed)
        report = {
            "method": config.method,
            "dataset": data.name,
            "images": images,
            "timed_images": timed,
            "batch_size": config.report_batch_size,
            "networks": rows,
        }
        write_json("--cv_dir", run.path / "report.json", report)
        if tables := config.profile(contenders, student.dynamic.image_size):
            print(tables)
            write_text("--cv_dir", run.path / "profile.txt", tables + "\n")
        run.finish({"accuracy": rows[-1]["accuracy"], "seconds": rows[-1]["seconds"]})
        print(f"report: {run.path / 'report.json'}")
    return report


if __name__ == "__main__":
    run_command(main, METHODS, __doc__)
