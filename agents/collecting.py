"""Acting while learning: decide, step the environments, and store what they brought."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from agents.health import Healthy
from agents.policy import Carry
from wmgym.guarded import FAULT, RESET_FAULTS
from wmgym.spaces import action_size, as_dict
from wmgym.worlds.base import Observation

log = logging.getLogger("wmgym")


class Collecting(Healthy):
    """The collecting half of `WorldModelAgent`'s loop."""

    learning_starts: int
    batch_length: int
    pretrain: int
    exploration_noise: float = 0.0
    """Deviation of the noise on continuous actions, or the probability of a random discrete one."""
    hold: int = 1
    """A random action is held for 1 to this many decisions."""
    slips: float = 0.0
    """How often a random action takes the place of the policy's, to be held as long."""
    _held: tuple[Tensor, np.ndarray] | None = None
    """Random actions `(n_envs, A)`, and for how many more decisions they are held."""
    _env_faults = 0
    """How often an environment failed, was cut short and begun again."""
    _episode_limit: int | None = None
    """The longest of all episodes that the environments cut, in decisions."""
    _updates_due = 0.0
    """Updates that the steps collected have earned, and that are still to come when a callback saves."""
    _pretrained = False
    """Whether the first of them, `pretrain`, were earned."""

    @abstractmethod
    def _updates_earned(self) -> float:
        """How many updates the last step has earned."""

    def _explore(self, action: Tensor) -> Tensor:
        """What is done to the policy's action `(B, A)` while collecting: `exploration_noise` and `slips`."""
        noisy = self._add_noise(action) if self.exploration_noise > 0 else action
        return self._slip(noisy) if self.slips > 0 else noisy

    def _add_noise(self, action: Tensor) -> Tensor:
        noise = self.policy.noise
        if isinstance(self.action_space, spaces.Discrete):
            swap = noise.uniform(self.n_envs, 1) < self.exploration_noise
            return torch.where(swap, self._draw_action(), action)
        return (action + self.exploration_noise * noise.normal(*action.shape)).clamp(-1, 1)

    @contextmanager
    def _anew_after_error(self) -> Iterator[None]:
        """What fails half-way leaves the environments out of step with the replay: the next `learn` resets them."""
        try:
            yield
        except BaseException:
            self._last_obs = None
            raise

    def _begin_episodes(self) -> None:
        """Forget the past: environments were reset."""
        self._carry = self.policy.initial_carry(self.n_envs)
        zeros = np.zeros(self.n_envs, np.float32)
        action = np.zeros((self.n_envs, action_size(self.action_space)), np.float32)
        self._record(self._last_obs, action, zeros, np.ones(self.n_envs, bool), np.zeros(self.n_envs, bool))

    def _collect_step(self, callback: BaseCallback, total_timesteps: int, log_interval: int | None) -> bool:
        """One decision in every environment; False when a callback asks to stop."""
        assert self.env is not None
        callback.on_rollout_start()
        action = self._decide()
        env_action = self.policy.to_environment(action)
        new_obs, rewards, dones, infos = self.env.step(env_action)
        self._tell_faults(infos)
        self._note_limit(infos)
        self._remember(action.cpu().numpy(), new_obs, rewards, dones, infos)
        self.num_timesteps += self.n_envs
        self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        self._update_info_buffer(infos, dones)
        self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
        before, self._episode_num = self._episode_num, self._episode_num + int(dones.sum())
        self._earn_updates()
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        callback.on_rollout_end()
        if log_interval and self._episode_num // log_interval > before // log_interval:
            self.dump_logs()
        return True

    def _earn_updates(self) -> None:
        """Add to `_updates_due` what the step just collected has earned."""
        if not self._can_learn():
            return
        self._updates_due += self._updates_earned()
        if not self._pretrained:
            self._pretrained, self._updates_due = True, float(self.pretrain)

    def _can_learn(self) -> bool:
        """Whether the replay holds enough."""
        replay = self.replay_buffer
        assert replay is not None
        return len(replay) >= self.learning_starts and replay.can_sample(self.batch_length)

    def _note_limit(self, infos: list[dict[str, Any]]) -> None:
        for info in infos:
            if info.get("TimeLimit.truncated") and "episode" in info and FAULT not in info:
                self._episode_limit = max(self._episode_limit or 0, int(info["episode"]["l"]))

    @torch.no_grad()
    def _decide(self) -> Tensor:
        """See the last observation and choose: at random before learning starts, then by the policy, exploring."""
        observation, _ = self.policy.to_observation(self._last_obs)
        is_first = torch.as_tensor(self._last_episode_starts, device=self.device)
        assert self._carry is not None
        if self.num_timesteps < self.learning_starts:
            action = self._random_action()
            self._carry = Carry(self._carry.state, action)
            return action
        carry = self._act(self._carry, observation, is_first)
        self._carry = Carry(carry.state, self._explore(carry.action))
        return self._carry.action

    def _act(self, carry: Carry, observation: Observation, is_first: Tensor) -> Carry:
        """What the policy would do, before it explores."""
        return self.policy.step(carry, observation, is_first, self.policy.noise)

    def _random_action(self) -> Tensor:
        """Uniform, `(n_envs, A)`; each environment's is held for 1 to `hold` decisions.

        Held ones go further than those that change with every decision, and show where things come to rest.
        """
        draw = self._draw_action()
        if self.hold == 1:
            return draw
        return self._hold_on(draw, begins=np.ones(self.n_envs, bool))[0]

    def _slip(self, action: Tensor) -> Tensor:
        """Random actions where they have taken the place of the policy's `action` `(B, A)`, and are still held.

        Half of them have every number at a bound: trained policies are often there, and what lies still stays so.
        """
        draw = self._draw_action()
        begins = self.policy.noise.uniform(self.n_envs).cpu().numpy() < self.slips
        if not isinstance(self.action_space, spaces.Discrete):
            draw = torch.where(self.policy.noise.uniform(self.n_envs, 1) < 0.5, draw.sign(), draw)
        held, slips = self._hold_on(draw, begins)
        return torch.where(torch.as_tensor(slips, device=action.device)[:, None], held, action)

    def _draw_action(self) -> Tensor:
        size = action_size(self.action_space)
        draw = self.policy.noise.uniform(self.n_envs, size)
        if isinstance(self.action_space, spaces.Discrete):
            return nn.functional.one_hot(draw.argmax(-1), size).float()
        return 2 * draw - 1

    def _hold_on(self, draw: Tensor, begins: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Go on holding what is held, and begin with `draw` where else it `begins`: actions, and where one is held."""
        length = self._hold_lengths().cpu().numpy()
        if self._held is None or len(self._held[1]) != self.n_envs:
            self._held = draw, np.zeros(self.n_envs, np.int64)
        held, left = self._held
        going = left > 0
        left = np.where(going, left, np.where(begins, length, 0))
        held = torch.where(torch.as_tensor(going, device=draw.device)[:, None], held, draw)
        self._held = held, np.maximum(left - 1, 0)
        return held, left > 0

    def _hold_lengths(self) -> Tensor:
        """For how many decisions actions that are drawn now are held, `(n_envs,)` int64."""
        return 1 + (self.policy.noise.uniform(self.n_envs) * self.hold).long()

    def _tell_faults(self, infos: list[dict[str, Any]]) -> None:
        """Log and count what went wrong in the environments (`wmgym.guarded`, `wmgym.supervised`)."""
        for index, info in enumerate(infos):
            at_reset = info.get(RESET_FAULTS, ())
            if FAULT in info:
                decision = self.num_timesteps + index + 1
                log.warning("Environment %d, decision %d: %s. Its episode was cut.", index, decision, info[FAULT])
            for fault in at_reset:
                log.warning("Environment %d: %s. It was reset again, with another seed.", index, fault)
            self._env_faults += (FAULT in info) + len(at_reset)

    def _remember(
        self, action: np.ndarray, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """Store what the step led to; where an episode ended, its last observation, then the next one's first.

        A step in which the environment failed led nowhere: its episode ends with the step before, as a truncation.
        """
        reached = _replace_rows(new_obs, {int(i): infos[i]["terminal_observation"] for i in np.flatnonzero(dones)})
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        good = np.array([FAULT not in info for info in infos])
        self._record(reached, action, rewards, np.zeros(self.n_envs, bool), dones & ~truncated, good)
        blank = np.zeros(self.n_envs, np.float32)
        self._record(new_obs, 0 * action, blank, np.ones(self.n_envs, bool), np.zeros(self.n_envs, bool), dones)

    def _record(
        self,
        observation: Any,
        action: np.ndarray,
        reward: np.ndarray,
        is_first: np.ndarray,
        is_terminal: np.ndarray,
        mask: np.ndarray | None = None,
    ) -> None:
        """Store one step of the environments that `mask` `(n_envs,)` names; None: of all."""
        assert self.replay_buffer is not None
        rows = None
        if mask is not None and not mask.all():
            if not mask.any():
                return
            rows = np.flatnonzero(mask)
            observation = {key: value[rows] for key, value in as_dict(observation).items()}
            action, reward, is_first, is_terminal = (part[rows] for part in (action, reward, is_first, is_terminal))
        try:
            self.replay_buffer.add(observation, action, reward, is_first, is_terminal, rows)
        except ValueError as error:
            raise ValueError(
                f"After {self.num_timesteps} decisions the environment brought what cannot be learned from: {error} "
                "Mend the environment (gymnasium.wrappers.TransformObservation, TransformReward). The agent is whole: "
                "save it, or call learn again, which resets the environment."
            ) from error


def _replace_rows(observation: Any, rows: dict[int, Any]) -> Any:
    """A copy of a batch of observations with some rows replaced."""
    if not rows:
        return observation
    if isinstance(observation, dict):
        return {
            key: _replace_rows(value, {i: row[key] for i, row in rows.items()}) for key, value in observation.items()
        }
    replaced = observation.copy()
    for i, row in rows.items():
        replaced[i] = row
    return replaced
