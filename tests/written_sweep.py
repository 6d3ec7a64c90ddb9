"""A sweep over networks, seeds and folds, written by hand with the scores of all cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from written_runs import write_cases, write_run

NAMES = tuple(f"c{number:02}" for number in range(40))
SHIFTS = {"unet": 0.0, "resunet": 0.02, "small": -0.1}


def score(network: str, case: str, label: str, seed: int) -> float:
    """A Dice that a case has with every network, with a shift for each network and some noise."""
    number = NAMES.index(case)
    noise = np.random.default_rng([number, seed, len(network), len(label)]).normal(0, 0.01)
    return float(0.8 + 0.1 * np.sin(number) + SHIFTS[network] + noise - (0.05 if label == "b" else 0))


def write_sweep(folder: Path, networks: tuple[str, ...] = ("unet", "resunet"), seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Five folds of each network and seed, with evaluations of two classes."""
    for network in networks:
        for seed in seeds:
            for fold in range(5):
                run = write_run(
                    folder / f"{network}-seed{seed}-fold{fold}",
                    [0.5],
                    cases=NAMES,
                    labels=("background", "a", "b"),
                    model={"name": "resunet" if network == "resunet" else "unet"},
                    optim={"lr": 1e-2 if network == "small" else 1e-3},
                    data={"root": "/data", "fold": fold},
                    seed=seed,
                )
                write_cases(
                    run, [row_of(network, case, label, seed) for case in NAMES[fold::5] for label in ("a", "b")]
                )
    return folder


def row_of(network: str, case: str, label: str, seed: int, **changed: Any) -> dict[str, Any]:
    """A row of cases.csv."""
    dice = score(network, case, label, seed)
    row = {
        "case": case,
        "label": label,
        "dice": dice,
        "hd95_mm": 10 - 5 * dice,
        "voxels_true": 5,
        "voxels_predicted": 6,
    }
    return {**row, "trained_on": "no", "volume_ml_error": dice - 0.7, **changed}
