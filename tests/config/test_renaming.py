"""Keys of a section when only its name is changed, in a sweep or on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusionseg.config import dump_config, load_config
from fusionseg.config.loading import read_raw
from fusionseg.config.renaming import Dropped
from fusionseg.config.shipped.lookup import CONFIG
from fusionseg.utils.errors import UserError


def load(tmp_path: Path, text: str, *overrides: str) -> tuple[Any, list[str]]:
    """The configuration of a file with overrides, and what was dropped."""
    path = tmp_path / "run.yaml"
    path.write_text(text if "model:" in text else f"{text}\nmodel: {{name: unet}}")
    lost: list[Dropped] = []
    return load_config(path, overrides, lost), [str(entry) for entry in lost]


@pytest.mark.parametrize(
    ("text", "name", "kept", "dropped"),
    [
        (
            "model: {name: monai_unet, channels: [4, 8], num_res_units: 1, dropout: 0.1}",
            "model.name=unet",
            {"channels": (4, 8), "dropout": 0.1},
            "model.name monai_unet -> unet: dropped num_res_units=1",
        ),
        ("model: {name: unet, channels: [8, 16, 32], strides: [2, 1]}", "model.name=resunet", {"strides": (2, 1)}, ""),
        (
            "model: {name: unet, channels: [8, 16]}",
            "model.name=nnunet_plain",
            {"filters": (32, 64, 128, 256, 320, 320)},
            "model.name unet -> nnunet_plain: dropped channels=[8, 16]",
        ),
        (
            "model: {name: unet, channels: [8, 16], norm: group}",
            "model.name=monai_unet",
            {"channels": (8, 16), "norm": "instance"},
            "model.name unet -> monai_unet: dropped norm=group",
        ),
        (
            "model: {name: swin_fusion_od, feature_size: 24, window_size: 4, fusion: {kernel: 3}}",
            "model.name=swin_unetr",
            {"feature_size": 24, "window_size": 4, "fusion": None},
            'model.name swin_fusion_od -> swin_unetr: dropped fusion={"kernel": 3}',
        ),
        (
            "model: {name: segresnet, init_filters: 8, blocks_down: [1, 1, 1], blocks_up: [1, 1]}",
            "model.name=segresnet_ds",
            {"init_filters": 8, "blocks_down": (1, 1, 1)},
            "model.name segresnet -> segresnet_ds: dropped blocks_up=[1, 1]",
        ),
        ("optim: {lr: 0.1}", "optim.name=sgd", {"lr": 0.1}, ""),
        (
            "optim: {name: adamw, lr: 0.1, betas: [0.8, 0.9]}",
            "optim.name=sgd",
            {"lr": 0.1, "betas": None},
            "optim.name adamw -> sgd: dropped betas=[0.8, 0.9]",
        ),
        ("loss: {name: dice, squared: true}", "loss.name=dice_ce", {"squared": True}, ""),
        ("schedule: {name: cosine, warmup: 7}", "schedule.name=constant", {"warmup": 7}, ""),
        ("schedule: {warmup: 7}", "schedule.name=cosine", {"warmup": 7}, ""),
    ],
)
def test_what_holds_under_the_new_name_is_kept_and_the_rest_is_named(
    tmp_path: Path, text: str, name: str, kept: dict[str, Any], dropped: str
) -> None:
    config, lost = load(tmp_path, text, name, "data.patch=[64, 64, 64]")
    section = getattr(config, name.partition(".")[0])
    assert {key: getattr(section, key) for key in kept} == kept
    assert lost == ([dropped] if dropped else [])


def test_what_a_name_stands_for_is_not_carried_to_another(tmp_path: Path) -> None:
    """The configuration that a run has written says everything, and so the fusion of its own name."""
    first, _ = load(tmp_path, "model: {name: swin_fusion_od, feature_size: 24}")
    config, lost = load(tmp_path, dump_config(first), "model.name=swin_fusion_1_v1")
    fresh, _ = load(tmp_path, "model: {name: swin_fusion_1_v1, feature_size: 24}")
    assert config.model == fresh.model
    assert lost[0].startswith("model.name swin_fusion_od -> swin_fusion_1_v1: dropped fusion=")


def test_what_is_given_with_the_name_wins_and_is_not_dropped(tmp_path: Path) -> None:
    text = "model: {name: monai_unet, channels: [4, 8], num_res_units: 1}"
    config, lost = load(tmp_path, text, "model.channels=[8, 16, 32]", "model.name=unet", "model.norm=group")
    assert (config.model.channels, config.model.norm) == ((8, 16, 32), "group")
    assert lost == ["model.name monai_unet -> unet: dropped num_res_units=1"]


def test_a_whole_section_and_a_file_that_extends_begin_afresh_and_say_so(tmp_path: Path) -> None:
    base = "model: {name: monai_unet, channels: [4, 8]}"
    config, lost = load(tmp_path, base, "model={name: unet}")
    assert config.model.channels == (32, 64, 128, 256)
    assert lost == ["model.name monai_unet -> unet: dropped channels=[4, 8]"]
    _, lost = load(tmp_path, base, "optim={name: sgd}")  # of which nothing else was said
    assert lost == []
    (tmp_path / "base.yaml").write_text(base)
    config, lost = load(tmp_path, "extends: base.yaml\nmodel: {name: unet}")
    assert config.model.channels == (32, 64, 128, 256)
    assert lost == ["model.name monai_unet -> unet: dropped channels=[4, 8]"]


def test_what_a_shipped_file_replaces_is_not_named(tmp_path: Path) -> None:
    lost: list[Dropped] = []
    for name in CONFIG.names():
        read_raw(name, [], lost)
    assert lost == []
    (tmp_path / "mine.yaml").write_text("extends: hippocampus_resenc\nmodel: {name: unet}")
    read_raw(tmp_path / "mine.yaml", [], lost)
    assert [str(one) for one in lost] == [
        "model.name resenc_unet -> unet: dropped channels=[16, 32, 64, 128], blocks=[1, 1, 2, 2]"
    ]


def test_levels_are_not_dropped_for_a_default_that_does_not_suit_them(tmp_path: Path) -> None:
    """Deep supervision, the default of the residual-encoder U-Net, has no head in a network of three levels."""
    text = "model: {name: unet, channels: [4, 8, 8]}\ndata: {patch: [32, 32, 32]}"
    with pytest.raises(UserError, match=r"model\.deep_supervision .*: needs at least 4 levels .* \[4, 8, 8\]"):
        load(tmp_path, text, "model.name=resenc_unet")
    config, _ = load(tmp_path, text, "model.name=resenc_unet", "model.deep_supervision=false")
    assert config.model.channels == (4, 8, 8)
