"""Resumed equals unbroken, to the last bit: every algorithm, with its replay in RAM and memory-mapped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import ALGORITHMS, WorldModelAgent
from agents.checkpointing import CheckpointEvery, last_checkpoint
from tests.agents.learnt import learnt

HALF, WHOLE = 50, 80

_COMMON: dict[str, Any] = {"batch_size": 4, "batch_length": 8, "buffer_size": 400, "seed": 0, "device": "cpu"}
_DREAMERS: dict[str, Any] = {
    "learning_starts": 30, "train_ratio": 8.0, "deter": 16, "stoch": 4, "units": 16, "depth": 2, "horizon": 3,
    "imagine_starts": 8,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "dreamer": _DREAMERS,
    "dreamer, a transformer": {**_DREAMERS, "dynamics": "tssm", "context": 4},
    "director": {**_DREAMERS, "every": 2, "horizon": 4, "codes": 2, "classes": 3, "goal_layers": 1},
    "dreamer_v1": {**_DREAMERS, "pretrain": 1},
    "dreamer_v2": {**_DREAMERS, "pretrain": 1, "classes": 4},
    "dreamer_v3": {"learning_starts": 30, "train_ratio": 8.0, "size": "1m", "horizon": 3, "imagine_starts": 8},
    "planet": {
        "deter": 16, "stoch": 4, "units": 16, "depth": 2, "horizon": 3, "candidates": 16, "elites": 4,
        "iterations": 2, "seed_episodes": 1, "updates_per_episode": 3,
    },
    "tdmpc": {
        "latent": 16, "units": 16, "encoder_units": 16, "horizon": 3, "candidates": 16, "elites": 4, "iterations": 2,
        "actor_plans": 4, "learning_starts": 30, "pretrain": 2, "train_freq": 4, "annealing": 30,
    },
    "tdmpc2": {
        "latent": 16, "units": 16, "encoder_units": 16, "horizon": 2, "candidates": 16, "elites": 4, "iterations": 2,
        "actor_plans": 4, "learning_starts": 30, "pretrain": 2, "train_freq": 4,
    },
}  # fmt: skip
ONLINE = [*sorted(set(ALGORITHMS) - {"world_models"}), "dreamer, a transformer"]
"""The agents whose decisions and updates alternate; World Models' stages have their own test below."""


def class_of(name: str) -> type[WorldModelAgent]:
    """The algorithm, of which there may be several variants."""
    return ALGORITHMS[name.partition(",")[0]]


def build(name: str, folder: Path | None) -> WorldModelAgent:
    """A small agent; one without settings here is as it comes, which is slow but not wrong."""
    return class_of(name)("test/Reach-v0", **_COMMON, **SMALL.get(name, {}), buffer_folder=folder)


def state_of(agent: WorldModelAgent) -> dict[str, Any]:
    """All that the future of a run depends on, as far as it can be compared."""
    state: dict[str, Any] = dict(learnt(agent))
    assert agent.replay_buffer is not None
    batch = agent.replay_buffer.sample(32, 8)
    state |= {"action": batch.action, "reward": batch.reward, **batch.observation}
    state |= {"generator": agent.generator.get_state(), "policy": agent.policy.generator.get_state()}
    counters = ("num_timesteps", "_n_updates", "_updates_due", "_episode_num", "_skipped_updates")
    return state | {name: torch.as_tensor(getattr(agent, name)) for name in counters}


def assert_same(one: WorldModelAgent, two: WorldModelAgent) -> None:
    left, right = state_of(one), state_of(two)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def cases() -> Iterator[Any]:
    for name in ONLINE:
        yield pytest.param(name, False, id=f"{name}, in RAM")
        # The papers' Dreamers keep their replay as Dreamer does.
        marks = [pytest.mark.slow] if name.startswith("dreamer_v") else []
        yield pytest.param(name, True, id=f"{name}, memory-mapped", marks=marks)


@pytest.mark.parametrize(("name", "mapped"), list(cases()))
def test_resumed_equals_unbroken(name: str, mapped: bool, tmp_path: Path) -> None:
    broken, whole = (tmp_path / "broken", tmp_path / "whole") if mapped else (None, None)
    build(name, broken).learn(HALF, CheckpointEvery(tmp_path / "saved", 100))
    again = class_of(name).load(last_checkpoint(tmp_path / "saved"), device="cpu")
    again.learn(WHOLE - HALF, reset_num_timesteps=False)
    unbroken = build(name, whole).learn(WHOLE)
    assert unbroken._n_updates > 3
    assert_same(again, unbroken)


def test_world_models_resumed_equals_unbroken_memory_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Interrupted in the middle of M's stage; in RAM, and in every stage, test_stages.py has it."""
    small: dict[str, Any] = {
        "latent": 3, "hidden": 8, "vision_updates": 4, "vision_batch": 8, "memory_updates": 6, "generations": 2,
        "population": 4, "rollouts": 2, "evaluate_every": 3, "evaluate_rollouts": 4, "dream_horizon": 5,
    }  # fmt: skip
    cls, steps = ALGORITHMS["world_models"], []
    whole = cls("test/Reach-v0", **_COMMON, **small, buffer_folder=tmp_path / "whole").learn(60)
    memory_step = cls._memory_step  # type: ignore[attr-defined]

    def interrupted(agent: Any) -> None:
        memory_step(agent)
        steps.append(None)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cls, "_memory_step", interrupted)
    broken = cls("test/Reach-v0", **_COMMON, **small, buffer_folder=tmp_path / "broken", interrupt_folder=tmp_path)
    with pytest.raises(SystemExit):
        broken.learn(60)
    again = cls.load(next(tmp_path.glob("worldmodels-test-Reach-v0-seed*-interrupted.zip")), device="cpu")
    again.learn(0, reset_num_timesteps=False)
    assert len(again.history) == 2  # type: ignore[attr-defined]
    assert again.history == whole.history  # type: ignore[attr-defined]
    assert_same(again, whole)


def test_world_models_interrupted_in_a_stage_is_saved_beside_its_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"latent": 3, "hidden": 8, "vision_updates": 4, "vision_batch": 8, "memory_updates": 2}
    cls = ALGORITHMS["world_models"]
    vision_step = cls._vision_step  # type: ignore[attr-defined]

    def interrupted(agent: Any) -> None:
        vision_step(agent)
        if agent._stage_step == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cls, "_vision_step", interrupted)
    agent = cls("test/Reach-v0", **_COMMON, **small, interrupt_folder=tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        agent.learn(40, CheckpointEvery(tmp_path / "saved", 20))
    saved = cls.load(last_checkpoint(tmp_path / "saved"), device="cpu")
    assert (saved._stage, saved._stage_step, saved.num_timesteps) == ("vision", 2, 40)  # type: ignore[attr-defined]
    assert not (tmp_path / "elsewhere").exists()
