"""CMA-ES behind its batch interface, on functions whose best is known."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evolution import Evolution


def rosenbrock(x: np.ndarray) -> np.ndarray:
    """Minus a curved valley whose floor is highest at (1, ..., 1), of a batch `(P, N)`."""
    return -(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def test_it_finds_the_end_of_a_curved_valley() -> None:
    evolution = Evolution(np.zeros(4), population=16, sigma=0.5, weight_decay=0.0, seed=0)
    for _ in range(250):
        evolution.tell(rosenbrock(evolution.ask()))
    np.testing.assert_allclose(evolution.mean, np.ones(4), atol=1e-2)
    best = [fitness.max() for fitness in evolution.told]
    assert best[-1] > -1e-3 > -1 > best[0]
    assert evolution.deviation < 0.05


def test_it_stands_noise_and_many_numbers() -> None:
    noise = np.random.default_rng(0)
    goal = noise.normal(size=100)
    evolution = Evolution(np.zeros(100), population=32, sigma=0.3, seed=1)
    for _ in range(250):
        error = np.square(evolution.ask() - goal).sum(1)
        evolution.tell(-error + noise.normal(size=32))
    assert np.square(evolution.mean - goal).sum() < 0.1 * np.square(goal).sum()


def test_what_it_was_told_is_all_there_is_to_it() -> None:
    one = Evolution(np.zeros(5), population=6, seed=3)
    for _ in range(9):
        one.tell(rosenbrock(one.ask()))
    two = Evolution(np.zeros(5), population=6, seed=3, told=one.told)
    assert two.generation == 9
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.ask(), two.ask())
    assert not np.array_equal(
        Evolution(np.zeros(5), population=6, seed=4).ask(), Evolution(np.zeros(5), 6, seed=3).ask()
    )


def test_it_leaves_numpys_global_numbers_alone() -> None:
    np.random.seed(0)  # noqa: NPY002 (this is what is tested)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    evolution = Evolution(np.zeros(5), population=6)
    evolution.tell(rosenbrock(evolution.ask()))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(("decay", "size"), [(0.0, 2.0), (1.0, 1.0)])
def test_weight_decay_draws_towards_zero(decay: float, size: float) -> None:
    """The best of `-(x - 2)^2 - decay x^2` is `2 / (1 + decay)`."""
    evolution = Evolution(np.zeros(1) + 0.1, population=8, sigma=0.5, weight_decay=decay)
    for _ in range(60):
        evolution.tell(-np.square(evolution.ask()[:, 0] - 2))
    assert evolution.mean[0] == pytest.approx(size, abs=1e-2)
