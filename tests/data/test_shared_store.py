"""Data sets that share a folder or a store never overwrite each other's prepared cases."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from end_to_end.runs import Ended
from faults.catalogue import assert_seen
from preparing import first_record, opened, run

from fusionseg import cli
from fusionseg.config import RunConfig, dump_config
from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.preprocessing.case_folders import read_cases
from fusionseg.data.preprocessing.prepare import open_configured, store_folder
from fusionseg.data.preprocessing.record import SourceFile
from fusionseg.data.preprocessing.store import Store, write_case
from fusionseg.data.preprocessing.volume import Volume
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.utils.errors import UserError, WriteError

CPU = torch.device("cpu")


def folder_of(config: RunConfig) -> Path:
    return store_folder(config.data, config.output, open_configured(config.data))


def labels(store: Store) -> list[np.ndarray]:
    """As a training gets them."""
    cache = DeviceCache([(store, name) for name in sorted(store.cases)], CacheConfig(), CPU)
    return [cache.volume(number)[1].numpy() for number in range(len(cache))]


def stored(folder: Path) -> list[np.ndarray]:
    return [
        np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj) for path in sorted(folder.glob("*.nii.gz"))
    ]


@pytest.fixture
def two_lists(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    """A folder with the lists a.json and b.json: the same images, other labels of the same size."""
    root = make_dataset(tmp_path / "d", cases=2, classes=3)
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").rename(root / "a.json")
    shutil.copytree(root / "labelsTr", root / "other")
    for path in (root / "other").iterdir():
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.roll(np.asarray(image.dataobj), 3, 0), image.affine), path)
    for entry in description["training"]:
        entry["label"] = entry["label"].replace("labelsTr", "other")
    (root / "b.json").write_text(json.dumps(description))
    return root


@pytest.mark.parametrize("given", [False, True], ids=["own folders", "one data.prepared"])
def test_two_lists_of_one_folder_keep_their_own_labels(
    two_lists: Path, tmp_path: Path, tiny_config, given: bool
) -> None:
    data = {"prepared": str(tmp_path / "store")} if given else {}
    a, b = (tiny_config(two_lists / name, tmp_path / "out", data=data) for name in ("a.json", "b.json"))
    assert (folder_of(a) == folder_of(b)) == given
    assert run(a).failed == {}
    store = opened(a)
    assert len(run(b).prepared) == 2  # between the store's opening and the cache's loading
    for config, folder in ((a, "labelsTr"), (b, "other")):
        for ours, theirs in zip(labels(opened(config)), stored(two_lists / folder), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(labels(store)[0], stored(two_lists / "labelsTr")[0])
    for config in (a, b, a):
        assert run(config).prepared == []  # neither takes the other's place


def test_all_ways_to_write_a_path_share_a_store(balls: Path, tmp_path: Path, tiny_config) -> None:
    link = tmp_path / "link"
    link.symlink_to(balls)
    ways = (balls, balls / "dataset.json", balls / ".." / balls.name, link)
    configs = [tiny_config(way, tmp_path) for way in ways]
    assert len({folder_of(config) for config in configs}) == 1


def test_one_json_linked_into_two_folders_is_two_data_sets(tmp_path: Path, make_dataset, tiny_config) -> None:
    roots = [make_dataset(tmp_path / site / "data", cases=2, seed=seed) for seed, site in enumerate("ab")]
    (tmp_path / "list.json").write_bytes((roots[0] / "dataset.json").read_bytes())
    folders = set()
    for root in roots:
        (root / "dataset.json").unlink()
        (root / "dataset.json").symlink_to(tmp_path / "list.json")
        config = tiny_config(root, tmp_path / "out")
        folders.add(folder_of(config))
    assert len(folders) == 2


def test_moved_data_keep_both_cases_of_a_shared_store(two_lists: Path, tmp_path: Path, tiny_config) -> None:
    data = {"prepared": str(tmp_path / "store")}
    for name in ("a.json", "b.json"):
        run(tiny_config(two_lists / name, tmp_path / "out", data=data))
    moved = two_lists.rename(tmp_path / "moved")
    for name in ("a.json", "b.json"):
        report = run(tiny_config(moved / name, tmp_path / "out", data=data))
        assert (report.prepared, len(report.reused)) == ([], 2)


@pytest.mark.fault("case-prepared-again-meanwhile")
def test_a_case_that_is_prepared_again_meanwhile_is_refused(tmp_path: Path, make_dataset, tiny_config) -> None:
    root = make_dataset(tmp_path / "d", cases=2)
    config = tiny_config(root, tmp_path / "out")
    run(config)
    store = opened(config)
    path = root / "labelsTr/case_001.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.roll(np.asarray(image.dataobj), 2, 0), image.affine), path)
    assert run(config).prepared == ["case_001"]
    with pytest.raises(UserError, match="cases/case_001: ") as refused:
        labels(store)
    assert_seen("case-prepared-again-meanwhile", str(refused.value))
    assert len(labels(opened(config))) == 2


@pytest.mark.parametrize("file", ["image.npy", "label.npy", "foreground.npy"])
@pytest.mark.fault("prepared-case-damaged")
def test_damaged_arrays_are_refused(tmp_path: Path, file: str) -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    label[1:3, 0, 0] = 1
    volume = Volume(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), label, np.eye(4), (4, 4, 4), np.eye(4))
    store = Store(
        tmp_path, "t", ("CT",), LabelScheme.of_names("bf"), {"a": write_case(tmp_path, "a", volume, [], "float32")}
    )
    assert labels(store)
    array = np.load(tmp_path / "cases/a" / file)
    np.save(tmp_path / "cases/a" / file, array[..., ::-1])  # of the same shape, type and sum
    with pytest.raises(UserError) as refused:
        labels(store)
    assert_seen("prepared-case-damaged", str(refused.value))


@pytest.mark.parametrize("name", ["..", ".", "", "/etc/passwd", "a/b", "-x", ".hidden", "a\nb", "é" * 200, "con"])
def test_a_name_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    root, volume = tmp_path / "store", Volume(np.zeros((1, 2, 2, 2), np.float32), None, np.eye(4), (2, 2, 2), np.eye(4))
    record = write_case(root, name, volume, [SourceFile("f", 1, 1, "aa")], "float32")
    assert os.listdir(tmp_path) == ["store"] and os.listdir(root) == ["cases"]
    (folder,) = (root / "cases").iterdir()
    assert record.folder == f"cases/{folder.name}" and first_record(root, name) == record
    other = write_case(root, name, volume, [SourceFile("g", 1, 1, "bb")], "float32")
    assert [found.sources[0].path for found in read_cases(root, name)] == ["f", "g"]
    assert first_record(root, name) == record and other.folder.startswith("others/")


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    """On a disk that takes A for a, the second finds the first's folder, made here by a copy."""
    volume = Volume(np.zeros((1, 2, 2, 2), np.float32), None, np.eye(4), (2, 2, 2), np.eye(4))
    first = write_case(tmp_path, "A", volume, [SourceFile("A", 1, 1, "aa")], "float32")
    shutil.copytree(tmp_path / "cases/A", tmp_path / "cases/a")
    second = write_case(tmp_path, "a", volume, [SourceFile("a", 1, 1, "aa")], "float32")
    assert second.folder.startswith("others/a/")
    assert (first_record(tmp_path, "A"), first_record(tmp_path, "a")) == (first, second)


