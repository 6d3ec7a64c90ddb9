"""Calls of `fusionseg predict` with many cases: overlapped stages, the record, shares of several processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

import fusionseg
from fusionseg import cli
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.problems import Problem
from fusionseg.data.formats.readers import Readers
from fusionseg.data.preprocessing.memory import MemoryLimit, MemoryNeeded
from fusionseg.distributed.launch import Launch
from fusionseg.inference import predictor as predictor_module
from fusionseg.inference.calls import overlap
from fusionseg.inference.calls.overlap import AHEAD, Stages, overlapped
from fusionseg.inference.calls.share import Share, read_share
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.predictions import read_predictions
from fusionseg.utils.errors import UserError

TinyRun = Callable[..., Path]


@pytest.fixture
def images(balls: Path, tmp_path: Path) -> Path:
    """Five images: two sizes, one that is broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, source in zip("abde", (0, 1, 0, 1), strict=True):
        shutil.copy(balls / f"imagesTr/case_00{source}.nii.gz", folder / f"{name}.nii.gz")
    (folder / "c.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:-30])
    return folder


def predict(run: Path, given: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run), "-i", str(given), "-o", str(output), "--device", "cpu", *options])


# -- overlap -------------------------------------------------------------------------------------------------------


def test_stages_overlap_and_cases_keep_their_order() -> None:
    """Each stage waits for the others in a way that only overlapped stages can satisfy."""
    began: dict[tuple[str, int], threading.Event] = {
        (stage, item): threading.Event() for stage in ("read", "predict", "write") for item in range(5)
    }

    def wait_for(stage: str, item: int) -> None:
        assert item >= 5 or began[stage, item].wait(10), (stage, item)

    def read(item: int, memory: MemoryLimit | None) -> int:
        began["read", item].set()
        return item

    def compute(item: int, loaded: int) -> int:
        began["predict", item].set()
        wait_for("read", item + AHEAD)
        if item == 1:
            raise ValueError("one")
        return 10 * loaded

    def write(item: int, result: int) -> None:
        assert result == 10 * item
        began["write", item].set()
        wait_for("predict", item + 1)

    finished = list(overlapped(range(5), Stages(read, compute, write)))
    assert [one.item for one in finished] == list(range(5))
    assert [str(one.error or "") for one in finished] == ["", "one", "", "", ""]
    assert finished[0].read_s >= 0 and finished[0].write_s > 0


def test_a_large_case_is_read_alone() -> None:
    """It is read once more when no other case is in memory, and the cases after it are read again."""
    reads: list[tuple[int, bool]] = []
    in_use = threading.Semaphore(1)

    def read(item: int, memory: MemoryLimit | None) -> int:
        reads.append((item, memory is None))
        if item == 1 and memory is not None:
            raise MemoryNeeded([Problem("error", "", "x", "memory", "large", "")])
        return item

    def compute(item: int, loaded: int) -> int:
        assert in_use.acquire(blocking=False)  # a large result was written before
        return item

    def write(item: int, result: int) -> None:
        time.sleep(0.02)
        in_use.release()

    stages = Stages(read, compute, write, is_large=lambda result: True)
    finished = list(overlapped(range(4), stages))
    assert [one.error for one in finished] == [None] * 4
    assert (1, True) in reads and (0, True) not in reads


