"""Preparation: what lies on disk, what is done again and what not, what a kill or a broken file leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from preparing import first_record, opened, run, stored

from fusionseg.config import RunConfig, dump_config
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.prepare import open_configured, store_folder
from fusionseg.data.preprocessing.store import FOREGROUND_PER_CLASS, SourceFile, Store, write_case
from fusionseg.data.preprocessing.volume import Volume, load_volume
from fusionseg.utils.errors import UserError

NAMES = [f"case_{number:03d}" for number in range(5)]


def arrays(config: RunConfig) -> dict[str, bytes]:
    """Every array of the store by its place in it."""
    root = store_folder(config.data, config.output, open_configured(config.data))
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.npy"))}


def stamps(config: RunConfig) -> dict[str, tuple[int, int]]:
    root = store_folder(config.data, config.output, open_configured(config.data))
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(root.rglob("*.npy"))}


@pytest.fixture
def own(tmp_path, make_dataset):
    """A data set of this test alone."""
    return make_dataset(tmp_path / "Task91_own", cases=5, classes=3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_arrays_and_geometry_on_disk(balls: Path, tmp_path: Path, tiny_config, dtype: str) -> None:
    config = tiny_config(balls, tmp_path, data={"dtype": dtype, "spacing": [1.0, 1.0, 1.0]})
    report = run(config)
    assert (sorted(report.prepared), report.reused, report.failed) == (NAMES, [], {})
    assert "5 prepared, 0 already there, 0 set aside" in str(report)
    dataset, store = open_configured(config.data), opened(config)
    assert store.scheme.names == ("background", "ball1", "ball2") and store.channels == ("MR0",)
    for case in dataset.training:
        volume = load_volume(case.images, case.label, config.data, LabelScheme.of_names("012"))
        image, label, record = store.image(case.name), store.label(case.name), store.cases[case.name]
        assert isinstance(image, np.memmap) and isinstance(label, np.memmap)
        assert not image.flags.writeable
        assert image.dtype == dtype and label.dtype == np.uint8
        np.testing.assert_array_equal(image, volume.image.astype(dtype))
        np.testing.assert_array_equal(label, volume.label)
        assert record.shape == image.shape[1:] == label.shape and record.channels == 1
        np.testing.assert_allclose(record.affine, volume.affine)
        np.testing.assert_allclose(record.spacing, 1)
        source = nibabel.load(case.images[0])
        assert record.original_shape == source.shape
        np.testing.assert_allclose(record.original_affine, source.affine, atol=1e-5)
        assert record.background == (float(image.min()),)
        assert record.labelled
    for header in (store.root / "store.json", *store.root.glob("cases/*/case.json")):
        json.loads(header.read_text())


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_two_channels(tmp_path: Path, make_dataset, tiny_config, layout: str) -> None:
    root = make_dataset(tmp_path / "Task92", cases=2, channels=2, layout=layout)
    config = tiny_config(root, tmp_path / "out")
    assert run(config).failed == {}
    store = opened(config)
    assert store.channels == ("MR0", "MR1")
    for name, record in store.cases.items():
        image = store.image(name)
        assert image.shape[0] == record.channels == 2
        assert record.background == tuple(float(part.min()) for part in image)
        assert not np.array_equal(image[0], image[1])


def test_the_second_run_reuses_everything(balls: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(balls, tmp_path)
    run(config)
    before = stamps(config)
    assert len(before) == 15
    calls: list[tuple[int, int]] = []
    report = run(config, lambda done, total: calls.append((done, total)))
    assert (report.prepared, sorted(report.reused)) == ([], NAMES)
    assert stamps(config) == before
    assert calls == [(5, 5)]


def test_progress_counts_every_case(balls: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(balls, tmp_path)
    calls: list[tuple[int, int]] = []
    run(config, lambda done, total: calls.append((done, total)))
    assert calls == [(done, 5) for done in range(6)]


def test_a_touched_file_is_not_prepared_again_and_a_changed_one_is(own: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(own, tmp_path / "out")
    run(config)
    before, content = stamps(config), opened(config).cases["case_001"].content
    for path in own.rglob("*.nii.gz"):
        os.utime(path, ns=(1, 1))
    assert run(config).prepared == []
    assert stamps(config) == before
    # the new times are noted, so that the next start need not read the files again
    assert {source.mtime_ns for case in opened(config).cases.values() for source in case.sources} == {1}

    path = own / "labelsTr" / "case_001.nii.gz"
    image = nibabel.load(path)
    label = np.asarray(image.dataobj).copy()
    label[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(label, image.affine), path)
    _, missing = stored(config)
    assert missing == ["case_001"]
    report = run(config)
    assert report.prepared == ["case_001"] and len(report.reused) == 4
    store = opened(config)
    assert store.cases["case_001"].content != content
    assert store.label("case_001").sum() == label.sum()
    after = stamps(config)
    assert {path for path in before if after[path] != before[path]} == {p for p in before if "case_001" in p}


def test_source_file_notices_content_and_not_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    source = SourceFile.read(path)
    assert source.unchanged(path)
    os.utime(path, ns=(5, 5))
    assert source.unchanged(path)
    path.write_bytes(b"abd")  # of the same size
    assert not source.unchanged(path)
    path.write_bytes(b"abcd")
    assert not source.unchanged(path)
    path.unlink()
    assert not source.unchanged(path)


def test_a_case_that_gains_a_file_is_prepared_again(tmp_path: Path, make_dataset, tiny_config) -> None:
    root = make_dataset(tmp_path / "Task93", cases=2)
    description = json.loads((root / "dataset.json").read_text())
    del description["training"][0]["label"]
    bare = root / "bare.json"
    bare.write_text(json.dumps(description))
    config = tiny_config(bare, tmp_path / "out", data={"prepared": str(tmp_path / "store")})
    run(config)
    assert not opened(config).cases["case_000"].labelled
    assert opened(config).cases["case_000"].classes == ()
    config = tiny_config(root, tmp_path / "out", data={"prepared": str(tmp_path / "store")})
    assert run(config).prepared == ["case_000"]
    assert opened(config).cases["case_000"].labelled


def test_other_settings_get_another_folder(balls: Path, tmp_path: Path, tiny_config) -> None:
    changes = [
        {},
        {"spacing": [2.0, 2.0, 2.0]},
        {"orientation": "LPS"},
        {"dtype": "float16"},
        {"intensity": {"clip": [0, 500]}},
        {"crop_foreground": {"threshold": 200}},
    ]
    dataset = open_configured(tiny_config(balls, tmp_path).data)
    settings = [tiny_config(balls, tmp_path, data=change).data for change in changes]
    folders = [store_folder(data, str(tmp_path), dataset) for data in settings]
    assert len(set(folders)) == len(changes)
    # what the prepared arrays do not depend on shares them
    same = tiny_config(balls, tmp_path, seed=3, data={"patch": [8, 8, 8], "fold": 1, "foreground": 0.1})
    assert store_folder(same.data, same.output, dataset) == folders[0]


def test_other_settings_in_a_given_folder_are_refused(balls: Path, tmp_path: Path, tiny_config) -> None:
    given = {"prepared": str(tmp_path / "store")}
    config = tiny_config(balls, tmp_path, data=given)
    run(config)
    before = stamps(config)
    other = tiny_config(balls, tmp_path, data={**given, "spacing": [2.0, 2.0, 2.0]})
    for call in (lambda: run(other), lambda: stored(other)):
        with pytest.raises(UserError, match="prepared with other settings") as caught:
            call()
        assert str(tmp_path / "store") in str(caught.value) and "data.prepared" in str(caught.value)
    assert stamps(config) == before


def test_a_folder_of_other_things_is_refused(balls: Path, tmp_path: Path, tiny_config) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    config = tiny_config(balls, tmp_path, data={"prepared": str(tmp_path / "thesis")})
    with pytest.raises(UserError, match="not empty and holds no prepared cases"):
        run(config)
    assert os.listdir(tmp_path / "thesis") == ["chapter1.tex"]


def test_a_preparation_killed_at_its_first_file_can_start_again(balls: Path, tmp_path: Path, tiny_config) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / ".partial-123-store.json").write_text('{"sett')
    config = tiny_config(balls, tmp_path, data={"prepared": str(folder)})
    assert sorted(run(config).prepared) == NAMES


def test_a_broken_case_is_set_aside(own: Path, tmp_path: Path, tiny_config) -> None:
    broken = own / "imagesTr" / "case_002.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    config = tiny_config(own, tmp_path / "out")
    report = run(config)
    assert sorted(report.prepared) == [name for name in NAMES if name != "case_002"]
    assert list(report.failed) == ["case_002"]
    assert str(broken) in report.failed["case_002"] and "cannot be read" in report.failed["case_002"]
    assert "case_002" in str(report) and "1 set aside" in str(report)
    store, missing = stored(config)
    assert missing == ["case_002"] and "case_002" not in store.cases
    broken.write_bytes(whole)
    report = run(config)
    assert report.prepared == ["case_002"] and report.failed == {}


def test_a_case_with_other_channels_or_labels_is_set_aside(own: Path, tmp_path: Path, tiny_config) -> None:
    image = nibabel.load(own / "imagesTr" / "case_000.nii.gz")
    twice = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(twice, image.affine), own / "imagesTr" / "case_000.nii.gz")
    label = nibabel.load(own / "labelsTr" / "case_001.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj) + 5, label.affine), own / "labelsTr" / "case_001.nii.gz")
    report = run(tiny_config(own, tmp_path / "out"))
    assert set(report.failed) == {"case_000", "case_001"}
    assert "has 2 channels (expected 1" in report.failed["case_000"]
    assert "labels are 0 to 2" in report.failed["case_001"]


KILLED = """
import os, signal, sys
from fusionseg.config import load_config
from preparing import first_record, run

