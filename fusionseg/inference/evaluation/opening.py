"""The opening of an evaluation: its options, its data set, its request, and the folder for its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.config import RunConfig
from fusionseg.config.data.labels import LABEL_KEYS, LabelSettings
from fusionseg.config.data.splits import ALL
from fusionseg.data.formats.dataset import Dataset, open_dataset
from fusionseg.data.formats.readers import Readers
from fusionseg.inference.evaluation.aggregate import detail_tables
from fusionseg.inference.evaluation.cases import evaluation_config
from fusionseg.inference.evaluation.measuring import metric_definitions
from fusionseg.inference.postprocessing.evaluated import EvaluatedPostProcessing, evaluated_postprocessing, requested
from fusionseg.inference.postprocessing.files import NONE
from fusionseg.inference.predictor import PredictOptions
from fusionseg.runs.archive.layout import is_archive
from fusionseg.runs.cases.split_file import NO_VALIDATION
from fusionseg.runs.checkpoints import find_weights
from fusionseg.runs.evaluations import (
    MASKS,
    VOLUMES,
    EvaluationRequest,
    evaluation_folder,
    is_current,
    read_summary,
    results_folder,
)
from fusionseg.runs.trust.links import refuse_links
from fusionseg.utils.errors import UserError


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


def open_evaluation(run: Path, options: EvaluationOptions) -> OpenedEvaluation:
    """Open an evaluation: load the run's configuration, open another data set, and choose the folder for the results.

    Args:
        run: the run folder.
        options: the options of the evaluation.

    Raises:
        UserError: the run cannot be evaluated with these options, or links lead out of the folder of the results.
    """
    refuse_links(results_folder(run))
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
