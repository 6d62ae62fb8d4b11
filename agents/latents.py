"""What V saw, once and for all: a replay of codes instead of observations, for M to learn from."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym.nets.vae import Code
from wmgym.replay import SequenceReplay
from wmgym.worlds.base import SequenceBatch
from wmgym.worlds.mdn_rnn import MDNRNN

_AT_ONCE = 256  # observations that are encoded together


@torch.no_grad()
def latent_replay(world: MDNRNN, replay: SequenceReplay, seed: int) -> SequenceReplay:
    """The steps of `replay` with the codes of their observations, `mean` and `log_variance`, as one stream.

    Encoding each observation once costs as much as a few updates of M that encode their own batches.

    Args:
        world: its V encodes.
        replay: of real observations; it stays as it is.
        seed: of the sampling.
    """
    code = spaces.Box(-np.inf, np.inf, (world.config.latent,), np.float32)
    codes = SequenceReplay(len(replay), spaces.Dict(mean=code, log_variance=code), world.action_space, seed=seed)
    for env in range(replay.n_envs):
        codes.mark_cut()  # one stream does not follow from another
        for steps in replay.steps(env, _AT_ONCE):
            observation = {key: torch.from_numpy(value).to(world.device) for key, value in steps["observation"].items()}
            mean, log_variance = (part.cpu().numpy() for part in world.vae.encode(observation))
            for t in range(len(mean)):
                row = {name: steps[name][t : t + 1] for name in ("action", "reward", "is_first", "is_terminal")}
                codes.add({"mean": mean[t : t + 1], "log_variance": log_variance[t : t + 1]}, **row)
    return codes


def code_of(batch: SequenceBatch) -> Code:
    """The codes `(T, B, Z)` in a batch of a `latent_replay`."""
    mean: Tensor = batch.observation["mean"]
    return Code(mean, batch.observation["log_variance"])
