"""Parts shared by benchmark_start.py and benchmark_node_memory.py: a data set of many cases, and a run on it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from fusionseg.config import load_config
from fusionseg.data.preprocessing.prepare import open_configured, open_store, prepare
from fusionseg.runs.paths import checkpoints_of
from fusionseg.utils.files import write_json, write_text

POLL_S = 0.1
TIMEOUT_S = 900.0


def write_cases(folder: Path, cases: int, size: int) -> Path:
    """Write a data set of random cubes in MSD layout, unless it is there; return its folder.

    Args:
        folder: of all data sets.
        cases: number of cases.
        size: voxels in a row of a volume.
    """
    root = folder / f"cases_{cases}_{size}"
    if (root / "dataset.json").exists():
        return root
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True, exist_ok=True)
    names = [f"case_{index:05d}.nii" for index in range(cases)]
    for index, name in enumerate(names):
        image = np.random.default_rng(index).integers(0, 200, (size,) * 3, dtype=np.int16)
        label = np.zeros((size,) * 3, np.uint8)
        first = index % (size // 2)
        label[first : first + size // 4, : size // 2, : size // 2] = 1
        label[first : first + size // 4, size // 2 :, size // 2 :] = 2
        image[label > 0] += 300
        nib.Nifti1Image(image, np.eye(4)).to_filename(root / "imagesTr" / name)
        nib.Nifti1Image(label, np.eye(4)).to_filename(root / "labelsTr" / name)
    listed = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "one", "2": "two"}
    description = {"name": root.name, "modality": {"0": "CT"}, "labels": labels, "training": listed, "test": []}
    write_json(root / "dataset.json", description)
    return root


@dataclass(frozen=True)
class ManyCases:
    """A run of a small network on a prepared data set of many cases.

    Args:
        folder: of the data sets and the runs.
        cases: number of cases.
        size: voxels in a row of a volume.
    """

    folder: Path
    cases: int
    size: int

    @property
    def name(self) -> str:
        """The name of the run."""
        return f"run_{self.cases}_{self.size}"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / self.name

    def prepare(self) -> None:
        """Write the data set and the configuration, and prepare the cases that are not prepared yet."""
        root = write_cases(self.folder, self.cases, self.size)
        write_text(
            self._config_file,
            f"""\
name: {self.name}
output: {self.folder / "runs"}
device: cpu
model: {{name: monai_unet, channels: [4, 8], num_res_units: 1}}
data: {{root: {root}, patch: [16, 16, 16], intensity: {{mode: zscore}}}}
cache: {{device: host}}
schedule: {{warmup: 0}}
train: {{steps: 1000000, global_batch: 4, micro_batch: 1, precision: fp32}}
validate: {{every: 1000000}}
checkpoint: {{every: 1000000}}
log: {{every: 1, tensorboard: false}}
""",
        )
        config = load_config(str(self._config_file), [])
        dataset = open_configured(config.data)
        report = prepare(config.data, dataset, open_store(config.data, config.output, dataset))
        if report.failed:
            raise RuntimeError(str(report))

    @contextmanager
    def training(self, ranks: int) -> Iterator[int]:
        """Train from the first step on in new processes while the body runs; give the id of the first process.

        Args:
            ranks: number of processes; torchrun starts several.
        """
        shutil.rmtree(self.run, ignore_errors=True)
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *launcher, "-m", "fusionseg", "train", "--config", str(self._config_file)]
        with self.log.open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not checkpoints_of(self.run):  # the first step is saved
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.log}: the training has not begun")
                time.sleep(POLL_S)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT_S)

    @property
    def log(self) -> Path:
        """The output of the run."""
        return self.folder / f"{self.name}.log"

    @property
    def _config_file(self) -> Path:
        return self.folder / f"{self.name}.yaml"
