"""Deterministic transforms of a user's choice: their position in the chain, their limits, and the store's key."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import preparing
import pytest
from monai.transforms import ScaleIntensityRange

from fusionseg.cli import main
from fusionseg.config import RunConfig, dump_config, load_config, validate
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.data.preprocessing.store import settings_key
from fusionseg.data.preprocessing.volume import load_volume
from fusionseg.utils.errors import UserError

THREE = LabelScheme.of_names("012")
RANGE = {"a_min": 50, "a_max": 450, "b_min": 0.0, "b_max": 1.0}
MONAI = {"name": "monai.transforms:ScaleIntensityRanged", "args": RANGE}

MINE = """
import numpy as np
import torch

class Power:
    def __init__(self, exponent=1.0):
        self.exponent = exponent

    def __call__(self, data):
        data["image"] = data["image"].clamp(min=0) ** self.exponent
        return data

def double(data, factor=2.0):
    return {**data, "image": data["image"] * factor}

def crop(data):
    return {**data, "image": data["image"][:, 1:]}

def fails(data):
    raise RuntimeError("no such thing")

def nothing(data):
    return None

def masked(data):
    return {**data, "image": data["image"] * (data["label"] > 0)}

def looks_at_label(data):
    return {**data, "image": data["image"] + ("label" in data)}

def noise(data):
    return {**data, "image": data["image"] + torch.rand(1)}

def infinite(data):
    return {**data, "image": data["image"] / 0}

def new_class(data):
    return {**data, "label": data["label"] + 7} if "label" in data else data

def one_class(data):
    return {**data, "label": (data["label"] > 0).float()} if "label" in data else data
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_transforms", raising=False)  # of another test's folder
    (tmp_path / "my_transforms.py").write_text(MINE)


