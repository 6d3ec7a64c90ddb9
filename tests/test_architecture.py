"""Rooms of the package: imports in one direction, no circle, no large folder."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from fusionseg.config import registry
from fusionseg.config.registry import Registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fusionseg"
MAX_MODULES = 15
OLD_NAMES = {"jobs"}  # jobs that were queued by an older version are unpickled from there


def name_of(path: Path) -> str:
    """The dotted name of a module: "fusionseg.data.loading.device_cache"; a package is called like its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name not in OLD_NAMES)


def room_of(module: str) -> str:
    """The top-level room of a module: "data" for "fusionseg.data.loading.device_cache"; "" for what is in no room."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def imports_of(path: Path) -> set[str]:
    """Modules of fusionseg that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES.keys()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute in this package"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner if inner in MODULES else node.module} & MODULES.keys()
    return found


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def may_import(room: str) -> set[str]:
    """The rooms that a room's docstring allows it to import."""
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentence = re.search(r"May import: ([^.]*)\.", text)
    assert sentence, f"fusionseg/{room}/__init__.py: the docstring says what the room may import (May import: ...)"
    return set(re.findall(r"`(\w+)`", sentence[1]))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_docstring_allows(room: str) -> None:
    imported = {
        (module, other)
        for module, others in IMPORTS.items()
        if room_of(module) == room
        for other in others
        if room_of(other) not in (room, "")
    }
    allowed = may_import(room)
    assert not {(module, other) for module, other in imported if room_of(other) not in allowed}
    assert allowed == {room_of(other) for _, other in imported}, "the docstring allows a room that is not imported"


def test_the_core_does_not_know_the_tiles_of_pathology() -> None:
    """The third task is built by the ways of docs/extending.md: a configuration names its parts by dotted paths."""
    for module, path in MODULES.items():
        if room_of(module) != "pathology":
            assert "pathology" not in path.read_text(encoding="utf-8"), module


def test_rooms_form_no_circle() -> None:
    TopologicalSorter({room: may_import(room) for room in ROOMS}).prepare()  # raises CycleError, which names the circle


def test_modules_form_no_circle() -> None:
    """Imports inside functions count: they do not undo a circle, they hide it."""
    TopologicalSorter(IMPORTS).prepare()


def test_rooms_import_no_entry_point() -> None:
    """`fusionseg` itself has the version and the public API; its API is for users, not for the rooms."""
    entries = {"fusionseg.cli", "fusionseg.train", "fusionseg.pretrain", "fusionseg.__main__"}
    assert not {(module, other) for module, others in IMPORTS.items() if room_of(module) for other in others & entries}


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda path: path.name)
def test_no_folder_is_large(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MAX_MODULES


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in MODULES.values()} - {PACKAGE}), ids=lambda path: path.name
)
def test_every_folder_says_what_is_in_it(folder: Path) -> None:
    init = folder / "__init__.py"
    assert init.exists() and ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))


def test_code_for_benchmarks_is_in_the_performance_room() -> None:
    """A module that nothing but profiling/ and fusionseg.performance imports belongs there."""
    users = {module: {other for other, imported in IMPORTS.items() if module in imported} for module in MODULES}
    programs = {other for path in (ROOT / "profiling").glob("*.py") for other in imports_of(path)}
    for module in programs:
        named = module.rpartition(".")[0] in {
            entry.home for entry in vars(registry).values() if isinstance(entry, Registry)
        }
        if room_of(module) not in ("", "performance") and not named:  # a registry imports its home by name
            others = {user for user in users[module] if room_of(user) != "performance"}
            assert others, f"{module} is imported by profiling/ alone"


@pytest.mark.parametrize("folder", ["launch", "slurm", "profiling"])
def test_folders_of_programs_are_no_packages(folder: str) -> None:
    """A package named profiling would hide the standard library's, which torch imports."""
    assert list((ROOT / folder).rglob("__init__.py")) == []


def flows() -> dict[str, list[str]]:
    """The modules of each flow in docs/architecture.md, by the flow's heading."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)[1:]
    headings, texts = parts[::2], parts[1::2]
    return {
        heading: re.findall(r"^\d+\. `([\w.]+)`", text, re.MULTILINE)
        for heading, text in zip(headings, texts, strict=True)
    }


def test_the_page_of_the_architecture_has_the_flows() -> None:
    assert len(flows()) == 3


@pytest.mark.parametrize(("flow", "modules"), flows().items())
def test_a_flow_of_the_architecture_is_one_of_the_code(flow: str, modules: list[str]) -> None:
    """At most 8 modules; each imports another one of the flow, or another one imports it or the package it is in."""
    assert 3 <= len(modules) <= 8 and not set(modules) - MODULES.keys()
    for module in modules:
        others = set(modules) - {module}
        imported = set().union(*(IMPORTS[other] for other in others))
        assert others & IMPORTS[module] or imported & {module, module.rpartition(".")[0]}, module
