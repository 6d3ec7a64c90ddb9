"""The evaluation of one run, from its folder to its results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.config import RunConfig
from fusionseg.config.data.labels import LABEL_KEYS, LabelSettings
from fusionseg.config.data.splits import ALL
from fusionseg.data.formats.dataset import Dataset, open_dataset
from fusionseg.data.formats.readers import Readers
from fusionseg.inference.evaluation.cases import all_labelled_cases, evaluation_config, validation_cases
from fusionseg.inference.evaluation.detail_tables import detail_tables
from fusionseg.inference.evaluation.measuring import metric_definitions
from fusionseg.inference.evaluation.pretraining import evaluate_pretraining
from fusionseg.inference.evaluation.results import (
    Evaluation,
    best_and_worst,
    pretraining_table,
    segmentation_table,
    validation_table,
)
from fusionseg.inference.evaluation.segmentation import evaluate_segmentation
from fusionseg.inference.evaluation.validation import evaluate_by_validation
from fusionseg.inference.postprocessing.evaluated import EvaluatedPostProcessing, evaluated_postprocessing, requested
from fusionseg.inference.postprocessing.files import NONE
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.archive.layout import is_archive
from fusionseg.runs.cases.split_file import NO_VALIDATION
from fusionseg.runs.checkpoints import find_weights
from fusionseg.runs.evaluations import (
    CASES,
    MASKS,
    PICTURE,
    SUMMARY,
    VOLUMES,
    EvaluationRequest,
    evaluation_folder,
    is_current,
    read_summary,
    results_folder,
)
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

log = logging.getLogger("fusionseg")

EVALUATED, KEPT, NO_WEIGHTS, INCOMPLETE, FAILED = "evaluated", "kept", "no weights yet", "cases failed", "failed"
NOT_VALIDATED = "no validation cases"


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of `fusionseg evaluate`, the same for each run."""

    prediction: PredictOptions
    overrides: Sequence[str] = ()
    """`key.path=value` settings, such as data.root, that are laid over the configuration of each run."""
    dataset_root: str | None = None
    """A data set whose labelled cases are all scored; None means each run's own validation cases."""
    base_dir: str | None = None
    """The folder at which the relative paths of that data set's list start; None is that which the list states."""
    others: Sequence[Path] = ()
    """Runs whose predictions are averaged with those of the run."""
    include_trained: bool = False
    """Whether the means count cases that were trained on."""
    skip_existing: bool = False
    """Whether a complete evaluation that is newer than the weights is kept."""
    volumes: bool = False
    """Whether the reconstructed volumes of a pre-training are written."""
    masks: bool = True
    """Whether the masks of a segmentation are kept in the folder of the evaluation."""
    workers: int | None = None
    """Processes that compute the metrics of a segmentation; None chooses their number, and 1 starts none."""
    postprocess: str = NONE
    """The post-processing of the masks: `AUTO` for that of the runs, `NONE`, or the path of a file."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of the evaluation of one run: a state, such as EVALUATED, and a remark for the table."""

    state: str
    remark: str

    @property
    def is_complete(self) -> bool:
        """False if a case or the whole run failed. A run without weights has not failed."""
        return self.state not in (INCOMPLETE, FAILED)


@dataclass(frozen=True)
class OpenedEvaluation:
    """An evaluation of one run, before anything is predicted."""

    run: Path
    config: RunConfig
    """The run's configuration with the paths that are valid now."""
    options: EvaluationOptions
    dataset: Dataset | None
    """The data set whose cases are scored; None means the run's own validation cases."""
    request: EvaluationRequest
    folder: Path
    """The folder for the results."""
    postprocessing: EvaluatedPostProcessing | None = None

    def is_current(self) -> bool:
        """Tell whether the folder holds the complete results of this evaluation, newer than the weights."""
        if self.postprocessing is not None and not self.postprocessing.is_recorded_in(read_summary(self.folder)):
            return False
        weights = [find_weights(one, self.options.prediction.checkpoint) for one in (self.run, *self.options.others)]
        segments = self.config.task_info.evaluation == "masks"
        folders = {VOLUMES: self.options.volumes, MASKS: segments and self.options.masks}
        return is_current(
            self.folder,
            self.request,
            weights,
            folders=[name for name, is_asked in folders.items() if is_asked],
            tables=detail_tables(self.config.evaluate) if segments else (),
            definitions=metric_definitions(self.config.evaluate, self.config.metrics) if segments else None,
        )


