"""Measurement in worker processes: the same scores, cases made one at a time, a case that fails or kills its worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusionseg.cli import main
from fusionseg.config.parts.metric import MetricConfig
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.inference.evaluation import parallel_measuring
from fusionseg.inference.evaluation.measuring import CaseMeasurer, PredictedCase, Score
from fusionseg.inference.evaluation.parallel_measuring import measured_cases, num_workers
from fusionseg.utils.parallel import WorkerDied

METRIC = """
import os

def voxels(prediction, label, num_classes):
    value = int(prediction[0, 0, 0])
    if value == 2 and os.getpid() != {pid}:
        os._exit(1)
    if value == 3:
        raise ValueError("odd")
    return [int((prediction == k).sum()) for k in range(1, num_classes)]
"""
SCHEME = LabelScheme.of_names(["background", "a", "b", "c"])


def cases(corners: list[int], made: list[str] | None = None) -> Iterator[PredictedCase]:
    random = np.random.default_rng(0)
    for number, corner in enumerate(corners):
        prediction, label = random.integers(0, 4, (2, 6, 7, 8), dtype=np.uint8)
        prediction[0, 0, 0] = corner
        if made is not None:
            made.append(f"case{number}")
        yield PredictedCase(f"case{number}", "label.nii.gz", prediction, label, np.ones(3, bool), (1.0, 2.0, 1.0))


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaseMeasurer:
    (tmp_path / "counted_voxels.py").write_text(METRIC.format(pid=os.getpid()))
    monkeypatch.syspath_prepend(tmp_path)
    return CaseMeasurer(SCHEME, None, [MetricConfig(name="counted_voxels:voxels")])


def scores(measure: CaseMeasurer, corners: list[int], workers: int | None) -> dict[str, list[Score] | Exception]:
    found = measured_cases(cases(corners), measure, len(corners), workers)
    return {case.name: outcome for case, outcome in found}


def test_workers_give_the_scores_of_this_process(measure: CaseMeasurer) -> None:
    """The cases are made as workers become free: at most two for each of them wait."""
    corners = [0, 1] * 5
    alone = scores(measure, corners, workers=1)
    assert len(alone) == 10 and all(isinstance(outcome, list) for outcome in alone.values())
    made: list[str] = []
    found = {}
    for case, outcome in measured_cases(cases(corners, made), measure, len(corners), 2):
        found[case.name] = outcome
        assert len(made) <= len(found) + 2 * 2
    assert found == alone


def test_a_case_that_fails_and_one_that_kills_its_worker(
    measure: CaseMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are started without a given number, as the measurement takes long."""
    monkeypatch.setattr(parallel_measuring, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(parallel_measuring, "available_cpus", lambda: 2)
    found = scores(measure, [0, 3, 2, 1, 1], workers=None)
    assert isinstance(found["case1"], CaseError) and "raised ValueError: odd" in str(found["case1"])
    assert isinstance(found["case2"], WorkerDied)  # only a worker dies
    good = {name: found[name] for name in ("case0", "case3", "case4")}
    assert good == {name: outcome for name, outcome in scores(measure, [0, 0, 0, 1, 1], 1).items() if name in good}


def test_quick_measurements_start_no_workers(measure: CaseMeasurer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_measuring, "map_cases", None)
    assert len(scores(measure, [0, 1, 1], workers=None)) == 3


def test_the_number_of_workers_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(cases([0]))
    monkeypatch.setattr(parallel_measuring, "available_cpus", lambda: 8)
    assert num_workers(case, 100) == 8
    assert num_workers(case, 3) == 3
    large = replace(case, label=np.broadcast_to(np.uint8(0), (1000, 1000, 1000)))
    monkeypatch.setattr(parallel_measuring, "available_memory_bytes", lambda: 300 * 10**9)
    assert num_workers(large, 100) == 2
    monkeypatch.setattr(parallel_measuring, "available_memory_bytes", lambda: 10**9)
    assert num_workers(large, 100) == 1


def test_workers_of_the_command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", str(tmp_path), "--workers", "0"]) == 2
    assert "--workers: expected a number from 1, got 0" in capfd.readouterr().err
