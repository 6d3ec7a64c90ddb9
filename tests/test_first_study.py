"""The tutorial docs/first_study.md: all of its commands, in order, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documented_commands import ROOT, blocks

PAGE = ROOT / "docs/first_study.md"


@pytest.mark.long
def test_the_commands_of_the_tutorial_run_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/fusionseg"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fusionseg "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    (sweep,) = blocks(PAGE, "yaml")
    (tmp_path / sweep.splitlines()[0].removeprefix("# ")).write_text(sweep)
    shown = ""
    for block in blocks(PAGE, ""):
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        shown += done.stdout
    assert (tmp_path / "cases/fingerprint.html").exists()
    assert "resunet" in (tmp_path / "runs/study/compare.md").read_text()
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 2
    assert len(list((tmp_path / "runs/study").glob("*/report.html"))) == 6
    assert (tmp_path / "runs/study/resunet-fold0/evaluation/report.html").exists()
    assert (tmp_path / "runs/study/report.html").exists()
    assert "fusionseg predict runs/study/" in shown  # the line of `fusionseg best`
