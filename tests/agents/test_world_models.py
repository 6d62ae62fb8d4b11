"""World Models: its stages, its dreams, its evolution, and the same behaviour as the other agents'."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

import agents
from agents import WorldModels
from agents.checkpointing import CheckpointEvery, last_checkpoint
from agents.controllers import Controller
from agents.rollouts import dream_returns, real_returns
from wmgym import DreamVecEnv, load_model
from wmgym.nets.coders import CoderConfig
from wmgym.random import ModeNoise, TorchNoise
from wmgym.real import make_vec
from wmgym.worlds.base import index_state
from wmgym.worlds.config import RSSMConfig
from wmgym.worlds.mdn_rnn import MDNRNN, MDNRNNConfig
from wmgym.worlds.rssm import RSSM

TINY: dict[str, Any] = {
    "latent": 3, "hidden": 8, "vision_updates": 6, "vision_batch": 8, "memory_updates": 6, "batch_size": 4,
    "batch_length": 8, "generations": 6, "population": 4, "rollouts": 2, "evaluate_every": 3, "evaluate_rollouts": 4,
    "dream_horizon": 10, "seed": 0, "device": "cpu",
}  # fmt: skip


def tiny(env: Any = "test/Reach-v0", **changes: Any) -> WorldModels:
    return WorldModels(env, **{**TINY, **changes})


def learnt(agent: WorldModels) -> dict[str, Any]:
    """All that a run leaves behind, as far as it can be compared."""
    optimizers = {
        f"{name}/{index}/{key}": value
        for name, optimizer in agent.optimizers.items()
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }
    return {**agent.policy.state_dict(), **optimizers, "generator": agent.generator.get_state()}


def assert_same(one: WorldModels, two: WorldModels) -> None:
    left, right = learnt(one), learnt(two)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert one.history == two.history
    assert (one.num_timesteps, one._n_updates) == (two.num_timesteps, two._n_updates)


# -- C in dreams ----------------------------------------------------------------------------------------------


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


# -- learning -------------------------------------------------------------------------------------------------

REACHING: dict[str, Any] = {
    "latent": 4, "hidden": 32, "vision_updates": 400, "vision_batch": 64, "memory_updates": 300, "batch_size": 32,
    "batch_length": 21, "memory_learning_rate": 5e-3, "learning_rate": 3e-3, "generations": 30, "population": 16,
    "rollouts": 16, "sigma": 0.5, "evaluate_every": 10, "evaluate_rollouts": 64, "dream_horizon": 20, "hold": 10,
}  # fmt: skip


def test_c_learns_in_the_dream_alone_and_acts_in_the_real_environment() -> None:
    agent = tiny(**REACHING).learn(2000)
    env = make_vec("test/Reach-v0", 5, seed=77)
    agent_mean, _ = evaluate_policy(agent, env, 40, deterministic=True, warn=False)
    agent.policy.actor.weights.zero_()
    still_mean, _ = evaluate_policy(agent, env, 40, deterministic=True, warn=False)
    assert agent.num_timesteps == 2000  # C took no real step
    assert agent.evolution_steps == 0
    # Standing still earns about 20 * (1 - 2/3), being there at once nearly 20.
    assert agent_mean > still_mean + 4


def test_c_learns_in_the_real_environment() -> None:
    changes = {"train_in": "real", "real_envs": 0, "memory_updates": 0, "vision_updates": 200, "vision_batch": 32}
    changes |= {"generations": 12, "population": 12, "rollouts": 2, "evaluate_every": 12, "evaluate_rollouts": 32}
    agent = tiny("test/Reach-v0", **{**REACHING, **changes, "n_envs": 4}).learn(200)
    assert agent.evolution_steps == (12 * 12 * 2 + 32) * 20
    assert max(row["mean"] for row in agent.history) > agent.history[0]["mean"] + 1.5


@pytest.mark.slow
def test_real_episodes_run_in_processes_of_their_own() -> None:
    agent = tiny("CartPole-v1", train_in="real", real_envs=2, generations=2).learn(40)
    assert agent.evolution_steps >= (2 * 4 * 2 + 4) * 8  # CartPole stands for eight steps whatever one does
    assert agent.history[-1]["best"] >= 8


def test_iterations_share_out_the_decisions_and_roll_out_c() -> None:
    agent = tiny(iterations=2, generations=3)
    chosen: list[bool] = []
    agent.learn(100, callback=lambda *_: chosen.append(bool(agent.policy.actor.weights.any())) or True)
    assert chosen == [False] * 50 + [True] * 50
    assert [row["iteration"] for row in agent.history] == [0] * 3 + [1] * 3
    assert agent._n_updates == 2 * (6 + 6 + 3)
    more = agent.num_timesteps + 20
    assert agent.learn(20, reset_num_timesteps=False).num_timesteps == more


def test_every_episode_of_a_later_round_is_played_by_a_neighbour_of_c() -> None:
    agent = tiny("CartPole-v1", n_envs=3, iterations=2, generations=2, wander=0.5)
    off: list[torch.Tensor | None] = []
    begun: list[np.ndarray] = []

    def seen(*_: Any) -> bool:
        off.append(agent._habits.get("wandering"))
        begun.append(np.array(agent._last_episode_starts))  # the next decision is an episode's first
        return True

    agent.learn(600, callback=seen)
    assert all(value is None for value in off[:100])  # at random
    wandering = torch.stack([value for value in off[100:] if value is not None])
    moved = (wandering[1:] != wandering[:-1]).any(-1)
    assert torch.equal(moved, torch.as_tensor(np.stack(begun[100:-1])))
    assert moved.any()
    assert 0 < wandering.std() < 0.5
    assert len(wandering[0].std(-1).unique()) == 3  # some go further than others


@pytest.mark.parametrize(
    ("decisions", "at", "changes"),
    [
        (120, 73, {"iterations": 2, "generations": 2, "wander": 0.5}),
        (90, 43, {"generations": 1, "hold": 20, "habits": True}),
    ],
    ids=["wandering", "habits"],
)
def test_collecting_goes_on_where_it_was_interrupted(
    tmp_path: Path, decisions: int, at: int, changes: dict[str, Any]
) -> None:
    unbroken = tiny("CartPole-v1", **changes).learn(decisions)
    agent = tiny("CartPole-v1", **changes, interrupt_folder=tmp_path)

    def interrupt(*_: Any) -> bool:
        if agent.num_timesteps == at:
            signal.raise_signal(signal.SIGINT)
        return True

    with pytest.raises(KeyboardInterrupt):
        agent.learn(decisions, callback=interrupt)
    saved = WorldModels.load(next(tmp_path.glob("worldmodels-CartPole-v1-seed*-interrupted.zip")), device="cpu")
    assert (saved._stage, saved.num_timesteps) == ("collect", at)
    assert_same(saved.learn(decisions - at, reset_num_timesteps=False), unbroken)


def test_the_first_round_can_take_more_decisions_than_the_others() -> None:
    agent = tiny("CartPole-v1", iterations=3, generations=1, first_decisions=80)
    stages: list[tuple[int, int]] = []
    fit = agent._fit
    agent._fit = lambda *args: stages.append((agent._iteration, agent.num_timesteps)) or fit(*args)
    agent.learn(120)
    assert stages == [(0, 80), (1, 100), (2, 120)]
    alone = tiny("CartPole-v1", iterations=1, generations=1, first_decisions=80)
    assert alone.learn(120).num_timesteps == 120


def test_some_random_episodes_tremble_and_some_keep_still() -> None:
    agent = tiny("Pendulum-v1", n_envs=8, hold=100, habits=True, generations=1)
    actions: list[np.ndarray] = []

    def seen(*_: Any) -> bool:
        actions.append(agent._carry.action[:, 0].numpy().copy())
        return True

    agent.learn(8 * 200, callback=seen)  # an episode each
    changes = (np.diff(np.stack(actions), axis=0) != 0).mean(0)
    assert changes.max() > 0.3
    assert changes.min() < 0.06


def test_some_random_episodes_lean_to_one_choice_and_some_to_none() -> None:
    agent = tiny("CartPole-v1", n_envs=200, habits=True, generations=1)
    chosen: list[np.ndarray] = []
    agent.learn(200 * 8, callback=lambda *_: chosen.append(agent._carry.action[:, 0].numpy().copy()) or True)
    share = np.stack(chosen).mean(0)  # no pole falls within eight decisions
    assert (share == 0).sum() > 20
    assert (share == 1).sum() > 20
    assert (abs(share - 0.5) < 0.2).sum() > 40
    assert 0.4 < share.mean() < 0.6


def test_later_rounds_can_do_a_share_of_the_updates() -> None:
    changes: dict[str, Any] = {"iterations": 2, "together_updates": 4, "together_length": 4, "generations": 2}
    agent = tiny(**changes, later_updates=0.5, memory_decay=0.5)
    rates: list[tuple[str, int, int, float]] = []
    step = agent._set_memory_rate

    def noted() -> None:
        step()
        rates.append(
            (agent._stage, agent._iteration, agent._stage_step, agent.optimizers["memory"].param_groups[0]["lr"])
        )

    agent._set_memory_rate = noted
    agent.learn(80)
    assert agent._n_updates == (6 + 4 + 6 + 2) + (2 + 3 + 2)
    assert tiny(iterations=2, generations=2, later_updates=0.5).learn(80)._n_updates == (6 + 6 + 2) + (3 + 3 + 2)
    of_memory = [[row[3] for row in rates if row[:2] == ("memory", i)] for i in (0, 1)]
    assert of_memory[1] == of_memory[0][::2]  # the rate falls as far, in fewer updates


def test_codes_that_m_foretells_are_not_drawn_back_to_the_standard_normal() -> None:
    agent = tiny(iterations=2, together_updates=4, together_length=4, generations=2)
    agent.learn(80)
    assert agent._n_updates == (6 + 4 + 6 + 2) + (4 + 6 + 2)
    again = agent._n_updates
    agent.learn(20)
    assert agent._n_updates == again + 2 * (4 + 6 + 2)


@pytest.mark.parametrize("name", ["batch_length", "together_length"])
def test_too_few_steps_for_a_sequence_are_refused_before_anything_is_fitted(name: str) -> None:
    agent = tiny("CartPole-v1", n_envs=2, **{name: 30}, together_updates=2 if name == "together_length" else 0)
    with pytest.raises(ValueError, match=rf"30 steps yet \(\d+ of 2 together\).*{name}=30"):
        agent.learn(40)
    assert agent._n_updates == 0
    agent.learn(40, reset_num_timesteps=False)
    assert agent.num_timesteps == 80
    assert agent._n_updates > 0


def test_learning_anew_goes_through_all_stages_again() -> None:
    agent = tiny(generations=2).learn(40)
    once = agent._n_updates
    agent.learn(40)
    assert agent.num_timesteps == 40
    assert agent._n_updates == 2 * once
    assert len(agent.history) == 2


def test_evolving_again_leaves_the_world_as_it_is() -> None:
    agent = tiny().learn(60)
    world = {name: value.clone() for name, value in agent.world.state_dict().items()}
    agent.evolve(temperature=0.1, generations=2)
    assert agent.temperature == 0.1
    assert len(agent.history) == 2
    assert agent.policy.actor.weights.any()
    assert all(torch.equal(value, world[name]) for name, value in agent.world.state_dict().items())
    assert agent.dream(5).shape == (5,)


def test_evolution_goes_on_from_c_or_begins_anew() -> None:
    agent = tiny().learn(60)
    before = agent.policy.actor.weights.clone()
    assert before.any()
    agent.evolve(anew=False, generations=1, sigma=1e-6)
    torch.testing.assert_close(agent.policy.actor.weights, before, atol=1e-4, rtol=0)
    agent.evolve(generations=1, sigma=1e-6)
    torch.testing.assert_close(agent.policy.actor.weights, torch.zeros_like(before), atol=1e-4, rtol=0)


# -- as the other agents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["CartPole-v1", "test/Reach-v0"])
def test_the_seed_decides_everything(env: str) -> None:
    one, two, other = (tiny(env, n_envs=2, seed=seed).learn(80) for seed in (3, 3, 4))
    assert_same(one, two)
    assert not torch.equal(one.policy.actor.weights, other.policy.actor.weights)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """A run that is killed after its last stage goes on with nothing."""
    agent = tiny("CartPole-v1").learn(60)
    path = agent.save(tmp_path / "done", include=["replay_buffer"])
    again = WorldModels.load(path, device="cpu").learn(0, reset_num_timesteps=False)
    assert_same(again, agent)


def test_every_stage_leaves_a_checkpoint(tmp_path: Path) -> None:
    stages: list[str] = []

    class Watched(CheckpointEvery):
        def write(self) -> Path | None:
            path = super().write()
            stages.append(self.model._stage)
            return path

    tiny("CartPole-v1").learn(60, Watched(tmp_path, every=30))
    assert stages[:2] == ["collect"] * 2
    assert stages[2:] == ["together", "memory", "controller", "collect"]


def test_a_run_killed_after_a_round_does_not_repeat_it(tmp_path: Path) -> None:
    class Copied(CheckpointEvery):
        def write(self) -> Path | None:
            path = super().write()
            if self.model._stage == "collect" and self.model.num_timesteps == 60:  # C's stage has just ended
                shutil.copytree(self.folder, tmp_path / "killed")
            return path

    changes = {"iterations": 2, "generations": 2}
    unbroken = tiny("CartPole-v1", **changes).learn(120, Copied(tmp_path / "run", every=1000))
    killed = WorldModels.load(last_checkpoint(tmp_path / "killed"), device="cpu")
    assert_same(killed.learn(60, reset_num_timesteps=False), unbroken)


@pytest.mark.parametrize(("name", "value"), [("starts", "episodes"), ("precision", "bf16")])
def test_names_that_do_not_exist_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        tiny("CartPole-v1", **{name: value})


@pytest.mark.parametrize(
    ("stage", "at", "changes"),
    [
        ("_vision_step", 4, {}),
        ("_together_step", 2, {}),
        ("_memory_step", 3, {}),
        ("_controller_step", 4, {}),
        ("_controller_step", 2, {"train_in": "real", "real_envs": 0}),
        ("_controller_step", 2, {"train_in": "real", "real_envs": 1}),
    ],
)
def test_what_is_interrupted_goes_on_within_its_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str, at: int, changes: dict[str, Any]
) -> None:
    changes = {"iterations": 2, "together_updates": 3, "vision_decay": 0.9, **changes}
    unbroken = tiny("CartPole-v1", **changes).learn(120)
    original, calls = getattr(WorldModels, stage), [0]

    def interrupted(self: WorldModels) -> None:
        original(self)
        calls[0] += 1
        if calls[0] == at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(WorldModels, stage, interrupted)
    broken = tiny("CartPole-v1", **changes, interrupt_folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        broken.learn(120)
    assert broken._real is None  # its processes have ended
    saved = WorldModels.load(next(tmp_path.glob("worldmodels-CartPole-v1-seed*-interrupted.zip")), device="cpu")
    assert saved._stage_step == at
    monkeypatch.undo()
    assert saved.num_timesteps == 60
    assert_same(saved.learn(60, reset_num_timesteps=False), unbroken)


def test_what_is_loaded_acts_and_dreams_as_what_was_saved(tmp_path: Path) -> None:
    agent = tiny("CartPole-v1", temperature=1.15, ordered=True).learn(60)
    path = agent.save(tmp_path / "agent")
    again = WorldModels.load(path, device="cpu")
    assert (again.temperature, again.ordered, again.world_config) == (1.15, True, agent.world_config)
    assert again.history == agent.history
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    actions, state = agent.predict(observations, deterministic=True)
    for _ in range(3):
        np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], actions)
    assert [np.shape(leaf) for leaf in state] == [(20, 3), (20, 8), (20, 8), (20, 2)]  # type: ignore[union-attr]
    dream = gym.make("Dream-v0", model=str(path), temperature=1.15)
    assert dream.reset(seed=0)[0] in dream.observation_space


IN_DREAMS: dict[str, dict[str, Any]] = {
    "Dreamer": {
        "deter": 16, "stoch": 4, "units": 16, "imagine_starts": 8, "horizon": 4, "train_ratio": 8.0,
        "learning_starts": 20,
    },
    "PlaNet": {
        "deter": 16, "stoch": 4, "units": 16, "candidates": 8, "elites": 2, "iterations": 2, "horizon": 4,
        "seed_episodes": 2, "updates_per_episode": 2,
    },
    "TDMPC2": {
        "latent": 16, "units": 16, "encoder_units": 16, "candidates": 8, "elites": 2, "iterations": 2, "actor_plans": 2,
        "learning_starts": 20, "pretrain": 2, "train_freq": 8,
    },
    "WorldModels": TINY,
}  # fmt: skip


@pytest.fixture(scope="module")
def v_and_m(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of V and M that have seen Pendulum-v1."""
    return str(tiny("Pendulum-v1").learn(60).save(tmp_path_factory.mktemp("dreams") / "vm"))


