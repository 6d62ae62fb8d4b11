"""`python -m wmgym.trust`, on a world as small as it gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO

from wmgym.real import make_env
from wmgym.trust.__main__ import main, make_parser, settings_of
from wmgym.trust.report import TrustSettings
from wmgym.worlds.rssm import RSSM, RSSMConfig
from wmgym.worlds.store import save_world

QUICK = [
    "--episodes", "2", "--horizon", "6", "--windows", "2", "--marks", "1", "5", "--dreams", "2", "--starts", "2",
    "--candidates", "4", "--length", "4", "--temperatures", "0.5", "1", "--dream-steps", "1", "--max-steps", "30",
]  # fmt: skip


def save(path: Path, ensemble: int = 0) -> Path:
    torch.manual_seed(0)
    env = make_env("CartPole-v1")
    world = RSSM(env.observation_space, env.action_space, RSSMConfig(deter=16, stoch=4, hidden=16, ensemble=ensemble))
    return save_world(path, world, env={"id": "CartPole-v1", "max_episode_steps": 500})


def test_the_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "tiny.zip")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, device="cpu").save(tmp_path / "ppo.zip")
    arguments = [str(tmp_path / "tiny.zip"), "--out", str(tmp_path / "out"), "--sb3", f"PPO={tmp_path / 'ppo.zip'}"]
    assert main([*arguments, *QUICK]) == 0
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["facts"]["environment"] == "CartPole-v1"
    assert data["facts"]["checkpoint"] == "tiny.zip"
    assert "PPO ppo, noise 0.5" in data["facts"]["policies"]
    assert len(data["sections"]) == 7
    assert set(data["sections"]["exploitation"]["figures"]) == {"gap, temperature 0.5", "gap, temperature 1"}
    assert any("no ensemble" in note for note in data["sections"]["exploitation"]["notes"])
    out = capsys.readouterr().out
    assert "Pearson" in out
    assert str(tmp_path / "out") in out


def test_a_penalty_is_tried_where_there_is_an_ensemble(tmp_path: Path) -> None:
    save(tmp_path / "tiny.zip", ensemble=3)
    assert main([str(tmp_path / "tiny.zip"), "--out", str(tmp_path), *QUICK, "--penalties", "2"]) == 0
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert "gap, temperature 1, penalty 2" in sections["exploitation"]["figures"]
    assert "disagreement and error at 5" in sections["calibration"]["figures"]


def test_damaged_input_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = save(tmp_path / "good.zip")
    (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:500])
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in {
        (str(tmp_path / "none.zip"),): "none.zip does not exist",
        (str(tmp_path / "cut.zip"),): "cut.zip cannot be read as a checkpoint",
        (str(good), "--env", "Pendulum-v1"): "the world was trained on",
        (str(good), "--env", "CartPoole-v1"): "Did you mean",
        (str(good), "--sb3", "sac.zip"): "ALGORITHM=FILE",
        (str(good), "--sb3", f"PPO={tmp_path / 'no.zip'}"): "no.zip",
        (str(good), "--policies", "nowhere:nothing"): "MODULE:FUNCTION",
        (str(good), "--episodes", "0"): "episodes must be 1",
    }.items():
        assert main([*arguments, *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("trust", "")
    assert settings_of(parser.parse_args(["x.zip"])) == TrustSettings()
    changed = settings_of(parser.parse_args(["x.zip", "--marks", "1", "2", "--penalties", "--max-steps", "9"]))
    assert changed == TrustSettings(marks=(1, 2), penalties=(), max_steps=9)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "steps of the longest prediction (default: 50)" in capsys.readouterr().out
