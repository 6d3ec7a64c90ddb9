"""Ranks that are slower than the others: all ranks wait for them in every step."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fusionseg.distributed.world import World

log = logging.getLogger("fusionseg")

OWN_PARTS = ("data", "forward", "loss", "backward", "optimizer", "step")
"""Parts of a step in which a rank does not wait for others. `data` holds the augmentation too."""
FACTOR = 1.5
"""A rank is behind if its parts of a step take this many times the median of the other ranks."""
SHARE = 0.1
"""A rank is behind if the others lose at least this share of their step by it."""
# A single slow interval is no reason for a warning. Two of the last four are.
_DECAY, _LEAST_BEHIND, _LEAST_LOST_S = 0.8, 1.5, 1.0
_AGAIN_S = 600.0


@dataclass(frozen=True)
class Straggler:
    """A rank that is behind."""

    rank: int
    phase: str
    """The phase in which it loses most."""
    behind_s: float
    """Seconds of a step that its parts take longer than the median of the other ranks."""
    own_s: float
    """Seconds of a step that its parts take."""


def find_straggler(ranks: Sequence[Sequence[float]], step_s: float) -> Straggler | None:
    """Find the slowest rank, if it is far behind the others.

    Args:
        ranks: for each rank, the seconds of a step in each of `OWN_PARTS`.
        step_s: wall time of a step.
    """
    if len(ranks) < 2:
        return None
    sums = [sum(phases) for phases in ranks]
    rank = max(range(len(ranks)), key=sums.__getitem__)
    others = [phases for number, phases in enumerate(ranks) if number != rank]
    usual = median(sum(phases) for phases in others)
    behind_s = sums[rank] - usual
    if sums[rank] < FACTOR * usual or behind_s < SHARE * step_s:
        return None
    lost = [own - median(column) for own, column in zip(ranks[rank], zip(*others, strict=True), strict=True)]
    return Straggler(rank, OWN_PARTS[lost.index(max(lost))], behind_s, sums[rank])


class Stragglers:
    """The search for a slow rank on logging steps.

    Args:
        world: the ranks.
        hosts: the host of each rank.
    """

    def __init__(self, world: World, hosts: Sequence[str]) -> None:
        self.world = world
        self.hosts = hosts
        self._behind = [0.0] * world.size  # intervals in which each rank was behind, earlier ones count less
        self._lost_s = [0.0] * world.size  # seconds lost by each rank in these intervals
        self._warned: dict[int, float] = {}

    def look(self, step: int, seconds: Mapping[str, float], steps: int, step_s: float) -> dict[str, object]:
        """Compare the ranks over a logging interval. All ranks call this; one exchange of some numbers.

        Args:
            step: the number of steps done.
            seconds: the seconds of a step in each of `OWN_PARTS` on this rank; 0 for a part that is not measured.
            steps: steps of the interval.
            step_s: wall time of a step.

        Returns:
            The field `straggler` of the train record; nothing if no rank is behind.
        """
        if self.world.size == 1:
            return {}
        ranks = self.world.all_gather_object([seconds[part] for part in OWN_PARTS])
        found = find_straggler(ranks, step_s)
        self._behind = [_DECAY * intervals for intervals in self._behind]
        self._lost_s = [_DECAY * lost_s for lost_s in self._lost_s]
        if found is None:
            return {}
        self._behind[found.rank] += 1
        self._lost_s[found.rank] += found.behind_s * steps
        lasts = self._behind[found.rank] >= _LEAST_BEHIND and self._lost_s[found.rank] >= _LEAST_LOST_S
        if self.world.is_rank_zero and lasts:
            self._warn(step, found)
        return {"straggler": {"rank": found.rank, "phase": found.phase, "behind_s": round(found.behind_s, 6)}}

    def _warn(self, step: int, found: Straggler) -> None:
        now = time.monotonic()
        if now - self._warned.get(found.rank, -_AGAIN_S) < _AGAIN_S:
            return
        self._warned[found.rank] = now
        log.warning(
            "step %d: rank %d (%s) is behind: its part of a step takes %.3g s, %.3g s more than that of the others,"
            " most of it in %s; all ranks wait for it",
            step,
            found.rank,
            self.hosts[found.rank],
            found.own_s,
            found.behind_s,
            found.phase,
        )
