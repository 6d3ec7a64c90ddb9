"""Spikes of the training loss, found on the logging steps, and the samples that are left out after one."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionseg.config.training.spikes import SpikeConfig

_LEAST = 30
"""Logged losses before the first comparison."""
_MOST_STEPS = 1000
"""Single losses that are kept between two logging steps."""
_SCALE = 1.4826
"""The standard deviation of a normal distribution, in median absolute deviations (Rousseeuw and Croux, 1993)."""
_HIGH, _HIGH_SCALE = -3, 0.5
"""The third highest loss, and the standard deviation in its distances from the median, for a hundred normal values."""
_FLOOR = 0.02
"""Least standard deviation, as a share of the median: in a flat curve a small rise is no spike."""


@dataclass(frozen=True)
class Spike:
    """A logged loss that is a spike. Steps are numbers of steps done, as in the records."""

    step: int
    """The logging step."""
    first: int
    """The first step that the logged loss is a mean over."""
    loss: float
    median: float
    """Median of the logged losses before it."""
    limit: float
    """The lowest loss that is a spike."""
    worst_step: int | None
    """The step with the highest loss; None if the single losses are not known (`train.cuda_graph`)."""
    worst_loss: float | None

    def fields(self) -> dict[str, Any]:
        """The fields of the event in metrics.jsonl."""
        return {
            "loss": self.loss,
            "median": self.median,
            "limit": self.limit,
            "steps": [self.first, self.step],
            "worst_step": self.worst_step,
            "worst_loss": self.worst_loss,
        }

    def __str__(self) -> str:
        text = f"the loss {self.loss:.4g} is a spike: the median of the losses before it is {self.median:.4g}"
        if self.worst_step is not None and self.first < self.step:
            text += f", and step {self.worst_step} has {self.worst_loss:.4g}"
        return text


class LossSpikes:
    """Compares each logged loss with those before it, and knows which samples the run has left out.

    The losses of the steps stay on the device until there is a spike. Rewinding is as in PaLM (Chowdhery et al., 2022,
    section 5.1, arXiv:2204.02311): the run continues before the spike, with the samples after it. The sample stream is
    a function of its own step, which is the step of the training and the steps that were left out.

    Args:
        config: the section `train.spikes`.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self.rewinds = 0
        """Times that the run has gone back."""
        self.left_out: list[tuple[int, int]] = []
        """For each rewind, the steps done at which it began anew, and the steps of the sample stream left out there."""
        self.rewound: list[float] = []
        """The losses of the spikes before which the run has gone back."""
        self._logged: deque[float] = deque(maxlen=config.window)
        self._logged_step = 0
        self._recent: deque[Tensor] = deque(maxlen=_MOST_STEPS)

    def add(self, loss: Tensor | None) -> None:
        """Note the loss of a step, on the device; None if it is not known."""
        if self.config.action != "off" and loss is not None:
            self._recent.append(loss)

    def look(self, step: int, loss: float | None) -> Spike | None:
        """Compare a logged loss with those before it; it is then one of them. All ranks have the same result.

        Args:
            step: the number of steps done.
            loss: mean of the steps since the last logged loss; None if all were skipped.

        Returns:
            The spike, or None. Only then are the losses of the single steps read from the device.
        """
        if self.config.action == "off":
            self._logged.clear()  # those of an earlier start would be compared with much later ones
            self._recent.clear()
            self._logged_step = step
            return None
        spike = None
        if loss is not None:
            if len(self._logged) >= _LEAST:
                median, limit = spike_limit(list(self._logged), self.config.threshold)
                if loss > limit:
                    spike = self._spike(step, loss, median, limit)
            self._logged.append(loss)
        self._logged_step = step
        self._recent.clear()
        return spike

    def leave_out(self, step: int, count: int) -> None:
        """Leave out samples.

        Args:
            step: the number of steps done; the next step has other samples.
            count: steps of the sample stream that are left out.
        """
        self.left_out.append((step, count))

    def learn(self, losses: list[float]) -> None:
        """Add the losses of spikes after the run has gone back, so that losses that come again are no spikes for ever.

        Args:
            losses: of all rewinds, in their order; those that the restored state has are not added again.
        """
        self._logged.extend(losses[len(self.rewound) :])
        self.rewound = losses

    def stream_step(self, step: int) -> int:
        """The step of the sample stream whose samples a step of the training has.

        Args:
            step: the number of the step, from 0.
        """
        return step + sum(count for at, count in self.left_out if step >= at)

    def stream_steps(self, steps: range) -> range:
        """The steps of the sample stream of the last of some steps, as far as they follow one another.

        Args:
            steps: of the training, from 0.
        """
        first = max([steps.start, *(at for at, _ in self.left_out if at < steps.stop)])
        return range(self.stream_step(first), self.stream_step(steps.stop - 1) + 1)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: a resumed run finds the same spikes, and has the same samples."""
        return {
            "logged": list(self._logged),
            "logged_step": self._logged_step,
            "recent": torch.stack([*self._recent]) if self._recent else None,
            "rewinds": self.rewinds,
            "rewound": list(self.rewound),
            "left_out": [list(each) for each in self.left_out],
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load a state.

        Args:
            state: from a checkpoint; empty for one of an older version.
            device: of the training.
        """
        recent = state.get("recent")
        self._logged = deque(state.get("logged", []), maxlen=self.config.window)
        self._logged_step = state.get("logged_step", 0)
        self._recent = deque([] if recent is None else recent.to(device).unbind(), maxlen=_MOST_STEPS)
        self.rewinds = state.get("rewinds", 0)
        self.rewound = list(state.get("rewound", []))
        self.left_out = [(at, count) for at, count in state.get("left_out", [])]

    def _spike(self, step: int, loss: float, median: float, limit: float) -> Spike:
        worst_step, worst = None, None
        if self._recent:
            losses: list[float] = torch.stack([*self._recent]).tolist()
            finite = [(value, index) for index, value in enumerate(losses) if abs(value) < float("inf")]
            if finite:
                worst, index = max(finite)
                worst_step = step - len(losses) + 1 + index
        return Spike(step, self._logged_step + 1, loss, median, limit, worst_step, worst)


def spike_limit(losses: list[float], threshold: float) -> tuple[float, float]:
    """The median of losses, and the lowest loss beyond which a further one is a spike.

    The standard deviation is the largest of three: from the median absolute deviation, from the third highest loss
    (patches without foreground often have a loss of their own, far from the others), and a small share of the median.

    Args:
        losses: logged losses.
        threshold: in standard deviations.
    """
    median = statistics.median(losses)
    deviation = _SCALE * statistics.median([abs(loss - median) for loss in losses])
    high = sorted(losses)[_HIGH] - median
    return median, median + threshold * max(deviation, _HIGH_SCALE * high, _FLOOR * abs(median))
