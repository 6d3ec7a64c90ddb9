"""Judgement about ranks that make no progress: whether it is time to say so, and which rank the others wait for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from fusionseg.distributed.watchdog.beat import Beat


@dataclass(frozen=True)
class Verdict:
    """Message of the rank that judges to all ranks."""

    number: int
    """Counts the verdicts of a start; 0 is none yet."""
    ends: bool
    """Whether all ranks are to end."""
    message: str
    step: int
    """Steps done by the rank that is furthest behind."""

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str | bytes) -> Self:
        return cls(**json.loads(text))


NONE_YET = Verdict(0, ends=False, message="", step=0)


def is_stuck(living: Sequence[Beat]) -> bool:
    """Tell whether no living rank has made progress for the time that its phase may take.

    Args:
        living: the newest heartbeats of the ranks that still send them, at least one.
    """
    return all(beat.idle_s >= beat.warn_s for beat in living)


def is_over(living: Sequence[Beat]) -> bool:
    """Tell whether no living rank has made progress for the time after which the run is ended."""
    return all(beat.idle_s >= beat.end_s for beat in living)


def missed_ranks(living: Sequence[Beat], silent: Sequence[int]) -> list[int]:
    """Find the ranks that the others wait for; none if all stand at the same place.

    A rank without heartbeats is missed. Else those are missed that stand at the earliest place, without waiting for
    others themselves.

    Args:
        living: the newest heartbeats of the ranks that still send them, at least one.
        silent: the ranks that send none.
    """
    if silent:
        return sorted(silent)
    working = [beat for beat in living if not beat.waits] or list(living)
    places = {beat.rank: (-1 if beat.step is None else beat.step, beat.position) for beat in working}
    first = min(places.values())
    missed = sorted(rank for rank, place in places.items() if place == first)
    return [] if len(missed) == len(living) else missed


def describe(
    living: Sequence[Beat], silent: Mapping[int, tuple[Beat | None, str]], *, most: int = 4
) -> tuple[str, int]:
    """Say in a sentence which ranks the others wait for, and where those were.

    Args:
        living: the newest heartbeats of the ranks that still send them, at least one.
        silent: the last heartbeat of each rank that sends none (None: it never sent one), and what is known of its
            process.
        most: ranks that are named.

    Returns:
        The sentence, and the number of steps that the rank furthest behind has done.
    """
    idle = max(beat.idle_s for beat in living)
    beats = {beat.rank: beat for beat in (*living, *(beat for beat, _ in silent.values() if beat is not None))}
    step = min((beat.step or 0 for beat in beats.values()), default=0)
    missed = missed_ranks(living, list(silent))
    start = f"no progress for {idle:.0f} s"
    if len(living) == 1 and not silent:
        return f"{start}: {living[0].name} is in {living[0].place}", step
    if not missed:
        where = living[0].place
        return f"{start}: all {len(living)} ranks are in {where}, and none is behind (network, file system?)", step
    named = []
    for rank in missed[:most]:
        beat, state = silent.get(rank, (beats.get(rank), ""))
        if beat is None:
            named.append(f"rank {rank}, which has not joined the others")
            continue
        seen = f"last seen in {beat.place}, without a sign of life since" if rank in silent else f"in {beat.place}"
        named.append(f"{beat.name}, {seen}" + (f"; {state}" if state else ""))
    more = f"; and {len(missed) - most} more" if len(missed) > most else ""
    others = sorted({beat.place for beat in living if beat.rank not in missed})
    waiting = f"; the others are in {others[0]}" if len(others) == 1 else ""
    return f"{start}: waiting for {'; '.join(named)}{more}{waiting}", step
