"""Candidates for C are judged in dreams and in real episodes; C itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.controllers import Controller
from agents.rollouts import dream_returns, real_returns
from tests.agents.small import tiny
from wmgym.nets.coders import CoderConfig
from wmgym.random import ModeNoise, TorchNoise
from wmgym.real import make_vec
from wmgym.worlds.base import index_state
from wmgym.worlds.config import RSSMConfig
from wmgym.worlds.mdn_rnn import MDNRNN, MDNRNNConfig
from wmgym.worlds.rssm import RSSM


def small_world(**changes: Any) -> MDNRNN:
    torch.manual_seed(0)
    coder = CoderConfig(units=8, layers=1, symlog=False)
    config = MDNRNNConfig(latent=3, hidden=5, coder=coder, **changes)
    return MDNRNN(spaces.Box(-9, 9, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32), config)


def test_all_candidates_and_rollouts_are_one_batch_of_the_same_dreams() -> None:
    world = small_world(predict_end=False)
    controller = Controller(world.feature_size, world.action_space)
    candidates, starts = torch.randn(3, controller.size), world.initial(4)._replace(latent=torch.randn(4, 3))
    returns, steps = dream_returns(world, controller, candidates, starts, 2, 6, ModeNoise())
    assert steps == 3 * 2 * 6
    for p in range(3):
        controller.weights.copy_(candidates[p])
        state, total = index_state(starts, torch.tensor([2])), 0.0  # ModeNoise's uniform numbers are one half
        for _ in range(6):
            action = controller(world.features(state)).mode()
            state, reward, _ = world.imagine(state, action, ModeNoise())
            total += reward.item()
        assert returns[p].tolist() == pytest.approx([total, total], rel=1e-4)


def test_candidates_are_judged_in_any_world() -> None:
    world = RSSM(spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(2), RSSMConfig(deter=8, stoch=4, hidden=8))
    controller = Controller(world.feature_size, world.action_space)
    candidates = torch.randn(3, controller.size)
    noise = TorchNoise(torch.Generator().manual_seed(0))
    returns, _ = dream_returns(world, controller, candidates, world.initial(1), 5, 4, noise, ends="never")
    assert returns.shape == (3, 5)
    assert len(set(returns.flatten().tolist())) == 15  # each has chance of its own


def test_candidates_differ_by_what_they_do_and_not_by_luck() -> None:
    world = small_world()
    controller = Controller(world.feature_size, world.action_space)
    first, other = torch.randn(2, controller.size)
    candidates, starts = torch.stack([first, first, first + 1e-3, other]), world.initial(4)

    def judged(candidates: torch.Tensor) -> torch.Tensor:
        noise = TorchNoise(torch.Generator().manual_seed(0))
        return dream_returns(world, controller, candidates, starts, 50, 30, noise)[0]

    returns = judged(candidates)
    assert torch.allclose(returns[0], returns[1], atol=1e-5)
    near, far = ((returns[0] - returns[row]).std() for row in (2, 3))
    assert near < 0.2 * far
    assert len(set(returns[0].tolist())) > 20  # rollouts have chance of their own
    # Whoever is judged beside it, and however long that one's dreams last, changes nothing.
    assert torch.allclose(judged(first[None])[0], returns[0], atol=1e-5)


def test_a_dream_that_has_ended_earns_no_more() -> None:
    world = small_world()
    controller = Controller(world.feature_size, world.action_space)
    with torch.no_grad():
        world.end_head.weight.zero_()  # type: ignore[union-attr]
        world.reward_head.weight.zero_()  # type: ignore[union-attr]
        world.reward_head.bias.fill_(1.0)  # type: ignore[union-attr]

    def mean_length(end_logit: float, ends: Any) -> float:
        world.end_head.bias.data.fill_(end_logit)  # type: ignore[union-attr]
        noise = TorchNoise(torch.Generator().manual_seed(0))
        candidates = torch.zeros(2, controller.size)
        returns, steps = dream_returns(world, controller, candidates, world.initial(1), 500, 40, noise, ends=ends)
        assert steps == returns.sum()
        return returns.mean().item()

    assert mean_length(50.0, "sample") == mean_length(1.0, "threshold") == 1.0
    assert mean_length(-1.0, "threshold") == mean_length(50.0, "never") == 40.0
    assert mean_length(0.0, "sample") == pytest.approx(2.0, rel=0.1)  # each step ends one in two


def test_each_candidate_is_judged_by_its_own_real_episodes(counter: Any) -> None:
    agent = tiny(counter(length=7), real_envs=0).learn(30)
    candidates = torch.randn(5, agent.policy.actor.size)
    returns, steps = real_returns(agent.get_env(), agent.policy, candidates, rollouts=3)
    assert returns.tolist() == [[28.0] * 3] * 5  # 1 + 2 + ... + 7
    assert steps == 5 * 3 * 7

    venv = make_vec("test/Reach-v0", 2, seed=0)
    agent = tiny("test/Reach-v0").learn(30)
    returns, steps = real_returns(venv, agent.policy, candidates[:, : agent.policy.actor.size], rollouts=2)
    assert steps == 5 * 2 * 20
    assert len(set(returns.flatten().tolist())) > 5


@pytest.mark.parametrize("ordered", [False, True])
def test_one_layer_chooses_among_discrete_actions(ordered: bool) -> None:
    controller = Controller(2, spaces.Discrete(3), ordered=ordered, bias=False)
    assert controller.size == (2 if ordered else 6)
    with torch.no_grad():
        controller.weights.copy_(torch.tensor([1.0, 0.0] if ordered else [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]))
    actions = controller(torch.tensor([[-5.0, 0.0], [0.0, 0.0], [5.0, 0.0]])).mode()
    assert actions.sum(-1).tolist() == [1.0] * 3
    expected = [0, 1, 2] if ordered else [0, 0, 2]
    assert actions.argmax(-1).tolist() == expected
