"""Cases that differ are found, each with its reason; differences that many cases have are remarks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusionseg.data.fingerprint.case import LEVELS, AnnotationGap, CaseFingerprint, Intensities, OutputMeasurement
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.data.fingerprint.outliers import Outlier, find_outliers

BOX = ((0, 10), (0, 10), (0, 10))


def intensities(median: float, deviation: float, lowest: float = 0.0) -> Intensities:
    quantiles = [median] * len(LEVELS)
    quantiles[0] = lowest
    return Intensities(1000, median, deviation, tuple(quantiles))


def case(index: int) -> CaseFingerprint:
    """A case of a data set in which all vary a little."""
    vary = 1 + 0.02 * (index % 5)
    return CaseFingerprint(
        name=f"c{index:02d}",
        shape=(100 + index % 3, 100, 60),
        spacing_mm=(0.8, 0.8, 2.0 * vary),
        orientation="LPS",
        stored_types=("int16",),
        nonzero_box=BOX,
        nonzero_voxels=1000,
        body_box=None,
        foreground_box=BOX,
        whole=(intensities(80 * vary, 30),),
        foreground=(intensities(100 * vary, 20 * vary),),
        outputs={"liver": OutputMeasurement(1000, 1.5e6 * vary, 1, 1000, BOX)},
        labelled=True,
    )


def fingerprint(**changed: CaseFingerprint) -> Fingerprint:
    cases = {one.name: one for one in map(case, range(20))} | changed
    return Fingerprint("toy", ("CT",), ("liver",), False, tuple(cases.values()))


def liver(
    voxels: int = 1000, ml: float = 1500, components: int = 1, gaps: tuple[AnnotationGap, ...] = ()
) -> CaseFingerprint:
    output = OutputMeasurement(voxels, ml * 1000, components, voxels - 4 * (components - 1), BOX, gaps)
    return replace(case(3), outputs={"liver": output})


def only(changed: CaseFingerprint) -> Outlier:
    found = find_outliers(fingerprint(c03=changed))
    assert found.remarks == ()
    [outlier] = found.cases
    assert outlier.case == "c03"
    return outlier


def test_cases_that_vary_a_little_are_no_outliers() -> None:
    assert find_outliers(fingerprint()).cases == find_outliers(fingerprint()).remarks == ()
    assert find_outliers(fingerprint()).to_text() == "Outliers: no single case differs much"


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        (replace(case(3), spacing_mm=(0.8, 0.8, 3.3), shape=(99, 99, 40)), "spacing", "z is 3.3 mm (median 2.08 mm)"),
        (replace(case(3), shape=(100, 100, 150)), "shape", "along z, 150 voxels"),
        (replace(case(3), foreground=(intensities(1100, 220),)), "intensity", "the foreground in CT is 1100"),
        (replace(case(3), foreground=(intensities(100, 120),)), "intensity", "deviation relative to the median"),
        (liver(ml=20), "volume", "liver has 20 ml (median 1560 ml)"),
        (liver(components=7), "components", "(median 1); all but the largest have 24 of 1000 voxels"),
        (liver(voxels=0, ml=0, components=0), "annotation", "liver is not annotated; 19 of 20 cases have it"),
        (liver(gaps=(AnnotationGap(2, 5, 6), AnnotationGap(0, 7, 9))), "annotation", "z = 5, x = 7 to 8"),
    ],
)  # fmt: skip
def test_a_case_that_differs_is_named_with_its_reason(changed: CaseFingerprint, kind: str, words: str) -> None:
    found = only(changed)
    assert found.kind == kind and words in found.reason


def test_many_cases_with_another_scale_are_one_remark() -> None:
    other = {
        f"c{index:02d}": replace(case(index), foreground=(intensities(1000.0 * 10**index, 200.0 * 10**index),))
        for index in range(4)
    }
    found = find_outliers(fingerprint(**other))
    assert found.cases == ()
    [remark] = found.remarks
    assert "from 100 to 1e+06" in remark and "in 4 of 20 cases: c00, c01, c02, c03" in remark
    assert remark in found.to_text() and found.sentences(5) == [f"T{remark[1:]}."]


def test_intensities_of_ct_are_compared_in_hu() -> None:
    """Medians near 0 HU have no logarithm. A case whose values are shifted by 1024 differs."""
    cases = {
        one.name: replace(one, foreground=(intensities(3 * (index % 5) - 6, 20, lowest=-80),))
        for index, one in enumerate(map(case, range(20)))
    }
    assert find_outliers(fingerprint(**cases)).cases == ()
    cases["c07"] = replace(case(7), foreground=(intensities(1024, 20, lowest=900),))
    assert [(one.case, one.kind) for one in find_outliers(fingerprint(**cases)).cases] == [("c07", "intensity")]


def test_large_groups_of_cases_are_a_remark_where_no_case_is_far_from_the_median() -> None:
    """Half of the scans are of another site. No value is far from a median between the two."""
    thick = {f"c{index:02d}": replace(case(index), spacing_mm=(0.8, 0.8, 5.0)) for index in range(10)}
    whole = fingerprint(**thick)
    for one in (whole, replace(whole, cases=whole.cases[::-1])):
        assert find_outliers(one).cases == ()
    assert find_outliers(whole).remarks[0] == (
        "the voxel size along z has 2 groups of values: 2.08 mm in 10 cases (c10, c11, c12 and 7 more), 5 mm in 10"
        " cases (c00, c01, c02 and 7 more)"
    )
    thicker = thick | {"c03": replace(case(3), spacing_mm=(0.8, 0.8, 30.0), shape=(100, 100, 4))}
    assert "30 mm in 1 case (c03)" in find_outliers(fingerprint(**thicker)).remarks[0]


def test_scattered_values_are_no_groups() -> None:
    values = {f"c{index:02d}": replace(case(index), spacing_mm=(0.8, 0.8, 1.6 ** (index // 2))) for index in range(20)}
    assert not any("groups" in remark for remark in find_outliers(fingerprint(**values)).remarks)


def test_sentences_count_the_outliers_that_they_do_not_list() -> None:
    changed = replace(liver(ml=20, components=7), spacing_mm=(5.0, 0.8, 2.0))
    sentences = find_outliers(fingerprint(c03=changed)).sentences(2)
    assert sentences[0] == "c03 differs: the voxel size along x is 5 mm (median 0.8 mm)."
    assert len(sentences) == 3 and sentences[2] == "2 more outliers are in the fingerprint."


def test_few_cases_have_no_outliers() -> None:
    small = replace(fingerprint(), cases=(case(0), case(1), case(2), liver(ml=1)))
    assert find_outliers(small).cases == ()


def test_a_class_that_is_often_absent_is_no_fault() -> None:
    without = {
        f"c{index:02d}": replace(case(index), outputs={"liver": OutputMeasurement(0, 0.0, 0, 0, None)})
        for index in range(5)
    }
    assert find_outliers(fingerprint(**without)).cases == ()
