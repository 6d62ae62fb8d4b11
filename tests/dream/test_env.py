"""One dream, as Gymnasium and its tools see it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import MissingArgument, ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import wmgym
from wmgym.dream import DreamEnv, DreamVectorEnv, load_model
from wmgym.dream.frames import draw_bars
from wmgym.worlds.store import WORLDS, WorldKind, save_world

from .toy import BOTH, PICTURE, PUSH, VECTOR, ToyState, toy_model


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A toy with pictures and vectors in a file."""
    monkeypatch.setitem(WORLDS, "toy", WorldKind(ToyState.__module__, "ToyWorld", "ToyConfig"))
    model = toy_model(BOTH)
    return str(save_world(tmp_path / "toy.zip", model.world, model.starts, {"id": "Toy-v0", "max_episode_steps": 33}))


@pytest.mark.parametrize("observation", [VECTOR, PICTURE, BOTH], ids=["vector", "picture", "both"])
@pytest.mark.parametrize("action", [PUSH, spaces.Discrete(3)], ids=["box", "discrete"])
@pytest.mark.parametrize("kind", ["decoded", "latent"])
def test_both_checkers_pass_without_a_warning(observation: Any, action: Any, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("Dream-v0", model=toy_model(observation, action), observation=kind)
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)


def test_checkers_pass_with_a_path_and_a_render_mode(saved: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("wmgym/Dream-v0", model=saved, render_mode="rgb_array")
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped, skip_render_check=False)


def test_a_spec_with_a_path_round_trips_through_json(saved: str) -> None:
    env = gym.make("Dream-v0", model=saved, observation="latent", seed=3)
    spec = env.spec
    assert spec is not None
    again = gym.make(EnvSpec.from_json(spec.to_json()))
    np.testing.assert_array_equal(env.reset()[0], again.reset()[0])


def test_make_vec_by_path(saved: str) -> None:
    dreams = gym.make_vec("Dream-v0", num_envs=8, model=saved, autoreset_mode="SameStep")
    assert isinstance(dreams, DreamVectorEnv)
    assert dreams.num_envs == 8
    assert dreams.horizon == 33  # as the file tells of the real environment
    assert dreams.reset(seed=0)[0] in dreams.observation_space
    assert dreams.spec is not None
    again = gym.make_vec(EnvSpec.from_json(dreams.spec.to_json()))
    np.testing.assert_array_equal(again.reset(seed=0)[0]["image"], dreams.reset(seed=0)[0]["image"])


def test_gymnasiums_own_vectorisation_agrees(saved: str) -> None:
    batched = gym.make_vec("Dream-v0", num_envs=3, model=saved, observation="latent")
    sync = gym.make_vec("Dream-v0", num_envs=3, model=saved, observation="latent", vectorization_mode="sync")
    one, _ = batched.reset(seed=5)
    two, _ = sync.reset(seed=5)
    np.testing.assert_allclose(one, two, atol=1e-6)
    batched.action_space.seed(0)
    for _ in range(80):  # past two horizons of 33
        actions = batched.action_space.sample()
        for a, b in zip(batched.step(actions)[:4], sync.step(actions)[:4], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_gymnasiums_time_limit_may_shorten_a_dream() -> None:
    env = gym.make("Dream-v0", model=toy_model(), termination="never", max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(2, np.float32))[3] for _ in range(3)] == [False, False, True]


def test_every_dream_draws_actions_of_its_own() -> None:
    model = toy_model()
    before = model.world.action_space.np_random.bit_generator.state
    one, other = DreamEnv(model), DreamEnv(model)
    for env in (one, other):
        env.action_space.seed(0)
    draws = [[env.action_space.sample() for _ in range(3)] for env in (one, other)]
    np.testing.assert_array_equal(*draws)
    many, more = DreamVectorEnv(2, model), DreamVectorEnv(2, model)
    assert not np.array_equal(many.action_space.sample(), more.action_space.sample())
    assert one.action_space == model.world.action_space
    assert model.world.action_space.np_random.bit_generator.state == before  # nobody's seed has reached it


def test_a_handle_is_never_copied() -> None:
    model = toy_model()
    env = gym.make("Dream-v0", model=model)
    assert env.spec is not None
    assert env.spec.kwargs["model"] is model
    assert env.unwrapped.world is model.world


