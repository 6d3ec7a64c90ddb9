"""Fixtures that start the program, and trained runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from end_to_end.runs import TRAIN, Ended, Program
from fusionseg.config import dump_config

Train = Callable[..., Ended]

# Settings of a training that learns `balls` in about 1.5 seconds.
LEARNING = (
    "train.steps=120",
    "train.micro_batch=2",
    "optim.lr=0.02",
    "schedule={name: cosine, warmup: 5}",
    "validate.every=30",
    "checkpoint.every=20",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Limit the warm interpreter and its processes to one thread; it inherits the variable at its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Starts processes of the program."""
    return Program(tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="session")
def config_file(balls: Path, tiny_config: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file of a tiny run on `balls`; the tests add overrides on the command line."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    prepared = tmp_path_factory.mktemp("prepared") / "balls"
    path.write_text(dump_config(tiny_config(balls, path.parent / "runs", data={"prepared": str(prepared)})))
    return path


@pytest.fixture(scope="session")
def train(program: Program, config_file: Path) -> Train:
    """`train(folder, "key=value", ...)`: train in `folder` to the end."""

    def start(run: Path, *overrides: str) -> Ended:
        return program.warm(TRAIN, *arguments(config_file, run, *overrides)).wait()

    return start


@pytest.fixture(scope="session")
def trained(program: Program, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `python -m fusionseg.train` that has learned `balls`."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    options = (*LEARNING, "log={every: 1, samples: true, tensorboard: true}")
    program.fresh("-m", TRAIN, *arguments(config_file, run, *options)).wait().expect(0)
    return run


@pytest.fixture(scope="session")
def trained_resampled(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the same data with resampling and cropping."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("data.spacing=[1.1, 1.1, 1.2]", "data.crop_foreground={threshold: 170, margin: 3}")
    run = folder / "trained_resampled"
    train(run, *LEARNING, *options, "model.channels=[6, 12]", f"data.prepared={folder / 'prepared'}").expect(0)
    return run


def arguments(config: Path, run: Path, *overrides: str) -> list[str]:
    """Return the command line of a run in the folder `run`."""
    return ["--config", str(config), f"output={run.parent}", f"name={run.name}", *overrides]
