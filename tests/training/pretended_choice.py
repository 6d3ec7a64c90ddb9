"""Program of a test: `train.micro_batch: auto` on the pretended GPU, whose memory holds micro-batches up to a limit.

    python pretended_choice.py CONFIG LIMIT RANKS key.path=value ...

It prints the number that is chosen, and the sizes of the micro-batches of the trials and of one training step.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from fusionseg.performance.pretended_gpu.library import is_loaded, restart_with_pretended_gpu


def main(file: str, limit: int, ranks: int, overrides: list[str]) -> None:
    from fusionseg.config import load_config
    from fusionseg.performance.pretended_gpu.pretended_run import pretended_run
    from fusionseg.training.step import TrainStep

    run, sizes = TrainStep._run_micro_step, []

    def step(self: TrainStep, micro: int, frozen: Any, losses: Any, casts: Any, batch: Any) -> None:
        image = batch.inputs[0]
        if not image.is_meta:  # that of the estimate is
            assert image.device.type == "cuda"
            sizes.append(len(image))
            if len(image) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        run(self, micro, frozen, losses, casts, batch)

    TrainStep._run_micro_step = step  # type: ignore[method-assign]
    with pretended_run(load_config(file, overrides), (7, 5), ranks) as pretended:
        pretended.step()
        print(json.dumps({"chosen": pretended.trainer.config.train.micro_batch, "sizes": sizes}))


if __name__ == "__main__":
    if not is_loaded():
        sys.exit(restart_with_pretended_gpu())
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
