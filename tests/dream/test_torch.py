"""Dreams as tensors, for those who train in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from wmgym.dream import DreamEnv, DreamVectorEnv
from wmgym.spaces import as_dict

from .toy import BOTH, PUSH, VECTOR, toy_model

INTEGERS = spaces.Box(-3, 3, (3,), np.int64)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("observation", [VECTOR, BOTH, INTEGERS], ids=["vector", "both", "integers"])
def test_tensors_hold_what_arrays_hold(mode: AutoresetMode, observation: Any) -> None:
    settings: dict[str, Any] = {"autoreset_mode": mode, "horizon": 4}
    if mode is AutoresetMode.DISABLED:
        settings |= {"termination": "never", "horizon": 100}
    arrays, tensors = (DreamVectorEnv(3, toy_model(observation), output=output, **settings) for output in
                       ("numpy", "torch"))  # fmt: skip
    same(arrays.reset(seed=0)[0], tensors.reset(seed=0)[0])
    PUSH.seed(0)
    ended = 0
    for _ in range(12):
        actions = np.stack([PUSH.sample() for _ in range(3)])
        one, two = arrays.step(actions), tensors.step(torch.from_numpy(actions))
        for a, b in zip(one[:4], two[:4], strict=True):
            same(a, b)
        if "final_obs" in one[4]:
            for i in np.flatnonzero(one[4]["_final_obs"]):
                ended += 1
                same(one[4]["final_obs"][i], {key: value[i] for key, value in as_dict(two[4]["final_obs"]).items()})
    assert (ended > 0) == (mode is AutoresetMode.SAME_STEP)


def same(arrays: Any, tensors: Any) -> None:
    tensors = as_dict(tensors)
    for key, array in as_dict(arrays).items():
        assert isinstance(tensors[key], torch.Tensor)
        assert not tensors[key].requires_grad
        np.testing.assert_array_equal(tensors[key].numpy(), array)
        assert tensors[key].numpy().dtype == array.dtype


def test_latent_tensors_are_not_copied() -> None:
    dreams = DreamVectorEnv(3, toy_model(), observation="latent", output="torch")
    observation, _ = dreams.reset(seed=0)
    assert observation.data_ptr() == dreams._state.x.data_ptr()  # the toy's features are its state


def test_a_reset_mask_may_be_a_tensor() -> None:
    dreams = DreamVectorEnv(3, toy_model(), observation="latent", output="torch", autoreset_mode="Disabled")
    first = dreams.reset(seed=0)[0].clone()
    observation, _ = dreams.reset(options={"reset_mask": torch.tensor([False, False, True]), "start": 5})
    assert torch.equal(observation[:2], first[:2])
    assert observation[2, 0] == pytest.approx(0.4)


def test_one_dream_gives_tensors_too() -> None:
    env = DreamEnv(toy_model(BOTH), output="torch")
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == BOTH["image"].shape
    observation, reward, *_ = env.step(torch.zeros(2))
    assert observation["speed"].dtype == torch.float32
    assert isinstance(reward, float)


@pytest.mark.parametrize(("actions", "text"), [
    (torch.full((3, 2), torch.nan), "environment 0 is not finite"),
    (torch.zeros(2, 2), "3 environments take"),
])  # fmt: skip
def test_action_tensors_that_cannot_be(actions: torch.Tensor, text: str) -> None:
    dreams = DreamVectorEnv(3, toy_model(), output="torch")
    dreams.reset(seed=0)
    with pytest.raises(ValueError, match=text):
        dreams.step(actions)
