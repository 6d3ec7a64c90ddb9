"""`fusionseg card`: every number of the card is in a file of the run; what is unknown is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

import pytest

import fusionseg
from fusionseg import cli
from fusionseg.data.splits.method import SplitMethod
from fusionseg.export.archive import export_archive
from fusionseg.export.card.claim import COUNT, ITEMS, claim_answers
from fusionseg.export.card.facts import card_facts, energy_kwh, fold_text
from fusionseg.export.card.files import card_documents, write_card
from fusionseg.export.card.text import AUTHOR, card_text
from fusionseg.export.export import ExportOptions
from fusionseg.runs.cases.split import read_split
from fusionseg.runs.evaluations import read_scores
from fusionseg.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, with an evaluation."""
    folder = tmp_path_factory.mktemp("card") / "tiny"
    shutil.copytree(tiny_run(), folder)
    fusionseg.evaluate(folder, device="cpu", masks=False)
    return folder


def write_power(run: Path, watts: list[float | None], step_s: float = 10.0) -> Path:
    start = datetime(2026, 1, 1)
    rows = [
        f"{(start + timedelta(seconds=step_s * i)).isoformat()},GPU-1,0,{'' if power is None else power}"
        for i, power in enumerate(watts)
    ]
    (run / "gpu.csv").write_text("\n".join(["time,uuid,index,power_w", *rows, ""]))
    return run / "gpu.csv"


def cell(text: str, name: str) -> str:
    (found,) = re.findall(rf"^\| {re.escape(name)} +\| (.*?) +\|$", text, re.MULTILINE)
    return str(found).strip()


