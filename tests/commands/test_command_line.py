"""The command line: suggestions, verbosity, and messages of wrong requests."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fusionseg.cli
import fusionseg.train
from fusionseg.commands import base
from fusionseg.commands.base import Parser
from fusionseg.commands.training import TRAIN, continuing_command
from fusionseg.utils.errors import TrainingStopped, UserError
from fusionseg.utils.exit_status import FAILED, WRONG_REQUEST, run
from fusionseg.utils.logs import Verbosity, set_verbosity

ROOT = Path(__file__).parents[2]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the program says of a wrong command line, whose exit status is 2."""
    with pytest.raises(SystemExit) as ended:
        fusionseg.cli.main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["predcit", "runs/x"], "did you mean predict?"),
        (["hlep"], "did you mean help?"),
        (["--quiet", "trian"], "did you mean train?"),
        (["help", "evalaute"], "did you mean evaluate?"),
        (["train", "--cofnig", "demo"], "did you mean --config?"),
        (["status", "runs", "--wtach=3"], "did you mean --watch?"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(
    capsys: pytest.CaptureFixture[str], words: list[str], suggested: str
) -> None:
    assert suggested in refused(capsys, *words)


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "zzz")
    assert "'zzz'" in said and "did you mean" not in said
    assert "train, pretrain, " in said


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_training_has_one_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """`fusionseg train`, `fusionseg help train` and `python -m fusionseg.train` differ in the program's name alone."""
    texts = []
    for words in (["help", command], [command, "--help"]):
        with pytest.raises(SystemExit):
            fusionseg.cli.main(words)
        texts.append(capsys.readouterr().out)
    module = fusionseg.train if command == "train" else pytest.importorskip("fusionseg.pretrain")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    own = capsys.readouterr().out.split("\n\n", 1)[1]
    assert texts[0] == texts[1]
    assert texts[0].split("\n\n", 1)[1] == own


@pytest.mark.parametrize("words", [["--quiet", "models", "--verbose"], ["models", "--quiet", "--verbose"]])
def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert "--quiet and --verbose" in refused(capsys, *words)


def test_a_configuration_and_the_paths_in_it_are_refused_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    words = ["--config", "demo", "train.stpes=3", "data.root=/nowhere", f"output={file}", "init_from=/no/weights"]
    assert fusionseg.train.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: train.stpes")
    for problem in ("data.root=/nowhere: does not exist", f"output: {file}", "init_from=/no/weights: does not exist"):
        assert problem in said


def test_independent_problems_of_a_start_are_listed_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, balls: Path, tiny_config: Callable
) -> None:
    from fusionseg.config import dump_config

    file, config = tmp_path / "file", tmp_path / "tiny.yaml"
    file.touch()
    config.write_text(dump_config(tiny_config(balls, file)))
    words = ["--config", str(config), "profile.with=nsys", "profile.steps=[1,2]", "data.fold=7"]
    assert fusionseg.train.main(words) == 2
    said = capsys.readouterr().err
    assert f"output: {file}/tiny: cannot be written" in said and "data.fold=7" in said and "profile.with" in said
    words.append(f"output={tmp_path / 'runs'}")
    assert fusionseg.train.main([*words, "device=cuda", "data.root=/nowhere"]) == 2
    said = capsys.readouterr().err
    assert "device: cuda" in said and "data.root=/nowhere: does not exist" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("environment", "prefix"),
    [
        ({}, "error: "),
        ({"RANK": "0"}, "error: "),
        ({"RANK": "3"}, "rank 3: error: "),
        ({"RANK": "x"}, "error: "),
        ({"RANK": "", "SLURM_PROCID": "2"}, "rank 2: error: "),
        ({"SLURM_PROCID": "12"}, "rank 12: error: "),
    ],
    ids=str,
)
def test_a_message_names_its_rank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], prefix: str
) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def work() -> int:
        raise UserError(["first", "second"])

    assert run(work) == WRONG_REQUEST
    assert capsys.readouterr().err == f"{prefix}first\nsecond\n"


def test_torchrun_is_told_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

    def stop() -> int:
        raise TrainingStopped("out of memory")

    def fail() -> int:
        raise ZeroDivisionError("a bug")

    assert run(stop) == FAILED
    assert json.loads(file.read_text())["message"]["message"] == "stopped: out of memory"
    with pytest.raises(ZeroDivisionError):
        run(fail)
    assert "ZeroDivisionError: a bug" in json.loads(file.read_text())["message"]["message"]


