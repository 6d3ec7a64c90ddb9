"""A reader, transforms and augmentations of a user's own, from files outside the package, through a whole run.

The files and the configuration are those of docs/extending.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

import fusionseg
from end_to_end.conftest import arguments
from end_to_end.own_parts import assert_killed_run_continues, extending_blocks, write_modules
from end_to_end.runs import (
    COMMANDS,
    TRAIN,
    Program,
    Started,
    checkpoint,
    rank_environments,
    records,
)
from fusionseg.config import RunConfig, dump_config, validate

STEPS, KILL_AT = 16, 6  # the last checkpoint is of step 4


def documented(section: str, key: str) -> Any:
    """The value of a key in the one YAML block of the page that has it."""
    (value,) = (
        loaded[section]
        for loaded in map(yaml.safe_load, extending_blocks("yaml"))
        if section in loaded and key in loaded[section]
    )
    return value


def to_numpy(root: Path) -> None:
    """Replace the NIfTI images of an MSD data set by .npz files."""
    for image in sorted((root / "imagesTr").glob("*.nii.gz")):
        volume = nibabel.load(image)
        path = image.with_name(image.name.replace(".nii.gz", ".npz"))
        np.savez(path, voxels=np.asarray(volume.dataobj), affine=volume.affine)
        image.unlink()
    listing = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(re.sub(r"(imagesTr/\w+)\.nii\.gz", r"\1.npz", listing))


def test_parts_of_the_data_from_outside_the_package(
    program: Program,
    make_dataset: Callable[..., Path],
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir(), elsewhere.mkdir()
    write_modules(own, ("my_transforms.py", "my_augmentations.py", "my_reader.py"))
    data = make_dataset(tmp_path / "Task92_numpy", cases=5, classes=3)
    to_numpy(data)
    monkeypatch.chdir(own)
    for module in ("my_transforms", "my_augmentations", "my_reader"):
        monkeypatch.delitem(sys.modules, module, raising=False)  # of another test's folder
    config = tiny_config(
        data,
        tmp_path / "runs",
        data={**documented("data", "reader"), **documented("data", "transforms"), "workers": 2},
        augment={"noise": {"prob": 0.5}, **documented("augment", "also")},
        train={"steps": STEPS, "global_batch": 4},
        validate={"every": 8},
        checkpoint={"every": 4},
        log={"samples": True},
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))

    def start(run: Path) -> list[Started]:
        words = arguments(file, run)
        return [program.warm(TRAIN, *words, env=env, cwd=own) for env in rank_environments(2)]

    def command(*words: object) -> Any:
        return program.warm(COMMANDS, *words, cwd=elsewhere).wait()

    # Two ranks; the second run is killed and goes on.
    whole, killed = tmp_path / "runs/whole", tmp_path / "runs/killed"
    assert_killed_run_continues(start, whole, killed, KILL_AT)

    # The run says what it was made with.
    recorded = checkpoint(whole)["config"]
    for part in (recorded["data"]["reader"], recorded["data"]["transforms"][0], recorded["augment"]["also"][0]):
        assert part["version"].startswith("sha256:") and part["found_in"] == str(own)
    assert recorded["data"]["transforms"][1]["version"].startswith("monai ")
    assert [record["samples"] for record in records(killed, "train")] == [
        record["samples"] for record in records(whole, "train")
    ]

    # Evaluation and prediction in another working directory; a prediction has no label.
    command("evaluate", whole).expect(0)
    (summary,) = whole.glob("evaluation*/**/summary.json")
    assert json.loads(summary.read_text())["failed"] == {}
    inputs = tmp_path / "inputs"
    shutil.copytree(data / "imagesTr", inputs)
    command("predict", whole, "--input", inputs, "--output", tmp_path / "masks").expect(0)
    for image in sorted(inputs.glob("*.npz")):
        mask = nibabel.load(tmp_path / f"masks/{image.stem}.nii.gz")
        content = np.load(image)
        assert mask.shape == content["voxels"].shape
        np.testing.assert_allclose(mask.affine, content["affine"], atol=1e-5)
        assert mask.header.get_xyzt_units()[0] == "mm"

    # A part that is gone is one message.
    (own / "my_transforms.py").unlink()
    gone = command("predict", whole, "--input", inputs, "--output", tmp_path / "others")
    assert gone.status == 2 and "my_transforms" in gone.err and "Traceback" not in gone.err
    assert not (tmp_path / "others").exists()


def test_a_built_in_augmentation_is_one_module(tmp_path: Path) -> None:
    """With the page's module in its folder, the configuration has its section, and other dumps stay as they are."""
    (text,) = (block for block in extending_blocks("python") if block.startswith("# quantise.py,"))
    package = tmp_path / "fusionseg"
    shutil.copytree(Path(fusionseg.__file__).parent, package, symlinks=True, ignore=shutil.ignore_patterns("*.pyc"))
    (package / "data/loading/intensity/quantise.py").write_text(text)
    code = """
import sys
from fusionseg.config import AugmentConfig, dump_config, load_config, validate
print(dump_config(validate({"model": {"name": "unet"}})))
augment = load_config(None, ["model.name=unet", "augment.quantise.step=0.5", "augment.noise={}"]).augment
assert list(augment.intensities) == ["noise", "quantise"] and augment.quantise.prob == 0.1
assert not {"torch", "numpy"} & sys.modules.keys()
import numpy, torch
from fusionseg.data.loading.augmentation_protocol import Drawn
drawn = Drawn({"step": numpy.array([0.2])}, torch.from_numpy)
image = augment.quantise.apply(torch.tensor([[[[[0.26, 0.1, -0.29]]]]]), drawn)
assert torch.allclose(image, torch.tensor([0.2, 0.0, -0.2])), image
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == dump_config(validate({"model": {"name": "unet"}})).strip()
