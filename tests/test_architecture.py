"""Imports point one way, packages lie where they belong, and no module grows without end."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fusionseg"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 350

# Each layer imports from those before it and from itself. What is not named here (train, pretrain, cli and
# what may come beside them) is an entry point: it may import all, and nothing imports it.
LAYERS = (
    {"errors", "config", "files", "folder_lock", "machine", "streams", "telemetry"},
    {"data", "models", "losses", "metrics", "reconstruction"},
    {"engine"},
    {"inference", "jobs"},
)
# Narrower than their layer.
ONLY = {
    "errors": set(),
    "streams": set(),
    "folder_lock": set(),
    "entry": {"errors", "streams", "config", "engine"},
    "files": {"errors"},
    "machine": {"errors"},
}
SHARED = {"", "entry"}  # fusionseg itself (its version), and the exit status of every entry point


def part_of(path: Path) -> str:
    """The top-level part that a module belongs to: "data" for fusionseg/data/loading/device_cache.py, "" for the package."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of fusionseg that a module imports, inside functions too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    own = [name.split(".") for name in names if name.split(".")[0] == "fusionseg"]
    existing = {part_of(module) for module in MODULES}
    return {name[1] if len(name) > 1 and name[1] in existing else "" for name in own}


def layer_of(part: str) -> int:
    return next((number for number, layer in enumerate(LAYERS) if part in layer), len(LAYERS))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    imported = imported_parts(path) - {part}
    if part in ONLY:
        assert imported - {""} <= ONLY[part]
    for other in imported - SHARED:
        assert layer_of(other) <= layer_of(part), f"{part} imports {other}, which stands above it"


def test_no_part_imports_one_that_imports_it() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        graph.setdefault(part_of(path), set()).update(imported_parts(path) - {part_of(path), ""})
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_module_imports_one_that_imports_it() -> None:
    """The same for single modules, as they are imported at the top of the file."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name == "__init__.py":
            continue  # gathers what its modules offer
        graph[name] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & names
                graph[name] |= inner or {node.module} & names
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("folder", ["launch", "slurm", "profiling"])
def test_folders_of_programs_are_no_packages(folder: str) -> None:
    """A package named profiling would hide the standard library's, which torch imports."""
    assert list((ROOT / folder).rglob("__init__.py")) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: make it two modules"
