"""The main job, as small as it gets."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from moviepy import VideoFileClip
from PIL import Image
from stable_baselines3 import PPO

import wmgym  # noqa: F401 (registers Dream-v0)
from agents import Dreamer
from agents.zoo import demo
from agents.zoo.demo import main, parse_arguments
from agents.zoo.plots import plot_learning_curve

TINY = {
    "--env": "CartPole-v1", "--env-steps": 120, "--learning-starts": 100, "--train-ratio": 100, "--dream-steps": 64,
    "--dreams": 4, "--horizon": 8, "--episodes": 2, "--film-steps": 14,
}  # fmt: skip


def arguments(out: Path, **changes: Any) -> list[str]:
    return [str(part) for pair in {**TINY, "--out": out, **changes}.items() for part in pair]


def test_the_demo_writes_all_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 0
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in report.splitlines()
        if line.startswith("|")
    }
    assert rows["agent"] == ["real return", "dream return", "environment steps", "dream steps", "wall-clock"]
    assert rows["Dreamer"][2:4] == ["120", "0"]
    assert int(rows["PPO, trained in the dream only"][3].replace(",", "")) >= 64
    for name in ("random", "Dreamer", "PPO, trained in the dream only"):
        for cell in rows[name][:2]:
            mean, deviation = cell.split(" ± ")
            assert float(mean) > 0  # CartPole pays 1 a step
            assert float(deviation) >= 0
    assert report in capsys.readouterr().out
    _check_film(tmp_path / "demo.mp4")
    assert Image.open(tmp_path / "learning_curve.png").width > 600
    _check_agents(tmp_path)


def _check_film(path: Path) -> None:
    with VideoFileClip(str(path)) as clip:
        assert clip.size == [520, 288]
        assert 5 <= round(clip.duration * clip.fps) <= 14  # the pole may fall before
        frame = clip.get_frame(0)
    header, real, dream = frame[:32], frame[32:, :256], frame[32:, 264:]
    assert header.min() < 100 < header.max()
    assert real.std() > 1
    assert np.abs(real.astype(float) - dream).mean() > 1  # an untrained world draws something else


def _check_agents(folder: Path) -> None:
    agent, real = Dreamer.load(folder / "dreamer.zip"), gym.make("CartPole-v1")
    assert agent.num_timesteps == 120
    dream = gym.make("Dream-v0", model=str(folder / "dreamer.zip"), keys=("state",))
    assert dream.observation_space.shape == real.observation_space.shape
    ppo = PPO.load(folder / "ppo_in_dream.zip", device="cpu")
    assert ppo.observation_space == dream.observation_space
    action, _ = ppo.predict(dream.reset(seed=0)[0])
    assert action in real.action_space


def test_without_rendering_there_is_all_but_the_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    changes = {"--env": "InvertedPendulum-v5", "--dream-steps": 1}
    assert main(arguments(tmp_path, **changes)) == 0
    assert not (tmp_path / "demo.mp4").exists()
    assert "No film" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_ctrl_c_saves_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Any) -> bool:
        signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(demo.EpisodeRecorder, "_on_step", interrupted)
    assert main(arguments(tmp_path)) == 130
    assert str(tmp_path) in capsys.readouterr().out
    (saved,) = tmp_path.glob("*-interrupted.zip")
    assert Dreamer.load(saved).num_timesteps == 1


def test_every_setting_is_an_option_and_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments([]) == demo.DemoSettings()
    assert parse_arguments(["--out", "there", "--seed", "3"]) == demo.DemoSettings(out=Path("there"), seed=3)
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert "real simulator steps the Dreamer learns from" in text
    assert "default: 20000" in text


def test_a_curve_without_episodes_still_shows_the_levels(tmp_path: Path) -> None:
    path = plot_learning_curve(tmp_path / "curve.png", [], [], levels={"random": 3.0})
    assert np.asarray(Image.open(path).convert("L")).min() < 100
