"""Squashing, two-hot regression, latents and divergences, against slow versions and torch.distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as td

from wmgym.nets.distributions import Categoricals, Gaussian, SymlogTwoHot, TwoHot, free_nats, symexp, symlog
from wmgym.random import ModeNoise, TorchNoise

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- symlog ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(numbers)
def test_symlog_follows_its_equation_and_symexp_undoes_it(x: float) -> None:
    squashed = symlog(torch.tensor(x, dtype=torch.float64))
    assert squashed.item() == pytest.approx(math.copysign(math.log(1 + abs(x)), x), rel=1e-9, abs=1e-15)
    assert symexp(squashed).item() == pytest.approx(x, rel=1e-9, abs=1e-15)


def test_symlog_is_the_identity_near_zero_in_float32() -> None:
    small = torch.tensor([-1e-9, 0.0, 1e-9])
    assert torch.allclose(symlog(small), small, rtol=1e-6, atol=0)
    assert torch.allclose(symexp(small), small, rtol=1e-6, atol=0)


def test_symlog_has_the_gradient_of_a_logarithm_on_both_sides() -> None:
    x = torch.tensor([-9.0, -0.5, 0.5, 9.0], requires_grad=True)
    symlog(x).sum().backward()
    assert torch.allclose(x.grad, 1 / (1 + x.detach().abs()))


# -- two-hot --------------------------------------------------------------------------------------------------


def slow_two_hot(bins: list[float], x: float) -> list[float]:
    """DreamerV3 eq. 10: shares of the two neighbours of x, so that their mean is x."""
    weights = [0.0] * len(bins)
    if x <= bins[0]:
        weights[0] = 1.0
    elif x >= bins[-1]:
        weights[-1] = 1.0
    else:
        k = max(i for i, edge in enumerate(bins) if edge <= x)
        weights[k + 1] = (x - bins[k]) / (bins[k + 1] - bins[k])
        weights[k] = 1 - weights[k + 1]
    return weights


def test_bins_are_symexp_of_equal_steps_and_mirror_each_other() -> None:
    bins = TwoHot(255, 20.0).bins
    steps = [-20 + 40 * i / 254 for i in range(255)]
    assert torch.allclose(bins.double(), torch.tensor([math.copysign(math.expm1(abs(s)), s) for s in steps]).double())
    assert torch.equal(bins, -bins.flip(0))
    assert bins[127] == 0


def test_an_even_number_of_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="odd number of bins"):
        TwoHot(bins=254)


@pytest.mark.parametrize("x", [0.0, 1e-7, -1e-3, 0.17, 1.0, -3.7, 250.0, -1e4, 3e8, -4.8e8, 1e12, -math.inf, math.inf])
def test_encode_equals_the_slow_version(x: float) -> None:
    head = TwoHot()
    expected = slow_two_hot(head.bins.double().tolist(), x)
    assert head.encode(torch.tensor([x]))[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_encode_of_a_bin_is_that_bin_alone() -> None:
    head = TwoHot(bins=21, limit=5.0)
    assert torch.allclose(head.encode(head.bins), torch.eye(21))


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=6))
def test_codes_are_distributions_on_two_neighbours(values: list[float]) -> None:
    code = TwoHot().encode(torch.tensor(values))
    assert (code >= 0).all()
    assert torch.allclose(code.sum(-1), torch.ones(len(values)))
    for row in code:
        used = row.nonzero().flatten().tolist()
        assert len(used) == 1 or (len(used) == 2 and used[1] == used[0] + 1)


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 6), st.sampled_from([-1, 1]))
def test_round_trip_from_a_thousandth_to_a_million(exponent: float, sign: int) -> None:
    head = TwoHot()
    x = torch.tensor([sign * 10**exponent])
    decoded = head.mean(torch.log(head.encode(x)))
    assert decoded.item() == pytest.approx(x.item(), rel=1e-4)


def test_mean_keeps_its_shape_and_weighs_the_bins() -> None:
    head = TwoHot(bins=31, limit=3.0)
    logits = randn(2, 3, 31).float()
    slow = (torch.softmax(logits.double(), -1) * head.bins.double()).sum(-1)
    assert head.mean(logits).shape == (2, 3)
    assert torch.allclose(head.mean(logits).double(), slow, atol=1e-5)


def test_loss_and_gradient_are_those_of_the_whole_code_to_the_last_bit() -> None:
    head = TwoHot()
    logits, target = randn(40, 255).float(), 100 * randn(40).float()
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    quick, whole = head.loss(one, target), -(head.encode(target) * torch.log_softmax(two, -1)).sum(-1)
    (quick.sum() + whole.sum()).backward()
    assert torch.equal(quick, whole)
    assert one.grad is not None
    assert two.grad is not None
    assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("level", [0.0, -7.3, 55.0])
def test_equal_logits_mean_exactly_zero(level: float) -> None:
    assert TwoHot().mean(torch.full((4, 255), level)).tolist() == [0.0] * 4


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 4), st.sampled_from([-1, 1]))
def test_symlog_two_hot_comes_back_over_its_whole_range(exponent: float, sign: int) -> None:
    head = SymlogTwoHot()
    x = torch.tensor([sign * 10**exponent])
    assert head.mean(torch.log(head.encode(x))).item() == pytest.approx(x.item(), rel=1e-3, abs=1e-5)


def test_symlog_two_hot_means_before_the_symlog_is_undone() -> None:
    head = SymlogTwoHot(bins=3, limit=2.0)  # -2, 0, 2
    half = torch.log(torch.tensor([[1e-30, 0.5, 0.5]]))
    assert head.mean(half).item() == pytest.approx(math.expm1(1.0), rel=1e-5)
    assert TwoHot(bins=3, limit=2.0).mean(half).item() == pytest.approx(math.expm1(2.0) / 2, rel=1e-5)
    logits, target = randn(5, 3).float(), randn(5).float()
    slow = -(head.encode(target) * torch.log_softmax(logits, -1)).sum(-1)
    assert torch.allclose(head.loss(logits, target), slow)


def test_loss_is_the_cross_entropy_and_is_least_at_the_target() -> None:
    head = TwoHot()
    target = torch.tensor([[0.3, -20.0, 1e5]])
    logits = randn(1, 3, 255).float()
    slow = torch.zeros(1, 3)
    for i in range(3):
        code = slow_two_hot(head.bins.double().tolist(), target[0, i].item())
        log_probs = logits[0, i].double() - torch.logsumexp(logits[0, i].double(), -1)
        slow[0, i] = -sum(w * lp for w, lp in zip(code, log_probs.tolist(), strict=True))
    assert torch.allclose(head.loss(logits, target), slow, rtol=1e-4)
    code = head.encode(target)
    least = -torch.xlogy(code, code).sum(-1)
    assert torch.allclose(head.loss(torch.log(code + 1e-30), target), least, atol=1e-4)


def test_loss_pulls_probabilities_towards_the_code() -> None:
    head = TwoHot(bins=11, limit=2.0)
    logits, target = randn(11).float().requires_grad_(), torch.tensor(0.7)
    head.loss(logits, target).backward()
    assert torch.allclose(logits.grad, torch.softmax(logits.detach(), -1) - head.encode(target), atol=1e-6)


# -- Gaussian latents -----------------------------------------------------------------------------------------


def gaussians() -> tuple[Gaussian, Gaussian]:
    mean, other = randn(3, 2, 5), randn(3, 2, 5, seed=1)
    return Gaussian(mean, randn(3, 2, 5, seed=2).exp()), Gaussian(other, randn(3, 2, 5, seed=3).exp())


def test_gaussian_divergence_and_entropy_equal_torch_distributions() -> None:
    q, p = gaussians()
    assert torch.allclose(q.kl(p), td.kl_divergence(td.Normal(*q), td.Normal(*p)).sum(-1))
    assert torch.allclose(q.entropy(), td.Normal(*q).entropy().sum(-1))
    assert q.kl(q).abs().max() < 1e-12


def test_gaussian_statistics_are_mean_and_softplus_above_a_floor() -> None:
    stats = 30 * randn(4, 6)
    latent = Gaussian.from_stats(stats, min_std=0.1)
    assert torch.equal(latent.mean, stats[:, :3])
    assert torch.allclose(latent.std, torch.logaddexp(stats[:, 3:], torch.zeros(())) + 0.1)
    assert (latent.std >= 0.1).all()


def test_gaussian_draws_are_reparameterised_and_scaled_by_temperature() -> None:
    q, _ = gaussians()
    draw = TorchNoise(torch.Generator().manual_seed(0)).normal(3, 2, 5)
    for temperature in (0.0, 1.0, 1.5):
        sample = q.sample(TorchNoise(torch.Generator().manual_seed(0)), temperature)
        assert torch.allclose(sample, q.mean + temperature * q.std * draw)
    assert torch.equal(q.sample(ModeNoise()), q.mean)
    mean, std = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    Gaussian(mean, std).sample(TorchNoise(torch.Generator().manual_seed(1))).sum().backward()
    assert torch.equal(mean.grad, torch.ones(1, 3))
    assert torch.allclose(std.grad, TorchNoise(torch.Generator().manual_seed(1)).normal(1, 3))


# -- categorical latents --------------------------------------------------------------------------------------


def test_categorical_divergence_and_entropy_equal_torch_distributions() -> None:
    q = Categoricals.from_stats(randn(3, 2, 4 * 6), classes=6, unimix=0.01)
    p = Categoricals.from_stats(randn(3, 2, 4 * 6, seed=1), classes=6, unimix=0.01)
    theirs_q, theirs_p = (td.Categorical(probs=x.log_probs.exp()) for x in (q, p))
    assert q.log_probs.shape == (3, 2, 4, 6)
    assert torch.allclose(q.kl(p), td.kl_divergence(theirs_q, theirs_p).sum(-1))
    assert torch.allclose(q.entropy(), theirs_q.entropy().sum(-1))


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
def test_unimix_mixes_with_the_uniform_distribution(unimix: float) -> None:
    stats = 3 * randn(5, 4 * 6)
    probs = Categoricals.from_stats(stats, classes=6, unimix=unimix).log_probs.exp()
    for row in range(5):
        for latent in range(4):
            odds = np.exp(stats[row, 6 * latent : 6 * latent + 6].numpy())
            expected = (1 - unimix) * odds / odds.sum() + unimix / 6
            assert np.allclose(probs[row, latent].numpy(), expected)


def test_unimix_keeps_certain_latents_finite() -> None:
    certain = 1000 * torch.eye(6).reshape(1, 36)
    q, p = (Categoricals.from_stats(x, classes=6, unimix=0.01) for x in (certain, certain.flip(-1)))
    assert q.log_probs.exp().min().item() == pytest.approx(0.01 / 6, rel=1e-5)
    assert torch.isfinite(q.kl(p)).all()


def test_straight_through_draws_one_hot_vectors_with_the_gradient_of_the_probabilities() -> None:
    stats = randn(50, 4 * 6).float().requires_grad_()
    weight = randn(50, 4 * 6, seed=1).float()
    sample = Categoricals.from_stats(stats, 6, 0.01).sample(TorchNoise(torch.Generator().manual_seed(0)))
    latents = sample.detach().unflatten(-1, (4, 6))
    assert torch.equal(latents, torch.nn.functional.one_hot(latents.argmax(-1), 6).float())  # to the last bit
    (through,) = torch.autograd.grad((sample * weight).sum(), stats)
    probs = Categoricals.from_stats(stats, 6, 0.01).log_probs.exp().flatten(-2)
    (direct,) = torch.autograd.grad((probs * weight).sum(), stats)
    assert torch.allclose(through, direct, atol=1e-7)
    assert through.abs().max() > 0


def test_without_noise_a_categorical_draw_is_its_mode() -> None:
    latent = Categoricals.from_stats(randn(7, 3 * 5), 5, 0.0)
    drawn = latent.sample(ModeNoise()).unflatten(-1, (3, 5)).argmax(-1)
    assert torch.equal(drawn, latent.log_probs.argmax(-1))


def test_at_temperature_zero_a_categorical_draw_is_its_mode() -> None:
    latent = Categoricals.from_stats(randn(7, 3 * 5), 5, 0.0)
    drawn = latent.sample(TorchNoise(torch.Generator().manual_seed(0)), 0.0).unflatten(-1, (3, 5)).argmax(-1)
    assert torch.equal(drawn, latent.log_probs.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_sharpens_or_flattens_categorical_draws(temperature: float) -> None:
    probs, count = torch.tensor([0.1, 0.3, 0.6]), 40_000
    latent = Categoricals(probs.log().expand(count, 1, 3))
    shares = latent.sample(TorchNoise(torch.Generator().manual_seed(0)), temperature).mean(0)
    expected = probs ** (1 / temperature)
    assert torch.allclose(shares, expected / expected.sum(), atol=5 * math.sqrt(0.25 / count))


@pytest.mark.parametrize(
    "build",
    [lambda x: Gaussian.from_stats(x, 0.1), lambda x: Categoricals.from_stats(x, 3, 0.01)],
    ids=["gaussian", "categorical"],
)
def test_a_detached_latent_has_the_same_values_and_no_graph(build: Callable[[Tensor], Gaussian | Categoricals]) -> None:
    latent = build(randn(2, 6).requires_grad_())
    for attached, detached in zip(latent, latent.detach(), strict=True):
        assert torch.equal(attached, detached)
        assert attached.requires_grad
        assert not detached.requires_grad


# -- free nats ------------------------------------------------------------------------------------------------


def test_free_nats_per_step_clip_every_step() -> None:
    kl = torch.tensor([[0.2, 3.0], [1.5, 0.9]], requires_grad=True)
    clipped = free_nats(kl, 1.0, per_step=True)
    assert torch.equal(clipped.detach(), torch.tensor([[1.0, 3.0], [1.5, 1.0]]))
    clipped.sum().backward()
    assert torch.equal(kl.grad, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize(("free", "gradient"), [(1.0, 0.25), (2.0, 0.0)])
def test_free_nats_of_the_mean_clip_all_steps_or_none(free: float, gradient: float) -> None:
    kl = torch.tensor([[0.2, 3.0], [1.5, 0.9]], requires_grad=True)  # mean 1.4
    mean = free_nats(kl, free, per_step=False).mean()
    assert mean.item() == pytest.approx(max(1.4, free))
    mean.backward()
    assert torch.allclose(kl.grad, torch.full((2, 2), gradient))
