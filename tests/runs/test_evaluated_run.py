"""The run of an evaluation, found again from the folder of the evaluation."""

from __future__ import annotations

from pathlib import Path

from fusionseg.runs.evaluations import evaluated_run, results_folder


def test_the_run_or_the_archive_of_an_evaluation_is_found(tmp_path: Path) -> None:
    archive = tmp_path / "model.v2.fseg"
    archive.touch()
    (tmp_path / "model.v2.onnx").touch()
    assert evaluated_run(results_folder(archive) / "evaluation_lungs") == archive
    run = tmp_path / "lung_results"  # the name of a run may end like that
    run.mkdir()
    (run / "config.yaml").touch()
    (tmp_path / "lung.fseg").touch()
    assert evaluated_run(results_folder(run) / "evaluation") == run
