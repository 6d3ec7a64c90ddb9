"""Regions with sigmoid outputs against exclusive classes that are merged afterwards, on synthetic nested structures.

    python profiling/benchmark_regions.py /tmp/regions --seeds 0 1 2 --steps 1200

The volumes look like a brain tumour in two sequences: the whole tumour is bright in the first (FLAIR); in the second
(contrast T1) live tissue is bright and necrosis is dark, and oedema is not seen. Both have noise and a smooth field.
They are not those of `fusionseg synth --form regions`, which show whole heads. There a tumour is 4 % of a volume of 24
voxels in a row, and its necrosis some twenty voxels. Here it is about 12 %, so that a run on 24 x 24 x 24 voxels takes
minutes and the three regions can be compared.
For each seed the same network is trained twice, on the same cases with the same configuration: with the outputs
`data.regions` (whole, core, live; sigmoid), and with the classes (softmax). The predictions on the validation cases are
compared in the three regions: those of the second network are merged. The runs of the two alternate. A run that is
complete is not repeated, so several seeds may be trained in parallel before the last call makes the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import nibabel
import numpy as np
import torch

import fusionseg
from fusionseg.data.formats.dataset import Case
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.inference.evaluation.scoring import Scorer
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.metrics.outputs import OutputComparison, masks_of
from fusionseg.metrics.segmentation import nanmean
from fusionseg.utils.exit_status import run
from fusionseg.utils.tables import markdown_table

SIZE = 24
CLASSES = ("background", "oedema", "necrosis", "live")
REGIONS = {"whole": ["oedema", "necrosis", "live"], "core": ["necrosis", "live"], "live": ["live"]}
INTENSITY = ((0.0, 1.0, 1.0, 1.0), (0.0, 0.0, -0.5, 1.0))
"""Mean of each class in the two channels. The noise has a standard deviation of 0.7, the smooth field of 0.4."""


def write_dataset(root: Path, cases: int) -> None:
    """Write volumes of nested ellipsoids in the layout of the Medical Segmentation Decathlon.

    Args:
        root: the folder of the data set; a folder that exists is kept as it is.
        cases: number of volumes.
    """
    if (root / "dataset.json").exists():
        return
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True, exist_ok=True)
    names = [f"case_{number:03d}" for number in range(cases)]
    for number, name in enumerate(names):
        image, label = make_volume(np.random.default_rng(number))
        for part, values in (("imagesTr", image), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / part / f"{name}.nii.gz")
    described = {
        "name": "nested",
        "modality": {"0": "FLAIR", "1": "T1c"},
        "labels": {str(value): name for value, name in enumerate(CLASSES)},
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def make_volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make an image, float32 (X, Y, Z, C), and its label, uint8 (X, Y, Z)."""
    grid = np.stack(np.meshgrid(*(np.arange(SIZE),) * 3, indexing="ij"), axis=-1).astype(float)
    centre, radii = rng.uniform(10, SIZE - 10, 3), rng.uniform(6, 9, 3)

    def ellipsoid(middle: np.ndarray, size: np.ndarray) -> np.ndarray:
        inside: np.ndarray = (((grid - middle) / size) ** 2).sum(axis=-1) < 1
        return inside

    label = np.zeros((SIZE,) * 3, np.uint8)
    whole = ellipsoid(centre, radii)
    inner = centre + rng.uniform(-0.25, 0.25, 3) * radii
    core = ellipsoid(inner, 0.65 * radii) & whole
    live = core & ~ellipsoid(inner + rng.uniform(-0.2, 0.2, 3) * radii, 0.4 * radii)
    label[whole], label[core], label[live] = 1, 2, 3
    distance = sum(np.square(each) for each in np.meshgrid(*(np.fft.fftfreq(SIZE),) * 3, indexing="ij"))
    channels = []
    for means in INTENSITY:
        spectrum = np.fft.fftn(rng.normal(0, 1, label.shape))
        field = np.fft.ifftn(spectrum * np.exp(-distance / 0.005)).real  # as of an uneven coil
        channels.append(np.array(means)[label] + 0.4 * field / field.std() + rng.normal(0, 0.7, label.shape))
    return np.stack(channels, axis=-1).astype(np.float32), label


