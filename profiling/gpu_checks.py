"""Run all checks that need a GPU, as independent parts that a second call continues.

    bash profiling/gpu_checks.sh OUT --wheels WHEELS --minutes 9    # call it again until all parts have passed
    bash profiling/gpu_checks.sh OUT --only swin roofline           # these parts, also if they have passed
    bash profiling/gpu_checks.sh OUT --list
    python profiling/gpu_checks_table.py OUT                        # the section for docs/benchmarks.md

Each part has a time limit of at most eight minutes, a folder OUT/parts/PART with its tables, JSON files and log, and a
line `PART: passed|failed|skipped (reason), seconds`. A part that fails does not end the others. A second call begins
with the parts that have not run, and then repeats those that failed. At its end each call writes OUT/table.md, and
OUT/results.tar.gz with all tables, JSON files and logs.

Without a GPU the parts run in tiny sizes on the CPU, which tests this program only. The exit status is 0 if all
chosen parts have passed or are skipped, 1 if one has failed or has not run, and 2 if the request is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from gpu_checks_parts import PARTS, ROOT, Part, Setting
from gpu_checks_table import section
from wheels import install

from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED, run
from fusionseg.utils.files import whole_file, write_json, write_text

PROBE = """
import json, platform, sys
from importlib.metadata import version
from importlib.util import find_spec
import numpy, torch
from fusionseg.performance.machine import machine_info
from fusionseg.training.precision import has_bf16
asked = sys.argv[1]
device = torch.device("cuda" if asked == "cuda" or asked == "auto" and torch.cuda.is_available() else "cpu")
versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
versions["monai"] = version("monai")
installed = [name for name in sys.argv[2:] if find_spec(name)]
print(json.dumps({**machine_info(device), "device": device.type, "has_bf16": has_bf16(device), "versions": versions,
    "installed": installed}))
