"""Action distributions against torch.distributions, SciPy and numerical integration; actors and critics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import integrate, stats
from torch import Tensor
from torch import distributions as td

from agents.actors import Actor, BoundedNormal, Critic, OneHot, TanhNormal, TruncatedNormal
from wmgym.nets.distributions import TwoHot
from wmgym.random import ModeNoise, TorchNoise

MEANS = [-0.999, -0.6, 0.0, 0.3, 0.999]
STDS = [0.1, 0.5, 2.1]
Continuous = TanhNormal | TruncatedNormal | BoundedNormal


class Given:
    """Noise that is always the numbers given."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def normal(self, *shape: int) -> Tensor:
        return self.numbers.reshape(shape)

    uniform = gumbel = normal


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def grid() -> tuple[Tensor, Tensor]:
    """All pairs of `MEANS` and `STDS`, `(N, 1)` each."""
    pairs = torch.cartesian_prod(torch.tensor(MEANS, dtype=torch.float64), torch.tensor(STDS, dtype=torch.float64))
    return pairs[:, :1], pairs[:, 1:]


def truncated(mean: float, std: float) -> stats.rv_continuous:
    return stats.truncnorm((-1 - mean) / std, (1 - mean) / std, loc=mean, scale=std)


def density(kind: type[Continuous], mean: float, std: float, action: float) -> float:
    parts = (torch.tensor([x], dtype=torch.float64) for x in (mean, std))
    return kind(*parts).log_prob(torch.tensor([action], dtype=torch.float64)).exp().item()


# -- statistics -----------------------------------------------------------------------------------------------


def test_statistics_follow_the_papers() -> None:
    raw = 3 * torch.randn(20, 4, dtype=torch.float64)
    m, s = raw[:, :2], raw[:, 2:]
    tanh = TanhNormal.from_stats(raw, init_std=5.0, min_std=1e-4)
    assert torch.allclose(tanh.mean, 5 * torch.tanh(m / 5))
    assert torch.allclose(tanh.std, torch.log1p(torch.exp(s + math.log(math.exp(5) - 1))) + 1e-4)
    cut = TruncatedNormal.from_stats(raw, min_std=0.1)
    assert torch.allclose(cut.mean, torch.tanh(m))
    assert torch.allclose(cut.std, 2 / (1 + torch.exp(-s / 2)) + 0.1)
    bounded = BoundedNormal.from_stats(raw, min_std=0.1, max_std=1.0)
    assert torch.allclose(bounded.mean, torch.tanh(m))
    assert torch.allclose(bounded.std, 0.9 / (1 + torch.exp(-s - 2)) + 0.1)


# -- Normals --------------------------------------------------------------------------------------------------


def test_bounded_normal_is_a_normal() -> None:
    mean, std = grid()
    ours, theirs = BoundedNormal(mean, std), td.Independent(td.Normal(mean, std), 1)
    action = torch.randn_like(mean)
    assert torch.allclose(ours.log_prob(action), theirs.log_prob(action))
    assert torch.allclose(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), mean)


def test_tanh_normal_density_equals_torchs() -> None:
    mean, std = (x.expand(-1, 3) for x in grid())
    theirs = td.TransformedDistribution(td.Normal(mean, std), td.TanhTransform())
    action = torch.tanh(mean + std * torch.randn_like(mean)).clamp(-0.9999, 0.9999)
    assert torch.allclose(TanhNormal(mean, std).log_prob(action), theirs.log_prob(action).sum(-1), atol=1e-8)
    assert torch.allclose(TanhNormal(mean, std).entropy(), td.Normal(mean, std).entropy().sum(-1))
    assert torch.equal(TanhNormal(mean, std).mode(), torch.tanh(mean))


def test_tanh_normal_density_stays_finite_at_the_edges() -> None:
    policy = TanhNormal(torch.zeros(2, 1, requires_grad=True), torch.ones(2, 1))
    log_prob = policy.log_prob(torch.tensor([[-1.0], [1.0]]))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(policy.mean.grad).all()


def test_truncated_normal_density_and_entropy_equal_scipys() -> None:
    mean, std = grid()
    ours = TruncatedNormal(mean, std)
    action = torch.rand_like(mean) * 2 - 1
    for i in range(len(mean)):
        theirs = truncated(mean[i].item(), std[i].item())
        assert ours.log_prob(action)[i].item() == pytest.approx(theirs.logpdf(action[i].item()), abs=1e-8)
        assert ours.entropy()[i].item() == pytest.approx(float(theirs.entropy()), abs=1e-8)


