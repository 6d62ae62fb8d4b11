"""It learns: a tiny Dreamer solves a tiny task, and its world predicts the task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from agents import Dreamer
from wmgym.random import ModeNoise
from wmgym.real import make_vec

DECISIONS, SEEN, DREAMT = 1500, 4, 10


class Chance:
    """The policy to beat."""

    def __init__(self, env: Any) -> None:
        self.space = env.action_space
        self.space.seed(0)

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        return np.array([self.space.sample() for _ in observation]), None


@pytest.fixture(scope="module", params=[(False, 0), (True, 1)], ids=["continuous, seed 0", "discrete, seed 1"])
def trained(request: pytest.FixtureRequest, tiny: Any) -> Dreamer:
    discrete, seed = request.param
    return tiny(
        "test/Reach-v0",
        env_kwargs={"discrete": discrete},
        seed=seed,
        learning_starts=200,
        train_ratio=64.0,
        batch_size=8,
        batch_length=16,
        horizon=8,
        imagine_starts=64,
        learning_rate=2e-3,
        actor_learning_rate=1e-3,
        critic_learning_rate=1e-3,
    ).learn(DECISIONS)


def test_it_clearly_beats_chance(trained: Dreamer) -> None:
    env = make_vec("test/Reach-v0", 10, seed=100, **trained.env_kwargs)
    learnt, _ = evaluate_policy(trained, env, n_eval_episodes=30)
    env.seed(100)
    chance, _ = evaluate_policy(Chance(env), env, n_eval_episodes=30)
    # At best the return is about 18.5: the way there takes 3 of 20 steps.
    assert learnt > chance + 0.5 * (18.5 - chance)


@torch.no_grad()
def test_its_world_predicts_better_than_that_nothing_changes(trained: Dreamer) -> None:
    episodes = [e for e in trained.replay_buffer.episodes() if len(e) == 21][:10]  # those of the random phase
    seen = {key: np.stack([e.observation[key] for e in episodes], 1) for key in episodes[0].observation}
    action = torch.as_tensor(np.stack([e.action for e in episodes], 1))
    reward = np.stack([e.reward for e in episodes], 1)
    world, noise = trained.world, ModeNoise()
    state = world.initial(len(episodes))
    for t in range(SEEN):
        observation = {key: torch.as_tensor(value[t]) for key, value in seen.items()}
        state = world.observe(state, action[t], observation, torch.full((len(episodes),), t == 0), noise)
    errors: dict[str, list[Any]] = {"dreamt": [], "held": [], "reward dreamt": [], "reward held": []}
    for t in range(SEEN, SEEN + DREAMT):
        imagined = world.imagine(state, action[t], noise)
        state = imagined.state
        dreamt = world.decode(world.features(state))["observation"].numpy()
        real = seen["observation"]
        errors["dreamt"].append(np.square(dreamt - real[t]).mean())
        errors["held"].append(np.square(real[SEEN - 1] - real[t]).mean())
        errors["reward dreamt"].append(np.abs(imagined.reward.numpy() - reward[t]).mean())
        errors["reward held"].append(np.abs(reward[SEEN - 1] - reward[t]).mean())
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    assert mean["dreamt"] < 0.5 * mean["held"]
    assert mean["reward dreamt"] < 0.5 * mean["reward held"]
