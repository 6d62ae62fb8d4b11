"""Updates that are recorded and replayed: the same numbers, without a word from the host; no GPU is needed for this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents import Dreamer, DreamerV1, DreamerV2, DreamerV3, captured
from agents.captured import CAPTURABLE, capture_updates
from agents.health import DivergedError
from tests.agents.learnt import learnt
from wmgym.nets.optim import LaProp

aten = torch.ops.aten
ASK_THE_HOST = {
    aten._local_scalar_dense.default, aten.lift_fresh.default, aten.is_nonzero.default, aten.nonzero.default,
    aten.masked_select.default, aten._unique2.default,
}  # fmt: skip


class Tape:
    """A `Recorder` without a GPU: what it has recorded it does again, reading the memory that the recording read."""

    def __init__(self) -> None:
        self.runs, self.replays = 0, 0

    def run(self, step: Callable[[], None]) -> None:
        self.runs += 1
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.replays += 1
            step()

        return replay


class NoWordFromTheHost(TorchDispatchMode):
    """Refuses operations whose results the host must know, or that bring numbers from it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indexed = function in (aten.index.Tensor, aten.index_put_.default)
        masked = indexed and any(index is not None and index.dtype == torch.bool for index in args[1])
        if function in ASK_THE_HOST or masked:
            raise AssertionError(f"{function} makes the device wait")
        return function(*args, **(kwargs or {}))


def small(cls: type[Dreamer], env: str, **options: Any) -> Dreamer:
    settings: dict[str, Any] = {"batch_size": 2, "batch_length": 8, "horizon": 4, "learning_starts": 30, "seed": 0}
    settings |= {"size": "1m", "warmup": 0} if cls is DreamerV3 else {"deter": 16, "stoch": 4, "units": 16, "depth": 4}
    agent = cls(env, train_ratio=4.0, device="cpu", **settings | options)
    for optimizer in agent.optimizers.values():
        for group in optimizer.param_groups:
            if isinstance(optimizer, LaProp):
                group["foreach"] = True  # as on a GPU
    return agent


@pytest.mark.parametrize("cls", CAPTURABLE)
def test_replayed_updates_are_the_same_updates(cls: type[Dreamer]) -> None:
    plain, replayed = small(cls, "CartPole-v1"), small(cls, "CartPole-v1")
    tape = Tape()
    capture_updates(replayed, tape)
    plain.learn(60)
    replayed.learn(60)
    assert (tape.runs, tape.replays) == (3, plain._n_updates - 3)
    assert replayed._n_updates == plain._n_updates >= 8
    for (name, one), two in zip(plain.policy.state_dict().items(), replayed.policy.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("env", ["Pendulum-v1", "pictures"])
@pytest.mark.parametrize("cls", CAPTURABLE)
def test_an_update_waits_for_no_word_from_the_host(cls: type[Dreamer], env: str) -> None:
    pictures = {"observation": "pixels"} if env == "pictures" else {}
    agent = small(cls, "CartPole-v1" if pictures else env, **pictures)
    capture_updates(agent, Tape())
    agent.learn(40)
    assert agent.replay_buffer is not None
    batch = agent.replay_buffer.sample(2, 8)
    with NoWordFromTheHost():
        agent.perform(batch)


def test_what_waits_is_noticed(tiny: Any) -> None:
    agent = tiny("CartPole-v1").learn(60)
    batch = agent.replay_buffer.sample(4, 8)
    with NoWordFromTheHost(), pytest.raises(AssertionError, match="makes the device wait"):
        agent.perform(batch)


@pytest.mark.parametrize("cls", [Dreamer, DreamerV3])
@pytest.mark.parametrize("at", [1, 6])
def test_a_spoilt_update_leaves_everything_as_it_was(
    cls: type[Dreamer], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "LOOK", 1)
    agent = small(cls, "CartPole-v1")
    capture_updates(agent, Tape())
    loss, seen = agent.world.loss, []

    def spoilt(*args: Any) -> Any:
        seen.append({name: value.clone() for name, value in learnt(agent).items()})  # before foresight takes errors in
        found = loss(*args)
        return with_nan(found) if len(seen) == at else found

    monkeypatch.setattr(agent.world, "loss", spoilt)
    agent.learn(60)
    assert agent._skipped_updates == 1
    assert agent._n_updates == len(seen) - 1
    for name, before in seen[at - 1].items():
        if "slow_critic" not in name:
            torch.testing.assert_close(before, seen[at][name], rtol=0, atol=0, msg=lambda text, name=name: name)
    assert all(bool(torch.isfinite(value).all()) for value in learnt(agent).values())


def with_nan(loss: Any) -> Any:
    loss.total = loss.total * float("nan")
    return loss


def test_after_too_many_in_a_row_training_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "LOOK", 4)
    agent = small(Dreamer, "CartPole-v1", max_skipped_updates=3, interrupt_folder=tmp_path)
    capture_updates(agent, Tape())
    agent.learn(40)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    loss = agent.world.loss
    monkeypatch.setattr(agent.world, "loss", lambda *args: with_nan(loss(*args)))
    with pytest.raises(DivergedError, match="in a row"):
        agent.learn(40, reset_num_timesteps=False)
    for name, value in agent.policy.state_dict().items():
        if "slow_critic" not in name:
            assert torch.equal(value, before[name]), name
    assert list(tmp_path.glob("*diverged.zip"))


def test_other_agents_and_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="Updates of DreamerV2 cannot be captured, only those of Dreamer"):
        capture_updates(small(DreamerV2, "CartPole-v1"))
    with pytest.raises(ValueError, match='on a CUDA device, and this agent is on "cpu"'):
        capture_updates(DreamerV1(gym.make("CartPole-v1"), seed=0, device="cpu"))
