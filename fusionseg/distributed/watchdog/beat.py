"""Heartbeat of a rank: what it does, and for how long it has done so."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from fusionseg.observability.ranges import IN_STEP, PhaseTimer, phase_timer


@dataclass
class Progress:
    """The place of the training in this process, which the thread of the watchdog reads.

    Args:
        timer: the phase timer of the training's thread.
    """

    timer: PhaseTimer = field(default_factory=phase_timer)
    step: int | None = None
    """Steps that were done before the one that runs now; None before the first."""
    begun_steps: int = 0
    """Steps that this process has begun."""
    waits: bool = False
    """Whether the training waits for other ranks by a call that does nothing else."""
    _changes_before: int = 0

    def begin_step(self, step: int) -> None:
        """Note the beginning of a step.

        Args:
            step: the steps done before.
        """
        self.step = step
        self.begun_steps += 1
        self._changes_before = self.timer.changes

    @property
    def phase(self) -> str:
        """The innermost phase, an empty text between the phases."""
        names = self.timer.names[-1:]
        return names[0] if names else ""

    @property
    def position(self) -> int:
        """Phases that were opened or closed since the step began. Ranks in one step pass the same phases."""
        return self.timer.changes - self._changes_before


@dataclass(frozen=True)
class Beat:
    """A heartbeat. Durations are in seconds, by the clock of the rank itself: the clocks of hosts may differ."""

    rank: int
    host: str
    pid: int
    born: int
    """Start of the process in clock ticks since the host's start: another process may get the same id later."""
    number: int
    """Counts the heartbeats of the process, so that a reader sees whether there was a new one."""
    step: int | None
    phase: str
    waits: bool
    position: int
    idle_s: float
    """Time since the last progress."""
    warn_s: float
    """Time without progress after which the rank counts as stuck, in its present phase."""
    end_s: float
    """Time without progress after which the run is ended; infinite if it never is."""
    left: bool = False
    """Whether the rank has done its work: nobody waits for it."""

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str | bytes) -> Self:
        return cls(**json.loads(text))

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host}, process {self.pid})"

    @property
    def place(self) -> str:
        """The step and the phase, for a message."""
        if self.step is None:
            return "start-up" + (f", {self.phase}" if self.phase else "")
        phase = self.phase or "between two phases"
        # `step` counts the steps done before; the log counts the step that runs now.
        return f"step {self.step + 1}, {phase}" if self.phase in IN_STEP else f"{phase} after step {self.step + 1}"
