"""How dreamt steps end, and how far a dream is believed: termination, horizon, the world's own doubt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from wmgym.facts import episode_limit
from wmgym.worlds.base import Imagined, Noise

Termination = Literal["sample", "threshold", "never"]

DEFAULT_HORIZON = 1000
"""Steps after which a dream is truncated, where neither the caller nor the checkpoint says."""


class Outcomes(NamedTuple):
    """What a step brings to each dream, `(num_envs,)`."""

    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True)
class Caution:
    """What the disagreement of a world's ensemble does to its dreams.

    Attributes:
        penalty: taken off the reward, times the disagreement (MOPO: Yu et al. 2020, equation 5).
        halt: a dream ends where the disagreement is larger; None: nowhere (MOReL: Kidambi et al. 2020, definition 2).
        halt_reward: the reward of a step that is so ended.

    Raises:
        ValueError: for a penalty or limit that is negative, or a reward of halts where there are none.
    """

    penalty: float = 0.0
    halt: float | None = None
    halt_reward: float = 0.0

    def __post_init__(self) -> None:
        if not self.penalty >= 0 or not (self.halt is None or self.halt >= 0):  # so that NaN is refused too
            raise ValueError(f"The disagreement's penalty and halt must not be negative: {self.penalty}, {self.halt}.")
        if self.halt is None and self.halt_reward:
            raise ValueError(
                f"halt_reward={self.halt_reward} needs a disagreement_halt: without it no dream is halted."
            )

    @property
    def needs_ensemble(self) -> bool:
        """Whether it does anything."""
        return self.penalty > 0 or self.halt is not None

    def apply(self, outcomes: Outcomes, disagreement: Tensor) -> Outcomes:
        """Rewards and ends after doubt."""
        reward, terminated = outcomes
        reward = reward - self.penalty * disagreement
        if self.halt is not None:
            halted = disagreement > self.halt
            reward = torch.where(halted, self.halt_reward, reward)
            terminated = terminated | halted
        return Outcomes(reward, terminated)


def outcomes_of(reached: Imagined, policy: Termination, noise: Noise) -> Outcomes:
    """Rewards, and which dreams end: by chance, by what is likelier, or never."""
    continues = reached.continues
    if policy == "never":
        terminated = torch.zeros_like(continues, dtype=torch.bool)
    elif policy == "threshold":
        terminated = continues < 0.5
    else:
        # At 1 a dream surely goes on, at 0 it surely ends: the draw is in [0, 1).
        terminated = noise.uniform(len(continues), 1).squeeze(-1) >= continues
    return Outcomes(reached.reward.float(), terminated)


def horizon_of(horizon: int | None, max_episode_steps: int | None, env: Mapping[str, Any]) -> int:
    """The shorter of the two that were given, else what the checkpoint says of the real environment.

    Raises:
        ValueError: below 1.
    """
    given = [steps for steps in (horizon, max_episode_steps) if steps is not None]
    steps = min(given) if given else episode_limit(env) or DEFAULT_HORIZON
    if steps < 1:
        raise ValueError(f"horizon (max_episode_steps) must be 1 or more, not {steps}.")
    return int(steps)
