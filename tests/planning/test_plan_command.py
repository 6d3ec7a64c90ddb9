"""`fusionseg plan`: its file loads, trains and predicts; it is the same each time; a file is not replaced silently."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

import fusionseg.train
from fusionseg import cli
from fusionseg.config import load_config
from fusionseg.runs.records import RecordKind, read_records

SHORT = (
    *("device=cpu", "train.steps=2", "train.threads=1", "validate.every=2", "checkpoint.every=2", "data.workers=1"),
    "log={every: 1, tensorboard: false}",
)


def plan(*words: object) -> int:
    """Plan. The fingerprint of a data set is beside it: it is read once for all tests."""
    fingerprint = [] if "--fingerprint" in words else ["--fingerprint", f"{words[0]}_fingerprint"]
    return cli.main(["plan", *map(str, words), "--workers", "1", *fingerprint])


@pytest.fixture(scope="module")
def planned(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of a data set of five small cases for this machine."""
    path = tmp_path_factory.mktemp("plan") / "balls.yaml"
    assert plan(balls, "-o", path) == 0
    return path


def test_the_plan_trains_and_predicts(planned: Path, balls: Path, tmp_path: Path) -> None:
    assert fusionseg.train.main(["--config", str(planned), f"output={tmp_path}", *SHORT]) == 0
    run = tmp_path / "balls"
    (validation,) = (record for record in read_records(run) if record["kind"] == RecordKind.VAL)
    assert 0 <= validation["dice"] <= 1
    image = balls / "imagesTr/case_000.nii.gz"
    assert cli.main(["predict", str(run), "--input", str(image), "--output", str(tmp_path / "masks")]) == 0
    mask = nibabel.load(tmp_path / "masks/case_000.nii.gz")
    assert mask.shape == nibabel.load(image).shape and set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_the_plan_says_why(planned: Path) -> None:
    config, text = load_config(planned), planned.read_text()
    assert config.name == "balls" and config.data.folds == 5 and config.data.spacing == (1.0, 1.0, 1.0)
    for key in ("spacing", "intensity", "patch", "foreground", "preset", "steps", "global_batch", "every"):
        above = text.split(f"\n  {key}: ")[0].splitlines()[-1]
        assert above.startswith("  # "), key


