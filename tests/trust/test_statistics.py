"""Every metric against a value worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wmgym.trust.statistics import (
    Horizons,
    bootstrap,
    bootstrap_groups,
    mmrv,
    pearson,
    regret_at_1,
    spearman,
    survival_quantile,
    trust_horizons,
)


def test_correlations_of_lines_and_of_constants() -> None:
    assert pearson([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1.0)
    assert np.isnan(pearson([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman([1.0], [2.0]))


def test_mmrv_takes_the_gap_in_reality() -> None:
    # Dream order is 0 < 1 < 2, in reality 0 and 2 are swapped around 1: each row's largest real gap is 20, 10, 20.
    assert mmrv([1, 2, 3], [30, 20, 10]) == pytest.approx((20 + 10 + 20) / 3)
    assert mmrv([1, 2, 3], [1, 20, 300]) == 0


def test_ties_of_mmrv_are_as_stated() -> None:
    # A tie in the dream alone counts for the worse in reality only (policy 0: gap 8), not for the better.
    assert mmrv(dream=[5, 5], real=[2, 10]) == pytest.approx(8 / 2)
    # A tie in reality costs nothing, whatever the dream says.
    assert mmrv(dream=[1, 2], real=[7, 7]) == 0
    assert mmrv(dream=[5, 5], real=[7, 7]) == 0


def test_regret_is_what_the_dream_s_choice_loses() -> None:
    assert regret_at_1([1, 3, 2], [10, 4, 9]) == 6
    assert regret_at_1([1, 2, 3], [1, 2, 3]) == 0
    # Two tie for the best in the dream: one of them at random, which is 4 or 9 in reality.
    assert regret_at_1([1, 3, 3], [10, 4, 9]) == pytest.approx(10 - 6.5)


def test_the_trust_horizon_counts_steps_before_the_first_failure() -> None:
    nan = np.nan
    world = np.array([[0.2, 0.9, 0.0, 0.1], [0.3, 0.0, 0.0, 0.1], [0.9, 0.0, 0.0, nan]])
    still = np.array([[0.5, 0.5, 0.0, 0.5], [0.5, 0.5, 0.0, 0.5], [0.5, 0.5, 0.0, nan]])
    result = trust_horizons(world, still)
    # Fails at step 3; at step 1; never (ties are no failures); lasts two steps and is cut.
    assert result.steps.tolist() == [2, 0, 3, 2]
    assert result.censored.tolist() == [False, False, True, True]


def test_censored_horizons_count_for_as_long_as_they_were_seen() -> None:
    # Kaplan and Meier: at 2 one of four fails (3/4 left), one is cut at 3, at 5 one of two fails (3/8 left).
    horizons = Horizons(np.array([2, 3, 5, 9]), np.array([False, True, False, True]))
    assert survival_quantile(horizons, 0.25) == 2
    assert survival_quantile(horizons, 0.5) == 5
    assert survival_quantile(horizons, 0.95) == 9 == horizons.ceiling  # never reached


def test_nothing_is_claimed_of_steps_that_no_window_lasted_for() -> None:
    short = Horizons(np.array([4, 3]), np.array([True, True]))
    assert survival_quantile(short, 0.05) == 4 == short.ceiling
    some_fail = Horizons(np.array([12] * 20 + [4] * 10), np.array([True] * 20 + [False] * 10))
    assert survival_quantile(some_fail, 0.5) == 12 == some_fail.ceiling
    assert Horizons(np.array([12, 40]), np.array([True, False])).ceiling is None  # the longest failed at its end


def test_no_windows_say_nothing() -> None:
    nothing = Horizons(np.zeros(0, int), np.zeros(0, bool))
    assert np.isnan(survival_quantile(nothing, 0.5))


def test_intervals_hold_the_truth_and_narrow() -> None:
    random = np.random.default_rng(0)
    few, many = random.normal(3, 1, 10), random.normal(3, 1, 1000)
    wide, narrow = bootstrap(np.mean, few), bootstrap(np.mean, many)
    assert wide is not None
    assert narrow is not None
    assert narrow[0] < 3 < narrow[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 3
    assert bootstrap(np.mean, [1.0]) is None
    assert bootstrap(np.mean, many, seed=1) == bootstrap(np.mean, many, seed=1)


def test_windows_of_one_episode_are_not_many_witnesses() -> None:
    random = np.random.default_rng(0)
    values = np.repeat(random.normal(size=10), 50)  # 10 episodes, whose windows all say the same
    alone = bootstrap(np.mean, values)
    grouped = bootstrap_groups(lambda v: float(v.mean()), [values], np.repeat(np.arange(10), 50))
    assert alone is not None
    assert grouped is not None
    assert grouped[1] - grouped[0] > 4 * (alone[1] - alone[0])