def evaluate_run(run: Path, options: EvaluationOptions) -> Outcome:
    """Evaluate a run, print its table, and write its results into its folder.

    Args:
        run: the run folder.
        options: the options of the evaluation.

    Raises:
        UserError: the run cannot be evaluated with these options.
    """
    opened = open_evaluation(run, options)
    if options.skip_existing and opened.is_current():
        log.info("%s: is newer than the weights and is kept", opened.folder)
        return Outcome(KEPT, opened.folder.name)
    evaluation = compute_evaluation(opened)
    summary = evaluation.summary
    weights = f"weights: {Path(str(summary['checkpoint'])).name}, step {summary['step']}"
    if opened.config.data.fold == ALL:
        weights += f"; {NO_VALIDATION}"
    task = opened.config.task_info
    if task.evaluation == "validation":
        print(validation_table(summary), f"{weights}; by its validation", f"{evaluation.folder}: {SUMMARY}", sep="\n")
        return _outcome(evaluation, f"{task.score} {summary['score']:.4f}")
    if task.evaluation == "masks":
        written = [CASES, *detail_tables(opened.config.evaluate), SUMMARY, PICTURE]
        print(
            segmentation_table(summary),
            weights,
            best_and_worst(evaluation),
            f"{evaluation.folder}: {', '.join(written)}" + (f", {MASKS}/" if options.masks else ""),
            sep="\n",
        )
        return _outcome(evaluation, f"Dice {summary['dice']:.4f}")
    files = f"{CASES}, {SUMMARY}" + (f", {VOLUMES}/" if options.volumes else "")
    print(pretraining_table(summary), f"{weights}; on the prepared grid", f"{evaluation.folder}: {files}", sep="\n")
    return _outcome(evaluation, f"SSIM {summary['figures']['ssim']['mean']:.4f}")


def open_evaluation(run: Path, options: EvaluationOptions) -> OpenedEvaluation:
    """Open an evaluation: load the run's configuration, open another data set, and choose the folder for the results.

    Args:
        run: the run folder.
        options: the options of the evaluation.

    Raises:
        UserError: the run cannot be evaluated with these options.
    """
    config = evaluation_config(run, options.overrides)
    _refuse_options_of_other_task(run, config, options)
    dataset = _other_dataset(config, options)
    if dataset is None and is_archive(run):
        raise UserError(
            f"{run}: an archive does not name its validation cases; name labelled cases by --dataset FOLDER"
        )
    if dataset is None and config.data.fold == ALL:
        raise UserError(no_validation_text(run, config))
    request = _request(config, options, dataset)
    postprocessing = evaluated_postprocessing(options.postprocess, [run, *options.others], of_own_cases=dataset is None)
    folder = evaluation_folder(run, request)
    return OpenedEvaluation(run, config, options, dataset, request, folder, postprocessing)


def no_validation_text(run: Path, config: RunConfig) -> str:
    """The message about a run without validation cases (`data.fold: all`) that is to be evaluated on them.

    Args:
        run: the run folder.
        config: its configuration.
    """
    if config.task_info.evaluation == "masks":
        remedy = "name other cases by --dataset FOLDER (labelled test cases, another hospital)"
    else:
        remedy = "evaluate a run that held a fold out (data.fold=0)"
    return f"{run}: was {NO_VALIDATION} (data.fold=all), so no case is left to evaluate on; {remedy}"


