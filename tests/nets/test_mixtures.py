"""Mixtures of Gaussians: the likelihood against a slow version, and what the temperature does to draws."""

from __future__ import annotations

import math

import pytest
import torch

from wmgym.nets.mixtures import GaussianMixtures
from wmgym.random import ModeNoise, StreamNoise, TorchNoise

SIZE, COMPONENTS = 4, 3


def random_mixtures(groups: int, *lead: int) -> GaussianMixtures:
    torch.manual_seed(0)
    count = GaussianMixtures.stat_count(SIZE, COMPONENTS, groups)
    return GaussianMixtures.from_stats(torch.randn(*lead, count), SIZE, COMPONENTS, groups)


def density(x: float, mean: float, log_std: float) -> float:
    std = math.exp(log_std)
    return math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def slow_log_prob(mixtures: GaussianMixtures, x: torch.Tensor) -> float:
    """One row, number by number and component by component, with plain probabilities."""
    groups = mixtures.logits.shape[0]
    members = SIZE // groups
    total = 0.0
    for group in range(groups):
        weights = torch.softmax(mixtures.logits[group].double(), -1).tolist()
        probability = 0.0
        for k, weight in enumerate(weights):
            product = weight
            for d in range(group * members, (group + 1) * members):
                product *= density(float(x[d]), float(mixtures.mean[d, k]), float(mixtures.log_std[d, k]))
            probability += product
        total += math.log(probability)
    return total


@pytest.mark.parametrize("groups", [SIZE, 2, 1], ids=["factored", "in pairs", "joint"])
def test_log_prob_equals_a_slow_version(groups: int) -> None:
    mixtures, x = random_mixtures(groups, 5), torch.randn(5, SIZE)
    expected = [slow_log_prob(GaussianMixtures(*(part[i] for part in mixtures)), x[i]) for i in range(5)]
    torch.testing.assert_close(mixtures.log_prob(x), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_the_density_integrates_to_one() -> None:
    one = GaussianMixtures(torch.tensor([[0.3, -1.0]]), torch.tensor([[-1.0, 2.0]]), torch.tensor([[-0.5, 0.4]]))
    x = torch.linspace(-12, 14, 20_001, dtype=torch.float64)[:, None]
    total = one.log_prob(x).exp().sum() * (x[1] - x[0])
    assert total.item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.25])
def test_temperature_divides_the_logits_and_widens_by_its_root(temperature: float) -> None:
    rows, logits = 40_000, torch.tensor([1.0, 0.0])
    mixtures = GaussianMixtures(
        logits.expand(rows, 1, 2), torch.tensor([-100.0, 100.0]).expand(rows, 1, 2), torch.zeros(rows, 1, 2)
    )
    draws = mixtures.sample(TorchNoise(torch.Generator().manual_seed(0)), temperature).squeeze(-1)
    low = draws[draws < 0]
    expected = torch.softmax(logits / temperature, -1)[0].item()
    assert len(low) / rows == pytest.approx(expected, abs=0.01)
    assert low.std().item() == pytest.approx(math.sqrt(temperature), rel=0.03)
    assert low.mean().item() == pytest.approx(-100, abs=0.05)


def test_temperature_zero_is_the_mean_of_the_likeliest_component() -> None:
    mixtures = random_mixtures(SIZE, 6)
    chosen = mixtures.logits.argmax(-1, keepdim=True)
    expected = mixtures.mean.gather(-1, chosen).squeeze(-1)
    torch.testing.assert_close(mixtures.sample(TorchNoise(), temperature=0.0), expected)
    torch.testing.assert_close(mixtures.sample(ModeNoise()), expected)


def test_joint_mixtures_choose_once_for_all_numbers() -> None:
    def of_opposites(groups: int) -> torch.Tensor:
        mean = torch.tensor([-100.0, 100.0]).expand(500, SIZE, 2)
        mixtures = GaussianMixtures(torch.zeros(500, groups, 2), mean, torch.zeros(500, SIZE, 2))
        return (mixtures.sample(TorchNoise(torch.Generator().manual_seed(0))) > 0).float().mean(-1)

    assert set(of_opposites(1).tolist()) == {0.0, 1.0}
    assert len(set(of_opposites(SIZE).tolist())) > 2


def test_a_row_of_streams_draws_the_same_whatever_its_neighbours() -> None:
    mixtures = random_mixtures(SIZE, 3)
    alone = GaussianMixtures(*(part[1:2] for part in mixtures)).sample(StreamNoise(torch.tensor([8])))
    together = mixtures.sample(StreamNoise(torch.tensor([7, 8, 9])))
    torch.testing.assert_close(together[1:2], alone)
