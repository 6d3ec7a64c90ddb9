"""Readers of a user's own: named by dotted path, chosen by suffix, checked at their first file."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import preparing
import pytest

import fusionseg
from fusionseg.cli import main
from fusionseg.config import RunConfig, validate
from fusionseg.config.data.parts import named_reader
from fusionseg.data.formats.case_reader import read_grid, read_image
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.inputs import find_inputs
from fusionseg.data.preprocessing.record import SourceFile
from fusionseg.data.preprocessing.store import settings_key
from fusionseg.utils.errors import UserError

READER = '''
import json
import numpy as np

class NumpyReader:
    """Reads x.arr, with its affine in x.json beside it."""

    suffixes = (".arr",)

    def __init__(self, scale=1.0):
        self.scale = scale

    def read(self, path):
        affine = json.loads(path.with_suffix(".json").read_text())
        return np.load(path) * self.scale, np.array(affine)

    def files(self, path):
        return [path, path.with_suffix(".json")]


def wrong(returned):
    class Wrong(NumpyReader):
        def read(self, path):
            return returned
    return Wrong

FourArrays = wrong((1, 2, 3, 4))
Text = wrong((np.array(["a"] * 8).reshape(2, 2, 2), np.eye(4)))
NoInverse = wrong((np.zeros((2, 2, 2)), np.zeros((4, 4))))
Metres = wrong((np.zeros((2, 2, 2)), np.diag([1e-9, 1, 1, 1])))
NoAffine = wrong((np.zeros((2, 2, 2)), np.eye(3)))

class NoSuffixes:
    def read(self, path):
        return None

class NoRead:
    suffixes = (".arr",)
'''


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's module, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reader", raising=False)  # of another test's folder
    (tmp_path / "my_reader.py").write_text(READER)


def to_numpy(nifti: Path) -> Path:
    """Replace a NIfTI file by a .arr file and the affine beside it."""
    volume = nibabel.load(nifti)
    path = nifti.with_name(nifti.name.replace(".nii.gz", ".arr"))
    with path.open("wb") as file:  # np.save would add its own suffix
        np.save(file, np.asarray(volume.dataobj))
    path.with_suffix(".json").write_text(json.dumps(volume.affine.tolist()))
    nifti.unlink()
    return path


@pytest.fixture
def numpy_data(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """A data set of arrays with NIfTI labels."""
    root: Path = make_dataset(tmp_path / "Task91_numpy", cases=5)
    for image in (root / "imagesTr").glob("*.nii.gz"):
        to_numpy(image)
    listing = (root / "dataset.json").read_text().replace("imagesTr/case_000.nii.gz", "imagesTr/case_000.arr")
    for number in range(5):
        listing = listing.replace(f"imagesTr/case_00{number}.nii.gz", f"imagesTr/case_00{number}.arr")
    (root / "dataset.json").write_text(listing)
    return root


def test_a_reader_of_ones_own_prepares_what_the_same_voxels_in_nifti_do(
    numpy_data: Path, make_dataset: Callable[..., Path], tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    plain = make_dataset(tmp_path / "plain", cases=5)
    expected = preparing.opened(prepared(tiny_config(plain, tmp_path / "a")))
    found = preparing.opened(
        prepared(tiny_config(numpy_data, tmp_path / "b", data={"reader": "my_reader:NumpyReader"}))
    )
    assert found.cases.keys() == expected.cases.keys() and len(found.cases) == 5
    for name in found.cases:
        np.testing.assert_array_equal(found.image(name), expected.image(name))
        np.testing.assert_array_equal(found.label(name), expected.label(name))
        assert found.cases[name].digest == expected.cases[name].digest


def prepared(config: RunConfig) -> RunConfig:
    assert preparing.run(config).failed == {}
    return config


def test_the_reader_and_its_arguments_belong_to_the_settings_of_the_store(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    keys = [
        settings_key(tiny_config(None, tmp_path, data={"reader": reader}).data)
        for reader in (None, "my_reader:NumpyReader", {"name": "my_reader:NumpyReader", "args": {"scale": 2.0}})
    ]
    (tmp_path / "my_reader.py").write_text(READER + "\n# another version\n")
    keys.append(settings_key(tiny_config(None, tmp_path, data={"reader": "my_reader:NumpyReader"}).data))
    assert len(set(keys)) == 4
    assert keys[0] == settings_key(tiny_config(None, tmp_path).data)


def test_a_change_of_a_file_that_only_the_own_reader_knows_is_noticed(numpy_data: Path) -> None:
    readers = Readers(named_reader("my_reader:NumpyReader", "data.reader"))
    path = numpy_data / "imagesTr/case_000.arr"
    source = SourceFile.read(path, readers)
    assert source.unchanged(path, readers)
    affine = path.with_suffix(".json")
    affine.write_text(affine.read_text().replace("1.0", "2.0"))
    assert not source.unchanged(path, readers)


def test_check_reads_with_the_named_reader(numpy_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(numpy_data), "--workers", "1"]) == 1
    assert "case_000.arr: no reader reads files of this name" not in capsys.readouterr().err
    assert main(["check", str(numpy_data), "--reader", "my_reader:NumpyReader", "--workers", "2"]) == 0
    assert "5 cases, 0 errors" in capsys.readouterr().out
    (numpy_data / "imagesTr/case_003.json").unlink()
    assert main(["check", str(numpy_data), "--reader", "my_reader:NumpyReader", "--workers", "2"]) == 1
    out = capsys.readouterr().out
    assert "case_003.arr" in out and "FileNotFoundError" in out and "my_reader.py, line" in out
    assert main(["check", str(numpy_data), "--reader", "my_reader:Nothing"]) == 2
    assert "--reader: module my_reader" in capsys.readouterr().err


def test_a_data_set_names_the_key_where_no_reader_fits(numpy_data: Path) -> None:
    with pytest.raises(UserError, match=r"case_000\.arr: no reader reads files of this name .*data\.reader"):
        open_dataset(numpy_data)
    found = open_dataset(numpy_data, readers=Readers(named_reader("my_reader:NumpyReader", "data.reader")))
    assert [case.name for case in found.training] == [f"case_00{number}" for number in range(5)]
    assert len(find_inputs(numpy_data / "imagesTr", ("image",), found.readers).cases) == 5
    assert fusionseg.open_dataset(numpy_data, reader="my_reader:NumpyReader") == found
    again = pickle.loads(pickle.dumps(found))
    assert again == found and again.readers.suffixes == found.readers.suffixes and ".arr" in found.readers.suffixes


def test_a_grid_comes_from_read_where_there_is_no_read_geometry(numpy_data: Path) -> None:
    readers = Readers(named_reader("my_reader:NumpyReader", "data.reader"))
    path = numpy_data / "imagesTr/case_001.arr"
    grid = read_grid([path], readers)
    image = read_image([path], 1, readers)
    assert grid.shape == image.values.shape[1:]
    np.testing.assert_array_equal(grid.affine, json.loads(path.with_suffix(".json").read_text()))
    np.testing.assert_array_equal(image.values[0], np.load(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FourArrays", r"expected \(voxels, affine\), got a tuple"),
        ("Text", "expected voxels of integers or floats"),
        ("NoInverse", "affine that has no inverse"),
        ("Metres", r"spacing is 1e-09x1x1 mm \(expected"),
        ("NoAffine", r"expected a 4x4 affine, got an array of float64 of shape \(3, 3\)"),
    ],
)
def test_wrong_results_of_a_reader_are_errors_of_the_file(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.arr").touch()
    with pytest.raises(CaseError, match=message):
        read_image([tmp_path / "a.arr"], 1, Readers(named_reader(f"my_reader:{name}", "data.reader")))


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ("my_reader:NoSuffixes", r"data\.reader: my_reader:NoSuffixes has no list of file-name suffixes"),
        ("my_reader:NoRead", r"data\.reader: my_reader:NoRead has no method read"),
        ({"name": "my_reader:NumpyReader", "args": {"scal": 1}}, r"data\.reader\.args\.scal: .*did you mean scale"),
        ("my_raeder:NumpyReader", r"data\.reader\.name: there is no module my_raeder"),
    ],
)
def test_a_wrong_reader_is_refused_before_any_file_is_read(
    reader: object, message: str, balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(UserError, match=message):
        preparing.run(tiny_config(balls, tmp_path, data={"reader": reader}))


def test_a_configuration_without_reader_is_dumped_as_before(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    plain = tiny_config(None, tmp_path).to_dict()
    assert not {"reader", "transforms"} & plain["data"].keys() and "also" not in plain["augment"]
    assert validate(plain).to_dict() == plain
