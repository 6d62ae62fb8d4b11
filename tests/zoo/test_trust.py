"""The trust report of an agent's own world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import Dreamer
from agents.zoo.trust import Corrigible, agent_policies, main
from wmgym.worlds.rssm import RSSM
from wmgym.worlds.store import save_world

QUICK = [
    "--episodes", "1", "--horizon", "5", "--windows", "2", "--marks", "1", "5", "--dreams", "2", "--starts", "2",
    "--candidates", "3", "--length", "4", "--dream-steps", "0", "--max-steps", "25",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = {"deter": 32, "stoch": 8, "units": 32, "batch_size": 4, "batch_length": 8, "imagine_starts": 16}
    agent = Dreamer("CartPole-v1", learning_starts=40, train_ratio=8.0, seed=0, device="cpu", **small)
    return agent.learn(60).save(tmp_path_factory.mktemp("agent") / "tiny.zip")


def test_the_agent_is_judged_at_several_levels_beside_an_earlier_one(checkpoint: Path, tmp_path: Path) -> None:
    earlier = checkpoint.with_name("earlier.zip")
    earlier.write_bytes(checkpoint.read_bytes())
    assert main([str(checkpoint), "--earlier", str(earlier), "--out", str(tmp_path), *QUICK]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    policies = report["facts"]["policies"]
    assert len(policies) >= 8
    assert {"Dreamer tiny", "Dreamer tiny, noise 0.5", "Dreamer earlier", "random"} <= set(policies)
    rows = {row["policy"]: row for row in report["sections"]["returns"]["data"]["policies"]}
    assert rows["Dreamer tiny"]["real"]["returns"] == rows["Dreamer earlier"]["real"]["returns"]
    assert report["sections"]["returns"]["figures"]["Pearson"]["n"] == len(policies)


def test_an_agent_hears_what_was_done(checkpoint: Path) -> None:
    agent = Corrigible(Dreamer.load(checkpoint, device="cpu"))
    observation = np.zeros((2, 4), np.float32)
    action, state = agent.predict(observation, deterministic=True)
    told = agent.did(state, 1 - action)
    assert told is not None
    assert told[-1].argmax(-1).tolist() == (1 - action).tolist()
    again, _ = agent.predict(observation, told, np.array([False, False]), deterministic=True)
    assert again.shape == (2,)


def test_what_holds_no_agent_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    agent = Dreamer.load(checkpoint, device="cpu")
    torch.manual_seed(0)
    world = save_world(tmp_path / "world.zip", RSSM(agent.observation_space, agent.action_space))
    assert main([str(world)]) == 2
    assert "python -m wmgym.trust" in capsys.readouterr().err
    assert main([str(tmp_path / "none.zip")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_agent_s_policies_are_an_entry_for_wmgym_trust(checkpoint: Path) -> None:
    assert list(agent_policies(checkpoint, levels=(0.0, 0.5))) == ["Dreamer tiny", "Dreamer tiny, noise 0.5"]
