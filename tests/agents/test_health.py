"""NaN and infinity never reach the weights: the update is left out, counted and named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.logger import configure
from torch import Tensor

from agents import Dreamer, PlaNet
from agents.health import DivergedError


def all_finite(agent: Dreamer) -> bool:
    moments = [m for o in agent.optimizers.values() for s in o.state_dict()["state"].values() for m in s.values()]
    tensors = [*agent.policy.state_dict().values(), *map(torch.as_tensor, moments)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def spoil(module: Any, name: str, updates: set[int], agent: Dreamer, change: Any) -> None:
    """Let what `module.name` returns be changed in some updates, by their number from 1."""
    original, calls = getattr(module, name), []

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        result = original(*args, **kwargs)
        return change(result) if len(calls) in updates else result

    setattr(module, name, spoilt)


def nan_total(loss: Any) -> Any:
    loss.total = loss.total * float("nan")
    return loss


def infinite_part(loss: Any) -> Any:
    loss.parts = {**loss.parts, "reward_loss": torch.tensor(float("inf"))}
    return loss


class InfiniteGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def spoilt_gradient(loss: Any) -> Any:
    loss.total = InfiniteGradient.apply(loss.total)
    return loss


@pytest.mark.parametrize(
    ("where", "change", "name"),
    [
        (lambda a: (a.world, "loss"), nan_total, "the world's loss is nan"),
        (lambda a: (a.world, "loss"), infinite_part, "the world's reward loss is inf"),
        (lambda a: (a.world, "loss"), spoilt_gradient, "the gradient of the world is NaN or infinite"),
        (lambda a: (a.policy.critic, "loss"), lambda loss: loss * float("nan"), "the critic loss is nan"),
        (lambda a: (a.policy.return_range, "update"), lambda s: s * float("nan"), "the actor loss is nan"),
    ],
    ids=["loss", "part of a loss", "gradient", "critic", "normaliser"],
)
def test_a_spoilt_update_is_named_counted_and_left_out(
    tiny: Any, caplog: pytest.LogCaptureFixture, where: Any, change: Any, name: str
) -> None:
    agent = tiny("CartPole-v1")
    spoil(*where(agent), {2, 5}, agent, change)
    agent.learn(80)
    assert [message.partition(" left out: ")[2] for message in caplog.messages] == [f"{name}."] * 2
    assert agent._skipped_updates == 2
    assert agent._n_updates > 5
    assert all_finite(agent)


def test_a_normaliser_that_met_nan_is_what_it_was(tiny: Any) -> None:
    agent = tiny("CartPole-v1").learn(60)
    before = float(agent.policy.return_range.high)
    agent.policy.return_range.update = lambda returns: agent.policy.return_range.high.mul_(float("nan"))
    agent.update()
    assert float(agent.policy.return_range.high) == before


def test_after_too_many_in_a_row_training_stops_with_the_state_from_before(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = tiny("CartPole-v1", max_skipped_updates=3, interrupt_folder=tmp_path)
    agent.learn(60)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    spoil(agent.world, "loss", {1, 2, 3}, agent, nan_total)
    with pytest.raises(
        DivergedError, match=r"3 updates in a row.*world's loss is nan.*dreamer-CartPole-v1-seed\d+-\d+-diverged\.zip"
    ):
        agent.learn(100, reset_num_timesteps=False)
    saved = Dreamer.load(next(tmp_path.glob("dreamer-CartPole-v1-seed*-diverged.zip")), device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in saved.policy.state_dict().items())
    assert saved._skipped_updates == 3
    assert saved.learn(20, reset_num_timesteps=False).num_timesteps > 60


def test_training_that_stops_so_says_why_even_where_it_cannot_be_saved(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    agent = tiny("CartPole-v1", max_skipped_updates=2, interrupt_folder=tmp_path / "file").learn(60)
    spoil(agent.world, "loss", {1, 2}, agent, nan_total)
    with pytest.raises(DivergedError, match=r"2 updates in a row.*It is not saved"):
        agent.learn(100, reset_num_timesteps=False)


def test_metrics_do_not_pile_up_where_nothing_is_logged(tiny: Any) -> None:
    agent = tiny("CartPole-v1").learn(60, log_interval=None)
    for _ in range(1100 - agent._n_updates):
        agent._metrics["world_loss"].append(torch.zeros(()))
    assert len(agent._metrics["world_loss"]) <= 1000


def test_a_good_update_between_them_starts_the_count_anew(tiny: Any) -> None:
    agent = tiny("CartPole-v1", max_skipped_updates=2)
    spoil(agent.world, "loss", {1, 3, 5}, agent, nan_total)
    agent.learn(100)
    assert agent._skipped_updates == 3


def test_skipped_updates_stand_in_the_log(tiny: Any, tmp_path: Path) -> None:
    agent = tiny("CartPole-v1")
    agent.set_logger(configure(str(tmp_path), ["json"]))
    spoil(agent.world, "loss", {1}, agent, nan_total)
    with_log = agent.learn(100, log_interval=1)
    assert with_log._skipped_updates == 1
    assert '"train/skipped_updates": 1' in (tmp_path / "progress.json").read_text()


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_the_patience_must_be_a_whole_number(tiny: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="max_skipped_updates must be a whole number"):
        tiny("CartPole-v1", max_skipped_updates=value)


def test_what_the_log_says_is_a_warning(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    agent = tiny("CartPole-v1")
    spoil(agent.world, "loss", {1}, agent, nan_total)
    agent.learn(60)
    assert [(record.name, record.levelno) for record in caplog.records] == [("wmgym", logging.WARNING)]


def test_planets_optimiser_refuses_a_spoilt_gradient_too(caplog: pytest.LogCaptureFixture) -> None:
    small: dict[str, Any] = {
        "deter": 8, "stoch": 2, "units": 8, "batch_size": 2, "batch_length": 8, "horizon": 2, "candidates": 8,
        "elites": 2, "iterations": 1, "seed_episodes": 1, "updates_per_episode": 3, "seed": 0, "device": "cpu",
    }  # fmt: skip
    agent = PlaNet("test/Reach-v0", **small)
    spoil(agent.world, "loss", {2}, agent, spoilt_gradient)
    agent.learn(45)
    assert caplog.messages == ["Update 2 left out: the gradient of the world is NaN or infinite."]
    assert agent._skipped_updates == 1
    assert agent._n_updates == 5
    assert all(bool(torch.isfinite(value).all()) for value in agent.policy.state_dict().values())
