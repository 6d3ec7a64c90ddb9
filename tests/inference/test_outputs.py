"""Files that predict and evaluate write, and files that they leave alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fusionseg import cli, train
from fusionseg.config import dump_config
from fusionseg.data.formats.dataset import Case, open_dataset
from fusionseg.inference.dataset_folders import refuse_dataset_folder
from fusionseg.inference.mask_formats.choice import FORMATS
from fusionseg.inference.masks import read_origin, refuse_same_file
from fusionseg.runs.evaluations import EvaluationRequest, evaluation_folder
from fusionseg.runs.predictions import read_predictions
from fusionseg.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own


@pytest.fixture(scope="module")
def run(balls: Path, tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on `balls`."""
    folder = tmp_path_factory.mktemp("outputs")
    small = {"steps": 2}
    config = tiny_config(balls, folder, train=small, validate={"every": 2}, checkpoint={"every": 2})
    (folder / "c.yaml").write_text(dump_config(config))
    assert train.main(["--config", str(folder / "c.yaml")]) == 0
    return folder / "tiny"


@pytest.fixture
def images(balls: Path, tmp_path: Path) -> Path:
    """Two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(balls / "imagesTr/case_000.nii.gz", folder / f"{name}.nii.gz")
    return folder


def predict(run: Path, images: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run), "--input", str(images), "--output", str(output), "--device", "cpu", *options])


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.*")}


# -- masks ---------------------------------------------------------------------------------------------------------


def test_own_masks_are_written_again_and_no_others(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "masks"
    assert predict(run, images, output) == 0
    first = content(output)
    assert sorted(first) == ["a.nii.gz", "b.nii.gz", "prediction.json"] == sorted(os.listdir(output))
    assert predict(run, images, output) == 0
    second = content(output)
    assert all(second[name][0] > first[name][0] for name in first)
    assert predict(run, images, output, "--skip-existing") == 0
    assert content(output) == second

    corrected = nibabel.load(output / "a.nii.gz")  # by hand; the program that does it keeps the header
    values = np.asarray(corrected.dataobj).copy()
    values[0, 0, 0] = 1 - min(1, values[0, 0, 0])
    nibabel.save(nibabel.Nifti1Image(values, corrected.affine, corrected.header), output / "a.nii.gz")
    third = content(output)
    capsys.readouterr()
    assert predict(run, images, output) == 2
    said = capsys.readouterr().err
    assert f"error: --output: {output}: these files are not replaced: choose another folder" in said
    assert f"{output}/a.nii.gz: was not written by fusionseg predict, or was changed since" in said
    assert "b.nii.gz" not in said and content(output) == third
    assert predict(run, images, output, "--skip-existing") == 0
    assert "these files are kept, although this command did not write them: a.nii.gz" in capsys.readouterr().err
    assert content(output) == third


def test_existing_masks_of_other_options_are_made_again(run: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "masks"
    assert predict(run, images, output) == 0
    plain = content(output)
    assert predict(run, images, output, "--skip-existing", "--overlap", "0.25") == 0
    sparse = content(output)
    assert all(sparse[name][0] > plain[name][0] for name in plain)
    for options in (("--overlap", "0.25"), ("--overlap", "0.25", "--checkpoint", "best")):
        assert predict(run, images, output, "--skip-existing", *options) == 0
        assert content(output) == sparse


def test_a_mask_of_another_image_of_that_name_is_kept(
    run: Path, images: Path, balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, others = tmp_path / "masks", tmp_path / "others"
    others.mkdir()
    shutil.copy(balls / "imagesTr/case_001.nii.gz", others / "a.nii.gz")
    assert predict(run, images, output) == 0
    before = content(output)
    for options in ((), ("--skip-existing",)):
        assert predict(run, others, output, *options) == 2
        assert f"{output}/a.nii.gz: is the mask of another image with the same name" in capsys.readouterr().err
    assert content(output) == before
    (others / "a.nii.gz").unlink()
    (others / "a.nii.gz").symlink_to(tmp_path / "gone")  # an image that cannot be read keeps the mask of its name
    assert predict(run, others, output) == 1
    said = capsys.readouterr().err
    assert "a.nii.gz: cannot be read: there is no such file" in said and "1 of 1 inputs have no mask: a" in said
    recorded = read_predictions(output).cases["a"]
    assert (recorded["status"], recorded["earlier"]["mask"]) == ("failed", "a.nii.gz")
    del before["prediction.json"]
    assert content(output).items() >= before.items()
    # The same images in another place, and an image that has changed in its own.
    assert predict(run, images.rename(tmp_path / "moved"), output, "--skip-existing") == 0
    assert content(output).items() >= before.items()
    shutil.copytree(tmp_path / "moved", images)
    shutil.copy(balls / "imagesTr/case_001.nii.gz", images / "a.nii.gz")
    assert predict(run, images, output) == 0


@pytest.mark.parametrize("kind", ["empty", "text", "folder", "dangling link", "image", "truncated"])
@pytest.mark.parametrize("skip", [False, True])
def test_other_files_in_the_way_are_refused(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, skip: bool
) -> None:
    output = tmp_path / "masks"
    output.mkdir()
    target = output / "b.nii.gz"
    if kind == "folder":
        target.mkdir()
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        image = (images / "b.nii.gz").read_bytes()
        target.write_bytes({"empty": b"", "text": b"notes", "image": image, "truncated": image[:-99]}[kind])
    status = predict(run, images, output, *(["--skip-existing"] if skip else []))
    said = capsys.readouterr().err
    if skip and kind == "image":
        assert status == 0 and "these files are kept, although this command did not write them: b.nii.gz" in said
        assert sorted(os.listdir(output)) == ["a.nii.gz", "b.nii.gz", "prediction.json"]
    else:
        assert status == 2 and f"{target}: " in said and "Traceback" not in said
        assert os.listdir(output) == ["b.nii.gz"]


def test_the_folder_of_the_images_takes_no_masks(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (images / f"{name}.nii.gz").rename(images / f"{name}_0000.nii.gz")  # the masks are a and b
    assert predict(run, images, images) == 2
    assert "the masks would lie among the images" in capsys.readouterr().err
    assert len(os.listdir(images)) == 2
    assert predict(run, images, images / "masks") == 0
    assert predict(run, images, images / "masks", "--skip-existing") == 0


def test_a_name_that_is_no_file_name(run: Path, images: Path, tmp_path: Path) -> None:
    os.rename(images / "a.nii.gz", images / "-a.nii.gz")
    os.rename(images / "b.nii.gz", images / ("é" * 123 + ".nii.gz"))
    for options in ((), (), ("--skip-existing",)):
        assert predict(run, images, tmp_path / "masks", *options) == 0
    masks = sorted((tmp_path / "masks").glob("*.nii.gz"))
    assert len(masks) == 2 == len(os.listdir(tmp_path / "masks")) - 1
    assert all(path.name[0] not in "-." and read_origin(path, FORMATS["nifti"]) for path in masks)


def test_names_that_are_one_file_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(name, (tmp_path / f"{name}.nii.gz",), None) for name in ("A", "a", "b")]
    refuse_same_file(cases, tmp_path / "masks")  # two files here
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr("os.path.exists", lambda path: True)  # as on a disk that takes A for a
    with pytest.raises(UserError, match="the masks of A, a would replace each other"):
        refuse_same_file(cases, tmp_path / "masks")


# -- folders of a data set -----------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set by its lists alone, with folders of any name."""
    root = tmp_path / "study"
    for folder in ("imagesTr", "imagesTs", "scans/ct", "manual", "free"):
        (root / folder).mkdir(parents=True)
    listed = {"training": [{"image": ["./scans/ct/1.nii.gz"], "label": "manual/1.nii.gz"}], "test": ["imagesTs/2.nii"]}
    (root / "dataset.json").write_text(json.dumps(listed))
    (root / "broken.json").write_text("{")
    (root / "notes.json").write_text('{"training": 3, "test": [null, {"image": 4}]}')
    return root


