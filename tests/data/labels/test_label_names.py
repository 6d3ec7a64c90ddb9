"""The names of label values in every form, the keys that choose among them, and every refusal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusionseg.config import DataConfig
from fusionseg.config.loading import validate_section
from fusionseg.data.formats.case import Case
from fusionseg.data.labels.annotation import by_pattern, outputs_of_cases
from fusionseg.data.labels.reading import ReadLabels, read_labels
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.utils.errors import UserError

BRATS = {"background": 0, "whole": [1, 2, 3, 4], "core": [1, 3, 4], "enhancing": 4}
MANY = {"background": 0, "spleen": 1, "kidney_right": 2, "kidney_left": 3, "liver": 5, "rib": 117}


def read(stated: Any, order: Any = None, *, problems: list[str] | None = None, **keys: Any) -> ReadLabels:
    found: list[str] = []
    content = {"labels": stated} | ({} if order is None else {"regions_class_order": order})
    settings = validate_section(DataConfig, keys).label_settings
    result = read_labels(content, settings, Path("d.json"), found, labelled=True, found_values=lambda: "x holds 0, 5")
    if problems is None:
        assert found == []
    else:
        problems += found
    return result


def scheme(stated: Any, order: Any = None, **keys: Any) -> LabelScheme:
    return read(stated, order, **keys).scheme


def classes(found: LabelScheme) -> dict[str, tuple[int, ...]]:
    return {label.name: label.values for label in found.classes}


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        ({"0": "air", "1": "x"}, {}),
        ({"x": 1, "air": 0}, {}),
        ({"air": "0", "x": "1"}, {}),
        (["air", "x"], {}),
        ({"other": 7}, {"labels": ["air", "x"]}),
        (None, {"labels": {"air": 0, "x": 1}}),
        (None, {"labels": {0: "air", 1: "x"}}),
        ({"air": 0, "x": [1]}, {}),
    ],
)
def test_every_form_of_plain_names_gives_the_plain_scheme(labels: Any, keys: dict[str, Any]) -> None:
    assert scheme(labels, **keys) == LabelScheme.of_names(["air", "x"])


def test_gaps_are_closed_in_the_order_of_the_values() -> None:
    found = scheme({"117": "rib", "5": "liver", "40000": "skin"})
    assert classes(found) == {"background": (0,), "liver": (5,), "rib": (117,), "skin": (40000,)}
    assert found.mapping == {"values": [[0], [5], [117], [40000]]}


def test_the_ignore_label_in_every_form() -> None:
    for found in (
        scheme({"background": 0, "x": 1, "ignore": 2}),
        scheme({"0": "background", "1": "x", "2": "ignore"}),
        scheme({"background": 0, "x": 1}, ignore=2),
        scheme({"background": 0, "x": 1, "uncertain": 2}, ignore="uncertain"),
        scheme(None, labels=["background", "x", "ignore"]),
    ):
        assert found.names == ("background", "x") and found.ignore == 2


def test_regions_in_nnunets_notation() -> None:
    found = scheme(BRATS, [2, 1, 4])
    assert found.output_names == ("whole", "core", "enhancing") and found.region_order == (2, 1, 4)
    assert found.names == ("background", "value 1", "value 2", "value 3", "enhancing")
    assert [region.classes for region in found.regions] == [(1, 2, 3, 4), (1, 3, 4), (4,)]
    assert found.mapping is None and found.sigmoid  # the prepared labels are those of plain classes
    assert scheme(BRATS) == found  # the order follows from regions that lie in each other
    assert scheme(None, labels=BRATS, regions_class_order=[2, 1, 4]) == found


def test_regions_by_the_configuration() -> None:
    named = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4}
    regions = {"whole": ["necrosis", "oedema", "enhancing"], "core": ["necrosis", 4], "active": "enhancing"}
    found = scheme(named, regions=regions)
    assert found.names == tuple(named) and found.region_order == (2, 1, 4)
    assert [region.classes for region in found.regions] == [(1, 2, 3), (1, 3), (3,)]
    free = scheme(None, regions={"whole": [1, 2], "core": [2]}, regions_class_order=[10, 20])
    assert free.names == ("background", "value 1", "value 2") and free.region_order == (10, 20)
    merged = scheme(MANY, classes={"kidneys": ["kidney_left", "kidney_right"], "liver": 5}, regions={"both": [2, 3, 5]})
    assert [(region.name, region.classes) for region in merged.regions] == [("both", (1, 2))]


def test_classes_are_chosen_and_merged() -> None:
    found = scheme(MANY, classes={"liver": "liver", "kidneys": ["kidney_left", 2]})
    assert classes(found) == {"background": (0, 1, 117), "liver": (5,), "kidneys": (3, 2)}
    assert not found.rest_is_background  # a value that dataset.json does not name stays an error
    assert scheme(MANY, classes=["spleen"]).names == ("background", "spleen")
    exclusive = scheme(BRATS, classes={"core": "core", "oedema": 2})
    assert not exclusive.is_regions and classes(exclusive)["core"] == (1, 3, 4)


def test_without_names_classes_are_chosen_by_values_and_all_others_are_background() -> None:
    found = scheme(None, classes={"liver": 5, "lungs": [10, 11]})
    assert found.rest_is_background and found.names == ("background", "liver", "lungs")


@pytest.mark.parametrize(
    ("labels", "keys", "said"),
    [
        (None, {}, ["d.json: names no labels (x holds 0, 5); name the values", "data.classes={tumour: 4}"]),
        ({"0": "background"}, {}, ["no class except the background"]),
        ({"background": 0, "x": 1, "y": 1}, {}, ["x and y have the value 1; give each value once"]),
        ({"0": "background", "1": "x", "2": "x"}, {}, ["x names several values"]),
        ({"0": 1.5}, {}, ["labels is {'0': 1.5}; write"]),
        ("tumour", {}, ["labels is 'tumour'; write"]),
        ({"x": 70000, "": 3, "y": []}, {}, ["value 70000 (expected 0 to 65535)", "an empty name", "y has no value"]),
        ({"background": 1, "x": 2}, {}, ["background is [1], and 0 is the background"]),
        ({"air": 0, "none": 0, "x": 1}, {}, ["air and none have the value 0"]),
        ({"background": 0, "x": 1, "ignore": 0}, {}, ["ignore is [0] (expected one value above 0)"]),
        ({"background": 0, "x": 1, "ignore": [2, 3]}, {}, ["ignore is [2, 3] (expected one value above 0)"]),
        ({"background": 0, "x": 1, "ignore": 1}, {}, ["ignore and x have the value 1"]),
        ({"background": 0, "w": [1, 2], "c": 2, "ignore": 2}, {}, ["the region w has the value 2", "region c has the"]),
        ({"background": 0, "w": [1, 2], "all": [2, 1]}, {}, ["all and w are the same region (2, 1)"]),
        ({"background": 0, "a": [1, 2], "b": [2, 3]}, {}, ["d.json: regions_class_order: is missing"]),
        ({"background": 0, "in": 1, "out": [1, 2]}, {}, ["regions_class_order: is missing"]),
        (BRATS, {"regions_class_order": [1, 2]}, ["data.regions_class_order: expected 3 values"]),
        (BRATS, {"regions_class_order": [1, 2, 0]}, ["give values from 1 to 65535"]),
        (MANY, {"regions_class_order": [1]}, ["data.regions_class_order: there are no regions"]),
        (MANY, {"regions": {"all": [1, 9]}}, ["data.regions.all: no label has the value 9 (expected 0 to 3, 5, 117)"]),
        (MANY, {"regions": {"all": [1, "kidney_lft"]}}, ["is named 'kidney_lft'; did you mean kidney_left"]),
        (MANY, {"regions": {"all": [1, 5]}, "ignore": 5}, ["regions.all: has the value 5, which is the ignore label"]),
        (MANY, {"regions": {"all": [0, 1]}}, ["data.regions.all: has the value 0, which is the background"]),
        (MANY, {"classes": {"k": [2, 3]}, "regions": {"r": [2]}}, ["data.regions.r: has 2 of the class k and not 3"]),
        (MANY, {"classes": ["liver"], "regions": {"r": [2, 5]}}, ["data.regions.r: has 2, which is no class by"]),
        (MANY, {"classes": {"a": [1, 2], "b": ["spleen"]}}, ["data.classes: a and b have the label spleen (1)"]),
        (MANY, {"classes": {"a": []}}, ["data.classes.a: has no label"]),
        (MANY, {"classes": {}}, ["data.classes: is empty"]),
        (MANY, {"regions": {}}, ["data.regions: is empty"]),
        (MANY, {"classes": {"a": 4, "b": "lung"}}, ["a: no label has the value 4", "no label is named 'lung'"]),
        (MANY, {"classes": {"a": 1, "ignore": 5}}, ["data.classes.ignore: is no class; set data.ignore"]),
        (MANY, {"ignore": 0}, ["data.ignore: expected one value from 1"]),
        (MANY, {"ignore": "lung"}, ["data.ignore: no label is named 'lung'"]),
        (BRATS, {"ignore": 3}, ["data.ignore: the region whole has the value 3", "the region core has the value 3"]),
        (None, {"classes": {"liver": "liver"}}, ["the data set names no labels, give values of the label files"]),
        ({f"r{k}": k for k in range(300)}, {}, ["there are 300 classes (expected 255 at most"]),
    ],
)  # fmt: skip
def test_impossible_labels_are_all_named(labels: Any, keys: dict[str, Any], said: list[str]) -> None:
    problems: list[str] = []
    read(labels, problems=problems, **keys)
    assert len(problems) == len(said) or said[-1].startswith("data.classes={"), problems
    for text in said:
        assert any(text in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("labels", 5, "labels: expected a list such as"),
        ("labels", {1: "x", 2: "x"}, "x names several values; merge them by data.classes"),
        ("labels", {"x": 1.5}, "labels.x: expected a value of the label files"),
        ("classes", "liver", "classes: expected names with their labels"),
        ("classes", ["a", "a"], "expected each name once"),
        ("regions", {"a": [True]}, "regions.a: expected names or values of labels, got True"),
        ("ignore", 1.5, "ignore: expected a value of the label files or a name"),
        ("annotated", ["liver"], "annotated: expected names of cases with their classes"),
        ("outputs", "sigmod", "did you mean sigmoid"),
    ],
)
def test_keys_of_a_wrong_form(key: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        validate_section(DataConfig, {key: value})
    assert len(caught.value.problems) == 1


def test_keys_that_are_not_used_leave_the_dump_as_it_was() -> None:
    dumped = DataConfig().model_dump(mode="json")
    assert not dumped.keys() & {"classes", "regions", "regions_class_order", "ignore", "annotated", "outputs"}
    section = validate_section(DataConfig, {"classes": {"b": 5, "a": ["x", 2]}})
    assert list(section.model_dump(mode="json")["classes"].items()) == [("b", [5]), ("a", ["x", 2])]


def test_the_examples_of_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
    section = page.split("\n## Labels\n")[1].split("\n## ")[0]
    names, choice, regions, ignore, annotated = (
        yaml.safe_load(block)["data"] for block in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    )
    (notation,) = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL))
    chosen = scheme(None, **names, **choice)
    assert classes(chosen)["kidneys"] == (3, 2) and chosen.names == ("background", "liver", "kidneys", "ribs")
    stated, configured = scheme(notation["labels"], notation["regions_class_order"]), scheme(None, **regions)
    assert configured.regions == stated.regions
    assert scheme(None, **{key: regions[key] for key in ("labels", "regions")}).regions == stated.regions
    exclusive = re.search(r"`(data\.classes=\{core: tumour_core[^`]*)`", section)
    assert exclusive is not None
    override = yaml.safe_load(exclusive[1].split("=")[1])
    assert scheme(notation["labels"], classes=override).names == ("background", "core", "oedema")
    assert scheme({"background": 0, "x": 1}, **ignore).ignore == 7
    label = Path("label.nii.gz")
    cases = [Case(name, (), label) for name in ("liver_01", "abdomen_01", "other_01")]
    patterns = validate_section(DataConfig, annotated).annotated
    assert patterns is not None
    read_names = read(None, **names)
    outputs = outputs_of_cases(by_pattern(cases, patterns, []), read_names, Path("d.json"), (), [])
    assert [case.annotated for case in outputs] == [("liver",), ("spleen", "liver"), None]


@pytest.mark.parametrize(
    ("stated", "annotated"),
    [
        (["whole"], ("whole",)),  # whoever outlines the whole tumour says nothing about its parts
        (["core"], ("core",)),
        (["enhancing"], ("enhancing",)),
        (["value 1", "value 3", "enhancing"], ("core", "enhancing")),
        (["core", "value 2"], ("whole", "core")),
        (["whole", "core"], ("whole", "core")),
        (["whole", "core", "enhancing"], None),
        (["value 1", "value 2", "value 3", "enhancing"], None),
    ],
)
def test_the_regions_that_a_case_annotates(stated: list[str], annotated: tuple[str, ...] | None) -> None:
    problems: list[str] = []
    case = Case("a", (), Path("label.nii.gz"), annotated=tuple(stated))
    (found,) = outputs_of_cases([case], read(BRATS), Path("d.json"), (), problems)
    assert found.annotated == annotated and problems == []


def test_a_wrong_name_of_an_annotated_class_is_reported_where_it_is_stated() -> None:
    cases = [Case(name, (), Path("label.nii.gz"), annotated=(f"{name}r",)) for name in ("live", "splee")]
    problems: list[str] = []
    outputs_of_cases(
        [replace(cases[0], annotated=("livr",)), cases[1]], read(MANY), Path("d.json"), ["splee"], problems
    )
    assert problems[0].startswith("d.json: no class is named 'livr'")
    assert problems[1].startswith("data.annotated: no class is named 'spleer'") and "spleen" in problems[1]


@pytest.mark.parametrize(
    ("labels", "keys", "said"),
    [
        ({"background": 0, "a": 1}, {"ignore": 1}, "data.ignore: 1 is the only class"),
        ({"background": 0, "a": 1, "A ": 2}, {}, "'A ' and 'a' are one name in another spelling"),
        ({"bg": 0, "a": 1, "b": 2}, {"regions": {"bg ": [1, 2], "b": [2]}}, "'bg ' and 'bg' are one name"),
        (BRATS, {"regions_class_order": [9, 9, 9]}, "9 is no label, and several regions would be painted with it"),
    ],
)
def test_labels_that_would_be_mixed_up(labels: Any, keys: dict[str, Any], said: str) -> None:
    problems: list[str] = []
    read(labels, problems=problems, **keys)
    assert len(problems) == 1 and said in problems[0], problems
