"""The same configuration gives the same training on any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.catalogue import assert_seen

from end_to_end.conftest import Train, arguments
from end_to_end.runs import TRAIN, Program, assert_same_training, rank_environments
from fusionseg.distributed.launch import MPI_VARIABLES

RUN = (
    "train.steps=20",
    "train.precision=fp32",
    "train.micro_batch=1",
    "log.samples=true",
    "validate.every=10",
    "data.samples_per_volume=1",
    "augment={preset: nnunet, noise: {prob: 0.5}, rotate: {prob: 0.5}, shift_intensity: {prob: 0.5}}",
    "augment.cutout={prob: 0.5}",
)
SMALL, LARGE = (*RUN, "train.global_batch=2"), (*RUN, "train.global_batch=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("topologies")


@pytest.fixture(scope="module")
def alone_small(train: Train, folder: Path) -> Path:
    """Global batch 2: one process, accumulation 2."""
    assert "1 rank x accumulation 2" in train(folder / "alone_small", *SMALL).expect(0).err
    return folder / "alone_small"


@pytest.fixture(scope="module")
def alone_large(train: Train, folder: Path) -> Path:
    """Global batch 4: one process, accumulation 4."""
    assert "1 rank x accumulation 4" in train(folder / "alone_large", *LARGE).expect(0).err
    return folder / "alone_large"


@pytest.mark.fault("other-number-of-ranks")
def test_two_processes_under_torchrun(program: Program, config_file: Path, folder: Path, alone_small: Path) -> None:
    """Global batch 2: accumulation 2 on one process, and 1 on each of two."""
    ended = program.torchrun(2, *arguments(config_file, folder / "pair", *SMALL)).wait()

    assert_seen("other-number-of-ranks", ended, folder / "pair")
    assert_same_training(folder / "pair", alone_small)


def test_two_processes_with_accumulation(program: Program, config_file: Path, folder: Path, alone_large: Path) -> None:
    """Global batch 4: accumulation 4 on one process, and 2 on each of two. They have the variables of mpirun."""
    mpirun = [
        {"MASTER_PORT": env["MASTER_PORT"], **dict(zip(MPI_VARIABLES[0], (rank, "2", rank, "2"), strict=True))}
        for rank, env in zip("01", rank_environments(2), strict=True)
    ]
    words = arguments(config_file, folder / "pair_accumulates", *LARGE)
    ranks = [program.warm(TRAIN, *words, env=env) for env in mpirun]
    ended = [rank.wait().expect(0) for rank in ranks]

    assert "global 4 = micro-batch 1 x 2 ranks x accumulation 2" in ended[0].err
    assert_same_training(folder / "pair_accumulates", alone_large)


def test_more_ranks_than_validation_cases(program: Program, config_file: Path, folder: Path, alone_large: Path) -> None:
    """Four ranks and one validation case: three ranks have none, and must not block."""
    ranks = program.ranks(4, *arguments(config_file, folder / "four", *LARGE))
    for rank in ranks:
        rank.wait().expect(0)

    assert_same_training(folder / "four", alone_large)


def test_every_rank_ends(program: Program, config_file: Path, tmp_path: Path) -> None:
    """No rank may hang when it leaves the process group (once one in seven runs did)."""
    for number in range(8):
        ranks = program.ranks(2, *arguments(config_file, tmp_path / f"run{number}", *LARGE, "train.steps=4"))
        for rank in ranks:
            rank.wait(60).expect(0)


def test_larger_micro_batches(train: Train, folder: Path, alone_large: Path) -> None:
    ended = train(folder / "wide", *LARGE, "train.micro_batch=4").expect(0)

    assert "global 4 = micro-batch 4 x 1 rank x accumulation 1" in ended.err
    assert_same_training(folder / "wide", alone_large)


def test_a_cache_on_disk(train: Train, folder: Path, alone_large: Path) -> None:
    """The cases stay on disk, and threads read ahead: the samples, and so the training, are the same."""
    ended = train(folder / "disk", *LARGE, "cache.placement=disk").expect(0)

    assert "cases on disk: read ahead" in ended.err
    assert_same_training(folder / "disk", alone_large)
    assert "device: disk" in (folder / "disk" / "config.yaml").read_text()
