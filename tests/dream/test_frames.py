"""Pictures of dreams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.dream import DreamVectorEnv

from .toy import BOTH, toy_model


def test_pictures_of_all_dreams() -> None:
    dreams = DreamVectorEnv(3, toy_model(BOTH), render_mode="rgb_array")
    observation, _ = dreams.reset(seed=0)
    frames = dreams.render()
    assert frames is not None
    assert len(frames) == 3
    np.testing.assert_array_equal(np.stack(frames), observation["image"])


def test_a_grey_world_is_shown_in_three_channels() -> None:
    dreams = DreamVectorEnv(1, toy_model(spaces.Box(0, 255, (40, 36, 1), np.uint8)), render_mode="rgb_array")
    dreams.reset(seed=0)
    assert dreams.render()[0].shape == (40, 36, 3)


def test_a_worlds_own_renderer_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    picture = lambda features: torch.full((len(features), 8, 9, 3), 5, dtype=torch.uint8)  # noqa: E731
    monkeypatch.setattr(model.world, "render", picture, raising=False)
    dreams = DreamVectorEnv(2, model, render_mode="rgb_array")
    dreams.reset(seed=0)
    assert [frame.shape for frame in dreams.render()] == [(8, 9, 3)] * 2
