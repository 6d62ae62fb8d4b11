"""The papers' agents: their steps against slow loops, their optimisers, sizes, presets and files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents import ALGORITHMS, DreamerV1, DreamerV2, DreamerV3
from agents.dreamer import Dreamer
from agents.dreamer_v3 import v3_world
from agents.imagination import Rollout
from agents.zoo.hyperparams import load_preset
from wmgym.random import ModeNoise
from wmgym.worlds.base import SequenceBatch, detach_state, flatten_state

TINY: dict[str, Any] = {"learning_starts": 30, "batch_size": 3, "batch_length": 6, "seed": 0, "device": "cpu"}
SMALL: dict[type[Dreamer], dict[str, Any]] = {
    DreamerV1: {
        "deter": 16,
        "stoch": 4,
        "units": 16,
        "pretrain": 1,
        "learning_rate": 3e-3,
        "horizon": 4,
        "free_nats": 0.0,
    },
    DreamerV2: {
        "deter": 16,
        "stoch": 4,
        "classes": 4,
        "units": 16,
        "pretrain": 1,
        "learning_rate": 3e-3,
        "horizon": 4,
        "free_nats": 0.0,
    },
    DreamerV3: {"size": "1m", "learning_rate": 1e-3, "warmup": 0, "horizon": 4},
}
PAPERS = list(SMALL)
LAM = 0.95


def make(paper: type[Dreamer], env: str = "Pendulum-v1", **options: Any) -> Dreamer:
    ends = {"pcont": True} if env == "CartPole-v1" and paper in (DreamerV1, DreamerV2) else {}
    return paper(env, **{**TINY, **SMALL.get(paper, {}), **ends, "train_freq": 1000, **options})


def collected(agent: Dreamer, steps: int = 40) -> SequenceBatch:
    """A batch of what the agent met."""
    agent.learn(steps, log_interval=None)
    assert agent.replay_buffer is not None
    return agent.replay_buffer.sample(agent.batch_size, agent.batch_length)


def world_loss(agent: Dreamer, batch: SequenceBatch) -> float:
    with torch.no_grad():
        return agent.world.loss(batch, ModeNoise()).total.item()


def dream(agent: Dreamer, batch: SequenceBatch) -> tuple[Any, Rollout]:
    """All of the batch's posterior states, and dreams from them."""
    states = flatten_state(detach_state(agent.world.loss(batch, agent.noise).states))
    return states, agent._dream(states)


@pytest.mark.parametrize("paper", PAPERS)
def test_what_would_change_nothing_is_refused(paper: type[Dreamer]) -> None:
    for name, value in {"dynamics": "tssm", "standardize": True, "picture_share": 0.5}.items():
        with pytest.raises(TypeError, match=f"{paper.__name__} has no use for {name}="):
            paper("Pendulum-v1", **{name: value})


def test_arguments_of_the_flagship_that_a_paper_fixes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"DreamerV2 has no use for slow_rate=0\.5"):
        DreamerV2("Pendulum-v1", slow_rate=0.5)
    for name in ("units", "deter", "stoch", "depth"):
        with pytest.raises(TypeError, match=f"DreamerV3's size='1m' has {name}="):
            DreamerV3("Pendulum-v1", size="1m", **{name: 7})
    for paper in (DreamerV1, DreamerV2):
        with pytest.raises(ValueError, match="horizon must be a whole number, 2 or more"):
            paper("Pendulum-v1", horizon=1)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("paper", PAPERS)
def test_updates_lower_the_world_loss_and_change_everything(paper: type[Dreamer], env: str) -> None:
    agent = make(paper, env)
    batch = collected(agent)
    before = {name: p.clone() for name, p in agent.policy.named_parameters()}
    first = world_loss(agent, batch)
    for _ in range(30):
        agent._set_learning_rates()
        metrics = agent._update(batch)
        agent._n_updates += 1
    assert world_loss(agent, batch) < 0.9 * first
    assert all(value.isfinite() for value in metrics.values())
    for name, parameter in agent.policy.named_parameters():
        if "slow" not in name and parameter.ndim > 1:
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("paper", PAPERS)
def test_a_loaded_agent_acts_alike_and_learns_on_alike(paper: type[Dreamer], env: str, tmp_path: Path) -> None:
    agent = make(paper, env)
    batch = collected(agent)
    agent._update(batch)
    agent._n_updates += 1
    agent.save(tmp_path / "agent.zip")
    loaded = paper.load(tmp_path / "agent.zip", device="cpu")
    observations = np.stack([agent.observation_space.sample() for _ in range(4)]).clip(-1, 1)
    for deterministic in (True, False):
        actions, states = agent.predict(observations, deterministic=deterministic)
        again, states_again = loaded.predict(observations, deterministic=deterministic)
        np.testing.assert_array_equal(actions, again)
        assert all(np.array_equal(a, b) for a, b in zip(states, states_again))
    for one in (agent, loaded):
        one._set_learning_rates()
        one._update(batch)
    for (name, a), b in zip(agent.policy.named_parameters(), loaded.policy.parameters()):
        assert torch.equal(a, b), name


