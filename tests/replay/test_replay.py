"""Replay: what was added is what is sampled, in order, with its borders, whatever the storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.replay import SequenceReplay

from .filling import ACTION, PICTURE, assert_equal_batches, fill, make, numbers

torch.set_num_threads(1)


def test_sequences_run_across_episode_borders_and_mark_them() -> None:
    replay = make()
    fill(replay, range(40))
    batch = replay.sample(64, 20)
    steps = numbers(batch)
    assert batch.shape == (20, 64)
    assert (np.diff(steps, axis=0) == 1).all()
    assert np.array_equal(batch.is_first.numpy(), steps % 7 == 0)
    assert np.array_equal(batch.is_terminal.numpy(), steps % 7 == 6)
    assert np.array_equal(batch.reward.numpy(), steps)
    np.testing.assert_allclose(batch.action[..., 0].numpy(), steps % 5 / 10, rtol=1e-6)
    assert batch.action.shape == (20, 64, 1)
    assert (steps[0] % 7 != 0).any(), "sequences must also start inside episodes"


def test_types_are_those_of_a_sequence_batch() -> None:
    replay = SequenceReplay(10, PICTURE, spaces.Discrete(3), n_envs=2)
    picture = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    for _ in range(4):
        replay.add({"image": picture, "speed": [0.5, -0.5]}, np.eye(3)[:2], [0, 1], [True, True], [False, False])
    batch = replay.sample(3, 2)
    assert batch.observation["image"].dtype == torch.uint8
    assert batch.observation["image"].shape == (2, 3, 64, 64, 3)
    assert batch.observation["speed"].dtype == batch.action.dtype == batch.reward.dtype == torch.float32
    assert batch.observation["speed"].shape == (2, 3)
    assert batch.is_first.dtype == batch.is_terminal.dtype == torch.bool
    env = int(batch.reward[0, 0])
    assert np.array_equal(batch.observation["image"][0, 0].numpy(), picture[env])


def test_samples_are_copies() -> None:
    replay = make()
    fill(replay, range(10))
    replay.sample(4, 10).reward.fill_(-1)
    assert (replay.sample(4, 10).reward >= 0).all()


@pytest.mark.parametrize("added", [20, 33, 47, 60])
def test_full_ring_keeps_the_newest_and_never_crosses_the_write_head(added: int) -> None:
    replay = make(capacity=20)
    fill(replay, range(added))
    steps = numbers(replay.sample(400, 6))
    assert len(replay) == 20
    assert (np.diff(steps, axis=0) == 1).all()
    assert set(steps.ravel()) == set(range(added - 20, added))


def test_sampling_is_uniform_over_every_start_of_every_stream() -> None:
    replay = make(capacity=60, n_envs=3)
    fill(replay, range(27))  # 20 steps a stream are held, 16 starts for length 5
    batch = replay.sample(48_000, 5)
    starts = numbers(batch)[0] - 7
    envs = batch.observation["observation"][0, :, 1].numpy().astype(int)
    counts = np.bincount(starts * 3 + envs, minlength=48)
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert len(counts) == 48
    assert chi_squared < 47 + 5 * np.sqrt(2 * 47)


def test_streams_do_not_mix() -> None:
    replay = make(n_envs=4)
    fill(replay, range(25))
    envs = replay.sample(200, 10).observation["observation"][..., 1]
    assert (envs == envs[0]).all()
    assert set(envs[0].tolist()) == {0, 1, 2, 3}


def test_online_queue_serves_every_new_chunk_once_and_first() -> None:
    replay = make(capacity=1000, n_envs=2)
    fill(replay, range(23))
    served = numbers(replay.sample(3, 5, newest_first=True))
    assert served[0].tolist() == [0, 0, 5]  # two streams, in order of time
    served = numbers(replay.sample(6, 5, newest_first=True))
    assert served[0, :5].tolist() == [5, 10, 10, 15, 15]  # then nothing new is left: the sixth is uniform
    fill(replay, range(23, 25))
    batch = replay.sample(4, 5, newest_first=True)
    assert numbers(batch)[:, :2].T.tolist() == [[20, 21, 22, 23, 24]] * 2
    assert batch.observation["observation"][0, :2, 1].tolist() == [0, 1]
    before = replay.get_state()["served"]
    replay.sample(4, 5)
    assert replay.get_state()["served"] == before == [25, 25]


def test_online_queue_skips_what_was_overwritten() -> None:
    replay = make(capacity=20)
    fill(replay, range(50))
    served = numbers(replay.sample(2, 8, newest_first=True))
    assert served[0].tolist() == [30, 38]


def test_short_episodes_are_kept() -> None:
    replay = make()
    fill(replay, range(30), episode=2)
    batch = replay.sample(16, 12)
    assert (batch.is_first.sum(0) == 6).all()
    assert [len(episode) for episode in replay.episodes()] == [2] * 15


def test_too_few_steps_say_how_many_are_there() -> None:
    replay = make(capacity=40, n_envs=2)
    fill(replay, range(5))
    assert replay.can_sample(5)
    assert not replay.can_sample(6)
    with pytest.raises(ValueError, match="longest stream holds 5 steps, a sequence needs 6"):
        replay.sample(1, 6)
    with pytest.raises(ValueError, match=r"never fit.*20 steps of each of 2"):
        replay.sample(1, 21)
    with pytest.raises(ValueError, match="length must be 1 or more"):
        replay.sample(1, 0)


def test_episodes_are_complete_and_in_order() -> None:
    replay = make(capacity=50, n_envs=2)
    fill(replay, range(39))  # 14..38 are held: a tail, 21-27, 28-34, and 35-38 unfinished
    episodes = list(replay.episodes())
    assert [(episode.env, episode.reward[0], len(episode)) for episode in episodes] == [
        (env, first, 7) for env in (0, 1) for first in (14, 21, 28)
    ]
    for episode in episodes:
        assert episode.is_first.tolist() == [True] + [False] * 6
        assert episode.is_terminal.tolist() == [False] * 6 + [True]
        assert (episode.observation["observation"][:, 1] == episode.env).all()
    assert [episode.env for episode in replay.episodes(env=1)] == [1, 1, 1]
    fill(replay, range(39, 42))
    assert [episode.reward[0] for episode in replay.episodes(env=0)] == [21, 28, 35]


def test_a_truncated_episode_is_complete_once_the_next_begins() -> None:
    replay = make()
    fill(replay, range(14), terminal=False)
    assert [episode.reward[0] for episode in replay.episodes()] == [0]
    fill(replay, range(14, 15), terminal=False)
    assert [episode.reward[0] for episode in replay.episodes()] == [0, 7]


def test_adding_while_reading_episodes_is_refused() -> None:
    replay = make()
    fill(replay, range(21))
    episodes = replay.episodes()
    next(episodes)
    fill(replay, range(21, 22))
    with pytest.raises(RuntimeError, match="changed"):
        next(episodes)


@pytest.mark.parametrize("env", [None, 1])
def test_a_cut_makes_the_next_step_a_first_one(env: int | None) -> None:
    replay = make(n_envs=3)
    fill(replay, range(1, 4), episode=100)
    replay.mark_cut(env)
    fill(replay, range(4, 6), episode=100)
    batch = replay.sample(100, 5)
    cut = (batch.observation["observation"][3, :, 1] == env) if env is not None else torch.ones(100, dtype=torch.bool)
    assert torch.equal(batch.is_first[3], cut)
    assert torch.equal(batch.reward[3] == 0, cut)
    assert torch.equal(batch.action[3, :, 0] == 0, cut)
    assert not batch.is_first[4].any()


BAD = {
    "nan observation": ({"observation": [[0, 0], [0, np.nan]]}, "'observation/observation' of environment 1"),
    "infinite observation": ({"observation": [[0, -np.inf], [0, 0]]}, "'observation/observation' of environment 0"),
    "nan action": ({"action": [[0], [np.nan]]}, "'action' of environment 1"),
    "infinite reward": ({"reward": [np.inf, 0]}, "'reward' of environment 0"),
    "wrong shape": ({"observation": [[0, 0]]}, r"\(1, 2\), expected \(2, 2\)"),
    "no batch of actions": ({"action": [0, 0]}, r"'action' has shape \(2,\), expected \(2, 1\)"),
    "unknown key": ({"observation": {"camera": [[0, 0], [0, 0]]}}, "observation/camera"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_steps_are_named_and_not_stored(case: str) -> None:
    change, message = BAD[case]
    replay = make(n_envs=2)
    step: dict[str, Any] = {
        "observation": np.zeros((2, 2)), "action": np.zeros((2, 1)), "reward": np.zeros(2),
        "is_first": np.zeros(2, bool), "is_terminal": np.zeros(2, bool),
    }  # fmt: skip
    replay.add(**step)
    with pytest.raises(ValueError, match=message):
        replay.add(**{**step, **change})
    assert len(replay) == 2
    assert not replay.sample(4, 1).observation["observation"].isnan().any()


def test_pictures_must_be_uint8() -> None:
    replay = SequenceReplay(10, PICTURE, ACTION)
    with pytest.raises(ValueError, match=r"uint8.*float64"):
        replay.add({"image": np.zeros((1, 64, 64, 3)), "speed": [0.0]}, [[0.0]], [0.0], [True], [False])


def test_first_steps_are_the_newest_and_no_more_than_asked_for() -> None:
    replay = make(200, n_envs=3)
    fill(replay, range(50))
    first = replay.first_steps(5)["observation"].numpy()
    assert first[:, 0].tolist() == [42, 49, 42, 49, 42]
    assert first[:, 1].tolist() == [0, 0, 1, 1, 2]
    assert len(replay.first_steps(1000)["observation"]) == 24
    assert len(replay.first_steps(0)["observation"]) == 0


def test_a_million_picture_steps_fit_in_12_5_gb() -> None:
    replay = SequenceReplay(1_000_000, PICTURE, spaces.Box(-1, 1, (6,)))  # pages are taken as steps arrive
    step = {"image": np.zeros((1, 64, 64, 3), np.uint8), "speed": [0.0]}
    replay.add(step, np.zeros((1, 6)), [0.0], [True], [False])
    assert replay.nbytes == replay.step_bytes == 64 * 64 * 3 + 4 + 6 * 4 + 4 + 1 + 1 + 8  # the last: its number
    assert replay.step_bytes * replay.capacity < 12.5e9


def test_capacity_counts_all_environments() -> None:
    replay = make(capacity=10, n_envs=3)
    fill(replay, range(30))
    assert len(replay) == replay.capacity == 9
    with pytest.raises(ValueError, match="no room for 3 environments"):
        make(capacity=2, n_envs=3)


def fill_unevenly(replay: SequenceReplay, rounds: int) -> None:
    """Environment 1 takes two steps a round, the others one; each step carries its number in its own stream."""
    for step in range(rounds):
        for envs, number in ([0, 1, 2], [step, 2 * step, step]), ([1], [2 * step + 1]):
            size, flags = len(envs), np.zeros(len(envs), bool)
            replay.add(np.stack([number, envs], 1), np.zeros((size, 1)), number, flags, flags, envs=envs)


@pytest.mark.parametrize("rounds", [8, 30])
def test_streams_may_grow_at_different_speeds(rounds: int) -> None:
    replay = make(capacity=60, n_envs=3)
    fill_unevenly(replay, rounds)
    batch = replay.sample(3000, 6)
    steps, envs = numbers(batch), batch.observation["observation"][0, :, 1].numpy()
    assert (np.diff(steps, axis=0) == 1).all()
    for env, added in enumerate((rounds, 2 * rounds, rounds)):
        assert set(steps[:, envs == env].ravel()) == set(range(max(0, added - 20), added))
    starts = np.array([min(20, added) - 5 for added in (rounds, 2 * rounds, rounds)])
    np.testing.assert_allclose((envs == 1).mean(), starts[1] / starts.sum(), atol=0.04)


def test_environments_are_named_by_distinct_numbers() -> None:
    replay = make(n_envs=2)
    for envs in ([0, 0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="distinct numbers from 0 to 1"):
            replay.add(np.zeros((2, 2)), np.zeros((2, 1)), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), envs)
    with pytest.raises(ValueError, match="'reward' of environment 1"):
        replay.add(np.zeros((1, 2)), np.zeros((1, 1)), [np.nan], [False], [False], envs=[1])
    assert len(replay) == 0


def test_same_seed_same_samples() -> None:
    one, two, other = make(seed=4), make(seed=4), make(seed=5)
    for replay in (one, two, other):
        fill(replay, range(50))
    assert_equal_batches(one.sample(8, 5), two.sample(8, 5))
    assert numbers(one.sample(8, 5)).tolist() != numbers(other.sample(8, 5)).tolist()
