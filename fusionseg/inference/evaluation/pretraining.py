"""The evaluation of a pre-training: SSIM and PSNR of each validation volume, and the volumes themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config import DataConfig, RunConfig
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.problems import CaseError, Problem
from fusionseg.data.preprocessing.volume import Volume, load_volume
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.distributed.world import World
from fusionseg.inference.calls.dealt_cases import gathered, single_rank
from fusionseg.inference.evaluation.results import Evaluation, mean_and_deviation
from fusionseg.inference.predictor import PredictOptions
from fusionseg.inference.trained_network import TrainedNetwork, inference_device, load_trained
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.cases.datasets import RunDataset, open_begun_datasets
from fusionseg.runs.cases.split import Split, dataset_names
from fusionseg.runs.evaluations import VOLUMES, EvaluationRequest, write_evaluation
from fusionseg.training.tasks.reconstruction import Reconstruction, ReconstructionScores, Reconstructor
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import file_name, whole_file, writable_folder

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class _ValidationCase:
    """A validation case of a pre-training."""

    data: DataConfig
    """The section `data`, with the values for the case's data set."""
    channels: tuple[str, ...]
    """Names of the channels in this data set."""
    case: Case
    digest: str | None
    """The digest of the image that the run held out; None where an earlier version did not record it."""

    def load(self, num_channels: int) -> Volume:
        """Load the volume and prepare it.

        Raises:
            CaseError: the image cannot be used, or is not the one that the run held out.
        """
        volume = load_volume(self.case.images, None, self.data, None, num_channels, self.channels)
        if self.digest is not None and volume.digest != self.digest:
            file = str(self.case.images[0])
            text = "is another image than the run held out"
            raise CaseError([Problem("error", self.case.name, file, "changed", text, "restore it")])
        return volume


def evaluate_pretraining(
    run: Path,
    config: RunConfig,
    options: PredictOptions,
    request: EvaluationRequest,
    folder: Path,
    world: World | None = None,
    *,
    volumes: bool = False,
) -> Evaluation:
    """Reconstruct the validation volumes of a pre-training on the prepared grid, score them, and write the results.

    Several ranks divide the volumes. Rank 0 writes the results, and all ranks return them.

    Args:
        run: the run folder.
        config: its configuration, with the paths that are valid now.
        options: the device and the checkpoint.
        request: the options of the evaluation, which summary.json records.
        folder: the folder for the results.
        world: the ranks, all of which call this function with the same arguments; None for a single one.
        volumes: write the volumes too, as NIfTI files.

    Raises:
        UserError: the run has no weights, the folder cannot be written, or no case can be scored.
    """
    world = world or single_rank()
    with world.wait_for_all(f"load the network of {run}"):
        device = inference_device(options.device, world.launch)
        network = load_trained(run, device, options.checkpoint, precision=options.precision)
        cases = _validation_cases(open_begun_datasets(config, network.split), network.split)
    world.rank_zero_first(f"prepare {folder}", lambda: writable_folder(folder, "evaluate"))
    with world.wait_for_all(f"score its volumes for {folder}"):
        own_scores, own_failed = _score_cases(network, config, cases, folder if volumes else None, world, device)
    scores, failed = gathered(world, own_scores, cases), gathered(world, own_failed, cases)
    if not scores:
        reasons = (f"  {name}: {reason}" for name, reason in failed.items())
        raise UserError([f"{run}: none of the {len(cases)} validation cases could be scored:", *reasons])
    summary = {**_summary(network, scores), "failed": failed, "request": request.to_json()}
    rows = [{"case": name, **metrics} for name, metrics in scores.items()]
    world.rank_zero_first(f"write {folder}", lambda: write_evaluation(folder, rows, summary, scores))
    return Evaluation(folder, summary, scores)


