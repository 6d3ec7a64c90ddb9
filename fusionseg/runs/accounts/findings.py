"""Known troubles of a run, found in its records, its history and its log, with the remedy of each."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from fusionseg.runs.accounts.account import Account, read_account
from fusionseg.runs.accounts.faults import describe_fault, read_faults
from fusionseg.runs.disk.failures import remedy_of
from fusionseg.runs.json_files import read_regular
from fusionseg.runs.paths import RunPaths, checkpoints_of, size_of
from fusionseg.runs.records import Record, RecordKind, RunStatus, has_finished

_DATA_SHARE, _SKIPPED_SHARE, _GOODPUT = 0.2, 0.05, 0.7
_LOG_LINES = 2_000
_LINE = re.compile(r"^\S+ \S+ (WARNING|ERROR) (.*)$")

_END_REMEDIES = (
    (r"out of memory", "the message names the settings that save memory; fusionseg plan finds a patch that fits"),
    (r"non-finite loss", "lower optim.lr, set train.clip_grad, or look at the named cases with fusionseg check"),
    (r"could not be written|No space left|Disk quota", "free some disk space; the same command continues the run"),
    (r"no progress for", "read the stacks in the folder hangs; look at the named host, its file system and network"),
    (r"Connection closed by peer|Connection reset|Broken pipe|NCCL|gloo",
     "another rank ended first: look for its message above this one; torchrun --max-restarts continues by itself"),
)  # fmt: skip


@dataclass(frozen=True)
class Trouble:
    """A known trouble."""

    what: str
    """Trouble, with the numbers that show it."""
    remedy: str


def find_troubles(run: Path, account: Account | None = None) -> list[Trouble]:
    """Look for the known troubles of a run, also while it trains.

    Args:
        run: the run folder.
        account: of the run; None reads it.
    """
    account = account or read_account(run)
    train = [record for record in account.records if record["kind"] == RecordKind.TRAIN]
    val = [record for record in account.records if record["kind"] == RecordKind.VAL]
    return [
        *_end(account),
        *_starts(account),
        *_numbers(train),
        *_speed(train),
        *_validation(val),
        *_hangs(run, train),
        *_disk(run, account),
        *_log_lines(run),
    ]


def _end(account: Account) -> list[Trouble]:
    end = account.end
    if end is None or end["status"] not in (RunStatus.FAILED, RunStatus.HUNG):
        return []
    remedy = next(
        (remedy for text, remedy in _END_REMEDIES if re.search(text, end["reason"])), "see log.txt of the run"
    )
    return [Trouble(f"the last start {end['status']} at step {end['step']}: {end['reason']}", remedy)]


def _starts(account: Account) -> Iterator[Trouble]:
    starts = account.starts
    for one, two, three in zip(starts, starts[1:], starts[2:], strict=False):
        if (
            one.reached == two.reached == three.reached
            and one.step == three.step
            and not has_finished(three.status or "")
        ):
            yield Trouble(
                f"three starts in a row ended at step {three.reached} without a later checkpoint",
                "lower checkpoint.every, or raise the time limit of the job: each start must reach a checkpoint",
            )
            break
    repeating = [one for one, other in pairwise(starts) if one.reached > other.step]
    if account.repeated_steps and account.goodput is not None and account.goodput < _GOODPUT:
        yield Trouble(
            f"{account.repeated_steps} steps were trained twice, because {len(repeating)} of {len(starts)} starts"
            " ended after their last checkpoint",
            "lower checkpoint.every"
            + (
                "; let the scheduler send SIGUSR2 or SIGTERM before it kills (signal_s of the profile)"
                if any(start.status is None for start in repeating)
                else ""
            ),
        )


def _numbers(train: list[Record]) -> Iterator[Trouble]:
    if not train:
        return
    last = train[-1]
    skipped = last.get("skipped") or 0
    if last["step"] and skipped / last["step"] > _SKIPPED_SHARE:
        yield Trouble(
            f"{skipped} of {last['step']} steps were skipped, because the loss or the gradient was not finite",
            "lower optim.lr, or set train.precision to bf16 or fp32",
        )
    losses = [record["loss"] for record in train if record.get("loss") is not None]
    if len(losses) >= 20 and fmean(losses[-5:]) > 2 * min(losses[: len(losses) // 2]) and min(losses) > 0:
        yield Trouble(
            f"the loss has risen to {fmean(losses[-5:]):.3g} from {min(losses):.3g}",
            "lower optim.lr, or set train.clip_grad",
        )


def _speed(train: list[Record]) -> Iterator[Trouble]:
    shares = [r["data_s"] / r["step_s"] for r in train[-20:] if r.get("data_s") is not None and r.get("step_s")]
    if shares and median(shares) > _DATA_SHARE:
        yield Trouble(
            f"the data takes {median(shares):.0%} of a step",
            "keep the cases on the device (cache.placement), or take fewer changes in augment",
        )
    times = [record["step_s"] for record in train if record.get("step_s")]
    if len(times) >= 20 and median(times[-5:]) > 2 * median(times[: len(times) // 2]):
        yield Trouble(
            f"a step takes {median(times[-5:]):.3g} s, and took {median(times[: len(times) // 2]):.3g} s before",
            "look for other programs on the machine, and for the clocks and temperature in gpu.csv",
        )


def _validation(val: list[Record]) -> list[Trouble]:
    dice = [record["dice"] for record in val if record.get("dice") is not None]
    if len(dice) >= 3 and max(dice) == 0:
        return [
            Trouble(
                f"the Dice of all {len(dice)} validations is 0",
                "check labels and intensities with fusionseg check; train longer, or raise data.foreground",
            )
        ]
    names = Counter(
        name for record in val[-3:] for name, value in (record.get("dice_per_class") or {}).items() if value == 0
    )
    missing = sorted(name for name, count in names.items() if count == len(val[-3:]) == 3)
    if missing:
        return [
            Trouble(
                f"the last three validations found nothing of {', '.join(missing)}",
                "give the class more patches (data.sampling.class_weights), or a loss that weighs rare classes",
            )
        ]
    return []


def _hangs(run: Path, train: list[Record]) -> Iterator[Trouble]:
    if RunPaths(run).hangs.is_dir():
        yield Trouble(
            f"there were times without any progress: {RunPaths(run).hangs}",
            "the first line of each block in its files names the rank that was missed",
        )
    slow = Counter((r["straggler"]["rank"], r["straggler"]["phase"]) for r in train[-50:] if _is_straggler(r))
    for (rank, phase), count in slow.most_common(1):
        if count > len(train[-50:]) / 4:
            yield Trouble(
                f"rank {rank} was behind the others in {count} of the last {len(train[-50:])} logging intervals,"
                f" most in {phase}",
                "look for other programs, clocks and the disk of its host; srun fusionseg doctor compares hosts",
            )


def _disk(run: Path, account: Account) -> Iterator[Trouble]:
    """Faults of the disk, and a disk that has no room for one more checkpoint."""
    for fault in read_faults(run)[-3:]:
        yield Trouble(describe_fault(fault, account.starts), remedy_of(fault.reason))
    if account.end is not None and has_finished(account.end["status"]):
        return
    with suppress(OSError):
        sizes = [size_of(path) for _, path in checkpoints_of(run)]
        free = shutil.disk_usage(run).free
        if sizes and free < max(sizes):
            yield Trouble(
                f"the disk has {free / 1e6:.0f} MB free, and a checkpoint takes {max(sizes) / 1e6:.0f} MB",
                "free space on the disk, or lower checkpoint.keep",
            )


def _is_straggler(record: Record) -> bool:
    found = record.get("straggler")
    return isinstance(found, dict) and isinstance(found.get("rank"), int) and isinstance(found.get("phase"), str)


def _log_lines(run: Path) -> list[Trouble]:
    """Warnings and errors that stand in the log again and again."""
    try:
        text = read_regular(RunPaths(run).log, tail=True).decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = (_LINE.match(line) for line in text.splitlines()[-_LOG_LINES:])
    # Numbers differ between two messages about the same thing.
    counts = Counter(re.sub(r"\d[\d.]*", "N", match[2]) for match in lines if match)
    return [
        Trouble(f"{count} times in log.txt: {text}", "the message says what to do")
        for text, count in counts.most_common(3)
        if count >= 3
    ]
