"""What a dream is made from: a world, its start states, and what is known of the real environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gymnasium.error import MissingArgument

from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError
from wmgym.dream.starts import StartStates
from wmgym.facts import facts_from_json
from wmgym.worlds.base import World
from wmgym.worlds.store import STARTS, WORLD, group, save_world, unpack_world


@dataclass(frozen=True, eq=False)
class DreamModel:
    """A handle on a live world that is never copied, however often an `EnvSpec` that holds it is.

    Attributes:
        world: the world.
        starts: states to begin from; None if there are none.
        env: what the file tells of the real environment (`wmgym.facts`).
    """

    world: World = field(repr=False)
    starts: StartStates | None = field(default=None, repr=False)
    env: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what `gym.make("Dream-v0", model=path)` opens; returns the path written."""
        return save_world(Path(path), self.world, self.starts, self.env)

    def __deepcopy__(self, memo: dict[int, Any]) -> DreamModel:
        return self


ModelLike = str | os.PathLike[str] | World | DreamModel
"""A checkpoint's path, a live world, or the handle that `as_model` gives."""


def as_model(world: World, starts: StartStates | None = None, env: Mapping[str, Any] | None = None) -> DreamModel:
    """A live world as the `model` of `gym.make("Dream-v0", model=...)`.

    A bare world would be copied several times by `gym.make`, weights and all; the handle is not. A dream sees
    the world as it is at each step, so one that still learns is dreamt in its newest form.
    """
    return DreamModel(world, starts, dict(env or {}))


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> DreamModel:
    """The world and start states in a checkpoint; agents and optimisers in it are not read.

    Raises:
        CheckpointError: naming the file and the fault.
    """
    manifest, tensors = checkpoint.load(Path(path), prefix=[WORLD, STARTS], device=str(device))
    world = unpack_world(manifest, tensors, device, source=str(path))
    packed = group(tensors, STARTS)
    try:
        starts = StartStates.from_tensors(world.initial(1), packed).to(device) if packed else None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return as_model(world, starts, facts_from_json(manifest.get("env"), path))


def resolve_model(model: ModelLike | None, device: str | torch.device | None = None) -> DreamModel:
    """Whatever may be given as `model`, as a handle.

    Args:
        model: path, world or handle.
        device: where a file is loaded to (None: the CPU). A live world stays where it is.

    Raises:
        MissingArgument: if there is none.
        CheckpointError: if a file cannot be read.
        TypeError: if it is something else.
        ValueError: if a live world is on another device.
    """
    if model is None:
        raise MissingArgument(
            'A dream needs a model: gym.make("Dream-v0", model="walker.zip"), or model=wmgym.as_model(world, starts).'
        )
    if isinstance(model, (str, os.PathLike)):
        return load_model(model, device or "cpu")
    if isinstance(model, World):
        model = as_model(model)
    if not isinstance(model, DreamModel):
        raise TypeError(
            f"model must be a checkpoint's path, a World or as_model(world, starts), not {type(model).__name__}."
        )
    here = model.world.device
    if device is not None and torch.device(device).type != here.type:
        raise ValueError(f"The live world is on {here}: move it with world.to({str(device)!r}), or leave out device.")
    return model
