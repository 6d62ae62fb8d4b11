"""What each stage of World Models has learnt, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from agents.world_models import WorldModels
from wmgym.dream import as_model
from wmgym.dream.frames import picture_key, render_frames
from wmgym.dream.vector import DreamVectorEnv
from wmgym.random import ModeNoise
from wmgym.replay_streams import drawing


def plot_reconstructions(path: str | Path, agent: WorldModels, count: int = 10) -> Path:
    """V: real frames of the replay above what V makes of them.

    Raises:
        ValueError: if there is no replay, or no picture in it.
    """
    key = picture_key(agent.world)
    if agent.replay_buffer is None or key is None:
        raise ValueError("Reconstructions need pictures, and an agent that has collected some.")
    with drawing(agent.replay_buffer):
        batch = agent.replay_buffer.sample(count, 1, device=agent.device)
    observation = {name: value[0] for name, value in batch.observation.items()}
    with torch.no_grad():
        latent = agent.world.vae.encode(observation).sample(ModeNoise(agent.device))
        drawn = agent.world.vae.decoder.observation(latent)[key]
    rows = [list(pictures.cpu().numpy()) for pictures in (observation[key], drawn)]
    return _grid(path, rows, ["real", "V"])


def plot_dreams(path: str | Path, agent: WorldModels, dreams: int = 4, count: int = 10, every: int = 4) -> Path:
    """M and C: dreams from real first frames, of which every `every`-th step is drawn."""
    env = DreamVectorEnv(
        dreams,
        as_model(agent.world, agent.start_states(256, 1)),
        observation="latent",
        temperature=agent.temperature,
        termination="never",
        render_mode="rgb_array",
        horizon=count * every + 1,
    )
    features = torch.as_tensor(env.reset(seed=0)[0], device=agent.device)
    rows: list[list[np.ndarray]] = [[] for _ in range(dreams)]
    for step in range(count * every):
        if step % every == 0:
            for row, frame in zip(rows, render_frames(agent.world, features)):
                row.append(frame)
        with torch.no_grad():
            action = agent.policy.actor(features).action
        features = torch.as_tensor(env.step(agent.policy.to_environment(action))[0], device=agent.device)
    return _grid(path, rows, [f"dream {i}" for i in range(dreams)])


def plot_evolution(path: str | Path, history: Sequence[Mapping[str, float]], title: str = "") -> Path:
    """C: the best and the mean candidate of every generation, and the mean solution where it was evaluated."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    number = range(1, len(history) + 1)
    axes.plot(number, [row["best"] for row in history], color="C0", alpha=0.5, label="best candidate")
    axes.plot(number, [row["mean"] for row in history], color="C0", label="mean of the candidates")
    scored = [(i, row["score"]) for i, row in zip(number, history) if "score" in row]
    if scored:
        axes.plot(*zip(*scored), "o--", color="C1", label="the mean solution, evaluated")
    axes.set(title=title, xlabel="generation", ylabel="return")
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _grid(path: str | Path, rows: Sequence[Sequence[np.ndarray]], names: Sequence[str]) -> Path:
    figure = Figure(figsize=(len(rows[0]), 1.1 * len(rows)), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(rows), len(rows[0]), squeeze=False))
    for line, pictures, name in zip(axes, rows, names):
        for place, picture in zip(line, pictures):
            place.imshow(picture)
            place.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    return _save(figure, path)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