def hook(event, arguments):  # dies in the middle of the third case: its image is written, its label is not
    if event == "open" and str(arguments[0]).endswith("case_002/label.npy"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
config = load_config(sys.argv[1])
run(config)
"""


def test_a_killed_preparation_leaves_no_half_case(balls: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(balls, tmp_path / "out")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    dataset = open_configured(config.data)
    cases = store_folder(config.data, config.output, dataset) / "cases"
    assert sorted(path.name for path in cases.iterdir() if not path.name.startswith(".")) == NAMES[:2]
    assert list(cases.glob(".partial-*/image.npy")), "it died before it was in the middle"
    store, missing = stored(config)
    assert sorted(store.cases) == NAMES[:2] and missing == NAMES[2:]
    before = stamps(config)
    report = run(config)
    assert sorted(report.reused) == NAMES[:2] and sorted(report.prepared) == NAMES[2:]
    assert before.items() >= {path: stamp for path, stamp in stamps(config).items() if path in before}.items()
    fresh = tiny_config(balls, tmp_path / "fresh")
    run(fresh)
    whole = {name: content for name, content in arrays(config).items() if ".partial-" not in name}
    assert whole == arrays(fresh)


def test_in_parallel_and_one_after_the_other_give_the_same_bytes(balls: Path, tmp_path: Path, tiny_config) -> None:
    serial = tiny_config(balls, tmp_path / "one", data={"workers": 1})
    parallel = tiny_config(balls, tmp_path / "two", data={"workers": 2})
    run(serial)
    assert sorted(run(parallel).prepared) == NAMES
    assert arrays(parallel) == arrays(serial)
    assert opened(parallel).cases == opened(serial).cases


def test_a_whole_case_is_never_taken_away(tmp_path: Path) -> None:
    """Runs that start together prepare the same data, and one may read what another is about to write once more."""
    first, second = (SourceFile("image.nii.gz", 1, 1, sha256) for sha256 in ("aa", "bb"))
    volume = Volume(np.zeros((1, 4, 4, 4), np.float32), None, np.eye(4), (4, 4, 4), np.eye(4))
    written = threading.Event()

    def write() -> None:
        for _ in range(50):
            write_case(tmp_path, "a", volume, [first], "float32")
            written.set()

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        assert written.wait(60)
        found = (tmp_path / "cases/a").stat().st_ino
        looks = 0
        while not all(writer.done() for writer in writers) or not looks:
            assert first_record(tmp_path, "a") is not None and (tmp_path / "cases/a/image.npy").exists()
            looks += 1
        for writer in writers:
            writer.result()
    assert (tmp_path / "cases/a").stat().st_ino == found
    write_case(tmp_path, "a", volume, [second], "float32")
    record = first_record(tmp_path, "a")
    assert record is not None and record.sources == (second,)
    assert os.listdir(tmp_path / "cases") == ["a"]


def test_a_failing_write_leaves_the_old_case(tmp_path: Path) -> None:
    good = Volume(np.zeros((1, 4, 4, 4), np.float32), None, np.eye(4), (4, 4, 4), np.eye(4))
    write_case(tmp_path, "a", good, [], "float32")
    wrong = Volume(np.ones((1, 4, 4, 4), np.float32), None, np.eye(4), (4, 4, 4), np.array([["x"]]))
    with pytest.raises(ValueError):
        write_case(tmp_path, "a", wrong, [], "float32")
    assert (np.load(tmp_path / "cases/a/image.npy") == 0).all()
    assert os.listdir(tmp_path / "cases") == ["a"]


def test_foreground_indices_are_the_voxels_of_their_class(balls: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(balls, tmp_path)
    run(config)
    store = opened(config)
    for name, record in store.cases.items():
        label, indices = store.label(name).ravel(), store.foreground(name)
        assert record.classes == (1, 2)
        assert record.class_offsets[0] == 0 and record.class_offsets[-1] == len(indices)
        for value, first, last in zip(record.classes, record.class_offsets, record.class_offsets[1:], strict=False):
            np.testing.assert_array_equal(indices[first:last], np.flatnonzero(label == value))


def test_foreground_indices_are_bounded_per_class(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[:20], label[30:, 0, :5] = 2, 5
    volume = Volume(np.zeros((1, 40, 40, 40), np.float32), label, np.eye(4), (40, 40, 40), np.eye(4))
    record = write_case(tmp_path, "a", volume, [], "float16")
    assert record.classes == (2, 5)
    assert record.class_offsets == (0, FOREGROUND_PER_CLASS, FOREGROUND_PER_CLASS + 50)
    indices = np.load(tmp_path / "cases/a/foreground.npy")
    many = indices[:FOREGROUND_PER_CLASS]
    assert (label.ravel()[many] == 2).all() and len(np.unique(many)) == FOREGROUND_PER_CLASS
    assert abs(many.mean() - 16000) < 200  # of the whole class, not its first voxels
    write_case(tmp_path / "again", "a", volume, [], "float16")
    np.testing.assert_array_equal(np.load(tmp_path / "again/cases/a/foreground.npy"), indices)
    write_case(tmp_path, "b", volume, [], "float16")
    assert not np.array_equal(np.load(tmp_path / "cases/b/foreground.npy"), indices)


def test_a_label_that_is_not_c_contiguous_is_stored_as_it_is(tmp_path: Path) -> None:
    """Reorienting swaps axes by strides: the flat indices must be those of the array as read back."""
    label = np.zeros((5, 6, 7), np.uint8)
    label[4, 5, 1] = 1
    swapped = label.transpose(2, 0, 1)
    volume = Volume(np.zeros((1, 7, 5, 6), np.float32), swapped, np.eye(4), (5, 6, 7), np.eye(4))
    record = write_case(tmp_path, "a", volume, [], "float32")
    store = Store(tmp_path, "t", ("CT",), LabelScheme.of_names("bf"), {"a": record})
    np.testing.assert_array_equal(store.label("a"), swapped)
    assert store.label("a").reshape(-1)[store.foreground("a")].tolist() == [1]


def test_float16_stays_finite(tmp_path: Path) -> None:
    image = np.full((1, 2, 2, 2), 1e6, np.float32)
    write_case(tmp_path, "a", Volume(image, None, np.eye(4), (2, 2, 2), np.eye(4)), [], "float16")
    assert np.isfinite(np.load(tmp_path / "cases/a/image.npy")).all()


def test_a_record_of_another_kind_is_no_record(tmp_path: Path) -> None:
    folder = tmp_path / "cases" / "a"
    folder.mkdir(parents=True)
    for text in ("", "{", '{"name": "a"}'):
        (folder / "case.json").write_text(text)
        assert first_record(tmp_path, "a") is None
    assert first_record(tmp_path, "b") is None


def test_a_lost_array_says_what_to_do(balls: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(balls, tmp_path)
    run(config)
    store = opened(config)
    (store.root / "cases/case_000/image.npy").unlink()
    with pytest.raises(UserError, match=r"delete .*case_000 and prepare again"):
        store.image("case_000")
