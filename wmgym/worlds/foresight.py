"""How well a world foretells each number that it observes, and how much the number therefore counts.

A squared error of weight w is the log-density of a Normal of variance 1 / (2 w): all numbers are taken to be
foreseeable to within that. Where some are not (contact forces, accelerations), they are most of the error, and the
latent state is spent on telling, step by step, what nobody could have known. With foresight the variance of a number is
that one and what the prior misses it by, together,

    v_i      average of (o_i - o'_i)^2,    o' decoded from s_t ~ p(s_t | s_{t-1}, a_t)
    weight   w / (1 + 2 w v_i)

so that a number nobody foretells is worth half a nat a step at most, less than it costs to tell.

Source: this project. Rybkin et al. 2021 (sigma-VAE) fit the variance to the posterior's error instead, which is small
for whatever the latent state was spent on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.random import Noise
from wmgym.spaces import is_image
from wmgym.worlds.base import SequenceBatch, State, flatten_state, map_state

if TYPE_CHECKING:
    from wmgym.worlds.rssm import RSSM

_RATE = 0.01
"""Of the running average, once it has seen a hundred batches; until then all count alike."""


class Foresight(nn.Module):
    """The prior's squared error for every number of the vectors, in the space that the decoder's loss is taken in.

    Args:
        boxes: the observation's boxes by key (`wmgym.spaces.as_dict_space`); pictures are left out.

    Example:
        >>> foresight = Foresight({"pole": spaces.Box(-9, 9, (2,))})
        >>> foresight.take({"pole": torch.tensor([[0.0, 0.4], [0.0, 0.6]])}, torch.ones(2, dtype=torch.bool))
        >>> foresight.weights(torch.tensor(0.1))["pole"]  # a number foretold to 0.1 counts half
        tensor([1.0000, 0.1667])
    """

    def __init__(self, boxes: Mapping[str, spaces.Box]) -> None:
        super().__init__()
        self._keys = [key for key, box in boxes.items() if not is_image(box)]
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros(()))
        for number, key in enumerate(self._keys):
            self.register_buffer(f"missed_{number}", torch.zeros(boxes[key].shape))

    @torch.no_grad()
    def update(self, world: RSSM, batch: SequenceBatch, states: State, noise: Noise) -> None:
        """Let the prior foretell the second half of each sequence, one step at a time, and see what it misses.

        Args:
            world: whose foresight this is.
            batch: `(T, B)` sequences as the decoder sees them. Of a single step nothing is learnt.
            states: their posterior states.
            noise: source of the draws.
        """
        half = batch.shape[0] // 2
        if not half:
            return
        before = flatten_state(map_state(lambda leaf: leaf[half - 1 : -1].detach(), states))
        foretold = world.transition(before, batch.action[half:].flatten(0, 1), noise)
        seen = {key: batch.observation[key][half:].flatten(0, 1) for key in self._keys}
        errors = world.decoder.errors(world.features(foretold), seen)
        self.take(errors, ~batch.is_first[half:].flatten())  # nothing foretells where an episode begins

    @torch.no_grad()
    def take(self, errors: Mapping[str, Tensor], counted: Tensor) -> None:
        """Squared errors of a batch into the average.

        Args:
            errors: by key, `(K, N)`, or `(K,)` for single numbers.
            counted: `(K,)` bool, the rows that count; where there is none, nothing changes.
        """
        share = counted.float() / counted.sum().clamp(min=1)  # (K,)
        any_counted = counted.any().float()
        self.batches.add_(any_counted)
        rate = (1 / self.batches.clamp(min=1)).clamp(min=_RATE) * any_counted
        for number, key in enumerate(self._keys):
            missed = self.get_buffer(f"missed_{number}")
            rows = counted.reshape(-1, *(1,) * missed.dim())
            error = errors[key].float().masked_fill(~rows, 0.0)  # which may be anything, even NaN
            missed.add_(rate * (torch.tensordot(share, error, 1) - missed))

    def weights(self, variance: Tensor | float) -> dict[str, Tensor]:
        """What each number's error counts by: 1 where it is foretold, less elsewhere; by key `(N,)` or `()`.

        Args:
            variance: of a number that is foretold exactly.
        """
        return {
            key: variance / (variance + self.get_buffer(f"missed_{number}")) for number, key in enumerate(self._keys)
        }