def test_torchrun_prints_the_cause_last() -> None:
    """Its own block ends with the message of the rank that failed first."""
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m", "fusionseg.train"]
    ended = subprocess.run(
        [sys.executable, "-m", *command, "--config", "demo", "train.stpes=3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 1
    block = ended.stderr.rpartition("Root Cause")[2]
    assert "error: train.stpes" in block and "did you mean steps?" in block
    assert "To enable traceback" not in block


def test_check_takes_the_keys_that_its_messages_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    root = make_dataset(tmp_path / "data", cases=1)
    content = json.loads((root / "dataset.json").read_text())
    del content["labels"]
    (root / "dataset.json").write_text(json.dumps(content))
    words = ["check", str(root), "--workers", "1"]
    assert fusionseg.cli.main(words) == 2
    assert "data.labels=[background,tumour]" in capsys.readouterr().err
    assert fusionseg.cli.main([*words, "data.labels=[background,tumour]"]) == 0
    assert "1 case, 0 errors" in capsys.readouterr().out
    assert fusionseg.cli.main([*words, "data.lables=[a,b]"]) == 2
    assert "did you mean labels?" in capsys.readouterr().err
    assert fusionseg.cli.main([*words, "train.steps=1"]) == 2
    assert "train.steps=1" in capsys.readouterr().err


def test_a_finished_run_says_so_before_it_loads_anything(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, balls: Path, tiny_config: Callable
) -> None:
    from fusionseg.config import dump_config

    config, run = tmp_path / "tiny.yaml", tmp_path / "runs/tiny"
    config.write_text(dump_config(tiny_config(balls, tmp_path / "runs")))
    words = ["--config", str(config)]
    assert fusionseg.train.main(words) == 0
    capsys.readouterr()

    again = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fusionseg.train", *words, "data.root=/gone", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert again.returncode == 0
    for said in (
        f"{run}: this run has finished (completed at step 4)",
        f"fusionseg evaluate {run}",
        "fusionseg predict",
    ):
        assert said in again.stderr
    imported = {line.split("|")[-1].strip() for line in again.stderr.splitlines() if "|" in line}
    assert "fusionseg.config" in imported and not imported & {"torch", "numpy", "nibabel"}

    # What may not be the same training goes the long way.
    assert fusionseg.train.main([*words, "train.steps=6"]) == 2
    assert "train.steps: 4 -> 6" in capsys.readouterr().err
    (run / "checkpoints/step_00000004.pt").unlink()
    assert fusionseg.train.main(words) == 0
    assert "resuming from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "python -m fusionseg.train --config {config} 'train={{steps: 400}}'"),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc_per_node=2 -m fusionseg.train --config {config} 'train={{steps: 400}}'",
        ),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "on all nodes"),
    ],
    ids=["alone", "torchrun", "nodes"],
)
def test_the_command_that_continues_a_run(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], command: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = argparse.Namespace(
        config="c.yaml",
        overrides=["train={steps: 400}"],
        extend=False,
        branch=None,
        parser=Parser(prog="python -m fusionseg.train"),
    )
    assert command.format(config="c.yaml") in continuing_command(TRAIN, arguments)


@pytest.mark.parametrize(
    ("verbosity", "rank", "shown"),
    [(Verbosity.NORMAL, "0", "loading torch ..."), (Verbosity.QUIET, "0", ""), (Verbosity.NORMAL, "1", "")],
    ids=str,
)
def test_slow_imports_are_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verbosity: Verbosity, rank: str, shown: str
) -> None:
    monkeypatch.setattr(base, "_PATIENCE_S", 0.01)
    monkeypatch.setenv("RANK", rank)
    set_verbosity(verbosity)
    try:
        with base.loading():
            time.sleep(0.3)
        with base.loading("nothing slow"):
            pass
    finally:
        set_verbosity(Verbosity.NORMAL)
    said = capsys.readouterr().err
    assert (shown in said and "nothing slow" not in said) if shown else said == ""


def test_verbose_shows_where_an_error_was_raised(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "demo", "train.stpes=3"]
    assert fusionseg.train.main(words) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert fusionseg.train.main([*words, "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
