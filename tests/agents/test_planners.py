"""Planners find what there is to find, in a formula, a world, a dream and a simulator, all through one call."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.plannable import plannable
from agents.planners import CEM, MPPI, CategoricalBelief, RandomShooting, best, shifted
from wmgym import make_env
from wmgym.dream import StartStates, as_model
from wmgym.random import ModeNoise, Noise, TorchNoise
from wmgym.worlds.base import index_state
from wmgym.worlds.rssm import RSSM, HeadConfig, RSSMConfig


def noise(seed: int = 0) -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(seed))


class Formula:
    """A return that is known: 10 minus a weighted squared distance to a best plan, different in each environment."""

    action_space: Any = spaces.Box(-1, 1, (2,))
    device = torch.device("cpu")

    def __init__(self, horizon: int = 6, num_envs: int = 3) -> None:
        generator = torch.Generator().manual_seed(5)
        self.num_envs = num_envs
        self.best = torch.rand(horizon, num_envs, 2, generator=generator) * 1.6 - 0.8
        self.weight = torch.rand(horizon, num_envs, 2, generator=generator) * 5 + 0.2

    def returns(self, plans: Tensor, noise: Noise) -> Tensor:
        miss = (plans - self.best.unsqueeze(2)).square()
        return 10 - (self.weight.unsqueeze(2) * miss).sum((0, -1))


class Combination(Formula):
    """A lock: every step has one right choice of three, worth 1."""

    action_space = spaces.Discrete(3)

    def __init__(self, horizon: int = 6, num_envs: int = 3) -> None:
        self.num_envs = num_envs
        self.best = torch.randint(0, 3, (horizon, num_envs), generator=torch.Generator().manual_seed(5))

    def returns(self, plans: Tensor, noise: Noise) -> Tensor:
        return (plans.argmax(-1) == self.best.unsqueeze(-1)).float().sum(0)


def world(action: Any = None, **config: Any) -> RSSM:
    torch.manual_seed(1)
    settings = {"deter": 16, "stoch": 4, "hidden": 16, "reward": HeadConfig(units=16), **config}
    box = spaces.Box(-1, 1, (2,), np.float32)
    built = RSSM(spaces.Box(-1, 1, (3,), np.float32), action or box, RSSMConfig(**settings))
    return built.requires_grad_(False)


def some_states(built: RSSM, count: int) -> Any:
    """States that a few random steps lead to."""
    state = built.initial(count)
    for _ in range(3):
        state = built.transition(state, 2 * torch.rand(count, 2) - 1, TorchNoise())
    return state


# -- the search -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", [CEM(6), MPPI(6, momentum=0.0, min_std=0.0, temperature=1.0)], ids=["cem", "mppi"])
def test_a_quadratic_is_climbed_to_its_top(planner: CEM) -> None:
    formula = Formula()
    belief = planner.plan(formula, noise())
    reached = formula.returns(belief.mean.unsqueeze(2), noise())[:, 0]
    assert (reached > 9.9).all()  # the top is 10
    assert (belief.action() - formula.best[0]).abs().max() < 0.1


def test_cem_beats_random_shooting_with_as_many_plans() -> None:
    formula = Formula()
    climbed = CEM(6, 100, 10, 10).plan(formula, noise()).mean
    thrown = RandomShooting(6, 1000).plan(formula, noise()).mean
    shots = noise().normal(6, 1, 1000, 2).clamp(-1, 1).expand(-1, 3, -1, -1)
    assert torch.equal(formula.returns(thrown.unsqueeze(2), noise())[:, 0], formula.returns(shots, noise()).amax(-1))
    assert (formula.returns(climbed.unsqueeze(2), noise()) > formula.returns(thrown.unsqueeze(2), noise())).all()


def test_random_shooting_has_no_second_iteration() -> None:
    with pytest.raises(ValueError, match="1 iteration, not 3"):
        RandomShooting(6, 100, iterations=3)


def test_the_optimum_may_lie_on_the_edge() -> None:
    formula = Formula()
    formula.best = formula.best.sign()
    belief = CEM(6).plan(formula, noise())
    assert (formula.returns(belief.mean.unsqueeze(2), noise()) > 9.9).all()


@pytest.mark.parametrize("planner", [CEM(6, 200, 10, 20), MPPI(6, 200, 10, 20)], ids=["cem", "mppi"])
def test_a_lock_is_opened_by_discrete_plans(planner: CEM) -> None:
    lock = Combination()
    belief = planner.plan(lock, noise())
    assert torch.equal(belief.mean.argmax(-1), lock.best)
    assert torch.equal(belief.action().argmax(-1), lock.best[0])
    assert belief.action().sum(-1).tolist() == [1.0] * 3


def test_one_iteration_of_cem_is_the_papers() -> None:
    formula, planner = Formula(), CEM(6, 50, 1, 5)
    belief = planner.plan(formula, noise(3))
    draws = noise(3).normal(6, 1, 50, 2).expand(-1, 3, -1, -1).clamp(-1, 1)
    returns = formula.returns(draws, noise())
    for env in range(3):
        elite = draws[:, env, returns[env].argsort(descending=True)[:5]]
        torch.testing.assert_close(belief.mean[:, env], elite.mean(1))
        torch.testing.assert_close(belief.std[:, env], (elite.var(1, unbiased=False) + 1e-6).sqrt())


def test_one_iteration_of_mppi_weighs_by_returns() -> None:
    formula = Formula()
    belief = MPPI(6, 50, 1, 5, temperature=2.0, momentum=0.25, min_std=0.3).plan(formula, noise(3))
    draws = noise(3).normal(6, 1, 50, 2).expand(-1, 3, -1, -1).clamp(-1, 1)
    returns = formula.returns(draws, noise())
    for env in range(3):
        index = returns[env].argsort(descending=True)[:5]
        weight = (2 * (returns[env, index] - returns[env, index].max())).exp()
        mean = (draws[:, env, index] * (weight / weight.sum())[None, :, None]).sum(1)
        torch.testing.assert_close(belief.mean[:, env], 0.75 * mean)
    assert belief.std.min() >= 0.3


def test_a_warm_start_goes_on_from_the_last_plan() -> None:
    formula = Formula()
    cold = CEM(6, 60, 2, 6).plan(formula, noise())
    warm = CEM(6, 60, 2, 6).plan(formula, noise(), start=formula.best)
    value = [formula.returns(b.mean.unsqueeze(2), noise()).mean() for b in (cold, warm)]
    assert value[1] > value[0]
    plan = torch.arange(6.0)[:, None, None].expand(6, 2, 1)
    assert shifted(plan)[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 0]
    chances = CategoricalBelief.around(shifted(torch.eye(3)[:, None])).mean[:, 0]
    torch.testing.assert_close(chances.sum(-1), torch.ones(3))
    assert chances[0].argmax() == 1
    torch.testing.assert_close(chances[2], torch.full((3,), 1 / 3))


def test_plans_that_a_diverged_world_calls_nan_are_never_best() -> None:
    class Diverged(Formula):
        def returns(self, plans: Tensor, noise: Noise) -> Tensor:
            returns = super().returns(plans, noise)
            return torch.where(plans[0, :, :, 0] > 0, torch.nan, returns)

    belief = CEM(6, 100, 5, 10).plan(Diverged(), noise())
    assert belief.mean.isfinite().all()
    assert (belief.action()[:, 0] <= 0).all()


def test_the_best_plans_come_first() -> None:
    plans, returns = torch.randn(4, 2, 9, 3), torch.randn(2, 9)
    chosen, top = best(plans, returns, 3)
    for env in range(2):
        order = returns[env].argsort(descending=True)[:3]
        assert torch.equal(chosen[:, env], plans[:, env, order])
        assert torch.equal(top[env], returns[env, order])


@pytest.mark.parametrize(
    "wrong", [{"horizon": 0}, {"candidates": 0}, {"iterations": 0}, {"elites": 2000}, {"elites": 0}]
)
def test_searches_that_cannot_be_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CEM(**wrong)


# -- in a world -----------------------------------------------------------------------------------------------


def test_a_plan_is_worth_what_the_world_says_step_by_step() -> None:
    built = world(continues=HeadConfig(layers=1, units=16))
    states, plans = some_states(built, 2), torch.rand(5, 2, 7, 2) * 2 - 1
    value = torch.nn.Linear(built.feature_size, 1).requires_grad_(False)
    model = plannable(built, states, value=lambda features: value(features).squeeze(-1), discount=0.9)
    found = model.returns(plans, ModeNoise())
    for env, j in np.ndindex(2, 7):
        state, total, reach = index_state(states, slice(env, env + 1)), 0.0, 1.0
        for t in range(5):
            step = built.imagine(state, plans[t, env, j][None], ModeNoise())
            total += reach * step.reward.item()
            reach *= 0.9 * step.continues.item()
            state = step.state
        total += reach * value(built.features(state)).item()
        assert found[env, j].item() == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_a_plan_depends_on_the_state_of_its_own_environment_alone() -> None:
    built, planner = world(), CEM(5, 40, 3, 5)
    states = some_states(built, 4)
    together = planner.plan(plannable(built, states), noise(7)).mean
    for env in range(4):
        alone = planner.plan(plannable(built, index_state(states, slice(env, env + 1))), noise(7)).mean
        torch.testing.assert_close(together[:, env : env + 1], alone, rtol=1e-3, atol=1e-4)


def test_chance_is_drawn_once_for_every_plan() -> None:
    built = world()
    model = plannable(built, built.initial(1))
    same = torch.zeros(5, 1, 30, 2)
    assert model.returns(same, noise()).std() > 0
    assert model.returns(same, ModeNoise()).std() < 1e-6


def test_without_temperature_there_is_no_chance() -> None:
    built = world()
    states, plans = some_states(built, 2), torch.rand(5, 2, 7, 2) * 2 - 1
    cold = plannable(built, states, temperature=0.0)
    assert torch.equal(cold.returns(plans, noise(1)), cold.returns(plans, noise(2)))
    torch.testing.assert_close(cold.returns(plans, noise()), plannable(built, states).returns(plans, ModeNoise()))


@pytest.mark.parametrize("rows", [1, 60, 100, 10_000])
def test_how_many_plans_are_imagined_together_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built = world()
    model = plannable(built, some_states(built, 5))
    plans = torch.rand(4, 5, 30, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
    whole, after = (noise(7), noise(7))
    expected = model.returns(plans, whole)
    monkeypatch.setattr("agents.plannable.ROWS_AT_ONCE", rows)
    torch.testing.assert_close(model.returns(plans, after), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.normal(3), after.normal(3))


@pytest.mark.parametrize("vector", [False, True])
def test_dreams_are_planned_in_from_where_they_are(vector: bool) -> None:
    built = world()
    model = as_model(built, StartStates(some_states(built, 5), torch.ones(5, dtype=torch.bool)))
    options = {"model": model, "termination": "never"}
    dream: Any = gym.make_vec("Dream-v0", num_envs=3, **options) if vector else gym.make("Dream-v0", **options)
    dream.reset(seed=0)
    for _ in range(3):
        dream.step(dream.action_space.sample())
    planner, state = CEM(5, 40, 3, 5), dream.unwrapped.get_state().world
    action = planner.plan(plannable(dream), noise()).action()
    assert torch.equal(action, planner.plan(plannable(built, state), noise()).action())
    assert all(torch.equal(*pair) for pair in zip(state, dream.unwrapped.get_state().world, strict=True))


def test_planning_in_a_dream_brings_more_than_chance() -> None:
    built = world(continues=None)
    model = as_model(built, StartStates(some_states(built, 5), torch.ones(5, dtype=torch.bool)))
    dreams: Any = gym.make_vec("Dream-v0", num_envs=16, model=model, start="any", temperature=0.0)
    returns = {}
    for name in ("planned", "random"):
        dreams.reset(seed=0)
        dreams.action_space.seed(0)
        draws, total = noise(), np.zeros(16)
        for _ in range(8):
            action = CEM(4, 64, 4, 8).plan(plannable(dreams), draws).action().numpy()
            total += dreams.step(action if name == "planned" else dreams.action_space.sample())[1]
        returns[name] = total
    assert (returns["planned"] > returns["random"]).all()


# -- in a simulator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "repeat"), [("dm_control/cartpole-swingup-v0", 8), ("dm_control/walker-walk-v0", 2), ("Reacher-v5", 2)]
)
def test_a_simulator_says_what_acting_brings_and_stays_as_it_was(id: str, repeat: int) -> None:
    env, twin = (make_env(id, action_repeat=repeat, seed=3) for _ in range(2))
    rng = np.random.default_rng(0)
    for _ in range(4):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        env.step(action), twin.step(action)
    plans = torch.rand(5, 1, 3, *env.action_space.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    returns = plannable(env).returns(plans, noise())
    for action in plans[:, 0, 1].numpy():
        seen, other = env.step(action), twin.step(action)
        assert np.array_equal(seen[0], other[0])  # planning has left no trace
        returns[0, 1] -= seen[1]
    assert abs(returns[0, 1].item()) < 1e-4


def test_planning_in_the_simulator_beats_chance() -> None:
    env = make_env("dm_control/cartpole-balance-v0", action_repeat=8, seed=0)
    model = plannable([env])
    plan = CEM(6, 24, 2, 4).plan(model, noise()).mean.unsqueeze(2)
    random = (2 * noise().uniform(6, 1, 12, 1) - 1).sign()
    assert model.returns(plan, noise()).item() > model.returns(random, noise()).mean().item()


def test_what_cannot_be_planned_in_is_named() -> None:
    with pytest.raises(TypeError, match=r"CartPole.*World and a state, a Dream-v0, or an environment on MuJoCo"):
        plannable(gym.make("CartPole-v1"))
    with pytest.raises(TypeError, match="leave value out"):
        plannable(make_env("dm_control/cartpole-balance-v0"), value=torch.sum)
