"""Benchmark of a prediction, from image files to mask files, against MONAI's and nnU-Net's with the same network.

    python profiling/benchmark_prediction.py --data DATASET [--cases 40] [--rounds 5] [--json FILE] [key.path=value ...]

The data set has one channel of NIfTI files in `imagesTr` and `labelsTr`. fusionseg trains a network for a few steps,
by `--config` and the settings `key.path=value`. All recipes then use this network, its patch, overlap and blending, and
normalise each image by its own mean and deviation:

    fusionseg          `fusionseg predict`, in this process
    MONAI              transforms, `sliding_window_inference`, `Invertd` and `SaveImaged`, as in MONAI's tutorials
    nnU-Net processes  `nnUNetPredictor.predict_from_files`: other processes prepare and write (package nnunetv2)
    nnU-Net            `nnUNetPredictor.predict_from_files_sequential`: all in this process

nnU-Net's mirroring is off. The recipes are timed alternately, so that other load on the machine affects all of them
alike. A ratio is the median over the rounds; above 1 fusionseg is faster. The CPU time is that of this process, and
depends less on other load; it lacks the other processes of nnU-Net.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from benchmark_nnunet import NAME, NUMBER, import_nnunet
from torch import Tensor, nn

import fusionseg
from fusionseg.config import load_config
from fusionseg.inference.predict import predict_files
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.performance.benchmarking import Timings, measure_and_publish, time_alternately
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.utils.errors import UserError
from fusionseg.utils.logs import start_logging
from fusionseg.utils.machine import available_cpus
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
OURS, MONAI, NNUNET_PROCESSES, NNUNET = "fusionseg", "MONAI", "nnU-Net processes", "nnU-Net"
ENDING = ".nii.gz"

Recipe = Callable[[Path], object]
"""Predicts all cases, and writes their masks into a folder."""


def write_raw(data: Path, cases: int, folder: Path) -> None:
    """Link cases of a data set as one that nnU-Net and fusionseg both read.

    Args:
        data: folder of the data set.
        cases: their number; cases are repeated under other names if the data set has fewer.
        folder: it is created.

    Raises:
        UserError: there are no cases of the expected kind.
    """
    names = sorted(path.name.removesuffix(ENDING) for path in (data / "labelsTr").glob(f"*{ENDING}"))
    images = {name: [data / "imagesTr" / f"{name}{middle}{ENDING}" for middle in ("", "_0000")] for name in names}
    found = [(name, path) for name in names for path in images[name] if path.exists()]
    if not found or nibabel.load(found[0][1]).ndim != 3:
        raise UserError(f"{data}: expected NIfTI files of one channel in imagesTr and labelsTr; choose another --data")
    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index, (name, path) in zip(range(cases), itertools.cycle(found), strict=False):
        case = f"case_{index:04d}"
        (folder / "imagesTr" / f"{case}_0000{ENDING}").symlink_to(path)
        (folder / "labelsTr" / f"{case}{ENDING}").symlink_to(data / "labelsTr" / f"{name}{ENDING}")
    labels = described["labels"]
    if "background" not in labels:  # MSD's form: from value to name
        labels = {name: int(value) for value, name in labels.items()}
    new = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": cases, "file_ending": ENDING}
    (folder / "dataset.json").write_text(json.dumps(new), encoding="utf-8")


def trained_predictor(arguments: argparse.Namespace, raw: Path, folder: Path) -> Predictor:
    """Train a network for a few steps, and open it for a prediction."""
    settings = [
        f"data.root={raw}", f"output={folder / 'runs'}", "name=benchmark", f"device={arguments.device}",
        f"train.steps={arguments.steps}", f"validate.every={arguments.steps}", "schedule.warmup=0",
        "data.intensity={mode: zscore}",
    ]  # fmt: skip
    run = fusionseg.train(load_config(arguments.config, [*settings, *arguments.overrides]))
    return Predictor([run.folder], PredictOptions(arguments.device, "last"))


def monai_recipe(predictor: Predictor, images: list[Path]) -> Recipe:
    """The loop of MONAI's tutorials, with the settings of a run."""
    from monai import transforms
    from monai.inferers import sliding_window_inference

    member = predictor.members[0]
    data, settings = member.config.data, predictor.settings(member)
    steps: list[Any] = [transforms.LoadImaged("image"), transforms.EnsureChannelFirstd("image")]
    if data.orientation:
        steps.append(transforms.Orientationd("image", axcodes=data.orientation, labels=None))
    if data.spacing:
        steps.append(transforms.Spacingd("image", pixdim=data.spacing, mode="bilinear"))
    before = transforms.Compose([*steps, transforms.NormalizeIntensityd("image")])
    network = copy.deepcopy(member.model).eval()  # fusionseg's prediction exchanges convolutions of its own

    def predict(output: Path) -> None:
        after = transforms.Compose(
            [
                transforms.Invertd("pred", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
                transforms.AsDiscreted("pred", argmax=True),
                transforms.SaveImaged("pred", output_dir=output, output_postfix="", separate_folder=False,
                                      print_log=False, output_dtype=np.uint8),
            ]
        )  # fmt: skip
        for path in images:
            case = before({"image": str(path)})
            with torch.no_grad(), member.precision.autocast():
                case["pred"] = sliding_window_inference(
                    case["image"][None].to(predictor.device), data.patch, settings.window_batch, network,
                    overlap=settings.overlap, mode=settings.blend,
                )[0]  # fmt: skip
            after(case)

    return predict


class _TheirAxes(nn.Module):
    """A network for nnU-Net, which reads volumes as (Z, Y, X)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, K, Z, Y, X) of images (N, C, Z, Y, X)."""
        logits: Tensor = self.network(image.permute(0, 1, 4, 3, 2).contiguous()).permute(0, 1, 4, 3, 2)
        return logits


def nnunet_recipes(predictor: Predictor, images: list[Path], raw: Path) -> dict[str, Recipe]:
    """nnU-Net's predictor with its own preparation and export, with the network of a run."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    member, workers = predictor.members[0], available_cpus()
    data, settings = member.config.data, predictor.settings(member)
    with contextlib.redirect_stdout(io.StringIO()):
        api.extract_fingerprints([NUMBER], num_processes=workers, verbose=False, show_progress_bar=False)
        api.plan_experiments([NUMBER])
    plans = json.loads((raw.parents[1] / "preprocessed" / NAME / "nnUNetPlans.json").read_text(encoding="utf-8"))
    planned = plans["configurations"]["3d_fullres"]
    plans["transpose_forward"] = plans["transpose_backward"] = [0, 1, 2]
    planned["patch_size"] = list(data.patch)[::-1]
    planned["spacing"] = list(data.spacing or planned["spacing"])[::-1]
    network = _TheirAxes(copy.deepcopy(member.model)).eval()
    theirs = nnUNetPredictor(
        tile_step_size=1 - settings.overlap, use_gaussian=settings.blend == "gaussian", use_mirroring=False,
        perform_everything_on_device=predictor.device.type == "cuda", device=predictor.device, allow_tqdm=False,
    )  # fmt: skip
    manager = PlansManager(plans)
    described = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    theirs.manual_initialization(
        network, manager, manager.get_configuration("3d_fullres"), [network.state_dict()], described, "", None
    )
    inputs = [[str(path)] for path in images]

    def names(output: Path) -> list[str]:
        output.mkdir(exist_ok=True)
        return [str(output / path.name.removesuffix(f"_0000{ENDING}")) for path in images]

    def processes(output: Path) -> None:
        theirs.predict_from_files(inputs, names(output), num_processes_preprocessing=workers,
                                  num_processes_segmentation_export=workers)  # fmt: skip

    def sequential(output: Path) -> None:
        theirs.predict_from_files_sequential(inputs, names(output))

    return {NNUNET_PROCESSES: _silent(processes), NNUNET: _silent(sequential)}


def _silent(recipe: Recipe) -> Recipe:
    def run(output: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            recipe(output)

    return run


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all recipes; the result has JSON values."""
    import_nnunet(folder)
    raw = folder / "raw" / NAME
    write_raw(Path(arguments.data), arguments.cases, raw)
    images = sorted((raw / "imagesTr").iterdir())
    predictor = trained_predictor(arguments, raw, folder)
    recipes = {
        OURS: lambda output: predict_files(predictor, raw / "imagesTr", output),
        MONAI: monai_recipe(predictor, images),
        **nnunet_recipes(predictor, images, raw),
    }
    chosen = {name: recipe for name, recipe in recipes.items() if name in arguments.recipes}
    cpu: dict[str, list[float]] = {name: [] for name in chosen}
    outputs = {name: folder / f"masks_{index}" for index, name in enumerate(chosen)}
    times = time_alternately(
        {name: _measured(recipe, outputs[name], cpu[name]) for name, recipe in chosen.items()},
        predictor.device, arguments.rounds, warmup=1,
    )  # fmt: skip
    masks = {
        name: [nibabel.load(path) for path in sorted(output.glob(f"*{ENDING}"))] for name, output in outputs.items()
    }
    data = predictor.members[0].config.data
    return {
        "machine": machine_info(predictor.device),
        "about": f"{len(images)} cases of {Path(arguments.data).name}, {Path(arguments.config).stem}, windows of"
        f" {'x'.join(map(str, data.patch))}, files to files",
        "rows": _rows(
            times,
            Timings({name: seconds[1:] for name, seconds in cpu.items()}),  # without the warm-up
            {name: _agreement(masks[OURS], other) for name, other in masks.items()},
        ),
    }


def _measured(recipe: Recipe, output: Path, cpu: list[float]) -> Callable[[], object]:
    """A recipe that writes into an empty folder, and notes its CPU time."""

    def run() -> None:
        shutil.rmtree(output, ignore_errors=True)  # masks that are there would be read
        begun = time.process_time()
        recipe(output)
        cpu.append(time.process_time() - begun)

    return run


def _agreement(ours: list[Any], theirs: list[Any]) -> float:
    """Share of the voxels that have the same label."""
    pairs = [(np.asarray(one.dataobj), np.asarray(other.dataobj)) for one, other in zip(ours, theirs, strict=True)]
    return sum(int((one == other).sum()) for one, other in pairs) / sum(one.size for one, _ in pairs)


def _rows(times: Timings, cpu: Timings, agreement: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "recipe": name,
            "seconds": times.median(name),
            "spread": times.spread(name),
            "ratio": times.ratio(name, OURS),
            "cpu_seconds": cpu.median(name),
            "cpu_ratio": cpu.ratio(name, OURS),
            "same_labels": agreement[name],
        }
        for name in times.times
    ]


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    heading = (
        "prediction",
        "median s",
        "spread s",
        "/ fusionseg",
        "CPU s of the process",
        "/ fusionseg",
        "same labels",
    )
    rows = [heading]
    for row in result["rows"]:
        words = [f"{row['ratio']:.3g}", f"{row['cpu_ratio']:.3g}", f"{100 * row['same_labels']:.4f} %"]
        ratio, cpu_ratio, same = [""] * 3 if row["recipe"] == OURS else words
        seconds, spread, cpu = f"{row['seconds']:.3g}", f"{row['spread']:.2g}", f"{row['cpu_seconds']:.3g}"
        rows.append((row["recipe"], seconds, spread, ratio, cpu, cpu_ratio, same))
    return f"{machine_line(result['machine'])}\n\n{result['about']}\n\n{markdown_table(rows)}"


def main() -> int:
    """Measure, print the table, and return the exit status."""
    every = [OURS, MONAI, NNUNET_PROCESSES, NNUNET]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--cases", type=int, default=40, help="cases to predict (default: 40)")
    parser.add_argument(
        "--config", default=str(ROOT / "configs" / "hippocampus_unet.yaml"), help="YAML file of the run"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps of the training (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--recipes", nargs="+", default=every, choices=every, help="recipes to measure (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args()
    arguments.data = os.path.abspath(arguments.data)
    warnings.filterwarnings("ignore", module="(monai|torch|nnunetv2|batchgenerators).*")
    start_logging()
    return measure_and_publish(lambda folder: measure(arguments, folder), markdown, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
