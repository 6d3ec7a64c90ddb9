"""Cases a second of a preparation: fusionseg, MONAI's transforms, and nnU-Net's preprocessor.

    python profiling/benchmark_prepare.py DATA [--spacing 1 1 1] [--clip -1000 600] [--crop -500] [--rounds 3]

All read the same files, turn them to RAS, resample, crop, normalise and write arrays, with the same number of
processes, each program started anew and alternately. Three times are taken: from the start of the program to its end;
of the work alone, with the libraries imported and before the worker processes are started; and the CPU time of the
whole program, which other programs on the machine hardly change. `--workers 1` leaves the start of workers out.

- *fusionseg*: `prepare`, with its checks, hashes, digests and foreground index; each file is forced to disk.
- *monai*: LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd, CropForegroundd, ScaleIntensityRanged or
  NormalizeIntensityd, np.save; forked processes. The images must be equal to those of fusionseg.
- *nnunet*, if it can be imported: `DefaultPreprocessor.run_case_save` with the plan of such data: cubic interpolation,
  its own normalisation and crop, blosc2 files, spawned processes. Its arrays are other ones and are not compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fusionseg.config import DataConfig
from fusionseg.data.formats.case import Case
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, run
from fusionseg.utils.machine import available_cpus

TOLERANCE = 2e-3
"""Largest difference of two images in float16 whose values lie around 1."""


@dataclass(frozen=True)
class Setting:
    """Steps of the preparation, and the place of the results."""

    root: str
    output: Path
    spacing: tuple[float, ...] | None
    clip: tuple[float, ...] | None
    crop: float | None
    workers: int
    cases: int | None

    def data(self) -> DataConfig:
        """The steps as a configuration."""
        raw = {"root": self.root, "workers": self.workers, "prepared": str(self.output / "store")}
        steps = {
            "spacing": self.spacing,
            "intensity": {"clip": self.clip} if self.clip else {},
            "crop_foreground": None if self.crop is None else {"threshold": self.crop},
        }
        return DataConfig.model_validate({**raw, **steps})


def by_fusionseg(setting: Setting) -> float:
    """Prepare by fusionseg. All recipes return the seconds of the work and write <output>/<case>."""
    from dataclasses import replace

    from fusionseg.data.preprocessing.prepare import open_configured, open_store, prepare

    data = setting.data()
    began = time.perf_counter()
    dataset = open_configured(data)
    dataset = replace(dataset, training=dataset.training[: setting.cases])
    report = prepare(data, dataset, open_store(data, "", dataset))
    seconds = time.perf_counter() - began
    if report.failed:
        raise UserError(str(report))
    return seconds


def by_monai(setting: Setting) -> float:
    """Prepare by a chain of MONAI's dictionary transforms."""
    import multiprocessing

    import torch
    from monai import transforms

    keys = ("image", "label")
    steps: list[Any] = [
        transforms.LoadImaged(keys=keys),
        transforms.EnsureChannelFirstd(keys=keys),
        transforms.Orientationd(keys=keys, axcodes="RAS", labels=None),
    ]
    if setting.spacing:
        modes = ("bilinear", "nearest")
        steps.append(transforms.Spacingd(keys=keys, pixdim=setting.spacing, mode=modes, padding_mode="border"))
    if setting.crop is not None:
        above = partial(_above, setting.crop)
        steps.append(
            transforms.CropForegroundd(keys=keys, source_key="image", select_fn=above, margin=4, allow_smaller=True)
        )
    if setting.clip:
        steps.append(transforms.ScaleIntensityRanged("image", *setting.clip, 0.0, 1.0, clip=True))
    else:
        steps.append(transforms.NormalizeIntensityd(keys="image"))
    chain = transforms.Compose(steps)
    began = time.perf_counter()
    cases = _cases(setting)
    with multiprocessing.get_context("fork").Pool(setting.workers, torch.set_num_threads, (1,)) as pool:
        for _ in pool.imap_unordered(partial(_save_by_monai, chain, setting.output), cases):
            pass
    return time.perf_counter() - began


def _above(threshold: float, image: Any) -> Any:
    return image > threshold


def _save_by_monai(chain: Any, output: Path, case: Case) -> None:
    made = chain({"image": str(case.images[0]), "label": str(case.label)})
    folder = output / case.name
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", made["image"].numpy().astype(np.float16))
    np.save(folder / "label.npy", made["label"][0].numpy().astype(np.uint8))


def by_nnunet(setting: Setting) -> float:
    """Prepare by nnU-Net's own preprocessor."""
    import multiprocessing

    from fusionseg.data.formats.readers import Readers

    began = time.perf_counter()
    cases = _cases(setting)
    own = np.median([_spacing(Readers(), case) for case in cases], axis=0)
    plan = _nnunet_plan(list(setting.spacing or own)[::-1], is_ct=setting.clip is not None)
    setting.output.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(setting.workers) as pool:
        for _ in pool.imap_unordered(partial(_save_by_nnunet, plan, setting.output), cases):
            pass
    return time.perf_counter() - began


