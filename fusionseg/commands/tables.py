"""The command `table`: from a sweep to its table of results."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fusionseg.commands.base import Commands, add_command, add_trust, loading
from fusionseg.utils.exit_status import DONE, FAILED
from fusionseg.utils.logs import log
from fusionseg.utils.tables import counted

if TYPE_CHECKING:
    from pathlib import Path

    from fusionseg.cluster.profile import ClusterConfig
    from fusionseg.cluster.sweep import Sweep
    from fusionseg.inference.comparison.rows import Comparison
    from fusionseg.inference.predictor import PredictOptions


def add_table(commands: Commands) -> None:
    parser = add_command(
        commands,
        "table",
        "the table of a sweep: train what is missing, evaluate every run, compare; the same command again continues",
        """fusionseg table table2 data.root=/data/PARSE output=/scratch/runs
  fusionseg table table1 --cluster t4 data.root=/data/PARSE output=/scratch/runs
  fusionseg table hippocampus_table cluster.gpus_per_node=0 data.root=/data/Task04_Hippocampus output=runs""",
        _table,
    )
    parser.add_argument("sweep", help="YAML file of the sweep, or the name of a shipped one")
    parser.add_argument(
        "--cluster",
        default="local",
        metavar="FILE|NAME",
        help="cluster profile for the trainings (default: local, this machine)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="for all runs; cluster.KEY=value is for the profile"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print every run and the batch script; train and submit nothing"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to evaluate (default auto)"
    )
    add_trust(parser)


def _table(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.cluster.profile import load_cluster
        from fusionseg.cluster.resources.of_runs import with_resources
        from fusionseg.cluster.sweep import load_sweep, sweep_order
        from fusionseg.commands.submission import split_overrides, submit_sweep
        from fusionseg.inference.comparison.table import table_path

    files = sweep_order(arguments.sweep)
    # A fault in the last sweep is reported before the first one trains for hours.
    of_profile, of_runs = split_overrides(arguments.overrides)
    cluster = load_cluster(arguments.cluster, of_profile)
    sweeps = [with_resources(load_sweep(file, of_runs), arguments.cluster, cluster, of_profile) for file in files]
    _check_baseline(sweeps[-1])
    for number, file in enumerate(files):
        submitted = submit_sweep(file, arguments.cluster, arguments.overrides, dry_run=arguments.dry_run)
        sweep, failed = submitted.sweep, submitted.failed
        unfinished = len(sweep.unfinished())
        if arguments.dry_run and unfinished:
            # A later sweep may start from these runs. Its cases cannot be checked without them.
            for later in sweeps[number + 1 :]:
                runs = counted(len(later.runs), "run")
                print(f"\n{later.folder}: {runs}, to train after those of {sweep.folder.name}")
            return DONE
        if not submitted.is_complete or unfinished > failed or (failed and file != files[-1]):
            done, runs = len(sweep.runs) - unfinished, counted(len(sweep.runs), "run")
            print(
                f"\n{sweep.folder}: {done} of {runs} finished; the same command continues, and makes the table when all"
                " are"
            )
            if (earlier := table_path(sweeps[-1].folder)).exists():
                print(f"{earlier}: was made earlier, and does not have the runs since then")
            return DONE if submitted.is_queued and not failed else FAILED
    if arguments.dry_run:
        return DONE
    complete = _evaluate(sweep, submitted.cluster, arguments.device)
    _write(sweep)
    return DONE if complete and not failed else FAILED


def _check_baseline(sweep: Sweep) -> None:
    """Make sure that some runs have the name of `table.against`.

    Raises:
        UserError: no runs have it.
    """
    from fusionseg.inference.comparison.run_summary import name_without_repetition
    from fusionseg.utils.errors import UserError, suggest

    wanted, names = sweep.table.against, [name_without_repetition(run.config.name) for run in sweep.runs]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"{sweep.file}: table.against: no runs are called {wanted!r} without seed and fold;"
            f" {suggest(wanted, list(dict.fromkeys(names)))}"
        )


def _evaluate(sweep: Sweep, cluster: ClusterConfig, device: str) -> bool:
    """Evaluate the runs of a sweep and the ensembles of its table; tell whether all cases could be scored."""
    from fusionseg.cluster.local_evaluation import evaluate_locally
    from fusionseg.cluster.slots import slots_for
    from fusionseg.inference.evaluation.one_run import evaluate_run
    from fusionseg.inference.evaluation.opening import EvaluationOptions
    from fusionseg.inference.evaluation.several_runs import due_runs, evaluate_runs
    from fusionseg.inference.predictor import PredictOptions
    from fusionseg.runs.paths import has_weights

    prediction = PredictOptions(device, "last")
    runs, options = [run.folder for run in sweep.runs], EvaluationOptions(prediction, skip_existing=True)
    # One evaluation at a time needs no processes.
    if cluster.cluster == "local" and len(slots_for(cluster)) > 1 and len(due := due_runs(runs, options)) > 1:
        evaluate_locally(sweep, due, cluster, device)
    outcomes = evaluate_runs(runs, options)  # the results are there already, or this run shows why not
    complete = outcomes.all_complete
    for first, *others in sweep.ensembles():
        folders = [run.folder for run in others]
        if folders and all(map(has_weights, (first.folder, *folders))):
            options = EvaluationOptions(prediction, others=folders, skip_existing=True)
            complete &= evaluate_run(first.folder, options).is_complete
    if sweep.table.postprocess:
        complete &= _evaluate_postprocessed([run.folder for run in sweep.runs], prediction)
    return complete


def _evaluate_postprocessed(runs: list[Path], prediction: PredictOptions) -> bool:
    """Choose a post-processing for the runs of each configuration, and score its masks; tell whether all could be."""
    from fusionseg.inference.comparison.rows import compare
    from fusionseg.inference.evaluation.opening import EvaluationOptions
    from fusionseg.inference.evaluation.several_runs import evaluate_runs
    from fusionseg.inference.postprocessing.files import AUTO
    from fusionseg.inference.postprocessing.sweep import choose_where_due
    from fusionseg.utils.errors import UserError

    options = EvaluationOptions(prediction, skip_existing=True, postprocess=AUTO)
    complete = True
    for row in compare(runs).rows:
        folders = [run.path for run in row.runs]
        try:
            choose_where_due(folders, prediction.checkpoint)
        except UserError as error:
            complete = False
            for problem in error.problems:
                log.error("table.postprocess: %s", problem)
        else:
            complete &= evaluate_runs(folders, options).all_complete
    return complete


def _write(sweep: Sweep) -> None:
    """Print the table, and write it into the folder of the sweep."""
    from fusionseg.inference.comparison.layout import unknown_metrics, with_metrics, with_names
    from fusionseg.inference.comparison.paired import with_baseline
    from fusionseg.inference.comparison.rows import compare
    from fusionseg.inference.comparison.table import write_comparison

    wanted = sweep.table
    comparison = compare(
        [run.folder for run in sweep.runs],
        ensembles=wanted.ensemble_over is not None,
        postprocessed=wanted.postprocess,
    )
    whole = comparison
    if wanted.metrics:
        for problem in unknown_metrics(comparison, wanted.metrics):
            log.warning("%s: table.metrics: %s", sweep.file, problem)
        comparison = with_metrics(comparison, wanted.metrics, must_exist=False)
    if wanted.against is not None:
        comparison = with_baseline(comparison, wanted.against, must_exist=False)
    if wanted.rows == "name":
        comparison = with_names(comparison)
    print(f"\n{write_comparison(comparison, sweep.folder)}")
    if wanted.statistics:
        _write_statistics(sweep, whole)


def _write_statistics(sweep: Sweep, comparison: Comparison) -> None:
    """Print the statistics and the best configuration, and write their files into the folder of the sweep."""
    from fusionseg.inference.statistics.analysis import analyse
    from fusionseg.inference.statistics.best import best_text, choose
    from fusionseg.inference.statistics.files import write_best, write_statistics
    from fusionseg.inference.statistics.pooled import pool
    from fusionseg.utils.errors import UserError, suggest

    against = sweep.table.against
    try:
        pooled = pool(comparison)
        names = [row.name for group in pooled.groups for row in group.rows]
        if against is not None and against not in names:
            log.warning(
                "%s: table.statistics: no row is called %r, so there are no paired tests; %s",
                sweep.file,
                against,
                suggest(against, names),
            )
            against = None
        found = analyse(pooled, against)
        print(f"\n{write_statistics(found, pooled, sweep.folder)}")
        choices, problems = choose(pooled, "dice")
        write_best(choices, sweep.folder)
        print(f"\n{best_text(choices)}")
        for problem in problems:
            log.warning("%s: table.statistics: %s", sweep.file, problem)
    except UserError as error:
        for problem in error.problems:
            log.warning("%s: table.statistics: %s", sweep.file, problem)
