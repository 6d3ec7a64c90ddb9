"""Benchmark of fusionseg against other training loops on the same data, network and precision.

    python profiling/benchmark.py                                        # on synthetic CTs
    python profiling/benchmark.py --data DATASET --json bench.json       # on your data set
    python profiling/benchmark.py --data DATASET --cases epoch start --recipes monai_fast --rounds 20

Cases:

- *data*: the samples of one step.
- *step*: a training step on tensors that stay on the device.
- *epoch*: a training step including its data.
- *validation*: the validation of one case.
- *checkpoint*: saving a checkpoint.
- *start*: from the start of the process to the end of the first step, with preprocessed data.
- *pretraining*: a step of the pre-training.
- *ranges*: the cost of the named ranges (`annotate`).

Loops: `fusionseg` is the training with the augmentation of MONAI's tutorial (flips and an intensity shift), `as
configured` the training with the configuration's own augmentation. `bare` is fusionseg's network in a minimal loop on
tensors that stay on the device. benchmark_recipes.py has the other recipes.

The loops are timed alternately. A ratio is the median over the rounds of `fusionseg / recipe`; below 1 fusionseg is
faster.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmark_cases import Bench
from benchmark_recipes import RECIPES

from fusionseg.data.synthetic.dataset import write_dataset
from fusionseg.performance.benchmarking import publish, step_arguments
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
CASES = ("data", "step", "epoch", "validation", "checkpoint", "start", "pretraining", "ranges")
NEEDS = {"monai_trainer": "ignite", "fabric": "lightning_fabric"}
# Settings of each network. The patch of the Swin network is that of MONAI's Swin UNETR tutorials.
NETWORKS = {
    "unet": [],
    "swin_unetr": ["model={name: swin_unetr, feature_size: 24}", "data.patch=[64, 64, 64]", "optim.lr=1e-3"],
}
DEFAULT_RECIPES = [name for name in RECIPES if name != "monai_fast_best"]  # compilation takes minutes


def case_table(case: str, measured: dict[str, Any]) -> str:
    """Format the result of a case as a table."""
    rows = [(case, "median ms", "spread ms", measured["ratio_of"])]
    for name, seconds in measured["median_s"].items():
        spread, ratio = measured["spread_s"].get(name), measured["ratio"].get(name)
        cells = (
            f"{1e3 * seconds:.4g}",
            "" if spread is None else f"{1e3 * spread:.2g}",
            "" if ratio is None else f"{ratio:.3g}",
        )
        rows.append((name, *cells))
    return markdown_table(rows)


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a page."""
    lines = [machine_line(result["machine"]), ""]
    for network, measured in result["networks"].items():
        lines += [f"## {network}: {measured['about']}", ""]
        for case, of_case in measured["cases"].items():
            lines += [case_table(case, of_case), ""]
    lines += result["left_out"]
    return "\n".join(lines).rstrip()


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "hippocampus_unet.yaml", steps=10, names=("rounds", "turns"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=DEFAULT_RECIPES)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore", module="(monai|lightning|torch|ignite).*")
    start_logging()
    for library in ("ignite", "lightning_fabric", "fusionseg"):
        logging.getLogger(library).setLevel(logging.WARNING)
    return run(lambda: _measure_all(arguments))


def _measure_all(arguments: argparse.Namespace) -> int:
    missing = {name for name in arguments.recipes if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None}
    recipes = [name for name in arguments.recipes if name not in missing]
    if not recipes:
        raise UserError(
            "--recipes: none of these recipes is installed; run pip install -c constraints.txt -e '.[bench]'"
        )
    result: dict[str, Any] = {
        "networks": {},
        "left_out": [f"not measured: {name} (not installed; pip install -e '.[bench]')" for name in sorted(missing)],
    }
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or str(write_dataset(Path(folder) / "synth", cases=10, size=96).parent)
        data = os.path.abspath(data)
        for network in arguments.networks:
            overrides = [*NETWORKS[network], *arguments.overrides]
            bench = Bench(arguments.config, overrides, data, recipes, arguments.rounds, Path(folder) / network)
            config = bench.ours.config
            patch, precision = "x".join(map(str, config.data.patch)), bench.ours.precision.name
            batch = config.train.global_batch
            about = f"{config.model.name}, {batch} patches of {patch}, {precision}, {len(bench.ours.data.cache)} cases"
            measured: dict[str, Any] = {"about": about, "cases": {}}
            result["machine"] = machine_info(bench.device)
            result["networks"][network] = measured
            for case in arguments.cases:
                print(f"{network}: {case}", file=sys.stderr, flush=True)
                measured["cases"][case] = bench.measure(case)
                print(case_table(case, measured["cases"][case]), file=sys.stderr, flush=True)
    publish(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