@pytest.mark.parametrize("folder", ["labelsTr", "labelsTs", "LABELSTR", "imagesTr", "imagesTs", "scans/ct", "manual"])
def test_a_folder_of_a_data_set_is_refused(dataset: Path, folder: str) -> None:
    ways = [dataset / folder, dataset / "free" / ".." / folder]
    (dataset.parent / "link").symlink_to(dataset / folder)
    for way in (*ways, dataset.parent / "link"):
        with pytest.raises(UserError, match=r"--output: .*: belongs to a data set \(.*\): choose another folder"):
            refuse_dataset_folder(way, "--output")


@pytest.mark.parametrize("folder", ["free", "new", "labelsTr/new", "../labelsTr", "scans"])
def test_a_folder_beside_a_data_set_is_allowed(dataset: Path, folder: str) -> None:
    refuse_dataset_folder(dataset / folder, "--output")


def test_predicting_into_labels_leaves_them(
    run: Path, images: Path, balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "d"
    shutil.copytree(balls, root)
    before = content(root)
    for folder in ("labelsTr", "labelsTs"):
        assert predict(run, images, root / folder, "--skip-existing") == 2
        assert f"--output: {root / folder}: belongs to a data set" in capsys.readouterr().err
    assert content(root) == before and not (root / "labelsTs").exists()


# -- disks ---------------------------------------------------------------------------------------------------------


def test_masks_on_a_full_disk(
    run: Path, images: Path, tmp_path: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished masks stay and are kept by --skip-existing; the disk is no fault of the second case."""
    mask = tmp_path / "masks/a.nii.gz"
    assert predict(run, images, tmp_path / "masks") == 0
    pages = -(-mask.stat().st_size // 4096)
    disk = small_disk(f"{4 * (2 * pages - 1) if pages > 1 else 8}k")
    if pages == 1:
        (disk / "other").write_bytes(bytes(4096))
    capsys.readouterr()
    assert predict(run, images, disk) == 1
    said = capsys.readouterr().err
    assert f"error: {disk}: cannot be written: No space left on device: free some space" in said
    assert "1 of 2 masks are there, and --skip-existing keeps them" in said and "Traceback" not in said
    assert sorted(set(os.listdir(disk)) - {"other", "prediction.json"}) == ["a.nii.gz"]


@pytest.mark.parametrize("options", ["2m,ro", "4k"], ids=["read-only", "full"])
def test_outputs_that_cannot_be_written(
    run: Path,
    images: Path,
    balls: Path,
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    options: str,
) -> None:
    """One message that names the place and the cause, status 2, and nothing computed."""
    disk = small_disk(options)
    if options == "4k":
        (disk / "all").write_bytes(bytes(4096))
    before = os.listdir(disk)
    config = str(run.parent / "c.yaml")
    cases = {
        "--output": ("predict", run, "--input", images, "--output", disk / "m"),
        "output": ("prepare", "--config", config, f"output={disk / 'o'}"),
        "data.prepared": ("prepare", "--config", config, f"data.prepared={disk / 'p'}"),
        "--json": ("check", balls, "--json", disk / "c.json"),
        "--output ": ("compare", run, "--output", disk / "c"),
        "--json ": ("models", "unet", "--patch", "32", "32", "32", "--json", disk / "m.json"),
        "--output  ": ("schema", "--output", disk / "s.json"),
        "--json  ": ("doctor", "--json", disk / "d.json"),
        "--output   ": ("monitor", "--output", disk / "g.csv"),
        "synth": ("synth", disk / "s", "--cases", "1", "--size", "48"),
    }
    for key, command in cases.items():
        assert cli.main([str(part) for part in command]) == 2, command
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {key.strip()}: {disk}") and "cannot be written: " in said.err, said.err
        assert said.err.count("\n") == 1 and not said.out
    assert train.main(["--config", config, f"output={disk / 'runs'}"]) == 2
    assert f"error: output: {disk}/runs/tiny: cannot be written: " in capsys.readouterr().err
    assert os.listdir(disk) == before


def test_a_run_on_a_read_only_disk_is_not_evaluated(
    run: Path, tmp_path: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("8m")
    shutil.copytree(run, disk / "tiny")
    os.system(f"mount -o remount,ro {disk}")
    assert cli.main(["evaluate", str(disk / "tiny"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert f"error: evaluate: {disk}/tiny: cannot be written: Read-only file system" in said
    assert said.count("\n") == 1


# -- evaluations ---------------------------------------------------------------------------------------------------


def evaluate(run: Path, *options: object) -> int:
    return cli.main(["evaluate", str(run), "--device", "cpu", *map(str, options)])


def results(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.glob("evaluation*/summary.json")}


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    return tmp_path / "run"


def test_each_request_has_its_folder(own_run: Path) -> None:
    assert evaluate(own_run) == 0
    assert evaluate(own_run, "--checkpoint", "best", "--overlap", "0") == 0
    done = results(own_run)
    assert sorted(done) == ["evaluation", "evaluation_best_overlap0"]
    assert evaluate(own_run, "--overlap", "0.5") == 0  # the run's own
    assert sorted(results(own_run)) == sorted(done)
    assert results(own_run)["evaluation_best_overlap0"] == done["evaluation_best_overlap0"]


def test_names_of_folders(own_run: Path, balls: Path) -> None:
    dataset = open_dataset(balls)
    names = {
        "evaluation": EvaluationRequest(None, None),
        "evaluation_tta": EvaluationRequest(None, None, flips=True),
        "evaluation_best": EvaluationRequest(None, None, checkpoint="best"),
        "evaluation_overlap0.25": EvaluationRequest(None, None, overlap=0.25),
        "evaluation_ensemble": EvaluationRequest(None, None, (own_run,)),
        # Of other cases the best weights are the usual ones.
        f"evaluation_{balls.name}": EvaluationRequest(dataset, str(balls), checkpoint="best"),
        f"evaluation_ensemble_{balls.name}_last_tta": EvaluationRequest(
            dataset, str(balls / "dataset.json"), (own_run,), flips=True
        ),
    }
    assert {name: evaluation_folder(own_run, request).name for name, request in names.items()} == {n: n for n in names}


def test_data_sets_of_one_name_have_their_folders(
    own_run: Path, make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (make_dataset(tmp_path / site / "d", cases=1, classes=3, seed=seed) for seed, site in enumerate("ab"))
    assert evaluate(own_run, "--dataset", one) == 0
    first = results(own_run)
    assert set(first) == {"evaluation_d"}
    assert json.loads(first["evaluation_d"])["dataset"] == f"{one}/dataset.json"
    capsys.readouterr()
    assert evaluate(own_run, "--dataset", other) == 0
    (second,) = set(results(own_run)) - set(first)
    assert second.startswith("evaluation_d_") and f"{own_run}/{second}: cases.csv" in capsys.readouterr().out
    assert results(own_run)["evaluation_d"] == first["evaluation_d"]

    # The same again goes to the same places; lists in one folder have theirs.
    for name in ("x", "y"):
        (one / f"{name}.json").write_bytes((one / "dataset.json").read_bytes())
    places = {
        one: "evaluation_d", other: second, other / "dataset.json": second, one / "x.json": "evaluation_d_x",
        one / "y.json": "evaluation_d_y",
    }  # fmt: skip
    for given, place in places.items():
        assert (
            evaluation_folder(own_run, EvaluationRequest(open_dataset(given), str(given), checkpoint="best")).name
            == place
        )


@pytest.mark.parametrize(
    ("file", "text", "replaced"),
    [
        ("cases.csv", "my,own,table\n", False),
        ("cases.csv", "case,label,dice,hd95_mm,voxels_true,voxels_predicted\n", True),  # of a killed evaluation
        ("summary.json", '{"checkpoint": "best.pt", "classes": {}}', True),  # of an earlier version
        ("summary.json", '{"summer": 1}', False),
        ("summary.json", "{", False),
        ("best_and_worst.png", "", False),
        ("notes.txt", "mine", True),  # in nobody's way
    ],
)
def test_files_that_evaluate_did_not_write(tmp_path: Path, file: str, text: str, replaced: bool) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / file).write_text(text)
    found = evaluation_folder(tmp_path, EvaluationRequest(None, None))
    assert (found == tmp_path / "evaluation") == replaced
    assert found == evaluation_folder(tmp_path, EvaluationRequest(None, None)) and found.parent == tmp_path
