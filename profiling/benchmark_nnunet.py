"""Benchmark of a training step, with its data, against nnU-Net's own trainer on the same data set.

    python profiling/benchmark_nnunet.py --data DATASET [--memory 8] [--rounds 20] [--cudnn-benchmark] [--json FILE]

nnU-Net (package nnunetv2, `pip install -e '.[nnunet]'`) plans and prepares the data set in a temporary folder. Its
`nnUNetTrainer` then trains with its plan: batches of its own loader, whose processes augment on the CPU, then its
`train_step`. fusionseg trains MONAI's form of the same network (`nnunet_plain`) with the same patch, batch, spacing,
loss heads, optimizer and clipping, and with the augmentation `nnunet`. On a GPU both compute in fp16 and compile, which
is what nnU-Net does there; on a CPU both compute in fp32. `key.path=value` settings change fusionseg's side.

The loops are timed alternately, several steps each, so that other load on the machine affects both alike and nnU-Net's
processes cannot work ahead for more than a part of a round. A ratio is the median over the rounds; below 1 fusionseg
is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from fusionseg.config import load_config
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.synthetic.dataset import write_dataset
from fusionseg.performance.benchmarking import (
    Timings,
    cudnn_argument,
    measure_and_publish,
    open_trainer,
    time_alternately,
)
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.runs.cases.datasets import RunDataset, open_run_datasets
from fusionseg.utils.errors import UserError
from fusionseg.utils.logs import start_logging
from fusionseg.utils.machine import available_cpus
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "configs" / "base.yaml"
NUMBER, NAME = 900, "Dataset900_benchmark"
SOME = ["model={name: nnunet_plain}", "data.patch=[64, 64, 64]", "device=cpu"]  # to open the data set
OURS, THEIRS = "fusionseg", "nnU-Net"


@dataclass(frozen=True)
class Plan:
    """nnU-Net's plan, with the axes in the order X, Y, Z of the files."""

    patch: list[int]
    batch: int
    spacing: list[float]
    filters: list[int]
    kernels: list[list[int]]
    strides: list[list[int]]

    def settings(self, device: torch.device) -> list[str]:
        """Settings of fusionseg for the same training."""
        cuda = device.type == "cuda"
        return [
            f"model={{name: nnunet_plain, filters: {self.filters}, kernels: {self.kernels}, strides: {self.strides}}}",
            f"data.patch={self.patch}",
            f"data.spacing={self.spacing}",
            "data.samples_per_volume=1",
            "data.foreground=0.33",
            "augment=nnunet",
            "loss={name: dice_ce, squared: false, include_background: false}",
            "optim={name: sgd, lr: 1.0e-2, momentum: 0.99, weight_decay: 3.0e-5}",
            "schedule={name: polynomial, warmup: 0}",
            f"train.global_batch={self.batch}",
            f"train.micro_batch={self.batch}",
            "train.clip_grad=12.0",
            f"train.precision={'fp16' if cuda else 'fp32'}",
            f"train.compile={str(cuda).lower()}",
            f"device={device.type}",
        ]


def read_plan(plans: dict[str, Any]) -> Plan:
    """Read nnU-Net's plan for full resolution.

    nnU-Net reads volumes as (Z, Y, X) and permutes the axes (`transpose_forward`) before it plans.

    Args:
        plans: content of nnUNetPlans.json.
    """
    planned = plans["configurations"]["3d_fullres"]
    network = planned["architecture"]["arch_kwargs"]
    back = plans["transpose_backward"]

    def xyz(values: Sequence[Any]) -> list[Any]:
        return [values[axis] for axis in back][::-1]

    return Plan(
        patch=xyz(planned["patch_size"]),
        batch=planned["batch_size"],
        spacing=[float(value) for value in xyz(planned["spacing"])],
        filters=list(network["features_per_stage"]),
        kernels=[xyz(kernel) for kernel in network["kernel_sizes"]],
        strides=[xyz(stride) for stride in network["strides"][1:]],
    )


