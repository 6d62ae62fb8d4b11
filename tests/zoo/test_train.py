"""`train`: result files, RL Zoo's files beside them, going on after Ctrl-C, Stable-Baselines3's algorithms."""

from __future__ import annotations

import signal
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rl_zoo3.train
import torch
import yaml
from stable_baselines3 import SAC

from agents import ALGORITHMS, Dreamer
from agents.zoo import enjoy, manager, train
from agents.zoo.hyperparams import load_preset, overrides, read_preset
from agents.zoo.registry import import_environments, register_algorithms

from .runs import TINY, arguments, interrupt_at, result

STAGED = ["latent=4", "hidden=8", "vision_updates=2", "memory_updates=2", "batch_size=2", "batch_length=8"]
STAGED += ["population=4", "evaluate_rollouts=2"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert train.main(arguments(folder, "--set", *TINY)) == 0
    return folder


def test_a_run_writes_its_result_file_and_what_rl_zoo_reads(unbroken: Path) -> None:
    run = result(unbroken)
    assert run["env_steps"] == [0, 40, 80, 120]
    assert run["complete"]
    assert (run["algo"], run["preset"], run["seed"], run["eval_episodes"]) == ("dreamer", "default", 0, 2)
    assert run["updates"] > 0
    folder = unbroken / "runs" / "default" / "dreamer" / "CartPole-v1_1"
    evaluations = np.load(folder / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == run["env_steps"]
    assert evaluations["results"].mean(1) == pytest.approx(run["return_mean"], abs=0.01)
    assert Dreamer.load(folder / "CartPole-v1.zip").num_timesteps == 120
    assert (folder / "best_model.zip").is_file()
    assert yaml.safe_load((folder / "CartPole-v1" / "config.yml").read_text())["n_timesteps"] == 120
    assert not (folder / "resume").exists()


def test_steps_of_evolution_in_the_real_environment_count(tmp_path: Path) -> None:
    options = ["generations=1", "rollouts=1", "train_in=real", "real_envs=0"]
    assert train.main(arguments(tmp_path, "--algo", "world_models", "--set", *STAGED, *options)) == 0
    *before, after = result(tmp_path)["env_steps"]
    assert before == [0, 40, 80, 120]
    assert after >= 120 + 6 * 8  # CartPole lasts at least 8 steps


def test_a_resumed_run_keeps_evaluations_that_followed_steps_of_evolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["iterations=2", "generations=1", "rollouts=1", "train_in=real", "real_envs=0"]
    same = arguments(tmp_path, "--algo", "world_models", "--set", *STAGED, *options)
    interrupt_at(100, monkeypatch)
    assert train.main(same) == 130
    before = result(tmp_path)["env_steps"]
    assert before[:2] == [0, 40]
    assert before[2] > 80  # the first round's evolution lies before it
    monkeypatch.undo()
    assert train.main([*same, "--resume"]) == 0
    assert result(tmp_path)["env_steps"][:3] == before
    assert len(result(tmp_path)["env_steps"]) == 5


def test_what_learns_in_stages_is_evaluated_when_the_last_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_evolved: list[bool] = []
    evaluating = manager.ResultRecorder.evaluate

    def evaluate(self: Any) -> bool:
        has_evolved.append(bool(self.model.policy.actor.weights.any()))
        return evaluating(self)

    monkeypatch.setattr(manager.ResultRecorder, "evaluate", evaluate)
    options = ["generations=2", "rollouts=2", "dream_horizon=6"]
    assert train.main(arguments(tmp_path, "--algo", "world_models", "--set", *STAGED, *options)) == 0
    assert has_evolved == [False, False, False, False, True]
    assert result(tmp_path)["env_steps"] == [0, 40, 80, 120]  # the fifth takes the fourth's place
    npz = np.load(tmp_path / "runs" / "default" / "world_models" / "CartPole-v1_1" / "evaluations.npz")
    assert npz["timesteps"].tolist() == [0, 40, 80, 120]
    assert npz["results"].mean(1) == pytest.approx(result(tmp_path)["return_mean"], abs=0.01)


@pytest.mark.parametrize(("step", "number"), [(50, signal.SIGINT), (80, signal.SIGTERM)])
def test_a_run_that_was_interrupted_goes_on_to_the_same_curve(
    unbroken: Path, tmp_path: Path, step: int, number: int
) -> None:
    same = arguments(tmp_path, "--set", *TINY)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(step, patch, number)
        if number == signal.SIGINT:
            assert train.main(same) == 130
        else:
            with pytest.raises(SystemExit):
                train.main(same)
    stopped = result(tmp_path)
    assert not stopped["complete"]
    assert "error" in stopped
    assert stopped["env_steps"][-1] <= step
    assert train.main(same) == 0
    resumed, whole = result(tmp_path), result(unbroken)
    for name in ("env_steps", "return_mean", "return_std", "updates", "complete", "parameters"):
        assert resumed[name] == whole[name], name
    assert "error" not in resumed
    assert [part["env_steps"] for part in resumed["resumed"]] == [step]


@pytest.mark.parametrize("more", [["learning_rate=lin_0.01"], ["frame_stack=2"]])
def test_a_run_with_a_falling_rate_or_in_wrappers_goes_on_to_the_same_curve(more: list[str], tmp_path: Path) -> None:
    results = []
    for name, stop in (("whole", None), ("stopped", 80)):
        same = arguments(tmp_path / name, "--log", str(tmp_path / name / "log"), "--set", *TINY, *more)
        if stop:
            with pytest.MonkeyPatch.context() as patch:
                interrupt_at(stop, patch)
                assert train.main(same) == 130
        assert train.main(same) == 0
        results.append(Dreamer.load(next((tmp_path / name / "runs").glob("*/*/*/CartPole-v1.zip")), device="cpu"))
    whole, stopped = results
    if "frame_stack=2" in more:
        assert whole.observation_space.shape == (8,)  # no file names stacked environments: a resumed run resets them
    else:
        assert whole.lr_schedule(0.25) == stopped.lr_schedule(0.25) == pytest.approx(0.0025)
        for name, weight in whole.policy.state_dict().items():
            assert torch.equal(weight, stopped.policy.state_dict()[name]), name
    assert {path.name for path in (tmp_path / "stopped" / "log").glob("*.csv")} == {"progress.csv", "progress-1.csv"}


def test_what_no_checkpoint_keeps_is_refused_before_it_costs_anything(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="normalize keeps moments that no checkpoint"):
        train.main(arguments(tmp_path, "--set", *TINY, "normalize=True"))
    with pytest.raises(ValueError, match="--resume goes with this project's agents: sac"):
        train.main(arguments(tmp_path, "--algo", "sac", "--resume"))


def test_environments_may_have_processes_of_their_own(tmp_path: Path) -> None:
    assert train.main(arguments(tmp_path, "--env-kwargs", "guarded=True", "--set", *TINY)) == 0
    assert result(tmp_path)["complete"]


def test_anew_begins_again(unbroken: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(50, patch)
        assert train.main(arguments(tmp_path, "--set", *TINY)) == 130
    assert train.main(arguments(tmp_path, "--anew", "--set", *TINY)) == 0
    assert "resumed" not in result(tmp_path)
    assert result(tmp_path)["return_mean"] == result(unbroken)["return_mean"]


def test_other_settings_are_refused_where_a_run_would_be_resumed(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(50, patch)
        assert train.main(arguments(tmp_path, "--set", *TINY)) == 130
    before = result(tmp_path)
    with pytest.raises(ValueError, match="--anew"):
        train.main(arguments(tmp_path, "--set", *TINY, "gamma=0.9"))
    assert result(tmp_path) == before  # nothing is lost
    assert train.main(arguments(tmp_path, "--set", *TINY)) == 0


def test_the_result_of_a_complete_run_is_not_replaced_unasked(unbroken: Path) -> None:
    before = result(unbroken)
    with pytest.raises(ValueError, match=r"default-seed0\.json is of a complete run: --anew replaces it"):
        train.main(arguments(unbroken, "--set", *TINY))
    assert result(unbroken) == before


def test_a_run_is_not_resumed_with_other_arguments_of_its_environment(tmp_path: Path) -> None:
    same = arguments(tmp_path, "--set", *TINY)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(50, patch)
        assert train.main(same) == 130
    with pytest.raises(ValueError, match=r"begun with env_kwargs=\{\}, not \{'max_episode_steps': 9\}"):
        train.main([*same, "--env-kwargs", "max_episode_steps=9"])


def test_a_run_that_fails_says_what_stopped_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, batch: Any) -> Any:
        raise RuntimeError("the update is broken")

    monkeypatch.setattr(Dreamer, "_update", broken)
    with pytest.raises(RuntimeError, match="the update is broken"):
        train.main(arguments(tmp_path, "--set", *TINY))
    run = result(tmp_path)
    assert "the update is broken" in run["error"]
    assert not run["complete"]


def test_sac_learns_a_dm_control_task_with_numbers_among_its_observations(tmp_path: Path) -> None:
    options = ["--algo", "sac", "--set", "learning_starts=20", "batch_size=8", "--eval-every", "120"]
    assert train.main(arguments(tmp_path, *options, env="dm_control/walker-walk-v0")) == 0
    run = result(tmp_path)
    assert (run["algo"], run["action_repeat"], run["env_steps"]) == ("sac", 2, [0, 120])
    agent = SAC.load(tmp_path / "runs/default/sac/dm_control-walker-walk-v0_1/dm_control-walker-walk-v0.zip")
    assert agent.observation_space.shape == (24,)
    assert agent.num_timesteps == 60
    named = ["--algo", "sac", "--env", "dm_control/walker-walk-v0", "-f", str(tmp_path / "runs")]
    assert enjoy.main([*named, "--episodes", "1"]) == 0


def test_processes_are_not_asked_for_in_a_way_that_our_agents_do_not_hear(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--env-kwargs subprocess:True"):
        train.main(arguments(tmp_path, "--set", *TINY, "--vec-env", "subproc"))


def test_rl_zoos_own_command_trains_our_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a `custom_envs.py` with `register_algorithms()` in it makes possible."""
    register_algorithms()
    file = str(files("zoo_configs") / "dreamer.yml")
    named = ["--algo", "dreamer", "--env", "CartPole-v1", "--conf-file", file, "-n", "60", "--eval-freq", "30"]
    tiny = [pair.replace("=", ":") for pair in TINY]
    options = ["--eval-episodes", "1", "-f", str(tmp_path), "--seed", "0", "--verbose", "0", "-params", *tiny]
    monkeypatch.setattr("sys.argv", ["train", *named, *options])
    rl_zoo3.train.train()
    assert Dreamer.load(tmp_path / "dreamer/CartPole-v1_1/CartPole-v1.zip").num_timesteps == 60
    assert np.load(tmp_path / "dreamer/CartPole-v1_1/evaluations.npz")["timesteps"].tolist() == [30, 60]


# -- hyperparameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", [*ALGORITHMS, "sac"])
def test_every_algorithm_has_a_yaml_that_rl_zoo_can_read(algo: str) -> None:
    presets = yaml.safe_load((files("zoo_configs") / f"{algo}.yml").read_text())
    assert "default" in presets
    for preset in presets:
        settings = read_preset(algo, "dm_control/walker-walk-v0", preset)
        assert settings.get("n_timesteps", 1) > 0
        assert isinstance(settings.get("policy", ""), str)


def test_what_a_task_changes_it_changes_in_every_preset(tmp_path: Path) -> None:
    file = tmp_path / "agent.yml"
    file.write_text(
        "default: &default {horizon: 15, observation: state}\n"
        "pixels: {horizon: 15, observation: pixels}\n"
        "Far-v0: {<<: *default, horizon: 50}\n"
    )
    assert read_preset("agent", "Far-v0", "default", file) == {"horizon": 50, "observation": "state"}
    assert read_preset("agent", "Far-v0", "pixels", file) == {"horizon": 50, "observation": "pixels"}
    assert read_preset("agent", "Near-v0", "pixels", file)["horizon"] == 15


def test_strings_that_would_be_run_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.yml"
    file.write_text('default: {policy_kwargs: "dict(net_arch=[64])"}')
    with pytest.raises(ValueError, match="policy_kwargs"):
        read_preset("agent", "CartPole-v1", "default", file)
    assert overrides(["x=__import__('os').getcwd()"]) == {"x": "__import__('os').getcwd()"}


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(KeyError, match="pixels"):
        load_preset("dreamer", "CartPole-v1", "nothing")
    with pytest.raises(KeyError, match=r"zoo_configs/nothing\.yml"):
        load_preset("nothing", "CartPole-v1")
    with pytest.raises(ValueError, match="dm_control/walker-walk-v0"):
        import_environments("dm_control/walker-wlk-v0")
    with pytest.raises(ValueError, match="name=value"):
        overrides(["horizon"])
