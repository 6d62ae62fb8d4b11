"""Compiled steps dream what uncompiled ones dream."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from wmgym.dream import DreamModel, DreamVectorEnv, StartStates, as_model, steps
from wmgym.worlds.rssm import RSSM, RSSMConfig

NUM_ENVS, HORIZON, STEPS = 6, 3, 30


def model(latent: Any) -> DreamModel:
    """A world of vectors and pictures that ends now and then, with an ensemble."""
    space = spaces.Dict(picture=spaces.Box(0, 255, (64, 64, 3), np.uint8), pose=spaces.Box(-1, 1, (3,), np.float32))
    torch.manual_seed(0)
    config = RSSMConfig(deter=8, hidden=8, stoch=4, classes=4, latent=latent, ensemble=2)
    world = RSSM(space, spaces.Box(-1, 1, (2,), np.float32), config)
    return as_model(world, StartStates(world.initial(5), torch.ones(5, dtype=torch.bool)))


def dream(made: DreamModel, **kwargs: Any) -> list[dict[str, np.ndarray]]:
    """What happens in dreams of `made` when the same actions are taken."""
    dreams = DreamVectorEnv(NUM_ENVS, made, horizon=HORIZON, disagreement_penalty=1.0, **kwargs)
    dreams.action_space.seed(0)
    dreams.reset(seed=3)
    lived = []
    for _ in range(STEPS):
        observation, reward, terminated, truncated, info = dreams.step(dreams.action_space.sample())
        seen = observation if isinstance(observation, dict) else {"features": observation}
        ends = {"terminated": terminated, "truncated": truncated}
        lived.append({**seen, **ends, "reward": reward, "disagreement": info["disagreement"]})
    return lived


def assert_same(lived: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> None:
    """The same to float tolerance; of pictures a level, where a half is rounded the other way."""
    for one, other in zip(lived, others, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            tolerance = 1 if value.dtype == np.uint8 else 1e-5
            np.testing.assert_allclose(value.astype(float), other[name].astype(float), atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("latent", "observation", "mode"),
    [
        ("gaussian", "decoded", "NextStep"),
        ("gaussian", "latent", "SameStep"),
        ("categorical", "decoded", "SameStep"),
        ("categorical", "latent", "NextStep"),
    ],
)
def test_compiled_dreams_equal_plain_ones(
    latent: str, observation: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model(latent)
    plain = dream(made, observation=observation, autoreset_mode=mode)
    assert any(step["terminated"].any() for step in plain)
    assert any(step["truncated"].any() for step in plain)
    # What is traced is what counts here; what inductor makes of it takes long and a C++ compiler.
    monkeypatch.setattr(steps, "Compiled", partial(steps.Compiled, backend="aot_eager"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be compiled")
        compiled = dream(made, observation=observation, autoreset_mode=mode, compiled=True)
    assert_same(plain, compiled)


@pytest.mark.slow
def test_compiled_dreams_can_be_pickled() -> None:
    dreams = DreamVectorEnv(2, model("gaussian"), observation="latent", compiled=True)
    dreams._stepper._compiled = tuple(
        steps.Compiled(part._plain, backend="eager") for part in dreams._stepper._compiled or ()
    )  # type: ignore[assignment]
    dreams.reset(seed=0)
    copy = pickle.loads(pickle.dumps(dreams))
    action = np.zeros((2, 2), np.float32)
    np.testing.assert_array_equal(copy.step(action)[0], dreams.step(action)[0])


def test_inductor_dreams_the_same() -> None:
    made = model("categorical")
    assert_same(dream(made), dream(made, compiled=True))


def test_a_step_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    made = model("gaussian")
    monkeypatch.setattr(steps, "Compiled", partial(steps.Compiled, backend=broken))
    with pytest.warns(UserWarning, match="(?s)cannot be compiled and runs as it is.*no compiler here"):
        compiled = dream(made, compiled=True)
    assert_same(dream(made), compiled)


def test_temperature_and_termination_can_change_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "Compiled", partial(steps.Compiled, backend="aot_eager"))
    made = model("gaussian")
    dreams = [DreamVectorEnv(NUM_ENVS, made, compiled=compiled, output="torch") for compiled in (False, True)]
    for env in dreams:
        env.reset(seed=0)
    action = torch.zeros(NUM_ENVS, 2)
    for temperature, termination in [(1.0, "sample"), (0.5, "sample"), (0.0, "never"), (0.7, "threshold")]:
        for env in dreams:
            env.temperature, env.termination = temperature, termination
        plain, compiled = (env.step(action) for env in dreams)
        torch.testing.assert_close(plain[1], compiled[1], atol=1e-5, rtol=1e-5)
        assert torch.equal(plain[2], compiled[2])
