"""Many dreams at once: a world model as a Gymnasium vector environment."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from wmgym.dream.convert import ActionConverter, ObservationConverter, latent_space, put_rows, row_of, to_array
from wmgym.dream.frames import can_render, render_frames
from wmgym.dream.model import ModelLike, resolve_model
from wmgym.dream.resets import Beginnings, read_options
from wmgym.dream.starts import StartPolicy
from wmgym.dream.streams import DreamStreams
from wmgym.worlds.base import State, index_state, map_state

ObservationKind = Literal["decoded", "latent"]
Termination = Literal["sample", "threshold", "never"]

DEFAULT_HORIZON = 1000
"""Steps after which a dream is truncated, where neither the caller nor the checkpoint says."""


class DreamState(NamedTuple):
    """All that the future of a `DreamVectorEnv` depends on, beside the world and the actions."""

    world: State  # (num_envs, ...)
    steps: np.ndarray  # (num_envs,) int64, taken in the episode
    ended: np.ndarray  # (num_envs,) bool, the last step ended the episode
    keys: Tensor  # (num_envs,) int64, of the random streams
    counters: Tensor  # (num_envs,) int64, how far they are drawn


class DreamVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """A world model dreamt `num_envs` times in parallel, all in one forward pass.

    A dream is a function of (model, seed, actions): environment `i` of one with seed `s` dreams what a `DreamEnv`
    with seed `s + i` dreams, to float tolerance, whatever its neighbours do.

    Args:
        num_envs: how many dreams.
        model: a checkpoint's path, a live world, or `as_model(world, starts)`.
        observation: `"decoded"` gives observations of the real environment's own space, clipped to its bounds;
            `"latent"` gives the world's features, float32 `(num_envs, feature_size)`, and decodes nothing.
        keys: which entries of a `Dict` observation are decoded; None: all. One key gives its `Box` alone: of a world
            of pictures and states, `("state",)` dreams states and draws nothing.
        start: draws the first states among first steps of real episodes (`"episode"`) or all stored (`"any"`).
        horizon: steps after which a dream is truncated. None takes `max_episode_steps`; else that of the real
            environment, if the checkpoint tells; else `DEFAULT_HORIZON`.
        max_episode_steps: another name of `horizon`, the one that `gym.make_vec` uses; the shorter of two wins.
        termination: a dream ends by chance, with what the world predicts (`"sample"`), once the world finds
            continuing less likely than not (`"threshold"`), or not at all (`"never"`).
        temperature: of the world's own chance; 1 as learnt, below 1 more certain (World Models' tau).
        seed: of the first `reset` that gets none.
        device: where a checkpoint is loaded to, None: the CPU. A live world stays where it is.
        autoreset_mode: Gymnasium's three, by member or value ("NextStep", "SameStep", "Disabled").
        render_mode: `"rgb_array"`, for worlds that decode pictures, or None.

    `reset` takes the options `{"start": index or (num_envs,) indices}`, `{"observation": batch}` (of the real
    environment) or `{"state": world state}`, and `{"reset_mask": (num_envs,) bool}` beside any of them. A `reset`
    without a seed begins the next episode of each stream.

    `step` takes actions of the real environment's space; those beyond the bounds of a `Box` are clipped.

    Raises:
        gymnasium.error.MissingArgument: without a model.
        CheckpointError: for a file that cannot be read.
        ValueError: for an argument that cannot be.

    Example:
        >>> from gymnasium import spaces
        >>> from wmgym.dream import StartStates, as_model
        >>> from wmgym.worlds.rssm import RSSM
        >>> world = RSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        >>> starts = StartStates(world.initial(5), torch.ones(5, dtype=torch.bool))
        >>> dreams = DreamVectorEnv(num_envs=4, model=as_model(world, starts), horizon=15)
        >>> observations, infos = dreams.reset(seed=0)
        >>> observations, rewards, terminations, truncations, infos = dreams.step(dreams.action_space.sample())
        >>> observations.shape, rewards.shape
        ((4, 3), (4,))
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (as Gymnasium has it)
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        model: ModelLike | None = None,
        *,
        observation: ObservationKind = "decoded",
        keys: Sequence[str] | None = None,
        start: StartPolicy = "episode",
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        termination: Termination = "sample",
        temperature: float = 1.0,
        seed: int | None = None,
        device: str | torch.device | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        _check_choice("observation", observation, get_args(ObservationKind))
        _check_choice("start", start, get_args(StartPolicy))
        _check_choice("termination", termination, get_args(Termination))
        if num_envs < 1 or temperature < 0:
            raise ValueError(f"num_envs must be 1 or more and temperature not negative: {num_envs}, {temperature}.")
        self.model = resolve_model(model, device)
        self.world = self.model.world
        self.num_envs = num_envs
        self.termination, self.temperature = termination, temperature
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.horizon = _horizon(horizon, max_episode_steps, self.model.env)
        self._latent = observation == "latent"
        self._set_spaces(keys)
        self._set_rendering(render_mode)
        self._begin_with = Beginnings(self.model, start)
        self._first_seed = seed
        self._streams: DreamStreams | None = None
        self._state: State = None
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def _set_spaces(self, keys: Sequence[str] | None) -> None:
        world = self.world
        self._write_observations = ObservationConverter(world.observation_space, keys)
        self._keys = None if keys is None else tuple(keys)
        self.single_observation_space = latent_space(world) if self._latent else self._write_observations.space
        self.single_action_space = world.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._read_actions = ActionConverter(world.action_space, world.device)

    def _set_rendering(self, render_mode: str | None) -> None:
        modes = self.metadata["render_modes"] if can_render(self.world) else []
        # A copy: the class's dictionary is shared by all instances.
        self.metadata = {**self.metadata, "render_modes": modes, "autoreset_mode": self.autoreset_mode}
        if render_mode is not None and not modes:
            raise ValueError(
                f"render_mode={render_mode!r}: this world decodes no picture, so its dreams cannot be looked at. Train "
                "one whose observation space has a uint8 picture (H, W, C)."
            )
        if render_mode is not None:
            _check_choice("render_mode", render_mode, tuple(modes))
        self.render_mode = render_mode

    # -- Gymnasium's methods ----------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes; see the class for the options.

        Args:
            seed: `s` gives environment `i` the seed `s + i`; a sequence gives each its own; None goes on.
            options: where to begin, and which environments.

        Returns:
            Observations of all environments, and an empty info.
        """
        mask, source = read_options(options, self.num_envs)
        if self._state is None and not mask.all():
            raise ResetNeeded("The first reset must begin all environments: leave out options['reset_mask'].")
        seeds = self._seeds(seed)
        with torch.no_grad():
            self._begin(mask, source, seeds)
            return self._observe(self._state), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One dreamt step of all environments.

        Returns:
            Observations, rewards (float32), terminations and truncations `(num_envs,)`, and infos; all arrays fresh.

        Raises:
            ResetNeeded: before the first reset, or after an end in the mode `DISABLED`.
            ValueError: for actions that cannot be, naming the environment.
        """
        streams, begins = self._require_started(), self._to_begin()
        action = self._actions(actions, begins)
        infos: dict[str, Any] = {}
        with torch.no_grad():
            reached = self.world.imagine(self._state, action, streams, self.temperature)
            reward, terminated = to_array(reached.reward.float()), self._terminations(reached.continues, streams)
            self._state = reached.state
            self._steps += 1
            if begins.any():
                self._begin(begins)
                reward[begins], terminated[begins] = 0.0, False
            truncated = self._steps >= self.horizon
            self._ended = terminated | truncated
            observation = self._observe(self._state)
            if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
                infos = self._restart(observation)
        return observation, reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What each dream looks like now: uint8 (H, W, 3) pictures."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode: pass render_mode="rgb_array" when making the environment.')
            return None
        self._require_started()
        with torch.no_grad():
            return tuple(render_frames(self.world, self.world.features(self._state)))

    # -- branching --------------------------------------------------------------------------------------------

    def get_state(self) -> DreamState:
        """A copy of everything that the future depends on, for `set_state`."""
        streams = self._require_started()
        world = map_state(Tensor.clone, self._state)
        return DreamState(world, self._steps.copy(), self._ended.copy(), streams.keys.clone(), streams.counters.clone())

    def set_state(self, state: DreamState) -> Any:
        """Go on from where `get_state` was called: the same actions then bring the same dream.

        Returns:
            The observations of that moment.

        Raises:
            ValueError: if it is not a state of as many environments.
        """
        if not isinstance(state, DreamState) or len(state.steps) != self.num_envs:
            raise ValueError(
                f"set_state takes what get_state gave, of {self.num_envs} environments; begin from other world states "
                'with reset(options={"state": ...}).'
            )
        device = self.world.device
        self._state = map_state(lambda leaf: leaf.to(device, copy=True), state.world)
        self._steps, self._ended = state.steps.copy(), state.ended.copy()
        self._streams = DreamStreams.at(state.keys, state.counters, device)
        with torch.no_grad():
            return self._observe(self._state)

    # -- beginnings -------------------------------------------------------------------------------------------

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None and self._streams is None:
            seed = self._first_seed if self._first_seed is not None else int(self.np_random.integers(2**62))
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"There are {len(seed)} seeds for {self.num_envs} environments.")
        seeds = [None if s is None else operator.index(s) for s in seed]
        if self._streams is None:
            return [int(self.np_random.integers(2**62)) if s is None else s for s in seeds]
        return seeds

    def _begin(
        self, mask: np.ndarray, source: dict[str, Any] | None = None, seeds: list[int | None] | None = None
    ) -> None:
        """Begin the next episode in the environments of `mask` `(num_envs,)`."""
        rows = self._indices(np.flatnonzero(mask))
        # On a copy: a reset that fails leaves the dream as it was.
        zeros = torch.zeros(self.num_envs, dtype=torch.int64)
        old = (self._streams.keys, self._streams.counters) if self._streams else (zeros, zeros)
        streams = DreamStreams.at(*old, device=self.world.device)
        self._reseed(streams, mask, seeds or [None] * self.num_envs)
        noise = streams.borrow(rows)
        first = self._begin_with(rows, self.num_envs, source or {}, noise)
        streams.give_back(rows, noise)
        self._streams = streams
        if not mask.all():
            first = map_state(lambda old, new: old.index_copy(0, rows, new), self._state, first)
        self._state = first
        self._steps[mask] = 0
        self._ended[mask] = False

    def _reseed(self, streams: DreamStreams, mask: np.ndarray, seeds: list[int | None]) -> None:
        seeded = np.flatnonzero(mask & np.array([seed is not None for seed in seeds]))
        continued = np.setdiff1d(np.flatnonzero(mask), seeded)
        if len(seeded):
            # Seeds of any size are folded into the 64 bits of a stream's seed.
            folded = np.array([int(seeds[i] or 0) % 2**64 for i in seeded], dtype=np.uint64).astype(np.int64)
            streams.reseed(self._indices(seeded), torch.from_numpy(folded))
        if len(continued):
            streams.next_episode(self._indices(continued))

    def _restart(self, observation: Any) -> dict[str, Any]:
        """Begin anew where episodes have just ended, in place; returns the last observations as infos."""
        ended = self._ended.copy()
        final = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(ended):
            final[i] = row_of(observation, int(i))
        self._begin(ended)
        put_rows(observation, ended, self._observe(index_state(self._state, self._indices(np.flatnonzero(ended)))))
        return {"final_obs": final, "_final_obs": ended, "final_info": {}, "_final_info": ended.copy()}

    # -- parts of a step --------------------------------------------------------------------------------------

    def _require_started(self) -> DreamStreams:
        if self._streams is None:
            raise ResetNeeded("Call reset before step, render or get_state.")
        return self._streams

    def _to_begin(self) -> np.ndarray:
        """Which environments this step begins instead of stepping."""
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeeded(
                f"The dreams {np.flatnonzero(self._ended).tolist()} have ended: reset them first "
                '(reset(options={"reset_mask": terminated | truncated})).'
            )
        return self._ended.copy()

    def _actions(self, actions: Any, ignored: np.ndarray) -> Tensor:
        actions = np.asarray(actions)
        if actions.shape[:1] != (self.num_envs,):
            raise ValueError(
                f"Actions have shape {actions.shape}, but {self.num_envs} environments take {self.action_space.shape}."
            )
        return self._read_actions(actions, ignored)

    def _terminations(self, continues: Tensor, streams: DreamStreams) -> np.ndarray:
        if self.termination == "never":
            return np.zeros(self.num_envs, dtype=np.bool_)
        if self.termination == "threshold":
            return to_array(continues < 0.5)
        # At 1 a dream surely goes on, at 0 it surely ends: the draw is in [0, 1).
        return to_array(streams.uniform(self.num_envs, 1).squeeze(-1) >= continues)

    def _observe(self, state: State) -> Any:
        features = self.world.features(state)
        if self._latent:
            return to_array(features.float())
        keys, world = self._keys, self.world
        decoded = world.decode(features) if keys is None else world.decode_keys(features, keys)
        return self._write_observations(decoded)

    def _indices(self, rows: np.ndarray) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.int64, device=self.world.device)


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, choices))}.")


def _horizon(horizon: int | None, max_episode_steps: int | None, env: Any) -> int:
    given = [steps for steps in (horizon, max_episode_steps) if steps is not None]
    steps = min(given) if given else env.get("max_episode_steps") or DEFAULT_HORIZON
    if steps < 1:
        raise ValueError(f"horizon (max_episode_steps) must be 1 or more, not {steps}.")
    return int(steps)