def _spacing(readers: Any, case: Case) -> Any:
    from fusionseg.data.formats.geometry import voxel_sizes

    return voxel_sizes(readers.read_geometry(case.images[0]).affine)


def _nnunet_plan(spacing: list[float], *, is_ct: bool) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    of_labels = {**resampling, "is_seg": True, "order": 1}
    statistics_ = {"mean": 40.0, "std": 200.0, "percentile_00_5": -1000.0, "percentile_99_5": 600.0}
    return {
        "dataset_name": "benchmark",
        "plans_name": "benchmark",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": statistics_},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "benchmark",
                "preprocessor_name": "DefaultPreprocessor",
                "spacing": spacing,
                "patch_size": [64, 64, 64],
                "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
                "normalization_schemes": ["CTNormalization" if is_ct else "ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": of_labels,
            }
        },
    }


def _save_by_nnunet(plan: dict[str, Any], output: Path, case: Case) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(plan)
    description = {"labels": {"background": 0, "one": 1, "two": 2}, "channel_names": {"0": "image"}}
    DefaultPreprocessor(verbose=False).run_case_save(
        str(output / case.name),
        [str(case.images[0])],
        str(case.label),
        plans,
        plans.get_configuration("3d_fullres"),
        description,
    )


def _cases(setting: Setting) -> list[Case]:
    from fusionseg.data.formats.dataset import open_dataset

    return list(open_dataset(setting.root).training[: setting.cases])


RECIPES: dict[str, Callable[[Setting], float]] = {
    "fusionseg": by_fusionseg,
    "monai": by_monai,
    "nnunet": by_nnunet,
}


def largest_difference(folder: Path) -> float:
    """Compare the images of fusionseg and MONAI.

    Raises:
        UserError: they have another shape, or another label.
    """
    largest = 0.0
    for path in sorted((folder / "monai").iterdir()):
        own = folder / "fusionseg/store/cases" / path.name
        if not np.array_equal(np.load(own / "label.npy"), np.load(path / "label.npy")):
            raise UserError(f"{path.name}: fusionseg and MONAI give different labels")
        ours, theirs = (np.load(place / "image.npy").astype(np.float32) for place in (own, path))
        largest = max(largest, float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max())))
    return largest


def measure(arguments: list[str], recipe: str, folder: Path) -> tuple[float, float, float]:
    """Run a recipe in a process of its own; return the seconds of the whole program, of the work alone, and of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, __file__, *arguments, "--recipe", recipe, "--output", str(folder / recipe)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, float(json.loads(done.stdout.splitlines()[-1])), cpu_s


def compare(arguments: list[str], recipes: list[str], rounds: int, cases: int) -> None:
    """Measure the recipes alternately, and print a table."""
    times: dict[str, list[tuple[float, float, float]]] = {recipe: [] for recipe in recipes}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            for recipe in recipes[number % len(recipes) :] + recipes[: number % len(recipes)]:
                times[recipe].append(measure(arguments, recipe, Path(name)))
            if number == 0 and {"fusionseg", "monai"} <= set(recipes):
                difference = largest_difference(Path(name))
                if difference > TOLERANCE:
                    raise UserError(f"fusionseg and MONAI give different images (by {difference:.2g} of the range)")
                print(f"equal labels; images equal to {difference:.1g} of their range\n")
    print("| recipe | cases/s, whole program | ratio | cases/s, work alone | ratio | cases/CPU s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for recipe in recipes:
        cells = []
        for part in (0, 1, 2):
            rate = cases / statistics.median(pair[part] for pair in times[recipe])
            ratios = [other[part] / own[part] for own, other in zip(times["fusionseg"], times[recipe], strict=True)]
            cells += [f"{rate:.2f}", f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
        print(f"| {recipe} | {' | '.join(cells)} |")


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set: MSD or nnU-Net layout, one channel")
    parser.add_argument("--spacing", type=float, nargs=3, help="voxel size in mm; default: as stored")
    parser.add_argument("--clip", type=float, nargs=2, help="window of the intensities; default: z-score")
    parser.add_argument("--crop", type=float, help="crop to the voxels above this intensity; default: no crop")
    parser.add_argument("--cases", type=int, help="number of cases; default: all")
    parser.add_argument("--workers", type=int, default=available_cpus(), help="processes; default: the CPUs")
    parser.add_argument("--rounds", type=int, default=3, help="times that each recipe runs (default: 3)")
    parser.add_argument("--recipe", choices=RECIPES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = (options.spacing, options.clip, options.crop)
    setting = Setting(options.data, options.output, *steps, options.workers, options.cases)

    def work() -> int:
        if options.recipe:
            print(json.dumps(RECIPES[options.recipe](setting)))
            return DONE
        recipes = ["fusionseg", "monai", *(["nnunet"] if importlib.util.find_spec("nnunetv2") else [])]
        compare(sys.argv[1:], recipes, options.rounds, len(_cases(setting)))
        return DONE

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
