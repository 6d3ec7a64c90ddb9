"""Language of the code: docstrings are no questions, retired names stay retired, public functions are documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fusionseg"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "profiling").glob("*.py")])
QUESTION = re.compile(r"(What|How|Which|Where|Who|Whose|Why)\b")
# Names of an earlier version, and the names that replaced them.
RETIRED = {
    "from_main": "broadcast_object",
    "share_": "broadcast_",
    "sum_": "all_reduce_",
    "agree": "any_rank_signalled",
    "main_first": "rank_zero_first",
    "PatchSampler": "PatchAugmenter",
    "mathematics": "resume_relevant",
    "FREE": "RESUME_FREE_KEYS",
    "WindowPlan": "WindowLayout",
    "accumulate": "accumulation_steps",
    "as_written": "autocast_disabled",
    "describe_rank": "rank_info",
    "name_allreduce": "register_allreduce",
    "deal": "assign_to_ranks",
    "mean_of_known": "nanmean",
    "split_units": "split_blocks",
    "join_units": "join_blocks",
}

TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield the docstrings of the module, its classes, functions and attributes, each with its node."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if isinstance(node, ast.Module | ast.ClassDef | Function) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement, value.value.strip()


def identifiers(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield every name that the code defines or uses: variables, attributes, arguments, functions, classes, imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node, node.id
        elif isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node, node.arg
        elif isinstance(node, Function | ast.ClassDef):
            yield node, node.name
        elif isinstance(node, ast.alias):
            yield node, (node.asname or node.name).split(".")[-1]


def room_of(path: Path) -> str:
    """The top-level room of a file: "data" for fusionseg/data/store.py; "profiling" for the programs there."""
    return path.relative_to(PACKAGE).parts[0] if path.is_relative_to(PACKAGE) else "profiling"


def imported_by_other_rooms() -> set[tuple[str, str]]:
    """(module, name) of everything that a room imports from another one."""
    found = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fusionseg."):
                parts = str(node.module).split(".")
                if parts[1] != room_of(path):
                    found |= {(str(node.module), alias.name) for alias in node.names}
    return found


def public_functions() -> Iterator[tuple[Path, Function]]:
    """Yield the functions that other rooms import, each with its file."""
    used = imported_by_other_rooms()
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in TREES[path].body:
            if isinstance(node, Function) and (module, node.name) in used:
                yield path, node


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of the functions inside it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(node))


def raises_user_error(function: Function) -> bool:
    """Tell whether the function itself has a statement `raise UserError(...)`."""
    raised = (node.exc for node in own_nodes(function) if isinstance(node, ast.Raise))
    return any(isinstance(exc, ast.Call) and ast.unparse(exc.func).endswith("UserError") for exc in raised)


def test_no_docstring_begins_with_a_question_word() -> None:
    found = [
        f"{place(path, node)}: {text.splitlines()[0]}"
        for path, tree in TREES.items()
        for node, text in docstrings(tree)
        if QUESTION.match(text)
    ]
    assert not found, "begin with a noun phrase or an imperative:\n" + "\n".join(found)


@pytest.mark.parametrize("name", RETIRED)
def test_retired_names_are_not_used(name: str) -> None:
    found = [place(path, node) for path, tree in TREES.items() for node, other in identifiers(tree) if other == name]
    assert not found, f"say {RETIRED[name]}: {found}"


def test_functions_for_other_rooms_document_their_arguments_and_errors() -> None:
    found = []
    for path, function in public_functions():
        text = ast.get_docstring(function) or ""
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        if len(arguments) >= 2 and "Args:" not in text:
            found.append(f"{place(path, function)}: {function.name} has no Args")
        if raises_user_error(function) and "Raises:" not in text:
            found.append(f"{place(path, function)}: {function.name} has no Raises")
    assert not found, "\n".join(found)
