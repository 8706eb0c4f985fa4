"""What pyproject.toml can't say: where the packages of the three floors go.

In the checkout, and where it is installed with `-e`, they are `agents`, `blockdrop` and `experiments`. In a wheel
such common names as agents and experiments could meet another project's, so there they are `blockdrop.agents` and
`blockdrop.experiments`, and the lines that import them are rewritten.
"""

import ast
import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

MOVED = ("agents", "experiments")
IMPORT = re.compile(rf"^(\s*(?:>>> )?)(from|import) ({'|'.join(MOVED)})((?:\.\w+)*) (import|as) ", re.MULTILINE)


def moved_imports(source: str) -> str:
    """A module's source with agents and experiments imported from blockdrop.

    Raises:
        ValueError: an import in a form that can't be rewritten, as `import agents.envs`, after which the code says
            agents.envs.
    """
    moved = IMPORT.sub(r"\1\2 blockdrop.\3\4 \5 ", source)
    for node in ast.walk(ast.parse(moved)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.split(".")[0] in MOVED:
                raise ValueError(f"line {node.lineno}: write from {name} import …, each on a line of its own")
    return moved


class BuildPy(build_py):
    """Rewrites what it copies."""

    def build_module(self, module, module_file, package):
        file, copied = super().build_module(module, module_file, package)
        if copied:
            path = Path(file)
            try:
                path.write_text(moved_imports(path.read_text(encoding="utf-8")), encoding="utf-8")
            except ValueError as error:
                path.unlink()
                raise SystemExit(f"{module_file}: {error}") from None
        return file, copied


class EditableWheel(editable_wheel):
    """Leaves the packages where they are."""

    def finalize_options(self):
        self.distribution.packages = find_packages(include=["agents*", "blockdrop*", "experiments*"])
        self.distribution.package_dir = {}
        super().finalize_options()


setup(
    packages=[
        *find_packages(include=["blockdrop", "blockdrop.*"]),
        *(f"blockdrop.{name}" for name in find_packages(include=["agents*", "experiments*"])),
    ],
    package_dir={f"blockdrop.{name}": name for name in MOVED},
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
)
