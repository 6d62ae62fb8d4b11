"""Agents in files: what was saved acts the same, and goes on as if it had not stopped."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from agents import Dreamer
from wmgym import CheckpointError, DreamVecEnv, as_model, checkpoint
from wmgym.real import make_vec

HALF, WHOLE = 90, 150


def same_replay(one: Any, two: Any) -> None:
    a, b = one.replay_buffer.sample(64, 8), two.replay_buffer.sample(64, 8)
    for key in a.observation:
        assert torch.equal(a.observation[key], b.observation[key])
    assert torch.equal(a.action, b.action)
    assert torch.equal(a.reward, b.reward)


def resumed(path: Path, **arguments: Any) -> Dreamer:
    return Dreamer.load(path, device="cpu", **arguments).learn(WHOLE - HALF, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"n_envs": 2, "online_queue": True}),
        ("test/Reach-v0", {"train_freq": 7, "gradient_steps": 2}),
        ("test/Reach-v0", {"n_envs": 2, "hold": 20, "slips": 0.2}),
        ("dm_control/cartpole-balance-v0", {"observation": "state"}),
    ],
    ids=["episodes that end", "two environments", "episodes that are cut", "slips", "dm_control"],
)
def test_a_resumed_run_equals_an_unbroken_one(
    tiny: Any, assert_same: Any, tmp_path: Path, env: str, settings: dict[str, Any]
) -> None:
    path = tiny(env, **settings).learn(HALF).save(tmp_path / "half", include=["replay_buffer"])
    again, unbroken = resumed(path), tiny(env, **settings).learn(WHOLE)
    assert unbroken._n_updates > 10
    assert_same(again, unbroken)
    same_replay(again, unbroken)


def test_a_resumed_run_from_pictures_equals_an_unbroken_one(
    tiny: Any, assert_same: Any, tmp_path: Path, needs_rendering: None
) -> None:
    settings = {"observation": "both", "train_ratio": 4.0}
    agent = tiny("dm_control/cartpole-balance-v0", **settings).learn(HALF)
    path = agent.save(tmp_path / "half", include=["replay_buffer"])
    again, unbroken = resumed(path), tiny("dm_control/cartpole-balance-v0", **settings).learn(WHOLE)
    assert_same(again, unbroken)
    same_replay(again, unbroken)


def test_a_memory_mapped_replay_is_resumed_where_it_lies(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1", buffer_size=500, buffer_folder=tmp_path / "replay").learn(HALF)
    path = agent.save(tmp_path / "half")
    agent.learn(20, reset_num_timesteps=False)  # what was collected after saving is dropped
    del agent
    again = resumed(path)
    unbroken = tiny("CartPole-v1", buffer_size=500, buffer_folder=tmp_path / "other").learn(WHOLE)
    assert_same(again, unbroken)
    same_replay(again, unbroken)


def test_a_fresh_process_acts_the_same_and_goes_on(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1").learn(HALF)
    path = agent.save(tmp_path / "half", include=["replay_buffer"])
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.save(tmp_path / "observations.npy", observations)
    script = f"""
import numpy as np, torch
torch.set_num_threads(1)
from agents import Dreamer
agent = Dreamer.load("half.zip", device="cpu")
np.save("actions.npy", agent.predict(np.load("observations.npy"), deterministic=True)[0])
agent.learn({WHOLE - HALF}, reset_num_timesteps=False).save("whole")
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", script], cwd=path.parent, env=environment, check=True, timeout=240)
    expected, _ = agent.predict(observations, deterministic=True)
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), expected)
    assert_same(Dreamer.load(tmp_path / "whole", device="cpu"), tiny("CartPole-v1").learn(WHOLE))


