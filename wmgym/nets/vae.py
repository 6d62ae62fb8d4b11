"""The variational autoencoder that gives a world its eyes: World Models' V."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.nets.coders import CoderConfig, Decoder, Encoder
from wmgym.nets.mlp import linear
from wmgym.nets.rarity import Rarity
from wmgym.random import Noise


class Code(NamedTuple):
    """The posterior `N(mean, exp(log_variance))` of a latent, both `(..., Z)`."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Noise) -> Tensor:
        """A reparameterised draw `(..., Z)`."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise.normal(*self.mean.shape)

    def log_prob(self, latent: Tensor) -> Tensor:
        """Log density `(...)` of `latent` `(..., Z)`."""
        error = (latent - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (error + self.log_variance + math.log(2 * math.pi)).sum(-1)

    def kl(self) -> Tensor:
        """`KL(code || N(0, 1))` in nats, summed over Z, `(...)`."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).sum(-1)


class VAE(nn.Module):
    """Observations to codes and back; pictures through World Models' convolutions, vectors through an MLP.

    The objective of one observation is `scale |o - decode(z)|^2 + max(KL(code || N(0, 1)), free_nats)`, summed over
    pixels in [0, 1]; below `free_nats` in total (not per latent) the KL presses no further.

    Source: Ha & Schmidhuber 2018, appendix A.1, and its code (`kl_tolerance`). With `CoderConfig(depth=32,
    squash=True)`, 64x64x3 pictures and Z = 32 or 64 it has the paper's 4,348,547 or 4,446,915 parameters.

    Args:
        boxes: the observation's boxes by key (`wmgym.spaces.as_dict_space`).
        size: Z, width of the code.
        config: sizes and choices of both networks.
        free_nats: floor of the KL; the code of the paper takes `Z / 2`.
        scale: weight of the squared error, 1 in the paper.
        rarity: power of the weight of pixels of rare colours (`wmgym.nets.rarity`), 0 in the paper.

    Example:
        >>> vae = VAE({"observation": spaces.Box(-1, 1, (3,))}, 2, CoderConfig(units=16), free_nats=1.0)
        >>> vae.encode({"observation": torch.zeros(5, 3)}).mean.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        boxes: Mapping[str, spaces.Box],
        size: int,
        config: CoderConfig,
        free_nats: float,
        scale: float = 1.0,
        rarity: float = 0.0,
    ) -> None:
        super().__init__()
        self.free_nats, self.scale = free_nats, scale
        self.encoder = Encoder(boxes, config)
        self.code = linear(self.encoder.out_size, 2 * size, config.init)
        self.decoder = Decoder(size, boxes, config)
        self.rarity = Rarity(boxes, rarity) if rarity else None

    def encode(self, observation: Mapping[str, Tensor]) -> Code:
        """The codes `(..., Z)` of observations `(..., ...)` by key."""
        return Code(*self.code(self.encoder(observation)).chunk(2, -1))

    def loss(self, observation: Mapping[str, Tensor], noise: Noise) -> tuple[Code, dict[str, Tensor]]:
        """Codes, and the terms of the objective by name, each `(...)`: one for every key, and `kl` with its floor."""
        code = self.encode(observation)
        errors = self.errors(code.sample(noise), observation)
        return code, {**errors, "kl": code.kl().clamp(min=self.free_nats)}

    def errors(self, latent: Tensor, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared errors `(...)` of what latents `(..., Z)` are decoded to, by key, as they count in the objective."""
        weights = None if self.rarity is None else self.rarity(observation)
        errors = self.decoder.loss(latent, observation, weights)
        return {name: self.scale * error for name, error in errors.items()}
