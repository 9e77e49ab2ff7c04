"""The rooms of `fedsim` import only rooms below them, and no two files import each other, not even lazily."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    ["core"],
    ["parallel", "coding"],
    ["nets", "exchange", "devices", "plots", "trackers"],
    ["attacks", "server", "compression"],
    ["problems", "privacy"],
    ["engine"],
    ["client", "zeroth_order", "configuration"],
    ["pretrained"],
    ["running"],
    ["reports"],
    ["tuning"],
    ["flower"],
    ["cli", "testing"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TOP = {"__init__", "__main__"}
"""The public names, and what starts the commands: above all rooms."""


def modules() -> dict[str, Path]:
    """The modules of `fedsim` by name."""
    found = {}
    for path in (ROOT / "fedsim").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of `fedsim` that a file imports; imports in functions and for types alone count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def graph() -> networkx.DiGraph:
    """Which module imports which."""
    known, found = modules(), networkx.DiGraph()
    for module, path in known.items():
        found.add_node(module)
        found.add_edges_from((module, other) for other in imports(path, known) if other != module)
    return found


def room(module: str) -> str:
    """The folder below `fedsim`, or the loose module, that a module is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_placehas_a_floor():
    assert {room(module) for module in modules()} == {*FLOOR, *TOP}


def test_rooms_import_only_rooms_below_them():
    arrows = {(room(module), room(other)) for module, other in graph().edges}
    between = {(one, other) for one, other in arrows if one != other and one not in TOP}
    assert [arrow for arrow in sorted(between) if arrow[1] in TOP or FLOOR[arrow[1]] >= FLOOR[arrow[0]]] == []


def test_no_files_import_each_other_in_a_circle():
    circles = networkx.strongly_connected_components(graph())
    assert [sorted(circle) for circle in circles if len(circle) > 1] == []


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", ["fedsim", "strategies", "clients"])
def test_of_this_project_algorithms_import_only_fedsim_and_fedsim_none_of_them(package):
    ours = {"strategies", "clients", "experiments", "tests"}
    for path in (ROOT / package).rglob("*.py"):
        assert not ours & set(imported(path)), path


AUTHORS = (
    "server",
    "server.selection",
    "exchange",
    "client",
    "zeroth_order",
    "problems.datasets",
    "problems.measures",
    "problems.models",
    "nets.losses",
    "trackers",
)
"""Rooms from which authors of plug-ins import all that they need."""


def test_no_two_things_that_authors_import_have_one_name():
    found: dict[str, set[int]] = {}
    for place in AUTHORS:
        module = importlib.import_module(f"fedsim.{place}")
        for name in module.__all__:
            found.setdefault(name, set()).add(id(getattr(module, name)))
    assert [name for name, things in found.items() if len(things) > 1] == []
