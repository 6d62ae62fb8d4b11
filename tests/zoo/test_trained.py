"""Trained agents: played, filmed, and made small enough to come with the package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from moviepy import VideoFileClip

import wmgym
from agents import TDMPC2, Director, Dreamer, PlaNet
from agents.zoo import enjoy, export, record, train
from agents.zoo.export import LARGEST, card, shrink
from agents.zoo.painting import Painter, collect, fit, paint, state_of
from agents.zoo.report import Returns
from agents.zoo.suites import read_suites
from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError
from wmgym.dataset import load_dataset
from wmgym.files import MODELS, ready_models

TINY = ["deter=16", "stoch=4", "units=16", "batch_size=2", "batch_length=8", "horizon=3", "imagine_starts=8"]
TINY += ["learning_starts=40", "train_ratio=4"]
READY = ready_models()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run; its agent is a.zip there too."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--env", "CartPole-v1", "--env-steps", "120", "--eval-every", "120", "--eval-episodes", "2"]
    options += ["--verbose", "0", "--results", str(folder / "results"), "-f", str(folder / "runs")]
    assert train.main([*options, "--save", str(folder / "a.zip"), "--save-replay-buffer", "--set", *TINY]) == 0
    return folder


def test_the_replay_is_saved_beside_the_agent(trained: Path) -> None:
    assert len(load_dataset(trained / "a-replay.zip").replay) >= 120
    agent = Dreamer.load(trained / "a.zip", device="cpu")
    agent.learn(1, reset_num_timesteps=False)
    assert agent.replay_buffer is not None
    assert len(agent.replay_buffer) > 120  # it went on with what it had
    run = ["--env", "CartPole-v1", "--save-replay-buffer"]
    for more in ([], ["--algo", "ppo", "--save", "agent.zip"]):
        with pytest.raises(ValueError, match="goes with --save, and with this project's agents"):
            train.main([*run, *more])


# -- playing --------------------------------------------------------------------------------------------------


def test_enjoy_plays_a_run_in_the_real_environment(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--env", "CartPole-v1", "-f", str(trained / "runs"), "--episodes", "2"]
    assert enjoy.main(run) == 0
    text = capsys.readouterr().out
    assert "episode 2:" in text
    assert "Dreamer in CartPole-v1:" in text
    assert enjoy.main([*run, "--load-best", "--stochastic"]) == 0


def test_enjoy_dream_plays_inside_the_learned_world(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = tmp_path / "dream.mp4"
    assert enjoy.main(["--model", str(trained / "a.zip"), "--dream", "--episodes", "1", "--film", str(film)]) == 0
    assert "Dreamer in the dream:" in capsys.readouterr().out
    assert film.stat().st_size > 0


def test_what_is_not_there_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="CartPole-v1_4"):
        enjoy.main(["--env", "CartPole-v1", "--seed", "3", "-f", str(trained / "runs")])
    with pytest.raises(ValueError, match="--model"):
        enjoy.main([])
    with pytest.raises(CheckpointError, match="ready-trained are"):
        enjoy.main(["--model", "nobody"])


# -- filming --------------------------------------------------------------------------------------------------


def test_a_painter_learns_what_states_look_like(trained: Path) -> None:
    agent = Dreamer.load(trained / "a.zip")
    env = wmgym.make_env("CartPole-v1", render_size=64)
    gallery = collect(agent, env, frames=60, seed=0)
    assert gallery.features.shape == (60, agent.world.feature_size)
    assert gallery.pictures.shape == (60, 64, 64, 3)
    losses = fit(Painter(agent.world.feature_size, depth=4), gallery, updates=60, batch_size=8)
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PlaNet, {"warm_start": True, "candidates": 8, "elites": 2, "iterations": 1, "units": 16, "deter": 16}),
        (TDMPC2, {"units": 16, "latent": 16}),
        (Director, {"deter": 16, "units": 16}),
    ],
)
def test_the_world_s_state_is_found_in_what_any_agent_remembers(kind: Any, options: dict[str, Any]) -> None:
    """Some remember plans or goals too."""
    agent = kind("Pendulum-v1", seed=0, device="cpu", **options)
    _, carry = agent.predict(np.zeros(3, np.float32))
    state = state_of(agent, carry)
    assert agent.world.features(state).shape == (1, agent.world.feature_size)


def test_painting_changes_nothing_of_the_world_and_its_dreams_can_be_seen(trained: Path) -> None:
    agent = Dreamer.load(trained / "a.zip")
    before = {name: value.clone() for name, value in agent.world.state_dict().items()}
    painter = paint(agent, wmgym.make_env("CartPole-v1", render_size=64), frames=20, updates=2, depth=2)
    after = agent.world.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    dream: Any = gym.make("Dream-v0", model=wmgym.as_model(agent.world, agent.start_states()), render_mode="rgb_array")
    dream.reset(seed=0)
    frame = dream.render()
    assert isinstance(frame, np.ndarray)
    assert frame.shape == (64, 64, 3)
    painted = painter(agent.world.features(dream.unwrapped.get_state().world))
    np.testing.assert_array_equal(frame, painted[0].numpy())


def test_record_films_a_state_world_beside_its_dream(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    small = ["--steps", "12", "--watched", "2", "--dreamt", "4", "--frames", "20", "--updates", "2", "--size", "64"]
    assert record.main(["--model", str(trained / "a.zip"), "--out", str(path), *small]) == 0
    assert path.stat().st_size < record.LARGEST
    with VideoFileClip(str(path)) as clip:
        assert clip.size == [136, 96]


def test_a_suite_is_filmed_a_task_at_a_time() -> None:
    each = record.of_suite(argparse.Namespace(suite="nine", size=64, log_folder="there"))
    assert [args.env for args in each] == list(read_suites()["nine"].envs)
    assert {(args.algo, args.preset, args.seed, args.size) for args in each} == {("dreamer", "default", 0, 64)}


def test_films_of_a_suite_of_several_agents_have_their_names() -> None:
    each = record.of_suite(argparse.Namespace(suite="papers", size=64, log_folder="there"))
    names = [str(args.out) for args in each]
    assert names == [f"videos/walker-walk-dreamer_v{i}-cpu.mp4" for i in (1, 2, 3)]


# -- ready-trained --------------------------------------------------------------------------------------------


def test_what_is_exported_is_small_and_acts_and_dreams_like_the_original(trained: Path, tmp_path: Path) -> None:
    small = shrink(trained / "a.zip", tmp_path / "small.zip")
    assert small.stat().st_size < 0.5 * (trained / "a.zip").stat().st_size
    manifest, tensors = checkpoint.load(small)
    assert {name.split("/")[0] for name in tensors} == {"world", "agent", "starts"}
    assert "replay" not in manifest["run"]
    assert str(trained) not in json.dumps(manifest)
    one, two = Dreamer.load(trained / "a.zip"), Dreamer.load(small)
    observation = np.array([0.01, -0.02, 0.03, -0.04], np.float32)
    features = [agent.world.features(agent.world.initial(1)) for agent in (one, two)]
    assert torch.equal(*features)
    logits = [agent.policy.actor.net(torch.ones(1, agent.world.feature_size)) for agent in (one, two)]
    assert torch.allclose(*logits, atol=0.02)
    assert two.predict(observation, deterministic=True)[0] in (0, 1)
    gym.make("Dream-v0", model=str(small)).reset(seed=0)
    two.learn(50)  # and can be trained on


def test_a_checkpoint_that_is_too_large_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST", 1000)
    with pytest.raises(ValueError, match="MB"):
        shrink(trained / "a.zip", tmp_path / "small.zip")
    assert not (tmp_path / "small.zip").exists()


def test_export_writes_a_card_and_the_name_opens_it_anywhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (result,) = (trained / "results").glob("*/*/*.json")
    options = ["--model", str(trained / "a.zip"), "--result", str(result), "--name", "pole", "--folder", str(tmp_path)]
    assert export.main([*options, "--episodes", "2"]) == 0
    text = (tmp_path / "pole.md").read_text()
    assert (
        "python -m agents.zoo train --algo dreamer --preset default --env CartPole-v1 --seed 0 --env-steps 120" in text
    )
    assert "deter=16" in text
    assert str(trained) not in text
    monkeypatch.setattr("wmgym.files.MODELS", tmp_path)
    monkeypatch.chdir(trained.parent)
    assert Dreamer.load("pole").num_timesteps == 120
    gym.make("Dream-v0", model="pole").reset(seed=0)
    with pytest.raises(CheckpointError, match=r"ready-trained are \['pole'\]"):
        gym.make("Dream-v0", model="nobody")


def test_only_complete_runs_are_exported(trained: Path, tmp_path: Path) -> None:
    result: dict[str, Any] = {"complete": False, "env_id": "CartPole-v1", "seed": 0}
    with pytest.raises(ValueError, match="complete"):
        export.export(str(trained / "a.zip"), result, tmp_path, "pole", 1, None)


@pytest.mark.parametrize("name", READY)
def test_every_ready_trained_world_has_a_card_and_its_size(name: str) -> None:
    assert (MODELS / f"{name}.zip").stat().st_size <= 3_000_000
    text = (MODELS / f"{name}.md").read_text()
    for part in (f"# {name}", "simulator steps", "this file, real environment", "this file, its own dream", "## Trust"):
        assert part in text
    dream = gym.make("Dream-v0", model=name)
    observation, _ = dream.reset(seed=0)
    assert np.isfinite(observation).all()
    assert np.isfinite(dream.step(dream.action_space.sample())[1])
    action, _ = Dreamer.load(name, device="cpu").predict(observation, deterministic=True)
    assert action in dream.action_space


def test_the_card_tells_what_a_trust_report_begins_with_or_that_there_is_none(trained: Path) -> None:
    (result,) = (trained / "results").glob("*/*/*.json")
    run, returns = json.loads(result.read_text()), Returns((1.0, 3.0))
    assert "Not measured yet" in card("pole", run, LARGEST, returns, returns, None)
    report = "# How far?\n\n- **How long:** 20 steps.\n- **Plans:** well.\n\n- environment: A\n\n## 1. So\n\n- **No**\n"
    text = card("pole", run, LARGEST, returns, returns, report)
    assert text.endswith("## Trust\n\n- **How long:** 20 steps.\n- **Plans:** well.\n")


@pytest.mark.parametrize(("command", "option"), [(record, "--out"), (enjoy, "--film")], ids=["record", "enjoy"])
def test_a_film_that_is_no_mp4_is_refused_before_any_work(
    command: ModuleType, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["--model", "walker-walk", option, "films"])
    assert "ends in .mp4, not films" in capsys.readouterr().err
