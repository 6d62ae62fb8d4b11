"""Dreams of several worlds as one vector environment of stable-baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class JoinedVecEnv(VecEnv):
    """Vector environments side by side, such as the dreams of several worlds that learnt from the same steps.

    What an agent learns in one world may rest on the errors of that world; other worlds have other errors. An agent
    that must do well in all of them is left with what they agree on.

    Args:
        parts: with the same spaces; worlds whose features differ are dreamt decoded.

    Raises:
        ValueError: for no parts, parts with different spaces, or features of different worlds.

    Source:
        Kurutach et al. 2018, "Model-Ensemble Trust-Region Policy Optimization", section 4.3: imagined steps come from
        all models of an ensemble. There each step is drawn from one of them; here each episode.

    Example:
        >>> import torch
        >>> from gymnasium import spaces
        >>> from wmgym import DreamVecEnv
        >>> from wmgym.dream import StartStates, as_model
        >>> from wmgym.worlds.rssm import RSSM
        >>> worlds = [RSSM(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)) for _ in range(2)]
        >>> starts = StartStates(worlds[0].initial(5), torch.ones(5, dtype=torch.bool))
        >>> dreams = JoinedVecEnv([DreamVecEnv(4, as_model(world, starts)) for world in worlds])
        >>> dreams.reset().shape
        (8, 3)
    """

    def __init__(self, parts: Sequence[VecEnv]) -> None:
        if not parts:
            raise ValueError("There is nothing to join: give one vector environment or more.")
        first = parts[0]
        for part in parts[1:]:
            for name in ("observation_space", "action_space"):
                if getattr(part, name) != getattr(first, name):
                    raise ValueError(
                        f"Environments that are joined have one {name}, not {getattr(first, name)} and "
                        f"{getattr(part, name)}. Dreams of different worlds are alike when they are decoded."
                    )
            if _world_of_features(part) is not _world_of_features(first):
                raise ValueError(
                    "Features of different worlds mean different things: join dreams that are decoded "
                    "(observation='decoded')."
                )
        self.parts = list(parts)
        bounds = accumulate((part.num_envs for part in parts), initial=0)
        self._slices = [slice(start, stop) for start, stop in pairwise(bounds)]
        super().__init__(self._slices[-1].stop, first.observation_space, first.action_space)
        self.metadata = first.metadata

    def reset(self) -> VecEnvObs:
        """Begin new episodes with the seeds and options that `seed` and `set_options` have set, once."""
        for part, rows in zip(self.parts, self._slices, strict=True):
            if (seed := self._seeds[rows.start]) is not None:
                part.seed(seed)
            part.set_options(self._options[rows])
        observation = _joined([part.reset() for part in self.parts])
        self.reset_infos = [info for part in self.parts for info in part.reset_infos]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Let every part begin."""
        for part, rows in zip(self.parts, self._slices, strict=True):
            part.step_async(actions[rows])

    def step_wait(self) -> VecEnvStepReturn:
        """What all parts bring."""
        observations, rewards, dones, infos = zip(*(part.step_wait() for part in self.parts), strict=True)
        self.reset_infos = [info for part in self.parts for info in part.reset_infos]
        return (
            _joined(observations),
            np.concatenate(rewards),
            np.concatenate(dones),
            [i for some in infos for i in some],
        )

    def close(self) -> None:
        """Close the parts."""
        for part in self.parts:
            part.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """What each environment looks like now."""
        return [image for part in self.parts for image in part.get_images()]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each of `indices`."""
        return [part.get_attr(attr_name, index)[0] for part, index in self._places(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of whole parts.

        Raises:
            ValueError: by a part that cannot set it for some of its environments only.
        """
        wanted = set(self._get_indices(indices))
        for part, rows in zip(self.parts, self._slices, strict=True):
            if own := [i - rows.start for i in range(rows.start, rows.stop) if i in wanted]:
                part.set_attr(attr_name, value, own)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method, part by part; dreams call it once for all of a part."""
        wanted = list(self._get_indices(indices))
        found: dict[int, Any] = {}
        for part, rows in zip(self.parts, self._slices, strict=True):
            if own := [i for i in range(rows.start, rows.stop) if i in set(wanted)]:
                local = [i - rows.start for i in own]
                results = part.env_method(method_name, *method_args, indices=local, **method_kwargs)
                found |= dict(zip(own, results, strict=True))
        return [found[i] for i in wanted]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each of `indices` is."""
        return [part.env_is_wrapped(wrapper_class, index)[0] for part, index in self._places(indices)]

    def _places(self, indices: VecEnvIndices) -> list[tuple[VecEnv, int]]:
        """The part of each environment, and its number there."""
        whole = [(part, i) for part in self.parts for i in range(part.num_envs)]
        return [whole[i] for i in self._get_indices(indices)]


def _world_of_features(part: VecEnv) -> Any:
    """The world whose features are seen; None where observations are."""
    dreams = getattr(part, "dreams", None)
    return dreams.world if dreams is not None and dreams.observation == "latent" else None


def _joined(observations: Sequence[Any]) -> Any:
    """Batches of observations one after the other."""
    if isinstance(observations[0], dict):
        return {key: np.concatenate([one[key] for one in observations]) for key in observations[0]}
    return np.concatenate(observations)