def test_the_same_data_give_the_same_bytes(planned: Path, balls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, time_ns = planned.read_bytes(), planned.stat().st_mtime_ns
    assert plan(balls, "-o", planned) == 0
    assert "exists already and is the same" in capsys.readouterr().out
    assert planned.read_bytes() == before and planned.stat().st_mtime_ns == time_ns


def test_the_data_are_read_once(make_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second plan takes the fingerprint of the first one, and one of other files is not taken."""
    data = make_dataset(tmp_path / "data", cases=5)
    first = tmp_path / "one.yaml"
    assert cli.main(["plan", str(data), "-o", str(first), "--workers", "1"]) == 0
    folder = tmp_path / "one_fingerprint"
    assert f"{folder / 'fingerprint.html'}: written" in capsys.readouterr().out
    image = data / "imagesTr/case_001.nii.gz"
    state = image.stat()
    image.write_bytes(bytes(state.st_size))  # unreadable, and not noticed
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert plan(data, "-o", tmp_path / "one.yaml", "--fingerprint", folder) == 0
    said = capsys.readouterr().out
    assert "kept, because no file of the data set has changed" in said and "is the same" in said
    os.utime(image)
    assert plan(data, "-o", tmp_path / "two.yaml", "--fingerprint", folder) == 0
    assert "is left out: case_001. The page about the data has the errors." in (tmp_path / "two.yaml").read_text()
    assert "case_001" in (folder / "fingerprint.html").read_text()


def test_a_file_that_differs_is_not_replaced(
    planned: Path, balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "balls.yaml"
    mine.write_text(planned.read_text().replace("  preset: light", "  preset: none"))
    changed = mine.read_bytes()
    assert plan(balls, "-o", mine) == 2
    error = capsys.readouterr().err
    assert f"{mine}: exists, and the plan differs from it (" in error and "augment.preset: none -> light" in error
    assert mine.read_bytes() == changed
    assert plan(balls, "-o", mine, "--overwrite") == 0
    assert load_config(mine).augment == load_config(planned).augment


def test_a_plan_for_a_gpu_elsewhere_keeps_given_keys(balls: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    words = ("--memory", "8GB", "--network", "nnunet_plain", "data.spacing=[2,2,2]", "data.classes=[ball2]")
    assert plan(balls, "-o", path, *words) == 0
    config = load_config(path)
    assert config.data.spacing == (2.0, 2.0, 2.0) and set(config.data.classes) == {"ball2"}
    assert (config.optim.name, config.schedule.name, config.train.steps) == ("sgd", "polynomial", 250_000)
    assert "Given with the command." in path.read_text()
    assert "  # bf16; fp16 with a loss scaler on a GPU without bf16, such as a T4" in path.read_text()
    assert f"#   fusionseg plan {balls} --memory 8GB --network nnunet_plain -o {path} " in path.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memory", "much"), "--memory: expected the memory of a GPU in GB, such as 16GB, got 'much'"),
        (("--memory", "8GB", "--budget", "L"), "--memory: 8 GB is less than the 24 GB of --budget L"),
        (("--network", "unnet"), "--network: there is no network 'unnet'; did you mean unet?"),
        (("--network", "unet", "--budget", "M"), "--budget: is for resenc_unet, and --network is unet"),
        (("--network", "my:Net"), "--network: my:Net is a part from outside"),
        (("train.steps=3",), "plan reads keys under data. only"),
        (("data.folds=9",), "data.folds=9: "),  # of five cases
        (("data.fold=5",), "data.fold=5: with data.folds=5 it goes from 0 to 4"),
        (("data.group=patient",), "data.group=patient: there are no columns"),
        (("data.root=/x",), "plan reads one data set; leave it out: the first word after `plan` is the data set"),
        (("data.also=[{root: /x}]",), "plan reads one data set"),
        (("data.patch=[33,32,32]",), "data.patch: unet with these voxels needs multiples of"),
    ],
)
def test_wrong_requests(
    words: tuple[str, ...], message: str, balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    assert plan(balls, "-o", path, *words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not path.exists()


def test_images_without_labels_are_refused_before_they_are_read(
    make_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", cases=1)
    listed = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**listed, "training": [{"image": listed["training"][0]["image"]}]}))
    assert plan(data, "-o", tmp_path / "x.yaml") == 2
    assert "has no training case with a label" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_number_of_workers_is_at_least_1(balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", str(balls), "-o", str(tmp_path / "x.yaml"), "--workers", "0"])
    assert "--workers: expected a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_a_network_that_does_not_fit_is_refused(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(balls, "-o", tmp_path / "x.yaml", "--memory", "0.1GB", "--network", "monai_unet") == 2
    assert "monai_unet with its smallest patch" in capsys.readouterr().err


def test_a_damaged_case_is_left_out_and_named(make_dataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    broken = data / "imagesTr/case_003.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    path = tmp_path / "plan.yaml"
    assert plan(data, "-o", path) == 0
    config = load_config(path)
    assert config.data.skip_broken and config.data.folds == 4
    assert "1 case cannot be read and is left out: case_003." in path.read_text()
    assert fusionseg.train.main(["--config", str(path), f"output={tmp_path}", *SHORT]) == 0


def test_a_plan_for_several_gpus(planned: Path, balls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = planned.with_name("four.yaml")
    assert plan(balls, "-o", path, "--memory", "8GB", "--network", "unet", "--gpus", 4) == 0
    said, config = capsys.readouterr().out, load_config(path)
    assert f"train with: torchrun --nproc_per_node=4 -m fusionseg.train --config {path}" in said
    assert "at a time on each of 4 GPUs" in said and "4 GPUs, each a GPU of 8 GB (--memory)" in path.read_text()
    assert config.train.global_batch == 4 * config.train.micro_batch
    assert "--gpus 4" in path.read_text()
    assert plan(balls, "-o", planned.with_name("none.yaml"), "--gpus", 2) == 2
    assert "--gpus: this machine has no GPU; state the memory" in capsys.readouterr().err
