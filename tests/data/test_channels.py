"""Several channels: settings of single ones, and cases that lack one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from preparing import opened, run

from fusionseg.cli import main
from fusionseg.config import DataConfig
from fusionseg.data.formats.case import ChannelFiles
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.inputs.found import InputOptions
from fusionseg.data.inputs.inputs import find_inputs
from fusionseg.data.preprocessing.case_digests import digests_of, recorded_digests
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.data.preprocessing.store import settings_of
from fusionseg.data.preprocessing.volume import load_volume
from fusionseg.utils.errors import UserError

OWN = {"MR0": {"clip": [0, 500]}, "MR1": {"mode": "zscore", "nonzero": True}}


@pytest.fixture
def pairs(tmp_path: Path, make_dataset) -> Path:
    """A data set of two cases with two channels, one file each."""
    root: Path = make_dataset(tmp_path / "Dataset096", cases=2, channels=2, layout="nnunet")
    return root


def test_each_channel_has_its_own_normalisation(pairs: Path, tmp_path: Path, tiny_config) -> None:
    path = pairs / "imagesTr/case_000_0001.nii.gz"
    image = nibabel.load(path)
    raw = np.asarray(image.dataobj).copy()
    raw[:4] = 0  # air
    nibabel.save(nibabel.Nifti1Image(raw, image.affine), path)
    config = tiny_config(pairs, tmp_path / "out", data={"intensity": OWN})
    assert run(config).failed == {}
    store = opened(config)
    record, (first, second) = store.cases["case_000"], store.image("case_000")
    stored = np.asarray(nibabel.load(pairs / "imagesTr/case_000_0000.nii.gz").dataobj)
    np.testing.assert_allclose(first, np.clip(stored, 0, 500) / 500, atol=1e-6)
    assert second[second != 0].mean() == pytest.approx(0, abs=1e-5)
    assert (second[:4] == 0).all()
    assert record.background == (float(first.min()), 0.0)
    # in another order of the files, as an evaluation may find them: each channel is known by its name
    case = open_configured(config.data).training[0]
    turned = load_volume(case.images[::-1], None, config.data, None, channel_names=["MR1", "mr0"])
    np.testing.assert_array_equal(turned.image[::-1], store.image("case_000"))
    assert turned.background == record.background[::-1]


def test_exchanged_names_of_channels_prepare_again(pairs: Path, tmp_path: Path, tiny_config) -> None:
    config = tiny_config(pairs, tmp_path / "out", data={"intensity": OWN, "prepared": str(tmp_path / "prepared")})
    run(config)
    before = opened(config).image("case_000").copy()
    assert run(config).prepared == []
    content = json.loads((pairs / "dataset.json").read_text())
    content["channel_names"] = {"0": "MR1", "1": "MR0"}
    (pairs / "dataset.json").write_text(json.dumps(content))
    assert run(config).prepared == ["case_000", "case_001"]
    assert not np.allclose(opened(config).image("case_000"), before)


def test_one_setting_with_an_exception(pairs: Path) -> None:
    config = DataConfig.model_validate({"intensity": {"mode": "rescale", "channels": {"MR1": {"clip": [0, 10]}}}})
    assert [setting.mode for setting in config.intensity.of_channels(["MR0", "MR1"])] == ["rescale", "window"]
    case = open_dataset(pairs).training[0]
    image = load_volume(case.images, None, config, None, channel_names=["MR0", "MR1"]).image
    assert (image[0].min(), image[0].max()) == (0, 1)
    assert (image[1] == 1).all()  # all values are above the window


def test_the_crop_follows_the_named_channel(pairs: Path) -> None:
    crop = {"threshold": 200.0, "margin": 0, "channel": "MR0"}
    path = pairs / "imagesTr/case_000_0001.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + 1000, image.affine), path)
    case, names = open_dataset(pairs).training[0], ["MR0", "MR1"]
    both = DataConfig.model_validate({"crop_foreground": {**crop, "channel": None}})
    whole = load_volume(case.images, None, both, None, channel_names=names)
    cropped = load_volume(
        case.images, None, DataConfig.model_validate({"crop_foreground": crop}), None, channel_names=names
    )
    assert whole.image.shape[1:] == image.shape
    assert cropped.image[0].size < whole.image[0].size


def test_wrong_names_are_refused_all_at_once(pairs: Path, tmp_path: Path, tiny_config) -> None:
    data = {
        "intensity": {"MR0": {"clip": [0, 500]}, "PET": {"mode": "zscore"}},
        "crop_foreground": {"threshold": 0, "channel": "CT"},
    }
    with pytest.raises(UserError) as caught:
        open_configured(tiny_config(pairs, tmp_path, data=data).data)
    text = str(caught.value)
    assert "data.intensity.channels.PET: the data set has no such channel (it has MR0, MR1)" in text
    assert "data.intensity: there is no setting for MR1" in text
    assert "data.crop_foreground.channel: the data set has no channel 'CT'" in text


def test_settings_without_channels_keep_their_store(balls: Path, tmp_path: Path, tiny_config) -> None:
    settings = settings_of(tiny_config(balls, tmp_path, data={"crop_foreground": {"threshold": 0}}).data)
    assert "channels" not in settings["intensity"] and "channel" not in settings["crop_foreground"]
    assert "missing_channels" not in settings


def test_a_missing_channel_is_zero_where_the_setting_allows_it(
    pairs: Path, tmp_path: Path, tiny_config, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = pairs / "imagesTr/case_001_0001.nii.gz"
    aside = tmp_path / gone.name
    shutil.move(gone, aside)
    with pytest.raises(UserError, match=f"{gone}: file missing"):
        open_dataset(pairs)
    data = {"missing_channels": "zero", "intensity": OWN, "crop_foreground": {"threshold": -1}}
    config = tiny_config(pairs, tmp_path / "out", data=data)
    assert run(config).failed == {}
    store = opened(config)
    record = store.cases["case_001"]
    assert record.missing_channels == (1,) and record.background[1] == 0 and record.channels == 2
    assert (store.image("case_001")[1] == 0).all() and store.image("case_001")[0].std() > 0
    assert store.cases["case_000"].missing_channels is None
    assert "missing_channels" not in json.loads((store.root / "cases/case_000/case.json").read_text())
    dataset = open_configured(config.data)
    (note,) = dataset.notes
    assert "1 case lacks the channel MR1 (case_001), which is 0 in every voxel" in note
    # without the record, the digests are found from the files, and are the same ones
    assert digests_of(dataset.training, dataset)["case_001"] == recorded_digests(record)
    assert main(["check", str(pairs), "data.missing_channels=zero"]) == 0
    assert "lacks the channel MR1 (case_001)" in capsys.readouterr().out
    shutil.move(aside, gone)
    assert run(config).prepared == ["case_001"]
    assert opened(config).cases["case_001"].missing_channels is None


def test_a_file_that_moves_to_another_channel_is_prepared_again(pairs: Path, tmp_path: Path, tiny_config) -> None:
    source = tmp_path / "list.json"
    config = tiny_config(source, tmp_path / "out", data={"missing_channels": "zero", "folds": 1})
    image, label = f"{pairs}/imagesTr/case_001_0000.nii.gz", f"{pairs}/labelsTr/case_001.nii.gz"
    for images, missing in (([image, None], (1,)), ([None, image], (0,))):
        entry = {"image": images, "label": label}
        labels = {"0": "background", "1": "liver", "2": "lesion"}
        source.write_text(json.dumps({"modality": {"0": "A", "1": "B"}, "labels": labels, "training": [entry]}))
        assert len(run(config).prepared) == 1
        (record,) = opened(config).cases.values()
        assert record.missing_channels == missing


def test_null_in_a_datalist_is_a_missing_channel(pairs: Path, tmp_path: Path) -> None:
    entries = [
        {"image": [f"{pairs}/imagesTr/case_00{number}_000{channel}.nii.gz" for channel in range(2)]}
        for number in range(2)
    ]
    entries[1]["image"][0] = None  # type: ignore[call-overload]
    source = tmp_path / "list.json"
    source.write_text(json.dumps({"training": entries, "modality": {"0": "CT", "1": "PET"}}))
    with pytest.raises(UserError, match=r"training\[1\]: an image is null.*data.missing_channels=zero"):
        open_dataset(source)
    dataset = open_dataset(source, missing_channels="zero")
    images = next(case.images for case in dataset.training if len(case.images) == 1)
    assert isinstance(images, ChannelFiles) and images.missing == (0,)
    volume = load_volume(images, None, DataConfig(), None, channels=2)
    assert (volume.image[0] == 0).all() and volume.missing == (0,) and volume.image[1].std() > 0


@pytest.mark.parametrize("layout", ["numbers", "names", "folders"])
def test_inputs_of_a_prediction_may_lack_a_channel(tmp_path: Path, layout: str) -> None:
    names = {"numbers": ("a_0000", "a_0001", "b_0001"), "names": ("a_CT", "a_PET", "b_PET"), "folders": ()}[layout]
    files = [tmp_path / f"{name}.nii.gz" for name in names]
    if layout == "folders":
        files = [tmp_path / name for name in ("a/CT.nii.gz", "a/PET.nii.gz", "b/PET.nii.gz")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), file)
    inputs = find_inputs(tmp_path, ["CT", "PET"], None, InputOptions(missing_channels="zero"))
    assert [case.name for case in inputs.cases] == ["a", "b"]
    first, second = (case.images for case in inputs.cases)
    assert first == tuple(files[:2]) and not isinstance(first, ChannelFiles)
    assert isinstance(second, ChannelFiles) and second == (files[2],) and second.missing == (0,)
    assert any("1 case lacks the channel CT (b)" in note for note in inputs.notes)