def settings(root: Path, output: Path, name: str, seed: int, steps: int) -> dict[str, Any]:
    """The settings that both networks share."""
    return {
        "name": name, "output": str(output), "seed": seed, "device": "cpu",
        "data": {"root": str(root), "patch": [SIZE] * 3, "folds": 2, "intensity": {"mode": "zscore"}},
        "model": {"name": "unet", "channels": [8, 16, 32]},
        "augment": {"flip": 0.5, "shift_intensity": None},
        "optim": {"lr": 3e-3}, "schedule": {"warmup": 20},
        "train": {"steps": steps, "global_batch": 2, "micro_batch": 2, "threads": 1, "precision": "fp32"},
        "validate": {"every": steps}, "checkpoint": {"every": steps}, "log": {"every": steps, "tensorboard": False},
    }  # fmt: skip


def region_dice(folder: Path, regions: LabelScheme) -> dict[str, float]:
    """The mean Dice of each region over the validation cases of a run; the classes of a softmax are merged."""
    predictor = Predictor([folder], PredictOptions(device="cpu", checkpoint="last"))
    member = predictor.members[0]
    split, data = member.split, member.config.data
    assert split is not None
    dataset = open_configured(data)
    scorer = Scorer(predictor, dataset, own=True)
    held_out = {case.name for case in split.validation}

    def score(case: Case) -> list[float]:
        prediction = torch.from_numpy(scorer.prediction(case))
        if not predictor.scheme.sigmoid:
            prediction = torch.stack(list(masks_of(prediction, regions)))
        return OutputComparison(prediction, torch.from_numpy(scorer.label(case)), regions).dice()

    scores = [score(case) for case in dataset.training if case.name in held_out]
    return {name: nanmean(values) for name, values in zip(regions.output_names, zip(*scores, strict=True), strict=True)}


def compare(output: Path, cases: int, seeds: list[int], steps: int) -> str:
    """Train and score all runs; return the table.

    Args:
        output: folder of the data and the runs.
        cases: volumes of the data set; half of them are validated on.
        seeds: one pair of runs each.
        steps: optimizer steps of a run.
    """
    root = output / "Task_nested"
    write_dataset(root, cases)
    found: dict[str, list[dict[str, float]]] = {"sigmoid": [], "softmax": []}
    for seed in seeds:
        folders = {}
        for kind in sorted(found, reverse=bool(seed % 2)):  # the one that trains first takes turns
            shared = settings(root, output / "runs", f"{kind}_{seed}", seed, steps)
            if kind == "sigmoid":
                shared["data"] |= {"regions": REGIONS}
            folders[kind] = fusionseg.train("base", shared).folder
        regions = Predictor([folders["sigmoid"]], PredictOptions(device="cpu", checkpoint="last")).scheme
        for kind, folder in folders.items():
            found[kind].append(region_dice(folder, regions))
    rows = [["Dice", *REGIONS, "mean"]]
    for kind, scores in found.items():
        columns = [[score[name] for score in scores] for name in REGIONS]
        columns.append([fmean(score.values()) for score in scores])
        rows.append([kind, *map(_spread, columns)])
    differences = [
        [one[name] - two[name] for one, two in zip(found["sigmoid"], found["softmax"], strict=True)] for name in REGIONS
    ]
    differences.append([fmean(each) for each in zip(*differences, strict=True)])
    rows.append(["sigmoid minus softmax", *map(_spread, differences)])
    wins = sum(each > 0 for each in differences[-1])
    return "\n".join(
        [
            f"{date.today()}, {platform.machine()}, torch {torch.__version__}: {cases // 2} cases to train,"
            f" {cases - cases // 2} to validate, {steps} steps, seeds {', '.join(map(str, seeds))}; mean ± standard"
            " deviation over the seeds",
            markdown_table(rows),
            f"sigmoid has the higher mean in {wins} of {len(seeds)} pairs",
        ]
    )


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the data and the runs")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    print(compare(arguments.output, arguments.cases, arguments.seeds, arguments.steps))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
