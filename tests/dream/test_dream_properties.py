"""What holds for dreams under any actions: the past that was kept is the past that comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dream.toy import toy_model
from wmgym.dream import DreamEnv, DreamVectorEnv

NUM = 3
FAST = settings(max_examples=30, deadline=None, derandomize=True)

modes = st.sampled_from([AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
seeds = st.integers(0, 2**31 - 1)
lengths = st.integers(1, 12)


def dreams(mode: AutoresetMode, horizon: int, **options: Any) -> DreamVectorEnv:
    return DreamVectorEnv(NUM, toy_model(continue_logit=1.0), horizon=horizon, autoreset_mode=mode, **options)


def play(env: DreamVectorEnv, actions: np.ndarray) -> list[Any]:
    """Observations, rewards and both ends of every step; without autoreset, ended dreams are begun again."""
    told = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        told.append((observation, reward, terminated, truncated))
        ended = terminated | truncated
        if env.metadata["autoreset_mode"] == AutoresetMode.DISABLED and ended.any():
            told.append((env.reset(options={"reset_mask": ended})[0],))
    return told


def assert_equal(one: list[Any], two: list[Any]) -> None:
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def acts(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, NUM, 2)).astype(np.float32)


@FAST
@given(mode=modes, seed=seeds, before=lengths, after=lengths, horizon=st.integers(1, 6))
def test_a_state_set_again_brings_the_same_dreams(
    mode: AutoresetMode, seed: int, before: int, after: int, horizon: int
) -> None:
    env = dreams(mode, horizon)
    env.reset(seed=seed)
    play(env, acts(seed, before))
    state = env.get_state()
    future = play(env, acts(seed + 1, after))
    env.set_state(state)
    assert_equal(play(env, acts(seed + 1, after)), future)
    other = dreams(mode, horizon)
    other.reset(seed=0)
    other.set_state(state)
    assert_equal(play(other, acts(seed + 1, after)), future)


@FAST
@given(mode=modes, seed=seeds, count=lengths)
def test_going_on_does_not_change_a_state_that_was_kept(mode: AutoresetMode, seed: int, count: int) -> None:
    env = dreams(mode, horizon=4)
    env.reset(seed=seed)
    state = env.get_state()
    copies = [leaf.clone() for leaf in (*state.world, *state[1:])]
    play(env, acts(seed, count))
    assert all(torch.equal(leaf, copy) for leaf, copy in zip((*state.world, *state[1:]), copies, strict=True))


@FAST
@given(seed=seeds, count=lengths, horizon=st.integers(1, 6))
def test_an_episode_never_outlives_its_horizon_nor_its_end(seed: int, count: int, horizon: int) -> None:
    env = DreamEnv(toy_model(continue_logit=1.0), horizon=horizon)
    env.reset(seed=seed)
    steps = 0
    for action in acts(seed, 3 * count)[:, 0]:
        _, _, terminated, truncated, _ = env.step(action)
        steps += 1
        assert truncated == (steps == horizon and not terminated) or (terminated and steps == horizon)
        if terminated or truncated:
            env.reset()
            steps = 0


@FAST
@given(mode=modes, seed=seeds, count=lengths)
def test_a_dream_is_a_function_of_seed_and_actions(mode: AutoresetMode, seed: int, count: int) -> None:
    one, two = dreams(mode, horizon=5), dreams(mode, horizon=5)
    np.testing.assert_array_equal(one.reset(seed=seed)[0], two.reset(seed=seed)[0])
    assert_equal(play(one, acts(seed, count)), play(two, acts(seed, count)))
