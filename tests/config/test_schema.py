"""The schema of a run: combinations that cannot work are refused with a fix that does."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from fusionseg.config import json_schema, validate
from fusionseg.models.swin.fusion_config import FUSION_PRESETS
from fusionseg.utils.errors import UserError

UNET = {"name": "unet"}
FUSION = {"name": "swin_fusion_od"}


def refusal(**raw: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        validate({"model": UNET, **raw})
    return caught.value.problems


MODELS: list[dict[str, Any]] = [
    {"name": "unet"},
    {"name": "unet", "channels": [8, 16, 32], "strides": [1, 3]},
    {"name": "unet", "channels": [8, 16], "strides": [1]},
    {"name": "unet", "channels": [8, 16, 32], "strides": [[2, 2, 1], 2]},
    {"name": "unet", "dims": 2, "view": "coronal"},
    {"name": "monai_unet"},
    {"name": "segresnet"},
    {"name": "swin_unetr"},
    {"name": "swin_fusion_od"},
]
SIZES = (1, 15, 16, 31, 32, 48, 63, 64, 97)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(str(v) for v in model.values()))
def test_the_patch_that_a_refusal_suggests_is_accepted(model: dict[str, Any]) -> None:
    refused = 0
    for patch in itertools.combinations_with_replacement(SIZES, 3):
        for turned in (patch, patch[::-1]):
            try:
                validate({"model": model, "data": {"patch": list(turned)}})
            except UserError as error:
                refused += 1
                (problem,) = error.problems
                found = re.fullmatch(r"data\.patch: .* not (\[.*\]): try (\[.*\])", problem)
                assert found and json.loads(found[1]) == list(turned)
                suggested = json.loads(found[2])
                accepted = validate({"model": model, "data": {"patch": suggested}})
                assert list(accepted.data.patch) == suggested
    assert refused


def test_the_micro_batches_that_a_refusal_suggests_are_accepted() -> None:
    (problem,) = refusal(train={"global_batch": 12, "micro_batch": 5})
    expected = "train.global_batch: expected a multiple of train.micro_batch 5, got 12; choose micro_batch from "
    assert problem.startswith(expected)
    suggested = json.loads(problem.removeprefix(expected))
    assert suggested == [1, 2, 3, 4, 6, 12]
    for micro_batch in suggested:
        validate({"model": UNET, "train": {"global_batch": 12, "micro_batch": micro_batch}})


def test_checks_across_sections_are_listed_together() -> None:
    problems = refusal(
        data={"patch": [90, 90, 90]},
        train={"steps": 100, "global_batch": 3, "micro_batch": 2, "checkpoint_activations": True},
        schedule={"min_lr": 1.0},
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "data.patch",
        "train.global_batch",
        "schedule.min_lr",
        "train.checkpoint_activations",
    ]


def test_slices_need_an_orientation() -> None:
    model = {"name": "unet", "dims": 2, "view": "coronal"}
    validate({"model": model, "data": {"patch": [64, 1, 64]}})
    (problem,) = refusal(model=model, data={"patch": [64, 1, 64], "orientation": None})
    assert problem.startswith("model.view: coronal slices need a known orientation; set data.orientation")


def test_a_long_warm_up_stays_in_the_configuration() -> None:
    """It is cut where the rate is computed: the hash of the configuration does not depend on the rule."""
    config = validate({"model": UNET, "train": {"steps": 100}, "schedule": {"warmup": 500}})
    assert config.to_dict()["schedule"]["warmup"] == 500


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"data": {"folds": 0}}, "data.folds: expected a value of at least 1, got 0"),
        ({"data": {"patch": [0, 32, 32]}}, "data.patch: expected at least one voxel in each axis, got"),
        ({"data": {"spacing": [1, 0, 1]}}, "data.spacing: expected positive voxel sizes in mm, got [1.0, 0.0, 1.0]"),
        ({"data": {"intensity": {"clip": [600, -1000]}}}, "data.intensity.clip: expected [lowest, highest]"),
        ({"data": {"intensity": {"clip": [1, 1]}}}, "data.intensity.clip: expected [lowest, highest]"),
        ({"data": {"intensity": {"percentiles": [99, 1]}}}, "data.intensity.percentiles: expected [lowest, "),
        (
            {"data": {"intensity": {"percentiles": [0, 101]}}},
            "data.intensity.percentiles: expected values from 0 to 100",
        ),
        ({"data": {"intensity": {"mode": "window"}}}, "data.intensity.clip: is missing for mode: window; add"),
        ({"data": {"intensity": {"mean": 3.0}}}, "data.intensity.deviation: is missing; mean and deviation are given"),
        (
            {"data": {"intensity": {"mode": "rescale", "mean": 3.0, "deviation": 2.0}}},
            "data.intensity.mean: belongs to mode: zscore",
        ),
        (
            {"data": {"intensity": {"clip": [0, 1], "nonzero": True}}},
            "data.intensity.nonzero: belongs to mode: zscore",
        ),
        ({"optim": {"name": "sgd", "betas": [0.9, 0.99]}}, "optim.betas: does not belong to sgd"),
        ({"optim": {"momentum": 0.9}}, "optim.momentum: does not belong to adamw"),
        ({"model": {**UNET, "channels": [8]}}, "model.channels: expected at least two levels"),
        ({"model": {**UNET, "strides": [2]}}, "model.strides: expected 3 entries, one fewer than channels"),
        ({"model": {"name": "monai_unet", "strides": [2]}}, "model.strides: expected 4 integers from 1"),
        ({"model": {"name": "segresnet", "blocks_up": [1]}}, "model.blocks_up: expected one number fewer"),
        ({"model": {"name": "segresnet", "blocks_up": [], "blocks_down": []}}, "model.blocks_up: expected one"),
        (
            {"model": {**FUSION, "fusion": {"widths": [8, 8]}}},
            "model.fusion.widths: expected 5 positive integers",
        ),
        (
            {"model": {**FUSION, "fusion": {"widths": [8, 8, 8, 8, 0]}}},
            "model.fusion.widths: expected 5 positive",
        ),
        (
            {"model": {"name": "swin_fusion_1_v1", "fusion": {"widths": [8, 8, 8, 8]}}},
            "model.fusion.widths: only for source: encoder",
        ),
        ({"model": {"name": "swin_unetr", "fusion": {}}}, "model.fusion: swin_unetr has plain skips"),
        (
            {"model": {**FUSION, "num_heads": [3, 6, 12, 25]}},
            "model.num_heads: 25 does not divide the 384 channels",
        ),
        (
            {"model": {**FUSION, "feature_size": 40}},
            "model.feature_size: expected a multiple of 12, got 40",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(raw: dict[str, Any], expected: str) -> None:
    (problem,) = refusal(**raw)
    assert problem.startswith(expected)


def test_a_clip_without_a_mode_means_a_window() -> None:
    def intensity(**raw: Any) -> tuple[str, Any]:
        made = validate({"model": UNET, "data": {"intensity": raw}}).data.intensity
        return made.mode, made.clip

    assert intensity(clip=[-1000, 600]) == ("window", (-1000.0, 600.0))
    assert intensity(clip=[-1000, 600], mode="zscore") == ("zscore", (-1000.0, 600.0))
    assert intensity(clip=None) == ("zscore", None)
    assert intensity() == ("zscore", None)


@pytest.mark.parametrize("name", sorted(FUSION_PRESETS))
def test_a_variant_sets_its_fusion_and_keeps_what_is_given(name: str) -> None:
    preset = {key: value for key, value in FUSION_PRESETS[name].items() if key != "width_factors"}
    made = validate({"model": {"name": name}}).model.fusion  # type: ignore[union-attr]
    assert made is not None and {key: getattr(made, key) for key in preset} == preset
    other = validate({"model": {"name": name, "fusion": {"pooling": "avg"}}}).model.fusion  # type: ignore[union-attr]
    assert other == made.model_copy(update={"pooling": "avg"})


def test_the_large_variants_widths_follow_the_feature_size() -> None:
    made: Any = validate({"model": {"name": "swin_fusion_od_large", "feature_size": 24}}).model
    assert made.fusion.widths == (48, 48, 96, 96, 192)


def test_every_field_is_documented_in_the_json_schema() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    sections = {"RunConfig": schema, **schema["$defs"]}
    assert {"DataConfig", "SwinConfig", "UNetConfig", "SegResNetConfig", "ElasticConfig", "OutsideNetwork"} < set(
        sections
    )
    undocumented = []
    for name, section in sections.items():
        if not section.get("description"):
            undocumented.append(name)
        for key, field in section["properties"].items():
            target = sections[field["$ref"].split("/")[-1]] if "$ref" in field else {}
            if not (field.get("description") or target.get("description")):
                undocumented.append(f"{name}.{key}")
    assert undocumented == []


def test_a_configuration_does_not_change() -> None:
    config = validate({"model": UNET})
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]
