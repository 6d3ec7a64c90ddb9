"""Trained runs, and the functions that predict with them and evaluate them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fusionseg.api.configuration import override_texts
from fusionseg.api.images import ArrayLike, Images, image_of
from fusionseg.api.run_contents import RunContents
from fusionseg.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fusionseg.api.configuration import Overrides
    from fusionseg.inference.evaluation.results import Evaluation
    from fusionseg.inference.predict import FileOptions
    from fusionseg.inference.predictor import PredictOptions, Predictor

Runs: TypeAlias = "Run | str | Path | Sequence[Run | str | Path]"


class Run(RunContents):
    """A run folder: its configuration, its records and its trained network.

    `fusionseg.load_run`, `fusionseg.train` and `fusionseg.pretrain` return it. The records are read again at each
    access, so that a run can be followed while it trains.
    """

    def __init__(self, folder: str | Path, *, trust: bool = False) -> None:
        """Args:
        folder: the run folder.
        trust: import code of others that the run names; see `load_run`.

        Raises:
            UserError: it is no run folder.
        """
        super().__init__(folder, trust=trust)
        self._predictors: dict[PredictOptions, Predictor] = {}

    def predict(
        self, image: ArrayLike | str | Path | Sequence[str | Path], **options: Any
    ) -> NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32] | dict[str, Path]:
        """Predict with this run: see `fusionseg.predict`. The network is loaded once for several calls."""
        return predict(self, image, **options)

    def evaluate(self, dataset: str | Path | None = None, **options: Any) -> Evaluation:
        """Evaluate this run: see `fusionseg.evaluate`."""
        return evaluate(self, dataset, **options)


def load_run(path: str | Path, *, trust: bool = False) -> Run:
    """Open a run folder: its configuration, its records, its trained network.

    Args:
        path: the folder that a training has written, `output`/`name` of its configuration; or an archive (.fseg) that
            `fusionseg export` has written, which has no records.
        trust: import code of others that the run names, such as a network of theirs. A run that you have trained
            yourself needs no such word.

    Returns:
        The run.

    Raises:
        UserError: it is no run folder, or it names code of others and `trust` is False.

    Example:
        >>> import fusionseg
        >>> run = fusionseg.load_run("runs/first")
        >>> run.status, run.step, run.labels
        ('completed', 2, {0: 'background', 1: 'pulmonary_artery'})
        >>> steps, losses = run.curve("loss")
        >>> steps
        [2]
        >>> run.best["step"], run.network().training
        (2, False)
    """
    return Run(path, trust=trust)


def predict(
    run: Runs,
    image: Images,
    *,
    spacing: Sequence[float] | None = None,
    affine: ArrayLike | None = None,
    probabilities: bool | str = False,
    output: str | Path | None = None,
    format: str = "nifti",
    cases: str | None = None,
    base_dir: str | Path | None = None,
    skip_existing: bool = False,
    device: str = "auto",
    checkpoint: str = "best",
    overlap: float | None = None,
    flips: bool = False,
    memory_gb: float | None = None,
    precision: str | None = None,
    skip_air: bool = False,
    postprocess: str | Path = "none",
    trust: bool = False,
) -> NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32] | dict[str, Path]:
    """Segment an image: an array, a file or a DICOM series; or all images of a folder or of a datalist.

    The result has the shape of the array or file, and is the same as that of `fusionseg predict`. For several images,
    `load_run(path).predict(...)` loads the network once.

    Args:
        run: a run folder, a checkpoint file, an archive (.fseg) or a `Run`; several of them are an ensemble.
        image: an array (X, Y, Z), or (C, X, Y, Z) with the channels first, of raw intensities; or the path of an image
            file, or of the folder of a DICOM series; or several paths, one for each channel of one case. With `output`,
            also the path of a folder of images, of a folder with a folder for each case, of a datalist JSON, or of the
            folder of a data set.
        spacing: for an array: voxel sizes in mm along X, Y, Z. The axes are taken to point to the right, to the front
            and upwards (RAS).
        affine: for an array, instead of `spacing`: 4x4, from voxel to mm in RAS, as nibabel gives it.
        probabilities: True returns the probability of each class, or region, instead of the mask. With `output`,
            "nifti" or "npz" writes them beside the masks.
        output: write masks as files into this folder instead, as the command does; masks that the command has not
            written itself are not replaced.
        format: of these files: "nifti", "nrrd", "mha", "npy", "dicom-seg", or "input" for the format of each image.
        cases: of a data set: "test", "training" or "all"; None is the test cases, or all if there are none.
        base_dir: the folder at which the relative paths of a datalist start; None is that which the list states, or
            else its own.
        skip_existing: keep masks in `output` that the same runs and options made.
        device: "auto" (a GPU if there is one), "cuda" or "cpu".
        checkpoint: "best" or "last".
        overlap: overlap of neighbouring windows, 0 to below 1; None for that of the run.
        flips: average over flips of the axes that the training flips: eight times the work for three axes. Refused
            for a training without flips.
        memory_gb: host memory for the logits of one volume, in GB; None for half of what is free.
        precision: "fp32", "bf16" or "fp16", of the forward pass; None for that of the training, or another one if the
            device lacks it.
        skip_air: leave out windows that hold nothing but background, such as air that `data.intensity` clips to one
            value. Voxels in no other window are background.
        postprocess: of the mask: "auto" for the post-processing that `fusionseg postprocess` has stored with the run,
            "none", or the path of a postprocessing.json.
        trust: import code of others that the run names; see `load_run`.

    Returns:
        The mask (X, Y, Z) of the values that label files have, uint8, or uint16 if a value is above 255; or with
        `probabilities`, float32 (C, X, Y, Z) for the classes, the background first, or for the regions; or with
        `output`, the file of each mask by the name of its case.

    Raises:
        UserError: the run, the image or an option is wrong; with `output`, also if one of the images failed: the
            message names them, and the other masks are written.

    Example:
        >>> import fusionseg, numpy
        >>> scan = numpy.random.default_rng(0).normal(0, 100, (40, 48, 36))
        >>> mask = fusionseg.predict("runs/first", scan, spacing=(1.0, 1.0, 1.5))
        >>> mask.shape, mask.dtype
        ((40, 48, 36), dtype('uint8'))
        >>> fusionseg.predict("runs/first", scan, spacing=(1.0, 1.0, 1.5), probabilities=True).shape
        (2, 40, 48, 36)
    """
    options = _options(device, checkpoint, overlap, flips, memory_gb, precision, skip_air=skip_air)
    if output is not None:
        if not isinstance(image, (str, Path)):
            raise UserError("output: is for image files; give the path of a file or a folder, or leave output out")
        if spacing is not None or affine is not None:
            raise UserError("output: cannot be combined with spacing or affine; remove them")
        if probabilities is True:
            raise UserError('probabilities: expected "nifti" or "npz" with output, got True')
        files = _file_options(format, cases, base_dir, skip_existing, probabilities or None, str(postprocess))
        return _predict_to_files(run, Path(str(image)), Path(output), options, files, trust=trust)
    given = {"format": format != "nifti", "cases": cases, "base_dir": base_dir, "skip_existing": skip_existing}
    if isinstance(probabilities, str):
        raise UserError(f"probabilities: {probabilities!r} needs output, the folder for the files; set output")
    if unused := [name for name, value in given.items() if value]:
        raise UserError(f"{', '.join(unused)}: needs output, the folder for the masks; set output, or remove it")
    if probabilities and str(postprocess) != "none":
        raise UserError("postprocess: changes masks, and probabilities are asked for; remove one of them")

    from fusionseg.data.formats.problems import CaseError
    from fusionseg.inference.postprocessing.applied import predict_processed

    try:
        # Wrong arguments are refused before it is loaded.
        predictor = cache(lambda: _predictor(run, options, trust=trust))
        found = image_of(image, spacing, affine, predictor)
        if probabilities:
            return predictor().probabilities(found)
        return predict_processed(predictor(), found, str(postprocess))
    except CaseError as error:
        raise UserError([str(problem) for problem in error.problems]) from error


def evaluate(
    run: Run | str | Path,
    dataset: str | Path | None = None,
    *,
    base_dir: str | Path | None = None,
    average_with: Sequence[Run | str | Path] = (),
    overrides: Overrides = (),
    include_trained: bool = False,
    masks: bool = True,
    device: str = "auto",
    checkpoint: str | None = None,
    overlap: float | None = None,
    flips: bool = False,
    memory_gb: float | None = None,
    precision: str | None = None,
    postprocess: str | Path = "none",
    trust: bool = False,
) -> Evaluation:
    """Compare the predictions of a run with the labels, as `fusionseg evaluate` does.

    Args:
        run: a run folder, an archive (.fseg) or a `Run`.
        dataset: a data set, all labelled cases of which are scored; None for the validation cases of the run.
        base_dir: the folder at which the relative paths of a datalist `dataset` start; None is that which the list
            states, or else its own.
        average_with: further runs; their class probabilities are averaged with this one's.
        overrides: settings that replace those of the run, such as the place of its data: `{"data.root": "/new/place"}`.
        include_trained: count cases that were trained on in the means too, and mark the results.
        masks: keep the masks in the folder of the evaluation.
        device: "auto" (a GPU if there is one), "cuda" or "cpu".
        checkpoint: "best" or "last"; None is "last" for the validation cases, on which the best was chosen, and "best"
            for another data set.
        overlap, flips, memory_gb, precision, postprocess, trust: as for `predict`. The validation cases of the run are
            processed as chosen on the cases of other runs, if `fusionseg postprocess` had other runs.

    Returns:
        An object with `summary` (means and deviations; `summary["dice"]` is the mean over the classes), `scores` (one
        for each case and class, with `dice`, `hd95_mm` and further `metrics`), `failed` (the cases that were not
        scored, with the reason) and `folder` (cases.csv, summary.json, masks and a picture). Of a pre-training,
        `summary["figures"]` has SSIM and PSNR.
        Of a task of your own, `summary["fields"]` has the fields of its validation, and `scores` is empty.

    Raises:
        UserError: the run or the data set cannot be evaluated as asked.

    Example:
        >>> import fusionseg
        >>> evaluation = fusionseg.evaluate("runs/first")
        >>> [(score.case, score.label) for score in evaluation.scores]
        [('synth_002', 'pulmonary_artery')]
        >>> 0 <= evaluation.summary["dice"] <= 1
        True
    """
    from fusionseg.inference.evaluation.one_run import compute_evaluation
    from fusionseg.inference.evaluation.opening import EvaluationOptions, open_evaluation
    from fusionseg.runs.run_config import load_run_config
    from fusionseg.runs.trust.consent import trusting

    (folder,) = _folders(run)
    options = EvaluationOptions(
        _options(device, checkpoint or ("last" if dataset is None else "best"), overlap, flips, memory_gb, precision),
        override_texts(overrides),
        dataset_root=None if dataset is None else str(dataset),
        base_dir=None if base_dir is None else str(base_dir),
        others=_folders(average_with),
        include_trained=include_trained,
        masks=masks,
        postprocess=str(postprocess),
    )
    trust = trust or _trusted([run, *average_with])
    with trusting(trust):
        task = load_run_config(folder).task_info
    given = {"dataset": dataset is not None, "base_dir": base_dir is not None, "average_with": average_with,
             "include_trained": include_trained, "overlap": overlap is not None, "flips": flips,
             "memory_gb": memory_gb is not None, "postprocess": str(postprocess) != "none"}  # fmt: skip
    names = [name for name, is_given in given.items() if is_given]
    if names and task.evaluation != "masks":
        raise UserError(
            f"{', '.join(names)}: {folder} is a {task.name}, which is evaluated on its own validation cases; remove it"
        )
    with trusting(trust):
        return compute_evaluation(open_evaluation(folder, options))


def _folders(runs: Runs) -> list[Path]:
    several = [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    return [entry.folder if isinstance(entry, Run) else Path(entry) for entry in several]


def _trusted(runs: Runs) -> bool:
    """Tell whether the user has allowed the code of all of these runs as they were opened."""
    several = [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    return all(isinstance(entry, Run) and entry.trust for entry in several)


def _predictor(runs: Runs, options: PredictOptions, *, trust: bool) -> Predictor:
    """Make a predictor. The one of a single `Run` is kept in it for the next call."""
    from fusionseg.inference.predictor import Predictor
    from fusionseg.runs.trust.consent import trusting

    folders = _folders(runs)
    if not folders:
        raise UserError("run: is an empty list; give a run folder")
    with trusting(trust or _trusted(runs)):
        if not isinstance(runs, Run):
            return Predictor(folders, options)
        if options not in runs._predictors:
            runs._predictors.clear()  # keep one network in memory, not several
            runs._predictors[options] = Predictor(folders, options)
    return runs._predictors[options]


def _predict_to_files(
    runs: Runs, inputs: Path, output: Path, options: PredictOptions, files: FileOptions, *, trust: bool
) -> dict[str, Path]:
    from fusionseg.inference.predict import check_output, predict_files

    check_output(output, files)
    predicted = predict_files(_predictor(runs, options, trust=trust), inputs, output, files)
    if failed := predicted.failed:
        raise UserError([f"{len(failed)} images could not be predicted:", *(f"  {text}" for text in failed.values())])
    return predicted.masks


def _file_options(
    format_name: str,
    cases: str | None,
    base_dir: str | Path | None,
    skip_existing: bool,
    probabilities: str | None,
    postprocess: str,
) -> FileOptions:
    from fusionseg.data.inputs.inputs import InputOptions
    from fusionseg.data.inputs.lists import CHOICES
    from fusionseg.inference.predict import FileOptions

    if cases is not None and cases not in CHOICES:
        raise UserError(f"cases: expected {', '.join(CHOICES)} or None, got {cases!r}")
    inputs = InputOptions(cases, None if base_dir is None else str(base_dir))
    return FileOptions(format_name, skip_existing, inputs, probabilities, postprocess)


def _options(
    device: str,
    checkpoint: str,
    overlap: float | None,
    flips: bool,
    memory_gb: float | None,
    precision: str | None,
    *,
    skip_air: bool = False,
) -> PredictOptions:
    from fusionseg.inference.predictor import PredictOptions

    problems = []
    if device not in ("auto", "cuda", "cpu"):
        problems.append(f"device: expected auto, cuda or cpu, got {device!r}")
    if checkpoint not in ("best", "last"):
        problems.append(f"checkpoint: expected best or last, got {checkpoint!r}")
    options = PredictOptions(device, checkpoint, overlap, flips, memory_gb, precision, skip_air)
    if problems := problems + options.problems(overlap="overlap", memory="memory_gb"):
        raise UserError(problems)
    return options
