"""Many dreams at once: a world model as a Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from wmgym.choices import check_choice
from wmgym.dream.convert import ActionConverter, ObservationConverter, latent_space, put_rows, row_of, to_arrays
from wmgym.dream.ends import Caution, Outcomes, Termination, horizon_of
from wmgym.dream.frames import render_frames
from wmgym.dream.model import ModelLike, resolve_model
from wmgym.dream.resets import Beginnings, read_options
from wmgym.dream.starts import StartPolicy
from wmgym.dream.steps import Manner, Stepper
from wmgym.dream.streams import DreamStreams, Seeds, listed_seeds
from wmgym.spaces import unseeded
from wmgym.worlds.base import State, index_state, map_state

DreamObservation = Literal["decoded", "latent"]
Output = Literal["numpy", "torch"]


class DreamState(NamedTuple):
    """All that the future of a `DreamVectorEnv` depends on, beside the world and the actions."""

    world: State  # (num_envs, ...)
    steps: Tensor  # (num_envs,) int64, taken in the episode
    ended: Tensor  # (num_envs,) bool, the last step ended the episode
    keys: Tensor  # (num_envs,) int64, of the random streams
    counters: Tensor  # (num_envs,) int64, how far they are drawn


class DreamVectorEnv(VectorEnv[Any, Any, Any]):
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
        start: draws the first states among first steps of real episodes (`"episode"`) or all stored (`"any"`); a
            number always takes that one.
        horizon: steps after which a dream is truncated. None takes `max_episode_steps`; else that of the real
            environment, if the checkpoint tells; else 1000.
        max_episode_steps: another name of `horizon`, the one that `gym.make_vec` uses; the shorter of two wins.
        termination: a dream ends by chance, with what the world predicts (`"sample"`), once the world finds
            continuing less likely than not (`"threshold"`), or not at all (`"never"`).
        temperature: of the world's own chance; 1 as learnt, below 1 more certain (World Models' tau).
        disagreement_penalty: taken off each reward, times the disagreement of the world's ensemble (MOPO).
        disagreement_halt: a dream ends where the disagreement is larger than this (MOReL); None: nowhere.
        halt_reward: the reward of a step that is so ended.
        seed: of the first `reset` that gets none.
        device: where a checkpoint is loaded to, None: the CPU. A live world stays where it is.
        compiled: whether steps are compiled by torch, which takes half a minute and is paid back by long runs; on a
            GPU they are then replayed as CUDA graphs. None: on a GPU.
        output: `"numpy"` gives fresh arrays; `"torch"` gives tensors on the world's device, not copied: what is
            written into them may change the dream. Actions may be arrays or tensors either way.
        autoreset_mode: Gymnasium's three, by member or value ("NextStep", "SameStep", "Disabled").
        render_mode: `"rgb_array"` or None. Worlds that decode no pictures show bars (see `wmgym.dream.frames`).

    `reset` takes the options `{"start": index or (num_envs,) indices}`, `{"observation": batch}` (of the real
    environment), `{"prefix": {"observation": (T, num_envs, ...), "action": (T, num_envs, ...)}}` (the beginning of
    real episodes, filtered; `action[t]` led to `observation[t]`) or `{"state": world state}`, and
    `{"reset_mask": (num_envs,) bool}` beside any of them. A `reset` without a seed begins the next episode of each
    stream.

    `step` takes actions of the real environment's space; those beyond the bounds of a `Box` are clipped. The infos
    of a world with an ensemble have its `disagreement` `(num_envs,)` about each step.

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
        >>> dreams.branch(10).num_envs
        40
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
        observation: DreamObservation = "decoded",
        keys: Sequence[str] | None = None,
        start: StartPolicy | int = "episode",
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        termination: Termination = "sample",
        temperature: float = 1.0,
        disagreement_penalty: float = 0.0,
        disagreement_halt: float | None = None,
        halt_reward: float = 0.0,
        seed: int | None = None,
        device: str | torch.device | None = None,
        compiled: bool | None = None,
        output: Output = "numpy",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_choice("observation", observation, get_args(DreamObservation))
        if not isinstance(start, int | np.integer):
            check_choice("start", start, get_args(StartPolicy))
        check_choice("termination", termination, get_args(Termination))
        check_choice("output", output, get_args(Output))
        if num_envs < 1 or not temperature >= 0:  # so that NaN is refused too
            raise ValueError(f"num_envs must be 1 or more and temperature not negative: {num_envs}, {temperature}.")
        self.model = resolve_model(model, device)
        self.world = self.model.world
        self.num_envs = num_envs
        self.observation, self.keys, self.start, self.output = observation, keys, start, output
        self.termination, self.temperature = termination, temperature
        self.caution = Caution(disagreement_penalty, disagreement_halt, halt_reward)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.horizon = horizon_of(horizon, max_episode_steps, self.model.env)
        if self.caution.needs_ensemble and not self.world.has_ensemble:
            raise ValueError(
                "This world has no ensemble to disagree: leave out disagreement_penalty and disagreement_halt, or "
                "train a world that has one (RSSMConfig(ensemble=5))."
            )
        self._set_spaces()
        self._set_rendering(render_mode)
        write = None if observation == "latent" else self._write_observations
        self.compiled = compiled
        self._stepper = Stepper(self.world, write, keys, compiled)
        self._begin_with = Beginnings(self.model, start, self._read_actions)
        self._first_seed = seed
        self._streams: DreamStreams | None = None
        self._state: State = None
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self.world.device)
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=self.world.device)

    def _set_spaces(self) -> None:
        world = self.world
        self._write_observations = ObservationConverter(world.observation_space, self.keys, world.device)
        decoded = self._write_observations.space
        self.single_observation_space = latent_space(world) if self.observation == "latent" else unseeded(decoded)
        self.single_action_space = unseeded(world.action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._read_actions = ActionConverter(world.action_space, world.device)

    def _set_rendering(self, render_mode: str | None) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, tuple(self.metadata["render_modes"]))
        # A copy: the class's dictionary is shared by all instances.
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode

    # -- Gymnasium's methods ----------------------------------------------------------------------------------

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
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
            self._begin(mask.to(self.world.device), source, seeds)
            return self._give(self._stepper.observe(self._state)), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One dreamt step of all environments.

        Returns:
            Observations, rewards (float32), terminations and truncations `(num_envs,)`, and infos; arrays are fresh.

        Raises:
            ResetNeeded: before the first reset, or after an end in the mode `DISABLED`.
            ValueError: for actions that cannot be, naming the environment.
        """
        streams, begins = self._require_started(), self._to_begin()
        action = self._actions(actions, begins)
        with torch.no_grad():
            manner = Manner(self.temperature, self.termination, self.caution)
            self._state, outcomes, infos = self._stepper.advance(self._state, action, streams, manner)
            self._steps = self._steps + 1
            if begins.any():
                self._begin(begins)
                outcomes = Outcomes(outcomes.reward.masked_fill(begins, 0.0), outcomes.terminated & ~begins)
                infos = {name: value.masked_fill(begins, 0.0) for name, value in infos.items()}
            truncated = self._steps >= self.horizon
            self._ended = outcomes.terminated | truncated
            observation = self._stepper.observe(self._state)
            written = self._infos(infos, ~begins)
            if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
                observation, written = self._restart(observation, infos)
        give = self._give
        return give(observation), give(outcomes.reward), give(outcomes.terminated), give(truncated), written

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
        return DreamState(
            world, self._steps.clone(), self._ended.clone(), streams.keys.clone(), streams.counters.clone()
        )

    def set_state(self, state: DreamState) -> Any:
        """Go on from where `get_state` was called: the same actions then bring the same dream.

        Returns:
            The observations of that moment.

        Raises:
            ValueError: if it is not a state of as many environments, or of another world; the dream stays as it was.
        """
        if not isinstance(state, DreamState) or len(state.steps) != self.num_envs:
            raise ValueError(
                f"set_state takes what get_state gave, of {self.num_envs} environments; begin from other world states "
                'with reset(options={"state": ...}).'
            )
        device = self.world.device
        self._state = map_state(torch.clone, self._begin_with.given_state(state.world, self.num_envs))
        self._steps, self._ended = (leaf.to(device, copy=True) for leaf in (state.steps, state.ended))
        self._streams = DreamStreams.at(state.keys, state.counters, device)
        with torch.no_grad():
            return self._give(self._stepper.observe(self._state))

    def branch(self, n: int, shared_noise: bool = False, **changes: Any) -> DreamVectorEnv:
        """`n` copies of each dream, which go on from this moment: copy `j` of dream `i` is environment `i * n + j`.

        Args:
            n: copies.
            shared_noise: whether the copies of a dream meet the same chance, so that only their actions tell them
                apart; else each meets its own.
            changes: of the `settings`.
        """
        if n < 1:
            raise ValueError(f"branch needs 1 copy or more, not {n}.")
        now = self.get_state()
        rows = torch.arange(self.num_envs, device=self.world.device).repeat_interleave(n)
        branches = DreamVectorEnv(self.num_envs * n, self.model, **{**self.settings, **changes})
        branches.set_state(DreamState(index_state(now.world, rows), *(leaf[rows] for leaf in now[1:])))
        if not shared_noise:
            branches._require_started().fork(n)
        return branches

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments, beside `num_envs` and `model`, that make another such environment."""
        same = ("observation", "keys", "start", "horizon", "termination", "temperature", "output", "compiled")
        return {
            **{name: getattr(self, name) for name in (*same, "autoreset_mode", "render_mode")},
            "seed": self._first_seed,
            "disagreement_penalty": self.caution.penalty,
            "disagreement_halt": self.caution.halt,
            "halt_reward": self.caution.halt_reward,
        }

    # -- beginnings -------------------------------------------------------------------------------------------

    def _seeds(self, seed: Seeds) -> list[int | None]:
        first = self._streams is None
        if seed is None and first:
            seed = self._first_seed if self._first_seed is not None else self._any_seed()
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        seeds = listed_seeds(seed, self.num_envs)
        return [self._any_seed() if s is None and first else s for s in seeds]

    def _any_seed(self) -> int:
        return int(self.np_random.integers(2**62))

    def _begin(self, mask: Tensor, source: dict[str, Any] | None = None, seeds: list[int | None] | None = None) -> None:
        """Begin the next episode in the environments of `mask` `(num_envs,)`."""
        rows = torch.nonzero(mask).squeeze(-1)
        seeds = seeds or [None] * self.num_envs
        # On a copy: a reset that fails leaves the dream as it was.
        zeros = torch.zeros(self.num_envs, dtype=torch.int64)
        old = (self._streams.keys, self._streams.counters) if self._streams else (zeros, zeros)
        streams = DreamStreams.at(*old, device=self.world.device)
        streams.begin(rows, [seeds[row] for row in rows.tolist()])
        noise = streams.borrow(rows)
        first = self._begin_with(rows, self.num_envs, source or {}, noise)
        streams.give_back(rows, noise)
        self._streams = streams
        if not mask.all():
            first = map_state(lambda old, new: old.index_copy(0, rows, new), self._state, first)
        self._state = first
        self._steps = self._steps.masked_fill(mask, 0)
        self._ended = self._ended & ~mask

    def _restart(self, observation: Any, infos: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
        """Begin anew where episodes have just ended; the last observations and infos go into the infos."""
        ended = self._ended
        self._begin(ended)
        fresh = self._stepper.observe_any(index_state(self._state, ended))
        final = {"final_obs": self._final(observation, ended), "final_info": self._infos(infos, ended)}
        mask = {f"_{name}": self._give(ended) for name in final}
        return put_rows(observation, ended, fresh), {**self._infos(infos, ~ended), **final, **mask}

    def _final(self, observation: Any, ended: Tensor) -> Any:
        """The observations that episodes ended with: of tensors the whole batch, of arrays one a row, as Gymnasium."""
        if self.output == "torch":
            return observation
        final = np.full(self.num_envs, None, dtype=object)
        arrays = to_arrays(observation)
        for i in torch.nonzero(ended).squeeze(-1).tolist():
            final[i] = row_of(arrays, i)
        return final

    # -- parts of a step --------------------------------------------------------------------------------------

    def _require_started(self) -> DreamStreams:
        if self._streams is None:
            raise ResetNeeded("Call reset before step, render or get_state.")
        return self._streams

    def _to_begin(self) -> Tensor:
        """Which environments this step begins instead of stepping."""
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeeded(
                f"The dreams {torch.nonzero(self._ended).squeeze(-1).tolist()} have ended: reset them first "
                '(reset(options={"reset_mask": terminated | truncated})).'
            )
        return self._ended

    def _actions(self, actions: Any, ignored: Tensor) -> Tensor:
        actions = actions if isinstance(actions, Tensor) else np.asarray(actions)
        if tuple(actions.shape[:1]) != (self.num_envs,):
            raise ValueError(
                f"Actions have shape {tuple(actions.shape)}, but {self.num_envs} environments take "
                f"{self.action_space.shape}."
            )
        return self._read_actions(actions, ignored)

    def _infos(self, infos: dict[str, Tensor], told: Tensor) -> dict[str, Any]:
        """Infos as Gymnasium's vector environments have them: beside each entry which rows it is `told` of."""
        given = {name: self._give(value) for name, value in infos.items()}
        return given | {f"_{name}": self._give(told) for name in infos}

    def _give(self, tensors: Any) -> Any:
        return tensors if self.output == "torch" else to_arrays(tensors)
