"""The optimiser of DreamerV3: LaProp with adaptive gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

_PIECE = 1 << 15
"""Numbers of a tensor that are updated at once on a CPU: with gradient and moments, half a megabyte."""
_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group; where it is a tensor, in its place, which a captured update reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class LaProp(Optimizer):
    """Clips every gradient by the size of its tensor, normalises it by its running size, then adds momentum.

    For a tensor `p` with gradient `g` at step `t`:

        g <- g / max(1, |g| / (clip * max(min_norm, |p|)))          (AGC, |.| over the whole tensor)
        v <- beta2 v + (1 - beta2) g^2
        m <- beta1 m + (1 - beta1) g / (sqrt(v / (1 - beta2^t)) + eps)
        p <- p - lr m / (1 - beta1^t)

    Adam divides the averaged gradient; LaProp averages divided gradients, so that a burst of large gradients
    cannot move `p` by more than `lr`. A warm-up is the caller's, through `lr` (for example
    `torch.optim.lr_scheduler.LinearLR`).

    Source: Ziyin et al., "LaProp" (2020); Brock et al., "High-Performance Large-Scale Image Recognition Without
    Normalization" (2021) for AGC; Hafner et al., DreamerV3 (code of 2024) for the combination.

    Args:
        params: tensors or parameter groups.
        lr: learning rate.
        betas: (beta1 of the momentum, beta2 of the running squares).
        eps: added to the root of the running squares.
        clip: largest norm of a gradient as a share of its tensor's norm; 0 turns clipping off.
        min_norm: what a tensor's norm counts for at least (tensors that start at zero must be able to move).
        foreach: do each operation for all tensors at once, with no number read back from the device; None: everywhere
            but on a CPU, where it is faster to finish piece after piece that fits into the cache.

    Attributes:
        found_inf: as PyTorch's fused optimisers have it: while this scalar on the device is not 0, steps of all tensors
            together change nothing. None: they always do.

    Raises:
        ValueError: if a setting is out of its range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimiser = LaProp([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> optimiser.step()
        >>> weight.detach()
        tensor([0.9000, 0.9000])
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        min_norm: float = 1e-3,
        foreach: bool | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("clip", clip)):
            if value < 0:
                raise ValueError(f"LaProp needs {name} >= 0, not {value}.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"LaProp needs both betas in [0, 1), not {betas}.")
        if min_norm <= 0:
            raise ValueError(f"LaProp needs min_norm > 0, not {min_norm}: a tensor of zeros could never move.")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "min_norm": min_norm, "foreach": foreach}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every tensor that has a gradient; the gradients themselves stay as they are.

        Args:
            closure: evaluates the loss again and returns it, where the caller wants it.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                # The count is a tensor, so that an update captured in a CUDA graph still counts.
                self.state[p] = {
                    "updates": torch.zeros((), device=p.device),
                    "squares": torch.zeros_like(p),
                    "momentum": torch.zeros_like(p),
                }
        foreach = group.get("foreach")
        if foreach or (foreach is None and params[0].device.type != "cpu"):
            self._step_together(params, group)
        else:
            self._step_in_turn(params, group)

    def _step_in_turn(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Tensor by tensor, the scalar factors of an equation as one number."""
        for p, shrink in zip(params, _shrinks(params, group["clip"], group["min_norm"]), strict=True):
            assert p.grad is not None  # for the type checker
            state = self.state[p]
            state["updates"] += 1
            updates = state["updates"].item()
            for piece in _pieces((p, p.grad, state["squares"], state["momentum"])):
                _step_piece(*piece, shrink, updates, group)

    def _step_together(self, params: list[Tensor], group: dict[str, Any]) -> None:
        updates, squares, momentum = (
            [self.state[p][name] for p in params] for name in ("updates", "squares", "momentum")
        )
        gradients = _clipped(params, group["clip"], group["min_norm"])
        beta1, beta2 = group["betas"]
        keep1, keep2, rate, seen = beta1, beta2, group["lr"], updates
        if self.found_inf is None:
            torch._foreach_add_(updates, 1)
        else:
            counted = 1.0 - self.found_inf
            gradients = [torch.where(counted > 0, gradient, 0.0) for gradient in gradients]
            keep1, keep2, rate = beta1**counted, beta2**counted, rate * counted
            torch._foreach_add_(updates, counted, alpha=1)  # without alpha PyTorch reads the number back
            seen = list(torch._foreach_clamp_min(updates, 1.0))

        torch._foreach_mul_(squares, keep2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        scale = torch._foreach_div(squares, _correction(beta2, seen))
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])

        torch._foreach_mul_(momentum, keep1)
        torch._foreach_addcdiv_(momentum, gradients, scale, 1 - beta1)
        change = torch._foreach_div(momentum, _correction(beta1, seen))
        torch._foreach_mul_(change, rate)
        torch._foreach_sub_(params, change)


def _step_piece(
    p: Tensor, gradient: Tensor, squares: Tensor, momentum: Tensor, shrink: float, updates: float, group: dict[str, Any]
) -> None:
    """The equations of `LaProp` for a piece of a tensor, after `updates` updates with this one."""
    beta1, beta2 = group["betas"]
    root = math.sqrt(1 - beta2**updates)
    if shrink != 1.0:  # before it is squared, which a burst would not survive
        gradient = gradient * shrink
    squares.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = squares.sqrt().add_(group["eps"] * root)
    momentum.mul_(beta1).addcdiv_(gradient, scale, value=(1 - beta1) * root)
    p.sub_(momentum, alpha=group["lr"] / (1 - beta1**updates))


def _pieces(tensors: _Four) -> Iterator[_Four]:
    """Tensors of one shape, cut alike into views that fit into a processor's cache together."""
    first = tensors[0]
    dense = all(tensor.stride() == first.stride() for tensor in tensors) and _is_dense(first)
    if first.numel() <= _PIECE or not dense:
        yield tensors
        return
    one, two, three, four = (tensor.as_strided((tensor.numel(),), (1,)).split(_PIECE) for tensor in tensors)
    yield from zip(one, two, three, four, strict=True)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its numbers lie side by side, in whatever order of dimensions."""
    size = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride != size:
            return False
        size *= length
    return True


def _shrinks(params: list[Tensor], clip: float, min_norm: float) -> list[float]:
    """What adaptive clipping multiplies each gradient by."""
    gradients = [p.grad for p in params if p.grad is not None]
    if clip == 0:
        return [1.0] * len(params)
    largest = clip * torch.stack(torch._foreach_norm(params)).clamp(min=min_norm)
    shrinks: list[float] = (largest / torch.stack(torch._foreach_norm(gradients))).clamp(max=1.0).tolist()
    return shrinks


def _correction(beta: float, updates: list[Tensor]) -> Any:
    """`1 - beta^t` of every tensor: the share of the average that is not its start at zero."""
    powers = torch._foreach_pow(beta, updates)
    torch._foreach_sub_(powers, 1)
    torch._foreach_neg_(powers)
    return list(powers)


def _clipped(params: list[Tensor], clip: float, min_norm: float) -> list[Tensor]:
    """The gradients after adaptive clipping, each by the norm of its whole tensor."""
    gradients = [p.grad for p in params if p.grad is not None]
    if clip == 0:
        return gradients
    largest = torch._foreach_norm(params)
    torch._foreach_clamp_min_(largest, min_norm)
    torch._foreach_mul_(largest, clip)
    ratio = torch._foreach_div(torch._foreach_norm(gradients), largest)
    torch._foreach_clamp_min_(ratio, 1.0)
    return list(torch._foreach_div(gradients, ratio))