def compute_evaluation(opened: OpenedEvaluation) -> Evaluation:
    """Predict the cases of an evaluation, score them, and write the results.

    Raises:
        UserError: the folder cannot be written, the run has no weights, or its cases are not those of its training.
    """
    writable_folder(results_folder(opened.run), "evaluate")
    config, options, request, folder = opened.config, opened.options, opened.request, opened.folder
    if config.task_info.evaluation == "reconstruction":
        return evaluate_pretraining(opened.run, config, options.prediction, request, folder, volumes=options.volumes)
    if config.task_info.evaluation == "validation":
        return evaluate_by_validation(opened.run, config, options.prediction, request, folder)
    predictor = Predictor([opened.run, *options.others], options.prediction)
    members, include_trained = predictor.members, options.include_trained
    if opened.dataset is None:
        cases = validation_cases(config.data, config.output, members, include_trained=include_trained)
    else:
        cases = all_labelled_cases(opened.dataset, config.data, config.output, members, include_trained=include_trained)
    return evaluate_segmentation(
        predictor,
        cases,
        config,
        request,
        folder,
        masks=options.masks,
        workers=options.workers,
        postprocessing=opened.postprocessing,
    )


def _refuse_options_of_other_task(run: Path, config: RunConfig, options: EvaluationOptions) -> None:
    """Refuse options of the evaluation of another task.

    Raises:
        UserError: with all of them.
    """
    if config.task_info.evaluation == "masks":
        if options.volumes:
            raise UserError(f"--volumes: {run} is a segmentation; fusionseg predict writes its masks")
        return
    prediction = options.prediction
    by_validation = config.task_info.evaluation == "validation"
    given = {
        "--dataset": options.dataset_root is not None,
        "--with": bool(options.others),
        "--include-trained": options.include_trained,
        "--tta": prediction.flips,
        "--overlap": prediction.overlap is not None,
        "--memory": prediction.memory_gb is not None,
        "--volumes": options.volumes and by_validation,
        "--postprocess": options.postprocess != NONE,
    }
    if problems := [name for name, is_given in given.items() if is_given]:
        how = (
            f"a run of the task {config.task_info.name!r}, which is evaluated by its own validation"
            if by_validation
            else "a pre-training, which is evaluated on its own validation volumes, each patch once"
        )
        raise UserError(f"{', '.join(problems)}: {run} is {how}; remove it")


def _other_dataset(config: RunConfig, options: EvaluationOptions) -> Dataset | None:
    """Open the data set of `--dataset`; None without it. It gets the run's label names if it has none.

    Keys about labels that are given with the command are about this data set.
    """
    if options.dataset_root is None:
        if options.base_dir is not None:
            raise UserError(
                "--base-dir: belongs to the datalist of --dataset; for the run's own set data.base_dir=FOLDER"
            )
        return None
    readers = Readers.of(config.data)
    given = {text.partition("=")[0].split(".")[1] for text in options.overrides if text.startswith("data.")}
    settings = config.data.label_settings
    own = {key: getattr(settings, key) for key in ("labels", *LABEL_KEYS) if key in given}
    return open_dataset(
        options.dataset_root,
        labels=LabelSettings(**own) if own else None,
        default_labels=config.data.label_settings,
        readers=readers,
        base_dir=options.base_dir,
        missing_channels=config.data.missing_channels,
    )


def _request(config: RunConfig, options: EvaluationOptions, dataset: Dataset | None) -> EvaluationRequest:
    prediction = options.prediction
    return EvaluationRequest(
        dataset=dataset,
        given=options.dataset_root,
        others=tuple(options.others),
        checkpoint=prediction.checkpoint,
        overlap=None if prediction.overlap == config.validation.overlap else prediction.overlap,
        flips=prediction.flips,
        include_trained=options.include_trained,
        precision=prediction.precision,
        postprocess=requested(options.postprocess),
    )


def _outcome(evaluation: Evaluation, remark: str) -> Outcome:
    if evaluation.failed:
        return Outcome(INCOMPLETE, f"{remark}; not scored: {', '.join(sorted(evaluation.failed))}")
    return Outcome(EVALUATED, remark)