@pytest.mark.parametrize("mean", [-0.9, 0.4])
@pytest.mark.parametrize("std", STDS)
def test_truncated_normal_entropy_is_that_of_its_density(mean: float, std: float) -> None:
    def surprise(action: float) -> float:
        p = density(TruncatedNormal, mean, std, action)
        return -p * math.log(p) if p > 0 else 0.0

    entropy, _ = integrate.quad(surprise, -1, 1, points=[mean])
    ours = TruncatedNormal(torch.tensor([mean]), torch.tensor([std])).entropy().item()
    assert ours == pytest.approx(entropy, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(TruncatedNormal, -1, 1), (TanhNormal, -1 + 1e-6, 1 - 1e-6), (BoundedNormal, -12, 12)],
)
@pytest.mark.parametrize(("mean", "std"), [(-0.6, 0.3), (0.2, 1.0)])
def test_densities_integrate_to_one(kind: type[Continuous], low: float, high: float, mean: float, std: float) -> None:
    mass, _ = integrate.quad(lambda a: density(kind, mean, std, a), low, high, points=[math.tanh(mean), mean])
    assert mass == pytest.approx(1, abs=1e-5)


# -- draws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TanhNormal, TruncatedNormal])
def test_draws_stay_inside_the_bounds(kind: type[Continuous]) -> None:
    mean, std = (x.float().expand(-1, 5000) for x in grid())
    draws = kind(mean, std).sample(TorchNoise())
    assert draws.abs().max() <= 1
    assert draws.min() < -0.99
    assert draws.max() > 0.99


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-24])
def test_extreme_noise_gives_finite_truncated_draws_and_gradients(u: float) -> None:
    mean = torch.tensor([[-1.0, 0.0, 1.0]], requires_grad=True)
    std = torch.full((1, 3), 0.1, requires_grad=True)
    policy = TruncatedNormal(mean, std)
    draw = policy.sample(Given(torch.full((1, 3), u)))
    (draw + policy.log_prob(draw)).sum().backward()
    assert draw.abs().max() <= 1
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(std.grad).all()


def test_truncated_draws_invert_the_distribution_function() -> None:
    mean, std = grid()
    u = torch.rand_like(mean) * 0.98 + 0.01
    draws = TruncatedNormal(mean, std).sample(Given(u))
    for i in range(len(mean)):
        assert draws[i].item() == pytest.approx(truncated(mean[i].item(), std[i].item()).ppf(u[i].item()), abs=1e-5)


@pytest.mark.parametrize("kind", [TanhNormal, TruncatedNormal, BoundedNormal])
def test_draws_have_the_density_that_is_claimed(kind: type[Continuous]) -> None:
    mean, std, count = 0.4, 0.6, 20_000
    policy = kind(torch.full((count, 1), mean), torch.full((count, 1), std))
    draws = policy.sample(TorchNoise(torch.Generator().manual_seed(0))).flatten().numpy()
    for low, high in ((-0.9, -0.2), (-0.2, 0.5), (0.5, 0.9)):
        mass, _ = integrate.quad(lambda a: density(kind, mean, std, a), low, high)
        assert np.mean((draws > low) & (draws < high)) == pytest.approx(mass, abs=5 * math.sqrt(0.25 / count))


