"""Classes and cases that are drawn more often: weights, the order of the cases, positions, and counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusionseg import train
from fusionseg.config import AugmentConfig, RunConfig, dump_config, load_config
from fusionseg.config.data.sampling import SamplingConfig
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.sampling.case_order import CaseOrder
from fusionseg.data.loading.sampling.patch_centres import PlanCase
from fusionseg.data.loading.sampling.weights import SampledCase, SamplingWeights, sampling_weights
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.utils.errors import UserError

DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
SCHEME = LabelScheme.of_names(("background", "liver", "tumour", "vein"))


def stripes(name: str, *classes: int) -> PlanCase:
    """A case whose first axis says the class: 5 voxels of each, in a row of 20."""
    label = np.zeros((20, 3, 3), np.uint8)
    for place, value in enumerate(classes):
        label[5 * place : 5 * place + 5] = value
    found = [np.flatnonzero(label.ravel() == value) for value in sorted(classes)]
    offsets = np.cumsum([0, *map(len, found)])
    indices = np.concatenate([np.zeros(0, np.int64), *found])
    return PlanCase(name, label.shape, indices, tuple(offsets.tolist()), tuple(sorted(classes)))


CASES = [stripes("a", 1, 2, 3), stripes("b", 3, 1), stripes("c"), stripes("d", 2)]


def plan(weights: SamplingWeights, cases: list[PlanCase] = CASES, foreground: float = 0.5) -> SamplePlan:
    settings: dict[str, Any] = {"seed": 4, "patch": (1, 1, 1), "global_batch": 4, "samples_per_volume": 1}
    return SamplePlan(cases, AugmentConfig(), foreground=foreground, channels=1, weights=weights, **settings)


def section(**keys: Any) -> SamplingConfig:
    return SamplingConfig.model_validate(keys)


# -- the order of the cases ----------------------------------------------------------------------------------


def test_equal_weights_change_nothing() -> None:
    plain, equal = CaseOrder(3, 7), CaseOrder(3, 7, [2.0] * 7)
    assert [plain.case_of(n) for n in range(70)] == [equal.case_of(n) for n in range(70)]
    assert not equal.is_weighted


@pytest.mark.parametrize("weights", [[1, 2, 3, 4], [5, 1, 1, 1, 1, 1, 1], [0, 1, 0.3, 0], [1e-9, 1, 1], [0, 0, 2, 0]])
def test_each_epoch_has_each_case_in_proportion_to_its_weight(weights: list[float]) -> None:
    order = CaseOrder(3, len(weights), weights)
    expected = np.array(weights) / np.mean(weights)
    total, epochs = np.zeros(len(weights)), 233
    for epoch in range(epochs):
        counts = np.bincount(order.epoch(epoch), minlength=len(weights))
        assert counts.sum() == len(weights)
        assert (np.abs(counts - expected) < 1 + 1e-6).all()  # rounded down or up
        total += counts
    np.testing.assert_allclose(total / epochs, expected, atol=0.02)
    assert not total[np.array(weights) == 0].any()


def test_a_weighted_order_is_a_function_of_seed_and_place_alone() -> None:
    weights = [1, 5, 2, 2, 0.5]
    whole = [CaseOrder(3, 5, weights).case_of(n) for n in range(100)]
    again = CaseOrder(3, 5, weights)
    assert [again.case_of(n) for n in reversed(range(100))] == whole[::-1]
    assert [CaseOrder(4, 5, weights).case_of(n) for n in range(100)] != whole
    assert len({tuple(again.epoch(epoch).tolist()) for epoch in range(20)}) > 15  # shuffled anew in each epoch
    assert [again.case_of(n) for n in range(10)] == GOLDEN_ORDER


GOLDEN_ORDER = [1, 1, 3, 2, 0, 3, 1, 4, 2, 1]


# -- the weights ---------------------------------------------------------------------------------------------


def test_weights_by_name_and_by_frequency() -> None:
    cases = [SampledCase({1: 100, 2: 4}), SampledCase({1: 300, 3: 25}, weight=2.0)]
    assert sampling_weights(None, SCHEME, [SampledCase({1: 1}), SampledCase({2: 9})]) == SamplingWeights()
    named = sampling_weights(section(class_weights={"tumour": 4, "vein": 0}), SCHEME, cases)
    assert named.classes == {2: 4, 3: 0} and named.cases == (1, 2)
    assert named.class_shares([1, 2, 3]) == [0.2, 0.8, 0] and named.class_shares([3]) is None
    inverse = sampling_weights(section(class_weights="inverse_frequency"), SCHEME, cases).classes
    assert inverse == {1: 1, 2: 100, 3: 16}
    root = sampling_weights(section(class_weights="inverse_sqrt_frequency"), SCHEME, cases).classes
    assert root == {1: 1, 2: 10, 3: 4}


def test_cases_of_rare_classes_have_the_repeat_factor_of_their_rarest_class() -> None:
    common = [SampledCase({1: 50}) for _ in range(6)]
    cases = [*common, SampledCase({1: 50, 2: 3}), SampledCase({1: 9, 2: 1, 3: 2}), SampledCase({})]
    weights = sampling_weights(section(case_weights="rare_classes"), SCHEME, cases).cases
    assert weights == pytest.approx([1] * 6 + [2, 8**0.5, 1])  # in 8, 2 and 1 of the cases
    doubled = [SampledCase(one.voxels, 2.0 if i == 0 else 1.0) for i, one in enumerate(cases)]
    assert sampling_weights(section(case_weights="rare_classes"), SCHEME, doubled).cases == pytest.approx(
        [2] + [1] * 5 + [2, 8**0.5, 1]
    )


def test_expected_shares_are_those_that_are_drawn() -> None:
    weights = SamplingWeights({2: 4, 3: 0}, (1, 2, 1, 3))
    voxels = [{1: 45, 2: 45, 3: 45}, {1: 45, 3: 45}, {}, {2: 45}]
    expected = weights.expected_shares([SampledCase(one) for one in voxels], foreground=0.7)
    assert sum(expected.values()) == pytest.approx(1) and expected[3] == 0
    counts = plan(weights, foreground=0.7).count(range(1500))
    for index, share in expected.items():
        assert counts.classes[index] / 6000 == pytest.approx(share, abs=0.02)


# -- the positions -------------------------------------------------------------------------------------------


def test_the_class_at_the_centre_follows_its_weight() -> None:
    drawing = plan(SamplingWeights({1: 1, 2: 3, 3: 0}), [CASES[0]], foreground=1)
    places = Counter(int(origin[0]) // 5 for step in range(500) for origin in drawing.samples(step, range(4)).origin)
    assert set(places) == {0, 1} and places[1] / 2000 == pytest.approx(0.75, abs=0.03)


def test_a_case_without_a_drawn_class_gives_patches_at_any_position() -> None:
    drawing = plan(SamplingWeights({3: 0}), [stripes("a", 3)], foreground=1)
    places = {int(origin[0]) for step in range(100) for origin in drawing.samples(step, range(4)).origin}
    assert places == set(range(20)) and drawing.count(range(100)).classes == {0: 400}


def test_weights_move_no_other_number() -> None:
    weighted, even = plan(SamplingWeights({1: 1, 2: 3})), plan(SamplingWeights())
    for step in range(10):
        one, other = weighted.samples(step, range(4)), even.samples(step, range(4))
        np.testing.assert_array_equal(one.flip, other.flip)
        np.testing.assert_array_equal(one.case_index, other.case_index)


def test_patches_of_a_partly_ignored_case_are_centred_on_annotation() -> None:
    """Where no class is drawn; a class is annotated in any case."""
    shape = (20, 8, 8)
    annotated = np.flatnonzero((np.indices(shape)[0] >= 6) & (np.indices(shape)[0] < 9))
    case = PlanCase("a", shape, np.zeros(0, np.int64), (0,), (), annotated)
    origins = np.concatenate([plan(SamplingWeights(), [case]).samples(step, range(4)).origin for step in range(100)])
    assert set(origins[:, 0]) == {6, 7, 8} and set(origins[:, 1]) == set(range(8))


def test_counts_are_those_of_the_samples() -> None:
    drawing = plan(SamplingWeights({2: 5}, (3, 1, 1, 2)))
    counts = drawing.count(range(3, 50))
    samples = [drawing.samples(step, range(4)) for step in range(3, 50)]
    assert counts.cases == Counter(index for one in samples for index in one.case_index.tolist())
    assert counts.classes.total() == counts.cases.total() == 4 * 47
    parts = drawing.count(range(3, 20)), drawing.count(range(20, 50))
    assert counts.classes == parts[0].classes + parts[1].classes
    names = ["a", "b", "c", "d"]
    text = counts.summary(SCHEME.names, names)
    assert text.startswith("188 patches of steps 4 to 50, centred on liver: ") and "any position" in text
    assert f"cases a: {counts.cases[0]}" in text and counts.by_case(names)["a"] == counts.cases[0]
    assert "; 7 cases, 0 (g) to " in counts.summary((), [*names, *"efg"])
    many = counts.summary(("background", *(f"value {index}" for index in range(1, 118))), names)
    assert "centred on 117 classes, 0 (value 117) to " in many and "value 50" not in many


HEAVY = 2
"""Number of a training case of `balls`."""


# -- in a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("data.sampling={class_weights: {tumor: 2, vein: 1}}", "data.sampling.class_weights.tumor: there is no such"),
        ("data.sampling={class_weights: {liver: 0, tumour: 0, vein: 0}}", "no class has a weight above 0"),
    ],
)
def test_weights_of_unknown_classes_are_refused(changes: str, message: str) -> None:
    sampling = load_config(DEMO, [changes]).data.sampling
    with pytest.raises(UserError, match=message):
        sampling_weights(sampling, SCHEME, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.sampling={class_weights: {}}"], "class_weights.*: names no class"),
        (["data.sampling={class_weights: {background: 1}}"], "is not drawn by its weight"),
        (["data.sampling={class_weights: {a: -1}}"], "class_weights.a.*: expected a value of at least 0, got -1"),
        (["data.sampling={class_weights: rare}"], "class_weights.*or inverse_frequency or inverse_sqrt_frequency"),
        (["data.sampling={case_weights: rare}"], "case_weights.*: unknown value 'rare'"),
        (["data.sampling={class_weights: {a: 1}}", "data.foreground=0"], "has no effect with data.foreground 0"),
    ],
)
def test_settings_that_say_nothing_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(DEMO, changes)


def test_a_run_counts_what_it_has_drawn(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """The dry run says what is expected; the log and, with weights, the records say what was drawn."""
    assert not SamplingWeights().is_weighted
    sampling = {"class_weights": {"ball2": 3}, "case_weights": "rare_classes"}
    file, folder, table = tmp_path / "config.yaml", tmp_path / "tiny", tmp_path / "cases.csv"
    # Of four training cases one has three quarters of the weight: three volumes of an epoch, two patches each.
    table.write_text("case,times\n" + "".join(f"case_{i:03d},{9 if i == HEAVY else 1}\n" for i in range(5)))
    data = {"sampling": sampling, "table": str(table), "weight": "times"}
    file.write_text(dump_config(tiny_config(balls, tmp_path, data=data, validate={"every": 3})))
    assert train.main(["--config", str(file)]) == 0
    capsys.readouterr()
    text = (folder / "log.txt").read_text()
    assert "step 3: 6 patches of steps 1 to 3, centred on ball1: " in text and "step 4: 2 patches" in text
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = [record for record in records if record["kind"] == "val"]
    assert sum(record["drawn_cases"][f"case_{HEAVY:03d}"] for record in validations) == 6
    for record, count in zip(validations, (6, 2), strict=True):
        assert set(record["drawn_classes"]) == {"ball1", "ball2"} and sum(record["drawn_cases"].values()) == count
    assert train.main(["--config", str(file), "--dry-run", "name=again"]) == 0
    shown = capsys.readouterr().out
    assert "patches centred on ball1: 12.5%, ball2: 37.5%, any position: 50.0%" in shown
    assert "each case is drawn 0.33 to 3 times in an epoch" in shown
