"""The README's examples run as they stand, with fewer steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

import wmgym
from agents import Dreamer

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


class MyEnv(gym.Env):
    """Somebody's environment."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action), False, False, {}


def with_fewer_steps(block: str) -> str:
    """The example with its thousands of steps cut to hundreds."""
    return re.sub(r"\d+_000", "550", block)


def test_every_example_is_short_as_promised() -> None:
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 5, block


@pytest.mark.filterwarnings("ignore")
def test_the_examples_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_rendering: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    pixels = Dreamer("dm_control/walker-walk-v0", observation="pixels", seed=0)
    pixels.learn(40)
    pixels.save("walker_pixels.zip")
    names: dict[str, Any] = {"np": np, "gym": gym, "wmgym": wmgym, "SAC": SAC, "MyEnv": MyEnv, "Dreamer": Dreamer}
    names["evaluate_policy"] = lambda model, env: evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    for block in BLOCKS:
        exec(with_fewer_steps(block), names)
    assert names["frame"].shape == (64, 64, 3)
    assert names["agent"].num_timesteps == 550
    assert names["sac"].num_timesteps >= 550
