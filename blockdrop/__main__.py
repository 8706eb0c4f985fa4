"""The program `blockdrop`: its commands by name. Each is a module, `python -m blockdrop.<command>` is the same."""

from __future__ import annotations

import difflib
import os
import runpy
import sys
from pathlib import Path

from blockdrop.version import project_version

COMMANDS = {
    "pretrain": "Train a ResNet, a plain net or a shift net, from scratch or from given weights.",
    "train": "Train a dynamic network from a trained one in one step, and report on both.",
    "cl_train": "Train the policy network of a frozen ResNet by curriculum learning.",
    "finetune": "Train the policy network and the ResNet together.",
    "evaluate": "Measure accuracy, block usage, FLOPs and speed on the test images.",
    "distill": "Make a static net out of a trained ResNet, and compare the two.",
    "count": "Count the parameters, MACs and FLOPs of a network.",
    "visualize": "Draw which blocks the test images keep, and write a page to explore it.",
    "export": "Write a network as ONNX, as an AOTInductor package or as safetensors.",
    "doctor": "Check this machine, a data folder, a run and a checkpoint.",
}
"""By module of blockdrop: what the command does."""


def main() -> None:
    """Runs the command that the first argument names, with the others as its flags."""
    program = "python -m blockdrop" if Path(sys.argv[0]).name == "__main__.py" else "blockdrop"
    name, *flags = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage(program))
    elif name == "--version":
        print(f"blockdrop {project_version()}")
    elif (command := name.replace("-", "_")) in COMMANDS:
        sys.argv = [sys.argv[0], *flags]
        if not sys.flags.safe_path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # where `--model my_module:build` looks, as with python -m
        runpy.run_module(f"blockdrop.{command}", {"PROGRAM": f"{program} {name}"}, "__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        mend = f"did you mean {near[0]}?" if near else f"choose {', '.join(COMMANDS)}"
        print(f"error: {name}: no such command; {mend}", file=sys.stderr)
        sys.exit(2)


def usage(program: str) -> str:
    """The commands, a line each."""
    lines = (f"  {name:<11}{what}" for name, what in COMMANDS.items())
    return "\n".join(
        (
            f"usage: {program} COMMAND [--FLAG VALUE ...]",
            "",
            "Residual networks that choose, image by image, which blocks to run.",
            "",
            *lines,
            "",
            f"{program} COMMAND --help lists a command's flags; {program} --version says which blockdrop this is.",
        )
    )


if __name__ == "__main__":
    main()
