"""Goodput of a training with failures and checkpoints, and the best checkpoint interval."""

from __future__ import annotations

from math import exp, expm1, inf, isinf, log, sqrt


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Best checkpoint interval in seconds, to first order: sqrt(2 C M) (Young, CACM 17(9), 1974).

    Args:
        checkpoint_s: C, time for which saving stops the training.
        mtbf_s: M, mean time between failures of the job.
    """
    return sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Best checkpoint interval in seconds, to higher order (Daly, Future Generation Computer Systems 22(3), 2006).

    Args:
        checkpoint_s: C, time for which saving stops the training.
        mtbf_s: M, mean time between failures of the job.
    """
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = sqrt(checkpoint_s / (2 * mtbf_s))
    return young_interval_s(checkpoint_s, mtbf_s) * (1 + ratio / 3 + ratio**2 / 9) - checkpoint_s


def best_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Checkpoint interval in seconds that maximises `goodput`; Daly's series approximates it.

    With x = interval / M and c = C / M the derivative is zero where (1 - x) e^x = e^-c, so x = 1 + W(-e^(-1 - c)) with
    Lambert's function W.

    Args:
        checkpoint_s: C, time for which saving stops the training.
        mtbf_s: M, mean time between failures of the job; inf gives inf.
    """
    from scipy.special import lambertw  # scipy is slow to import

    if isinf(mtbf_s):
        return inf
    cost = checkpoint_s / mtbf_s
    if cost < 1e-8:  # near the branch point of W rounding errors dominate, and the series is exact there
        return daly_interval_s(checkpoint_s, mtbf_s)
    return mtbf_s * (1 + float(lambertw(-exp(-1 - cost)).real))


def goodput(interval_s: float, *, checkpoint_s: float, mtbf_s: float, restart_s: float) -> float:
    """Share of the wall time spent on training that no failure undoes (complete model of Daly, 2006).

    Failures are random with mean distance M, also while the job saves or restarts. Each failure costs the restart and
    all training since the last checkpoint. One interval and its checkpoint then take M e^(R/M) (e^((interval + C)/M) -
    1) seconds on average.

    Args:
        interval_s: training time between two checkpoints; inf means that nothing is ever saved.
        checkpoint_s: C, time for which saving stops the training; above 0.
        mtbf_s: M, mean time between failures of the whole job; inf means that nothing fails.
        restart_s: R, time from a failure to the next step: queue, start, loading.
    """
    if isinf(mtbf_s):
        return 1.0 if isinf(interval_s) else interval_s / (interval_s + checkpoint_s)
    if isinf(interval_s):
        return 0.0
    exponent = (interval_s + checkpoint_s) / mtbf_s
    # log(e^x - 1) = x + log(1 - e^-x), which does not overflow
    log_wall_s = log(mtbf_s) + restart_s / mtbf_s + exponent + log(-expm1(-exponent))
    return exp(log(interval_s) - log_wall_s)
