"""Train: `python -m fusionseg.train --config C [key.path=value ...]`, or the same under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fusionseg.commands.training import training_command

EXAMPLES = """examples:
  python -m fusionseg.train --config hippocampus_unet data.root=/data/Task04_Hippocampus
  torchrun --nproc_per_node=2 -m fusionseg.train --config parse_fusion_od data.root=/data/PARSE
  python -m fusionseg.train --config parse_fusion_od data.root=/data/PARSE --dry-run

Starting the same command again continues a run that was killed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train a segmentation; the exit status."""
    return training_command("fusionseg.train", "Train a segmentation network.", EXAMPLES, argv, pretraining=False)


if __name__ == "__main__":
    sys.exit(main())
