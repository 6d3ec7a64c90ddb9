"""The catalogue of faults, and the comparison of what a test has seen with its entry.

A file of this folder, such as `rank.yaml`, has the faults of a kind. A test that shows a fault has the marker
`@pytest.mark.fault("name")` and calls `assert_seen`; tests/conftest.py makes sure that it has compared every field of
the entry. With `partly=True` it need not have compared all; another test does.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

FOLDER = Path(__file__).parent
KINDS = {
    "process": "The process",
    "signal": "Signals and the terminal",
    "file_system": "Disks and files",
    "data": "Data",
    "numeric": "Numbers",
    "rank": "Ranks",
    "scheduler": "The scheduler",
    "request": "Settings that change",
    "observer": "Monitors and trackers",
}
"""The kinds, which are names of files, with their headings."""
NOTHING, STEPS = "nothing", "steps"
COMPARED = ("exit", "status", "says", "shows", "records")
"""Fields that a test compares."""


@dataclass(frozen=True)
class Fault:
    """An entry of the catalogue. Texts in `says`, `shows` and `records` may leave out words by ` ... `."""

    name: str
    kind: str
    happens: str
    """What happens to the run: a sentence."""
    lost: str
    """`nothing`, or `steps`: those since the last checkpoint, which are trained again."""
    do: str
    """What the user does."""
    exit: int | None = None
    """Exit status, as a shell shows it; None if it is that of the run without the fault, or there is no process."""
    status: str | None = None
    """Status of the run: that of its last end record, `unfinished` without one, and `none` if no run has begun."""
    says: tuple[str, ...] = ()
    """Words that the process prints: of the start that the fault meets, or of the next one."""
    shows: tuple[str, ...] = ()
    """Words of `fusionseg status RUN`."""
    records: tuple[str, ...] = ()
    """Words of `metrics.jsonl` or `jobs.jsonl`."""
    sees: str = ""
    """What else the user sees, in words."""
    also_lost: str = ""
    """What is missing beside the training, such as pictures."""

    @property
    def to_compare(self) -> set[str]:
        return {field for field in COMPARED if getattr(self, field) not in (None, ())}


class Outcome(Protocol):
    """A process that has ended, such as `end_to_end.runs.Ended`."""

    status: int
    out: str
    err: str


def read_faults() -> dict[str, Fault]:
    """All faults by name, in the order of the files."""
    found: dict[str, Fault] = {}
    for kind in KINDS:
        for name, fields in yaml.safe_load((FOLDER / f"{kind}.yaml").read_text(encoding="utf-8")).items():
            assert name not in found, f"{kind}.yaml: there are two faults {name}"
            found[name] = Fault(name, kind, **{key: _plain(value) for key, value in fields.items()})
            lists = (found[name].says, found[name].shows, found[name].records)
            assert all(isinstance(words, str) for each in lists for words in each), f"{kind}.yaml: {name}: use quotes"
    return found


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FAULTS = read_faults()
compared: dict[str, set[str]] = {}
"""The fields that the test that runs now has compared, by fault. tests/conftest.py empties it."""


def assert_seen(
    name: str,
    seen: Outcome | str | None = None,
    run: Path | None = None,
    *,
    shown: str | None = None,
    torchrun: bool = False,
    newest: bool = True,
) -> None:
    """Assert that a test has seen what the entry of a fault says.

    Args:
        name: of the fault.
        seen: the process that has ended, whose exit status and output are compared; or a text that it has printed.
        run: the run folder as the fault left it, whose status is compared. No more may be lost than the entry says.
        shown: the output of `fusionseg status RUN`; None calls it for the run folder.
        torchrun: the process is torchrun, which prints a traceback of its own.
        newest: False if the newest checkpoint was damaged by the fault, so that the loss cannot be seen by the names.
    """
    fault, done = FAULTS[name], compared.setdefault(name, set())
    if seen is not None and not isinstance(seen, str):
        if fault.exit is not None:
            # Python gives the negative number of a signal that has ended a process.
            assert fault.exit == (seen.status if seen.status >= 0 else 128 - seen.status), f"{name}: {seen}"
            done.add("exit")
        seen = seen.out + seen.err
    if seen is not None:
        assert torchrun or "Traceback" not in seen, seen
        _assert_has(name, "says", fault.says, seen)
    if shown is not None:
        _assert_has(name, "shows", fault.shows, shown)
    if run is None:
        return
    if fault.status is not None:
        assert status_of(run) == fault.status, f"{name}: {status_of(run)}"
        done.add("status")
    if fault.shows and shown is None:
        _assert_has(name, "shows", fault.shows, _shown(run))
    if fault.records:
        files = [run / name for name in ("metrics.jsonl", "jobs.jsonl")]
        text = "".join(file.read_text(errors="replace") for file in files if file.exists())
        _assert_has(name, "records", fault.records, text)
    if newest and run.exists():
        _assert_lost(fault, run)


def _assert_has(name: str, field: str, wanted: tuple[str, ...], text: str) -> None:
    for words in wanted:
        pattern = ".*".join(map(re.escape, words.split(" ... ")))
        assert re.search(pattern, text), f"{name}: {field}: {words!r} is not in:\n{text}"
    compared[name].add(field)


def _records(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(ValueError):  # the last line may be cut off
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict) and "kind" in record]


def status_of(run: Path) -> str:
    """The status of a run by its records; `none` if it has none."""
    records = _records(run)
    if not records:
        return "none"
    return str(records[-1]["status"]) if records[-1]["kind"] == "end" else "unfinished"


def _assert_lost(fault: Fault, run: Path) -> None:
    """Compare the newest checkpoint with the steps that were trained."""
    reached = max((record["step"] for record in _records(run) if record["kind"] == "train"), default=0)
    saved = max((int(path.name[5:13]) for path in (run / "checkpoints").glob("step_????????*")), default=0)
    every = yaml.safe_load((run / "config.yaml").read_text())["checkpoint"]["every"] if fault.lost == STEPS else 1
    # Steps are trained while a checkpoint is being written; the next one is not begun before.
    most = 2 * every if fault.lost == STEPS else 0
    assert reached - saved <= most, f"{fault.name}: {reached} steps were trained, and {saved} are saved"


def _shown(run: Path) -> str:
    from fusionseg.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        main(["status", str(run)])
    return output.getvalue()


def not_compared(markers: list[tuple[str, bool]]) -> list[str]:
    """What a test that has passed did not compare, though its markers say so.

    Args:
        markers: name of a fault, and whether the test compares a part of it only.
    """
    missing = []
    for name, partly in markers:
        done = compared.get(name, set())
        left = set() if name not in FAULTS else FAULTS[name].to_compare - done
        if not done or (left and not partly):
            missing.append(f"{name}: {', '.join(sorted(left)) or 'anything'}")
    return missing
