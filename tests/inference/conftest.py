"""A run of one step, for tests that need one and not what it has learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusionseg import train
from fusionseg.config import RunConfig, dump_config

TinyRun = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Path],
    tiny_config: Callable[..., RunConfig],
) -> TinyRun:
    """`tiny_run(classes=3, channels=1)` -> its folder, trained once."""
    made: dict[tuple[int, int], Path] = {}

    def start(classes: int = 3, channels: int = 1) -> Path:
        if (classes, channels) not in made:
            folder = tmp_path_factory.mktemp("tiny_run")
            root = make_dataset(folder / "Task93_run", cases=2, classes=classes, channels=channels)
            changes = {"data": {"folds": 2}, "train": {"steps": 1}, "validate": {"every": 1}}
            config = folder / "config.yaml"
            config.write_text(dump_config(tiny_config(root, folder, **changes)))
            assert train.main(["--config", str(config)]) == 0
            made[classes, channels] = folder / "tiny"
        return made[classes, channels]

    return start
