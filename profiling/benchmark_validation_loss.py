"""Cost of the validation loss: its share of the processor time of a validation.

Example: python profiling/benchmark_validation_loss.py configs/hippocampus_fast.yaml data.root=/data/Task04 --rounds 5
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from fusionseg.config import load_config
from fusionseg.distributed.world import World
from fusionseg.runs.folder import RunFolder, run_folder_of
from fusionseg.training.opening import open_run_folder
from fusionseg.training.start import build_trainer
from fusionseg.training.tasks.segmentation_validation import Validator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_intermixed_args()
    of_losses: list[float] = []
    loss_of_volume = Validator.loss_of_volume

    def timed(*inputs: Any) -> float:
        begun = time.process_time()
        loss = loss_of_volume(*inputs)
        of_losses.append(time.process_time() - begun)
        return loss

    Validator.loss_of_volume = timed  # type: ignore[method-assign,assignment]
    with TemporaryDirectory() as output:
        config = load_config(arguments.config, [*arguments.overrides, f"output={output}"])
        world = World.from_environment(config.device, config.distributed.timeout_s)
        folder = RunFolder(run_folder_of(config))
        trainer = build_trainer(config, world, folder, open_run_folder(folder, config, world, 0.0, None))
        shares = []
        for _ in range(arguments.rounds):
            of_losses.clear()
            begun = time.process_time()
            trainer.validate()
            shares.append(sum(of_losses) / (time.process_time() - begun))
        folder.unlock()
    spread = f"{min(shares):.2%} to {max(shares):.2%} in {len(shares)} validations of {len(of_losses)} cases"
    print(f"the loss takes {median(shares):.2%} of the processor time of a validation ({spread})")


if __name__ == "__main__":
    main()