def test_a_complete_store_may_be_read_only(balls: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(balls, tmp_path)
    run(config)
    root = folder_of(config)
    before = {path: path.stat().st_mtime_ns for path in (root, root / "store.json")}
    assert run(config).prepared == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.fault("prepared-not-writable")
def test_a_store_that_cannot_be_made_is_refused_at_once(
    balls: Path, tmp_path: Path, tiny_config, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for key, config in (
        ("output", tiny_config(balls, tmp_path / "file")),
        ("data.prepared", tiny_config(balls, tmp_path / "out", data={"prepared": str(tmp_path / "file/store")})),
        ("data.prepared", tiny_config(balls, tmp_path / "out", data={"prepared": str(tmp_path / ("x" * 300))})),
    ):
        (tmp_path / "c.yaml").write_text(dump_config(config))
        status = cli.main(["prepare", "--config", str(tmp_path / "c.yaml")])
        said = capsys.readouterr()
        assert status == 2
        if key == "data.prepared":
            assert_seen("prepared-not-writable", Ended(status, said.out, said.err))
        assert said.err.startswith(f"error: {key}: {tmp_path}/") and "cannot be written: " in said.err
        assert said.err.count("\n") == 1 and "set aside" not in said.out
    assert sorted(os.listdir(tmp_path)) == ["c.yaml", "file"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.fault("disk-full-in-the-preparation")
def test_a_disk_that_fills_up_is_no_fault_of_the_cases(
    tmp_path: Path, make_dataset, tiny_config, small_disk: Callable[[str], Path], workers: int
) -> None:
    root = make_dataset(tmp_path / "d", cases=6)
    disk = small_disk("200k")
    config = tiny_config(root, tmp_path / "out", data={"prepared": str(disk / "store"), "workers": workers})
    with pytest.raises(WriteError, match=r"store: cannot be written: .* of 6 cases are prepared") as full:
        run(config)
    assert_seen("disk-full-in-the-preparation", str(full.value))
    left = [path.name for path in (disk / "store/cases").iterdir()]
    assert 0 < len(left) < 6 and not [name for name in left if name.startswith(".partial-")]


def test_the_home_folder_is_no_folder_called_tilde(
    balls: Path, tmp_path: Path, tiny_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(balls, tmp_path / "home/data")
    config = tiny_config(Path("~/data"), Path("~/runs"))
    assert config.output == "~/runs"  # as it was typed
    assert run(config).store.root.parent == tmp_path / "home/runs/prepared"
    assert RunFolder(run_folder_of(config)).path == tmp_path / "home/runs/tiny"
    given = tiny_config(balls, tmp_path, data={"prepared": "~/store"})
    assert run(given).store.root == tmp_path / "home/store"
    assert os.listdir(tmp_path) == ["home"]
    with pytest.raises(UserError, match=r"data.root=.*/~nobody-here/x: does not exist"):
        open_configured(tiny_config(Path("~nobody-here/x"), tmp_path).data)