@pytest.mark.parametrize("kind", [TanhNormal, TruncatedNormal, BoundedNormal])
def test_draws_carry_the_gradient_of_mean_and_deviation(kind: type[Continuous]) -> None:
    mean = torch.tensor([[-0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    std = torch.tensor([[0.3, 0.8]], dtype=torch.float64, requires_grad=True)
    noise = Given(torch.tensor([[0.35, 0.8]], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda m, s: kind(m, s).sample(noise), (mean, std))
    assert torch.autograd.gradcheck(lambda m, s: kind(m, s).entropy(), (mean, std))
    action = torch.tensor([[0.2, -0.7]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: kind(m, s).log_prob(action), (mean, std))


# -- discrete actions -----------------------------------------------------------------------------------------


def test_one_hot_equals_torchs_categorical() -> None:
    policy = OneHot.from_stats(torch.randn(6, 4, dtype=torch.float64), unimix=0.0)
    theirs = td.OneHotCategorical(probs=policy.log_probs.exp())
    action = theirs.sample()
    assert torch.allclose(policy.log_prob(action), theirs.log_prob(action))
    assert torch.allclose(policy.entropy(), theirs.entropy())
    assert torch.equal(policy.mode().argmax(-1), policy.log_probs.argmax(-1))
    assert torch.equal(policy.sample(ModeNoise()), policy.mode())


def test_one_hot_unimix_is_a_floor_under_every_choice() -> None:
    logits = torch.tensor([[300.0, 0.0, 1.0, -5.0]], dtype=torch.float64)
    probs = OneHot.from_stats(logits, unimix=0.1).log_probs.exp()
    assert torch.allclose(probs, 0.9 * torch.softmax(logits, -1) + 0.025)
    assert probs.min() >= 0.025 - 1e-12


def test_one_hot_draws_are_exact_and_straight_through() -> None:
    logits, weight = torch.randn(100, 4, requires_grad=True), torch.randn(100, 4)
    draw = OneHot.from_stats(logits, 0.0).sample(TorchNoise())
    assert torch.equal(draw.detach(), torch.nn.functional.one_hot(draw.argmax(-1), 4).float())
    (through,) = torch.autograd.grad((draw * weight).sum(), logits)
    (direct,) = torch.autograd.grad((torch.softmax(logits, -1) * weight).sum(), logits)
    assert torch.allclose(through, direct, atol=1e-6)


def test_one_hot_draws_follow_their_probabilities() -> None:
    probs, count = torch.tensor([0.15, 0.25, 0.6]), 40_000
    shares = OneHot(probs.log().expand(count, 3)).sample(TorchNoise(torch.Generator().manual_seed(0))).mean(0)
    assert torch.allclose(shares, probs, atol=5 * math.sqrt(0.25 / count))


# -- actors and critics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("tanh_normal", TanhNormal), ("truncated_normal", TruncatedNormal), ("bounded_normal", BoundedNormal)],
)
def test_actors_of_continuous_actions(kind: str, expected: type[Continuous]) -> None:
    actor = Actor(5, spaces.Box(-1, 1, (3,)), layers=1, units=8, kind=kind, min_std=0.2)  # type: ignore[arg-type]
    policy = actor(torch.randn(4, 2, 5))
    assert isinstance(policy, expected)
    assert policy.sample(TorchNoise()).shape == policy.mode().shape == (4, 2, 3)
    assert policy.entropy().shape == (4, 2)
    assert (policy.std >= 0.2).all()


def test_an_actor_that_starts_at_zero_has_the_deviation_asked_for() -> None:
    actor = Actor(5, spaces.Box(-1, 1, (3,)), layers=1, units=8, out_scale=0.0, init_std=1.5, min_std=0.1)
    policy = actor(torch.randn(2, 5))
    assert torch.equal(policy.mean, torch.zeros(2, 3))
    assert torch.allclose(policy.std, torch.tensor(1.6))


@pytest.mark.parametrize("kind", ["tanh_normal", "truncated_normal", "bounded_normal"])
def test_discrete_actions_are_one_hot_whatever_the_kind(kind: str) -> None:
    actor = Actor(5, spaces.Discrete(3), layers=1, units=8, kind=kind, unimix=0.3)  # type: ignore[arg-type]
    policy = actor(100 * torch.randn(4, 5))
    assert isinstance(policy, OneHot)
    assert policy.log_probs.exp().min() >= 0.1 - 1e-6
    assert torch.equal(policy.sample(TorchNoise()).sum(-1), torch.ones(4))


def test_critic_of_squared_error_sums_over_its_targets() -> None:
    critic = Critic(5, layers=1, units=8)
    features, returns, slow = torch.randn(3, 2, 5), torch.randn(3, 2), torch.randn(3, 2)
    values = critic(features)
    assert values.shape == (3, 2)
    expected = [-td.Normal(values, 1.0).log_prob(y) - 0.5 * math.log(2 * math.pi) for y in (returns, slow)]
    assert torch.allclose(critic.loss(features, returns), expected[0], atol=1e-6)
    assert torch.allclose(critic.loss(features, returns, slow), expected[0] + expected[1], atol=1e-6)


def test_two_hot_critic_starts_at_exactly_zero_and_classifies() -> None:
    critic = Critic(5, layers=1, units=8, two_hot=True, init="v3", out_scale=0.0)
    features, returns = torch.randn(3, 2, 5), 100 * torch.randn(3, 2)
    assert torch.equal(critic(features), torch.zeros(3, 2))
    assert torch.allclose(critic.loss(features, returns), torch.tensor(math.log(255.0)))
    torch.nn.init.normal_(critic.net[-1].weight)
    logits = critic.net(features)
    expected = -(TwoHot().encode(returns) * torch.log_softmax(logits, -1)).sum(-1)
    assert torch.allclose(critic.loss(features, returns), expected)


@pytest.mark.parametrize("two_hot", [False, True])
def test_critics_learn_values_of_any_size(two_hot: bool) -> None:
    critic = Critic(1, layers=1, units=32, two_hot=two_hot)
    features, target = torch.tensor([[-1.0], [1.0]]), torch.tensor([-3.0, 12.0])
    optimizer = torch.optim.Adam(critic.parameters(), 0.03)
    for _ in range(200):
        optimizer.zero_grad()
        critic.loss(features, target).mean().backward()
        optimizer.step()
    assert critic(features).tolist() == pytest.approx([-3, 12], rel=0.05)