# -- DreamerV1 ------------------------------------------------------------------------------------------------


def test_v1_returns_count_the_reward_of_reaching_a_state() -> None:
    agent = make(DreamerV1, "CartPole-v1")
    _, dreams = dream(agent, collected(agent))
    features = dreams.features[1:].detach()
    with torch.no_grad():
        values = agent.policy.critic(features)
        discounts = torch.sigmoid(agent.world.continue_head(features)).squeeze(-1)
    returns = slow_returns(dreams.rewards[:-1].detach(), discounts[:-1], values[:-1], values[-1])
    weights = slow_weights(discounts[:-1])
    assert returns.shape == (agent.horizon - 1, features.shape[1])
    metrics = agent._update_behaviour(dreams)
    assert metrics["actor_loss"].item() == pytest.approx(-(weights * returns).mean().item(), rel=1e-4)
    expected = (weights * 0.5 * (values[:-1] - returns) ** 2).mean()
    assert metrics["critic_loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_v1_free_nats_are_of_the_mean_of_the_batch() -> None:
    agent = make(DreamerV1, free_nats=1e6)
    batch = collected(agent)
    loss = agent.world.loss(batch, ModeNoise())
    assert loss.parts["kl_loss"].item() == pytest.approx(1e6)
    loss.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in agent.world.prior.parameters())


@pytest.mark.parametrize("kind", [Dreamer, DreamerV1])
def test_dreams_start_after_no_end(kind: type[Dreamer]) -> None:
    agent = make(kind, "CartPole-v1", imagine_starts=4)
    batch = collected(agent)
    batch.is_terminal[:, 1:] = True
    rows = torch.cat([agent._start_rows(batch) for _ in range(20)])
    assert len(rows) == 80
    assert set(rows.tolist()) == set(range(0, batch.is_terminal.numel(), batch.shape[1]))


# -- DreamerV2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_v2_judges_an_action_by_the_return_of_the_state_it_leads_to(env: str) -> None:
    agent = make(DreamerV2, env, entropy_scale=0.1)
    torch.nn.init.normal_(agent.policy.slow_critic.net[-1].weight)
    batch = collected(agent)
    states = flatten_state(detach_state(agent.world.loss(batch, agent.noise).states))
    ended = torch.arange(len(states[0])) % 2 == 0
    dreams = agent._dream(states)
    agent._dream = lambda starts: dreams
    with torch.no_grad():
        features, policy = dreams.features, dreams.policy
        slow, values = agent.policy.slow_critic(features), agent.policy.critic(features)
        rewards = agent.world.reward_head(features).squeeze(-1)
        discounts = torch.full_like(slow, agent.gamma)
        if agent.world.continue_head is not None:
            discounts = torch.sigmoid(agent.world.continue_head(features)).squeeze(-1)
            discounts[0] = agent.gamma * (~ended)
        returns = slow_returns(rewards[:-1], discounts[:-1], slow[:-1], slow[-1])
        weights = slow_weights(discounts[:-1])
        gain = returns[1:]
        if env == "CartPole-v1":  # REINFORCE
            gain = (policy.log_prob(dreams.actions) * torch.cat([returns[1:] - slow[:-2], returns[-1:]]))[:-1]
        actor_loss = -(weights[:-1] * (gain + 0.1 * policy.entropy()[:-1])).mean()
        critic_loss = (weights * 0.5 * (values[:-1] - returns) ** 2).mean()
    metrics = agent._update_from(states, ended)
    assert metrics["actor_loss"].item() == pytest.approx(actor_loss.item(), rel=1e-4)
    assert metrics["critic_loss"].item() == pytest.approx(critic_loss.item(), rel=1e-4)


