"""What keeps NaN and infinity out of the weights: an update that meets them is left out, and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from agents.storage import Storable
from wmgym.files import CheckpointError
from wmgym.random import Noise
from wmgym.worlds.base import SequenceBatch, World, WorldLoss

log = logging.getLogger("wmgym")


class NotFiniteError(ArithmeticError):
    """A number of an update became NaN or infinite; the message names it."""


class DivergedError(RuntimeError):
    """Updates that were all spoilt by NaN or infinity; the message says where the agent of before them lies."""


def require_finite(values: Mapping[str, Tensor]) -> None:
    """Check scalars, in one transfer from the device.

    Raises:
        NotFiniteError: naming the first that is NaN or infinite.

    Example:
        >>> require_finite({"world loss": torch.ones(())})
        >>> require_finite({"world loss": torch.tensor(float("nan"))})
        Traceback (most recent call last):
        agents.health.NotFiniteError: the world loss is nan
    """
    numbers = torch.stack([value.detach().float() for value in values.values()])
    if not torch.isfinite(numbers).all():
        name, number = next((n, v) for n, v in zip(values, numbers.tolist()) if not abs(v) < float("inf"))
        raise NotFiniteError(f"the {name} is {number}")


class Checks:
    """Looks for NaN and infinity in an update.

    Args:
        optimizers: by name; they refuse to step along a gradient that is not finite, before anything has changed.

    Attributes:
        spoilt: None: what is not finite ends the update at once. A scalar: nothing may be read back from the device
            (`agents.captured`); it becomes 1.0 there, and optimisers then leave their weights as they are.

    Example:
        >>> checks = Checks({})
        >>> checks.spoilt = torch.zeros(())
        >>> checks.require_finite({"loss": torch.tensor(float("inf"))})
        >>> checks.spoilt
        tensor(1.)
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self.spoilt: Tensor | None = None
        for name, optimizer in optimizers.items():
            optimizer.register_step_pre_hook(partial(self._before_step, name))

    def require_finite(self, values: Mapping[str, Tensor]) -> None:
        """Check scalars.

        Raises:
            NotFiniteError: see `require_finite`; not while `spoilt` is a scalar.
        """
        if self.spoilt is None:
            require_finite(values)
        else:
            self._note(torch.stack([value.detach().float() for value in values.values()]))

    def _before_step(self, name: str, optimizer: Any, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        norm = get_total_norm(gradients, foreach=True)
        if self.spoilt is not None:
            self._note(norm)
            optimizer.found_inf = self.spoilt  # PyTorch's own name for it
        elif not torch.isfinite(norm):
            raise NotFiniteError(f"the gradient of the {name} is NaN or infinite")

    def _note(self, numbers: Tensor) -> None:
        assert self.spoilt is not None
        self.spoilt = torch.maximum(self.spoilt, (~torch.isfinite(numbers)).any().float())


class Healthy(Storable):
    """The part of `WorldModelAgent` that leaves out spoilt updates.

    Each optimiser refuses a step that would spoil its weights, so what the update did before it met the fault stays,
    and what comes after is left out.
    """

    checks: Checks
    noise: Noise
    clip: float
    """Largest gradient norm of each network."""
    max_skipped_updates: int
    _skipped_updates = 0
    _skipped_in_a_row = 0

    def _world_loss(self, batch: SequenceBatch, world: World | None = None) -> WorldLoss:
        """The loss of the agent's world, or of another, on a batch, every part of it finite."""
        loss = (world or self.policy.world).loss(batch, self.noise)
        parts = {f"world's {name.removesuffix('_loss')} loss": part for name, part in loss.parts.items()}
        self.checks.require_finite(parts | {"world's loss": loss.total})
        return loss

    def _descend(self, name: str, loss: Tensor, module: nn.Module) -> Tensor:
        """One optimiser step on `loss`; returns the gradient's norm before clipping."""
        self.checks.require_finite({f"{name} loss": loss})
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), self.clip, foreach=True)
        self.optimizers[name].step()
        return norm

    @contextmanager
    def _skipping_spoilt(self) -> Iterator[None]:
        """One update; it ends where something is not finite.

        Raises:
            DivergedError: after `max_skipped_updates` in a row, when the agent has been saved.
        """
        buffers = floating_buffers(self.policy)  # normalisers move before the losses that they scale are checked
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        try:
            yield
        except NotFiniteError as fault:
            for name, buffer in buffers.items():
                buffer.copy_(before[name])
            self._skip(fault)
        else:
            self._n_updates += 1
            self._skipped_in_a_row = 0

    def _skip(self, fault: NotFiniteError) -> None:
        self._skipped_updates += 1
        self._skipped_in_a_row += 1
        log.warning("Update %d left out: %s.", self._n_updates + 1, fault)
        if self._skipped_in_a_row >= self.max_skipped_updates:
            self._give_up(fault)

    def note_skipped(self, count: int, in_a_row: int) -> None:
        """What a device has noted (`agents.captured`) of updates that were counted as if they had gone well.

        Args:
            count: spoilt updates since the last time.
            in_a_row: how many the last ones are.

        Raises:
            DivergedError: see `_skipping_spoilt`.
        """
        if not count:
            return
        self._n_updates -= count
        self._skipped_updates += count
        log.warning("%d updates before number %d were left out.", count, self._n_updates + 1)
        self._skipped_in_a_row = in_a_row
        if in_a_row >= self.max_skipped_updates:
            self._give_up(NotFiniteError("a number in it is NaN or infinite"))

    def _give_up(self, fault: Exception) -> NoReturn:
        try:
            path = self.save(self._emergency_path("diverged"), include=self.replay_to_include)
            kept = f"The agent with the weights from before them is saved to {path}."
        except CheckpointError as error:
            kept = f"It is not saved: {error}"
        raise DivergedError(
            f"{self._skipped_in_a_row} updates in a row were spoilt, the last one because {fault}. {kept} Lower the "
            "learning rates, or look at the size of the environment's rewards and observations."
        ) from fault


def floating_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Running averages and the like, by name."""
    return {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
