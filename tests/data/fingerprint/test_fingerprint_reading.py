"""The fingerprint of a data set on disk: damaged cases listed, the same from JSON."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusionseg.config.data.labels import LabelSettings
from fusionseg.data.checks.dataset_check import check_dataset
from fusionseg.data.fingerprint.fingerprint import Fingerprint, read_json_fingerprint
from fusionseg.data.fingerprint.kept import kept_fingerprint
from fusionseg.data.fingerprint.reading import read_fingerprint
from fusionseg.data.formats.dataset import Dataset, open_dataset
from fusionseg.utils.errors import UserError

MakeDataset = Callable[..., Path]


@pytest.fixture
def dataset(make_dataset: MakeDataset, tmp_path: Path) -> Dataset:
    return open_dataset(make_dataset(tmp_path / "set", cases=5, classes=3, channels=2), require_files=False)


def test_all_training_cases_are_measured(dataset: Dataset) -> None:
    found = read_fingerprint(dataset, workers=1)
    assert [case.name for case in found.cases] == [case.name for case in dataset.training]
    assert found.outputs == dataset.class_names and found.channels == dataset.channels and found.damaged == ()
    assert found.shapes.shape == found.spacings_mm.shape == (5, 3)
    extent = (found.shapes * found.spacings_mm)[0]
    assert pickle.loads(pickle.dumps(found)) == found  # worker processes send it
    assert found.median_shape_at((1, 1, 1)) == tuple(
        np.median(np.rint(found.shapes * found.spacings_mm), axis=0).round().astype(int)
    )
    assert extent == pytest.approx(found.cases[0].size_mm)
    # The classes have the intensities 250 and 400 (tests/conftest.py), with a noise of 10.
    pooled = found.foreground_intensities(1)
    assert pooled is not None and 200 < pooled.percentile_00_5 < 260 and 390 < pooled.percentile_99_5 < 450


def test_a_damaged_case_is_listed_and_the_others_are_measured(dataset: Dataset) -> None:
    broken = dataset.training[2]
    broken.images[0].write_bytes(broken.images[0].read_bytes()[:200])
    found = read_fingerprint(dataset, workers=1)
    assert len(found.cases) == 4 and [case.name for case in found.damaged] == [broken.name]
    assert str(broken.images[0]) in found.damaged[0].reasons[0] and "; " in found.damaged[0].reasons[0]


def test_one_reading_gives_the_report_and_the_fingerprint(dataset: Dataset) -> None:
    report = check_dataset(dataset, workers=1, fingerprint=True)
    assert report.fingerprint == read_fingerprint(dataset, workers=1)
    plain = check_dataset(dataset, workers=1)
    assert plain.fingerprint is None and report.to_json() == plain.to_json()


def test_json_gives_the_same_fingerprint(dataset: Dataset, tmp_path: Path) -> None:
    found = read_fingerprint(dataset, workers=1)
    found.write(tmp_path / "one.json")
    again = read_json_fingerprint(tmp_path / "one.json")
    assert again == found and isinstance(again, Fingerprint)
    again.write(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "expected format 1, got list"),
        ('{"format": 2}', "expected format 1, got 2"),
        ('{"format": 1, "dataset": "x", "channels": [], "outputs": [], "is_regions": false}', "cases: "),
    ],
)
def test_a_file_that_is_no_fingerprint_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_json_fingerprint(path)
    assert words in str(error.value) and "fusionseg check" in str(error.value)


def test_pictures_are_kept_for_the_page_and_not_in_the_json(dataset: Dataset) -> None:
    found = read_fingerprint(dataset, workers=1)
    assert found.previews.keys() == {case.name for case in found.cases}
    one = found.previews["case_001"]  # 0.8 x 0.8 x 1.5 mm: z has the largest voxels
    assert one.plane == "axial" and one.image.shape == one.mask.shape and set(np.unique(one.mask)) <= {0, 1, 2}
    assert one.image[one.mask > 0].mean() > one.image[one.mask == 0].mean()
    assert "previews" not in json.dumps(found.to_json())


def test_a_kept_fingerprint_is_used_while_the_files_are_the_same(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "fingerprint.json"
    assert kept_fingerprint(path, dataset) is None
    found = read_fingerprint(dataset, workers=1)
    found.write(path)
    assert kept_fingerprint(path, dataset) == found
    other = open_dataset(dataset.root, labels=LabelSettings(classes={"one": ("ball1",)}), require_files=False)
    assert kept_fingerprint(path, other) is None  # other classes
    os.utime(dataset.training[1].images[0], ns=(0, 0))
    assert kept_fingerprint(path, dataset) is None
    dataset.training[1].images[0].unlink()
    read_fingerprint(dataset, workers=1).write(path)
    kept = kept_fingerprint(path, dataset)
    assert kept is not None and [case.name for case in kept.damaged] == [dataset.training[1].name]
    path.write_text("{")
    assert kept_fingerprint(path, dataset) is None
