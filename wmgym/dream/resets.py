"""The first states of dreams: drawn from the start states, or as the options of `reset` say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmgym.dream.convert import ActionConverter, to_tensors
from wmgym.dream.model import DreamModel
from wmgym.dream.starts import StartPolicy
from wmgym.spaces import action_size, as_dict
from wmgym.worlds.base import Noise, State, index_state, map_state, state_to_dict

RESET_MASK = "reset_mask"
SOURCES = ("start", "observation", "prefix", "state")


def read_options(options: Mapping[str, Any] | None, num_envs: int) -> tuple[Tensor, dict[str, Any]]:
    """The options of `reset`, checked.

    Returns:
        Which environments are reset, `(num_envs,)` bool, and from what (at most one of `SOURCES`).

    Raises:
        ValueError: for an unknown option, two sources at once, or a mask that is not `(num_envs,)` bool with a True.
    """
    chosen = dict(options or {})
    mask = chosen.pop(RESET_MASK, None)
    unknown = sorted(set(chosen) - set(SOURCES))
    if unknown:
        raise ValueError(
            f"Unknown reset option {unknown[0]!r}: use {', '.join(map(repr, SOURCES))}, and {RESET_MASK!r} beside it."
        )
    if len(chosen) > 1:
        raise ValueError(f"A dream begins from one thing; the reset options {sorted(chosen)} exclude each other.")
    if mask is None:
        return torch.ones(num_envs, dtype=torch.bool), chosen
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        mask = torch.from_numpy(mask)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"options['reset_mask'] must be a bool array ({num_envs},) with at least one True: {mask!r}.")
    return mask.clone(), chosen


class Beginnings:
    """Gives first states.

    Args:
        model: the world and its start states.
        policy: which start states are drawn from, or the index of the only one.
        read_actions: turns actions of prefixes into what the world reads.
    """

    def __init__(self, model: DreamModel, policy: StartPolicy | int, read_actions: ActionConverter) -> None:
        self.world = model.world
        self.policy = policy
        self.read_actions = read_actions
        self.starts = model.starts.to(self.world.device) if model.starts is not None else None

    def __call__(self, rows: Tensor, num_envs: int, source: Mapping[str, Any], noise: Noise) -> State:
        """First states `(K, ...)` of the environments `rows` `(K,)` out of `num_envs`.

        Args:
            rows: which environments.
            num_envs: how many there are; what `source` holds has one entry for each.
            source: `{"start": index or (num_envs,)}`, `{"observation": batch}`, `{"state": batch}`,
                `{"prefix": {"observation": (T, num_envs, ...), "action": (T, num_envs, ...)}}`, or empty.
            noise: the streams of `rows`.

        Raises:
            ValueError, IndexError: for a source that does not fit.
        """
        if "state" in source:
            return index_state(self.given_state(source["state"], num_envs), rows)
        if "observation" in source:
            return self._observed(source["observation"], num_envs, rows, noise)
        if "prefix" in source:
            return self._filtered(source["prefix"], num_envs, rows, noise)
        return self._start(source.get("start"), num_envs, rows, noise)

    def _start(self, start: Any, num_envs: int, rows: Tensor, noise: Noise) -> State:
        if self.starts is None:
            raise ValueError(
                "This world has no start states. Save them with it (save_world(path, world, starts), as_model(world, "
                'starts)), or begin from an observation: reset(options={"observation": ...}).'
            )
        if start is None and isinstance(self.policy, str):
            return self.starts.rows(self.starts.sample(noise.uniform(len(rows), 1).squeeze(-1), self.policy))
        start = self.policy if start is None else start
        indices = np.asarray(start)
        if not np.issubdtype(indices.dtype, np.integer) or indices.shape not in ((), (num_envs,)):
            raise ValueError(f"options['start'] must be an integer or an integer array ({num_envs},), not {start!r}.")
        return self.starts.rows(torch.tensor(np.broadcast_to(indices, num_envs), device=rows.device)[rows])

    def _observed(self, observation: Any, num_envs: int, rows: Tensor, noise: Noise) -> State:
        world, count = self.world, len(rows)
        batch = to_tensors(observation, world.observation_space, num_envs, rows.device)
        batch = {key: tensor[rows] for key, tensor in as_dict(batch).items()}
        action = torch.zeros(count, action_size(world.action_space), device=rows.device)
        is_first = torch.ones(count, dtype=torch.bool, device=rows.device)
        return world.observe(world.initial(count), action, batch, is_first, noise)

    def _filtered(self, prefix: Any, num_envs: int, rows: Tensor, noise: Noise) -> State:
        """The posterior after the beginning of a real episode, of which the first step may be any."""
        if not isinstance(prefix, Mapping) or set(prefix) != {"observation", "action"}:
            raise ValueError(
                "options['prefix'] must be {'observation': (T, num_envs, ...), 'action': (T, num_envs, ...)}, where "
                "action[t] led to observation[t] and action[0] is ignored."
            )
        actions = np.asarray(prefix["action"])
        lengths = {len(np.asarray(value)) for value in as_dict(prefix["observation"]).values()}
        if not len(actions) or lengths != {len(actions)}:
            raise ValueError(f"options['prefix'] has {len(actions)} actions for {sorted(lengths)} observations.")
        steps = [_step_of(prefix["observation"], t) for t in range(len(actions))]
        state = self._observed(steps[0], num_envs, rows, noise)
        later = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for observation, taken in zip(steps[1:], actions[1:], strict=True):
            batch = to_tensors(observation, self.world.observation_space, num_envs, rows.device)
            batch = {key: tensor[rows] for key, tensor in batch.items()}
            state = self.world.observe(state, self._read_all(taken, num_envs)[rows], batch, later, noise)
        return state

    def _read_all(self, actions: np.ndarray, num_envs: int) -> Tensor:
        if actions.shape[:1] != (num_envs,):
            raise ValueError(f"The actions of options['prefix'] have shape {actions.shape}, not ({num_envs}, ...).")
        return self.read_actions(actions)

    def given_state(self, state: Any, num_envs: int) -> State:
        """A state that was given, on the world's device.

        Raises:
            ValueError: if it is not one of `num_envs` rows of this world.
        """
        like = self.world.initial(num_envs)
        if type(state) is not type(like):
            raise ValueError(
                f"The state must be a {type(like).__name__} of the world, not {type(state).__name__} "
                "(what get_state gives is for set_state; its world state is get_state().world)."
            )
        leaves = state_to_dict(state)
        for name, leaf in state_to_dict(like).items():
            if leaves[name].shape != leaf.shape:
                raise ValueError(
                    f"The state's {name} has shape {tuple(leaves[name].shape)}, but this world has {tuple(leaf.shape)}."
                )
        return map_state(lambda leaf: leaf.detach().to(self.world.device), state)


def _step_of(observation: Any, t: int) -> Any:
    if isinstance(observation, Mapping):
        return {key: np.asarray(value)[t] for key, value in observation.items()}
    return np.asarray(observation)[t]
