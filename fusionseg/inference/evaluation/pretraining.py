"""`fusionseg evaluate` of a pre-training: SSIM and PSNR of each validation volume, and the volumes themselves."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import stdev
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.problems import CaseError, Problem
from fusionseg.data.preprocessing.volume import Volume, load_volume
from fusionseg.inference.evaluation.segmentation import request_for
from fusionseg.inference.predictor import PredictOptions
from fusionseg.inference.trained_network import Trained, inference_device, load_trained
from fusionseg.metrics.segmentation import nanmean
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.datasets import open_sources
from fusionseg.runs.evaluations import VOLUMES, evaluation_folder, write_evaluation
from fusionseg.runs.split import dataset_names
from fusionseg.training.tasks.reconstruction import Figures, Reconstruction, Reconstructor
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import file_name, whole_file, writable_folder
from fusionseg.utils.tables import markdown_table

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class _Held:
    """A validation case of the run."""

    config: RunConfig
    """With `data` as it is for the case's data set."""
    case: Case
    digest: str | None
    """Of the image that the run held out; None where an earlier version did not record it."""

    def load(self, channels: int) -> Volume:
        """The prepared volume.

        Raises:
            CaseError: the image cannot be used, or is not the one that the run held out.
        """
        volume = load_volume(self.case.images, None, self.config.data, None, channels)
        if self.digest is not None and volume.digest != self.digest:
            file = str(self.case.images[0])
            text = "is another image than the run held out"
            raise CaseError([Problem("error", self.case.name, file, "changed", text, "restore it")])
        return volume


def _cases(config: RunConfig, trained: Trained) -> dict[str, _Held]:
    """The validation cases as the run recorded them, by their name in the run."""
    sources = open_sources(config, trained.split)
    # As the run recorded them: the data sets may be called otherwise now.
    prefixes = trained.split.datasets if trained.split else dataset_names(source.dataset.name for source in sources)
    recorded = {(case.dataset, case.name): case.image for case in (trained.split.validation if trained.split else ())}
    return {
        f"{prefix}/{case.name}" if len(sources) > 1 else case.name: _Held(
            source.config, case, recorded.get((prefix, case.name))
        )
        for prefix, source in zip(prefixes, sources, strict=True)
        for case in source.validation
    }


def _rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    limit = float(np.finfo(dtype).max)
    return np.clip(values, -limit, limit).astype(dtype)


@dataclass(frozen=True)
class PretrainingEvaluation:
    """Figures of a pre-training, and where they were written."""

    folder: Path
    failed: dict[str, str]
    summary: dict[str, Any]

    def table(self) -> str:
        """Mean and deviation of the figures, beside those of the trivial fill-ins, as Markdown."""
        figures = self.summary["figures"]
        rows = [["", "SSIM", "SSIM, hidden voxels", "PSNR dB", "PSNR dB, hidden voxels"]]
        for name, suffix in (("network", ""), ("mean", "_mean_fill"), ("interpolation", "_linear_fill")):
            keys = (f"{key}{suffix}" for key in ("ssim", "ssim_hidden", "psnr", "psnr_hidden"))
            rows.append([name, *(_cell(figures[key], 4 if key.startswith("ssim") else 2) for key in keys)])
        return markdown_table(rows)


def evaluate_pretraining(
    run: Path, config: RunConfig, options: PredictOptions, *, volumes: bool = False
) -> PretrainingEvaluation:
    """Reconstruct the validation volumes of a pre-training on the prepared grid, as its validation does.

    Args:
        run: the run folder.
        config: its configuration (with the paths that hold now).
        volumes: write the volumes too, as NIfTI files.

    Raises:
        UserError: the run has no weights, or no case can be read.
    """
    device = inference_device(options.device)
    trained = load_trained(run, device, options.checkpoint, pretraining=True)
    reconstruct = Reconstructor(trained.config, trained.precision, device)
    cases = _cases(config, trained)
    request = request_for(config, options)
    folder = evaluation_folder(run, request)
    writable_folder(folder, "evaluate")
    scores: dict[str, Figures] = {}
    failed: dict[str, str] = {}
    with counting_progress("evaluating") as progress:
        for done, (name, case) in enumerate(cases.items()):
            progress(done, len(cases))
            try:
                volume = case.load(len(trained.channels))
            except CaseError as error:
                failed[name] = str(error)
                log.error("%s is not scored: %s", name, error)
                continue
            # As the training holds it in its store and its cache.
            data = case.config.data
            image = _rounded(_rounded(volume.image, data.dtype), config.cache.dtype).astype(np.float32)
            background = _rounded(np.array(volume.background), data.dtype).astype(np.float32).tolist()
            made = reconstruct(trained.model, torch.from_numpy(image), background, case.case.name)
            scores[name] = {
                **reconstruct.score(made),
                **reconstruct.score_fill_ins(made, background, case.case.name),
            }
            if volumes:
                _write_volumes(folder / VOLUMES, name, made, volume.affine)
        progress(len(cases), len(cases))
    if not scores:
        reasons = (f"  {name}: {reason}" for name, reason in failed.items())
        raise UserError([f"{run}: none of the {len(cases)} validation cases could be scored:", *reasons])
    keys = next(iter(scores.values())).keys()
    summary = {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "grid": "prepared",
        "cases": len(scores),
        "failed": failed,
        "trained_on": len(trained.split.trained_on) if trained.split is not None else 0,
        "request": request.to_json(),
        "figures": {key: _spread([scores[name][key] for name in sorted(scores)]) for key in keys},
    }
    rows = [{"case": name, **figures} for name, figures in scores.items()]
    write_evaluation(folder, rows, summary, scores)
    return PretrainingEvaluation(folder, failed, summary)


def _spread(values: list[float]) -> dict[str, float]:
    known = [value for value in values if not isnan(value)]
    return {
        "mean": nanmean(values),
        "std": stdev(known) if len(known) > 1 else 0.0,
        "cases": len(known),
    }


def _cell(entry: dict[str, float], digits: int) -> str:
    return "-" if isnan(entry["mean"]) else f"{entry['mean']:.{digits}f} ± {entry['std']:.{digits}f}"


def _write_volumes(folder: Path, name: str, made: Reconstruction, affine: NDArray[np.float64]) -> None:
    """Write CASE_original, CASE_masked, CASE_reconstruction (what is scored) and the mask CASE_hidden."""
    for kind, values in (
        ("original", made.image),
        ("masked", made.masked),
        ("reconstruction", made.filled),
        ("hidden", made.hidden.to(torch.uint8)),
    ):
        with whole_file(folder / file_name(name, f"_{kind}.nii.gz")) as temporary:
            nib.save(_nifti(values, affine), temporary)


def _nifti(values: Tensor, affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """(C, X, Y, Z) as an image, 4D with several channels."""
    array = values[0].numpy() if len(values) == 1 else values.movedim(0, -1).numpy()
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return image
