"""The statistics of trust: rankings, regrets, censored horizons, and bootstrap intervals of all of them.

Sources: regret@k and rank correlation as in DOPE (Fu et al. 2021, arXiv 2103.16596); MMRV as in SIMPLER (Li et al.
2024, arXiv 2405.05941); Kaplan and Meier 1958 for censored horizons. Ranks, bootstrap and survival curves are scipy's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]

CONFIDENCE = 0.95
RESAMPLES = 500
_TIE = 1e-6
"""Errors this close count as equal: a perfect world differs from a motionless moment by rounding alone."""


class Horizons(NamedTuple):
    """How long each window went well."""

    steps: np.ndarray  # (N,) int64
    censored: np.ndarray  # (N,) bool; the window ended before the world failed

    @property
    def ceiling(self) -> int | None:
        """The longest window, if the world never failed in it: what a quantile that is not reached stands for."""
        longest = self.steps.max(initial=0)
        return int(longest) if self.censored[self.steps == longest].any() else None


def pearson(dream: ArrayLike, real: ArrayLike) -> float:
    """Linear correlation; NaN where one side is constant.

    Example:
        >>> round(pearson([1, 2, 3], [1, 2, 4]), 3)
        0.982
    """
    one, two = np.asarray(dream, float), np.asarray(real, float)
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return float("nan")
    return float(np.corrcoef(one, two)[0, 1])


def spearman(dream: ArrayLike, real: ArrayLike) -> float:
    """Rank correlation, ties at their mean rank; NaN where one side is constant."""
    return pearson(scipy.stats.rankdata(dream), scipy.stats.rankdata(real))


def regret_at_1(dream: ArrayLike, real: ArrayLike) -> float:
    """What is lost in reality by taking the one that the dream finds best: `max(real) - real[argmax(dream)]`.

    Where several tie for the best in the dream, one of them is taken at random: their mean counts.

    Example:
        >>> regret_at_1(dream=[1.0, 5.0, 2.0], real=[10.0, 7.0, 4.0])
        3.0
    """
    dreamt, true = np.asarray(dream, float), np.asarray(real, float)
    return float(true.max() - true[dreamt == dreamt.max()].mean())


def mmrv(dream: ArrayLike, real: ArrayLike) -> float:
    """Mean maximum rank violation: for each policy the largest real gap to one that the dream ranks wrongly.

    `(1/N) sum_i max_j |R_i - R_j| [(D_i < D_j) != (R_i < R_j)]`, the gap taken in reality. Tie rule: both comparisons
    are strict, so a tie in reality costs nothing (its gap is 0), and a tie in the dream alone is a violation for the
    worse of the two in reality only.

    Example:
        >>> mmrv(dream=[1.0, 2.0, 3.0], real=[10.0, 30.0, 20.0])  # the last two are swapped: (0 + 10 + 10) / 3
        6.666666666666667
    """
    dreamt, true = np.asarray(dream, float), np.asarray(real, float)
    gap = np.abs(true[:, None] - true[None, :])
    violated = (dreamt[:, None] < dreamt[None, :]) != (true[:, None] < true[None, :])
    return float((gap * violated).max(1).mean())


def trust_horizons(errors: Floats, baseline: Floats) -> Horizons:
    """For each window the steps before the world first does worse than the baseline; a tie is not a failure.

    Args:
        errors: `(H, N)` of the world, entry `k - 1` at step `k`; NaN once the window has ended.
        baseline: `(H, N)` likewise.

    Example:
        >>> world, still = np.array([[0.1, 0.1], [0.5, 0.2]]), np.array([[0.3, 0.3], [0.4, 0.4]])
        >>> trust_horizons(world, still)
        Horizons(steps=array([1, 2]), censored=array([False,  True]))
    """
    fails = errors > baseline + _TIE  # comparisons with NaN are False
    lengths = np.isfinite(errors).sum(0)
    failed = np.asarray(fails.any(0))
    return Horizons(np.where(failed, fails.argmax(0), lengths).astype(np.int64), ~failed)


def survival_quantile(horizons: Horizons, share: float) -> float:
    """The steps within which `share` of the windows have failed, by Kaplan and Meier.

    Where fewer have, it is the longest window's length (`Horizons.ceiling`), for nothing longer was looked at; of no
    windows NaN.

    Example:
        >>> survival_quantile(Horizons(np.array([1, 2, 9, 9]), np.array([False, False, True, True])), 0.5)
        2.0
    """
    if not len(horizons.steps):
        return float("nan")
    if horizons.censored.all():
        return float(horizons.steps.max())
    data = scipy.stats.CensoredData.right_censored(horizons.steps, horizons.censored)
    curve = scipy.stats.ecdf(data).cdf
    reached = curve.quantiles[curve.probabilities >= share - 1e-9]
    return float(reached[0]) if len(reached) else float(horizons.steps.max())


def bootstrap(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    paired: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The percentile bootstrap's 95 % interval of `statistic(*samples)`, by `scipy.stats.bootstrap`.

    Args:
        statistic: of one-dimensional samples; one that takes `axis` is called once for all resamples.
        samples: each `(N,)`.
        paired: resample them together.
        resamples: how often.
        seed: of the resampling.

    Returns:
        Both ends; None where a sample has fewer than two entries, or nothing finite comes out.
    """
    data = tuple(np.asarray(sample) for sample in samples)
    if min(map(len, data)) < 2:
        return None
    with warnings.catch_warnings():
        # Where all resamples agree scipy warns; the interval is then a point, which is what it should be.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        drawn = _resampled(statistic, data, paired, resamples, seed)
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(
    statistic: Callable[..., float], data: tuple[np.ndarray, ...], paired: bool, resamples: int, seed: int
) -> Floats:
    return scipy.stats.bootstrap(
        data,
        statistic,
        n_resamples=resamples,
        paired=paired,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution


def mean_gap(dream: Floats, real: Floats, axis: int = -1) -> Any:
    """Mean of `dream` minus mean of `real`."""
    return np.mean(dream, axis) - np.mean(real, axis)


def bootstrap_groups(
    statistic: Callable[..., float],
    values: Sequence[np.ndarray],
    groups: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """As `bootstrap`, resampling whole groups: windows of one episode are not independent of one another.

    Args:
        statistic: of arrays like those of `values`, with the windows that were drawn.
        values: arrays `(N, ...)`.
        groups: `(N,)` integers, the group of each.
        resamples: how often.
        seed: of the resampling.
    """
    labels = np.asarray(groups)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def of_groups(chosen: NDArray[np.int64]) -> float:
        rows = np.concatenate([members[index] for index in chosen])
        return statistic(*(array[rows] for array in values))

    return bootstrap(of_groups, np.arange(len(members)), resamples=resamples, seed=seed)
