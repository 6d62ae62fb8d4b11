"""Dreams that show some of what their world decodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.dream import DreamEnv, DreamVectorEnv, StartStates, as_model
from wmgym.nets.coders import CoderConfig
from wmgym.worlds.rssm import RSSM, RSSMConfig

from .toy import BOTH, toy_model

STATE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
SEEN = spaces.Dict(image=spaces.Box(0, 255, (64, 64, 3), np.uint8), state=STATE)


def _state_world() -> RSSM:
    coder = CoderConfig(units=8, depth=2)
    config = RSSMConfig(deter=8, stoch=4, hidden=8, encoder=coder, decoder=coder, observed_keys=("state",))
    torch.manual_seed(0)
    return RSSM(SEEN, spaces.Discrete(2), config)


def test_one_key_gives_its_box_and_the_same_numbers() -> None:
    whole, part = DreamVectorEnv(2, toy_model(BOTH)), DreamVectorEnv(2, toy_model(BOTH), keys=("speed",))
    assert part.single_observation_space == BOTH["speed"]
    np.testing.assert_array_equal(part.reset(seed=1)[0], whole.reset(seed=1)[0]["speed"])
    actions = np.full((2, 2), 0.3, np.float32)
    np.testing.assert_array_equal(part.step(actions)[0], whole.step(actions)[0]["speed"])


def test_several_keys_give_a_dict() -> None:
    dream = DreamEnv(toy_model(BOTH), keys=("image", "speed"))
    assert dream.observation_space == BOTH
    assert dream.reset(seed=0)[0] in BOTH


def test_what_is_not_asked_for_is_not_drawn() -> None:
    world = _state_world()
    starts = StartStates(world.initial(3), torch.ones(3, dtype=torch.bool))

    def never(_: Any) -> None:
        raise AssertionError("a picture was drawn")

    assert world.decoder.pictures is not None
    handle = world.decoder.pictures.register_forward_pre_hook(lambda _, inputs: never(inputs))
    dreams = DreamVectorEnv(2, as_model(world, starts), keys=["state"], render_mode="rgb_array")
    assert dreams.reset(seed=0)[0] in dreams.observation_space
    assert dreams.step(np.array([0, 1]))[0].shape == (2, 3)
    handle.remove()
    assert dreams.render()[0].shape == (64, 64, 3)


@pytest.mark.parametrize("keys", [("sound",), (), "speed", ("speed", "sound")])
def test_keys_that_there_are_not(keys: Any) -> None:
    with pytest.raises(ValueError, match=r"some of the observation's keys \('image', 'speed'\)"):
        DreamVectorEnv(1, toy_model(BOTH), keys=keys)
