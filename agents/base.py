"""The one training loop: collect, replay, world, behaviour. An algorithm overrides the behaviour, not the loop."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecTransposeImage, is_vecenv_wrapped
from torch import Tensor, nn

from agents.arguments import (
    POLICY_NAMES,
    check_env_and_policy,
    check_numbers,
    check_room,
    check_settings_of_ids,
    check_spaces,
)
from agents.collecting import Collecting
from agents.health import Checks
from agents.interrupt import CONNECTION_LOST, InterruptGuard
from agents.policy import Carry, WorldModelPolicy
from wmgym.dream import DreamVecEnv, DreamVectorEnv
from wmgym.nets.optim import set_rate
from wmgym.random import TorchNoise
from wmgym.real import make_vec, repeat_of
from wmgym.worlds.base import SequenceBatch, World

log = logging.getLogger("wmgym")


class WorldModelAgent(Collecting):
    """An agent that learns a world model from replay and a behaviour in it; Stable-Baselines3's interface.

    A subclass implements `_build_world`, `_build_behaviour` and `_update`.

    How much it learns from each step is one number, `train_ratio`: replayed steps per collected step (DreamerV3's
    definition). Batches of `batch_size * batch_length` steps are therefore drawn
    `train_ratio / (batch_size * batch_length)` times a decision. In Stable-Baselines3's words, `train_freq` decisions
    are followed by `gradient_steps` updates; give these two instead and they take precedence.

    Args:
        env: an id for `wmgym.make_env`, a Gymnasium environment, a `VecEnv` or a `DreamVectorEnv`. None to load.
        policy: kept for Stable-Baselines3's tools; there is one, "WorldModelPolicy".
        learning_rate: of the world; a number, or a schedule of the remaining progress (1 to 0). Other learning
            rates follow the same schedule, in proportion.
        observation: "state", "pixels" or "both", when `env` is an id.
        action_repeat: simulator steps per decision, when `env` is an id; None: 2 for `dm_control/*`, else 1.
        env_kwargs: further arguments of `wmgym.make_env`, when `env` is an id.
        n_envs: environments stepped together, when `env` is an id.
        buffer_size: steps the replay keeps.
        buffer_folder: keep the replay in memory-mapped files there instead of in RAM.
        learning_starts: random decisions before the first update.
        hold: a random action is held for 1 to this many decisions: held ones show where things come to rest.
        slips: how often one takes the place of the policy's too, to be held as long: the world sees falls and recovery.
        batch_size: sequences in a batch.
        batch_length: steps in a sequence.
        train_ratio: replayed steps per decision.
        train_freq: decisions between updates, instead of `train_ratio`.
        gradient_steps: updates after every `train_freq` decisions, which must be given with it.
        pretrain: updates when learning starts.
        online_queue: sample each new sequence once before sampling uniformly (DreamerV3).
        stats_window_size: episodes over which the log averages.
        tensorboard_log: folder for TensorBoard.
        policy_kwargs: unused, accepted for Stable-Baselines3's tools.
        verbose: 0 silent, 1 the log's table, 2 more.
        seed: of everything random; None draws one.
        device: "auto", "cpu", "cuda" or a torch device.
        max_skipped_updates: updates that NaN or infinity spoils are left out; after so many in a row training stops.
        interrupt_folder: where a run that is interrupted by Ctrl-C or SIGTERM, or diverges, saves itself.
    """

    policy_aliases = dict.fromkeys(POLICY_NAMES, WorldModelPolicy)

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        learning_rate: float | Schedule = 1e-4,
        observation: str = "state",
        action_repeat: int | None = None,
        env_kwargs: dict[str, Any] | None = None,
        n_envs: int = 1,
        buffer_size: int = 1_000_000,
        buffer_folder: str | Path | None = None,
        learning_starts: int = 2500,
        hold: int = 1,
        slips: float = 0.0,
        batch_size: int = 16,
        batch_length: int = 32,
        train_ratio: float = 100.0,
        train_freq: int | None = None,
        gradient_steps: int = 1,
        pretrain: int = 1,
        online_queue: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        max_skipped_updates: int = 10,
        interrupt_folder: str | Path = "runs",
        _init_setup_model: bool = True,
    ) -> None:
        check_env_and_policy(type(self).__name__, env, policy)
        seed = int(np.random.SeedSequence().generate_state(1)[0] % 2**31) if seed is None else seed
        self.observation, self.env_kwargs, self.n_envs = observation, env_kwargs, n_envs
        self.env_settings: dict[str, Any] | None = None
        if isinstance(env, str):
            options = {"observation": observation, "action_repeat": action_repeat, **(env_kwargs or {})}
            self.env_settings = {"id": env, **options}
            env = make_vec(env, n_envs, seed=seed, **options)
        elif env is not None:
            check_settings_of_ids(self, env, action_repeat)
        elif _init_setup_model:
            raise ValueError(f"{type(self).__name__} needs an environment: an id, a gymnasium.Env or a VecEnv.")
        if env is not None:
            env = self._wrap_env(env) if isinstance(env, VecTransposeImage | DreamVectorEnv) else env
            check_spaces(env.observation_space, env.action_space)
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs,
            stats_window_size,
            tensorboard_log,
            verbose,
            device,
            support_multi_env=True,
            seed=seed,
        )
        self.buffer_size, self.buffer_folder = buffer_size, buffer_folder
        self.learning_starts, self.hold, self.slips = learning_starts, hold, slips
        self.batch_size, self.batch_length = batch_size, batch_length
        self.train_ratio, self.train_freq, self.gradient_steps = train_ratio, train_freq, gradient_steps
        self.pretrain, self.online_queue = pretrain, online_queue
        self.max_skipped_updates, self.interrupt_folder = max_skipped_updates, Path(interrupt_folder)
        self.stats_window_size = stats_window_size
        self.replay_buffer = None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._base_rates: dict[str, float] = {}
        self._carry: Carry | None = None
        check_numbers(self)
        self._metrics: dict[str, deque[Tensor]] = defaultdict(lambda: deque(maxlen=1000))  # if nothing is ever logged
        if _init_setup_model:
            self._setup_model()

    # -- what an algorithm provides ---------------------------------------------------------------------------

    @abstractmethod
    def _build_world(self) -> World:
        """The untrained world for this agent's spaces."""

    @abstractmethod
    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        """The modules that act and learn besides the world, by name; `actor` among them."""

    @abstractmethod
    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimisers by name."""

    @abstractmethod
    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """One update of world and behaviour; returns scalars for the log."""

    # -- building ---------------------------------------------------------------------------------------------

    def _plan_policy(self) -> WorldModelPolicy:
        return self._build_policy(self._build_world())

    def _build_policy(self, world: World) -> WorldModelPolicy:
        """What acts, with the behaviour's modules."""
        return WorldModelPolicy(self.observation_space, self.action_space, world, self._build_behaviour(world))

    def _setup_model(self) -> None:
        check_room(self)
        self.set_random_seed(self.seed)
        assert self.seed is not None
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self.noise = TorchNoise(self.generator, self.device)
        self.lr_schedule = utils.FloatSchedule(self.learning_rate)
        self.policy = self._plan_policy().to(self.device)
        self.policy.noise = TorchNoise(torch.Generator(self.device).manual_seed(self.seed + 1), self.device)
        self.optimizers = self._build_optimizers()
        self.checks = Checks(self.optimizers)
        self.perform: Callable[[SequenceBatch], dict[str, Tensor]] = self._update  # or what replays it
        self._base_rates = {name: opt.param_groups[0]["lr"] for name, opt in self.optimizers.items()}

    def set_random_seed(self, seed: int | None = None) -> None:
        """As in Stable-Baselines3; the chance of acting and of updates goes on from `seed`."""
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "generator"):
            self.generator.manual_seed(seed)
            self.policy.generator.manual_seed(seed + 1)

    @property
    def world(self) -> World:
        """The world model."""
        return self.policy.world

    @property
    def action_repeat(self) -> int:
        """Simulator steps per decision."""
        if self.env_settings is None:
            return 1 if self.env is None else repeat_of(self.env)
        chosen = self.env_settings.get("action_repeat")
        return chosen or (2 if self.env_settings["id"].startswith("dm_control/") else 1)

    @property
    def updates_per_decision(self) -> float:
        """How many updates follow each decision, on average."""
        if self.train_freq is not None:
            return self.gradient_steps / self.train_freq
        return self.train_ratio / (self.batch_size * self.batch_length)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """A `VecEnv` of it. Unlike Stable-Baselines3, pictures stay HWC: worlds read them so."""
        if isinstance(env, DreamVectorEnv):
            return VecMonitor(DreamVecEnv.like(env))
        if isinstance(env, VecTransposeImage):
            return env.venv
        if isinstance(env, VecEnv):
            if is_vecenv_wrapped(env, VecTransposeImage):
                raise ValueError("Leave VecTransposeImage out: this agent reads pictures as (H, W, C).")
            return env
        monitored = Monitor(env) if monitor_wrapper and not is_wrapped(env, Monitor) else env
        return DummyVecEnv([lambda: monitored])

    # -- learning ---------------------------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> WorldModelAgent:
        """Collect and learn for `total_timesteps` decisions (each is `action_repeat` simulator steps).

        Args:
            total_timesteps: decisions, all environments together; the log's `time/env_steps` counts simulator steps.
            callback: Stable-Baselines3 callback(s).
            log_interval: episodes between two lines of the log; None never logs.
            tb_log_name: name of the run for TensorBoard; None: the algorithm's.
            reset_num_timesteps: start counting anew; False continues a run.
            progress_bar: show one.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after saving to `interrupt_folder` and saying where.
            SystemExit: likewise on SIGTERM.
        """
        total_timesteps, callback = self._setup_learn(
            int(total_timesteps), callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callback.on_training_start(locals(), globals())
        with InterruptGuard() as interrupt:
            try:
                self._loop(callback, total_timesteps, log_interval, interrupt)
            except CONNECTION_LOST:
                if not interrupt.requested:
                    raise
            callback.on_training_end()
            if interrupt.requested:
                self._save_interrupted()
        if interrupt.requested:
            interrupt.leave()
        return self

    def _loop(
        self, callback: BaseCallback, total_timesteps: int, log_interval: int | None, interrupt: InterruptGuard
    ) -> None:
        going_on = True
        with self._anew_after_error():
            if self._updates_due >= 1 and total_timesteps:  # of what was collected before a file was saved
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                self._learn_due(interrupt)
            while going_on and self.num_timesteps < total_timesteps and not interrupt.requested:
                going_on = self._collect_step(callback, total_timesteps, log_interval)
                self._learn_due(interrupt)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._resume()
        if self.env is None:
            raise ValueError(f"{type(self).__name__} has no environment to learn in: call set_env(env) first.")
        self._prepare_replay()
        continued = self._last_obs is not None and not reset_num_timesteps
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if not continued:
            with self._anew_after_error():
                self._begin_episodes()
        return result

    def _learn_due(self, interrupt: InterruptGuard) -> None:
        """The updates that are due, of which there may be thousands; an interruption leaves the rest for later."""
        if self._updates_due >= 1 and not self._can_learn():
            self._updates_due %= 1  # what earned more of them is gone: a file was loaded without its replay
        while self._updates_due >= 1 and not interrupt.requested:
            self.update()
            self._updates_due -= 1
            self._saved_whole = (-1, None)  # what a callback has saved at this step no longer says it all

    def _updates_earned(self) -> float:
        """How many updates the last step has earned."""
        return self.n_envs * self.updates_per_decision

    def update(self) -> None:
        """One update of world and behaviour from a fresh batch of replay.

        Raises:
            DivergedError: if NaN or infinity has spoilt `max_skipped_updates` in a row; the agent was saved.
        """
        assert self.replay_buffer is not None
        self._set_learning_rates()
        batch = self.replay_buffer.sample(self.batch_size, self.batch_length, self.online_queue, self.device)
        self.policy.set_training_mode(True)
        with self._skipping_spoilt():
            for name, value in self.perform(batch).items():
                self._metrics[name].append(value.detach())

    def _set_learning_rates(self) -> None:
        first = self.lr_schedule(1.0)
        factor = self.lr_schedule(self._current_progress_remaining) / first if first else 1.0
        for name, optimizer in self.optimizers.items():
            set_rate(optimizer, self._base_rates[name] * factor * self._warmup())

    def _warmup(self) -> float:
        """Factor on the learning rates at this update."""
        return 1.0

    def dump_logs(self) -> None:
        """Write the log's next line: episodes, time, and the mean of every training metric since the last one."""
        assert self.ep_info_buffer is not None
        for key, name in (("r", "ep_rew_mean"), ("l", "ep_len_mean")):
            if self.ep_info_buffer:
                self.logger.record(f"rollout/{name}", utils.safe_mean([info[key] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", utils.safe_mean(self.ep_success_buffer))
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/episodes", self._episode_num, exclude="tensorboard")
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("time/env_steps", self.num_timesteps * self.action_repeat)
        if self._n_updates:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/learning_rate", self.lr_schedule(self._current_progress_remaining))
        for name, count in (("train/skipped_updates", self._skipped_updates), ("rollout/env_faults", self._env_faults)):
            if count:
                self.logger.record(name, count)
        for name, values in self._metrics.items():
            self.logger.record(f"train/{name}", torch.stack([*values]).mean().item())
        self._metrics.clear()
        self.logger.dump(step=self.num_timesteps)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """See `WorldModelPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Learn in another environment with the same spaces; an id is made as the first one was."""
        if isinstance(env, str):
            options = {key: value for key, value in (self.env_settings or {}).items() if key != "id"}
            settings: dict[str, Any] | None = {"id": env, **options}
            env = make_vec(env, self.n_envs, seed=self.seed, **options)
        else:
            check_env_and_policy(type(self).__name__, env, POLICY_NAMES[0])
            settings = None  # nothing is known of how it was made
        super().set_env(env, force_reset)
        self.env_settings, self._env_states = settings, None