def test_v2_copies_the_critic_every_few_updates() -> None:
    agent = make(DreamerV2, slow_every=3)
    batch = collected(agent)
    agent._n_updates = 0
    copies: list[Tensor] = []
    for update in range(7):
        agent._update(batch)
        agent._n_updates += 1
        slow, fast = agent.policy.slow_critic.net[0].weight, agent.policy.critic.net[0].weight
        assert torch.equal(slow, fast) == (update % 3 == 0)
        copies.append(slow.clone())
    assert torch.equal(copies[0], copies[2])
    assert torch.equal(copies[3], copies[5])
    assert not torch.equal(copies[2], copies[3])


@pytest.mark.parametrize("name", ["world", "actor", "critic"])
def test_v2_weight_decay_is_not_multiplied_by_the_learning_rate(name: str) -> None:
    agent = make(DreamerV2, weight_decay=0.25)
    optimizer = agent.optimizers[name]
    before = [p.clone() for p in optimizer.param_groups[0]["params"]]
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(optimizer.param_groups[0]["params"], before):
        torch.testing.assert_close(p.detach(), 0.75 * old.detach())


# -- DreamerV3 ------------------------------------------------------------------------------------------------

PARAMETERS = {"1m": 686_846, "12m": 10_494_158, "25m": 23_489_326, "50m": 41_650_062, "100m": 93_468_238}


@pytest.mark.parametrize("size", [*PARAMETERS, "200m"])
def test_v3_has_as_many_parameters_as_the_official_code(size: str) -> None:
    agent = DreamerV3(None, size=size, seed=0, device="cpu", _init_setup_model=False)
    agent.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    agent.action_space = spaces.Box(-1, 1, (6,), np.float32)
    with torch.device("meta"):
        world = agent._build_world()
        modules = [world, *agent._build_behaviour(world).values()]
    count = sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
    if size in PARAMETERS:
        assert count == PARAMETERS[size]
    else:
        assert count == pytest.approx(165.95e6, rel=1e-4)


def test_v3_has_no_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"'2m'.*1m, 12m"):
        DreamerV3("Pendulum-v1", size="2m")


def test_v3_trains_everything_with_one_optimiser_that_warms_up() -> None:
    agent = make(DreamerV3, learning_rate=1e-3, warmup=4)
    assert list(agent.optimizers) == ["all"]
    trained = [id(p) for group in agent.optimizers["all"].param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in agent.policy.parameters() if p.requires_grad)
    assert not {id(p) for p in agent.policy.slow_critic.parameters()} & set(trained)
    rates = []
    for agent._n_updates in range(6):
        agent._set_learning_rates()
        rates.append(agent.optimizers["all"].param_groups[0]["lr"])
    assert rates == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


def test_v3_losses_in_dreams() -> None:
    agent = make(DreamerV3, "CartPole-v1")
    awaken(agent)
    _, dreams = dream(agent, collected(agent))
    agent.policy.return_range.high.fill_(300.0)
    losses, returns, _ = agent._dream_losses(dreams)
    with torch.no_grad():
        features = dreams.features
        values, slow = agent.policy.critic(features), agent.policy.slow_critic(features)
        continues = torch.sigmoid(agent.world.continue_head(features)).squeeze(-1)
        expected = slow_returns_of_steps(dreams.rewards, continues[1:], values)
        weights = torch.stack([continues[: t + 1].prod(0) for t in range(agent.horizon)])
        span = (agent.policy.return_range.high - agent.policy.return_range.low).clamp(min=1)
        assert span > 100
        policy = agent.policy.actor(features[:-1])
        gain = policy.log_prob(dreams.actions) * (expected - values[:-1]) / span
        actor_loss = -(weights * (gain + 3e-4 * policy.entropy())).mean()
        two_hot, logits = agent.policy.critic.two_hot, torch.log_softmax(agent.policy.critic.net(features[:-1]), -1)
        crosses = [-(two_hot.encode(target) * logits).sum(-1) for target in (expected, slow[:-1])]
        critic_loss = (weights * (crosses[0] + crosses[1])).mean()
    torch.testing.assert_close(returns, expected, rtol=1e-5, atol=1e-5)
    assert losses["actor"].item() == pytest.approx(actor_loss.item(), rel=1e-3)
    assert losses["critic"].item() == pytest.approx(critic_loss.item(), rel=1e-4)


