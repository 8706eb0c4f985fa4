"""What can be imported without torch, and that packages have what they promise all the same."""

import subprocess
import sys
from types import ModuleType

import pytest

import blockdrop
import blockdrop.data
from blockdrop.version import project_version

LIGHT = (
    "agents.names",
    "blockdrop",
    "blockdrop.__main__",
    "blockdrop.console",
    "blockdrop.data",
    "blockdrop.data.sets",
    "blockdrop.errors",
    "blockdrop.models.specs",
    "blockdrop.names",
    "blockdrop.output",
    "blockdrop.progress",
    "blockdrop.version",
)


def test_names_and_facts_need_no_torch() -> None:
    code = (
        f"import sys, {', '.join(LIGHT)}\n"
        "print(blockdrop.__version__, blockdrop.data.DATASETS['C10'].num_classes, blockdrop.Variant())\n"
        "assert not {'torch', 'torchvision', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [project_version(), "10"]


@pytest.mark.parametrize("package", [blockdrop, blockdrop.data])
def test_a_package_has_exactly_what_it_lists(package: ModuleType) -> None:
    assert sorted(package.__all__) == [
        name for name in dir(package) if not name.startswith("__") or name in package.__all__
    ]
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'resnet'"):
        package.resnet  # noqa: B018


def test_the_rooms_of_the_commands_need_no_torchvision() -> None:
    """It takes longer to import than all the rest but torch."""
    script = (
        "import sys, blockdrop.bench, blockdrop.training.joint, blockdrop.training.opening;"
        "assert not {'torchvision', 'torch._dynamo', 'sympy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
