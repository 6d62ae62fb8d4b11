from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from wmgym.nets.optim import LaProp

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-20, "clip": 0.3, "min_norm": 1e-3}
Array = NDArray[np.float64]


class SlowLaProp:
    """The equations of DreamerV3's optimiser for one tensor, one after the other."""

    def __init__(self, parameter: Array) -> None:
        self.parameter = parameter
        self.squares, self.momentum, self.updates = np.zeros_like(parameter), np.zeros_like(parameter), 0

    def step(self, gradient: Array, lr: float, clip: float = 0.3) -> None:
        self.updates += 1
        if clip:
            largest = clip * max(1e-3, np.sqrt((self.parameter**2).sum()))
            gradient = gradient / max(1.0, np.sqrt((gradient**2).sum()) / largest)
        self.squares = 0.999 * self.squares + 0.001 * gradient**2
        normalised = gradient / (np.sqrt(self.squares / (1 - 0.999**self.updates)) + 1e-20)
        self.momentum = 0.9 * self.momentum + 0.1 * normalised
        self.parameter = self.parameter - lr * self.momentum / (1 - 0.9**self.updates)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(3)  # a bias as it starts: clipped by min_norm, not frozen
    return [
        nn.Parameter(p) for p in (torch.randn(4, 5, generator=generator), torch.randn((), generator=generator), zeros)
    ]


def gradients(step: int) -> list[torch.Tensor]:
    """Small ones and bursts, so that clipping is sometimes at work."""
    generator = torch.Generator().manual_seed(step)
    size = 100.0 if step % 5 == 3 else 0.01
    return [size * torch.randn(p.shape, generator=generator) for p in parameters()]


def give(params: list[nn.Parameter], step: int) -> None:
    for p, gradient in zip(params, gradients(step)):
        p.grad = gradient


@pytest.mark.parametrize("clip", [0.3, 0.0])
def test_it_follows_the_equations(clip: float) -> None:
    params = parameters()
    optimiser = LaProp(params, **{**SETTINGS, "clip": clip})
    slow = [SlowLaProp(p.detach().double().numpy()) for p in params]
    for step in range(30):
        optimiser.param_groups[0]["lr"] = lr = 1e-2 * min(1.0, (step + 1) / 10)  # the caller's warm-up
        give(params, step)
        optimiser.step()
        for p, gradient, expected in zip(params, gradients(step), slow):
            expected.step(gradient.double().numpy(), lr, clip)
            np.testing.assert_allclose(p.detach().numpy(), expected.parameter, rtol=1e-4, atol=1e-6)


def test_a_tensor_whose_gradient_comes_later_has_its_own_count() -> None:
    params = parameters()
    optimiser = LaProp(params, **SETTINGS)
    late = SlowLaProp(params[0].detach().double().numpy())
    for step in range(6):
        give(params, step)
        if step < 4:
            params[0].grad = None
        else:
            late.step(gradients(step)[0].double().numpy(), SETTINGS["lr"])
        optimiser.step()
    np.testing.assert_allclose(params[0].detach().numpy(), late.parameter, rtol=1e-4, atol=1e-6)


def test_a_burst_moves_no_number_by_more_than_lr() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimiser = LaProp(params, **SETTINGS)
    for p in params:
        p.grad = torch.full_like(p, 1e6)
    optimiser.step()
    for p, start in zip(params, before):
        torch.testing.assert_close(start - p.detach(), torch.full_like(p, SETTINGS["lr"]))


def test_gradients_are_left_as_they_were() -> None:
    params = parameters()
    give(params, 3)
    LaProp(params, **SETTINGS).step()
    for p, gradient in zip(params, gradients(3)):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)


def test_it_goes_on_from_its_state() -> None:
    params = parameters()
    optimiser = LaProp(params, **SETTINGS)
    for step in range(5):
        give(params, step)
        optimiser.step()
    resumed_params = copy.deepcopy(params)
    resumed = LaProp(resumed_params, lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for step in range(5, 10):
        for some, its in ((params, optimiser), (resumed_params, resumed)):
            give(some, step)
            its.step()
    for p, q in zip(params, resumed_params):
        assert torch.equal(p, q)


def test_it_returns_the_loss_of_a_closure_and_lowers_it() -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimiser = LaProp([weight], lr=0.05)

    def closure() -> float:
        optimiser.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    losses = [optimiser.step(closure) for _ in range(100)]
    assert losses[0] == pytest.approx(13.0)
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    ("setting", "name"),
    [({"lr": -1.0}, "lr"), ({"clip": -0.1}, "clip"), ({"betas": (0.9, 1.0)}, "betas"), ({"min_norm": 0.0}, "min_norm")],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        LaProp(parameters(), **setting)


def odd_parameters() -> list[nn.Parameter]:
    """More numbers than one piece, in the usual layout, as pictures with the channels last, and transposed."""
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(300, 250, generator=generator)
    pictures = torch.randn(64, 40, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(p) for p in (large, pictures, torch.randn(200, 200, generator=generator).t(), torch.ones(3))]


def test_piece_by_piece_equals_all_at_once() -> None:
    pieces, together = odd_parameters(), odd_parameters()
    optimisers = [LaProp(pieces, **SETTINGS, foreach=False), LaProp(together, **SETTINGS, foreach=True)]
    for step in range(12):
        size = 100.0 if step % 5 == 3 else 0.01
        for one, two in zip(pieces, together):
            one.grad = size * torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            two.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for one, two in zip(pieces, together):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_burst_that_has_no_square_in_float32_is_clipped() -> None:
    params = parameters()
    optimiser = LaProp(params, **SETTINGS)
    for p in params:
        p.grad = torch.full_like(p, 1e30)
    optimiser.step()
    assert all(torch.isfinite(p).all() for p in params)
    assert all(torch.isfinite(optimiser.state[p]["squares"]).all() for p in params)
