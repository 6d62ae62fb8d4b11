"""The RSSM's objective: every part recomputed slowly, and which parameter each part trains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from wmgym.nets.distributions import symlog
from wmgym.random import TorchNoise
from wmgym.worlds.base import SequenceBatch, map_state
from wmgym.worlds.rssm import RSSM, RSSMConfig, RSSMState

from .small import BATCH, BLOCK, CATEGORICAL, GAUSSIAN, KINDS, LENGTH, PICTURES, Script, build, draws, part, sequences

every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
ONLY_KL = {"vector_scale": 0.0, "reward_scale": 0.0, "continue_scale": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def as_torch(world: RSSM, stats: Tensor) -> td.Distribution:
    """A latent's distribution from its network's outputs, in torch's own classes."""
    c = world.config
    if c.latent == "gaussian":
        mean, raw = stats.split(c.stoch, -1)
        return td.Independent(td.Normal(mean, torch.log1p(raw.exp()) + c.min_std), 1)
    logits = stats.unflatten(-1, (c.stoch, c.classes))
    probs = (1 - c.unimix) * torch.softmax(logits, -1) + c.unimix / c.classes
    return td.Independent(td.Categorical(probs=probs), 1)


def latents(world: RSSM, batch: SequenceBatch, states: RSSMState) -> tuple[td.Distribution, td.Distribution]:
    """Posterior and prior of every step, from the states."""
    embedding = world.posterior.project(world.encoder(batch.observation))
    return as_torch(world, world.posterior(states.deter, embedding)), as_torch(world, world.prior(states.deter))


def gradients(world: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(world.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True, retain_graph=True)
    return dict(zip(named, found, strict=True))


def moved(found: dict[str, Tensor], prefixes: str | Iterable[str]) -> float:
    prefixes = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
    return max(float(g.abs().max()) for name, g in found.items() if name.startswith(prefixes))


# -- the parts ------------------------------------------------------------------------------------------------


@every_kind
@torch.no_grad()
def test_reconstruction_reward_and_continuation_equal_slow_versions(config: RSSMConfig) -> None:
    world = build(config, vector_scale=2.0, reward_scale=3.0, continue_scale=5.0)
    batch = sequences()
    loss = world.loss(batch, Script(draws(world)))
    totals = dict.fromkeys(("position", "height", "reward", "continue"), 0.0)
    for t, b in itertools.product(range(LENGTH), range(BATCH)):
        features = world.features(map_state(lambda x, t=t, b=b: x[t, b], loss.states))
        for key, mean in world.decoder(features).items():
            totals[key] += 2 * (mean - symlog(batch.observation[key][t, b])).square().sum().item()
        out, reward = world.reward_head(features), batch.reward[t, b]
        if config.reward.likelihood == "twohot":
            totals["reward"] -= 3 * (world.two_hot.encode(reward) * torch.log_softmax(out, -1)).sum().item()
        else:
            totals["reward"] += 3 * (out.item() - reward.item()) ** 2
        on = 1 / (1 + math.exp(-world.continue_head(features).item()))
        target = 0.0 if batch.is_terminal[t, b] else config.continue_target
        totals["continue"] -= 5 * (target * math.log(on) + (1 - target) * math.log(1 - on))
    for key, total in totals.items():
        assert loss.parts[f"{key}_loss"].item() == pytest.approx(total / (LENGTH * BATCH), rel=1e-4)


@every_kind
@torch.no_grad()
def test_divergence_and_entropies_equal_torch_distributions(config: RSSMConfig) -> None:
    world, batch = build(config), sequences()
    loss = world.loss(batch, Script(draws(world)))
    q, p = latents(world, batch, loss.states)
    kl = td.kl_divergence(q, p)
    assert kl.shape == (LENGTH, BATCH)
    assert loss.metrics["kl"].item() == pytest.approx(kl.mean().item(), rel=1e-4)
    assert loss.metrics["posterior_entropy"].item() == pytest.approx(q.entropy().mean().item(), rel=1e-4)
    assert loss.metrics["prior_entropy"].item() == pytest.approx(p.entropy().mean().item(), rel=1e-4)
    dyn, rep = (1.0, 0.1) if config is BLOCK else (0.8, 0.2)
    assert loss.parts["dyn_loss"].item() == pytest.approx(dyn * kl.mean().item(), rel=1e-4)
    assert loss.parts["rep_loss"].item() == pytest.approx(rep * kl.mean().item(), rel=1e-4)


@every_kind
def test_the_total_is_the_sum_of_the_parts(config: RSSMConfig) -> None:
    world = build(config, PICTURES, ensemble=2)
    loss = world.loss(sequences(PICTURES), TorchNoise())
    assert set(loss.parts) == {f"{x}_loss" for x in ("state", "camera", "reward", "continue", "dyn", "rep", "ensemble")}
    assert loss.total.item() == pytest.approx(sum(x.item() for x in loss.parts.values()), rel=1e-5)
    assert loss.total.shape == ()


def test_the_normal_likelihood_of_the_reward_is_half_the_squared_error() -> None:
    batch, losses = sequences(), {}
    for likelihood in ("mse", "normal"):
        head = type(GAUSSIAN.reward)(layers=1, units=8, likelihood=likelihood)  # type: ignore[arg-type]
        world = build(GAUSSIAN, reward=head)
        losses[likelihood] = world.loss(batch, Script(draws(world))).parts["reward_loss"].item()
    assert losses["normal"] == pytest.approx(losses["mse"] / 2)


def test_a_continuation_at_its_target_is_left_alone() -> None:
    world, batch = build(GAUSSIAN, continue_target=0.9), sequences()
    final = world.continue_head[-1]
    nn.init.zeros_(final.weight)
    nn.init.constant_(final.bias, math.log(0.9 / 0.1))
    batch.is_terminal[:] = False
    going = gradients(world, world.loss(batch, Script(draws(world))).total)
    assert moved(going, "continue_head") < 1e-6
    batch.is_terminal[-1] = True
    ending = gradients(world, world.loss(batch, Script(draws(world))).total)
    assert moved(ending, "continue_head") > 0.1


# -- KL balance and free nats ---------------------------------------------------------------------------------


def kl_gradients(config: RSSMConfig, **changes: object) -> dict[str, Tensor]:
    """Of the KL alone, on single steps: there the prior does not depend on any posterior."""
    world = build(config, **ONLY_KL, **changes)
    loss = world.loss(part(sequences(), slice(1)), Script(draws(world, 1)))
    return gradients(world, loss.total)


@pytest.mark.parametrize("config", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])
def test_kl_balance_shares_the_gradient_between_prior_and_posterior(config: RSSMConfig) -> None:
    undivided = kl_gradients(config, kl_balance=None)
    divided = kl_gradients(config, kl_balance=0.8, kl_scale=3.0)
    for name, gradient in undivided.items():
        share = {"prior": 0.8, "posterior": 0.2, "encoder": 0.2}.get(name.split(".")[0])
        if share is not None:
            assert gradient.abs().max() > 0
            assert torch.allclose(divided[name], 3 * share * gradient, atol=1e-6)


