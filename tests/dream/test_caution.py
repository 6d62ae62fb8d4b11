"""Disagreement of an ensemble: told, penalised, and a reason to stop."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym.dream import DreamEnv, DreamModel, DreamVecEnv, DreamVectorEnv, StartStates, as_model
from wmgym.worlds.rssm import RSSM, RSSMConfig

from .toy import PUSH, ToyState, ToyWorld, toy_model


class Doubtful(ToyWorld):
    """A toy that is as unsure as the first action is large."""

    has_ensemble = True

    def disagreement(self, state: ToyState, action: Tensor) -> Tensor:
        return action[:, 0].abs()


def doubtful(**config: float) -> DreamModel:
    model = toy_model(**config)
    model.world.__class__ = Doubtful
    return model


SURE, UNSURE = np.array([[0.1, 0.0]] * 2, np.float32), np.array([[0.1, 0.0], [0.9, 0.0]], np.float32)


def test_the_infos_tell_it_of_every_step() -> None:
    dreams = DreamVectorEnv(2, doubtful(continue_logit=60.0), horizon=2)
    _, infos = dreams.reset(seed=0)
    assert infos == {}
    *_, infos = dreams.step(UNSURE)
    np.testing.assert_allclose(infos["disagreement"], [0.1, 0.9], rtol=1e-6)
    assert infos["_disagreement"].all()
    dreams.step(UNSURE)
    *_, infos = dreams.step(UNSURE)  # begins anew
    assert not infos["_disagreement"].any()
    assert not infos["disagreement"].any()


def test_one_dream_tells_a_number() -> None:
    env = gym.make("Dream-v0", model=doubtful())
    env.reset(seed=0)
    assert env.step(np.array([0.5, 0.0], np.float32))[4] == {"disagreement": 0.5}


def test_stable_baselines3_is_told_too_at_an_end_as_before() -> None:
    env = DreamVecEnv(2, doubtful(continue_logit=60.0), horizon=2)
    env.reset()
    for _ in range(2):
        infos = env.step(UNSURE)[3]
        assert [info["disagreement"] for info in infos] == pytest.approx([0.1, 0.9])
    assert "terminal_observation" in infos[0]


def test_the_penalty_is_taken_off_the_reward_and_changes_nothing_else() -> None:
    plain, careful = DreamVectorEnv(2, doubtful()), DreamVectorEnv(2, doubtful(), disagreement_penalty=3.0)
    plain.reset(seed=0), careful.reset(seed=0)
    one, two = plain.step(UNSURE), careful.step(UNSURE)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_allclose(one[1] - two[1], [0.3, 2.7], rtol=1e-5)


def test_a_dream_halts_where_the_world_does_not_know() -> None:
    dreams = DreamVectorEnv(2, doubtful(continue_logit=60.0), disagreement_halt=0.5, halt_reward=-7.0)
    dreams.reset(seed=0)
    assert not dreams.step(SURE)[2].any()
    _, reward, terminated, *_ = dreams.step(UNSURE)
    assert list(terminated) == [False, True]
    assert reward[0] != -7.0
    assert reward[1] == -7.0


def test_an_rssm_with_an_ensemble_disagrees_and_one_without_says_so() -> None:
    torch.manual_seed(0)
    space = spaces.Box(-1, 1, (3,), np.float32)
    small = {"deter": 8, "stoch": 4, "hidden": 8}
    world = RSSM(space, PUSH, RSSMConfig(**small, ensemble=3))
    env = DreamEnv(as_model(world, StartStates(world.initial(1), torch.tensor([True]))))
    env.reset(seed=0)
    assert env.step(np.zeros(2, np.float32))[4]["disagreement"] > 0
    plain = RSSM(space, PUSH, RSSMConfig(**small))
    assert not plain.has_ensemble
    with pytest.raises(ValueError, match="no ensemble"):
        plain.disagreement(plain.initial(1), torch.zeros(1, 2))
