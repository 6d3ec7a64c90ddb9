"""The demonstration: a training that is started without a configuration, on data that it makes itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import fusionseg.train
from end_to_end.runs import Program, rank_environments, records, snapshot
from fusionseg.commands import demonstration
from fusionseg.utils.logs import start_logging

TINY = (
    "data.patch=[16,16,16]", "model={name: unet, channels: [4, 8]}", "device=cpu", "train.steps=2", "train.threads=1",
    "data.workers=1", "validate.every=2", "log.tensorboard=false",
)  # fmt: skip


def few_small_cases() -> None:
    """Five volumes of 48^3 voxels in the place of twenty of 96^3."""
    demonstration.CASES, demonstration.SIZE = 5, 48


def train_few(words: tuple[str, ...]) -> None:
    few_small_cases()
    sys.exit(fusionseg.train.main(words))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in; `cache` in it is the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demonstration, "CASES", 5)
    monkeypatch.setattr(demonstration, "SIZE", 48)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the demonstration, made once for this file; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstration, "CASES", 5)
        patch.setattr(demonstration, "SIZE", 48)
        root = tmp_path_factory.mktemp("cache") / "fusionseg" / "synth_5x48_seed0"
        demonstration.make_data(root)
    return root


def test_two_ranks_train_on_data_that_rank_zero_makes(program: Program, place: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(place / "cache")}  # the warm interpreter has the environment of its own start
    started = [program.function(train_few, (TINY,), {**environ, **cache}, place) for environ in rank_environments(2)]
    first, second = (rank.wait().expect(0) for rank in started)
    lines = first.err.splitlines()
    assert "demonstration" in lines[0] and "synthetic" in lines[0]
    assert str(place / "cache/fusionseg/synth_5x48_seed0") in lines[1] and "runs/demo" in lines[1]
    assert "--config" in lines[2] and "data.root=" in lines[2]
    assert "demonstration" not in second.err
    assert records(place / "runs/demo")[-1]["status"] == "completed"
    assert demonstration.is_complete(place / "cache/fusionseg/synth_5x48_seed0")

    data = snapshot(place / "cache")
    again = program.function(train_few, ((*TINY, "name=second", "--quiet"),), cache, place).wait().expect(0)
    assert snapshot(place / "cache") == data
    assert "demonstration" not in again.err and "completed" in again.err


def test_data_of_ones_own_need_no_synthetic_data(place: Path, balls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fusionseg.train.main([*TINY, f"data.root={balls}", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "demonstration" in said.err and str(balls) in said.err
    assert "4 to train, 1 to validate" in said.out
    assert not (place / "cache/fusionseg").exists()


@pytest.mark.parametrize("missing", ["dataset.json", "imagesTr/synth_003.nii.gz"])
def test_an_interrupted_data_set_is_completed(place: Path, made: Path, missing: str) -> None:
    root = place / "cache" / "data"
    demonstration.make_data(root)
    whole = snapshot(root)
    assert whole == snapshot(made)
    (root / missing).unlink()
    if missing == "dataset.json":
        (root / ".fusionseg_synth.json").write_text('{"version": 1, "seed": 0, "size": 48, "cases": 5}')
    assert not demonstration.is_complete(root)
    demonstration.make_data(root)
    assert snapshot(root) == whole


def test_a_cache_folder_that_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    (place / "cache").touch()
    monkeypatch.setattr("tempfile.tempdir", str(place / "tmp"))
    root = demonstration.data_folder()
    assert root == place / f"tmp/fusionseg-{os.getuid()}/synth_5x48_seed0"
    message = capsys.readouterr().err
    assert f"{place}/cache" in message and "XDG_CACHE_HOME" in message
    (place / "tmp").touch()
    with pytest.raises(demonstration.UserError, match="XDG_CACHE_HOME"):
        demonstration.data_folder()


def test_a_complete_cache_is_only_read(place: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.parents[1]))
    before = snapshot(made.parents[1])
    assert demonstration.data_folder() == made
    demonstration.make_data(made)
    assert snapshot(made.parents[1]) == before
