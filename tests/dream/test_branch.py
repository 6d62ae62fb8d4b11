"""Branches: copies of a dream that go on from one moment."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from wmgym.dream import DreamEnv, DreamVectorEnv

from .toy import toy_model

ACTION = np.array([0.3, -0.2], np.float32)


def started(num_envs: int = 2, **settings: object) -> DreamVectorEnv:
    dreams = DreamVectorEnv(num_envs, toy_model(), observation="latent", termination="never", **settings)
    dreams.reset(seed=0)
    dreams.step(np.stack([ACTION] * num_envs))
    return dreams


def test_with_shared_noise_every_copy_dreams_on_as_the_original() -> None:
    dreams = started()
    branches = dreams.branch(3, shared_noise=True)
    for _ in range(5):
        original, copies = dreams.step(np.stack([ACTION] * 2)), branches.step(np.stack([ACTION] * 6))
        np.testing.assert_allclose(copies[0], original[0].repeat(3, axis=0), atol=1e-6)
        np.testing.assert_allclose(copies[1], original[1].repeat(3), atol=1e-6)


def test_by_itself_each_copy_meets_its_own_chance_from_the_same_moment() -> None:
    dreams = started()
    before = dreams.get_state().world.x.numpy()
    branches = dreams.branch(50)
    np.testing.assert_array_equal(branches.get_state().world.x.numpy(), before.repeat(50, axis=0))
    one, two = (branches.step(np.stack([ACTION] * 100))[0] for _ in range(2))
    for seen in (one, two):
        assert len(np.unique(seen[:, 0])) == 100
    assert abs(np.corrcoef(one[:50, 0], one[50:, 0])[0, 1]) < 0.5  # copy j of one dream tells nothing of the other's


def test_branching_leaves_the_original_alone() -> None:
    dreams, other = started(), started()
    dreams.branch(4).step(np.stack([ACTION] * 8))
    np.testing.assert_array_equal(dreams.step(np.stack([ACTION] * 2))[0], other.step(np.stack([ACTION] * 2))[0])


def test_copies_keep_the_settings_and_the_steps_taken() -> None:
    dreams = started(horizon=3, temperature=0.5, autoreset_mode="Disabled")
    branches = dreams.branch(2)
    assert branches.settings == dreams.settings
    assert branches.world is dreams.world
    branches.step(np.stack([ACTION] * 4))
    assert branches.step(np.stack([ACTION] * 4))[3].all()


def test_one_dream_branches_into_a_vector_environment() -> None:
    env = DreamEnv(toy_model())
    env.reset(seed=0)
    assert env.branch(7).step(np.stack([ACTION] * 7))[0].shape == (7, 3)


def test_branches_that_cannot_be() -> None:
    with pytest.raises(ResetNeeded):
        DreamVectorEnv(2, toy_model()).branch(2)
    with pytest.raises(ValueError, match="1 copy or more, not 0"):
        started().branch(0)