@every_kind
def test_each_side_of_the_kl_trains_its_own_network(config: RSSMConfig) -> None:
    prior_only = kl_gradients(config, dyn_scale=1.0, rep_scale=0.0)
    assert moved(prior_only, ("posterior", "encoder")) == 0
    assert moved(prior_only, "prior") > 0
    posterior_only = kl_gradients(config, dyn_scale=0.0, rep_scale=1.0)
    assert moved(posterior_only, "prior") == 0
    assert moved(posterior_only, "posterior") > 0
    assert moved(posterior_only, "encoder") > 0


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("balance", [None, 0.8])
def test_divergence_below_the_free_nats_trains_nothing(per_step: bool, balance: float | None) -> None:
    changes = {"free_nats": 1000.0, "free_per_step": per_step, "kl_balance": balance}
    assert moved(kl_gradients(GAUSSIAN, **changes), "") == 0
    world = build(GAUSSIAN, **ONLY_KL, **changes)
    assert world.loss(sequences(), TorchNoise()).total.item() == pytest.approx(1000, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("per_step", [True, False])
def test_free_nats_clip_each_step_or_the_mean(per_step: bool) -> None:
    batch, world = sequences(), build(GAUSSIAN)
    q, p = latents(world, batch, world.loss(batch, Script(draws(world))).states)
    kl = td.kl_divergence(q, p)
    free = kl.median().item()  # some steps above, some below
    expected = kl.clamp(min=free).mean() if per_step else kl.mean().clamp(min=free)
    clipped = build(GAUSSIAN, free_nats=free, free_per_step=per_step, kl_balance=None, kl_scale=2.0)
    found = clipped.loss(batch, Script(draws(world))).parts["kl_loss"]
    assert found.item() == pytest.approx(2 * expected.item(), rel=1e-4)


# -- who learns -----------------------------------------------------------------------------------------------


@every_kind
def test_gradients_reach_every_parameter(config: RSSMConfig) -> None:
    world = build(config, PICTURES, ensemble=2)
    found = gradients(world, world.loss(sequences(PICTURES), TorchNoise()).total)
    assert [name for name, gradient in found.items() if not gradient.abs().max() > 0] == []
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_only_looking_at_pictures_leaves_the_state_untouched() -> None:
    batch = sequences(PICTURES)

    def of(**changes: object) -> dict[str, Tensor]:
        world = build(GAUSSIAN, PICTURES, observed_keys=("state",), **changes)
        return gradients(world, world.loss(batch, Script(draws(world))).total)

    looking, blind, shaping = of(picture_gradient=False), of(picture_scale=0.0), of()
    rest = [name for name in looking if not name.startswith("decoder.pictures")]
    assert all(torch.allclose(looking[name], blind[name], atol=1e-6) for name in rest)
    assert moved(looking, "decoder.pictures") > 0
    assert any(not torch.allclose(shaping[name], blind[name], atol=1e-3) for name in rest)


@torch.no_grad()
def test_a_share_of_the_pictures_is_unbiased() -> None:
    batch, whole = sequences(PICTURES), build(GAUSSIAN, PICTURES)
    noise, count = draws(whole), LENGTH * BATCH
    expected = whole.loss(batch, Script(noise)).parts
    few = build(GAUSSIAN, PICTURES, picture_share=3 / count)
    kept = torch.arange(count).reshape(-1, 3)  # every frame in one of the draws
    parts = []
    for frames in kept:
        lots = torch.zeros(count).index_fill_(0, frames, 1.0)
        parts.append(few.loss(batch, Script([*noise, lots])).parts)
    losses = torch.stack([p["camera_loss"] for p in parts])
    assert losses.mean().item() == pytest.approx(expected["camera_loss"].item(), rel=1e-5)
    assert losses.std() > 0
    for name in set(expected) - {"camera_loss"}:  # everything else sees every frame
        assert torch.allclose(parts[0][name], expected[name])


# -- an ensemble ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_ensemble_predicts_the_next_posterior_within_episodes() -> None:
    world, batch = build(GAUSSIAN, ensemble=3), sequences()
    loss = world.loss(batch, Script(draws(world)))
    q, _ = latents(world, batch, loss.states)
    errors: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for number, (t, b) in enumerate(itertools.product(range(LENGTH - 1), range(BATCH))):
        now = world.features(map_state(lambda x, t=t, b=b: x[t, b], loss.states))
        said = world.ensemble[number % 3](torch.cat([now, batch.action[t + 1, b]]))  # each head has steps of its own
        error = (said - q.mean[t + 1, b]).square().mean().item()
        errors[number % 3].append(0.0 if batch.is_first[t + 1, b] else error)
    expected = sum(sum(own) / len(own) for own in errors.values())
    assert loss.parts["ensemble_loss"].item() == pytest.approx(expected, rel=1e-4)


@every_kind
def test_the_ensemble_never_shapes_the_state(config: RSSMConfig) -> None:
    nothing = {**ONLY_KL, "dyn_scale": 0.0, "rep_scale": 0.0}
    world = build(config, ensemble=2, **nothing)
    found = gradients(world, world.loss(sequences(), TorchNoise()).total)
    assert moved(found, "ensemble") > 0
    assert max(float(g.abs().max()) for name, g in found.items() if not name.startswith("ensemble")) == 0


def test_of_more_heads_than_steps_none_goes_without() -> None:
    world = build(GAUSSIAN, ensemble=9)
    found = gradients(world, world.loss(part(sequences(), slice(2)), TorchNoise()).total)
    for number in range(9):
        assert moved(found, f"ensemble.{number}.") > 0


def test_an_ensemble_has_nothing_to_say_on_single_steps() -> None:
    world = build(GAUSSIAN, ensemble=2)
    assert torch.isfinite(world.loss(part(sequences(), slice(1)), TorchNoise()).total)


def test_the_ensemble_learns_to_agree_on_what_it_saw() -> None:
    world, batch = build(GAUSSIAN, ensemble=3), sequences()
    noise = draws(world)
    states = map_state(lambda x: x[:-1].detach(), world.loss(batch, Script(noise)).states)
    before = world.disagreement(states, batch.action[1:]).mean()
    optimizer = torch.optim.Adam(world.ensemble.parameters(), 0.02)
    for turn in range(100):
        order = torch.arange(BATCH).roll(turn)  # every head meets every step in time
        optimizer.zero_grad()
        world.loss(part(batch, slice(None), order), Script([draw[order] for draw in noise])).total.backward()
        optimizer.step()
    after = world.disagreement(states, batch.action[1:])[~batch.is_first[1:]].mean()
    assert after < 0.3 * before


# -- all together ---------------------------------------------------------------------------------------------


@every_kind
def test_a_world_learns_what_actions_bring(config: RSSMConfig) -> None:
    world, noise = build(config), TorchNoise(torch.Generator().manual_seed(4))
    optimizer = torch.optim.Adam(world.parameters(), 0.01)
    for _ in range(120):
        batch = sequences(size=16)
        batch.action = noise.uniform(LENGTH, 16, 2) * 2 - 1
        batch.reward = torch.where(batch.is_first, 0.0, torch.sign(batch.action[..., 0]))
        batch.observation["position"] = batch.action.repeat(1, 1, 2)[..., :3]
        optimizer.zero_grad()
        world.loss(batch, noise).total.backward()
        optimizer.step()
    pushes = torch.tensor([[-0.8, 0.0], [0.8, 0.0]])
    start = map_state(lambda x: x[2, :2].detach(), world.loss(batch, noise).states)
    out = world.reward_head(world.features(world.transition(start, pushes, noise)))
    rewards = torch.sign(pushes[:, 0])
    assert (reward_loss(world, out, rewards) < reward_loss(world, out, -rewards) - 1.0).all()


def reward_loss(world: RSSM, out: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    """How unlikely the reward head finds it; the mean of a two-hot head is ruled by its farthest bins for long."""
    if world.config.reward.likelihood == "twohot":
        return world.two_hot.loss(out, reward)
    return (out.squeeze(-1) - reward).square()
