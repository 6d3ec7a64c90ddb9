"""Reasons to end a training: all steps are done, or validation no longer gains."""

from __future__ import annotations

from collections.abc import Sequence

from fusionseg.config import PlateauConfig


def plateau_reason(history: Sequence[tuple[int, float]], config: PlateauConfig | None) -> str:
    """Return why the plateau rule ends a run; an empty text if it does not.

    Args:
        history: (step, score) of every validation so far, ascending.
        config: the section `stop.plateau`; None never ends a run.
    """
    if config is None or not reached_plateau(history, config):
        return ""
    return f"less than {config.min_gain} gained in {config.windows} plateau intervals of {config.window} steps"


def reached_plateau(history: Sequence[tuple[int, float]], config: PlateauConfig) -> bool:
    """Return whether each of the last full plateau intervals raised the best score by less than `min_gain`.

    A plateau interval has `stop.plateau.window` steps, and `stop.plateau.windows` of them end a run. The rule is that
    of the thesis (section 5.1): "less than 0.4 % of improvement in two successive 5000 iterations".

    Args:
        history: (step, score) of every validation so far, ascending.
        config: the section `stop.plateau`.
    """
    if not history:
        return False
    full = history[-1][0] // config.window
    if full <= config.windows:  # there is no score before the first interval to compare it with
        return False
    best = [max((score for step, score in history if step <= n * config.window), default=0.0) for n in range(full + 1)]
    return all(best[full - n] - best[full - n - 1] < config.min_gain for n in range(config.windows))
