"""The evaluation of a task without an evaluation of its own: its validation, with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from fusionseg.config import RunConfig
from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import World
from fusionseg.inference.evaluation.results import Evaluation
from fusionseg.inference.predictor import PredictOptions
from fusionseg.inference.trained_network import inference_device, load_trained
from fusionseg.runs.cases.datasets import open_begun_datasets
from fusionseg.runs.cases.opening import RunCases
from fusionseg.runs.evaluations import EvaluationRequest, write_evaluation
from fusionseg.training.data import open_training_data
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.files import writable_folder


def evaluate_by_validation(
    run: Path, config: RunConfig, options: PredictOptions, request: EvaluationRequest, folder: Path
) -> Evaluation:
    """Validate the weights of a run as its training does, on one device, and write the fields of the result.

    The data are those of a training: all cases of the run are loaded, and cases that are not prepared yet are prepared.

    Args:
        run: the run folder.
        config: its configuration, with the paths that are valid now.
        options: the device and the checkpoint.
        request: the request that is answered, for the summary.
        folder: the folder for the results.

    Raises:
        UserError: the run has no weights, its cases are missing or have changed, or the folder cannot be written.
    """
    device = inference_device(options.device)
    network = load_trained(run, device, options.checkpoint, precision=options.precision)
    world = World(Launch(), device)
    recorded = network.split
    cases = RunCases(open_begun_datasets(config, recorded), recorded, recorded.seen if recorded else ())
    data = open_training_data(with_all_cases(config), world, cases)
    validate = build_task(config).build_validation(data, network.precision, world)
    with torch.no_grad():
        result = validate(network.model)
    summary = {
        "checkpoint": str(network.path),
        "step": network.step,
        "task": config.task_info.name,
        "score": result.score,
        **data.split.marks,
        "fields": result.fields,
        "failed": {},
        "request": request.to_json(),
    }
    writable_folder(folder, "evaluate")
    write_evaluation(folder, [], summary, {})
    return Evaluation(folder, summary, {})


def with_all_cases(config: RunConfig) -> RunConfig:
    """The configuration with a cache that holds all cases, or none: one device need not hold what all ranks held.

    Args:
        config: of the run.
    """
    if config.cache.placement == "replicated":
        return config
    cache = config.cache.model_copy(update={"placement": "replicated", "device": "auto"})
    return config.model_copy(update={"cache": cache})