def test_v3_replayed_returns_stop_at_ends() -> None:
    agent = make(DreamerV3)
    returns: list[Tensor] = []

    def remember(features: Tensor, target: Tensor) -> Tensor:
        returns.append(target)
        return torch.ones_like(target)

    agent._value_loss = remember
    # One stream: an episode that is cut off after step 1, one that ends at step 4, and the beginning of a third.
    reward = torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 0.0, 4.0])[:, None]
    boot = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0])[:, None]
    first = torch.tensor([1, 0, 1, 0, 0, 1, 0]).bool()[:, None]
    terminal = torch.tensor([0, 0, 0, 0, 1, 0, 0]).bool()[:, None]
    loss = agent._replay_value_loss(torch.zeros(7, 1, 2), boot, reward, first, terminal)
    gamma = agent.gamma
    ends = {0: 1 + gamma * 20, 3: 3.0, 5: 4 + gamma * 70}
    ends[2] = 2 + gamma * ((1 - LAM) * 40 + LAM * ends[3])
    for step, expected in ends.items():
        assert returns[0][step].item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(4 / 6)  # the last steps of the two episodes that ended do not count


def test_v3_replayed_values_shape_the_world_and_dreamed_ones_do_not() -> None:
    agent = make(DreamerV3)
    awaken(agent)
    batch = collected(agent)
    states = agent.world.loss(batch, agent.noise).states
    _, dreams = dream(agent, batch)
    losses, returns, _ = agent._dream_losses(dreams)
    agent.policy.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    assert all(p.grad is None for p in agent.world.parameters())
    boot = returns[0].unflatten(0, batch.shape)
    loss = agent._replay_value_loss(agent.world.features(states), boot, batch.reward, batch.is_first, batch.is_terminal)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in agent.world.core.gates.parameters())


def test_v3_may_dream_from_the_last_steps_only() -> None:
    agent = make(DreamerV3, imagine_starts=7)
    batch = collected(agent)
    assert agent._last_steps(batch) == slice(-3, None)  # 7 of 3 sequences: three steps of each
    started: list[int] = []
    original = agent._dream
    agent._dream = lambda starts: started.append(len(starts[0])) or original(starts)
    agent._update(batch)
    assert started == [9]


def test_v3_world_is_the_official_one() -> None:
    config = v3_world(64, 1 - 1 / 333, 0.01, 1.0, 1.0, 0.1)
    assert (config.deter, config.classes, config.encoder.depth) == (512, 4, 4)
    assert config.kl_weights() == (1.0, 0.1)


# -- presets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["dreamer_v1", "dreamer_v2", "dreamer_v3"])
def test_presets_build_agents_and_default_repeats_the_signature(algo: str) -> None:
    paper = ALGORITHMS[algo]
    signature = inspect.signature(paper).parameters
    for name, value in load_preset(algo, "Pendulum-v1", "default").items():
        if name in signature:
            assert value == pytest.approx(signature[name].default), name
    agent = paper("Pendulum-v1", seed=0, device="cpu", **load_preset(algo, "Pendulum-v1", "cpu"))
    assert agent.predict(np.zeros(3, np.float32))[0].shape == (1,)


# -- helpers --------------------------------------------------------------------------------------------------


def awaken(agent: Dreamer) -> None:
    """Rewards about 2.5 and values about 36, where both would begin at zero."""
    for net, bin_ in (
        (agent.world.reward_head, 135),
        (agent.policy.critic.net, 150),
        (agent.policy.slow_critic.net, 148),
    ):
        torch.nn.init.normal_(net[-1].weight, std=0.1)
        net[-1].bias.data = -0.02 * (torch.arange(255.0) - bin_) ** 2


def slow_weights(discounts: Tensor) -> Tensor:
    """The product of all earlier discounts."""
    return torch.stack([discounts[:t].prod(0) for t in range(len(discounts))])


def slow_returns(rewards: Tensor, discounts: Tensor, values: Tensor, bootstrap: Tensor) -> Tensor:
    """V1's and V2's recursion, one number at a time; all arguments belong to the same states."""
    following = torch.cat([values[1:], bootstrap[None]])
    returns = torch.zeros_like(rewards)
    for n in range(rewards.shape[1]):
        later = bootstrap[n]
        for t in reversed(range(rewards.shape[0])):
            later = rewards[t, n] + discounts[t, n] * ((1 - LAM) * following[t, n] + LAM * later)
            returns[t, n] = later
    return returns


def slow_returns_of_steps(rewards: Tensor, discounts: Tensor, values: Tensor) -> Tensor:
    """V3's recursion; rewards and discounts belong to the step from t to t + 1."""
    returns = torch.zeros_like(rewards)
    later = values[-1]
    for t in reversed(range(len(rewards))):
        later = rewards[t] + discounts[t] * ((1 - LAM) * values[t + 1] + LAM * later)
        returns[t] = later
    return returns
