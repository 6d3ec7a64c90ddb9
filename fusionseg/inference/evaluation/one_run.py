"""The evaluation of one run, from its folder to its results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.data.formats.dataset import Dataset, open_dataset
from fusionseg.data.formats.readers import Readers
from fusionseg.inference.evaluation.cases import all_labelled_cases, evaluation_config, validation_cases
from fusionseg.inference.evaluation.pretraining import evaluate_pretraining
from fusionseg.inference.evaluation.segmentation import evaluate_segmentation
from fusionseg.inference.evaluation.table import pretraining_table, segmentation_table
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.checkpoints import find_weights
from fusionseg.runs.evaluations import (
    CASES,
    PICTURE,
    SUMMARY,
    VOLUMES,
    EvaluationRequest,
    evaluation_folder,
    is_current,
)
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

log = logging.getLogger("fusionseg")

EVALUATED, KEPT, NO_WEIGHTS, INCOMPLETE, FAILED = "evaluated", "kept", "no weights yet", "cases failed", "failed"


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of `fusionseg evaluate`, the same for each run."""

    prediction: PredictOptions
    overrides: Sequence[str] = ()
    """`key.path=value` settings, such as data.root, that are laid over the configuration of each run."""
    dataset_root: str | None = None
    """A data set whose labelled cases are all scored; None means each run's own validation cases."""
    others: Sequence[Path] = ()
    """Runs whose predictions are averaged with those of the run."""
    include_trained: bool = False
    """Whether the means count cases that were trained on."""
    skip_existing: bool = False
    """Whether a complete evaluation that is newer than the weights is kept."""
    volumes: bool = False
    """Whether the reconstructed volumes of a pre-training are written."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run: a word for the table, and a remark."""

    state: str
    remark: str

    @property
    def is_complete(self) -> bool:
        """False if a case or the whole run failed. A run without weights has not failed."""
        return self.state not in (INCOMPLETE, FAILED)


def evaluate_run(run: Path, options: EvaluationOptions) -> Outcome:
    """Evaluate a run, print its table, and write its results into its folder.

    Args:
        run: the run folder.
        options: the options of the evaluation.

    Raises:
        UserError: the run cannot be evaluated with these options.
    """
    config = evaluation_config(run, options.overrides)
    _refuse_options_of_other_task(run, config, options)
    dataset = _other_dataset(config, options)
    request = _request(config, options, dataset)
    folder = evaluation_folder(run, request)
    if options.skip_existing and _is_kept(run, folder, request, options):
        log.info("%s: is newer than the weights and is kept", folder)
        return Outcome(KEPT, folder.name)
    writable_folder(run, "evaluate")
    if config.pretrain is not None:
        return _evaluate_pretraining(run, config, options, request, folder)
    return _evaluate_segmentation(run, config, options, request, folder, dataset)


def _evaluate_segmentation(
    run: Path,
    config: RunConfig,
    options: EvaluationOptions,
    request: EvaluationRequest,
    folder: Path,
    dataset: Dataset | None,
) -> Outcome:
    predictor = Predictor([run, *options.others], options.prediction)
    sections, members, include_trained = (config.data, config.output), predictor.members, options.include_trained
    if dataset is None:
        cases = validation_cases(*sections, members, include_trained=include_trained)
    else:
        cases = all_labelled_cases(dataset, *sections, members, include_trained=include_trained)
    summary = evaluate_segmentation(predictor, cases, request, folder)
    print(segmentation_table(summary))
    print(f"weights: {_weights_text(summary)}")
    print(f"{folder}: {CASES}, {SUMMARY}, {PICTURE}")
    return _outcome(summary, f"Dice {summary['dice']:.4f}")


def _evaluate_pretraining(
    run: Path, config: RunConfig, options: EvaluationOptions, request: EvaluationRequest, folder: Path
) -> Outcome:
    summary = evaluate_pretraining(run, config, options.prediction, request, folder, volumes=options.volumes)
    print(pretraining_table(summary))
    print(f"weights: {_weights_text(summary)}; on the prepared grid")
    print(f"{folder}: {CASES}, {SUMMARY}" + (f", {VOLUMES}/" if options.volumes else ""))
    return _outcome(summary, f"SSIM {summary['figures']['ssim']['mean']:.4f}")


def _refuse_options_of_other_task(run: Path, config: RunConfig, options: EvaluationOptions) -> None:
    """Refuse options for pre-trainings in the evaluation of a segmentation, and the other way round.

    Raises:
        UserError: with all of them.
    """
    if config.pretrain is None:
        if options.volumes:
            raise UserError(f"--volumes: {run} is a segmentation; fusionseg predict writes its masks")
        return
    prediction = options.prediction
    given = {
        "--dataset": options.dataset_root is not None,
        "--with": bool(options.others),
        "--include-trained": options.include_trained,
        "--tta": prediction.flips,
        "--overlap": prediction.overlap is not None,
        "--memory": prediction.memory_gb is not None,
    }
    if problems := [name for name, is_given in given.items() if is_given]:
        raise UserError(
            f"{', '.join(problems)}: {run} is a pre-training, which is evaluated on its own validation volumes, each"
            " patch once; remove it"
        )


def _other_dataset(config: RunConfig, options: EvaluationOptions) -> Dataset | None:
    """Open the data set of `--dataset`. It gets the run's names of labels only if it names none itself."""
    if options.dataset_root is None:
        return None
    readers = Readers(config.data.reader)
    return open_dataset(options.dataset_root, "auto", default_labels=config.data.labels, readers=readers)


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
    )


def _is_kept(run: Path, folder: Path, request: EvaluationRequest, options: EvaluationOptions) -> bool:
    weights = [find_weights(one, options.prediction.checkpoint) for one in (run, *options.others)]
    return is_current(folder, request, weights, volumes=options.volumes)


def _weights_text(summary: Mapping[str, Any]) -> str:
    return f"{Path(str(summary['checkpoint'])).name}, step {summary['step']}"


def _outcome(summary: Mapping[str, Any], remark: str) -> Outcome:
    if summary["failed"]:
        return Outcome(INCOMPLETE, f"{remark}; not scored: {', '.join(sorted(summary['failed']))}")
    return Outcome(EVALUATED, remark)
