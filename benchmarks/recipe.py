"""The flagship's update from state beside a plain one: the recipe that the flagship began with, without any haste.

    python -m benchmarks.recipe               # prints the table, writes benchmarks/results/recipe.json

The recipe is written as its equations stand, one step of the sequence after the other, in float32 and with torch's
ordinary Adam: GRU of 200, 30 Gaussian latents, layers of 200 with layer normalisation; 16 sequences of 32; dreams of 15
steps from 160 states. The flagship is measured three times: with its own defaults (5 steps from 307 states, products
of dreams in bfloat16), with those of its preset `quick` (32 sequences of 16, as many replayed steps; dreams of
6 steps; vectors in units of their deviation), and with the recipe's horizon, states and precision. All alternate in one
process, one thread, timed by the processor's clock.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from agents import Dreamer
from agents.zoo.hyperparams import load_preset
from benchmarks import report
from benchmarks.ours import Spaces, make_batch
from benchmarks.serving import ACTION, STATE, Spec, alternate, flops, matrix_rate, timed
from wmgym.worlds.base import SequenceBatch

WIDTH, LATENTS, HORIZON, STARTS = 200, 30, 15, 160
DISCOUNT, LAMBDA = 0.99, 0.95


def layers(in_size: int, out_size: int | None, hidden: int) -> nn.Sequential:
    """Hidden layers of Linear, LayerNorm and SiLU, then a linear one."""
    modules: list[nn.Module] = []
    for size in [in_size, *[WIDTH] * (hidden - 1)]:
        modules += [nn.Linear(size, WIDTH), nn.LayerNorm(WIDTH), nn.SiLU()]
    return nn.Sequential(*modules, *([nn.Linear(WIDTH, out_size)] if out_size else []))


def normal(stats: Tensor) -> Normal:
    """Mean and deviation `softplus + 0.1`."""
    mean, std = stats.chunk(2, -1)
    return Normal(mean, F.softplus(std) + 0.1)


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(1 + |x|)`."""
    return x.sign() * x.abs().log1p()