def write_raw(dataset: RunDataset, folder: Path) -> None:
    """Write the cases of a run as an nnU-Net data set.

    Args:
        dataset: training and validation cases of NIfTI files, with a value for each class.
        folder: it is created.

    Raises:
        UserError: the files are of another format, or the labels are regions.
    """
    _check(dataset.listed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in dataset.cases:
        assert case.label is not None
        channels = [volume for file in case.images for volume in _channels(file)]
        for number, image in enumerate(channels):
            nibabel.save(image, folder / "imagesTr" / f"{case.name}_{number:04d}.nii.gz")
        nibabel.save(nibabel.load(case.label), folder / "labelsTr" / f"{case.name}.nii.gz")
    listed = dataset.listed
    described = {
        "channel_names": {str(number): name for number, name in enumerate(listed.channels)},
        "labels": {"background" if value == 0 else name: value for value, name in sorted(listed.labels.items())},
        "numTraining": len(dataset.cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def _check(listed: Dataset) -> None:
    problems = []
    files = [str(path) for case in listed.training for path in (*case.images, *filter(None, [case.label]))]
    if others := [path for path in files if not path.endswith((".nii", ".nii.gz"))]:
        problems.append(f"{others[0]}: no NIfTI file; this benchmark takes NIfTI files")
    if not listed.scheme.is_plain or listed.is_partly_annotated:
        problems.append(
            f"{listed.place}: this benchmark takes label values 0, 1, 2, ..., one for each class, in all cases"
        )
    if problems:
        raise UserError(problems)


def _channels(file: Path) -> Iterator[nibabel.Nifti1Image]:
    """The channels of a file as 3D images."""
    image = nibabel.load(file)
    if image.ndim == 3:
        yield image
        return
    values = np.asanyarray(image.dataobj)
    for channel in np.moveaxis(values, -1, 0):
        yield nibabel.Nifti1Image(np.ascontiguousarray(channel), image.affine)


def prepare(raw: Path, memory_gb: float) -> dict[str, Any]:
    """Let nnU-Net plan and prepare the data set; return its plans.

    Args:
        raw: folder of the data set, below nnUNet_raw.
        memory_gb: memory that nnU-Net plans for.
    """
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    workers = available_cpus()
    api.extract_fingerprints([NUMBER], num_processes=workers, verbose=False, show_progress_bar=False)
    api.plan_experiments([NUMBER], gpu_memory_target_in_gb=memory_gb)
    api.preprocess([NUMBER], configurations=["3d_fullres"], num_processes=(workers,), show_progress_bar=False)
    file = raw.parents[1] / "preprocessed" / NAME / "nnUNetPlans.json"
    plans: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return plans


class TheirTraining:
    """nnU-Net's trainer, ready for its first step.

    Args:
        plans: nnU-Net's plans.
        raw: folder of the data set, below nnUNet_raw.
        device: device of the training.
    """

    def __init__(self, plans: dict[str, Any], raw: Path, device: torch.device) -> None:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        described = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
        self.trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, described, device)
        self.trainer.disable_checkpointing = True
        self.trainer.on_train_start()
        self.trainer.on_train_epoch_start()

    def step(self) -> None:
        """One training step, with its data."""
        self.trainer.train_step(next(self.trainer.dataloader_train))

    def close(self) -> None:
        """End the processes of the loaders."""
        for loader in (self.trainer.dataloader_train, self.trainer.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()


def import_nnunet(folder: Path) -> None:
    """Import nnU-Net, which reads the names of its folders from the environment at that time.

    Args:
        folder: of its folders.

    Raises:
        UserError: it is not installed.
    """
    for part in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{part}"] = str(folder / part)
    try:
        import nnunetv2  # noqa: F401
    except ImportError:
        raise UserError("nnunetv2 is not installed; run pip install -c constraints.txt -e '.[nnunet]'") from None


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure both trainings; the result has JSON values."""
    import_nnunet(folder)
    data = os.path.abspath(arguments.data or write_dataset(folder / "synth", cases=10, size=96).parent)
    device = torch.device(arguments.device)
    (dataset,) = open_run_datasets(load_config(str(BASE), [f"data.root={data}", *SOME, *arguments.overrides]))
    raw = folder / "raw" / NAME
    write_raw(dataset, raw)
    with contextlib.redirect_stdout(sys.stderr):
        plans = prepare(raw, arguments.memory)
        if arguments.batch:
            plans["configurations"]["3d_fullres"]["batch_size"] = arguments.batch
        plan = read_plan(plans)
        settings = [*plan.settings(device), "name=benchmark", *arguments.overrides]
        ours = open_trainer(str(BASE), settings, data, folder)
        theirs = TheirTraining(plans, raw, device)
        try:
            loops = {OURS: ours.train_one_step, THEIRS: theirs.step}
            times = time_alternately(
                {name: _repeated(loop, arguments.steps) for name, loop in loops.items()},
                device, arguments.rounds, warmup=1 if device.type == "cpu" else 2,
            )  # fmt: skip
        finally:
            theirs.close()
    return {
        "machine": machine_info(device),
        "about": f"{plan.batch} patches of {'x'.join(map(str, plan.patch))}, filters {plan.filters},"
        f" {ours.precision.name}, {len(dataset.training)} cases",
        "parameters": {OURS: _parameters(ours.model), THEIRS: _parameters(theirs.trainer.network)},
        "rows": _rows(times, arguments.steps),
    }


def _repeated(loop: Callable[[], object], count: int) -> Callable[[], object]:
    return lambda: [loop() for _ in range(count)]


def _parameters(network: torch.nn.Module) -> int:
    return sum(math.prod(weights.shape) for weights in network.parameters())


def _rows(times: Timings, per: int) -> list[dict[str, Any]]:
    return [
        {
            "loop": name,
            "seconds": times.median(name) / per,
            "spread": times.spread(name) / per,
            "ratio": times.ratio(OURS, name),
        }
        for name in times.times
    ]


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    rows = [("step with its data", "parameters", "median ms", "spread ms", "fusionseg / loop")]
    for row in result["rows"]:
        parameters = f"{result['parameters'][row['loop']]:,}"
        ratio = "" if row["loop"] == OURS else f"{row['ratio']:.3g}"
        rows.append((row["loop"], parameters, f"{1e3 * row['seconds']:.4g}", f"{1e3 * row['spread']:.2g}", ratio))
    return f"{machine_line(result['machine'])}\n\n{result['about']}\n\n{markdown_table(rows)}"


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data set (default: synthetic CTs)")
    parser.add_argument("--memory", type=float, default=8.0, help="GB that nnU-Net plans for (default: 8)")
    parser.add_argument("--batch", type=int, help="patches of a step (default: as nnU-Net plans)")
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds (default: 10)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round (default: 10)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    cudnn_argument(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore", module="(monai|torch|nnunetv2|batchgenerators).*")
    start_logging()
    return measure_and_publish(lambda folder: measure(arguments, folder), markdown, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