"""
FINISHED = ("passed", "skipped")
CONTENTS = ("*.md", "*.txt", "*.log", "*.json", "*.png")
LARGEST_BYTES = 2 << 20


class TimeLimit(Exception):
    """The part has reached its time limit."""


class Checks:
    """The parts of one folder, with their state.

    Args:
        out: folder of the checks.
        environ: environment of the commands.
    """

    def __init__(self, out: Path, environ: dict[str, str]) -> None:
        self.out, self.environ = out, environ
        self.file = out / "status.json"
        known = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        self.machine: dict[str, Any] = known.get("machine", {})
        self.parts: dict[str, dict[str, Any]] = known.get("parts", {})
        self.data = known.get("data")

    def save(self) -> None:
        """Write the state."""
        write_json(self.file, {"machine": self.machine, "data": self.data, "parts": self.parts})

    def open_machine(self, device: str) -> None:
        """Find out what the machine is.

        Args:
            device: "auto", "cuda" or "cpu".

        Raises:
            UserError: fusionseg cannot be imported, or the folder has the results of another machine.
        """
        command = [sys.executable, "-c", PROBE, device, *filter(None, (part.package for part in PARTS))]
        done = subprocess.run(command, env=self.environ, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"{sys.executable}: fusionseg cannot be used: {last[0]}; give --wheels, or set PYTHON")
        machine = json.loads(done.stdout.strip().splitlines()[-1])
        for key in ("device", "gpu", "torch"):
            if self.machine and self.machine[key] != machine[key]:
                raise UserError(
                    f"{self.out}: it has results of another machine (expected {key} {self.machine[key]}, got"
                    f" {machine[key]}); give another folder"
                )
        git = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
        try:
            machine["commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
        except OSError:
            machine["commit"] = None
        self.machine = machine
        self.save()

    def make_data(self, setting: Setting) -> None:
        """Make the synthetic data set, unless it is complete.

        Raises:
            RuntimeError: the program failed.
        """
        if not setting.synthetic or self.data == str(setting.data):
            return
        shutil.rmtree(setting.data, ignore_errors=True)
        cases, size = (6, 48) if setting.tiny else (10, 144)
        command = [sys.executable, "-m", "fusionseg", "synth", str(setting.data), "--cases", str(cases)]
        with (self.out / "data.log").open("w", encoding="utf-8") as log:
            self._call([*command, "--size", str(size)], log, log, time.monotonic() + 300)
        self.data = str(setting.data)
        self.save()

    def run_part(self, part: Part, setting: Setting, seconds: float) -> None:
        """Run a part, and record how it ended.

        Args:
            part: its earlier results are removed.
            setting: for the commands.
            seconds: time that is left; less than the limit of the part if the call is to end soon.
        """
        folder = setting.folder(part.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begun = time.monotonic()
        self.parts[part.name] = {"status": "interrupted", "reason": "the call ended", "seconds": 0}
        self.save()
        try:
            if part.data:
                self.make_data(setting)
            limit = time.monotonic() + min(part.limit_s, seconds - (time.monotonic() - begun))
            with (folder / "messages.log").open("w", encoding="utf-8") as log:
                for index, command in enumerate(part.commands(setting)):
                    log.write(f"$ {shlex.join(command)}\n")
                    log.flush()
                    suffix = "txt" if command[1] == "-m" else "md"
                    with (folder / f"{index}.{suffix}").open("w", encoding="utf-8") as page:
                        self._call(command, page, log, limit, part.statuses)
            reason = part.problem(setting)
            status = "failed" if reason else "passed"
        except TimeLimit:
            status, reason = "failed", f"longer than {part.limit_s} s"
            if seconds < part.limit_s:
                status, reason = "interrupted", "--minutes were over"
        except (RuntimeError, OSError, ValueError) as error:  # also a result that is missing or cut off
            status, reason = "failed", str(error)
        self.parts[part.name] = {"status": status, "reason": reason, "seconds": round(time.monotonic() - begun, 1)}
        self.save()

    def _call(self, command: list[str], out: Any, log: Any, limit: float, statuses: tuple[int, ...] = (0,)) -> None:
        """Run a command to its end; it and what it has started are killed if the limit or an exception comes first.

        Args:
            command: its standard output goes to `out`, its messages to `log`.
            out: open file.
            log: open file.
            limit: time.monotonic() at which the command is ended.
            statuses: exit statuses of success.

        Raises:
            TimeLimit: the limit was reached.
            RuntimeError: the command failed.
        """
        process = subprocess.Popen(
            command, stdout=out, stderr=log, stdin=subprocess.DEVNULL, env=self.environ, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeLimit from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status not in statuses:
            log.flush()
            lines = Path(log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"status {status}: {lines[-1].strip()[:150]}; see {log.name}")

    def line(self, part: Part) -> str:
        """Status line of a part."""
        state = self.parts.get(part.name, {"status": "not run", "reason": "", "seconds": None})
        reason = f" ({state['reason']})" if state["reason"] else ""
        seconds = "" if state["seconds"] is None else f", {state['seconds']:g} s"
        return f"{part.name}: {state['status']}{reason}{seconds}"

    def pack(self) -> None:
        """Write the table, and the archive of all tables, JSON files and logs."""
        write_text(self.out / "table.md", section(self.out))
        files = [self.file, self.out / "table.md"]
        files += [path for pattern in CONTENTS for path in sorted((self.out / "parts").glob(f"*/{pattern}"))]
        files += sorted((self.out / "parts").glob("*/runs/*/profile/report.*"))
        with whole_file(self.out / "results.tar.gz") as temporary, tarfile.open(temporary, "w:gz") as archive:
            for path in files:
                if path.stat().st_size <= LARGEST_BYTES:
                    archive.add(path, path.relative_to(self.out))


def not_possible(part: Part, machine: dict[str, Any]) -> str:
    """Reason why a part is skipped on a machine; "" if it can run."""
    if machine["device"] == "cpu" and not part.on_cpu:
        return "needs a GPU"
    if part.precision == "bf16" and not machine["has_bf16"]:
        return f"no bf16 on {machine['gpu'] or 'this CPU'}"
    if part.package and part.package not in machine["installed"]:
        return f"{part.package} is not installed; see --extra of profiling/wheels.py"
    return ""


def chosen_parts(only: list[str] | None, checks: Checks) -> list[Part]:
    """The parts to run: those that have not run, then those that failed; or the named ones."""
    if only:
        return [part for part in PARTS if part.name in only]
    states = {part.name: checks.parts.get(part.name, {}).get("status") for part in PARTS}
    waiting = [part for part in PARTS if states[part.name] not in ("passed", "failed")]
    return waiting + [part for part in PARTS if states[part.name] == "failed"]


def run_parts(arguments: argparse.Namespace, checks: Checks) -> int:
    """Run the parts, print their status lines, and return the exit status."""
    deadline = time.monotonic() + (60 * arguments.minutes if arguments.minutes else float("inf"))
    checks.open_machine(arguments.device)
    machine = checks.machine
    tiny = machine["device"] == "cpu"
    data = Path(arguments.data).absolute() if arguments.data else checks.out / "data"
    setting = Setting(
        checks.out, data, not arguments.data, machine["device"], machine["has_bf16"], tiny,
        arguments.rounds or (1 if tiny else 20),
    )  # fmt: skip
    try:
        for part in PARTS:
            if not arguments.only and checks.parts.get(part.name, {}).get("status") == "passed":
                print(f"{checks.line(part)} (earlier)", flush=True)
        for part in chosen_parts(arguments.only, checks):
            left = deadline - time.monotonic()
            if reason := not_possible(part, machine):
                checks.parts[part.name] = {"status": "skipped", "reason": reason, "seconds": 0}
            elif left < (5 if tiny else part.expected_s):
                if checks.parts.get(part.name, {}).get("status") != "failed":
                    checks.parts[part.name] = {"status": "not run", "reason": "--minutes are over", "seconds": 0}
            else:
                print(f"{part.name}: {part.about} ...", file=sys.stderr, flush=True)
                checks.run_part(part, setting, left)
            print(checks.line(part), flush=True)
    finally:
        checks.save()
        checks.pack()
    chosen = [part.name for part in PARTS if not arguments.only or part.name in arguments.only]
    open_parts = [name for name in chosen if checks.parts.get(name, {}).get("status") not in FINISHED]
    if open_parts:
        print(f"call again to continue with: {' '.join(open_parts)}", file=sys.stderr)
    return FAILED if open_parts else DONE


def main(words: list[str] | None = None) -> int:
    """Run the checks, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="bash profiling/gpu_checks.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels: what is missing is installed into OUT/site")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--data", help="folder of a data set (default: synthetic CTs, made once)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts, also if they have passed")
    parser.add_argument(
        "--minutes", type=float, help="end after this time; parts that do not fit wait for the next call"
    )
    parser.add_argument("--rounds", type=int, help="measured rounds of the benchmarks (default: 20; on a CPU 1)")
    parser.add_argument("--list", action="store_true", help="print the parts with their status, and run nothing")
    arguments = parser.parse_args(words)

    def work() -> int:
        names = [part.name for part in PARTS]
        problems = [
            f"--only: there is no part {name!r} (expected some of {', '.join(names)})"
            for name in arguments.only or [] if name not in names
        ]  # fmt: skip
        for option, value in (("--minutes", arguments.minutes), ("--rounds", arguments.rounds)):
            if value is not None and not value > 0:
                problems.append(f"{option}: out of range (expected more than 0, got {value:g})")
        if arguments.data and not Path(arguments.data).is_dir():
            problems.append(f"--data: {arguments.data} is no folder")
        if problems:
            raise UserError(problems)
        out = arguments.out.absolute()
        site = out / "site"
        search = [str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        checks = Checks(out, {**os.environ, "PYTHONPATH": os.pathsep.join(search)})
        if arguments.list:
            for part in PARTS:
                print(f"{checks.line(part):40} {part.about}")
            return DONE
        out.mkdir(parents=True, exist_ok=True)
        if arguments.wheels is not None:
            installed = install(arguments.wheels, site, ["bench", "nnunet"])
            print(f"installed into {site}: {', '.join(installed) or 'nothing'}", file=sys.stderr)
        return run_parts(arguments, checks)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running command too
    return run(work)


if __name__ == "__main__":
    sys.exit(main())
