"""Training only in a frozen dream, and fitting a world without an agent, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch

from agents import Dreamer
from agents.evaluation import evaluate_real
from agents.zoo import dream_training, offline
from wmgym import StartStates, as_model, make_env
from wmgym.dream import JoinedVecEnv, load_model
from wmgym.files import MODELS
from wmgym.worlds.rssm import RSSM, RSSMConfig

TINY = {"deter": 16, "stoch": 4, "units": 16, "batch_size": 2, "batch_length": 8, "horizon": 3, "imagine_starts": 8,
        "learning_starts": 40, "train_ratio": 4.0}  # fmt: skip
PPO = ["--algo", "ppo", "--eval-episodes", "2", "--dream", "horizon=8",
       "--set", "n_steps=8", "batch_size=32", "n_epochs=1", "dreams=4"]  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """An untrained world of CartPole in a folder that no result may name."""
    env = make_env("CartPole-v1")
    torch.manual_seed(0)
    made = RSSM(env.observation_space, env.action_space, RSSMConfig(deter=8, stoch=4, hidden=8))
    starts = StartStates(made.initial(2), torch.tensor([True, True]))
    facts = {"id": "CartPole-v1", "max_episode_steps": 20}
    return as_model(made, starts, facts).save(tmp_path / "secret" / "cartpole.zip")


def run(world: Path, tmp_path: Path, *more: str) -> dict:
    folders = ["--results", str(tmp_path / "results"), "--folder", str(tmp_path / "runs")]
    assert dream_training.main([str(world), *folders, *more]) == 0
    (path,) = (tmp_path / "results").rglob("*.json")
    return json.loads(path.read_text())


def test_a_run_writes_what_it_came_to_and_how(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--results", str(tmp_path), "--folder", "/home/me"]
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "agents.zoo.dream_training", *where, str(world)])
    result = run(world, tmp_path, *PPO, "--steps", "96", "--eval-every", "48", "--seed", "3")
    path = tmp_path / "results/dream/ppo/CartPole-v1/dreamer-seed3.json"
    assert path.exists()
    assert result["complete"]
    assert result["dream_steps"] == [0, 48, 96]
    for name in ("return_mean", "return_std", "dream_return_mean", "dream_return_std"):
        assert len(result[name]) == 3
    assert all(returned >= 8 for returned in result["return_mean"])  # steps that the pole stood
    assert (result["env_id"], result["seed"], result["settings"]["dream"]["horizon"]) == ("CartPole-v1", 3, 8)
    assert result["command"].endswith("-m agents.zoo.dream_training cartpole.zip")
    assert "secret" not in path.read_text()
    assert result["processor_s"] > 0


def test_an_interrupted_run_goes_on_and_a_complete_one_is_left_alone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = dream_training.DreamRecorder.evaluate

    def stop_after_two(self: dream_training.DreamRecorder) -> None:
        evaluate(self)
        if len(self.data["dream_steps"]) == 2:
            raise KeyboardInterrupt

    arguments = [*PPO, "--steps", "96", "--eval-every", "32"]
    with monkeypatch.context() as context:
        context.setattr(dream_training.DreamRecorder, "evaluate", stop_after_two)
        folders = ["--results", str(tmp_path / "results"), "--folder", str(tmp_path / "runs")]
        assert dream_training.main([str(world), *folders, *arguments]) == 130
    result = run(world, tmp_path, *arguments)
    assert result["complete"]
    assert result["dream_steps"] == [0, 32, 64, 96]
    assert result["resumed"][0]["dream_steps"] == 32
    assert "error" not in result
    assert run(world, tmp_path, *arguments) == result
    assert "is complete" in capsys.readouterr().out


def test_sac_waits_for_dreams_after_every_resume_no_longer_than_after_the_first(tmp_path: Path) -> None:
    """Its replay is dreamt anew each time."""
    env = make_env("Pendulum-v1")
    made = RSSM(env.observation_space, env.action_space, RSSMConfig(deter=8, stoch=4, hidden=8))
    models = [as_model(made, StartStates(made.initial(2), torch.tensor([True, True])))]
    settings, path = {"learning_starts": 50, "dreams": 2, "dream": {"horizon": 8}}, tmp_path / "sac.zip"
    agent = dream_training.make_agent("sac", models, path, settings, 0)
    for steps in (200, 400):
        agent.num_timesteps = steps
        dream_training.save_agent(agent, path)
        agent = dream_training._load("sac", path, models, settings, 0)
        assert agent.learning_starts == 50 + steps


def test_what_observations_are_normalised_by_is_kept_without_a_pickle(world: Path, tmp_path: Path) -> None:
    result = run(world, tmp_path, *PPO, "--steps", "64", "--eval-every", "32")
    path, model = tmp_path / "runs/ppo/CartPole-v1/dreamer-seed0.zip", load_model(world)
    dreams = dream_training.make_dreams([model], result["settings"], 0)
    fresh = dreams.obs_rms.mean.copy()
    agent = stable_baselines3.PPO.load(path, dream_training.restore_normalisers(dreams, path))
    assert not np.allclose(agent.get_vec_normalize_env().obs_rms.mean, fresh)
    assert evaluate_real(agent, model, 2).mean() == result["return_mean"][-1]


def test_a_learning_rate_falls_to_nothing(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, *PPO, "learning_rate=lin_0.01", "--steps", "64")
    agent = stable_baselines3.PPO.load(tmp_path / "runs/ppo/CartPole-v1/dreamer-seed0.zip")
    assert [agent.lr_schedule(left) for left in (1.0, 0.25, 0.0)] == pytest.approx([0.01, 0.0025, 0.0])


def test_another_world_judges_which_agent_is_kept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([5.0, 9.0, 7.0])
    saved = {}

    def judge(agent: Any, model: Any, other: Any, episodes: int) -> np.ndarray:
        verdict = next(verdicts)
        saved[verdict] = agent.policy.state_dict()["action_net.weight"].clone()
        return np.full(episodes, verdict)

    monkeypatch.setattr(dream_training, "evaluate_elsewhere", judge)
    result = run(world, tmp_path, *PPO, "--steps", "64", "--eval-every", "32", "--judge", str(world))
    assert result["judge_return_mean"] == [5.0, 9.0, 7.0]
    assert result["kept"] == 1
    assert result["judge_sha256"] == result["model_sha256"]
    folder = tmp_path / "runs/ppo/CartPole-v1"
    for name, verdict in (("dreamer-seed0", 7.0), ("dreamer-seed0-kept", 9.0)):
        agent = stable_baselines3.PPO.load(folder / f"{name}.zip")
        assert torch.equal(agent.policy.state_dict()["action_net.weight"], saved[verdict])


def test_dreams_are_spread_over_several_worlds(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []
    monkeypatch.setattr(dream_training, "JoinedVecEnv", lambda parts: joined.append(parts) or JoinedVecEnv(parts))
    result = run(world, tmp_path, *PPO, "--steps", "96", "--also", str(world), str(world))
    assert [part.num_envs for part in joined[0]] == [2, 1, 1]
    assert result["also_sha256"] == [result["model_sha256"]] * 2
    assert result["complete"]
    with pytest.raises(ValueError, match="A Dreamer dreams in one world"):
        run(world, tmp_path, "--algo", "dreamer", "--also", str(world))


def test_a_result_is_not_continued_in_other_worlds(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, *PPO, "--steps", "32")
    load_model(world).save(other := tmp_path / "other.zip")
    with pytest.raises(ValueError, match=r"another --also and --judge: repeat its command, or give .* a --name"):
        run(world, tmp_path, *PPO, "--steps", "32", "--also", str(other), "--judge", str(other))


def test_a_result_is_not_continued_with_other_settings_nor_replaced(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, *PPO, "--steps", "32")
    with pytest.raises(ValueError, match="begun with settings="):
        run(world, tmp_path, *PPO, "--steps", "32", "--dream", "temperature=0.5")
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(ValueError, match="is of a complete run: give a --name"):
        run(world, tmp_path, *PPO, "--steps", "32")


def test_a_ready_trained_world_is_known_by_its_name() -> None:
    assert dream_training.checksum(Path("walker-walk")) == dream_training.checksum(MODELS / "walker-walk.zip")


def test_a_dreamer_learns_in_the_dream_of_a_dreamer_and_the_teacher_is_evaluated(tmp_path: Path) -> None:
    teacher = Dreamer("CartPole-v1", seed=0, **TINY).learn(80)
    path = teacher.save(tmp_path / "teacher.zip")
    tiny = [f"{name}={value}" for name, value in TINY.items()]
    steps = ["--steps", "60", "--eval-every", "60", "--eval-episodes", "1"]
    result = run(path, tmp_path, "--algo", "dreamer", *steps, "--set", *tiny)
    assert result["complete"]
    assert result["teacher"] == "Dreamer"
    assert result["teacher_env_steps"] == 80
    assert result["teacher_return_mean"] >= 8
    assert result["dream_steps"][-1] == 60


def test_a_world_is_fitted_to_what_an_agent_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Dreamer("CartPole-v1", seed=0, **TINY).learn(60).save(tmp_path / "agent.zip")
    data, saved = tmp_path / "data", tmp_path / "offline.zip"
    offline.main([str(data), "--record", "CartPole-v1", "--agent", str(agent), "--steps", "200", "--updates", "2",
                  "--ensemble", "2", "--save", str(saved)])  # fmt: skip
    steps = [len(np.load(path)["reward"]) - 1 for path in data.glob("*.npz")]
    assert sum(steps) == 200
    model = load_model(saved)
    assert model.world.has_ensemble
    assert model.starts is not None
    assert str(saved) in capsys.readouterr().out


def test_a_world_is_fitted_to_the_replay_of_an_agent(tmp_path: Path) -> None:
    agent = Dreamer("CartPole-v1", seed=0, **TINY).learn(60)
    agent.save_replay_buffer(tmp_path / "replay.zip")
    checkpoint, saved = agent.save(tmp_path / "agent.zip"), tmp_path / "offline.zip"
    offline.main([str(tmp_path / "replay.zip"), "--agent", str(checkpoint), "--updates", "2", "--starts", "3",
                  "--save", str(saved)])  # fmt: skip
    model = load_model(saved)
    assert model.env["id"] == "CartPole-v1"
    assert model.env == load_model(checkpoint).env
    assert model.starts is not None
    assert int((~model.starts.is_first).sum()) == 2  # one of three ends in an episode's first or last step
