"""Pre-train: `python -m fusionseg.pretrain --config C [key.path=value ...]`, or the same under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fusionseg.commands.training import training_command

EXAMPLES = """examples:
  torchrun --nproc_per_node=2 -m fusionseg.pretrain --config mae_swin data.root=/data/scans
  python -m fusionseg.pretrain --config mae_swin data.root=/data/CT \\
    'data.also=[{root: /data/MRI, intensity: {mode: zscore}}]' pretrain.ratio=0.75

Labels are not needed. The network starts from the encoder by
  python -m fusionseg.train --config ... init_from=runs/mae_swin"""


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-train an encoder; the exit status."""
    return training_command(
        "fusionseg.pretrain",
        "Pre-train the encoder of a network by masked reconstruction, without labels.",
        EXAMPLES,
        argv,
        pretraining=True,
    )


if __name__ == "__main__":
    sys.exit(main())
