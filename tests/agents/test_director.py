"""Director: its goals, how long they are held, what manager and worker are paid for, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from agents import Director
from agents.goals import Codes, GoalAutoencoder, Pressure, max_cosine
from agents.imagination import Rollout
from wmgym.nets.distributions import Categoricals
from wmgym.random import TorchNoise

SMALL: dict[str, Any] = {
    "deter": 32, "stoch": 8, "units": 32, "depth": 4, "batch_size": 4, "batch_length": 8, "every": 2, "horizon": 4,
    "codes": 3, "classes": 4, "goal_layers": 1, "imagine_starts": 16, "learning_starts": 40, "train_ratio": 8.0,
    "seed": 0, "device": "cpu",
}  # fmt: skip


def small(env: Any = "test/Reach-v0", **changes: Any) -> Director:
    return Director(env, **{**SMALL, **changes})


def noise(seed: int = 0) -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(seed))


# -- goals ----------------------------------------------------------------------------------------------------


def test_nothing_is_nearer_to_a_goal_than_the_goal() -> None:
    goal = torch.randn(50, 6)
    torch.testing.assert_close(max_cosine(goal, goal), torch.ones(50))
    for other in (0.5 * goal, 2 * goal, -goal, torch.randn(50, 6)):
        assert (max_cosine(goal, other) < 1).all()
    torch.testing.assert_close(max_cosine(goal, 0.5 * goal), torch.full((50,), 0.5))
    torch.testing.assert_close(max_cosine(goal, 2 * goal), torch.full((50,), 0.5))


@pytest.mark.parametrize("downward", [True, False])
def test_pressure_moves_until_the_target_is_met(downward: bool) -> None:
    pressure = Pressure(target=10.0, start=0.1, most=1.0, downward=downward)
    high, low = (pressure(torch.tensor(value)).item() for value in (20.0, 10.5))
    assert (high > 0.1) == downward
    assert low == high  # near enough
    for _ in range(200):
        least_or_most = pressure(torch.tensor(1.0)).item()
    assert least_or_most == pytest.approx(1e-5 if downward else 1.0)


def test_codes_are_independent_choices() -> None:
    logits = torch.randn(5, 3, 4)
    codes = Codes(Categoricals(logits.log_softmax(-1)))
    draw = codes.sample(noise())
    chosen = draw.unflatten(-1, (3, 4)).argmax(-1)
    slow = torch.stack([logits.log_softmax(-1)[:, i].gather(1, chosen[:, i : i + 1]).squeeze(1) for i in range(3)]).sum(
        0
    )
    torch.testing.assert_close(codes.log_prob(draw), slow)
    assert (codes.log_prob(codes.mode()) >= codes.log_prob(draw)).all()
    even = Codes(Categoricals(torch.full((2, 3, 4), -math.log(4))))
    torch.testing.assert_close(even.entropy(), torch.ones(2))


def test_what_has_been_a_goal_is_no_longer_new() -> None:
    torch.manual_seed(0)
    goals = GoalAutoencoder(size=6, codes=3, classes=4, layers=1, units=32)
    optimizer, known, draws = torch.optim.Adam(goals.parameters(), 3e-3), torch.randn(8, 6), noise()
    before = goals.novelty(known, draws).mean()
    for _ in range(500):
        error, divergence = goals.losses(known, draws)
        optimizer.zero_grad()
        (error.mean() + 0.01 * divergence.mean()).backward()
        optimizer.step()
    assert goals.novelty(known, draws).mean() < 0.2 * before
    assert goals.novelty(known, draws).mean() < 0.2 * goals.novelty(3 * torch.randn(8, 6), draws).mean()


# -- acting ---------------------------------------------------------------------------------------------------


def test_a_goal_is_held_for_every_steps_and_ends_with_its_episode() -> None:
    agent = small(every=3, horizon=6).learn(60)
    state, goals = None, []
    starts = [True, False, False, False, False, True, False, False]
    for start in starts:
        _, state = agent.predict(np.zeros((1, 2), np.float32), state, np.array([start]))
        goals.append(state[-3][0])  # the leaves end with goal, age, action
    changes = [not np.array_equal(one, two) for one, two in pairwise(goals)]
    assert changes == [False, False, True, False, True, False, False]


def test_a_deterministic_decision_is_the_same_twice() -> None:
    agent, seen = small().learn(60), np.array([0.2, -0.4], np.float32)
    one, two = (agent.predict(seen, deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)


# -- learning -------------------------------------------------------------------------------------------------


def dreams_of(agent: Director) -> tuple[Rollout, Any]:
    batch = agent.replay_buffer.sample(4, 8)
    states = agent.world.loss(batch, agent.noise).states
    starts = type(states)(*(leaf.detach().flatten(0, 1)[:5] for leaf in states))
    return agent._dream_of_goals(starts)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_the_worker_is_paid_for_coming_near_the_goal_of_its_piece(discrete: bool) -> None:
    agent = small(env_kwargs={"discrete": discrete}).learn(60)
    dreams, directed = dreams_of(agent)
    goals = torch.stack(directed.wanted)
    assert goals.shape == (2, 5, 32)
    worker = agent._worker_dreams(dreams, goals)
    assert worker.features.shape == (3, 10, dreams.features.shape[-1] + 32)
    for piece in range(2):
        for row in range(5):
            column = piece * 5 + row
            for step in range(3):
                expected = torch.cat([dreams.features[2 * piece + step, row], goals[piece, row]])
                torch.testing.assert_close(worker.features[step, column], expected)
            for step in range(2):
                reached = dreams.features[2 * piece + step + 1, row, :32]
                torch.testing.assert_close(worker.rewards[step, column], max_cosine(goals[piece, row], reached))
                torch.testing.assert_close(worker.actions[step, column], dreams.actions[2 * piece + step, row])
    log_prob = dreams.policy.log_prob(dreams.actions)
    torch.testing.assert_close(worker.policy.log_prob(worker.actions), agent._cut(log_prob))


def test_the_manager_is_paid_for_whole_pieces() -> None:
    agent = small(gamma=0.9, lam=0.8).learn(60)
    dreams, directed = dreams_of(agent)
    continues = torch.rand(4, 5)
    dreams = dreams._replace(continues=continues)
    found: dict[str, Any] = {}
    agent._part("task_critic").loss = lambda features, returns: found.update(returns=returns) or features.sum(-1) * 0
    agent._descend = lambda *_: torch.zeros(())
    values = agent.policy.slow_task_critic(dreams.features[::2]).detach()
    agent._update_manager(dreams, torch.stack(directed.codes))
    for row in range(5):
        after = values[2, row]
        for piece in (1, 0):
            first, second = 2 * piece, 2 * piece + 1
            reward = (dreams.rewards[first, row] + continues[first, row] * dreams.rewards[second, row]) / 2
            discount = 0.9 * continues[first, row] * continues[second, row]
            after = reward + discount * (0.2 * values[piece + 1, row] + 0.8 * after)
            torch.testing.assert_close(found["returns"][piece, row], after.detach())


def test_an_update_moves_all_that_learns() -> None:
    agent = small().learn(60)
    names = ("actor", "critic", "manager", "goals", "task_critic", "novelty_critic", "slow_critic", "slow_task_critic")
    before = {name: [p.detach().clone() for p in getattr(agent.policy, name).parameters()] for name in names}
    agent.update()
    for name in names:
        now = getattr(agent.policy, name).parameters()
        assert any(not torch.equal(p, old) for p, old in zip(now, before[name], strict=True)), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": 3}, "horizon=4 must be a multiple of every=3"),
        ({"classes": 1}, "classes must be a whole number, 2 or more"),
        ({"manager_entropy": 1.5}, "manager_entropy must be a number"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**wrong)


@pytest.mark.slow
def test_it_clearly_beats_chance(assert_beats_chance: Callable[..., None]) -> None:
    agent = small(
        learning_starts=200, train_ratio=64.0, batch_size=8, batch_length=16, every=4, horizon=8, imagine_starts=64,
        learning_rate=2e-3, actor_learning_rate=1e-3, critic_learning_rate=1e-3, manager_learning_rate=1e-3,
    ).learn(2500)  # fmt: skip
    assert_beats_chance(agent, episodes=30)
