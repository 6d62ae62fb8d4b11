"""Streams: what a dream's chance must be like."""

from __future__ import annotations

import math

import pytest
import torch

from wmgym.random import ModeNoise, StreamNoise, TorchNoise

N = 200_000


def streams(*seeds: int) -> StreamNoise:
    return StreamNoise(torch.tensor(seeds))


def test_uniform_is_flat_on_the_unit_interval() -> None:
    u = streams(1).uniform(1, N)[0].double()
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, bins=20, min=0, max=1)
    chi_square = ((counts - N / 20) ** 2 / (N / 20)).sum()
    assert chi_square < 50  # 19 degrees of freedom: above 50 once in 10^4


def test_normal_has_the_moments_and_tails_of_a_normal() -> None:
    z = streams(2).normal(1, N)[0].double()
    assert abs(z.mean()) < 5 / math.sqrt(N)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / N)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / N)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / N)
    assert abs((z.abs() > 1.959964).double().mean() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / N)
    assert torch.isfinite(z).all()


def test_gumbel_draws_categories_by_their_odds() -> None:
    odds = torch.tensor([0.1, 0.2, 0.7])
    drawn = (odds.log() + streams(3).gumbel(1, N, 3)[0]).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / N
    assert torch.allclose(shares, odds, atol=5 * math.sqrt(0.25 / N))


@pytest.mark.parametrize("lag", [1, 2, 7, 64])
def test_a_stream_does_not_correlate_with_itself(lag: int) -> None:
    z = streams(4).normal(1, N)[0].double()
    assert abs((z[lag:] * z[:-lag]).mean()) < 5 / math.sqrt(N)


def test_neighbouring_seeds_do_not_correlate() -> None:
    z = StreamNoise(torch.arange(64)).normal(64, 4000).double()
    correlation = z @ z.T / 4000 - torch.diag((z**2).mean(-1))
    assert correlation.abs().max() < 6 / math.sqrt(4000)


def test_first_numbers_of_consecutive_seeds_are_flat() -> None:
    u = StreamNoise(torch.arange(N)).uniform(N, 1)[:, 0].double()
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert ((counts - N / 20) ** 2 / (N / 20)).sum() < 50


def test_a_row_depends_on_its_own_seed_only() -> None:
    many, one = streams(7, 8, 9), streams(8)
    assert torch.equal(many.normal(3, 5)[1], one.normal(1, 5)[0])
    assert torch.equal(many.uniform(3, 2, 2)[1], one.uniform(1, 2, 2)[0])
    assert torch.equal(many.gumbel(3, 4)[1], one.gumbel(1, 4)[0])


def test_the_same_numbers_whether_drawn_at_once_or_in_parts() -> None:
    at_once, parts = streams(5), streams(5)
    assert torch.equal(at_once.uniform(1, 6), torch.cat([parts.uniform(1, 2), parts.uniform(1, 4)], 1))


def test_reseeding_restarts_the_rows_named_and_no_other() -> None:
    noise, undisturbed = streams(1, 2), streams(1, 2)
    noise.uniform(2, 3), undisturbed.uniform(2, 3)
    noise.reseed(torch.tensor([1]), torch.tensor([40]))
    drawn = noise.uniform(2, 3)
    assert torch.equal(drawn[0], undisturbed.uniform(2, 3)[0])
    assert torch.equal(drawn[1], streams(40).uniform(1, 3)[0])


def test_a_wrong_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="2 streams cannot fill a batch of 3"):
        streams(1, 2).normal(3, 4)


def test_torch_noise_follows_its_generator() -> None:
    one, two = (TorchNoise(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.normal(4, 2), two.normal(4, 2))
    assert torch.equal(one.gumbel(4, 2), two.gumbel(4, 2))


def test_mode_noise_moves_nothing() -> None:
    noise = ModeNoise()
    assert not noise.normal(2, 3).any()
    assert not noise.gumbel(2, 3).any()
    assert (noise.uniform(2, 3) == 0.5).all()