def test_every_number_is_in_a_file_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_power(run, [300.0] * 361)  # 300 W for an hour
    assert cli.main(["card", str(run), "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "card.md"), str(tmp_path / "claim.md")]
    text = (tmp_path / "card.md").read_text()
    config, split = fusionseg.load_run(run).config, read_split(run)
    environment = json.loads((run / "environment.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "evaluation/summary.json").read_text())
    known = {
        "parameters": f"{environment['parameters']:,}",
        "torch": environment["packages"]["torch"],
        "training cases": str(len(split.training)),
        "validation cases": str(len(split.validation)),
        "optimizer steps": str(config.train.steps),
        "patches a step": str(config.train.global_batch),
        "seed": str(config.seed),
        "window": "16 x 16 x 16 voxels",
        "ranks of the last start": "1",
    }
    assert {name: cell(text, name) for name in known} == known
    assert float(cell(text, "hours")) == pytest.approx(records[-1]["total_s"] / 3600, rel=0.01)
    assert float(cell(text, "energy of the GPUs (kWh)")) == pytest.approx(0.3, rel=0.01)
    best = max(record["dice"] for record in records if record["kind"] == "val")
    assert f"Dice {best:.4f} at step 1" in text
    scores = [score for score in read_scores(run / "evaluation") if score.label == "ball1"]
    assert scores and f"{fmean(score.metrics['dice'] for score in scores):.4f}" in text
    assert f"{summary['classes']['ball1']['dice']['mean']:.4f}" in text
    assert not [case.name for case in (*split.training, *split.validation) if case.name in text]
    assert str(run.parent) not in text


def test_what_is_unknown_is_said(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_run(), tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    for name in ("environment.json", "metrics.jsonl", "split.json"):
        (tmp_path / "run" / name).unlink()
    write_card(tmp_path / "run")
    text = (tmp_path / "run/card.md").read_text()
    for name in ("parameters", "devices of the last start", "hours", "energy of the GPUs (kWh)", "status"):
        assert cell(text, name) == "unknown"
    assert cell(text, "optimizer steps") == "unknown of 1"
    assert "no record of its cases" in text and "`fusionseg evaluate RUN`" in text and "not measured" in text
    assert text.count(AUTHOR) >= 3 and "The licence of the weights is not stated" in text
    assert "nan" not in text.lower().split()


def test_the_energy_has_no_pauses(tmp_path: Path) -> None:
    assert energy_kwh(write_power(tmp_path, [100.0, 200.0])) == pytest.approx(1500 / 3.6e6)
    assert energy_kwh(write_power(tmp_path, [100.0, 200.0], step_s=3600)) is None  # the run was off between both
    assert energy_kwh(write_power(tmp_path, [100.0, 200.0], step_s=120), 120) == pytest.approx(18000 / 3.6e6)
    assert energy_kwh(write_power(tmp_path, [None, None])) is None
    assert energy_kwh(write_power(tmp_path, [100.0, None, 100.0])) is None


def test_the_checklist_has_all_items(run: Path) -> None:
    assert COUNT == 44 and len({subject for _, subjects in ITEMS for subject in subjects}) == 44
    facts = card_facts(run)
    documents = card_documents([run], None, {})
    numbers = [int(number) for number in re.findall(r"^\| (\d+) ", documents["claim.md"], re.MULTILINE)]
    assert numbers == list(range(1, 45))
    answers = claim_answers(facts)
    assert documents["claim.md"].count(AUTHOR) == 44 - len(answers)
    assert {32, 37} <= answers.keys() and 33 not in answers  # it was evaluated on its own validation cases alone


def test_what_a_table_leaves_out_is_said(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    evaluation = tmp_path / "run/evaluation"
    shutil.copytree(evaluation, ensemble := tmp_path / "run/evaluation_ensemble")
    summary = json.loads((evaluation / "summary.json").read_text())
    (ensemble / "summary.json").write_text(json.dumps({**summary, "averaged_with": ["/runs/other"]}))
    changes = {"failed": {"case_9": "no such file"}, "request": {**summary["request"], "tta": True}}
    (evaluation / "summary.json").write_text(json.dumps({**summary, **changes}))
    rows = (evaluation / "cases.csv").read_text().splitlines()
    place, cells = rows[0].split(",").index("hd95_mm"), rows[1].split(",")
    cells[place] = ""
    (evaluation / "cases.csv").write_text("\n".join([rows[0], ",".join(cells), *rows[2:], ""]))
    (written, _) = write_card(tmp_path / "run")
    text = written.read_text()
    assert "### evaluation\n" in text and "ensemble" not in text  # whose scores are not those of these weights
    assert "averaged over flips" in text and "no part in the values: 1." in text and "case_9" not in text
    assert "HD95 (mm) of ball1: 0 of 1 cases have a value." in text and "missed structures" in text
    facts = replace(card_facts(run), steps_done=0, energy_kwh=None, has_gpu_table=False)
    assert cell(card_text(facts), "optimizer steps") == "0 of 1"  # of a run that ended before
    assert "the run has no gpu.csv" in card_text(facts)


def test_the_fold_has_no_setting_without_effect(run: Path) -> None:
    split = read_split(run)
    assert fold_text(split) == f"{split.fold} of {split.folds}, counted from 0, seed {split.fold_seed}"
    assert fold_text(replace(split, fold=1, methods=(SplitMethod("file"),))) == "1, counted from 0"
    assert fold_text(replace(split, fold="Muster", methods=(SplitMethod("held_out"),))) == "one group validates"
    assert fold_text(replace(split, fold="all", methods=(SplitMethod("all"),))).startswith("none")


def test_an_edited_card_stays_and_is_exported(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/card.md").write_text("my own card")
    with pytest.raises(UserError, match="--overwrite"):
        write_card(tmp_path / "run")
    exported = export_archive([tmp_path / "run"], ExportOptions("fseg", tmp_path / "it.fseg", cases=0, licence="CC0"))
    assert "does not state the licence CC0" in caplog.text
    content = exported.path.read_bytes()
    assert b"Exported weights: best.pt, step 1.\n\nmy own card" in content and b"# CLAIM checklist" in content
    write_card(tmp_path / "run", overwrite=True, licence="CC0")
    assert "CC0" in (tmp_path / "run/card.md").read_text()
    (tmp_path / "run/card.md").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="as UTF-8"):
        card_documents([tmp_path / "run"], None, {})
    with pytest.raises(UserError, match="is no run folder"):
        write_card(tmp_path)