def assert_learns(agent: Any, decisions: int) -> None:
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    assert agent.learn(decisions).num_timesteps >= decisions
    assert any(not torch.equal(value, before[key]) for key, value in agent.policy.state_dict().items())


@pytest.mark.parametrize("name", IN_DREAMS)
def test_every_agent_trains_in_the_dream_of_v_and_m(name: str, v_and_m: str) -> None:
    dream = {"model": v_and_m, "horizon": 10}
    common = {"batch_size": 4, "batch_length": 8, "seed": 0, "device": "cpu"}
    agent = getattr(agents, name)("Dream-v0", env_kwargs=dream, **(IN_DREAMS[name] | common))
    assert_learns(agent, 60)
    game = gym.make("Pendulum-v1")
    assert game.action_space.contains(agent.predict(game.reset(seed=0)[0])[0])


def test_stable_baselines3_trains_in_the_dream_of_v_and_m(v_and_m: str) -> None:
    dreams = DreamVecEnv(4, v_and_m, horizon=10)
    assert_learns(PPO("MlpPolicy", dreams, n_steps=16, batch_size=16, seed=0, device="cpu"), 64)


def test_v_learns_from_m_only_while_both_learn_together() -> None:
    apart, both = (tiny(together_updates=updates, together_length=4).learn(60) for updates in (0, 5))
    assert not apart.world_config.end_to_end
    assert both.world_config.end_to_end
    assert both._n_updates == apart._n_updates + 5
    steps = {id(p): int(both.optimizers["vision"].state[p]["step"]) for p in both.world.vae.parameters()}
    assert set(steps.values()) == {6 + 5}  # none in M's own stage