def _score_cases(
    network: TrainedNetwork,
    config: RunConfig,
    cases: Mapping[str, _ValidationCase],
    folder: Path | None,
    world: World,
    device: torch.device,
) -> tuple[dict[str, ReconstructionScores], dict[str, str]]:
    """The scores of the cases of this rank, and the problem of each one that cannot be scored, by name.

    Args:
        folder: for the volumes; None writes none.
    """
    reconstruct = Reconstructor(network.config, network.precision, device)
    scores: dict[str, ReconstructionScores] = {}
    failed: dict[str, str] = {}
    own = assign_to_ranks(dict.fromkeys(range(len(cases)), 1.0), world.size)[world.rank]
    names = list(cases)
    with counting_progress("evaluating", shown=world.is_rank_zero) as progress:
        for done, name in enumerate(names[index] for index in own):
            case = cases[name]
            progress(done, len(own))
            try:
                volume = case.load(len(network.channels))
            except CaseError as error:
                failed[name] = str(error)
                log.error("%s is not scored: %s", name, error)
                continue
            image, background = _as_in_training(volume, case.data.dtype, config.cache.dtype)
            reconstruction = reconstruct(network.model, image, background, case.case.name)
            scores[name] = {
                **reconstruct.score(reconstruction),
                **reconstruct.score_fill_ins(reconstruction, background, case.case.name),
            }
            if folder is not None:
                _write_volumes(folder / VOLUMES, name, reconstruction, volume.affine)
        progress(len(own), len(own))
    return scores, failed


def _validation_cases(datasets: list[RunDataset], split: Split | None) -> dict[str, _ValidationCase]:
    """The validation cases by their name in the run: with the name of their data set if there are several.

    Args:
        datasets: the data sets of the run.
        split: the split that the run recorded, with the names that the data sets had then.
    """
    names = split.datasets if split else dataset_names(one.dataset.name for one in datasets)
    recorded = {(case.dataset, case.name): case.image for case in (split.validation if split else ())}
    return {
        f"{name}/{case.name}" if len(datasets) > 1 else case.name: _ValidationCase(
            one.data, one.dataset.channels, case, recorded.get((name, case.name))
        )
        for name, one in zip(names, datasets, strict=True)
        for case in one.validation
    }


def _as_in_training(volume: Volume, store_dtype: str, cache_dtype: str) -> tuple[Tensor, list[float]]:
    """Round a volume as the store and the cache of a training do: the image, and the background of each channel."""
    image = _rounded(_rounded(volume.image, store_dtype), cache_dtype).astype(np.float32)
    background = _rounded(np.array(volume.background), store_dtype).astype(np.float32).tolist()
    return torch.from_numpy(image), background


def _rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    limit = float(np.finfo(dtype).max)
    return np.clip(values, -limit, limit).astype(dtype)


def _summary(network: TrainedNetwork, scores: dict[str, ReconstructionScores]) -> dict[str, Any]:
    """Mean and standard deviation of each metric over the cases, added up in the order of their names."""
    keys = next(iter(scores.values())).keys()
    return {
        "checkpoint": str(network.path),
        "step": network.step,
        "grid": "prepared",
        "cases": len(scores),
        "trained_on": len(network.split.trained_on) if network.split is not None else 0,
        "figures": {key: mean_and_deviation([scores[name][key] for name in sorted(scores)]) for key in keys},
    }


def _write_volumes(folder: Path, name: str, reconstruction: Reconstruction, affine: NDArray[np.float64]) -> None:
    """Write the volumes of a case as NIfTI files.

    These are CASE_original, CASE_masked, CASE_reconstruction (the volume that is scored) and the mask CASE_hidden.
    """
    for kind, values in (
        ("original", reconstruction.image),
        ("masked", reconstruction.masked),
        ("reconstruction", reconstruction.filled),
        ("hidden", reconstruction.hidden.to(torch.uint8)),
    ):
        with whole_file(folder / file_name(name, f"_{kind}.nii.gz")) as temporary:
            nib.save(_nifti(values, affine), temporary)


def _nifti(values: Tensor, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """Make an image of values (C, X, Y, Z): 3D with one channel, else 4D with the channels last."""
    array = values[0].numpy() if len(values) == 1 else values.movedim(0, -1).numpy()
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return image
