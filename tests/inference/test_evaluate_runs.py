"""evaluate: several runs by one command, a pre-training and its volumes, which weights, and what is kept."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from scipy.ndimage import correlate1d

import fusionseg
from fusionseg import pretrain, train
from fusionseg.cli import main
from fusionseg.config import RunConfig, dump_config, validate
from fusionseg.distributed.launch import Launch
from fusionseg.inference.calls.dealt_cases import join_ranks
from fusionseg.inference.evaluation.several_runs import split_words

PRETRAINING = {
    "model": {"name": "swin_unetr", "feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 2},
    "pretrain": {"block": 8, "decoder": {"width": 8, "depth": 1}},
}


@pytest.fixture(scope="module")
def runs(balls: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segmentations, a pre-training, and a run that has not begun to train. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("sweep") / "runs"
    prepared = {"prepared": str(folder.parent / "prepared")}
    short = {"train": {"steps": 4}, "validate": {"every": 2}}
    for name, program, extra in (
        ("a", train, {"data": prepared}),
        ("b", train, {"data": prepared, "seed": 1}),
        ("pre", pretrain, {"data": {**prepared, "patch": [64, 32, 32]}}),
    ):
        config = folder.parent / f"{name}.yaml"
        plain = tiny_config(balls, folder, **{**short, **extra, "name": name}).to_dict()
        config.write_text(dump_config(validate({**plain, **(PRETRAINING if program is pretrain else {})})))
        assert program.main(["--config", str(config)]) == 0
    (folder / "waiting").mkdir()
    shutil.copy(folder / "a/config.yaml", folder / "waiting")
    return folder


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """The same, of this test alone."""
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def summary(run: Path, folder: str = "evaluation") -> dict:
    return json.loads((run / folder / "summary.json").read_text())


def validations(run: Path) -> list[dict]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "val"]


def states(out: str) -> dict[str, str]:
    """State of each run, from the table at the end."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    first = next(number for number, row in enumerate(rows) if row[:2] == ["run", "state"])
    return {Path(row[0]).name: row[1] for row in rows[first + 2 :]}


def test_runs_and_settings_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["runs/a", "data.root=/x", "/scratch/lr=1", "./lr=1", "lr=0.1", "seed=1"]
    paths, settings = split_words(words)
    assert paths == [Path("runs/a"), Path("/scratch/lr=1"), Path("lr=1")]
    assert settings == ["data.root=/x", "lr=0.1", "seed=1"]
    (tmp_path / "lr=0.1/one").mkdir(parents=True)
    (tmp_path / "lr=0.1/one/config.yaml").touch()
    assert split_words(words)[0][-1] == Path("lr=0.1")


