"""World Models: what its stages learn, and its evolution."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from agents import WorldModels
from agents.rollouts import dream_returns
from tests.agents.small import assert_same, tiny
from wmgym import load_model
from wmgym.real import make_vec

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


@pytest.mark.parametrize(("name", "value"), [("starts", "episodes"), ("precision", "bf16")])
def test_names_that_do_not_exist_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        tiny("CartPole-v1", **{name: value})


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
