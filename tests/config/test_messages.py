"""What a wrong configuration is told: the key, the file and line, the nearest valid name, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusionseg.config import load_config, validate
from fusionseg.utils.errors import UserError, suggest

UNET = {"name": "unet"}
FUSION = {"name": "swin_fusion_od"}


def refusal(**raw: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        validate({"model": UNET, **raw})
    return caught.value.problems


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"sed": 1}, "sed: unknown key; did you mean seed? Valid: name, output, seed, "),
        ({"validation": {}}, "validation: unknown key; did you mean validate? "),
        ({"data": {"spacin": 1}}, "data.spacin: unknown key; did you mean spacing? Valid: root, "),
        (
            {"data": {"intensity": {"clp": 1}}},
            "data.intensity.clp: unknown key; did you mean clip? Valid: mode",
        ),
        (
            {"augment": {"rotate": {"degree": 1}}},
            "augment.rotate.degree: unknown key; did you mean degrees? Valid: prob, degrees",
        ),
        ({"stop": {"plateau": {"windw": 1}}}, "stop.plateau.windw: unknown key; did you mean window? "),
        ({"validate": {"evry": 1}}, "validate.evry: unknown key; did you mean every? Valid: every, overlap"),
        (
            {"model": {**UNET, "chanels": []}},
            "model.chanels: unknown key; did you mean channels? Valid: name, ",
        ),
        ({"model": {**UNET, "fusion": {}}}, "model.fusion: unknown key; valid: name, implementation, channels, "),
        (
            {"model": {**FUSION, "fusion": {"abov": 1}}},
            "model.fusion.abov: unknown key; did you mean above? ",
        ),
        ({"model": {**FUSION, "feature": 1}}, "model.feature: unknown key; did you mean feature_size? "),
        ({"model": {**UNET, "int": 1}}, "model.int: unknown key; valid: name, "),
        ({"zzz": 1}, "zzz: unknown key; valid: name, "),
    ],
)
def test_an_unknown_key_gets_the_nearest_valid_one(raw: dict[str, Any], expected: str) -> None:
    (problem,) = refusal(**raw)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"train": {"steps": "many"}}, "train.steps: expected an integer, got 'many'"),
        ({"train": {"steps": 1.5}}, "train.steps: expected an integer, got 1.5"),
        ({"train": {"steps": True}}, "train.steps: expected an integer, got True"),
        ({"optim": {"lr": "fast"}}, "optim.lr: expected a number, got 'fast'"),
        ({"train": {"compile": "on"}}, "train.compile: expected true or false or default or "),
        ({"output": 3}, "output: expected a string, got 3; put it in quotes"),
        ({"data": {"root": [1]}}, "data.root: expected a string, got [1]"),
        ({"data": {"labels": ["a", 1]}}, "data.labels.1: expected a string, got 1; put it in quotes"),
        ({"data": {"labels": "a"}}, "data.labels: expected a list such as [background, tumour], or names"),
        ({"data": {"patch": [32, 32, 1.5]}}, "data.patch.2: expected an integer, got 1.5"),
        ({"data": {"patch": [32, 32]}}, "data.patch.2: is missing; add it"),
        ({"data": {"crop_foreground": {}}}, "data.crop_foreground.threshold: is missing; add it"),
        ({"train": 3}, "train: expected a section (`key: value` lines under it), got 3"),
        (
            {"model": "unet"},
            "model: expected a section (`key: value` lines under it), got 'unet'",
        ),
        ({"train": {"steps": 0}}, "train.steps: expected a value of at least 1, got 0"),
        ({"augment": {"flip": 2}}, "augment.flip: expected a value of at most 1, got 2"),
        ({"optim": {"lr": float("nan")}}, "optim.lr: expected a finite number, got nan"),
        ({"name": "a b"}, "name: expected a string that matches ^[A-Za-z0-9]"),
    ],
)
def test_a_wrong_value_is_told_what_is_needed(raw: dict[str, Any], expected: str) -> None:
    (problem,) = refusal(**raw)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {"optim": {"name": "adamx"}},
            "optim.name: there is no optimizer 'adamx'; did you mean adam? Valid: adamw, adam, sgd",
        ),
        ({"data": {"layout": "msdd"}}, "data.layout: unknown value 'msdd'; did you mean msd? Valid: auto, msd, "),
        ({"model": {**FUSION, "fusion": {"kernel": 2}}}, "model.fusion.kernel: unknown value 2; valid: 1, 3"),
        ({"train": {"precision": 16}}, "train.precision: unknown value 16; "),
        (
            {"model": {"name": "swin_uneter"}},
            "model.name: there is no network 'swin_uneter'; did you mean swin_unetr? Valid: ",
        ),
        ({"model": {}}, "model.name: is missing; add one, such as name: swin_fusion_od; valid: mednext, "),
    ],
)
def test_a_wrong_choice_gets_the_nearest_and_all(raw: dict[str, Any], expected: str) -> None:
    (problem,) = refusal(**raw)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ("many", "expected an integer or all, got 'many'"),
        (1.5, "expected an integer or all, got 1.5"),
        (9, "expected a value of at most 5 or all, got 9"),
        (None, "expected an integer or all, got None"),
    ],
)
def test_a_value_of_two_types_gets_one_message(above: object, expected: str) -> None:
    assert refusal(model={**FUSION, "fusion": {"above": above}}) == [f"model.fusion.above: {expected}"]


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ({"flip": "often"}, "augment.flip: expected a number or a section (`key: value` lines under it), got 'often'"),
        ({"flip": 2}, "augment.flip: expected a value of at most 1, got 2"),
        ({"flip": {"prob": 3}}, "augment.flip.prob: expected a value of at most 1, got 3"),
        ({"flip": {"prb": 1}}, "augment.flip.prb: unknown key; did you mean prob? Valid: prob, axes"),
        ({"axes": ["x", "w"]}, "augment.axes.1: unknown value 'w'; valid: x, y, z"),
        ({"axes": "plane"}, "augment.axes: expected a list such as [..., ...] or all or auto or in_plane, got 'plane'"),
        ({"rotate": {"degrees": [1, 2, 300]}}, "augment.rotate.degrees: expected three limits from 0 to 180, got ["),
        ({"scale": {"factor": 2}}, "augment.scale.factor: expected a value below 0.9, got 2"),
        ({"scale": {"factor": [2, 1]}}, "augment.scale.factor: expected [lowest, highest] with a lowest zoom above"),
    ],
)
def test_a_key_of_several_forms_gets_the_message_of_the_form_that_was_meant(augment: Any, expected: str) -> None:
    (problem,) = refusal(augment=augment)
    assert problem.startswith(expected)


def test_a_run_without_a_model_is_told_how_to_choose_one() -> None:
    with pytest.raises(UserError) as caught:
        validate({})
    assert caught.value.problems == [
        "model: is missing; add model: {name: swin_fusion_od}, or extends: base.yaml and a name"
    ]


def test_every_problem_is_listed_with_its_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: -1\ntrain:\n  stepz: 5\n")
    path = tmp_path / "run.yaml"
    path.write_text(
        "extends: base.yaml\n"
        "name: run\n"
        "model:\n"
        "  name: swin_fusion_od\n"
        "  fusion: {above: many, kernel: 2}\n"
        "data:\n"
        "  patch:\n"
        "    - 32\n"
        "    - 32\n"
        "    - x\n"
    )
    with pytest.raises(UserError) as caught:
        load_config(path, ["optim.name=adamx"])
    base = tmp_path / "base.yaml"
    starts = [
        f"seed ({base}, line 1): expected a value of at least 0, got -1",
        f"data.patch.2 ({path}, line 10): expected an integer, got 'x'",
        f"model.fusion.above ({path}, line 5): expected an integer or all, got 'many'",
        f"model.fusion.kernel ({path}, line 5): unknown value 2; valid: 1, 3",
        "optim.name (command line: optim.name=adamx): there is no optimizer 'adamx'; did you mean adam? ",
        f"train.stepz ({base}, line 3): unknown key; did you mean steps? ",
    ]
    problems = sorted(caught.value.problems)
    assert len(problems) == len(starts)
    for problem, start in zip(problems, sorted(starts), strict=True):
        assert problem.startswith(start)


def test_a_missing_key_is_placed_where_its_section_stands(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: unet}\ndata:\n  crop_foreground:\n    margin: 3\n")
    with pytest.raises(UserError, match=rf"data.crop_foreground.threshold \({path}, line 3\): is missing"):
        load_config(path)


def test_suggestions_only_where_something_is_near() -> None:
    assert suggest("stepz", ["steps", "seed"]) == "did you mean steps? Valid: steps, seed"
    assert suggest("qqq", ["steps", "seed"]) == "valid: steps, seed"
