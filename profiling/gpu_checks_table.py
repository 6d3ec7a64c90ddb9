"""Turn the results of profiling/gpu_checks.sh into the section "On a GPU" of docs/benchmarks.md.

    python profiling/gpu_checks_table.py OUT                            # print it
    python profiling/gpu_checks_table.py OUT --into docs/benchmarks.md  # replace the section in the page

The section has the device, the date, the versions, the main values, and the table of each part. OUT may also be the
folder into which OUT/results.tar.gz was unpacked.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from gpu_checks_parts import PARTS

from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.files import write_text
from fusionseg.utils.tables import markdown_table

HEADING = "## On a GPU"


def section(out: Path) -> str:
    """The section, from the results in a folder.

    Raises:
        UserError: the folder has no results.
    """
    state = out / "status.json"
    if not state.exists():
        raise UserError(f"{out}: no results of profiling/gpu_checks.sh (expected the file status.json)")
    known = json.loads(state.read_text(encoding="utf-8"))
    machine, states = known["machine"], known["parts"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']} (driver {machine['driver']}, CUDA {machine['cuda']}), " if machine["gpu"] else "no GPU, "
    commit = f", commit {machine['commit']}" if machine.get("commit") else ""
    lines = [
        HEADING,
        "",
        f"{machine['date']}, {gpu}{machine['cpus']} CPUs of {machine['processor']}. {versions}{commit}.",
    ]
    if machine["device"] == "cpu":
        lines.append("**Tiny sizes on a CPU, which test the script only. The values mean nothing.**")
    lines += ["", "```", "bash profiling/gpu_checks.sh OUT", "python profiling/gpu_checks_table.py OUT", "```", ""]
    if values := main_values(out):
        lines += [markdown_table([("measure", "value"), *values]), ""]
    rows = [("part", "content", "status", "s")]
    for part in PARTS:
        state_of = states.get(part.name, {"status": "not run", "reason": "", "seconds": 0})
        reason = f" ({state_of['reason'].split('; see ')[0]})" if state_of["reason"] else ""
        status = f"{state_of['status']}{reason}".replace("|", "/")
        rows.append((f"`{part.name}`", part.about, status, f"{state_of['seconds']:.0f}"))
    lines += [markdown_table(rows), ""]
    for part in PARTS:
        if states.get(part.name, {}).get("status") == "passed":
            lines += [f"### `{part.name}`", "", f"{part.about[0].upper()}{part.about[1:]}.", ""]
            lines += pages(out / "parts" / part.name)
    return "\n".join(lines).rstrip() + "\n"


def pages(folder: Path) -> list[str]:
    """Lines of the pages of a part; headings are below that of the part, pictures are left out."""
    lines: list[str] = []
    for path in sorted(folder.glob("[0-9]*.*"), key=lambda path: int(path.stem)):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not text:
            continue
        if path.suffix == ".txt":
            lines += ["```", text, "```", ""]
            continue
        text = re.sub(r"^#+ ", "#### ", text, flags=re.MULTILINE)
        lines += [*(line for line in text.splitlines() if not line.startswith("![")), ""]
    return lines


def main_values(out: Path) -> list[tuple[str, str]]:
    """The values that one looks for first, as rows: what they are, and the value."""
    found = []
    if resumed := _json(out / "parts" / "resume" / "resume.json"):
        largest = resumed["largest_difference"]
        found.append(("largest difference of a loss after kill and resume", f"{largest:.3g}"))
    for path in sorted((out / "parts" / "roofline").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.append((f"MFU, `{path.stem}` ({result['precision']})", f"{result['mfu']:.1%}"))
    for name in ("step", "step_compiled"):
        result = _json(out / "parts" / name / f"{name}.json")
        for case, measured in (result["networks"]["unet"]["cases"] if result else {}).items():
            for recipe, ratio in measured["ratio"].items():
                if recipe.startswith("monai"):
                    found.append((f"`{name}`: {case} of the U-Net / `{recipe}`", f"{ratio:.2f}"))
    for name in ("swin", "swin_compiled"):
        result = _json(out / "parts" / name / f"{name}.json")
        found += [
            (f"`{name}`: step of `{row['network']}` / MONAI ({row['precision']})", f"{row['time_ratio']:.2f}")
            for row in (result or {"rows": []})["rows"]
            if row["network"] != "monai" and "time_ratio" in row
        ]
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def put_into(page: Path, text: str) -> None:
    """Replace the section of a page.

    Raises:
        UserError: the page does not have the section.
    """
    old = page.read_text(encoding="utf-8")
    found = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", old, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise UserError(f"{page}: it has no section {HEADING!r} to replace")
    rest = old[found.end() :]
    write_text(page, old[: found.start()] + text + ("\n" + rest if rest else ""))


def main() -> int:
    """Print the section or write it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="replace the section in this page")
    arguments = parser.parse_args()

    def work() -> int:
        text = section(arguments.out)
        if arguments.into is None:
            print(text, end="")
        else:
            put_into(arguments.into, text)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