def test_transforms_change_the_resampled_volume_before_the_normalisation(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    spacing = [1.5, 1.5, 1.5]
    raw = tiny_config(balls, tmp_path, data={"spacing": spacing, "intensity": {"mode": "none"}})
    transforms = [MONAI, "my_transforms:double", {"name": "my_transforms:Power", "args": {"exponent": 0.5}}]
    alone = tiny_config(balls, tmp_path, data={**raw.data.model_dump(mode="json"), "transforms": transforms})
    both = tiny_config(balls, tmp_path, data={"spacing": spacing, "transforms": transforms})
    case = open_configured(raw.data).training[1]
    volumes = [load_volume(case.images, case.label, config.data, THREE) for config in (raw, alone, both)]
    expected = (2 * np.asarray(ScaleIntensityRange(**RANGE)(volumes[0].image))).clip(min=0) ** 0.5
    np.testing.assert_allclose(volumes[1].image, expected, rtol=1e-5)
    np.testing.assert_allclose(volumes[2].image, (expected - expected.mean()) / expected.std(), rtol=1e-3, atol=1e-4)
    assert volumes[1].label is not None and volumes[0].label is not None
    np.testing.assert_array_equal(volumes[1].label, volumes[0].label)
    without_label = load_volume(case.images, None, alone.data, None)
    np.testing.assert_array_equal(without_label.image, volumes[1].image)


def test_a_transform_may_map_the_label(balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(balls, tmp_path, data={"transforms": ["my_transforms:one_class"]})
    case = open_configured(config.data).training[0]
    label = load_volume(case.images, case.label, config.data, THREE).label
    assert label is not None and label.dtype == np.uint8 and set(np.unique(label)) == {0, 1}


def test_the_store_has_a_key_for_each_name_argument_and_version(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    def key(*transforms: object) -> str:
        return settings_key(tiny_config(None, tmp_path, data={"transforms": list(transforms)}).data)

    keys = [key(), key(MONAI), key({**MONAI, "args": {**RANGE, "b_max": 2.0}}), key("my_transforms:double")]
    (tmp_path / "my_transforms.py").write_text(MINE + "\n# another version\n")
    keys.append(key("my_transforms:double"))
    assert len(set(keys)) == len(keys)
    assert key() == settings_key(tiny_config(None, tmp_path).data)
    assert key() == "0367ba71c8"  # as before there were transforms: old stores stay valid


def test_a_change_of_the_code_prepares_anew(balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    def prepare() -> tuple[int, int]:
        report = preparing.run(tiny_config(balls, tmp_path, data={"transforms": ["my_transforms:double"]}))
        return len(report.prepared), len(report.reused)

    assert [prepare(), prepare()] == [(5, 0), (0, 5)]
    (tmp_path / "my_transforms.py").write_text(MINE + "\n# another version\n")
    assert prepare() == (5, 0)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("my_transforms:crop", r"data\.transforms\.0 \(my_transforms:crop\): changes the shape of the image"),
        ("my_transforms:fails", r"fails: .*my_transforms.py, line \d+: RuntimeError: no such thing"),
        ("my_transforms:nothing", "expected a dictionary with image, label, got a NoneType"),
        ("my_transforms:masked", "needs the label, and a prediction has none"),
        ("my_transforms:looks_at_label", "depends on the label or on chance"),
        ("my_transforms:noise", "depends on the label or on chance"),
        ("my_transforms:infinite", "NaN or infinite voxels"),
        ("my_transforms:new_class", "other values than 0 to 2"),
        ({"name": "monai.transforms:Spacingd", "args": {"pixdim": [3, 3, 3]}}, "changes the shape of the image"),
        ({"name": "monai.transforms:Flipd", "args": {"spatial_axis": 0}}, "changes the affine of the image"),
        ("monai.transforms:RandGaussianNoised", r"data\.transforms\.0: .* is random.*augment\.also"),
        ("monai.transforms:ScaleIntensity", "works on arrays"),
        ({"name": "my_transforms:double", "args": {"fctor": 3}}, r"transforms\.0\.args\.fctor: .*did you mean factor"),
    ],
)  # fmt: skip
def test_a_wrong_transform_is_one_message_before_the_cases_are_prepared(
    transform: object, message: str, balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    def run() -> RunConfig:
        config = tiny_config(balls, tmp_path / "out", data={"transforms": [transform]})
        preparing.run(config)
        return config

    with pytest.raises(UserError, match=message) as caught:
        run()
    assert len(caught.value.problems) == 1
    assert not list((tmp_path / "out").rglob("image.npy"))


def test_further_data_sets_have_the_transforms_of_data_or_their_own(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    first, same, other, none = (make_dataset(tmp_path / name, cases=2, shape=(8, 8, 8)) for name in "abcd")
    config = validate(
        {
            "output": str(tmp_path / "runs"),
            "model": {"name": "swin_unetr", "feature_size": 12},
            "pretrain": {},
            "data": {
                "root": str(first),
                "workers": 1,
                "patch": [64, 64, 64],
                "transforms": ["my_transforms:double"],
                "also": [
                    {"root": str(same)},
                    {"root": str(other), "transforms": [MONAI]},
                    {"root": str(none), "transforms": []},
                ],
            },
        }
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert main(["prepare", "--config", str(file)]) == 0
    settings = {
        header["name"] + folder.parent.name[0]: [part["name"] for part in header["settings"].get("transforms", [])]
        for folder in (tmp_path / "runs/prepared").glob("*/store.json")
        for header in [json.loads(folder.read_text())]
    }
    assert settings == {
        "ballsa": ["my_transforms:double"],
        "ballsb": ["my_transforms:double"],
        "ballsc": ["monai.transforms:ScaleIntensityRanged"],
        "ballsd": [],
    }


@pytest.mark.parametrize("setting", [{"clip": [0, 1]}, {"percentiles": [1, 99]}, {"nonzero": True}])
def test_without_normalisation_its_settings_are_refused(
    setting: dict[str, object], tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(UserError, match=rf"data\.intensity\.{next(iter(setting))}: .*mode: none"):
        tiny_config(None, tmp_path, data={"intensity": {"mode": "none", **setting}})
