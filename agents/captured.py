"""A whole update as one CUDA graph: recorded once, then replayed without a word from the host.

    agent = Dreamer("dm_control/walker-walk-v0", device="cuda")
    capture_updates(agent)
    agent.learn(1e6)

Within an update nothing is read back from the device: what becomes NaN or infinite is noted there, weights then stay as
they are, and the host looks every `LOOK` updates whether that has happened.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from agents.base import WorldModelAgent
from agents.dreamer import Dreamer
from agents.dreamer_v1 import DreamerV1
from agents.dreamer_v3 import DreamerV3
from agents.health import floating_buffers
from wmgym.nets.optim import LaProp
from wmgym.worlds.base import SequenceBatch

CAPTURABLE: tuple[type[WorldModelAgent], ...] = (Dreamer, DreamerV1, DreamerV3)
LOOK = 100
"""Updates between two looks of the host at what the device has noted."""
_PLAIN = 3
"""Updates before the recording; the optimisers' moments and the libraries' workspaces come to be in them."""


class Recorder(Protocol):
    """How updates are run and recorded."""

    def run(self, step: Callable[[], None]) -> None:
        """Run it as it is."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Take down what it does, without doing it; returns what does it."""


class GraphRecorder:
    """Records CUDA graphs.

    Args:
        generator: what is drawn from.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.stream = generator, torch.cuda.Stream(generator.device)

    def run(self, step: Callable[[], None]) -> None:
        """See `Recorder`; on the stream that records, as PyTorch asks."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            step()
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, stream=self.stream):
            step()
        replay: Callable[[], None] = graph.replay
        return replay


def capture_updates(agent: WorldModelAgent, recorder: Recorder | None = None) -> None:
    """Let an agent replay its updates from now on.

    Args:
        agent: a `Dreamer`, `DreamerV1` or `DreamerV3` on a CUDA device.
        recorder: None: CUDA graphs.

    Raises:
        ValueError: for another agent, one that predicts ends as DreamerV1 does, or another device.
    """
    if type(agent) not in CAPTURABLE:
        able = ", ".join(cls.__name__ for cls in CAPTURABLE)
        raise ValueError(f"Updates of {type(agent).__name__} cannot be captured, only those of {able}.")
    if getattr(agent, "pcont", False):
        raise ValueError("Updates with pcont=True cannot be captured: how many dreams they start hangs on the data.")
    if recorder is None:
        if agent.device.type != "cuda":
            raise ValueError(f'Updates are captured on a CUDA device, and this agent is on "{agent.device}".')
        recorder = GraphRecorder(agent.generator)
    for optimizer in agent.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=agent.device)
            if isinstance(optimizer, LaProp):
                group["foreach"] = True
            elif agent.device.type == "cuda":
                group["capturable"] = True
    agent.perform = CapturedUpdate(agent, recorder)


class CapturedUpdate:
    """An agent's update, recorded at the fourth call.

    Args:
        agent: whose update it is.
        recorder: how it is recorded.
    """

    def __init__(self, agent: WorldModelAgent, recorder: Recorder) -> None:
        self._agent, self._recorder = agent, recorder
        self._replay: Callable[[], None] | None = None
        self._batch: SequenceBatch | None = None
        self._metrics: dict[str, Tensor] = {}
        self._calls = 0
        self._skipped, self._in_a_row = torch.zeros(2, device=agent.device).unbind()

    def __call__(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """One update of world and behaviour.

        Args:
            batch: shaped like every one before.

        Returns:
            Scalars for the log; of the last update that was not spoilt.

        Raises:
            DivergedError: see `WorldModelAgent.update`; some updates late.
        """
        self._take(batch)
        if self._calls < _PLAIN:
            self._recorder.run(self._step)
        else:
            if self._replay is None:
                self._replay = self._recorder.record(self._step)
            self._replay()
        self._calls += 1
        if self._calls % LOOK == 0:
            self._look()
        return {name: value.clone() for name, value in self._metrics.items()}

    def _take(self, batch: SequenceBatch) -> None:
        """The batch into the memory that the recording reads."""
        if self._batch is None:
            self._batch = copy.deepcopy(batch)
        for kept, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
            kept.copy_(new, non_blocking=True)

    def _step(self) -> None:
        agent = self._agent
        assert self._batch is not None
        agent.checks.spoilt = torch.zeros((), device=agent.device)
        buffers = floating_buffers(agent.policy)
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        metrics = agent._update(self._batch)
        spoilt = agent.checks.spoilt > 0
        for name, buffer in buffers.items():
            buffer.copy_(torch.where(spoilt, before[name], buffer))
        for name, value in metrics.items():
            kept = self._metrics.setdefault(name, torch.zeros_like(value.detach()))
            kept.copy_(torch.where(spoilt, kept, value.detach()))
        self._skipped.add_(spoilt)
        self._in_a_row.add_(1).mul_(spoilt)

    def _look(self) -> None:
        """Tell the agent how many updates were spoilt."""
        skipped, in_a_row = torch.stack([self._skipped, self._in_a_row]).tolist()
        self._skipped.zero_()
        self._agent.note_skipped(int(skipped), int(in_a_row))


def _tensors(batch: SequenceBatch) -> list[Tensor]:
    return [*batch.observation.values(), batch.action, batch.reward, batch.is_first, batch.is_terminal]
