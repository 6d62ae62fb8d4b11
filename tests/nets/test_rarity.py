"""Weights of pixels by the rarity of their colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.nets.coders import CoderConfig
from wmgym.nets.rarity import Rarity
from wmgym.nets.vae import VAE
from wmgym.random import ModeNoise, TorchNoise

BOXES = {"observation": spaces.Box(0, 255, (64, 64, 3), np.uint8)}


def scene(count: int, seed: int = 0) -> torch.Tensor:
    """Grey walls with noise, and in every picture a red spot of 2x2 pixels at one of 16 places."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 100 + torch.randint(0, 20, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)
    for picture, (i, j) in zip(pictures, torch.randint(0, 4, (count, 2), generator=generator).tolist()):
        row, column = 16 * i + 8, 16 * j + 8
        picture[row : row + 2, column : column + 2] = torch.tensor([255, 40, 0], dtype=torch.uint8)
    return pictures


def test_weights_equal_a_slow_version() -> None:
    rarity, pictures = Rarity(BOXES, 0.5), scene(3)
    rarity.take({"observation": pictures})
    colours = [tuple(pixel) for pixel in (pictures // 32).reshape(-1, 3).tolist()]
    share = {colour: colours.count(colour) / len(colours) for colour in set(colours)}
    slow = np.array([share[colour] ** -0.5 for colour in colours])
    weights = rarity.weights({"observation": pictures})["observation"]
    assert weights.shape == (3, 64, 64, 1)
    np.testing.assert_allclose(weights.flatten().numpy(), slow / slow.mean(), rtol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_mean_over_all_pixels_seen_is_one(power: float) -> None:
    rarity = Rarity(BOXES, power)
    batches = [scene(4, seed) for seed in range(3)]
    for pictures in batches:
        rarity.take({"observation": pictures})
    weights = torch.cat([rarity.weights({"observation": pictures})["observation"] for pictures in batches])
    assert weights.mean().item() == pytest.approx(1, rel=1e-4)
    assert (weights.max() / weights.min()).item() == pytest.approx({0.0: 1, 0.5: 32, 1.0: 1023}[power], rel=0.02)


def test_before_anything_was_seen_all_pixels_count_alike() -> None:
    assert (Rarity(BOXES, 0.5).weights({"observation": scene(2)})["observation"] == 1).all()


def test_a_colour_never_seen_counts_much_but_not_without_end() -> None:
    rarity = Rarity(BOXES, 1.0)
    rarity.take({"observation": torch.zeros(1, 64, 64, 3, dtype=torch.uint8)})
    new = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    assert rarity.weights({"observation": new})["observation"].max().item() == pytest.approx(1e5)


def test_grey_pictures_and_vectors() -> None:
    rarity = Rarity({"camera": spaces.Box(0, 255, (4, 4, 1), np.uint8), "speed": spaces.Box(-1, 1, (2,))}, 0.5)
    picture = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    picture[0, 0, 0] = 255
    rarity.take({"camera": picture, "speed": torch.zeros(1, 2)})
    weights = rarity.weights({"camera": picture, "speed": torch.zeros(1, 2)})
    assert weights.keys() == {"camera"}
    assert weights["camera"][0, 0, 0, 0] > 2 > weights["camera"][0, 1, 1, 0]


def test_only_training_counts_colours() -> None:
    vae = VAE(BOXES, 4, CoderConfig(depth=2, squash=True), free_nats=0.0, rarity=0.5)
    rarity = vae.rarity
    assert rarity is not None
    vae.train().loss({"observation": scene(2)}, ModeNoise())
    vae.eval().loss({"observation": scene(2)}, ModeNoise())
    assert rarity.batches == 1


def test_v_tells_what_is_small_and_rare() -> None:
    """A spot is at one of 16 places. After as many updates V with rarity draws it there, and V without draws wall."""
    drawn = {}
    for power in (0.0, 0.5):
        torch.manual_seed(0)
        config = CoderConfig(depth=4, squash=True, image="patches", image_act="silu", image_norm="layer")
        vae = VAE(BOXES, 4, config, free_nats=0.0, scale=1.0, rarity=power)
        optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
        noise = TorchNoise(torch.Generator().manual_seed(1))
        for step in range(200):
            _, terms = vae.loss({"observation": scene(64, step)}, noise)
            optimizer.zero_grad()
            torch.stack([term.mean() for term in terms.values()]).sum().backward()
            optimizer.step()
        drawn[power] = redness_told(vae)
    assert drawn[0.0] < 0.2 < 0.8 < drawn[0.5], drawn


def redness_told(vae: VAE) -> float:
    """How much redder than the wall the spots are drawn, over how much redder they are."""
    pictures = scene(64, 1000)
    with torch.no_grad():
        drawn = vae.decoder.observation(vae.encode({"observation": pictures}).mean)["observation"]
    spots = pictures[..., 0] == 255
    return float((drawn[..., 0][spots].float().mean() - 110) / (255 - 110))
