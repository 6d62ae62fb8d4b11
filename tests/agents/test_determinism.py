"""The same seed brings the same result, and looking at it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback

from wmgym.real import make_vec


@pytest.mark.parametrize(("env", "n_envs"), [("CartPole-v1", 2), ("test/Reach-v0", 1)])
def test_the_seed_decides_everything(tiny: Any, assert_same: Any, env: str, n_envs: int) -> None:
    one, two, other = (tiny(env, n_envs=n_envs, seed=seed).learn(100) for seed in (3, 3, 4))
    assert one._n_updates > 10
    assert_same(one, two)
    ours, theirs = one.policy.state_dict(), other.policy.state_dict()
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("weight"))
    assert not torch.equal(one.replay_buffer.sample(9, 8).action, other.replay_buffer.sample(9, 8).action)


def test_other_random_numbers_of_the_process_do_not_matter(tiny: Any, assert_same: Any) -> None:
    quiet = tiny().learn(80)
    agent = tiny()
    agent.learn(80, callback=lambda *_: bool(torch.rand(3).sum() >= 0))
    assert_same(quiet, agent)


def test_evaluating_and_saving_do_not_change_the_run(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    watched = EvalCallback(make_vec("CartPole-v1", seed=9), n_eval_episodes=2, eval_freq=20, verbose=0)
    saved = CheckpointCallback(30, str(tmp_path), save_replay_buffer=True)
    assert_same(tiny().learn(100, callback=[watched, saved]), tiny().learn(100))


def test_without_a_seed_one_is_drawn_and_kept(tiny: Any, assert_same: Any) -> None:
    one, two = tiny(seed=None), tiny(seed=None)
    assert one.seed != two.seed
    assert_same(one.learn(60), tiny(seed=one.seed).learn(60))
