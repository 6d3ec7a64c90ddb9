"""The names of a run's files and its status words stand in fusionseg.runs alone: all else asks there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from fusionseg.runs import evaluations, paths
from fusionseg.runs.job_events import JobEvent
from fusionseg.runs.records import RecordKind, RunStatus

ROOT = Path(__file__).parents[2]
FILES = {
    paths.CONFIG, paths.ENVIRONMENT, paths.SPLIT, paths.METRICS, paths.JOBS, paths.LOG, paths.LAST, paths.BEST,
    evaluations.SUMMARY, evaluations.CASES,
}  # fmt: skip
WORDS = {*RunStatus, *JobEvent, RecordKind.END, paths.CHECKPOINTS}
SOURCES = [
    path for path in sorted((ROOT / "fusionseg").rglob("*.py")) if not path.is_relative_to(ROOT / "fusionseg/runs")
] + sorted((ROOT / "profiling").glob("*.py"))
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "profiling").glob("*.s*"))]

OTHER_MEANINGS = {
    "fusionseg/commands/completion.py": {"end"},  # a word of the shell fish
    "fusionseg/config/shipped/lookup.py": {"config.yaml"},  # the room of the configuration may not import that of runs
    "fusionseg/cluster/slurm.py": {"cancelled"},  # the reason of an event
    "fusionseg/cluster/status.py": {"cancelled"},
    "fusionseg/distributed/world.py": {"failed"},  # a message between ranks
    "fusionseg/export/card/text.py": {"failed"},  # cases, in the summary of an evaluation
    "fusionseg/inference/evaluation/results.py": {"failed"},
    "fusionseg/inference/evaluation/pretraining.py": {"failed"},  # cases, in the summary of an evaluation
    "fusionseg/inference/evaluation/segmentation.py": {"failed"},
    "fusionseg/inference/evaluation/one_run.py": {"failed"},
    "fusionseg/inference/evaluation/validation.py": {"failed"},
    "fusionseg/inference/reports/evaluation_page.py": {"failed"},
    "fusionseg/observability/profiles/timeline.py": {"finished"},  # a range of a trace
    "fusionseg/performance/nsys_export.py": {"end"},  # a column of Nsight Systems
    "profiling/gpu_checks.py": {"failed", "interrupted"},  # the status of a part
    "fusionseg/utils/charts.py": {"end"},  # the side of a text in an SVG
    "fusionseg/utils/exit_status.py": {"interrupted"},  # the message of Ctrl-C
    "fusionseg/utils/locks/owner.py": {"started"},  # a key in the owner's file
}
"""Names and words that are allowed, by file: words have another meaning there."""


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of each text in a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def names_in(text: str) -> set[str]:
    """The run's files that a text names, and the word of a run's records that it is."""
    files = {name for name in FILES if re.search(rf"(?<![\w-]){re.escape(name)}", text)}
    return files | set(re.findall(r"\bstep_(?:[0-9*]|$)", text)) | ({text} & WORDS)


def test_a_module_spells_no_name_of_the_run_folder() -> None:
    found = []
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        allowed = OTHER_MEANINGS.get(name, set())
        found += [f"{name}:{line}: {text[:80]}" for line, text in literals(path) if names_in(text) - allowed]
    assert found == []


def test_a_script_reads_no_file_of_a_run() -> None:
    lines = [(path.name, line) for path in SCRIPTS for line in path.read_text(encoding="utf-8").splitlines()]
    assert [place for place in lines if not place[1].lstrip().startswith("#") and names_in(place[1])] == []


def test_a_name_is_found(tmp_path: Path) -> None:
    """The test above can fail."""
    path = tmp_path / "module.py"
    path.write_text(
        '"""metrics.jsonl"""\nx = folder / "metrics.jsonl"\ny = status == "completed"\nz = f"step_{x}.pt"\n'
    )
    assert [line for line, text in literals(path) if names_in(text)] == [2, 3, 4]
