"""Training time to a given validation Dice: a fusionseg configuration and MONAI's fast-training tutorial.

    python profiling/benchmark_to_dice.py --data /data/Task04_Hippocampus [--dice 0.83] [--config FILE]

The two trainings run one after the other in processes of their own. `training s` excludes the start and validations,
`whole s` includes them. The tutorial's U-Net is that of configs/hippocampus_unet.yaml with batch normalisation and
patches of 64^3, as in the tutorial.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fusionseg.performance.benchmarking import publish
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.runs.records import RecordKind, read_records
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ("data.patch=[64,64,64]", "model.norm=batch")


def ours(config: str, data: str, folder: Path, dice: float) -> dict[str, Any]:
    """Train a configuration until a validation reaches the Dice.

    Raises:
        UserError: the training ended earlier.
    """
    settings = [f"data.root={data}", f"output={folder}", "name=ours"]
    command = [sys.executable, "-m", "fusionseg.train", "--config", config, *settings]
    run, errors = folder / "ours", folder / "stderr.txt"
    begun = time.perf_counter()
    # A file, not a pipe: nothing reads a pipe during the training, so a full pipe would block it.
    with errors.open("w") as stderr, subprocess.Popen(command, stderr=stderr, cwd=ROOT) as process:
        while True:
            ended = process.poll() is not None
            if (found := _reached(run, dice)) is not None:
                process.kill()
                return {**found, "whole_s": time.perf_counter() - begun}
            if ended:
                raise UserError(
                    f"{' '.join(command)}: the training ended before a Dice of {dice}\n{errors.read_text()}"
                )
            time.sleep(0.1)


def _reached(run: Path, dice: float) -> dict[str, Any] | None:
    """Step, Dice and seconds of training at the first validation that reaches the Dice; None if there is none yet."""
    training_s, last_step = 0.0, 0
    for record in read_records(run):
        if record["kind"] == RecordKind.TRAIN:
            training_s += record["step_s"] * (record["step"] - last_step)
            last_step = record["step"]
        elif record["kind"] == RecordKind.VAL and record["dice"] >= dice:
            return {"steps": record["step"], "dice": record["dice"], "training_s": training_s}
    return None


def tutorial(data: str, dice: float, every_s: float) -> dict[str, Any]:
    """Train the tutorial's recipe until a validation reaches the Dice.

    Args:
        data: folder of the data set.
        dice: mean validation Dice to reach.
        every_s: seconds of training between two validations.
    """
    script, config = str(ROOT / "profiling/benchmark_recipes.py"), str(ROOT / "configs/hippocampus_unet.yaml")
    options = [f"data.root={data}", *TUTORIAL, "--until-dice", str(dice), "--every-s", str(every_s)]
    last = json.loads(_call([sys.executable, script, "monai_fast", "--config", config, *options]).splitlines()[-1])
    return {
        "steps": last["steps"], "dice": last["dice"], "training_s": last["trained_s"], "whole_s": last["total_s"],
    }  # fmt: skip


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: the program failed with exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--dice", type=float, default=0.83, help="mean validation Dice to reach (default: 0.83)")
    parser.add_argument(
        "--config", default=str(ROOT / "configs/hippocampus_fast.yaml"), help="default: hippocampus_fast.yaml"
    )
    parser.add_argument(
        "--every-s", type=float, default=20.0, help="seconds of training between the tutorial's validations"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    start_logging()

    def work() -> int:
        data = str(Path(arguments.data).resolve())
        with tempfile.TemporaryDirectory() as folder:
            mine = ours(arguments.config, data, Path(folder), arguments.dice)
        theirs = tutorial(data, arguments.dice, arguments.every_s)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ratio = mine["training_s"] / theirs["training_s"]
        result = {"machine": machine_info(device), "fusionseg": mine, "monai_fast": theirs, "ratio": ratio}
        rows: list[tuple[str, ...]] = [("recipe", "steps", "Dice", "training s", "whole s", "fusionseg / recipe")]
        for name, found, shown in ((Path(arguments.config).stem, mine, ""), ("monai_fast", theirs, f"{ratio:.2f}")):
            seconds = (f"{found['training_s']:.0f}", f"{found['whole_s']:.0f}")
            rows.append((name, str(found["steps"]), f"{found['dice']:.3f}", *seconds, shown))
        publish(result, f"{machine_line(result['machine'])}\n\n{markdown_table(rows)}", arguments.json)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
