"""Weights of pixels by the rarity of their colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.nets.coders import CoderConfig
from wmgym.nets.rarity import Rarity
from wmgym.nets.vae import VAE
from wmgym.random import ModeNoise

BOXES = {"observation": spaces.Box(0, 255, (64, 64, 3), np.uint8)}


def scene(count: int, seed: int = 0) -> torch.Tensor:
    """Grey walls with noise, and in every picture a red spot of 2x2 pixels somewhere."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 100 + torch.randint(0, 20, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)
    for picture, (row, column) in zip(pictures, torch.randint(8, 54, (count, 2), generator=generator).tolist()):
        picture[row : row + 2, column : column + 2] = torch.tensor([255, 40, 0], dtype=torch.uint8)
    return pictures


def test_weights_equal_a_slow_version() -> None:
    rarity, pictures = Rarity(BOXES, 0.5), scene(3)
    rarity.take({"observation": pictures})
    colours = [tuple(pixel // 32) for pixel in pictures.reshape(-1, 3).tolist() for pixel in [np.array(pixel)]]
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


def test_v_learns_to_see_what_is_small_and_rare() -> None:
    """After as many updates on the same pictures V with rarity draws the spot, and V without draws wall."""
    missed = {}
    for power in (0.0, 0.5):
        torch.manual_seed(0)
        config = CoderConfig(depth=8, squash=True, image="patches", image_act="silu", image_norm="layer")
        vae = VAE(BOXES, 8, config, free_nats=0.0, scale=4.0, rarity=power)
        optimizer = torch.optim.Adam(vae.parameters(), 2e-3)
        for step in range(500):
            _, terms = vae.loss({"observation": scene(32, step)}, ModeNoise())
            optimizer.zero_grad()
            torch.stack([term.mean() for term in terms.values()]).sum().backward()
            optimizer.step()
        missed[power] = spots_missed(vae, scene(64, 1000))
    assert missed[0.5] < 0.7 < 0.9 < missed[0.0], missed


def spots_missed(vae: VAE, pictures: torch.Tensor) -> float:
    """Squared error on the spots' pixels, over that of a picture without them."""
    with torch.no_grad():
        drawn = vae.decoder.observation(vae.encode({"observation": pictures}).mean)["observation"].float()
    spots = pictures[..., 0] == 255
    wall = torch.full_like(drawn, 110.0)
    return float((drawn - pictures)[spots].square().sum() / (wall - pictures)[spots].square().sum())
