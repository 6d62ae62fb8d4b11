"""Tiny runs of `train`, for the tests of this folder."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from agents.zoo import manager

TINY = ["deter=16", "stoch=4", "units=16", "batch_size=2", "batch_length=8", "horizon=3", "imagine_starts=8"]
TINY += ["learning_starts=40", "train_ratio=4"]


def arguments(folder: Path, *more: str, env: str = "CartPole-v1") -> list[str]:
    steps = ["--env", env, "--env-steps", "120", "--eval-every", "40", "--eval-episodes", "2", "--verbose", "0"]
    return [*steps, "--results", str(folder / "results"), "-f", str(folder / "runs"), *more]


def result(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "results").glob("*/*/*.json")
    return json.loads(path.read_text())


def interrupt_at(step: int, patch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    evaluating = manager.ResultRecorder._on_step

    def interrupting(self: Any) -> bool:
        if self.num_timesteps == step:
            signal.raise_signal(number)
        return evaluating(self)

    patch.setattr(manager.ResultRecorder, "_on_step", interrupting)