def test_a_folder_of_runs_one_of_which_is_broken(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (own / "b/checkpoints/last.pt").write_bytes(b"damaged")
    assert main(["evaluate", str(own)]) == 1
    said = capfd.readouterr()
    assert states(said.out) == {"a": "evaluated", "b": "failed", "pre": "evaluated", "waiting": "no weights yet"}
    assert "waiting has no weights yet: it is skipped" in said.err and "damaged checkpoint" in said.err
    assert summary(own / "a")["checkpoint"].endswith("last.pt") and not (own / "b/evaluation").exists()

    assert main(["compare", str(own)]) == 0
    table = capfd.readouterr().out
    assert "dice (files)" in table and "(1 of 3)" in table and "ssim (prepared grid)" in table


def test_existing_evaluations_are_kept_until_the_weights_are_newer(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(own / "waiting")
    assert main(["evaluate", str(own)]) == 0
    before = {run: (own / run / "evaluation/summary.json").stat().st_mtime_ns for run in ("a", "b", "pre")}
    capfd.readouterr()
    weights = own / "b/checkpoints/last.pt"
    os.utime(weights, ns=(before["b"] + 1, before["b"] + 1))
    assert main(["evaluate", str(own), "--skip-existing"]) == 0
    assert states(capfd.readouterr().out) == {"a": "kept", "b": "evaluated", "pre": "kept"}
    after = {run: (own / run / "evaluation/summary.json").stat().st_mtime_ns for run in ("a", "b", "pre")}
    assert [after[run] == before[run] for run in ("a", "b", "pre")] == [True, False, True]
    assert main(["evaluate", str(own / "a"), "--skip-existing", "--tta"]) == 0  # other options, another evaluation
    assert "newer than the weights" not in capfd.readouterr().err


def test_which_weights(own: Path, balls: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The last for the run's own cases, on which the best was chosen; the best for others."""
    assert main(["evaluate", str(own / "a"), f"data.root={balls}"]) == 0
    found = summary(own / "a")
    assert "weights: last.pt, step 4\n" in capfd.readouterr().out
    assert (Path(found["checkpoint"]).name, found["step"]) == ("last.pt", 4)
    assert found["dice"] == pytest.approx(validations(own / "a")[-1]["dice"], abs=2e-3)
    assert main(["evaluate", str(own / "a"), "--checkpoint", "best", f"data.root={balls}"]) == 0
    assert Path(summary(own / "a", "evaluation_best")["checkpoint"]).name == "best.pt"
    assert summary(own / "a") == found
    other = Path(shutil.copytree(balls, own.parent / "others"))
    for image in (other / "imagesTr").iterdir():
        stored = nibabel.load(image)
        changed = nibabel.Nifti1Image(np.asarray(stored.dataobj) + np.int16(1), stored.affine)
        nibabel.save(changed, image)
    assert main(["evaluate", str(own / "a"), "--dataset", str(other)]) == 0
    assert Path(summary(own / "a", "evaluation_others")["checkpoint"]).name == "best.pt"


def test_a_request_that_is_wrong_is_refused(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["data.root=/x"], "no run is given"),
        ([str(own / "nowhere")], "nowhere"),
        ([str(own / "waiting")], "checkpoints/last.pt"),
        ([str(own / "a"), "--volumes"], "is a segmentation"),
        ([str(own / "pre"), "--tta", "--dataset", "/x"], "--dataset, --tta: "),
        ([str(own), "--with", str(own / "a")], "--with: averages with one run"),
    ):
        assert main(["evaluate", *words]) == 2
        said = capfd.readouterr().err
        assert message in said and "Traceback" not in said
    assert not list(own.glob("*/evaluation*"))


def test_a_pre_training_is_scored_as_in_its_validation(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = own / "pre"
    assert main(["evaluate", str(run)]) == 0
    shown = capfd.readouterr().out
    assert "| network " in shown and "weights: last.pt, step 4; on the prepared grid" in shown
    found, validated = summary(run), validations(run)[-1]
    assert (found["step"], found["grid"], found["cases"]) == (4, "prepared", 1)
    assert {key: entry["mean"] for key, entry in found["figures"].items()} == pytest.approx(
        {key: validated[key] for key in found["figures"]}, abs=1e-5
    )
    assert not (run / "evaluation/volumes").exists()


def test_the_volumes_of_a_pre_training_give_its_figures(own: Path, balls: Path) -> None:
    run = own / "pre"
    assert main(["evaluate", str(run), "--volumes"]) == 0
    (row,) = csv.DictReader((run / "evaluation/cases.csv").read_text().splitlines())
    files = {
        kind: nibabel.load(run / f"evaluation/volumes/{row['case']}_{kind}.nii.gz")
        for kind in ("original", "masked", "reconstruction", "hidden")
    }
    original, masked, filled, hidden = (np.asarray(file.dataobj, dtype=np.float64) for file in files.values())
    where = hidden > 0
    assert (filled[~where] == original[~where]).all() and (masked[where] == original.min()).all()
    error = (filled - original) ** 2
    assert float(row["psnr"]) == pytest.approx(10 * np.log10(36 / error.mean()), abs=1e-4)
    assert float(row["psnr_hidden"]) == pytest.approx(10 * np.log10(36 / error[where].mean()), abs=1e-4)
    similarity = ssim_map(filled, original, 6.0)
    assert float(row["ssim"]) == pytest.approx(similarity.mean(), abs=1e-6)
    assert float(row["ssim_hidden"]) == pytest.approx(similarity[where].mean(), abs=1e-6)
    # Turned to RAS, nothing resampled: the voxels lie where those of the file lie.
    image = nibabel.as_closest_canonical(nibabel.load(balls / f"imagesTr/{row['case']}.nii.gz"))
    assert files["original"].affine == pytest.approx(image.affine, abs=1e-4)
    assert original.shape == image.shape


def ssim_map(x: np.ndarray, y: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM with a Gaussian window of 11 voxels that the border cuts off, by SciPy."""
    taps = np.exp(-((np.arange(-5, 6) / 1.5) ** 2) / 2)

    def mean(volume: np.ndarray) -> np.ndarray:
        total, weight = volume, np.ones_like(volume)
        for axis in range(3):
            total, weight = (correlate1d(v, taps, axis, mode="constant") for v in (total, weight))
        return total / weight

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    return (
        (2 * mean_x * mean_y + c1)
        * (2 * (mean(x * y) - mean_x * mean_y) + c2)
        / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    )


def with_two_ranks(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "fusionseg", "evaluate"]
    command = [sys.executable, *start, *map(str, words), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_two_ranks_write_the_summary_of_one_process(
    own: Path, balls: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A data set with a broken label, and with a case that was trained on."""
    dataset, run = Path(shutil.copytree(balls, tmp_path / "others")), own / "a"
    broken, *_ = sorted((dataset / "labelsTr").iterdir())
    broken.write_bytes(b"broken")
    words = ["evaluate", str(run), "--dataset", str(dataset), "--include-trained"]
    assert main([*words, "--device", "cpu"]) == 1
    table = capfd.readouterr().out
    folder = run / "evaluation_others_with_trained"
    kept = folder.rename(tmp_path / "alone")
    ended = with_two_ranks(*words[1:])
    assert ended.returncode == 1 and ended.stdout == table
    names = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in names:
        assert name.suffix == ".png" or (folder / name).read_bytes() == (kept / name).read_bytes(), name
    assert "2 ranks divide 5 cases" in ended.stderr
    assert ended.stderr.count(f"error: {broken.name.partition('.')[0]} is not scored") == 1


def test_a_rank_that_fails_is_named_and_the_other_runs_are_evaluated(own: Path, tmp_path: Path) -> None:
    """The host of rank 1 lacks a package of one run. A validation case fewer than ranks is no problem."""
    (tmp_path / "only_zero.py").write_text(
        "import os\nif os.environ.get('RANK') == '1':\n    raise ImportError('no such library here')\n"
        "def share(prediction, label):\n    return 0.5\n"
    )
    config = yaml.safe_load((own / "b/config.yaml").read_text())
    config["metrics"] = [{"name": "only_zero:share"}]
    (own / "b/config.yaml").write_text(yaml.safe_dump(config))
    ended = with_two_ranks(own, "--trust", PYTHONPATH=f"{tmp_path}:{Path(fusionseg.__file__).parents[1]}")
    assert ended.returncode == 1
    assert states(ended.stdout) == {"a": "evaluated", "b": "failed", "pre": "evaluated", "waiting": "no weights yet"}
    assert "rank 1 could not open the evaluation" in ended.stdout
    assert f"error: rank 1 could not open the evaluation of {own / 'b'}; see the message of rank 1" in ended.stderr
    assert "rank 1: error: " in ended.stderr and "no such library here" in ended.stderr
    figures, validated = summary(own / "pre")["figures"], validations(own / "pre")[-1]
    assert {key: entry["mean"] for key, entry in figures.items()} == pytest.approx(
        {key: validated[key] for key in figures}, abs=1e-5
    )


def test_tasks_of_srun_are_independent_unless_they_are_joined() -> None:
    """The second task of two, alone: it opens no store, and has its own GPU."""
    launch = Launch(1, 2, 1, 2, ("127.0.0.1", 1))
    world = join_ranks(launch, "a", join_tasks=False)
    assert (world.rank, world.size) == (0, 1)
    assert world.launch == Launch(0, 1, 1, 2)


def test_joined_tasks_of_srun_divide_the_cases_and_others_do_not_wait(own: Path) -> None:
    """A task that is not joined ends while the other has not begun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    step = {"STEP_NUM_TASKS": "2", "NODEID": "0", "STEP_TASKS_PER_NODE": "2", "STEP_NODELIST": "localhost"}
    common = {**{f"SLURM_{key}": value for key, value in step.items()}, "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}

    def start(task: int, *words: object) -> subprocess.Popen[str]:
        environment = {**os.environ, **common, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fusionseg", "evaluate", *map(str, words), "--device", "cpu"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    alone = start(0, own / "a")
    text = alone.communicate(timeout=120)[1]
    assert "ranks divide" not in text and "alone; --join-tasks" in text and alone.returncode == 0
    joined = [start(task, own / "b", "--join-tasks") for task in range(2)]
    texts = [task.communicate(timeout=120)[1] for task in joined]
    assert [task.returncode for task in joined] == [0, 0]
    assert "2 ranks divide" in "".join(texts)
    assert summary(own / "a")["cases"] and summary(own / "b")["cases"]
