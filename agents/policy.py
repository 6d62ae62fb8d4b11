"""What acts: a world that filters and something that chooses, behind Stable-Baselines3's policy interface."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from wmgym.random import ModeNoise, Noise, TorchNoise
from wmgym.spaces import action_size, as_dict, as_dict_space, is_image
from wmgym.worlds.base import Observation, State, World, detach_state


class Carry(NamedTuple):
    """What a recurrent actor remembers between steps: the world's state and the last action, `(B, ...)`."""

    state: State
    action: Tensor  # (B, A), as the world reads it


class WorldModelPolicy(BasePolicy):
    """A world and a behaviour in it.

    Args:
        observation_space: of the environment; pictures may be HWC or CHW.
        action_space: of the environment, in its own units.
        world: filters observations into states.
        behaviour: modules that choose actions, by name; `actor` maps features to an action distribution.
    """

    world: World
    noise: TorchNoise
    # The behaviour's modules, where it has them; what torch says of a module's attributes is of no use.
    actor: Any
    critic: Any
    slow_critic: Any
    learner: Any
    return_range: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        world: World,
        behaviour: dict[str, nn.Module],
    ) -> None:
        super().__init__(observation_space, action_space)
        self.world = world
        for name, module in behaviour.items():
            self.add_module(name, module)
        self.noise = TorchNoise()

    @property
    def generator(self) -> torch.Generator:
        """Where the randomness of acting comes from."""
        if self.noise.generator is None:
            raise ValueError("The policy draws from torch's global generator.")
        return self.noise.generator

    # -- acting -----------------------------------------------------------------------------------------------

    def choose(self, state: State, noise: Noise, deterministic: bool) -> Tensor:
        """The action `(B, A)` at `state`, as the world reads it."""
        distribution = self.actor(self.world.features(state))
        return distribution.mode() if deterministic else distribution.sample(noise)

    def initial_carry(self, batch_size: int) -> Carry:
        """What is remembered before the first step."""
        size = action_size(self.action_space)
        return Carry(self.world.initial(batch_size), torch.zeros(batch_size, size, device=self.world.device))

    @torch.no_grad()
    def step(
        self, carry: Carry, observation: Observation, is_first: Tensor, noise: Noise, deterministic: bool = False
    ) -> Carry:
        """See one observation `(B, ...)` and choose the next action; both are in the carry returned."""
        state = self.world.observe(carry.state, carry.action, observation, is_first, noise)
        return Carry(detach_state(state), self.choose(state, noise, deterministic))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Act, as in Stable-Baselines3: pass the returned state back in with the next observation.

        Args:
            observation: one observation or a batch.
            state: what the last call returned; None at the beginning.
            episode_start: `(B,)` bool, True where an episode begins at this observation; None means nowhere.
            deterministic: take the mode of every distribution instead of drawing from it.

        Returns:
            The action in the environment's units (batched as the observation was) and the new state, a tuple of
            arrays: the leaves of the world's state, then the action as the world reads it.
        """
        self.set_training_mode(False)
        batch, batched = self.to_observation(observation)
        size = next(iter(batch.values())).shape[0]
        carry = self.initial_carry(size) if state is None else self._unpack(state, size)
        starts = _starts(episode_start, size)
        if state is None:
            starts = np.ones(size, bool)
        noise = ModeNoise(self.world.device) if deterministic else self.noise
        is_first = torch.as_tensor(starts, device=self.world.device)
        carry = self.step(carry, batch, is_first, noise, deterministic)
        action = self.to_environment(carry.action)
        packed = tuple(leaf.cpu().numpy() for leaf in (*carry.state, carry.action))
        return (action if batched else action[0]), packed

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Stable-Baselines3's stateless hook: the first action of an episode."""
        carry = self.initial_carry(next(iter(as_dict(observation).values())).shape[0])
        is_first = torch.ones(carry.action.shape[0], dtype=torch.bool, device=self.world.device)
        return self.step(carry, as_dict(observation), is_first, self.noise, deterministic).action

    def _unpack(self, state: tuple[np.ndarray, ...], size: int) -> Carry:
        blank = self.initial_carry(size)
        if [np.shape(leaf) for leaf in state] != [tuple(leaf.shape) for leaf in (*blank.state, blank.action)]:
            raise ValueError(
                f"state must be the tuple that the last predict returned, for {size} environments: got "
                f"{[np.shape(leaf) for leaf in state]}. Pass state=None at the beginning."
            )
        leaves = [torch.as_tensor(leaf, device=self.world.device) for leaf in state]
        return Carry(type(blank.state)(*leaves[:-1]), leaves[-1])

    # -- between the environment and the world ----------------------------------------------------------------

    def to_observation(self, observation: Any) -> tuple[Observation, bool]:
        """Observations as tensors by key, and whether they came as a batch.

        Raises:
            ValueError: for a missing key, a wrong shape, NaN or infinity; the message names the key.
        """
        arrays = as_dict(observation)
        tensors, batched = {}, True
        for key, box in as_dict_space(self.world.observation_space).items():
            if key not in arrays:
                raise ValueError(f"The observation lacks {key!r}; it has {sorted(arrays)}.")
            array = _channels_last(np.asarray(arrays[key]), box)
            if array.shape[array.ndim - len(box.shape) :] != box.shape or array.ndim > len(box.shape) + 1:
                raise ValueError(f"Observation {key!r} has shape {array.shape}, expected {box.shape} or a batch of it.")
            if array.ndim == len(box.shape):
                array, batched = array[None], False
            if is_image(box) and array.dtype != np.uint8:
                raise ValueError(f"Observation {key!r} is a picture and must be uint8, but its dtype is {array.dtype}.")
            if array.dtype != np.uint8 and not np.isfinite(array).all():
                raise ValueError(f"Observation {key!r} holds NaN or infinity: {array}.")
            kind = torch.uint8 if is_image(box) else torch.float32
            tensors[key] = torch.as_tensor(array, device=self.world.device).to(kind)
        return tensors, batched

    def to_environment(self, action: Tensor) -> np.ndarray:
        """Actions of the world `(B, A)` in the environment's units: scaled to its bounds, or chosen numbers."""
        if isinstance(self.action_space, spaces.Discrete):
            return action.argmax(-1).cpu().numpy() + int(self.action_space.start)
        box = self.action_space
        assert isinstance(box, spaces.Box)
        unit = (action.clamp(-1, 1).cpu().numpy() + 1) / 2
        return np.clip(box.low + unit * (box.high - box.low), box.low, box.high).astype(box.dtype)


def extended(kind: Any, *names: str) -> Any:
    """A kind of state with more leaves, for what a policy carries besides the world's."""
    return namedtuple("ExtendedState", (*kind._fields, *names))


def _starts(episode_start: np.ndarray | None, size: int) -> np.ndarray:
    starts = np.zeros(size, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
    if len(starts) != size:
        raise ValueError(f"episode_start must have one entry for each of {size} observations, not {len(starts)}.")
    return starts


def _channels_last(array: np.ndarray, box: spaces.Box) -> np.ndarray:
    """Pictures as HWC, if they came as CHW (Stable-Baselines3's VecTransposeImage)."""
    if not is_image(box) or array.shape[-3:] == box.shape:
        return array
    height, width, channels = box.shape
    return np.moveaxis(array, -3, -1) if array.shape[-3:] == (channels, height, width) else array
