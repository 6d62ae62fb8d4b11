"""Pictures of dreams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.dream import DreamVectorEnv
from wmgym.dream.frames import decode, draw_bars

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


def test_bars_grow_with_the_number_to_its_side() -> None:
    values = np.array([[0.5, 3.0, 1e9, -0.5, -3.0, 0.0]])
    rows = draw_bars(values)[0].reshape(128, 128, 3)[10::21][:6]
    drawn = (rows != 245).any(-1)
    drawn[:, 64] = False  # the axis
    left, right = drawn[:, :64].sum(-1), drawn[:, 65:].sum(-1)
    assert list(left > 0) == [False, False, False, True, True, False]
    assert right[0] < right[1] < right[2] == 63
    assert left[3] < left[4]


def test_as_many_bars_as_there_are_numbers_fit() -> None:
    assert draw_bars(np.zeros((2, 301))).shape == (2, 602, 128, 3)


def test_many_pictures_are_drawn_a_few_at_a_time_and_are_the_same() -> None:
    world = toy_model(BOTH).world
    seen: list[int] = []
    handle = world.decoders["image"].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    features = torch.rand(600, world.feature_size)
    drawn = decode(world, features)
    handle.remove()
    assert seen == [256, 256, 88]
    whole = world.decode(features)
    assert (drawn["image"].int() - whole["image"].int()).abs().max() <= 1
    assert torch.equal(drawn["speed"], torch.cat([world.decode(part)["speed"] for part in features.split(256)]))
