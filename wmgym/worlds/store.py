"""Worlds in files: which kinds there are, and how one is written and built again."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wmgym import checkpoint
from wmgym.checkpoint import CheckpointError, space_from_json, space_to_json
from wmgym.files import NONSENSE
from wmgym.worlds.base import World
from wmgym.worlds.building import require_fit

WORLD, STARTS = "world", "starts"
"""Names of the two groups of tensors that a dream needs."""


class WorldKind(NamedTuple):
    """Where a kind of world lives; imported when a file of that kind is opened."""

    module: str
    world: str
    config: str

    def load(self) -> tuple[type[World], type]:
        """The world's class and its configuration's."""
        module = importlib.import_module(self.module)
        return getattr(module, self.world), getattr(module, self.config)


WORLDS: dict[str, WorldKind] = {
    "rssm": WorldKind("wmgym.worlds.rssm", "RSSM", "RSSMConfig"),
    "ssm": WorldKind("wmgym.worlds.ssm", "SSM", "RSSMConfig"),
    "rnn": WorldKind("wmgym.worlds.rnn", "RNN", "RSSMConfig"),
    "dmm_observation": WorldKind("wmgym.worlds.dmm", "DMMObservation", "RSSMConfig"),
    "dmm_dynamics": WorldKind("wmgym.worlds.dmm", "DMMDynamics", "RSSMConfig"),
    "mdn_rnn": WorldKind("wmgym.worlds.mdn_rnn", "MDNRNN", "MDNRNNConfig"),
    "tssm": WorldKind("wmgym.worlds.tssm", "TSSM", "TSSMConfig"),
    "tdmpc": WorldKind("wmgym.worlds.tdmpc", "TOLD", "TOLDConfig"),
}


def register_world(kind: str, world: type[World], config: type) -> None:
    """Make a kind of world known, so that files can hold it.

    Args:
        kind: its name in files.
        world: a class built as `world(observation_space, action_space, config)`.
        config: a frozen dataclass of JSON values, tuples of them, and further such dataclasses.

    Raises:
        ValueError: if the name belongs to another class.
    """
    entry = WorldKind(world.__module__, world.__qualname__, config.__qualname__)
    if WORLDS.setdefault(kind, entry) != entry:
        raise ValueError(f"The name {kind!r} belongs to {'.'.join(WORLDS[kind][:2])}: choose another.")


class Packable(Protocol):
    """What can be written as named tensors; start states are (`wmgym.dream.StartStates`)."""

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""


# -- writing --------------------------------------------------------------------------------------------------


def pack_world(world: World, starts: Packable | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A world and its start states as JSON data and tensors, to stand in a file beside other things.

    Returns:
        `{"world": {kind, config, observation_space, action_space}}`, and the tensors `world/<name>` and
        `starts/<leaf>`.

    Raises:
        CheckpointError: if the world's class is not registered.
    """
    manifest = {
        WORLD: {
            "kind": _kind_of(world),
            "config": dataclasses.asdict(world.config),
            "observation_space": space_to_json(world.observation_space),
            "action_space": space_to_json(world.action_space),
        }
    }
    tensors = {f"{WORLD}/{name}": tensor.detach() for name, tensor in world.state_dict().items()}
    if starts is not None:
        tensors |= {f"{STARTS}/{name}": tensor for name, tensor in starts.to_tensors().items()}
    return manifest, tensors


def save_world(
    path: str | Path, world: World, starts: Packable | None = None, env: Mapping[str, Any] | None = None
) -> Path:
    """Write a world and its start states to a file that `gym.make("Dream-v0", model=path)` opens.

    Args:
        path: the file.
        world: the world.
        starts: posterior states of real episodes; without them a dream begins only from a given observation.
        env: what is worth telling of the real environment (JSON; `wmgym.facts`).
    """
    manifest, tensors = pack_world(world, starts)
    return checkpoint.save(Path(path), manifest | {"env": dict(env or {})}, tensors)


def _kind_of(world: World) -> str:
    here = (type(world).__module__, type(world).__qualname__)
    for kind, entry in WORLDS.items():
        if entry[:2] == here:
            return kind
    raise CheckpointError(
        f"{'.'.join(here)} is not registered, so a file of it could not be opened: call "
        "wmgym.worlds.store.register_world(name, world_class, config_class) first."
    )


# -- reading --------------------------------------------------------------------------------------------------


def load_world(path: str | Path, device: str | torch.device = "cpu") -> World:
    """The world in a file, in evaluation mode; optimisers, agents and start states in it are not read.

    Raises:
        CheckpointError: naming the file and the fault.
    """
    manifest, tensors = checkpoint.load(Path(path), prefix=WORLD, device=str(device))
    return unpack_world(manifest, tensors, device, source=str(path))


def unpack_world(
    manifest: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str | torch.device = "cpu",
    source: str = "the checkpoint",
) -> World:
    """The inverse of `pack_world`.

    Args:
        manifest: with the part `"world"`.
        tensors: by full name, `world/<name>`; other groups are left alone.
        device: where the world is wanted.
        source: what error messages call the file.

    Raises:
        CheckpointError: naming `source` and the fault.
    """
    part = _world_part(manifest, source)
    world_class, config_class = _class_of(part["kind"], source)
    config = config_from_dict(config_class, part["config"], f"{source}: world config")
    own = group(tensors, WORLD)

    def build() -> World:
        spaces = [space_from_json(part[f"{name}_space"]) for name in ("observation", "action")]
        return world_class(*spaces, config)

    try:
        require_fit(build, own, source, f"{WORLD}/")
        world = build()
        world.load_state_dict(own)
    except (*NONSENSE, CheckpointError) as error:
        raise CheckpointError(f"{source}: the world cannot be built from its description: {error}") from error
    return world.to(device).eval().requires_grad_(False)


def group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors `name/...` of a file, without the `name/`."""
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def config_from_dict(config_class: type, data: Any, where: str) -> Any:
    """A configuration from JSON data: lists become tuples, objects the dataclasses that the fields ask for.

    Keys that are missing keep their defaults, so that older files open.

    Raises:
        CheckpointError: for a key that the class does not know, or one it cannot do without.
    """
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where} must be an object, not {data!r}.")
    hints = typing.get_type_hints(config_class)
    unknown = sorted(set(data) - {field.name for field in dataclasses.fields(config_class)})
    if unknown:
        raise CheckpointError(f"{where} has the unknown key {unknown[0]!r}: the file is from another version of wmgym.")
    values = {key: _config_value(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return config_class(**values)
    except NONSENSE as error:
        raise CheckpointError(f"{where}: {error}") from error


def _config_value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        nested = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        return config_from_dict(nested[0], value, where) if nested else dict(value)  # type: ignore[arg-type]
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _world_part(manifest: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    part = manifest.get(WORLD)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{source} holds no world (its manifest has no {WORLD!r} entry).")
    for key in ("kind", "config", "observation_space", "action_space"):
        if key not in part:
            raise CheckpointError(f"{source}: the description of the world lacks {key!r}.")
    return part


def _class_of(kind: str, source: str) -> tuple[type[World], type]:
    if not isinstance(kind, str) or kind not in WORLDS:
        raise CheckpointError(
            f"{source} holds a world of kind {kind!r}; known are {', '.join(map(repr, sorted(WORLDS)))}. Import the "
            "module that registers it first (wmgym.worlds.store.register_world)."
        )
    return WORLDS[kind].load()
