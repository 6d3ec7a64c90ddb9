"""Check that a training that is killed and resumed ends like one that is not.

    python profiling/check_resume.py FOLDER --data DATASET [--config FILE] [--steps 300] [key.path=value ...]

The program trains `whole`, and then `resumed`, which it kills (SIGKILL) after a third of the steps and starts again. It
compares the losses of all steps after the checkpoint. On a CPU they are equal. On a GPU some kernels add in another
order in every run (atomic additions), so small differences are expected; `--tolerance` is the largest that passes.
The exit status is 1 if a run does not complete, does not continue from its checkpoint, or ends with other losses.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fusionseg.performance.benchmarking import publish
from fusionseg.runs.paths import last_step
from fusionseg.runs.records import RunStatus, last_end, read_records
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED, run
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent


def start(arguments: argparse.Namespace, name: str) -> subprocess.Popen[bytes]:
    """Start a training of the folder; its standard output goes to standard error."""
    every = max(1, arguments.steps // 6)
    command = [sys.executable, "-m", "fusionseg.train", "--config", arguments.config, f"data.root={arguments.data}"]
    command += [f"output={arguments.folder}", f"train.steps={arguments.steps}", f"checkpoint.every={every}"]
    command += [f"validate.every={arguments.steps}", "schedule.warmup=2", "log.every=1", *arguments.overrides]
    return subprocess.Popen([*command, f"name={name}"], stdout=sys.stderr)


def losses(run_folder: Path) -> dict[int, float]:
    """The recorded losses by step."""
    return {record["step"]: record["loss"] for record in read_records(run_folder) if record["kind"] == "train"}


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, kill, resume and compare; the result has JSON values.

    Raises:
        UserError: a training failed.
    """
    whole, resumed = arguments.folder / "whole", arguments.folder / "resumed"
    _expect(start(arguments, "whole"), whole)
    process = start(arguments, "resumed")
    try:
        while last_step(resumed) < arguments.steps // 3:
            if process.poll() is not None:
                raise UserError(f"{resumed}: the training ended with status {process.returncode} before it was killed")
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    continued_from, before = last_step(resumed), time.perf_counter()
    if (end := last_end(resumed)) is not None:
        raise UserError(f"{resumed}: the training was faster than its kill ({end['status']}); give more --steps")
    _expect(start(arguments, "resumed"), resumed)
    first, second = losses(whole), losses(resumed)
    later = [step for step in first if step > continued_from]
    differences = [abs(first[step] - second[step]) for step in later if step in second]
    ends = {name: (last_end(folder) or {}).get("status") for name, folder in (("whole", whole), ("resumed", resumed))}
    return {
        "steps": arguments.steps,
        "continued_from": continued_from,
        "restart_s": time.perf_counter() - before,
        "status": ends,
        "compared_steps": len(differences),
        "missing_steps": len(later) - len(differences),
        "largest_difference": max(differences, default=None),
        "last_loss": {"whole": first[max(first)], "resumed": second[max(second)]},
        "tolerance": arguments.tolerance,
    }


def passed(result: dict[str, Any]) -> bool:
    """Return whether the resumed training completed and ended like the other one."""
    largest = result["largest_difference"]
    complete = set(result["status"].values()) == {RunStatus.COMPLETED} and result["missing_steps"] == 0
    return bool(complete and largest is not None and largest <= result["tolerance"])


def _expect(process: subprocess.Popen[bytes], run_folder: Path) -> None:
    if process.wait():
        raise UserError(f"{run_folder}: the training failed with status {process.returncode}")


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    rows = [
        ("killed and continued from step", f"{result['continued_from']} of {result['steps']}"),
        ("steps compared with the training that was not killed", f"{result['compared_steps']}"),
        ("largest difference of a loss", f"{result['largest_difference']:.3g}"),
        ("loss of the last step, whole and resumed", " and ".join(f"{v:.6g}" for v in result["last_loss"].values())),
        ("seconds of the second start, to its end", f"{result['restart_s']:.1f}"),
        (
            "result",
            "equal" if result["largest_difference"] == 0 else "within the tolerance" if passed(result) else "BAD",
        ),
    ]
    return markdown_table([("kill and resume", ""), *rows])


def main() -> int:
    """Check, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs; it must not have them yet")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--config", default=str(ROOT / "configs" / "demo.yaml"), help="YAML file of the run")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training (default: 300)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="largest difference of a loss (default: 0.05)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args()

    def work() -> int:
        if arguments.steps < 6:
            raise UserError(f"--steps: too few (expected 6 or more, got {arguments.steps})")
        if (arguments.folder / "whole").exists() or (arguments.folder / "resumed").exists():
            raise UserError(f"{arguments.folder}: it has these runs already; give another folder")
        result = check(arguments)
        publish(result, markdown(result), arguments.json)
        return DONE if passed(result) else FAILED

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
