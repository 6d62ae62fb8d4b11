"""Tools of Gymnasium and stable-baselines3 around dreams."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics
from moviepy import VideoFileClip
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

import wmgym
from wmgym.dream import DreamVecEnv, StartStates
from wmgym.worlds.rssm import RSSM, RSSMConfig

from .toy import BOTH, PICTURE, PUSH, VECTOR, toy_model

NOTHING = np.zeros((4, 2), np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An RSSM in a file, as processes of their own can open it."""
    world = RSSM(VECTOR, PUSH, RSSMConfig(deter=8, stoch=4, hidden=8))
    starts = StartStates(world.initial(2), torch.ones(2, dtype=torch.bool))
    return str(wmgym.save_world(tmp_path_factory.mktemp("worlds") / "rssm.zip", world, starts))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_make_vec_in_every_autoreset_mode(mode: AutoresetMode) -> None:
    dreams = gym.make_vec("Dream-v0", num_envs=4, model=toy_model(), autoreset_mode=mode, horizon=2)
    assert dreams.metadata["autoreset_mode"] is mode
    dreams.reset(seed=0)
    dreams.step(NOTHING)
    assert (dreams.step(NOTHING)[3] | (mode is AutoresetMode.NEXT_STEP)).all()


def test_a_whole_spec_round_trips_through_json(saved: str) -> None:
    settings = {"start": 1, "horizon": 7, "termination": "never", "temperature": 0.5, "device": "cpu"}
    env = gym.make("Dream-v0", model=saved, **settings)
    assert env.spec is not None
    text = env.spec.to_json()
    again = gym.make(EnvSpec.from_json(text))
    assert json.loads(text)["kwargs"] == {"model": saved, **settings}
    env.reset(seed=1), again.reset(seed=1)
    np.testing.assert_array_equal(env.step(np.ones(2))[0], again.step(np.ones(2))[0])


@pytest.mark.parametrize("observation", [VECTOR, PICTURE], ids=["bars", "picture"])
def test_videos_of_one_dream(observation: Any, tmp_path: Path) -> None:
    env = gym.make("Dream-v0", model=toy_model(observation), render_mode="rgb_array", horizon=5, termination="never")
    env = RecordVideo(env, str(tmp_path / "films"), episode_trigger=lambda _: True)
    env.reset(seed=0)
    while not env.step(np.zeros(2, np.float32))[3]:
        pass
    env.close()
    with VideoFileClip(str(next(tmp_path.rglob("*.mp4")))) as clip:
        assert tuple(clip.size) == ((128, 128) if observation is VECTOR else (36, 40))
        assert clip.duration == pytest.approx(6 / 30, abs=0.04)


@pytest.mark.skipif(not hasattr(wrappers.vector, "RecordVideo"), reason="this gymnasium does not film many at once")
def test_videos_of_many_dreams_are_tiled(tmp_path: Path) -> None:
    dreams = gym.make_vec("Dream-v0", num_envs=4, model=toy_model(PICTURE), render_mode="rgb_array", horizon=5)
    recorded = wrappers.vector.RecordVideo(
        dreams, str(tmp_path / "films"), video_length=3, step_trigger=lambda step: step == 0
    )
    recorded.reset(seed=0)
    for _ in range(4):
        recorded.step(NOTHING)
    recorded.close()
    with VideoFileClip(str(next(tmp_path.rglob("*.mp4")))) as clip:
        assert tuple(clip.size) == (72, 80)


def test_episode_statistics() -> None:
    make: dict[str, Any] = {"model": toy_model(), "horizon": 5, "termination": "never"}
    env = RecordEpisodeStatistics(gym.make("Dream-v0", **make))
    dreams = RecordVectorStatistics(gym.make_vec("Dream-v0", num_envs=4, **make))
    env.reset(seed=0), dreams.reset(seed=0)
    total = 0.0
    for _ in range(5):
        _, reward, _, _, info = env.step(np.zeros(2, np.float32))
        *_, infos = dreams.step(NOTHING)
        total += reward
    assert info["episode"]["l"] == 5
    assert info["episode"]["r"] == pytest.approx(total)
    assert list(infos["episode"]["l"]) == [5] * 4
    assert infos["episode"]["r"][0] == pytest.approx(total, abs=1e-5)


def test_gymnasiums_processes_dream_the_same(saved: str) -> None:
    batched = gym.make_vec("Dream-v0", num_envs=2, model=saved)
    processes = AsyncVectorEnv([partial(gym.make, "wmgym:Dream-v0", model=saved)] * 2, context="spawn")
    try:
        np.testing.assert_allclose(batched.reset(seed=5)[0], processes.reset(seed=5)[0], atol=1e-6)
        for _ in range(5):
            for a, b in zip(batched.step(NOTHING[:2])[:4], processes.step(NOTHING[:2])[:4], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
    finally:
        processes.close()


def test_stable_baselines3s_wrappers() -> None:
    monitored = VecMonitor(DreamVecEnv(4, toy_model(), horizon=5, termination="never"))
    stacked = VecFrameStack(VecNormalize(monitored), n_stack=3)
    observation = stacked.reset()
    assert observation.shape == (4, 9)
    seen = [observation]
    for _ in range(5):
        observation, reward, dones, infos = stacked.step(NOTHING)
        seen.append(observation)
    assert dones.all()
    assert [info["episode"]["l"] for info in infos] == [5] * 4
    np.testing.assert_array_equal(infos[0]["terminal_observation"][:6], seen[4][0, 3:])
    assert np.isfinite(reward).all()


def test_normalising_and_stacking_pictures() -> None:
    stacked = VecFrameStack(DreamVecEnv(2, toy_model(PICTURE), horizon=5), n_stack=4)
    assert stacked.reset().shape == (2, 40, 36, 12)
    mixed = VecNormalize(VecMonitor(DreamVecEnv(2, toy_model(BOTH), horizon=5)), norm_obs_keys=["speed"])
    assert mixed.reset()["image"].dtype == np.uint8
