"""The doctor's page, on this machine and on broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusionseg.cluster import doctor
from fusionseg.cluster.doctor import BAD, GOOD, POOR, Finding, examine, to_text
from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import World

ALONE = World(Launch(), torch.device("cpu"))


def page(folder: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(folder, ALONE)}


def test_this_machine(tmp_path: Path) -> None:
    found = page(tmp_path / "runs/to/be/made")
    assert {"packages", "CUDA", "processors", "precision", "file system", "SLURM"} <= found.keys()
    assert found["packages"].verdict == GOOD
    assert f"torch {torch.__version__}" in found["packages"].text
    assert str(tmp_path) in found["file system"].text
    assert list(tmp_path.iterdir()) == []
    assert all(finding.remedy for finding in found.values() if finding.verdict == BAD)


def test_a_folder_that_cannot_be_written() -> None:
    finding = page(Path("/proc"))["file system"]
    assert finding.verdict == BAD
    assert "cannot write in /proc" in finding.text
    assert "output=FOLDER" in finding.remedy


def test_packages_outside_their_ranges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ["numpy<1.0", "no-such-package>=1", "pytest>=8; extra == 'dev'", "nibabel"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    finding = page(tmp_path)["packages"]
    assert finding.verdict == BAD
    assert "numpy" in finding.text.split(" (")[0]
    assert "no-such-package is missing" in finding.text
    assert "pytest" not in finding.text


def test_the_extra_formats_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ["numpy", "nibabel; extra == 'formats'", "pytest; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    finding = page(tmp_path)["formats"]
    assert finding.verdict == GOOD and "nibabel" in finding.text and "pytest" not in finding.text
    wanted[1] = "no-such-package; extra == 'formats'"
    found = page(tmp_path)
    assert found["packages"].verdict == GOOD and found["formats"].verdict == POOR
    assert "no-such-package is missing" in found["formats"].text
    assert "pip install 'fusionseg[formats]'" in found["formats"].remedy


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in page(tmp_path)["SLURM"].text


def test_the_page_is_aligned() -> None:
    text = to_text([Finding("a", GOOD, "one"), Finding("longer", BAD, "two", "do this")])
    assert text.splitlines() == ["a       ok    one", "longer  BAD   two", "              -> do this"]
