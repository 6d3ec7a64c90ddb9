"""When validation no longer gains."""

from __future__ import annotations

from collections.abc import Sequence

from fusionseg.config import PlateauConfig


def reached_plateau(history: Sequence[tuple[int, float]], config: PlateauConfig) -> bool:
    """Whether the last `windows` full windows each raised the best Dice by less than `min_gain`.

    The thesis (section 5.1): "less than 0.4 % of improvement in two successive 5000 iterations".

    Args:
        history: (step, Dice) of every validation so far, ascending.
    """
    if not history:
        return False
    full = history[-1][0] // config.window
    if full <= config.windows:  # the first window has nothing to gain upon
        return False
    best = [max((dice for step, dice in history if step <= n * config.window), default=0.0) for n in range(full + 1)]
    return all(best[full - n] - best[full - n - 1] < config.min_gain for n in range(config.windows))
