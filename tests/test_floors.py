"""The house: three floors, of which blockdrop/ has rooms. An import goes down, never up or in a circle.

Imports in functions and those for type checkers alone count like any other.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

from blockdrop.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {"agents": set(), "blockdrop": {"agents"}, "experiments": {"agents", "blockdrop"}}

GROUND = ("errors", "names", "lazy", "version", "output", "processes", "progress", "ranges", "typed_json")
"""Any other room may import these, and each of these the ones before it."""

ROOMS: dict[str, set[str]] = {
    "command_line": set(),
    "console": {"command_line"},
    "callbacks": set(),
    "data.sets": set(),
    "data": {"data.sets"},
    "models": {"data.sets"},
    "flops": {"models"},
    "inference": {"data.sets", "models", "flops"},
    "evaluation": {"models"},
    "policy_stats": {"evaluation"},
    "tables": set(),
    "report.table": {"policy_stats"},
    "policy_curves": {"data", "flops", "inference"},
    "figures": {"data", "evaluation", "policy_stats", "policy_curves"},
    "report": {"flops", "policy_curves", "figures"},
    "training.compute": set(),
    "dynamic": {"data.sets", "models", "flops", "inference"},
    "inference.exported": {"data.sets", "models", "flops", "inference", "dynamic"},
    "loading": {"data.sets", "models", "dynamic"},
    "measure": {
        "data", "data.sets", "models", "flops", "inference", "dynamic", "policy_stats", "training.compute",
    },
    "calls": {"dynamic"},
    "reporting": {"calls", "data", "dynamic", "measure", "policy_stats", "report.table", "training.compute"},
    "training": {
        "data", "data.sets", "models", "flops", "inference", "dynamic", "loading", "policy_stats", "figures",
        "measure", "training.compute", "callbacks",
    },
    "distillation": {
        "data", "data.sets", "models", "flops", "dynamic", "measure", "training", "training.compute",
    },
    "bench": {
        "data", "models", "flops", "inference", "dynamic", "measure", "evaluation", "policy_stats", "training",
        "training.compute",
    },
    "findings": {
        "data", "flops", "models", "measure", "policy_curves", "policy_stats", "figures", "report", "training",
        "training.compute",
    },
    "diagnosis": {"data", "data.sets", "models", "loading", "training", "training.compute"},
}  # fmt: skip
"""What a room may import beside the ground, from the bottom up. A file belongs to the longest name that fits.

The commands may import every room; none may import them, nor one of them another."""

ATTIC = ("studies", "train")
"""These run commands, so they may import them, too; no room may import them, but the package itself."""


def read_imports(root: Path) -> dict[str, set[str]]:
    """By module of the three floors: the modules that it imports, of these and of others."""
    files = [file for floor in FLOORS for file in (root / floor).rglob("*.py")]
    modules = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }
    imports: dict[str, set[str]] = {module: set() for module in modules}
    for module, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imports[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: write imports in full"
                assert node.module is not None
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[module] |= full & modules.keys() or {node.module}
                imports[module] |= {node.module} if full - modules.keys() else set()
        imports[module].discard(module)
    return imports


def room_of(module: str) -> str:
    """The longest entry of the tables that a module of blockdrop belongs to; "" for the package itself."""
    name = module.removeprefix("blockdrop").removeprefix(".")
    fitting = [room for room in (*GROUND, *ROOMS, *COMMANDS, *ATTIC) if f"{name}.".startswith(f"{room}.")]
    return max(fitting, key=len, default=name)


def wrong_imports(imports: dict[str, set[str]]) -> list[str]:
    """The imports that go up, from one floor or room into another, a line each."""
    wrong = []
    everywhere = {*GROUND, *ROOMS}
    allowed = {room: set(GROUND[:i]) for i, room in enumerate(GROUND)}
    allowed |= {room: {*GROUND, *others} for room, others in ROOMS.items()}
    allowed |= dict.fromkeys(COMMANDS, everywhere)
    allowed |= {room: {*everywhere, *COMMANDS} for room in ATTIC}
    allowed |= {"__main__": everywhere, "": {*everywhere, *ATTIC}}
    for module, others in imports.items():
        floor = module.split(".")[0]
        for other in others:
            other_floor = other.split(".")[0]
            if other_floor in {*FLOORS, "tests"} - {floor} - FLOORS[floor]:
                wrong.append(f"{module} imports {other}: {floor}/ lies below")
            elif floor == other_floor == "blockdrop":
                room, target = room_of(module), room_of(other)
                if room not in allowed:
                    wrong.append(f"{module}: tests/test_floors.py knows no room {room}")
                elif target != room and target not in allowed[room]:
                    wrong.append(
                        f"{module} imports {other}: {room} may not import {target or 'the package itself'}"
                    )
    return wrong


def find_circle(imports: dict[str, set[str]]) -> list[str] | None:
    """A circle of modules, the first one named again at its end; None if there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return read_imports(ROOT)


def test_no_import_goes_up(imports: dict[str, set[str]]) -> None:
    assert {module.split(".")[0] for module in imports} == set(FLOORS)
    assert wrong_imports(imports) == []


def test_no_import_closes_a_circle(imports: dict[str, set[str]]) -> None:
    assert find_circle(imports) is None


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("agents/a.py", "import blockdrop.errors", "agents/ lies below"),
        ("blockdrop/models/a.py", "from experiments import methods", "blockdrop/ lies below"),
        ("blockdrop/evaluate.py", "from blockdrop.studies import runs", "evaluate may not import studies"),
        ("blockdrop/models/a.py", "from tests.conftest import SHARED", "blockdrop/ lies below"),
        (
            "blockdrop/models/a.py",
            "from blockdrop.inference.executor import compile",
            "models may not import inference",
        ),
        ("blockdrop/models/a.py", "from blockdrop.data import DataSource", "models may not import data"),
        ("blockdrop/models/a.py", "from blockdrop import build", "models may not import the package itself"),
        ("blockdrop/data/a.py", "def f():\n    from blockdrop import models", "data may not import models"),
        ("blockdrop/training/a.py", "from blockdrop.finetune import Config", "training may not import finetune"),
        ("blockdrop/evaluate.py", "from blockdrop.finetune import Config", "evaluate may not import finetune"),
        ("blockdrop/names.py", "from blockdrop.output import write_text", "names may not import output"),
        ("blockdrop/cellar/a.py", "import blockdrop.errors", "knows no room cellar"),
    ],
)
def test_an_import_that_goes_up_is_found(tmp_path: Path, file: str, line: str, message: str) -> None:
    for path in ("data/__init__", "models/__init__", "finetune", "output", "errors", "inference/executor"):
        (tmp_path / "blockdrop" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "blockdrop" / path).with_suffix(".py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(line)
    assert [message in wrong for wrong in wrong_imports(read_imports(tmp_path))] == [True]


def test_a_circle_is_found_though_type_checkers_alone_go_it(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "a.py").write_text("from agents.b import B")
    (tmp_path / "agents" / "b.py").write_text("if TYPE_CHECKING:\n    from agents.a import A")
    circle = find_circle(read_imports(tmp_path))
    assert circle is not None
    assert set(circle) == {"agents.a", "agents.b"}