def test_a_dream_loaded_from_a_file_is_the_dream_that_was_saved(saved: str) -> None:
    live, loaded = DreamEnv(toy_model(BOTH), horizon=33), DreamEnv(saved)
    live.reset(seed=1), loaded.reset(seed=1)
    for _ in range(5):
        one, two = live.step(np.ones(2)), loaded.step(np.ones(2))
        np.testing.assert_array_equal(one[0]["image"], two[0]["image"])
        assert one[1:] == two[1:]


def test_a_dream_of_an_rssm_runs_from_a_file(tmp_path: Path) -> None:
    from wmgym.worlds.rssm import RSSM

    world = RSSM(BOTH["speed"], spaces.Discrete(3))
    starts = wmgym.StartStates(world.initial(3), torch.tensor([True, True, False]))
    path = str(wmgym.save_world(tmp_path / "rssm.zip", world, starts))
    env = gym.make("Dream-v0", model=path)
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert isinstance(env.step(1)[1], float)


def test_branching_a_single_dream() -> None:
    env = DreamEnv(toy_model())
    env.reset(seed=0)
    state = env.get_state()
    future = [env.step(np.ones(2))[0] for _ in range(5)]
    env.set_state(state)
    np.testing.assert_array_equal(future, [env.step(np.ones(2))[0] for _ in range(5)])


def test_branches_of_a_single_dream_go_on_after_their_ends() -> None:
    env = DreamEnv(toy_model(), horizon=4, termination="never")
    env.reset(seed=0)
    branches = env.branch(3)
    ends = [branches.step(np.ones((3, 2)))[3].sum() for _ in range(10)]
    assert sum(ends) == 6


def test_rendering_shows_the_decoded_picture_in_both_kinds_of_observation() -> None:
    frames = []
    for kind in ("decoded", "latent"):
        env = DreamEnv(toy_model(PICTURE), observation=kind, render_mode="rgb_array")
        env.reset(seed=0)
        frames.append(env.render())
    np.testing.assert_array_equal(frames[0], frames[1])
    assert frames[0] in PICTURE


def test_a_world_without_pictures_shows_what_it_decodes_as_bars() -> None:
    env = gym.make("Dream-v0", model=toy_model(VECTOR), render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), draw_bars(observation[None])[0])


def test_ends_need_a_reset() -> None:
    env = DreamEnv(toy_model(), horizon=1)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))
    env.reset(seed=0)
    env.step(np.zeros(2))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2))


@pytest.mark.parametrize(("action", "text"), [
    (np.zeros(3), "Actions have shape"),
    (np.array([0, np.inf]), "is not finite"),
    (0.5, "Actions have shape"),
])  # fmt: skip
def test_actions_that_cannot_be(action: Any, text: str) -> None:
    env = DreamEnv(toy_model())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=text):
        env.step(action)


def test_a_missing_model_is_told() -> None:
    with pytest.raises(MissingArgument, match=r'gym.make\("Dream-v0", model="walker.zip"\)'):
        gym.make("Dream-v0")
    with pytest.raises(MissingArgument, match="A dream needs a model"):
        gym.make_vec("Dream-v0", num_envs=2)


def test_a_wrong_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(wmgym.CheckpointError, match=r"nothing\.zip"):
        gym.make("Dream-v0", model=str(tmp_path / "nothing.zip"))


def test_a_reset_mask_is_not_for_one_dream() -> None:
    with pytest.raises(ValueError, match="for vector environments"):
        DreamEnv(toy_model()).reset(options={"reset_mask": np.array([True])})


def test_a_file_without_starts_opens_and_begins_from_an_observation(saved: str, tmp_path: Path) -> None:
    path = save_world(tmp_path / "bare.zip", load_model(saved).world)
    env = gym.make("Dream-v0", model=str(path))
    with pytest.raises(ValueError, match="no start states"):
        env.reset(seed=0)
    env.reset(seed=0, options={"observation": BOTH.sample()})


def test_every_public_name_is_there() -> None:
    assert all(getattr(wmgym, name) is not None for name in wmgym.__all__)
    assert set(wmgym.__all__) <= set(dir(wmgym))
    with pytest.raises(AttributeError, match="no attribute 'Walker'"):
        wmgym.Walker  # noqa: B018


def test_importing_wmgym_is_light() -> None:
    heavy = ("torch", "dm_control", "mujoco", "stable_baselines3")
    code = f"import sys, wmgym; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_pictures_from_zero_to_one_are_refused() -> None:
    """They would be black."""
    env = DreamEnv(toy_model(PICTURE))
    with pytest.raises(ValueError, match="has dtype float64: pictures are uint8, from 0 to 255"):
        env.reset(seed=0, options={"observation": np.full(PICTURE.shape, 0.9)})
