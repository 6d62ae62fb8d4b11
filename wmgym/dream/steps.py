"""One step of all dreams: as it is, or compiled, which a GPU then replays as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from wmgym.dream.convert import ObservationConverter
from wmgym.dream.ends import Caution, Outcomes, Termination, outcomes_of
from wmgym.dream.frames import decode
from wmgym.dream.streams import DreamStreams
from wmgym.worlds.base import State, World

DISAGREEMENT = "disagreement"


class Manner(NamedTuple):
    """How worlds are dreamt; see `wmgym.dream.DreamVectorEnv`."""

    temperature: float
    termination: Termination
    caution: Caution


class Step(NamedTuple):
    """What one step comes to, `(num_envs, ...)`."""

    state: State
    outcomes: Outcomes
    infos: dict[str, Tensor]


class Stepper:
    """Takes all dreams of a world a step further, and tells what is seen.

    Args:
        world: that is dreamt.
        write: makes observations of what the world decodes; None: features are observed as they are.
        keys: which entries are decoded; None: all.
        compiled: whether steps are compiled; None: on a GPU.
    """

    def __init__(
        self,
        world: World,
        write: ObservationConverter | None,
        keys: Sequence[str] | None,
        compiled: bool | None = None,
    ) -> None:
        self._world, self._write, self._keys = world, write, keys
        self._compiled: tuple[Compiled, Compiled] | None = None
        if world.device.type == "cuda" if compiled is None else compiled:
            self._compiled = Compiled(self._advance_purely), Compiled(self.observe_any)

    def advance(self, state: State, action: Tensor, streams: DreamStreams, manner: Manner) -> Step:
        """The next states, what reaching them brings, and what is worth telling; `streams` are drawn on."""
        if self._compiled is None:
            return self._advance(state, action, streams, manner)
        step, streams.counters = self._compiled[0](state, action, streams.keys, streams.counters, manner)
        return step

    def observe(self, state: State) -> Any:
        """Observations of all dreams, as tensors."""
        return self.observe_any(state) if self._compiled is None else self._compiled[1](state)

    def observe_any(self, state: State) -> Any:
        """The same of any number of rows, never compiled: each number of them would be compiled anew."""
        features = self._world.features(state)
        if self._write is None:
            return features.float()
        return self._write(decode(self._world, features, self._keys))

    def _advance(self, state: State, action: Tensor, streams: DreamStreams, manner: Manner) -> Step:
        infos = {}
        if self._world.has_ensemble:
            infos[DISAGREEMENT] = self._world.disagreement(state, action).float()
        reached = self._world.imagine(state, action, streams, manner.temperature)
        outcomes = outcomes_of(reached, manner.termination, streams)
        if infos:
            outcomes = manner.caution.apply(outcomes, infos[DISAGREEMENT])
        return Step(reached.state, outcomes, infos)

    def _advance_purely(
        self, state: State, action: Tensor, keys: Tensor, counters: Tensor, manner: Manner
    ) -> tuple[Step, Tensor]:
        """`_advance` as a function that changes nothing: streams are tensors that go in and come out."""
        streams = DreamStreams.at(keys, counters, keys.device)
        return self._advance(state, action, streams, manner), streams.counters


class Compiled:
    """A function of tensors, compiled: its kernels are fused, and on a GPU replayed as one CUDA graph.

    Where it cannot be compiled (no Triton, no C++ compiler) a warning says so and it runs as it is.

    Args:
        function: that changes nothing, of tensors and tuples of them.
        backend: torch's; None: inductor with CUDA graphs.

    Example:
        >>> Compiled(lambda x: (2 * x, {"squared": x * x}), backend="eager")(torch.tensor(3.0))
        (tensor(6.), {'squared': tensor(9.)})
    """

    def __init__(self, function: Callable[..., Any], backend: str | None = None) -> None:
        self._plain, self._backend = function, backend
        options = {"backend": backend} if backend else {"mode": "reduce-overhead"}
        self._fast: Callable[..., Any] | None = torch.compile(function, **options)  # type: ignore[call-overload]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy compiles for itself: what was compiled cannot be pickled."""
        return type(self), (self._plain, self._backend)

    def __call__(self, *args: Any) -> Any:
        """What the function returns, in memory of its own: a graph writes into the same one every time."""
        if self._fast is not None:
            try:
                torch.compiler.cudagraph_mark_step_begin()
                return _copy(self._fast(*args))
            except Exception as error:  # torch, Triton and compilers each raise their own
                self._fast = None
                gym.logger.warn(f"A dream's step cannot be compiled and runs as it is: {error}")
        return self._plain(*args)


def _copy(result: Any) -> Any:
    """Tensors in tuples and dictionaries, copied."""
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, dict):
        return {name: _copy(value) for name, value in result.items()}
    parts = [_copy(part) for part in result]
    return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
