"""Count the device operators of training steps on a pretended GPU, and compare them with their budgets.

    python profiling/count_operators.py [--config NAME ... | --networks [NAME ...]] [--ranks N] [--json FILE]
                                        [key.path=value ...]

No GPU is needed. The real trainer runs on a pretended GPU (`fusionseg.performance.pretended_gpu`; g++ builds a small
library once) and every operator that it would launch is counted, by phase of the step. The program also makes sure that
the steps from the second on launch the same operators, in the same order, and that none of them waits for the GPU. The
budgets are in `profiling/operator_budgets.yaml`. With key.path=value the settings of the rows change, and there is no
comparison. With `--networks` the rows are networks with their default settings (without names, all of them), every
augmentation, and fp16 and bf16 in turn. With `--ranks` there are N ranks with a GPU each, of which one runs and the
others are pretended; the global batch is N times as large. Collective operations are counted with the other operators,
and named in a column of their own: the all-reduces of DDP, or the all-gathers and reduce-scatters of
`distributed.parallel=fsdp`.

A row that fails is reported, and the other rows are counted. With `--json` every row is written when it is counted. The
same command again continues: rows without problems that the file has from the same code are not counted again.

The exit status is 1 if a row fails, or a step has more operators than its budget, waits for the GPU, or differs from
the step before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml

import fusionseg
from fusionseg.config import RunConfig, load_config
from fusionseg.data.preprocessing.prepare import open_configured, open_store, prepare
from fusionseg.data.synthetic.dataset import write_dataset
from fusionseg.models.network_list import default_configs
from fusionseg.performance.pretended_gpu.library import is_loaded, restart_with_pretended_gpu
from fusionseg.performance.pretended_gpu.operator_count import Operators
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.files import write_json
from fusionseg.utils.tables import markdown_table

HERE = Path(__file__).resolve().parent
PHASES = ("data", "forward", "loss", "backward", "optimizer", "allreduce", "step")
_DATA_STEPS = 24  # steps whose patches are counted, so that rare augmentations are drawn too


def read_rows(file: Path, names: list[str]) -> list[dict[str, Any]]:
    """Read the rows of the budgets.

    Args:
        file: of the budgets.
        names: the configurations; empty for all.

    Raises:
        UserError: there is no row of one of the names.
    """
    rows: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))["rows"]
    known = {row["config"] for row in rows}
    if unknown := sorted(set(names) - known):
        raise UserError(f"--config: no budget for {', '.join(unknown)} (expected one of {', '.join(sorted(known))})")
    return [row for row in rows if not names or row["config"] in names]


def network_rows(names: list[str]) -> list[dict[str, Any]]:
    """Make a row for each network, with every augmentation, fp16 on a T4 and bf16 on an H100 in turn."""
    rows = []
    for index, network in enumerate(default_configs(names)):
        fp16 = index % 2 == 0
        settings = {
            "model": {"name": network.name},
            "augment": "nnunet",
            "train.precision": "fp16" if fp16 else "bf16",
            "data.patch": [64, 64, 64],
        }
        # Patches are made in the same way for every network.
        rows.append({"config": "base", "settings": settings, "capability": "7.5" if fp16 else "9.0", "data_steps": 0})
    return rows


def configuration(row: dict[str, Any], overrides: list[str], folder: Path) -> RunConfig:
    """The configuration of a row, for the synthetic data in a folder."""
    settings = {"device": "cuda", "data.root": str(folder / "data"), "output": str(folder / "runs"), "train.threads": 1}
    # Threads would enter the mode of the fake tensors at the same time.
    settings |= {"data.workers": 1, "cache.read_threads": 1, "log.tensorboard": False}
    settings |= row.get("settings", {})
    # JSON is YAML, and `key.path=value` takes YAML.
    overrides = [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), *overrides]
    config = load_config(row["config"], overrides)
    if (ranks := row.get("ranks", 1)) > 1:  # each has the work of one
        config = load_config(row["config"], [*overrides, f"train.global_batch={ranks * config.train.global_batch}"])
    return config


def prepare_data(configs: list[RunConfig], folder: Path) -> None:
    """Make a small data set in a folder, and prepare it for the configurations."""
    write_dataset(folder / "data", cases=6, size=96)
    for config in configs:
        dataset = open_configured(config.data)
        prepare(config.data, dataset, open_store(config.data, config.output, dataset))


def count(row: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Count the operators of some steps: by phase, the most of any step from the second on.

    With `train.cuda_graph` the steps of the warm-up run as they are; then one is recorded, and two are replayed.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException

    from fusionseg.performance.pretended_gpu.pretended_run import pretended_run

    most: Counter[str] = Counter()
    operators = Operators()
    sequences, problems = [], []
    micro_batches = 1
    major, minor = row["capability"].split(".")
    with pretended_run(config, (int(major), int(minor)), row.get("ranks", 1)) as pretended:
        graphs = pretended.trainer.train_step.graphs
        launching = 3 if graphs is None else graphs.warm_up + 1  # the later steps are replayed
        steps = launching if graphs is None else launching + 2
        micro_batches = pretended.trainer.micro_batches.accumulation_steps
        try:
            for step in range(steps):
                launched = pretended.step()
                if step < launching:
                    operators = launched
                if step:  # the first step makes the state of the optimizer
                    most |= Counter(launched.phases())
                    sequences.append([key for key in launched.sequence if key[0] not in ("data", "step")])
            for step in range(steps, steps + row.get("data_steps", _DATA_STEPS)):
                most |= Counter(pretended.data(step).phases())
        except DataDependentOutputException as error:
            problems.append(f"reads a value from the GPU: {error}")
    most["data"] = -(-most["data"] // micro_batches)
    problems += [f"waits for the GPU:\n{place}" for place in pretended.waits]
    if any(sequence != sequences[0] for sequence in sequences[: launching - 1]):
        problems.append("has other operators in one step than in another")
    if any(sequences[launching - 1 :]):
        problems.append("launches operators of a step beside its graph")
    counts = {phase: most[phase] for phase in PHASES}
    total = sum(counts.values()) + (micro_batches - 1) * counts["data"]
    return {"operators": counts, "sum": total, "problems": problems, "launched": _by_phase(operators)}


def count_rows(
    rows: list[dict[str, Any]], overrides: list[str], folder: Path, file: Path | None
) -> list[dict[str, Any]]:
    """Count the operators of rows.

    Args:
        rows: as `read_rows` or `network_rows` return them.
        overrides: settings for all rows.
        folder: of the data.
        file: receives each row when it is counted. Its rows without problems, from the same code, are taken from it.

    Returns:
        The result of each row. A row that raises an exception has it as its problem.
    """
    code = code_hash()
    stored = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}
    known = stored.get("results", []) if stored.get("code") == code else []
    keys: list[dict[str, Any]] = [{"row": row, "overrides": overrides} for row in rows]
    results: list[dict[str, Any]] = []
    for position, key in enumerate(keys, start=1):
        result = next((old for old in known if key.items() <= old.items() and not old["problems"]), None)
        if result is None:
            result = {**key, **_count_or_report(key["row"], overrides, folder)}
            result["problems"] += exceeded(key["row"], result["operators"])
        results.append(result)
        print(f"{position}/{len(rows)} {_title(key['row'])}: {result['sum']} operators", *result["problems"],
              sep="\n  ", file=sys.stderr, flush=True)  # fmt: skip
        if file is not None:
            others = [old for old in known if not any(key.items() <= old.items() for key in keys[:position])]
            write_json(file, {"code": code, "results": [*results, *others]})
    return results


def _count_or_report(row: dict[str, Any], overrides: list[str], folder: Path) -> dict[str, Any]:
    try:
        return count(row, configuration(row, overrides, folder))
    except Exception:  # the counts of the other rows are not lost
        counts = dict.fromkeys(PHASES, 0)
        problem = f"fails:\n{traceback.format_exc()}"
        return {"operators": counts, "sum": 0, "problems": [problem], "launched": {}}


def code_hash() -> str:
    """Hash what the counts depend on: fusionseg with its configurations, this program, and the version of torch."""
    package = Path(fusionseg.__file__).parent
    sources = [file for kind in ("py", "cpp", "yaml") for file in package.rglob(f"*.{kind}")]
    files = [Path(__file__), *sorted(sources), *sorted((package / "resources/configs").glob("*.yaml"))]
    return hashlib.sha256(b"".join([torch.__version__.encode(), *(file.read_bytes() for file in files)])).hexdigest()


def _title(row: dict[str, Any]) -> str:
    network = row.get("settings", {}).get("model")
    return network["name"] if network else row["config"]


def _by_phase(operators: Operators) -> dict[str, dict[str, int]]:
    """The operators of each phase, the most frequent first."""
    found: dict[str, dict[str, int]] = {phase: {} for phase in PHASES}
    for (phase, name), launched in operators.launched.most_common():
        found.setdefault(phase, {})[name] = launched
    return found


def exceeded(row: dict[str, Any], operators: dict[str, int]) -> list[str]:
    """Name the phases with more operators than their budget."""
    budget = row.get("budget", {})
    return [
        f"{phase}: {operators[phase]} operators (expected at most {budget[phase]})"
        for phase in PHASES
        if phase in budget and operators[phase] > budget[phase]
    ]


def table(results: list[dict[str, Any]]) -> str:
    """The table of the counts, with the budgets."""
    lines = [("configuration", "settings", "GPU", "ranks", *PHASES, "sum of a step", "collective operations")]
    for result in results:
        row, operators = result["row"], result["operators"]
        budget = row.get("budget", {})
        cells = [
            f"{operators[phase]}/{budget[phase]}" if phase in budget else f"{operators[phase]}" for phase in PHASES
        ]
        settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in row.get("settings", {}).items())
        ranks = str(row.get("ranks", 1))
        total = str(result["sum"])
        lines.append((row["config"], settings, row["capability"], ranks, *cells, total, _collective_text(result)))
    return markdown_table(lines)


def _collective_text(result: dict[str, Any]) -> str:
    """Name the collective operations of a step: "2 all_reduce"."""
    total: Counter[str] = Counter()
    for launched in result["launched"].values():
        for name, count in launched.items():
            if name.startswith("collective."):
                total[name.split(".")[1]] += count
    return ", ".join(f"{count} {name}" for name, count in sorted(total.items()))


def main() -> int:
    """Count, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=[], metavar="NAME", help="configurations (default: all)")
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="count networks instead (default: all)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write each row with its operators; its counted rows are kept"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="number of ranks of all rows")
    parser.add_argument("--budgets", type=Path, default=HERE / "operator_budgets.yaml", help="file of the budgets")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of the data, for the second start
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_args()
    rows = (
        read_rows(arguments.budgets, arguments.config)
        if arguments.networks is None
        else network_rows(arguments.networks)
    )
    if arguments.overrides:
        rows = [{key: value for key, value in row.items() if key != "budget"} for row in rows]
    if arguments.ranks is not None:
        rows = [
            {**{key: value for key, value in row.items() if key != "budget"}, "ranks": arguments.ranks} for row in rows
        ]
    if not is_loaded():  # the data are prepared by processes without the pretended GPU
        with tempfile.TemporaryDirectory() as folder:
            prepare_data([configuration(row, arguments.overrides, Path(folder)) for row in rows], Path(folder))
            return restart_with_pretended_gpu(["--folder", folder])
    results = count_rows(rows, arguments.overrides, Path(arguments.folder), arguments.json)
    print(table(results))
    for result in results:
        for problem in result["problems"]:
            print(f"{result['row']['config']} {result['row'].get('settings', '')}: {problem}")
    return int(any(result["problems"] for result in results))


if __name__ == "__main__":
    sys.exit(run(main))