def test_processes_of_a_host_share_its_memory(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (overlap, predictor_module):
        monkeypatch.setattr(module, "available_memory_bytes", lambda: 8_000)
    limits: list[MemoryLimit | None] = []
    stages = Stages(lambda item, memory: limits.append(memory), lambda item, loaded: 0, lambda item, result: None)
    assert len(list(overlapped(range(2), stages))) == len(list(overlapped(range(2), replace(stages, processes=4)))) == 2
    assert limits == [MemoryLimit(2_000)] * 2 + [MemoryLimit(500)] * 2
    options = PredictOptions("cpu")
    budgets = [
        Predictor([tiny_run()], options, launch)._budget_bytes() for launch in (None, Launch(1, 8, local_world_size=4))
    ]
    assert budgets == [4_000, 1_000]


def test_a_closed_pipeline_leaves_no_thread() -> None:
    """The write in progress ends, and no further case is read."""
    written: list[int] = []
    stages = Stages(lambda item, memory: item, lambda item, loaded: item, lambda item, result: written.append(item))
    before = threading.active_count()
    running = overlapped(range(100), stages)
    next(running)
    running.close()
    assert threading.active_count() == before and 1 <= len(written) <= 4


# -- the record ----------------------------------------------------------------------------------------------------


def test_masks_are_those_of_the_predictor_and_the_record_says_how(
    tiny_run: TinyRun, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = tiny_run(), tmp_path / "masks"
    assert predict(run, images, output, "--overlap", "0.25") == 1
    predictor = Predictor([run], PredictOptions("cpu", overlap=0.25))
    for name in "abde":
        found = np.asarray(nibabel.load(output / f"{name}.nii.gz").dataobj)
        assert np.array_equal(found, predictor([images / f"{name}.nii.gz"]))
    recorded = read_predictions(output)
    (call,) = recorded.calls
    assert call["status"] == "cases failed" and call["device"] == "cpu" and call["precision"] == ["fp32"]
    assert call["overlap"] == [0.25] and len(call["weights"][0]["sha256"]) == 64 and call["packages"]["torch"]
    entry = recorded.cases["a"]
    image = nibabel.load(images / "a.nii.gz")
    assert entry["images"] == [str(images / "a.nii.gz")] and entry["mask"] == "a.nii.gz"
    assert tuple(entry["shape"]) == image.shape and entry["predict_s"] > 0 and entry["write_s"] > 0
    assert np.allclose(entry["spacing_mm"], image.header.get_zooms())
    assert recorded.cases["c"]["status"] == "failed" and "c.nii.gz: cannot be read" in recorded.cases["c"]["problem"]
    # Another start adds to it, and keeps what was done.
    (images / "f.nii.gz").write_bytes((images / "a.nii.gz").read_bytes())
    (images / "c.nii.gz").unlink()
    left_over = [output / f".partial-0123456789ab-{name}.nii.gz" for name in "fax"]
    for path in left_over:
        path.touch()
        os.utime(path, (0, 0))
    assert predict(run, images, output, "--overlap", "0.25", "--skip-existing") == 0
    again = read_predictions(output)
    assert [one["status"] for one in again.calls] == ["cases failed", "completed"]
    assert [path.exists() for path in left_over] == [False, True, True]  # those of masks that are written now are gone
    assert again.cases["a"] == entry and again.cases["f"]["call"] == again.calls[1]["started"]


def test_other_files_in_the_place_of_the_record(
    tiny_run: TinyRun, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/prediction.json").write_text('{"mine": 1}')
    assert predict(tiny_run(), images, tmp_path / "masks") == 2
    assert "prediction.json: is another file, and is not replaced" in capsys.readouterr().err
    (images / "a.nii.gz").rename(images / "prediction.nii.gz")
    assert predict(tiny_run(), images, tmp_path / "new", "--format", "npy") == 2
    assert "is the record of the prediction: rename the image" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# -- shares --------------------------------------------------------------------------------------------------------


def test_shares_are_disjoint_and_of_about_the_same_size(tmp_path: Path) -> None:
    cases = []
    for index, size in enumerate((900, 10, 500, 400, 10, 0)):
        path = tmp_path / f"{index}.nii.gz"
        path.write_bytes(bytes(size))
        cases.append(Case(str(index), (path,), None))
    cases.append(Case("gone", (tmp_path / "gone.nii.gz",), None))
    shares = [Share(index, 2).of(cases, Readers()) for index in range(2)]
    assert sorted(case.name for share in shares for case in share) == sorted(case.name for case in cases)
    sizes = [sum(case.images[0].stat().st_size for case in share if case.name != "gone") for share in shares]
    assert abs(sizes[0] - sizes[1]) <= 20
    assert sum(len(Share(index, 9).of(cases, Readers())) for index in range(9)) == len(cases)


ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}
ONE_TASK = {f"SLURM_ARRAY_TASK_{name}": value for name, value in {"COUNT": "1", "MIN": "5", "MAX": "5"}.items()}
RANKS = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
RANKS |= {"MASTER_ADDR": "h", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("part", "environ", "expected"),
    [
        (None, {}, "1/1"),
        (None, ARRAY, "1/1"),
        ("2/8", {}, "2/8"),
        (None, RANKS, "2/2"),
        ("array", {**ARRAY, "SLURM_ARRAY_TASK_MAX": "4"}, "3/4"),
        ("array", {**ARRAY, **RANKS, "SLURM_ARRAY_TASK_MAX": "4"}, "6/8"),
    ],
)
def test_the_share_of_a_process(part: str | None, environ: dict[str, str], expected: str) -> None:
    assert str(read_share(part, environ)) == expected


@pytest.mark.parametrize(
    ("part", "environ", "message"),
    [
        ("0/8", {}, "--part: expected a part and the number of parts, such as 2/8, or array, got '0/8'"),
        ("9/8", {}, "got '9/8'"),
        ("array", {}, "this is no task of a SLURM array"),
        ("array", {**ARRAY, "SLURM_ARRAY_TASK_MAX": "9"}, "4 tasks with IDs from 1 to 9, and not all from 0 or 1 on"),
        ("array", {**ARRAY, **ONE_TASK}, "1 tasks with IDs from 5 to 5, and not all from 0 or 1 on; to repeat single"),
    ],
)
def test_wrong_parts(part: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_share(part, environ)
    assert message in str(caught.value)


def test_two_ranks_of_torchrun_divide_the_cases(tiny_run: TinyRun, images: Path, tmp_path: Path) -> None:
    """The rank with the broken case waits for the other one, which torchrun would end otherwise."""
    output = tmp_path / "masks"
    words = ["--standalone", "--nproc_per_node=2", "-m", "fusionseg", "predict", tiny_run(), "-i", images, "-o", output]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words), "--device", "cpu"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 1
    names = [f"prediction_{part}_of_2.json" for part in (1, 2)]
    assert sorted(path.name for path in output.iterdir()) == sorted([*(f"{name}.nii.gz" for name in "abde"), *names])
    recorded = read_predictions(output)
    assert {name: entry["status"] for name, entry in recorded.cases.items()} == {
        **dict.fromkeys("abde", "written"),
        "c": "failed",
    }
    assert sorted(call["part"] for call in recorded.calls) == ["1/2", "2/2"]
    assert sorted(call["status"] for call in recorded.calls) == ["cases failed", "completed"]
    parts = [set(json.loads((output / name).read_text())["cases"]) for name in names]
    assert not parts[0] & parts[1] and all(parts)
    assert "part 1/2: " in ended.stderr and "rank 1: part 2/2: " in ended.stderr


# -- probabilities -------------------------------------------------------------------------------------------------


def test_probabilities_beside_the_masks(
    tiny_run: TinyRun, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both formats hold the array of the Python interface, on the grid of the file, with the names of the classes."""
    run, image = tiny_run(), images / "b.nii.gz"
    expected = fusionseg.predict(run, image, probabilities=True, device="cpu")
    assert isinstance(expected, np.ndarray)
    assert predict(run, image, tmp_path / "n", "--probabilities", "nifti") == 0
    assert predict(run, image, tmp_path / "z", "--probabilities", "npz", "--format", "npy") == 0
    volumes, source = nibabel.load(tmp_path / "n/b_probabilities.nii.gz"), nibabel.load(image)
    assert volumes.get_data_dtype() == np.float32 and (volumes.affine == source.affine).all()
    assert np.array_equal(np.moveaxis(np.asarray(volumes.dataobj), -1, 0), expected)
    names = json.loads(volumes.header.extensions[0].get_content())["labels"]
    with np.load(tmp_path / "z/b.npz", allow_pickle=False) as content:
        assert np.array_equal(content["probabilities"].transpose(0, 3, 2, 1), expected)
        assert content["labels"].tolist() == names == ["background", "ball1", "ball2"]
        assert np.allclose(content["affine"], source.affine) and str(content["axes"]) == "CZYX"
    assert np.array_equal(expected.argmax(axis=0), np.load(tmp_path / "z/b.npy"))
    assert read_predictions(tmp_path / "n").cases["b"]["probabilities"] == "b_probabilities.nii.gz"
    # A mask alone is not enough for --skip-existing; files of others are not replaced.
    before = (tmp_path / "z/b.npz").stat().st_mtime_ns
    for is_made in (False, True):
        options = ("--probabilities", "npz", "--format", "npy", "--skip-existing")
        assert predict(run, image, tmp_path / "z", *options) == 0
        assert ((tmp_path / "z/b.npz").stat().st_mtime_ns != before) is is_made
        (tmp_path / "z/b.npz").unlink()
    for kind, name in (("npz", "b.npz"), ("nifti", "b_probabilities.nii.gz")):
        for content in (b"mine", b"", b"PK\x03\x04 and no more", image.read_bytes()[:300]):
            (tmp_path / "z" / name).write_bytes(content)
            assert predict(run, image, tmp_path / "z", "--probabilities", kind, "--format", "npy") == 2
            assert f"{name}: was not written by fusionseg predict for this image" in capsys.readouterr().err
    shutil.copy(image, images / "b_probabilities.nii.gz")
    assert predict(run, images, tmp_path / "new", "--probabilities", "nifti") == 2
    assert "would be the mask of the case b_probabilities too" in capsys.readouterr().err
    assert predict(run, images, tmp_path / "new", "--probabilities", "nfti") == 2
    assert "--probabilities: nfti: no such format (did you mean nifti?" in capsys.readouterr().err
