"""Time of the commands that read many runs: `submit --dry-run`, `status` and `compare`.

    python profiling/benchmark_sweep.py [--runs 200]

Each time is that of a whole process. `submit --dry-run` plans a sweep. Then the program fills the run folders with the
records of finished runs (1000 steps, a train record every 10 steps, ten validations), which `status` and `compare`
read. SLURM is not used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fusionseg.cluster.sweep import load_sweep
from fusionseg.config import RunConfig
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.runs.environment import write_environment
from fusionseg.runs.job_events import JobEvent, write_event
from fusionseg.runs.records import RecordKind, RecordWriter, RunStatus
from fusionseg.runs.run_config import write_run_config
from fusionseg.utils.exit_status import run
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).parents[1]


def finish(folder: Path, config: RunConfig, seed: int) -> None:
    """Write a run folder as a finished run leaves it.

    Args:
        folder: run folder.
        config: configuration of the run.
        seed: number that makes the scores of the runs differ.
    """
    write_run_config(folder, config)
    write_environment(folder, [], parameters=1_000_000, implementation="plain")
    records = RecordWriter(folder)
    for step in range(10, 1001, 10):
        measured = {"step_s": 0.3, "data_s": 0.01, "samples_per_s": 7.0 + seed % 3, "memory_gb": 1.5}
        records.write(RecordKind.TRAIN, step, loss=1 / step, lr=1e-3, grad_norm=1.0, **measured)
        if step % 100 == 0:
            dice = 0.8 + step / 1e5 + seed / 1e4
            records.write(RecordKind.VAL, step, dice=dice, dice_per_class={"a": dice, "b": dice})
    end = {"status": RunStatus.COMPLETED, "reason": "step 1000", "best_dice": dice, "total_s": 300.0}
    records.write(RecordKind.END, 1000, **end)
    records.close()
    write_event(folder, JobEvent.SUBMITTED, job="1_0", log="log", steps=1000)
    write_event(folder, JobEvent.FINISHED, job="1_0", step=1000)


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="runs of the sweep (default: 200)")
    options = parser.parse_args()

    def timed(*arguments: object) -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "fusionseg", *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        return time.perf_counter() - start

    def work() -> int:
        with tempfile.TemporaryDirectory() as name:
            sweep = Path(name) / "many.yaml"
            seeds = list(range(options.runs // 2))
            base = ROOT / "configs/hippocampus_unet.yaml"
            sweep.write_text(
                f"name: many\nbase: {base}\ngrid: {{model.name: [unet, resunet], seed: {seeds}}}\n", encoding="utf-8"
            )
            profile = ROOT / "slurm/clusters/t4.yaml"
            timed("synth", f"{name}/data", "--cases", 5, "--size", 48)  # submit reads the data set
            settings = (f"output={name}/runs", f"data.root={name}/data")
            dry_run = timed("submit", sweep, "--cluster", profile, *settings, "--dry-run")
            rows = [("submit --dry-run", dry_run)]
            for seed, planned in enumerate(load_sweep(sweep, [f"output={name}/runs"]).runs):
                finish(planned.folder, planned.config, seed)
            rows.append(("status", timed("status", Path(name) / "runs/many")))
            rows.append(("compare", timed("compare", Path(name) / "runs/many")))
        table = markdown_table([("command", "s"), *((command, f"{seconds:.2f}") for command, seconds in rows)])
        print(f"{options.runs} runs\n{machine_line(machine_info(torch.device('cpu')))}\n\n{table}")
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
