"""Real environments seen through a world."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from wmgym.dream import DreamEnv, LatentObservation
from wmgym.random import ModeNoise

from .toy import toy_model, toy_world


def real() -> gym.Env:
    return gym.make("CartPole-v1")


def test_it_gives_the_features_of_filtering() -> None:
    world = toy_world(real().observation_space, real().action_space)
    env, plain = LatentObservation(real(), world), real()
    features, _ = env.reset(seed=0)
    observation, _ = plain.reset(seed=0)
    state, previous, first = world.initial(1), torch.zeros(1, 2), True
    for action in [None, 1, 1, 0, 1]:
        if action is not None:
            features, *_ = env.step(action)
            observation, *_ = plain.step(action)
            previous, first = torch.eye(2)[[action]], False
        seen = {"observation": torch.tensor(observation)[None]}
        state = world.observe(state, previous, seen, torch.tensor([first]), ModeNoise())
        np.testing.assert_allclose(features, world.features(state)[0].detach(), atol=1e-6)


def test_its_space_is_the_latent_dreams_space() -> None:
    env = real()
    model = toy_model(env.observation_space, env.action_space)
    latent = LatentObservation(env, model)
    assert latent.observation_space == DreamEnv(model, observation="latent").observation_space
    assert latent.reset(seed=0)[0] in latent.observation_space


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_same_seed_brings_the_same_features(deterministic: bool) -> None:
    env = LatentObservation(real(), toy_world(real().observation_space, real().action_space), deterministic)
    runs = [[env.reset(seed=3)[0]] + [env.step(a)[0] for a in (0, 1, 1)] for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])


def test_draws_differ_from_modes() -> None:
    world = toy_world(real().observation_space, real().action_space)
    modes, draws = (LatentObservation(real(), world, deterministic) for deterministic in (True, False))
    assert not np.array_equal(modes.reset(seed=3)[0], draws.reset(seed=3)[0])


def test_gymnasium_finds_nothing_to_complain_about_and_the_world_is_not_copied() -> None:
    world = toy_world(real().observation_space, real().action_space)
    env = LatentObservation(real(), world)
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
        check_env(env, skip_render_check=True, skip_close_check=True)
    assert env.spec is not None
    wrapper = env.spec.additional_wrappers[-1]
    assert wrapper.kwargs is not None
    assert wrapper.kwargs["model"].world is world


def test_another_environments_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observation_space is .* but the world was trained on"):
        LatentObservation(real(), toy_world())
