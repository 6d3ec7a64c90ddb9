"""The catalogue of faults: each has a test, each marker has an entry, nothing is silent, the page is up to date."""

from __future__ import annotations

import ast
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.catalogue import FAULTS, KINDS, NOTHING, STEPS, Fault

ROOT = Path(__file__).parents[2]
REQUIRED = ("process", "signal", "file_system", "data", "numeric", "rank", "scheduler")


def markers() -> Iterator[tuple[str, bool, str]]:
    """Yield name, `partly`, and place of each marker in the sources of the tests."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "mark.fault(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                partly = any(word.arg == "partly" and ast.literal_eval(word.value) for word in node.keywords)
                for argument in node.args:
                    yield ast.literal_eval(argument), partly, f"{path.relative_to(ROOT)}:{node.lineno}"


MARKERS = list(markers())


def test_every_fault_has_a_test_and_every_marker_an_entry() -> None:
    whole = {name for name, partly, _ in MARKERS if not partly}
    assert not FAULTS.keys() - whole, "these have no test that compares all of the entry"
    assert not [f"{place}: {name}" for name, _, place in MARKERS if name not in FAULTS]


def test_there_are_faults_of_every_kind() -> None:
    kinds = Counter(fault.kind for fault in FAULTS.values())
    assert len(FAULTS) >= 40
    assert all(kinds[kind] >= 4 for kind in REQUIRED) and kinds.keys() == KINDS.keys()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name)
def test_no_fault_is_silent_and_none_costs_more_than_the_steps_since_a_checkpoint(fault: Fault) -> None:
    assert fault.lost in (NOTHING, STEPS)
    assert fault.says or fault.shows or fault.records, "neither the process nor a file of the run says anything"
    for text in (fault.happens, fault.do, fault.sees):
        assert not text or (text.endswith(".") and text[0].isupper())


def test_the_page_is_up_to_date() -> None:
    """After a change: python tests/faults/page.py > docs/reliability.md"""
    page = runpy.run_path(str(ROOT / "tests/faults/page.py"))
    assert (ROOT / "docs/reliability.md").read_text(encoding="utf-8") == page["render"]()
