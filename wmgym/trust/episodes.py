"""Real episodes, recorded so that every moment of them can be returned to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wmgym.physics import get_physics, set_physics, simulator_of
from wmgym.replayable import Replayable
from wmgym.spaces import as_dict, copied, from_dict
from wmgym.trust.policies import Policy


class Returnable(Replayable):
    """A real environment that any moment of a recorded episode can be returned to.

    MuJoCo's state is put back after a reset with the episode's seed, which gives back what tasks draw into the
    model (a target's place); any other environment is reset with the seed and replays its actions.

    Example:
        >>> from wmgym.trust.policies import ConstantPolicy
        >>> env = Returnable(gym.make("CartPole-v1"))
        >>> episode = record_episode(env, "still", ConstantPolicy(env.action_space), seed=3, max_steps=20)
        >>> env.return_to(episode, 4)
        >>> bool((env.step(0)[0] == episode.observation["observation"][5]).all())
        True
    """

    def physics(self) -> NDArray[np.float64] | None:
        """MuJoCo's whole state; None in other environments."""
        simulator = simulator_of(self.env)
        return None if simulator is None else get_physics(*simulator)

    def return_to(self, episode: LivedEpisode, t: int) -> None:
        """Be where `episode` was when `observation[t]` was seen."""
        done = episode.env_action[:t] if episode.physics is None else episode.env_action[:0]
        self.set_state({"seed": episode.seed, "episode": 0, "started": True, "options": None, "actions": done})
        simulator = simulator_of(self.env)
        if simulator is not None and episode.physics is not None:
            set_physics(*simulator, episode.physics[t])


@dataclass(frozen=True)
class LivedEpisode:
    """One real episode of T steps, aligned as `wmgym.worlds.base` says: entry `t` belongs to `observation[t]`.

    Attributes:
        policy: whose it is.
        seed: of its reset.
        observation: by key, `(T + 1, ...)`.
        env_action: `(T, ...)` in the environment's units; `env_action[t - 1]` led to `observation[t]`.
        reward: `(T + 1,)` float32; the first is 0.
        terminated: whether it truly ended at the last observation.
        physics: `(T + 1, P)` MuJoCo's states; None in other environments.
    """

    policy: str
    seed: int
    observation: dict[str, np.ndarray]
    env_action: np.ndarray
    reward: np.ndarray
    terminated: bool
    physics: np.ndarray | None

    def __len__(self) -> int:
        return len(self.env_action)

    @property
    def total(self) -> float:
        """The return."""
        return float(self.reward.sum())

    @property
    def continues(self) -> np.ndarray:
        """`(T + 1,)` float32, 0 where it truly ended."""
        goes_on = np.ones(len(self) + 1, np.float32)
        goes_on[-1] -= self.terminated
        return goes_on


def record_episode(env: Returnable, name: str, policy: Policy, seed: int, max_steps: int) -> LivedEpisode:
    """One episode, acting deterministically (a policy may bring its own noise), cut after `max_steps`."""
    seen, _ = env.reset(seed=seed)
    observations, physics = [copied(seen)], [env.physics()]
    actions: list[Any] = []
    rewards, terminated, truncated, state = [0.0], False, False, None
    while not (terminated or truncated) and len(actions) < max_steps:
        action, state = _act(policy, seen, state, not actions, env.observation_space)
        actions.append(np.array(action))
        seen, reward, terminated, truncated, _ = env.step(action)
        observations.append(copied(seen))
        rewards.append(float(reward))
        physics.append(env.physics())
    return LivedEpisode(
        name,
        seed,
        {key: np.stack([o[key] for o in observations]) for key in observations[0]},
        np.stack(actions),
        np.array(rewards, np.float32),
        bool(terminated),
        None if physics[0] is None else np.stack([p for p in physics if p is not None]),
    )


def record_episodes(
    env: Returnable, policies: Mapping[str, Policy], episodes: int, seed: int, max_steps: int
) -> list[LivedEpisode]:
    """`episodes` of each policy; all policies meet the same seeds, `seed` and up."""
    return [
        record_episode(env, name, policy, seed + index, max_steps)
        for name, policy in policies.items()
        for index in range(episodes)
    ]


def by_policy(episodes: Sequence[LivedEpisode]) -> dict[str, list[LivedEpisode]]:
    """Episodes sorted by whose they are, in order of appearance."""
    names = dict.fromkeys(episode.policy for episode in episodes)
    return {name: [episode for episode in episodes if episode.policy == name] for name in names}


def _act(policy: Policy, seen: Any, state: Any, is_first: bool, space: gym.Space) -> tuple[Any, Any]:
    batch = from_dict({key: np.asarray(value)[None] for key, value in as_dict(seen).items()}, space)
    action, state = policy.predict(batch, state, np.array([is_first]), deterministic=True)
    return action[0], state
