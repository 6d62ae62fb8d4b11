"""Where plans can be tried: in a world, in `Dream-v0`, or in a MuJoCo simulator, all through `plannable`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import gymnasium as gym
import torch
from torch import Tensor

from agents.planners import Plannable
from agents.simulators import SimulatedPlans
from wmgym.dream import DreamEnv, DreamVectorEnv
from wmgym.random import Noise
from wmgym.worlds.base import State, World, index_state, map_state

Value = Callable[[Tensor], Tensor]
"""Values `(...)` of features `(..., F)`."""

ROWS_AT_ONCE = 2000
"""Plans imagined together on a CPU."""


def plannable(
    where: World | gym.Env | gym.vector.VectorEnv | Sequence[gym.Env],
    state: State | None = None,
    value: Value | None = None,
    discount: float = 1.0,
    temperature: float = 1.0,
) -> Plannable:
    """What a planner can search in, from the state that it is in now.

    Args:
        where: a world; `Dream-v0`, single or vector; or one or several MuJoCo environments (dm_control's through
            `wmgym.make_env`, or Gymnasium's), which are left as they were found.
        state: of a world, `(N, ...)`.
        value: of a world's or a dream's features, counted at the end of every plan; None counts rewards only.
        discount: of the rewards, per step.
        temperature: of the world's chance; 0 tries plans in what the world finds likeliest. A simulator has none.

    Raises:
        TypeError: for anything else; the message says what can be planned in.

    Example:
        >>> from wmgym import make_env
        >>> env = make_env("dm_control/cartpole-swingup-v0", action_repeat=8, seed=0)
        >>> plannable(env).num_envs
        1
    """
    if isinstance(where, World):
        return ImaginedPlans(where, where.initial(1) if state is None else state, value, discount, temperature)
    inner = where.unwrapped if isinstance(where, gym.Env | gym.vector.VectorEnv) else None
    if isinstance(inner, DreamEnv | DreamVectorEnv):
        return ImaginedPlans(inner.world, inner.get_state().world, value, discount, temperature)
    if value is not None:
        raise TypeError("A simulator has no features that a value could be read from: leave value out.")
    return SimulatedPlans([where] if isinstance(where, gym.Env) else where, discount)  # type: ignore[arg-type]


class PassedOn(ABC):
    """Noise of which every draw passes through `_draw`.

    Args:
        noise: where the numbers come from.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return self._draw(self.noise.normal, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return self._draw(self.noise.uniform, shape)

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel numbers."""
        return self._draw(self.noise.gumbel, shape)

    @abstractmethod
    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        """Numbers of this shape, from `draw`."""


class Repeatable(PassedOn):
    """Noise that can be drawn again: after `rewind` the same numbers come in the same order."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise)
        self._drawn: list[Tensor] = []
        self._next = 0

    def rewind(self) -> None:
        """Begin again with the first draw."""
        self._next = 0

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if self._next == len(self._drawn):
            self._drawn.append(draw(*shape))
        self._next += 1
        return self._drawn[self._next - 1]


class Shared(PassedOn):
    """Noise of which `copies` equal parts of a batch get the same draws.

    Args:
        noise: where they come from.
        copies: how many parts.
    """

    def __init__(self, noise: Noise, copies: int) -> None:
        super().__init__(noise)
        self.copies = copies

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        part = draw(shape[0] // self.copies, *shape[1:])
        return part if self.copies == 1 else part.repeat(self.copies, *(1 for _ in shape[1:]))


class ImaginedPlans:
    """Plans tried in a world: the sum of the rewards that it predicts (PlaNet, algorithm 2).

    Args:
        world: the world.
        state: where plans begin, `(N, ...)`.
        value: counted at the end of every plan; None: nothing is.
        discount: of rewards, per step.
        temperature: of the world's chance.
    """

    def __init__(
        self, world: World, state: State, value: Value | None = None, discount: float = 1.0, temperature: float = 1.0
    ) -> None:
        self.world, self.state, self.value, self.discount = world, state, value, discount
        self.temperature = temperature
        self.num_envs = state[0].shape[0]
        self.action_space, self.device = world.action_space, world.device

    @torch.no_grad()
    def returns(self, plans: Tensor, noise: Noise) -> Tensor:
        """See `Plannable.returns`; one draw of the world's chance for every plan."""
        count = plans.shape[2]
        # More rows than these fall out of a processor's cache between two layers; a GPU takes all at once.
        together = max(1, ROWS_AT_ONCE // count) if self.device.type == "cpu" else self.num_envs
        repeatable, totals = Repeatable(noise), []
        for rows in (slice(first, first + together) for first in range(0, self.num_envs, together)):
            repeatable.rewind()
            totals.append(self._returns(index_state(self.state, rows), plans[:, rows], repeatable))
        return torch.cat(totals)

    def _returns(self, state: State, plans: Tensor, noise: Noise) -> Tensor:
        """The same for environments that are imagined together, in one forward pass a step."""
        envs, count = plans.shape[1:3]
        shared = Shared(noise, envs)
        state = map_state(lambda leaf: leaf.repeat_interleave(count, 0), state)  # (N * J, ...)
        total = torch.zeros(envs * count, device=self.device)
        reach = torch.ones_like(total)  # how much what comes next counts
        for action in plans.flatten(1, 2):
            # Step by step, rewards too: what a step needs stays in the processor's cache.
            state, reward, continues = self.world.imagine(state, action, shared, self.temperature)
            total = total + reach * reward
            reach = reach * (self.discount * continues)
        if self.value is not None:
            total = total + reach * self.value(self.world.features(state))
        return total.unflatten(0, (envs, count))
