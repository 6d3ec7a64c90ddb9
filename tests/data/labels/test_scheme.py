"""The label scheme: file values to class indices and back, regions, and the form in JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusionseg.data.labels.matching import match_classes
from fusionseg.data.labels.scheme import IGNORE, LabelClass, LabelScheme, Region

GAPS = LabelScheme((LabelClass("background", (0,)), LabelClass("lungs", (10, 11)), LabelClass("rib", (300,))), 200)
TUMOUR = LabelScheme(
    tuple(LabelClass(f"value {value}" if value else "background", (value,)) for value in range(5)),
    regions=(Region("whole", (1, 2, 3, 4), 2), Region("core", (1, 3, 4), 1), Region("enhancing", (4,), 4)),
)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int64, np.float32, np.float64])
def test_values_become_indices_and_values_again(dtype: type) -> None:
    values = np.array([[0, 10, 11], [300, 200, 0]], dtype)
    indices = GAPS.to_indices(values)
    assert indices.dtype == np.uint8 and indices.tolist() == [[0, 1, 1], [2, IGNORE, 0]]
    back = GAPS.to_values(indices)
    assert back.dtype == np.uint16 and back.tolist() == [[0, 10, 10], [300, 200, 0]]


@pytest.mark.parametrize("value", [-1, 1, 255, 301, 70000])
def test_an_unknown_value_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=rf"unknown label values \[{value}\]"):
        GAPS.to_indices(np.array([0, 10, value]))


def test_values_that_are_not_selected_are_background_where_the_scheme_says_so() -> None:
    scheme = LabelScheme(GAPS.classes, rest_is_background=True)
    assert scheme.to_indices(np.array([0, 7, 11, 65535])).tolist() == [0, 0, 1, 0]
    assert scheme.unknown([-1, 7, 65536]) == [-1, 65536]


def test_a_plain_scheme_changes_no_value() -> None:
    scheme = LabelScheme.of_names(["background", "anterior", "posterior"])
    values = np.array([0, 2, 1], np.int16)
    assert scheme.is_plain and scheme.to_indices(values).tolist() == [0, 2, 1]
    assert (scheme.num_classes, scheme.num_outputs, scheme.output_names) == (3, 3, ("anterior", "posterior"))
    assert scheme.to_values(scheme.to_indices(values)).dtype == np.uint8
    assert not any(other.is_plain for other in (GAPS, TUMOUR, LabelScheme(scheme.classes, sigmoid=True)))


def test_regions_are_the_outputs_and_painting_gives_the_file_values() -> None:
    assert (TUMOUR.num_classes, TUMOUR.num_outputs) == (5, 3)
    assert TUMOUR.output_names == ("whole", "core", "enhancing") and TUMOUR.sigmoid
    assert TUMOUR.region_order == (2, 1, 4)
    assert TUMOUR.membership.tolist() == [[0, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1]]
    values = np.array([0, 1, 2, 3, 4])
    masks = TUMOUR.membership[:, TUMOUR.to_indices(values)]
    assert TUMOUR.paint(masks).tolist() == [0, 1, 2, 1, 4]  # 1 and 3 are in the same regions


def test_classes_with_sigmoid_outputs_have_a_channel_each_without_the_background() -> None:
    scheme = LabelScheme(GAPS.classes, sigmoid=True)
    assert (scheme.num_outputs, scheme.output_names) == (2, ("lungs", "rib"))
    assert scheme.membership.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert scheme.paint(scheme.membership[:, [0, 1, 2]]).tolist() == [0, 10, 300]


@pytest.mark.parametrize("scheme", [GAPS, TUMOUR, LabelScheme(GAPS.classes, None, (), True, True)])
def test_the_form_in_json_is_the_scheme(scheme: LabelScheme) -> None:
    assert LabelScheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


def test_classes_of_another_data_set_are_matched_by_name_or_by_their_regions() -> None:
    swapped = LabelScheme((GAPS.classes[0], LabelClass("Rib", (1,)), LabelClass("lungs", (2,))))
    assert match_classes(GAPS, swapped) == (0, 2, 1)
    assert match_classes(GAPS, LabelScheme.of_names(["background", "rib"])) is None
    named = tuple(LabelClass(name, (value,)) for value, name in enumerate(("background", "oedema", "core", "active")))
    regions = (Region("Enhancing", (3,), 3), Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2))
    assert match_classes(TUMOUR, LabelScheme(named, regions=regions)) == (0, 2, 1, 4)
    apart = (*regions[:2], Region("core", (2,), 2))  # here the enhancing tumour is not part of the core
    assert match_classes(TUMOUR, LabelScheme(named, regions=apart)) is None
    assert match_classes(TUMOUR, LabelScheme(named, regions=regions[1:])) is None
    assert match_classes(TUMOUR, LabelScheme(named)) is None


def test_an_order_of_painting_that_loses_regions_is_found() -> None:
    assert TUMOUR.repainted == {}
    turned = LabelScheme(TUMOUR.classes, regions=TUMOUR.regions[::-1])  # the whole tumour is painted over the others
    assert turned.repainted == {"value 1": "value 2", "value 3": "value 2", "value 4": "value 2"}