def test_what_is_loaded_is_what_was_saved(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1", n_envs=2, gamma=0.9, learning_rate=2e-3).learn(HALF)
    again = Dreamer.load(agent.save(tmp_path / "agent"), device="cpu")
    assert_same(agent, again)
    assert (again.gamma, again.learning_rate, again.n_envs, again.seed) == (0.9, 2e-3, 2, 0)
    assert again.world_config == agent.world_config
    assert [info["r"] for info in again.ep_info_buffer] == [info["r"] for info in agent.ep_info_buffer]
    assert float(again.policy.return_range.high) == float(agent.policy.return_range.high) != 0
    changed = Dreamer.load(tmp_path / "agent.zip", train_ratio=64.0, custom_objects={"verbose": 1, "clip_range": 0.2})
    assert (changed.train_ratio, changed.verbose) == (64.0, 1)  # clip_range is PPO's: the RL Zoo always gives it


def test_loaded_and_saved_again_it_still_goes_on_and_dreams(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    first = tiny("CartPole-v1").learn(HALF).save(tmp_path / "first", include=["replay_buffer"])
    second = Dreamer.load(first, device="cpu").save(tmp_path / "second")
    assert_same(resumed(second), resumed(first))
    dream = gym.make("Dream-v0", model=str(second))
    assert dream.reset(seed=0)[0] in dream.observation_space


def test_loaded_and_saved_elsewhere_the_replay_goes_with_it(tiny: Any, assert_same: Any, tmp_path: Path) -> None:
    first = tiny("CartPole-v1").learn(HALF).save(tmp_path / "first", include=["replay_buffer"])
    (tmp_path / "there").mkdir()
    second = Dreamer.load(first, device="cpu").save(tmp_path / "there" / "second", include=["replay_buffer"])
    assert (tmp_path / "there" / "second-replay.zip").exists()
    (tmp_path / "first-replay.zip").unlink()
    whole = tiny("CartPole-v1").learn(WHOLE)
    assert_same(resumed(second), whole)


def test_the_replay_is_found_beside_a_file_that_was_moved(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    agent = tiny("CartPole-v1").learn(HALF)
    agent.save(tmp_path / "old" / "agent", include=["replay_buffer"])
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert len(resumed(tmp_path / "new" / "agent.zip").replay_buffer) > len(agent.replay_buffer)


def test_without_its_replay_an_agent_collects_a_new_one_and_says_so(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny("CartPole-v1").learn(HALF).save(tmp_path / "agent", include=["replay_buffer"])
    (tmp_path / "agent-replay.zip").unlink()
    again = resumed(path)
    assert "agent-replay.zip is gone" in caplog.text
    assert again.num_timesteps == WHOLE
    assert 60 <= len(again.replay_buffer) < 80


def test_a_file_without_optimisers_is_smaller_and_acts(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1").learn(60)
    whole, small = agent.save(tmp_path / "whole"), agent.save(tmp_path / "small", exclude=["optim", "run"])
    assert small.stat().st_size < 0.7 * whole.stat().st_size
    seen = np.ones(4, np.float32)
    assert Dreamer.load(small).predict(seen, deterministic=True)[0] == agent.predict(seen, deterministic=True)[0]


def test_an_agent_moves_to_more_environments(tiny: Any, tmp_path: Path) -> None:
    path = tiny("CartPole-v1").learn(HALF).save(tmp_path / "agent", include=["replay_buffer"])
    agent = Dreamer.load(path, env=make_vec("CartPole-v1", 3), device="cpu")
    assert agent.get_env().num_envs == 3
    agent.learn(30, reset_num_timesteps=False)
    assert agent.num_timesteps == HALF + 30
    named = Dreamer.load(path, env="CartPole-v1").learn(30, reset_num_timesteps=False)
    assert len(named.replay_buffer) > HALF + 30


def test_schedules_in_files(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    linear = tiny("CartPole-v1", learning_rate=LinearSchedule(1e-3, 1e-4, 0.5)).save(tmp_path / "linear")
    assert Dreamer.load(linear).lr_schedule(0.0) == 1e-4
    constant = tiny("CartPole-v1", learning_rate=ConstantSchedule(3e-3)).save(tmp_path / "constant")
    assert Dreamer.load(constant).learning_rate == 3e-3
    assert not caplog.records
    own = tiny("CartPole-v1", learning_rate=lambda left: 1e-3 * left).save(tmp_path / "own")
    assert "learning_rate is a function, which no checkpoint holds" in caplog.text
    assert Dreamer.load(own, learning_rate=lambda left: 2e-3 * left).lr_schedule(0.5) == 1e-3


def test_an_environment_that_no_file_holds_is_given_again(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = tiny("CartPole-v1").learn(60)
    model = as_model(teacher.world, teacher.start_states())
    path = tiny("Dream-v0", env_kwargs={"model": model, "horizon": 9}).learn(60).save(tmp_path / "dreamt")
    assert "The environment's model cannot be saved" in caplog.text
    with pytest.raises(ValueError, match="call set_env"):
        Dreamer.load(path).learn(10)
    assert Dreamer.load(path, env=DreamVecEnv(2, model)).learn(10).num_timesteps == 10


# -- parameters -----------------------------------------------------------------------------------------------


def test_parameters_move_between_agents(tiny: Any, tmp_path: Path) -> None:
    teacher, pupil, reader = tiny("CartPole-v1").learn(60), tiny("CartPole-v1", seed=1), tiny("CartPole-v1", seed=2)
    parameters = teacher.get_parameters()
    assert set(parameters) == {"policy", "optimizers.world", "optimizers.actor", "optimizers.critic"}
    pupil.set_parameters(parameters)
    reader.set_parameters(teacher.save(tmp_path / "teacher"))
    for agent in (pupil, reader):
        own = agent.get_parameters()
        assert all(torch.equal(value, own["policy"][name]) for name, value in parameters["policy"].items())
        moments = own["optimizers.actor"]["state"][0]["exp_avg"]
        assert torch.equal(moments, parameters["optimizers.actor"]["state"][0]["exp_avg"])
    pupil.set_parameters({"policy": reader.policy.state_dict()}, exact_match=False)
    with pytest.raises(ValueError, match=r"Parameters of \['actor'\] do not match: this agent has .*'policy'"):
        pupil.set_parameters({"actor": {}}, exact_match=False)
    with pytest.raises(ValueError, match=r"\['optimizers.actor'"):
        pupil.set_parameters({"policy": parameters["policy"]})


def test_an_agent_from_another_kind_of_device_is_read(tiny: Any, tmp_path: Path, caplog: Any) -> None:
    """A CUDA generator's state has 16 bytes, and means nothing to a CPU's."""
    path = tiny("CartPole-v1").learn(HALF).save(tmp_path / "a", include=["replay_buffer"])
    manifest, tensors = checkpoint.load(path)
    tensors |= {f"run/{name}": torch.zeros(16, dtype=torch.uint8) for name in ("generator", "policy")}
    checkpoint.save(path, manifest, tensors)
    with caplog.at_level(logging.WARNING, "wmgym"):
        agent = resumed(path)
    assert caplog.text.count("another kind of device") == 2
    assert agent.num_timesteps == WHOLE


def test_what_is_of_the_environment_is_refused(tiny: Any, tmp_path: Path) -> None:
    path = tiny("CartPole-v1").save(tmp_path / "a")
    with pytest.raises(ValueError, match="n_envs is the environment's"):
        Dreamer.load(path, n_envs=4)


def test_a_memory_mapped_replay_that_is_gone_is_told(tiny: Any, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "replay"
    path = tiny("CartPole-v1", buffer_size=500, buffer_folder=folder).learn(HALF).save(tmp_path / "half")
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING, "wmgym"):
        resumed(path)
    assert f"The replay {folder} is gone" in caplog.text


# -- Ctrl-C ---------------------------------------------------------------------------------------------------


def interrupt_at(step: int) -> Any:
    def press(scope: dict[str, Any], _: Any) -> bool:
        if scope["self"].num_timesteps == step:
            signal.raise_signal(signal.SIGINT)
        return True

    return press


def test_ctrl_c_saves_and_says_where_and_the_run_goes_on(
    tiny: Any, assert_same: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    agent = tiny("CartPole-v1", interrupt_folder=tmp_path / "runs")
    with caplog.at_level(logging.WARNING, "wmgym"), pytest.raises(KeyboardInterrupt):
        agent.learn(WHOLE, callback=interrupt_at(HALF))
    path = tmp_path / "runs" / f"dreamer-CartPole-v1-seed{agent.seed}-{HALF}-interrupted.zip"
    assert caplog.messages[1:] == [f"Interrupted after {HALF} decisions; saved to {path}."]
    assert signal.getsignal(signal.SIGINT) is handler
    unbroken = tiny("CartPole-v1").learn(WHOLE)
    assert_same(resumed(path), unbroken)


def test_ctrl_c_saves_even_when_it_ended_the_environments_too(tiny: Any, counter: Any, tmp_path: Path) -> None:
    class Remote(counter):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            if self.total == 60:  # in a terminal, Ctrl-C reaches the processes of environments as well
                signal.raise_signal(signal.SIGINT)
                raise EOFError
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        tiny(Remote(), interrupt_folder=tmp_path).learn(100)
    again = Dreamer.load(next(tmp_path.glob("dreamer-env-seed*-interrupted.zip")), env=counter(), device="cpu")
    assert again.learn(40, reset_num_timesteps=False).num_timesteps == 100
    assert len(again.replay_buffer) > 100


# -- arguments that are changed -------------------------------------------------------------------------------


def test_a_changed_argument_reaches_the_world(tiny: Any, tmp_path: Path) -> None:
    path = tiny("CartPole-v1").save(tmp_path / "agent.zip")
    agent = Dreamer.load(path, device="cpu", reward_scale=20.0)
    assert agent.reward_scale == 20.0
    assert agent.world.config == replace(tiny("CartPole-v1").world_config, reward_scale=20.0)
    with pytest.raises(CheckpointError, match="has shape"):  # the networks in the file are of another width
        Dreamer.load(path, device="cpu", deter=16)


def test_a_changed_argument_does_not_vanish_in_a_configuration_of_the_users(tiny: Any, tmp_path: Path) -> None:
    config = replace(tiny("CartPole-v1").world_config, free_nats=2.0)
    path = tiny("CartPole-v1", world_config=config).save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="has a world_config of its own, which reward_scale would not change"):
        Dreamer.load(path, device="cpu", reward_scale=20.0)
    again = Dreamer.load(path, device="cpu", world_config=replace(config, reward_scale=20.0))
    assert (again.world.config.free_nats, again.world.config.reward_scale) == (2.0, 20.0)
    assert Dreamer.load(path, device="cpu", gamma=0.9).world.config == config


def test_an_id_of_other_spaces_is_refused_with_the_files_name(tiny: Any, tmp_path: Path) -> None:
    path = tiny("CartPole-v1").save(tmp_path / "agent.zip")
    with pytest.raises(CheckpointError, match=r"agent\.zip cannot go on in Pendulum-v1: .*spaces do not match"):
        Dreamer.load(path, env="Pendulum-v1", device="cpu")


def test_a_seed_begins_chance_anew(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("Pendulum-v1")
    observation = np.zeros(3, np.float32)

    def acts(seed: int) -> list[float]:
        agent.set_random_seed(seed)
        return [float(agent.predict(observation)[0].item()) for _ in range(3)]

    assert acts(7) == acts(7) != acts(8)
    path = agent.save(tmp_path / "agent.zip")
    loaded = [Dreamer.load(path, device="cpu", seed=seed).predict(observation)[0].item() for seed in (1, 1, 2)]
    assert loaded[0] == loaded[1] != loaded[2]
