"""A world without an agent: fitted to recorded episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wmgym.choices import check_choice
from wmgym.dataset import load_dataset
from wmgym.dream.model import DreamModel, as_model
from wmgym.dream.starts import StartStates
from wmgym.random import TorchNoise
from wmgym.replay import SequenceReplay
from wmgym.replay_streams import drawing
from wmgym.worlds.base import World
from wmgym.worlds.store import WORLDS

Report = Callable[[int, dict[str, float]], None]
"""Called with the number of updates done and the losses of the last one."""


def fit_world(
    dataset: Any,
    world: str = "rssm",
    *,
    updates: int = 10_000,
    batch_size: int = 16,
    batch_length: int = 32,
    learning_rate: float = 6e-4,
    clip: float = 100.0,
    starts: int = 256,
    seed: int = 0,
    device: str | torch.device = "cpu",
    report: Report | None = None,
    report_every: int = 100,
    **config: Any,
) -> DreamModel:
    """Learn a world from recorded episodes alone.

    Args:
        dataset: a folder that `wmgym.record` wrote, a `SequenceReplay`, or a Minari data set (`load_dataset`); or a
            list of such.
        world: a kind of world (`wmgym.worlds.store.WORLDS`).
        updates: steps of Adam.
        batch_size: sequences in a batch.
        batch_length: steps in a sequence; the longest that is recorded, if that is shorter.
        learning_rate: Adam's at first; it falls to nothing in proportion to the updates done, so that the world which
            is left is not that of the last few batches.
        clip: largest norm of the gradient.
        starts: states kept for dreams to begin from: first steps of episodes, and as many that lie mid-episode.
        seed: of the first weights, the sequences drawn and the world's own chance.
        device: where the world learns and stays.
        report: called every `report_every` updates.
        report_every: updates between two reports.
        config: of the world, by name (`RSSMConfig`: `deter=200`, `ensemble=5`, ...).

    Returns:
        What `gym.make("Dream-v0", model=...)` opens at once and `DreamModel.save` writes: the world, start states
        from the episodes, and what is known of the environment.

    Raises:
        ValueError: for an unknown kind of world, a number that is too small, no two steps that follow each other, data
            sets of different spaces, or a configuration that only an agent can train.
        TypeError: for a configuration that the world does not have.
        CheckpointError: for a data set that cannot be read.

    Example:
        >>> import tempfile, gymnasium as gym, wmgym
        >>> folder = wmgym.record("CartPole-v1", None, 60, tempfile.mkdtemp())
        >>> model = fit_world(folder, updates=2, deter=8, hidden=8, stoch=4)
        >>> gym.make("Dream-v0", model=model).reset(seed=0)[0].shape
        (4,)
    """
    check_choice("world", world, sorted(WORLDS))
    if updates < 1 or batch_size < 1 or batch_length < 2:
        raise ValueError(
            f"updates and batch_size must be 1 or more and batch_length 2 or more, not {updates}, {batch_size} and "
            f"{batch_length}."
        )
    data = load_dataset(dataset)
    replay = data.replay
    length = _length(replay, batch_length)
    made = _build(world, replay, config, seed).to(device)
    noise = TorchNoise(torch.Generator(device).manual_seed(seed), device)
    optimizer = torch.optim.Adam(made.parameters(), learning_rate, eps=1e-5)
    with drawing(replay, seed):
        for update in range(1, updates + 1):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - (update - 1) / updates)
            batch = replay.sample(batch_size, length, device=device)
            loss = made.loss(batch, noise)
            _descend(optimizer, loss.total, made, clip)
            if report is not None and update % report_every == 0:
                report(update, {name: float(value) for name, value in loss.parts.items()})
    made.eval().requires_grad_(False)
    return as_model(made, StartStates.from_replay(made, replay, starts), data.env)


def _build(kind: str, replay: SequenceReplay, config: dict[str, Any], seed: int) -> World:
    world_class, config_class = WORLDS[kind].load()
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        made = world_class(replay.observation_space, replay.action_space, config_class(**config))
    if getattr(made, "slow_encoder", None) is not None:
        raise ValueError("slow_targets=True is for agents, which let the slow encoder follow: leave it out.")
    return made


def _length(replay: SequenceReplay, wanted: int) -> int:
    """Steps of a sequence: as wanted, or as many as the longest that can be sampled has."""
    for length in range(wanted, 1, -1):
        if replay.can_sample(length):
            return length
    raise ValueError("The data set has no two steps that follow each other, and a world learns from 2 and more.")


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, world: World, clip: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(world.parameters(), clip)
    optimizer.step()
