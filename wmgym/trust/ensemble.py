"""An ensemble for worlds that were trained without one, fitted afterwards to recorded episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmgym.nets.mlp import MLP
from wmgym.random import Noise
from wmgym.spaces import action_size
from wmgym.trust.episodes import LivedEpisode
from wmgym.trust.windows import watch, world_actions
from wmgym.worlds.base import Imagined, Observation, Outcome, SequenceBatch, State, World, WorldLoss

_UNITS = 64
_BATCH = 128
_LEARNING_RATE = 1e-3


class DoubtingWorld(World):
    """A world that dreams as it did, and an ensemble beside it that disagrees where it was not fitted.

    Each head predicts the next posterior's features from the present ones and the action (Plan2Explore: Sekar et al.
    2020, section 3.2), in deviations of the features. It knows what it was fitted to, not what the world was
    trained on: its disagreement says how far a dream is from the recorded episodes.

    Args:
        world: the world; it is neither copied nor changed.
        heads: 2 or more.
        seed: of their first weights.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> from wmgym.worlds.rssm import RSSM
        >>> world = DoubtingWorld(RSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)))
        >>> world.disagreement(world.initial(4), torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, world: World, heads: int = 5, seed: int = 0) -> None:
        super().__init__()
        if heads < 2:
            raise ValueError(f"{heads} head has nobody to disagree with: use 2 or more.")
        self.world = world
        self.observation_space, self.action_space = world.observation_space, world.action_space
        self.config, self.feature_size = world.config, world.feature_size
        inputs = world.feature_size + action_size(world.action_space)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # No normalisation: it would make what is far away look like what is near.
            self.heads = nn.ModuleList(MLP(inputs, world.feature_size, 2, _UNITS, norm="none") for _ in range(heads))
        self.register_buffer("mean", torch.zeros(world.feature_size))
        self.register_buffer("deviation", torch.ones(world.feature_size))
        self.heads.requires_grad_(False)
        self.to(world.device)

    @property
    def has_ensemble(self) -> bool:
        """True."""
        return True

    def disagreement(self, state: State, action: Tensor) -> Tensor:
        """Deviation of the heads' predictions, averaged over the features, `(B,)`."""
        inputs = self._inputs(self.world.features(state).float(), action)
        return torch.stack([head(inputs) for head in self.heads]).std(0).mean(-1)

    def fit(self, episodes: Sequence[LivedEpisode], updates: int, seed: int) -> float:
        """Fit the heads to every step of some episodes.

        Args:
            episodes: real ones.
            updates: of Adam, with a batch of its own for each head.
            seed: of the batches and of the world's posterior.

        Returns:
            The mean squared error of the last update, in deviations.
        """
        before, action, after = self._transitions(episodes, seed)
        self.mean, self.deviation = after.mean(0), after.std(0).clamp(min=1e-3)
        inputs, targets = self._inputs(before, action), (after - self.mean) / self.deviation
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.heads.parameters(), _LEARNING_RATE)
        loss = torch.zeros(())
        self.heads.requires_grad_(True)
        with torch.enable_grad():
            for _ in range(updates):
                rows = torch.randint(len(inputs), (len(self.heads), _BATCH), generator=generator)
                errors = [(head(inputs[i]) - targets[i]).square().mean() for head, i in zip(self.heads, rows)]
                loss = torch.stack(errors).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.heads.requires_grad_(False)
        return float(loss.detach()) / len(self.heads)

    def _inputs(self, features: Tensor, action: Tensor) -> Tensor:
        return torch.cat([(features - self.mean) / self.deviation, action], -1)

    @torch.no_grad()
    def _transitions(self, episodes: Sequence[LivedEpisode], seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features, actions and the features that these led to, of every step: `(N, ...)`."""
        features = torch.stack([self.world.features(state).float() for state in watch(self.world, episodes, seed)], 1)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for row, episode in zip(features, episodes):
            length = len(episode)
            kept.append((row[:length], world_actions(self.world, episode.env_action), row[1 : length + 1]))
        before, action, after = (torch.cat(column) for column in zip(*kept))
        return before, action, after

    # -- all else is the world's own ---------------------------------------------------------------------------

    def initial(self, batch_size: int) -> State:
        """See `World.initial`."""
        return self.world.initial(batch_size)

    def observe(self, state: State, action: Tensor, observation: Observation, is_first: Tensor, noise: Noise) -> State:
        """See `World.observe`."""
        return self.world.observe(state, action, observation, is_first, noise)

    def transition(self, state: State, action: Tensor, noise: Noise, temperature: float = 1.0) -> State:
        """See `World.transition`."""
        return self.world.transition(state, action, noise, temperature)

    def imagine(self, state: State, action: Tensor, noise: Noise, temperature: float = 1.0) -> Imagined:
        """See `World.imagine`."""
        return self.world.imagine(state, action, noise, temperature)

    def outcome(self, previous: State, action: Tensor, state: State) -> Outcome:
        """See `World.outcome`."""
        return self.world.outcome(previous, action, state)

    def features(self, state: State) -> Tensor:
        """See `World.features`."""
        return self.world.features(state)

    def decode(self, features: Tensor) -> Observation:
        """See `World.decode`."""
        return self.world.decode(features)

    def decode_keys(self, features: Tensor, keys: Any) -> Observation:
        """See `World.decode_keys`."""
        return self.world.decode_keys(features, keys)

    def loss(self, batch: SequenceBatch, noise: Noise) -> WorldLoss:
        """See `World.loss`."""
        return self.world.loss(batch, noise)