def test_ms_weights_decay_and_vs_do_not() -> None:
    agent = tiny(memory_weight_decay=0.5).learn(60)
    before = {name: parameter.detach().clone() for name, parameter in agent.world.named_parameters()}
    for parameter in agent.world.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in agent.optimizers.values():
        optimizer.state.clear()  # no moments, so that decay is all that a step does
        optimizer.step()
    rate = agent.optimizers["memory"].param_groups[0]["lr"]
    for name, parameter in agent.world.named_parameters():
        kept = 1.0 if name.startswith("vae.") else 1 - 0.5 * rate
        torch.testing.assert_close(parameter.detach(), kept * before[name])


@pytest.mark.parametrize("image", ["dreamer", "patches"])
def test_pictures_are_seen(image: str, needs_rendering: None) -> None:
    agent = tiny("CartPole-v1", observation="pixels", image=image, depth=2, generations=2).learn(40)
    observation = agent.get_env().reset()
    assert observation.shape == (1, 64, 64, 3)
    action, _ = agent.predict(observation, deterministic=True)
    assert action.shape == (1,)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"train_in": "bed"}, "train_in='bed'"),
        ({"ends": "maybe"}, "ends='maybe'"),
        ({"image": "eyes"}, "image='eyes'"),
        ({"components": 0}, "components must be"),
        ({"population": 1}, "population must be"),
        ({"generations": 2.5}, "generations must be"),
        ({"temperature": -1.0}, "temperature must be a number, at least 0"),
        ({"learning_rate": lambda progress: 1e-3 * progress}, "a number, and vision_decay lets it fall"),
    ],
)
def test_bad_arguments_are_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(**wrong)


def test_there_is_nothing_to_evolve_in_before_learning() -> None:
    with pytest.raises(ValueError, match="call learn first"):
        tiny().evolve()
    with pytest.raises(ValueError, match="latent has no part in evolution"):
        tiny().learn(40).evolve(latent=3)


def test_what_is_loaded_without_its_replay_evolves_from_the_states_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny(generations=1).learn(120).save(tmp_path / "agent.zip")
    counts = []

    def counted(*arguments: Any, **kwargs: Any) -> Any:
        counts.append(len(arguments[3].latent))
        return dream_returns(*arguments, **kwargs)

    monkeypatch.setattr("agents.world_models.dream_returns", counted)
    agent = WorldModels.load(path, device="cpu").evolve(generations=1)
    agent.evolve(generations=1)  # in the same states, though learning has opened a replay of its own by now
    agent.dream(2)
    starts = load_model(path).starts
    assert starts is not None
    assert set(counts) == {int(starts.is_first.sum())}
    assert counts[0] > 3