class Recipe(nn.Module):
    """The recipe's world, actor and critic."""

    def __init__(self) -> None:
        super().__init__()
        features = WIDTH + LATENTS
        self.encoder = layers(STATE, None, 2)
        self.inputs = layers(LATENTS + ACTION, None, 1)
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        self.prior = layers(WIDTH, 2 * LATENTS, 1)
        self.posterior = layers(2 * WIDTH, 2 * LATENTS, 1)
        self.decoder = layers(features, STATE, 2)
        self.reward = layers(features, 1, 2)
        world = list(self.parameters())
        self.actor = layers(features, 2 * ACTION, 3)
        self.critic = layers(features, 1, 3)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.low, self.high = 0.0, 0.0
        self.parts = {"world": world, "actor": list(self.actor.parameters()), "critic": list(self.critic.parameters())}
        rates = {"world": 6e-4, "actor": 3e-4, "critic": 3e-4}
        self.optimizers = {name: torch.optim.Adam(part, rates[name]) for name, part in self.parts.items()}

    def update(self, batch: SequenceBatch) -> None:
        """One update of everything."""
        deter, stoch = self.learn_world(batch)
        chosen = torch.randperm(len(deter))[:STARTS]
        for parameter in self.parts["world"]:
            parameter.requires_grad_(False)
        self.learn_behaviour(deter[chosen], stoch[chosen])
        for parameter in self.parts["world"]:
            parameter.requires_grad_(True)

    def step(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """The next deterministic state."""
        moved: Tensor = self.cell(self.inputs(torch.cat([stoch, action], -1)), deter)
        return moved

    def learn_world(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Gradient step of the world; the posterior states, flat."""
        seen = symlog(batch.observation["observation"])
        embedded = self.encoder(seen)
        deter, stoch = seen.new_zeros(seen.shape[1], WIDTH), seen.new_zeros(seen.shape[1], LATENTS)
        states, posteriors, priors = [], [], []
        for t in range(len(seen)):
            keep = (~batch.is_first[t]).float()[:, None]
            deter = self.step(deter * keep, stoch * keep, batch.action[t] * keep)
            priors.append(self.prior(deter))
            posteriors.append(self.posterior(torch.cat([deter, embedded[t]], -1)))
            stoch = normal(posteriors[-1]).rsample()
            states.append((deter, stoch))
        features = torch.stack([torch.cat(state, -1) for state in states])
        error = (self.decoder(features) - seen).square().sum(-1).mean()
        error_reward = (self.reward(features).squeeze(-1) - batch.reward).square().mean()
        loss = 5 * error + 5 * error_reward + self.divergence(torch.stack(posteriors), torch.stack(priors))
        self.descend("world", loss)
        flat = features.detach().flatten(0, 1)
        return flat[:, :WIDTH], flat[:, WIDTH:]

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Balanced, with a free nat on each side."""
        train_prior = kl_divergence(normal(posterior.detach()), normal(prior)).sum(-1).mean()
        train_posterior = kl_divergence(normal(posterior), normal(prior.detach())).sum(-1).mean()
        return 0.8 * train_prior.clamp(min=1) + 0.2 * train_posterior.clamp(min=1)

    def act(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """A tanh-Normal's draw, and the log of its deviation."""
        mean, std = self.actor(features).chunk(2, -1)
        std = F.softplus(std + 1) + 0.1
        return torch.tanh(Normal(5 * torch.tanh(mean / 5), std).rsample()), std.log()

    def learn_behaviour(self, deter: Tensor, stoch: Tensor) -> None:
        """Gradient steps of actor and critic in dreams."""
        path, spreads = [torch.cat([deter, stoch], -1)], []
        for _ in range(HORIZON):
            action, spread = self.act(path[-1].detach())
            deter = self.step(deter, stoch, action)
            stoch = normal(self.prior(deter)).rsample()
            path.append(torch.cat([deter, stoch], -1))
            spreads.append(spread)
        features = torch.stack(path)
        values, rewards = self.slow_critic(features).squeeze(-1), self.reward(features[1:]).squeeze(-1)
        returns = self.returns(rewards, values)
        scale = self.scale(returns.detach())
        self.descend("actor", -returns.mean() / scale - 1e-3 * torch.stack(spreads).mean())
        predicted = self.critic(features[:-1].detach()).squeeze(-1)
        self.descend("critic", (predicted - returns.detach()).square().mean())
        with torch.no_grad():
            for slow, fast in zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, 0.02)

    def returns(self, rewards: Tensor, values: Tensor) -> Tensor:
        """The lambda-returns."""
        last, found = values[-1], []
        for t in reversed(range(HORIZON)):
            last = rewards[t] + DISCOUNT * ((1 - LAMBDA) * values[t + 1] + LAMBDA * last)
            found.append(last)
        return torch.stack(found[::-1])

    def scale(self, returns: Tensor) -> float:
        """The running P95 - P5, at least 1."""
        low, high = (torch.quantile(returns, share).item() for share in (0.05, 0.95))
        self.low, self.high = 0.99 * self.low + 0.01 * low, 0.99 * self.high + 0.01 * high
        return max(1.0, self.high - self.low)

    def descend(self, name: str, loss: Tensor) -> None:
        """A clipped gradient step of one part."""
        self.optimizers[name].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts[name], 100)
        self.optimizers[name].step()


def updates() -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    torch.manual_seed(0)
    flagship = Dreamer(Spaces("state"), device="cpu", seed=0)
    quick = Dreamer(Spaces("state"), device="cpu", seed=0, **load_preset("dreamer", "", "quick"))
    batch, short = (
        make_batch(Spec("dreamer", "state", batch=agent.batch_size, length=agent.batch_length))
        for agent in (flagship, quick)
    )
    recipe = Recipe()
    alike = {"horizon": HORIZON, "imagine_starts": STARTS, "dream_precision": "float32"}
    same = Dreamer(Spaces("state"), device="cpu", seed=0, **alike)  # type: ignore[arg-type]
    return {
        "the recipe, plainly": lambda: recipe.update(batch),
        "Dreamer, own defaults": lambda: flagship._update(batch),
        "Dreamer, preset quick": lambda: quick._update(short),
        "Dreamer, the recipe's dreams and precision": lambda: same._update(batch),
    }


def run(repeats: int) -> dict[str, Any]:
    """Measure; the first three rounds do not count."""
    torch.set_num_threads(1)
    result: dict[str, Any] = report.facts()
    steps = {name: (lambda step=step: timed(step)) for name, step in updates().items()}
    counted = {name: flops(step) for name, step in updates().items()}
    alternate(steps, 3)
    rate = matrix_rate()
    measured = alternate(steps, repeats)
    seconds = {name: [one["processor_s"] for one in found] for name, found in measured.items()}
    plain = next(iter(seconds.values()))
    result["rows"] = {
        name: {
            "seconds": statistics.median(found),
            "least": min(found),
            "times_as_fast": statistics.median(a / b for a, b in zip(plain, found, strict=True)),
            "floor_s": counted[name] / rate,
        }
        for name, found in seconds.items()
    }
    return result


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    rows = [
        [name, f"{row['seconds']:.3f}", f"{row['least']:.3f}", f"{row['times_as_fast']:.2f}", f"{row['floor_s']:.3f}"]
        for name, row in result["rows"].items()
    ]
    columns = ["update from state, 512 replayed steps", "median, s", "least, s", "times as fast", "floor in float32, s"]
    return report.markdown(columns, rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    result = run(parser.parse_args(arguments).repeats)
    report.save("recipe", "The flagship beside the recipe it began with", result, table(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
