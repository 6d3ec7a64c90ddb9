"""What failures and checkpoints leave of a run's time, and how often to save."""

from __future__ import annotations

from math import exp, expm1, inf, isinf, log, sqrt


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of training between two checkpoints, to first order: sqrt(2 C M) (Young, CACM 17(9), 1974)."""
    return sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """The same to higher order (Daly, Future Generation Computer Systems 22(3), 2006)."""
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = sqrt(checkpoint_s / (2 * mtbf_s))
    return young_interval_s(checkpoint_s, mtbf_s) * (1 + ratio / 3 + ratio**2 / 9) - checkpoint_s


def best_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """The interval at which `goodput` is highest: the root that Daly's series approximates.

    With x = interval / M and c = C / M the derivative is zero where (1 - x) e^x = e^-c, so x = 1 + W(-e^(-1 - c)), W
    being Lambert's function.
    """
    from scipy.special import lambertw  # scipy is slow to import

    if isinf(mtbf_s):
        return inf
    cost = checkpoint_s / mtbf_s
    if cost < 1e-8:  # where W has its branch point, the argument's last digits decide; the series is exact there
        return daly_interval_s(checkpoint_s, mtbf_s)
    return mtbf_s * (1 + float(lambertw(-exp(-1 - cost)).real))


def goodput(interval_s: float, *, checkpoint_s: float, mtbf_s: float, restart_s: float) -> float:
    """The share of the wall time that is training which is kept (Daly, 2006, the complete model).

    Failures come at random with mean distance M, also while saving and restarting; each costs the restart and all
    since the last checkpoint. A stretch of training and its checkpoint then take M e^(R/M) (e^((interval + C)/M) - 1).

    Args:
        interval_s: training between two checkpoints; inf saves never.
        checkpoint_s: C, for which a save stops the training; above 0.
        mtbf_s: M, of the whole job; inf means that nothing fails.
        restart_s: R, from a failure to the next step: queue, start, loading.
    """
    if isinf(mtbf_s):
        return 1.0 if isinf(interval_s) else interval_s / (interval_s + checkpoint_s)
    if isinf(interval_s):
        return 0.0
    stretch = (interval_s + checkpoint_s) / mtbf_s
    # log(e^x - 1) = x + log(1 - e^-x), which does not overflow
    wall = log(mtbf_s) + restart_s / mtbf_s + stretch + log(-expm1(-stretch))
    return exp(log(interval_s) - wall)
