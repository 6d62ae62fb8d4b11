"""The transformer state-space model: one step equals all at once, and what it sees of the past."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from tests.worlds.small import ACTIONS, BATCH, GAUSSIAN, LENGTH, PICTURES, VECTORS, Script, part, sequences
from wmgym import save_world
from wmgym.dream import StartStates
from wmgym.nets.transformer import Context, Transformer
from wmgym.random import ModeNoise, TorchNoise
from wmgym.worlds.base import detach_state, flatten_state, index_state, map_state
from wmgym.worlds.store import load_world
from wmgym.worlds.tssm import TSSM, TSSMConfig

SMALL = TSSMConfig(**{**vars(GAUSSIAN), "layers": 2, "heads": 2, "context": 3})


def build(space: Any = VECTORS, **changes: Any) -> TSSM:
    """A world with its first weights shaken."""
    torch.manual_seed(0)
    world = TSSM(space, ACTIONS, replace(SMALL, **changes))
    with torch.no_grad():
        for parameter in world.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return world


def noise(seed: int = 3) -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(seed))


# -- the transformer ------------------------------------------------------------------------------------------


def shaken(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(**{"width": 8, "layers": 2, "heads": 2, "context": 3, **changes})
    with torch.no_grad():
        net.distances.add_(torch.randn_like(net.distances))
    return net


@pytest.mark.parametrize("context", [1, 3, 20])
@torch.no_grad()
def test_step_by_step_is_all_at_once(context: int) -> None:
    net = shaken(context=context)
    tokens, is_first = torch.randn(9, 4, 8), torch.zeros(9, 4, dtype=torch.bool)
    is_first[0, 0] = is_first[5, 1] = is_first[6, 1] = is_first[8, 2] = True
    together, contexts = net(tokens, is_first)
    known = net.empty(4)
    for t in range(9):
        known = Context(*(leaf * ~is_first[t, :, None] for leaf in known))
        output, known = net.step(tokens[t], known)
        torch.testing.assert_close(output, together[t], rtol=1e-4, atol=1e-5)
        for one, all_at_once in zip(known, contexts, strict=True):
            torch.testing.assert_close(one, all_at_once[t], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_layer_sees_its_context_its_episode_and_nothing_else() -> None:
    net, is_first = shaken(layers=1), torch.zeros(8, 1, dtype=torch.bool)
    is_first[4] = True
    tokens = torch.randn(8, 1, 8)
    before, _ = net(tokens, is_first)
    for changed in range(8):
        other = tokens.clone()
        other[changed] += torch.randn(1, 8)
        after, _ = net(other, is_first)
        moved = {t for t in range(8) if not torch.allclose(after[t], before[t], atol=1e-6)}
        last = 3 if changed < 4 else 7
        assert moved == set(range(changed, min(changed + 3, last) + 1))


def test_heads_share_the_width_out() -> None:
    with pytest.raises(ValueError, match="width of 9 cannot be shared out among 2 heads"):
        Transformer(width=9, layers=1, heads=2, context=3)


# -- the world ------------------------------------------------------------------------------------------------


def test_filtering_a_batch_equals_observing_step_by_step() -> None:
    world, batch = build(), sequences()
    draws = torch.randn(LENGTH, BATCH, 3, generator=torch.Generator().manual_seed(2))
    together, stepwise = world.loss(batch, Script([draws])).states, Script(list(draws))
    state = world.initial(BATCH)
    for t in range(LENGTH):
        observation = {key: value[t] for key, value in batch.observation.items()}
        state = world.observe(state, batch.action[t], observation, batch.is_first[t], stepwise)
        for one, all_at_once in zip(state, together, strict=True):
            torch.testing.assert_close(one, all_at_once[t], rtol=1e-4, atol=1e-5)


def test_what_is_drawn_depends_on_the_observation_alone() -> None:
    world, batch = build(), sequences()
    draws = torch.zeros(LENGTH, BATCH, 3)
    before = world.loss(batch, Script([draws])).states
    batch.observation["position"][1] += 1
    after = world.loss(batch, Script([draws])).states
    changed = [t for t in range(LENGTH) if not torch.allclose(before.stoch[t], after.stoch[t])]
    assert changed == [1]
    # Row 1 begins an episode at 3; in the others the third step after the change still knows of it.
    assert not torch.allclose(before.deter[4, 0], after.deter[4, 0])
    torch.testing.assert_close(before.deter[3, 1], after.deter[3, 1])


def test_every_parameter_learns() -> None:
    world = build()
    world.loss(sequences(), noise()).total.backward()
    assert [key for key, p in world.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    "objectives", [{"latent_overshooting": 3}, {"observation_overshooting": 2}, {"ensemble": 2}, {"kl_balance": None}]
)
def test_it_has_the_rssms_objectives(objectives: dict[str, Any]) -> None:
    world = build(**objectives)
    loss = world.loss(sequences(), noise())
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert set(build().loss(sequences(), noise()).parts) - {"dyn_loss", "rep_loss"} <= set(loss.parts)


def test_dreams_remember_what_they_did() -> None:
    """The gradient of the fourth dreamt step reaches the first action: through attention, not through the draw."""
    world = build()
    state = index_state(flatten_state(detach_state(world.loss(sequences(), noise()).states)), slice(0, 2))
    first = torch.zeros(2, 2, requires_grad=True)
    for action in (first, *torch.zeros(3, 2, 2)):
        state = world.transition(map_state(lambda leaf: leaf, state), action, ModeNoise())
        state = state._replace(stoch=state.stoch.detach())
    state.deter.sum().backward()
    assert first.grad is not None
    assert (first.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("space", [VECTORS, PICTURES], ids=["vectors", "pictures too"])
def test_it_opens_as_an_environment_and_comes_back_from_its_file(space: Any, tmp_path: Path) -> None:
    world = build(space)
    states = flatten_state(detach_state(world.loss(sequences(space), noise()).states))
    first = torch.zeros(len(states.deter), dtype=torch.bool)
    first[:3] = True
    path = save_world(tmp_path / "world", world, StartStates(states, first))
    again = load_world(path)
    assert isinstance(again, TSSM)
    assert again.config == world.config
    state = index_state(states, slice(0, 2))
    with torch.no_grad():
        one, two = (w.transition(state, torch.ones(2, 2), ModeNoise()) for w in (world, again))
    assert all(torch.equal(*leaves) for leaves in zip(one, two, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(gym.make("Dream-v0", model=str(path), horizon=5).unwrapped)


@pytest.mark.parametrize(("wrong", "message"), [({"deter": 9}, "deter=9"), ({"context": 0}, "context must be 1")])
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)


def test_it_remembers_what_an_rssm_of_one_step_could_not_see() -> None:
    """A number shown once must be told three steps later: it learns to, far better than the mean."""
    torch.manual_seed(0)
    space = gym.spaces.Box(-3, 3, (1,))
    world = TSSM(space, ACTIONS, replace(SMALL, deter=32, hidden=32, context=4, vector_scale=100.0))
    optimizer, generator = torch.optim.Adam(world.parameters(), 3e-3), torch.Generator().manual_seed(0)

    def shown(size: int) -> Any:
        batch = part(sequences(length=4, size=size), slice(None))
        batch.is_first[:] = batch.is_terminal[:] = False
        batch.is_first[0] = True
        number = 2 * torch.rand(size, 1, generator=generator) - 1
        batch.observation.clear()
        batch.observation["observation"] = torch.stack([number, 0 * number, 0 * number, number])
        batch.action[:], batch.reward = 0, torch.zeros(4, size)
        return batch

    for _ in range(400):
        optimizer.zero_grad()
        world.loss(shown(64), noise()).total.backward()
        optimizer.step()
    batch = shown(256)
    with torch.no_grad():
        states = world.loss(batch, noise()).states
        told = world.transition(index_state(states, 2), batch.action[3], ModeNoise())
        drawn = world.decode(world.features(told))["observation"]
    number = batch.observation["observation"][3]
    assert (drawn - number).square().mean() < 0.25 * number.square().mean()
