"""Generator of docs/reliability.md from the catalogue: python tests/faults/page.py > docs/reliability.md"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from faults.catalogue import FAULTS, KINDS, STEPS, Fault

HEAD = """# What happens to a run if ...

For jobs that run for days on machines that you do not own: what a fault does to a training, what you see, what is
lost, and what to do. Each fault has a name and at least one test that causes it, in real processes wherever that is
possible, and compares exit status, messages and status of the run with this page.

## What is promised

- **At most the steps since the last checkpoint are lost**, and they are trained again with the same samples: on a CPU
  the records and weights are then bit for bit those of a run that nobody has disturbed. `checkpoint.every` bounds them.
  The training goes on while a checkpoint is being written; a kill in this time goes back to the checkpoint before.
- **Nothing is silent.** A run that ends has a status and a reason (`metrics.jsonl`, `fusionseg status RUN`), or no end
  record, which says that it was killed. A run that goes on without something, such as pictures, warns of it once.
- **The same command continues.** Start it again, by hand, by `torchrun --max-restarts`, or by the scheduler. Nothing
  needs to be repaired or deleted first, unless the message says so.
- **Files are whole.** Checkpoints, configuration and masks appear whole or not at all. Every byte of a checkpoint is
  verified before it is used; a damaged one is skipped for the one before it (`checkpoint.keep`, 3 by default).
- **A wrong request changes nothing**: one message with all problems, exit status 2, and the run folder as it was.

## Bounds of the loss

- `checkpoint.every`: steps between two checkpoints. They are written beside the training.
- A signal before the end: SIGTERM, SIGUSR2, SIGINT and SIGHUP save at the next step, and nothing is lost. `signal_s` of
  a cluster profile lets SLURM send one before the time limit.
- `torchrun --max-restarts=3` brings killed ranks back; cluster profiles with `launcher: torchrun` do so.
- `distributed.hang_end_s` (900): seconds without progress after which the run ends, so that a job is queued again.
- `train.spikes.action=rewind` goes back before a spike of the loss, and past its samples.

## The state of a run

```
fusionseg status RUN     # where it stands, why each start ended, what restarts have cost, the next command
fusionseg doctor RUN     # known troubles in its log and records, each with its remedy
```

Exit status: 0 the training is done; 2 the request is wrong; 1 any other end, also an interruption; 137 (128 + 9) it was
killed.
"""
FOOT = """
This page is made from the catalogue in `tests/faults`: `python tests/faults/page.py > docs/reliability.md`.
"""


def render() -> str:
    """Render the page as Markdown."""
    parts = [HEAD]
    for kind, title in KINDS.items():
        rows = [_row(fault) for fault in FAULTS.values() if fault.kind == kind]
        head = "| fault | what you see | lost | what to do |\n|---|---|---|---|\n"
        parts.append(f"## {title}\n\n{head}{''.join(rows)}")
    return "\n".join(parts) + FOOT


def _row(fault: Fault) -> str:
    cells = (f"`{fault.name}` {fault.happens}", _seen(fault), _lost(fault), fault.do)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _seen(fault: Fault) -> str:
    parts = [fault.sees.removesuffix(".")] if fault.sees else []
    parts += [f"exit status {fault.exit}"] if fault.exit is not None else []
    parts += [f"status {fault.status}"] if fault.status not in (None, "none") else []
    parts += [f"`{words}`" for words in fault.says]
    parts += [f"`fusionseg status`: {', '.join(f'`{words}`' for words in fault.shows)}"] if fault.shows else []
    parts += [f"in the records: {', '.join(f'`{words}`' for words in fault.records)}"] if fault.records else []
    return "; ".join(parts)


def _lost(fault: Fault) -> str:
    lost = "the steps since the last checkpoint" if fault.lost == STEPS else "nothing"
    return f"{lost}{f' of the training; {fault.also_lost}' if fault.also_lost else ''}"


if __name__ == "__main__":
    print(render(), end="")
