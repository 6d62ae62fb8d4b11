"""Many dreams: what they refuse, and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import MissingArgument, ResetNeeded

from wmgym.dream import DreamVectorEnv, StartStates, as_model

from .toy import PICTURE, ToyState, toy_model, toy_world

DISCRETE = spaces.Discrete(3, start=5)


@pytest.mark.parametrize(("arguments", "text"), [
    ({"observation": "pixels"}, "observation='pixels' is unknown: choose one of 'decoded', 'latent'"),
    ({"start": "end"}, "start='end' is unknown"),
    ({"termination": "maybe"}, "termination='maybe' is unknown"),
    ({"horizon": 0}, "horizon .* must be 1 or more, not 0"),
    ({"temperature": -1.0}, "temperature not negative"),
    ({"num_envs": 0}, "num_envs must be 1 or more"),
    ({"autoreset_mode": "Sometimes"}, "Sometimes"),
    ({"render_mode": "human"}, "render_mode='human' is unknown: choose one of 'rgb_array'"),
    ({"output": "jax"}, "output='jax' is unknown: choose one of 'numpy', 'torch'"),
    ({"disagreement_penalty": 1.0}, r"no ensemble.*train a world that has one \(RSSMConfig\(ensemble=5\)\)"),
    ({"disagreement_halt": 1.0}, "no ensemble"),
    ({"disagreement_penalty": -1.0}, "must not be negative"),
    ({"disagreement_penalty": float("nan")}, "must not be negative"),
    ({"halt_reward": -10.0}, "needs a disagreement_halt"),
    ({"temperature": float("nan")}, "temperature not negative"),
    ({"device": "cuda"}, "The live world is on cpu"),
])  # fmt: skip
def test_arguments_that_cannot_be(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DreamVectorEnv(**{"num_envs": 1, "model": toy_model(), **arguments})


def test_a_model_is_needed_and_must_be_one() -> None:
    with pytest.raises(MissingArgument, match="A dream needs a model"):
        DreamVectorEnv(2)
    with pytest.raises(TypeError, match="model must be a checkpoint's path, a World or as_model"):
        DreamVectorEnv(2, 42)


@pytest.mark.parametrize(("actions", "text"), [
    (np.zeros((3, 2)), "2 environments take"),
    (np.zeros((2, 3)), "a batch of Box"),
    (np.array([[0, 0], [0, np.nan]]), "The action of environment 1 is not finite"),
    (np.array([["a", "b"], ["c", "d"]]), "are numbers"),
])  # fmt: skip
def test_box_actions_that_cannot_be(actions: Any, text: str) -> None:
    dreams = DreamVectorEnv(2, toy_model())
    dreams.reset(seed=0)
    with pytest.raises(ValueError, match=text):
        dreams.step(actions)


@pytest.mark.parametrize(("actions", "text"), [
    ([5, 8], r"The action of environment 1 is not in Discrete\(3, start=5\): 8"),
    ([4, 5], "The action of environment 0 is not in"),
    ([5.0, 6.0], "are integers, not float64"),
])  # fmt: skip
def test_discrete_actions_that_cannot_be(actions: Any, text: str) -> None:
    dreams = DreamVectorEnv(2, toy_model(action=DISCRETE))
    dreams.reset(seed=0)
    with pytest.raises(ValueError, match=text):
        dreams.step(np.array(actions))


@pytest.mark.parametrize(("options", "error", "text"), [
    ({"begin": 3}, ValueError, "Unknown reset option 'begin'"),
    ({"start": 1, "state": 2}, ValueError, "exclude each other"),
    ({"start": 6}, IndexError, r"6 start states \(0 to 5\)"),
    ({"start": -1}, IndexError, "6 start states"),
    ({"start": [1.5, 2.0]}, ValueError, "must be an integer"),
    ({"start": [1, 2, 3]}, ValueError, r"integer array \(2,\)"),
    ({"observation": np.zeros((2, 4))}, ValueError, r"'observation' has shape \(2, 4\), not \(2, 3\)"),
    ({"observation": np.full((2, 3), np.nan)}, ValueError, "holds NaN"),
    ({"observation": {"image": 0}}, ValueError, "lacks 'observation'"),
    ({"state": np.zeros((2, 4))}, ValueError, "must be a ToyState"),
    ({"prefix": np.zeros((5, 2, 3))}, ValueError, r"must be \{'observation': \(T, num_envs, ...\), 'action'"),
    ({"prefix": {"observation": np.zeros((5, 2, 3)), "action": np.zeros((4, 2, 2))}}, ValueError, "4 actions for .5."),
    ({"prefix": {"observation": np.zeros((2, 2, 3)), "action": np.zeros((2, 3, 2))}}, ValueError, r"\(3, 2\), not \(2"),
    ({"state": ToyState(torch.zeros(3, 4), torch.zeros(3))}, ValueError, r"x has shape \(3, 4\), but this .* \(2, 4\)"),
    ({"reset_mask": [True, False]}, ValueError, "must be a bool array"),
    ({"reset_mask": np.array([False, False])}, ValueError, "at least one True"),
    ({"reset_mask": np.array([True, False])}, ResetNeeded, "first reset must begin all"),
])  # fmt: skip
def test_reset_options_that_cannot_be(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DreamVectorEnv(2, toy_model()).reset(options=options)


def test_a_reset_that_fails_leaves_the_dream_as_it_was() -> None:
    disturbed, other = (DreamVectorEnv(2, toy_model(), seed=0) for _ in range(2))
    disturbed.reset(), other.reset()
    with pytest.raises(IndexError):
        disturbed.reset(seed=7, options={"start": 99})
    np.testing.assert_array_equal(disturbed.step(np.zeros((2, 2)))[0], other.step(np.zeros((2, 2)))[0])


def test_seeds_must_be_as_many_as_environments() -> None:
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        DreamVectorEnv(2, toy_model()).reset(seed=[1, 2, 3])


def test_nothing_goes_before_reset() -> None:
    dreams = DreamVectorEnv(2, toy_model(PICTURE), render_mode="rgb_array")
    for call in (lambda: dreams.step(np.zeros((2, 2))), dreams.render, dreams.get_state):
        with pytest.raises(ResetNeeded, match="Call reset before"):
            call()


def test_a_world_without_starts_says_how_to_begin() -> None:
    dreams = DreamVectorEnv(1, toy_world())
    with pytest.raises(ValueError, match=r"no start states.*begin from an observation"):
        dreams.reset(seed=0)
    dreams.reset(seed=0, options={"observation": np.zeros((1, 3), np.float32)})


def test_no_first_steps_among_the_starts() -> None:
    world = toy_world()
    starts = StartStates(world.initial(2), torch.tensor([False, False]))
    with pytest.raises(ValueError, match="use start='any'"):
        DreamVectorEnv(1, as_model(world, starts)).reset()
    DreamVectorEnv(1, as_model(world, starts), start="any").reset()


def test_set_state_of_another_size_is_refused() -> None:
    dreams, others = DreamVectorEnv(2, toy_model()), DreamVectorEnv(3, toy_model())
    others.reset(seed=0)
    with pytest.raises(ValueError, match="of 2 environments"):
        dreams.set_state(others.get_state())


def test_set_state_of_another_world_is_refused_and_the_dream_goes_on() -> None:
    dreams = DreamVectorEnv(2, toy_model())
    others = DreamVectorEnv(
        2, as_model(toy_world(size=6), StartStates(toy_world(size=6).initial(1), torch.ones(1) > 0))
    )
    dreams.reset(seed=0)
    others.reset(seed=0)
    with pytest.raises(ValueError, match=r"x has shape \(2, 6\)"):
        dreams.set_state(others.get_state())
    dreams.step(dreams.action_space.sample())
