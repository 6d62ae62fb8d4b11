"""World Models' V: its size, and its objective with the floor under the KL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.nets.coders import CoderConfig
from wmgym.nets.vae import VAE, Code
from wmgym.random import ModeNoise, TorchNoise

PICTURES = {"observation": spaces.Box(0, 255, (64, 64, 3), np.uint8)}
VECTORS = {"observation": spaces.Box(-np.inf, np.inf, (3,))}


@pytest.mark.parametrize(("size", "parameters"), [(32, 4_348_547), (64, 4_446_915)])
def test_it_has_as_many_parameters_as_the_papers(size: int, parameters: int) -> None:
    vae = VAE(PICTURES, size, CoderConfig(depth=32, squash=True), free_nats=size / 2)
    assert sum(p.numel() for p in vae.parameters()) == parameters


def test_the_loss_of_pictures_equals_a_slow_version() -> None:
    torch.manual_seed(0)
    vae = VAE(PICTURES, 3, CoderConfig(depth=2, squash=True), free_nats=0.0)
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    code, terms = vae.loss({"observation": pictures}, TorchNoise(torch.Generator().manual_seed(1)))
    latent = code.sample(TorchNoise(torch.Generator().manual_seed(1)))
    drawn = vae.decoder(latent)["observation"].detach().numpy() + 0.5  # in [0, 1]
    for i in range(2):
        error = float(((drawn[i] - pictures[i].numpy() / 255) ** 2).sum())
        kl = sum(
            0.5 * (mean**2 + math.exp(log_variance) - 1 - log_variance)
            for mean, log_variance in zip(code.mean[i].tolist(), code.log_variance[i].tolist())
        )
        assert terms["observation"][i].item() == pytest.approx(error, rel=1e-4)
        assert terms["kl"][i].item() == pytest.approx(kl, rel=1e-4)
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_the_scale_is_the_weight_of_the_error_alone() -> None:
    observation = {"observation": torch.randn(5, 3)}
    terms = []
    for scale in (1.0, 8.0):
        torch.manual_seed(0)
        vae = VAE(VECTORS, 2, CoderConfig(units=8, layers=1), free_nats=0.0, scale=scale)
        terms.append(vae.loss(observation, TorchNoise(torch.Generator().manual_seed(1)))[1])
    torch.testing.assert_close(terms[1]["observation"], 8 * terms[0]["observation"])
    torch.testing.assert_close(terms[1]["kl"], terms[0]["kl"])


def test_the_floor_is_under_the_sum_of_all_latents_kl() -> None:
    mean = torch.zeros(2, 8)
    mean[0, 0] = 6.0  # 18 nats in one latent, none in the rest
    mean[1] = 0.5  # 1 nat in all together
    torch.testing.assert_close(Code(mean, torch.zeros(2, 8)).kl(), torch.tensor([18.0, 1.0]))

    vae = VAE(VECTORS, 8, CoderConfig(units=8, layers=1), free_nats=4.0)
    with torch.no_grad():
        vae.code.weight.zero_()
        vae.code.bias.zero_()
        vae.code.bias[:8] = mean[1]
    _, terms = vae.loss({"observation": torch.zeros(1, 3)}, ModeNoise())
    assert terms["kl"].item() == 4.0
    terms["kl"].sum().backward()
    assert vae.code.bias.grad is not None
    assert not vae.code.bias.grad.any()  # below the floor nothing presses
    with torch.no_grad():
        vae.code.bias[:8] = mean[0]
    _, terms = vae.loss({"observation": torch.zeros(1, 3)}, ModeNoise())
    terms["kl"].sum().backward()
    torch.testing.assert_close(vae.code.bias.grad[:8], mean[0])  # above it all of the KL does


def test_it_learns_to_see() -> None:
    torch.manual_seed(0)
    vae = VAE(VECTORS, 2, CoderConfig(units=32, layers=1, symlog=False), free_nats=1.0)
    optimizer, noise = torch.optim.Adam(vae.parameters(), 3e-3), TorchNoise()
    places = torch.rand(512, 1) * 4 - 2
    seen = {"observation": torch.cat([places, -2 * places, places**2], -1)}  # one number tells all three
    blind = (seen["observation"] - seen["observation"].mean(0)).square().sum(-1).mean()
    for _ in range(300):
        _, terms = vae.loss(seen, noise)
        optimizer.zero_grad()
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        optimizer.step()
    assert terms["observation"].mean() < 0.2 * blind
