"""Train: `python -m fusionseg.train --config C [key.path=value ...]`, or the same under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fusionseg.config import RunConfig, load_config
from fusionseg.entry import DONE, FAILED, run

EXAMPLES = """examples:
  python -m fusionseg.train --config configs/hippocampus_unet.yaml data.root=/data/Task04_Hippocampus
  torchrun --nproc_per_node=2 -m fusionseg.train --config configs/parse_fusion_od.yaml data.root=/data/PARSE
  python -m fusionseg.train --config configs/parse_fusion_od.yaml data.root=/data/PARSE --dry-run

Starting the same command again continues a run that was killed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments -> configuration -> engine; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fusionseg.train",
        description="Train a segmentation network.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that win over the file's")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the run would be, and its cost; train nothing"
    )
    arguments = parser.parse_intermixed_args(argv)
    return run(lambda: _train(load_config(arguments.config, arguments.overrides), arguments.dry_run))


def _train(config: RunConfig, dry_run: bool) -> int:
    if dry_run:
        from fusionseg.engine.dry_run import describe

        print(describe(config, os.environ))
        return DONE
    from fusionseg.engine.session import train

    return DONE if train(config) in ("completed", "plateau") else FAILED


if __name__ == "__main__":
    sys.exit(main())
