"""The updates of this package's agents, for `benchmarks.update`: a worker of `benchmarks.serving`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from agents import Dreamer, DreamerV1, DreamerV2, DreamerV3
from agents.captured import capture_updates
from benchmarks.serving import ACTION, STATE, Spec, Update, serve
from wmgym.worlds.base import SequenceBatch
from wmgym.worlds.rssm import RSSMConfig

AGENTS = {"dreamer": Dreamer, "dreamer_v1": DreamerV1, "dreamer_v2": DreamerV2, "dreamer_v3": DreamerV3}


class Spaces(gym.Env):
    """An environment that is only looked at for its spaces, walker-walk's."""

    def __init__(self, observation: str) -> None:
        vector = spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
        self.observation_space = vector if observation == "state" else spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Box(-1, 1, (ACTION,), np.float32)


def build(spec: Spec) -> Update:
    """One update of world and behaviour on a batch of noise; what it costs does not depend on what is in it."""
    agent = make_agent(spec)
    batch = make_batch(spec)
    trained = {id(p): p.numel() for o in agent.optimizers.values() for group in o.param_groups for p in group["params"]}
    agent.policy.set_training_mode(True)
    return Update(lambda: agent.perform(batch), sum(trained.values()))


def make_agent(spec: Spec) -> Dreamer:
    """The agent, dreaming from every state in the precision asked for, or as its defaults are."""
    options: dict[str, Any] = {"size": spec.size} if spec.size else {}
    if not spec.defaults:
        options |= {"imagine_starts": None, "dream_precision": spec.precision, "world_config": _world(spec, options)}
    agent = AGENTS[spec.agent](
        Spaces(spec.observation),
        batch_size=spec.batch,
        batch_length=spec.length,
        device=spec.device,
        seed=0,
        **options,
    )
    if spec.mode == "compiled":
        compile_steps(agent)
    if spec.mode == "captured":
        capture_updates(agent)
    return agent


def _world(spec: Spec, options: dict[str, Any]) -> RSSMConfig:
    """The agent's own world, its picture layers in the precision asked for and every frame decoded."""
    config = AGENTS[spec.agent](None, _init_setup_model=False, **options).world_config
    bfloat16 = spec.precision == "bfloat16"
    coders = (replace(coder, bfloat16=bfloat16) for coder in (config.encoder, config.decoder))
    return replace(config, picture_share=1.0, **dict(zip(("encoder", "decoder"), coders)))


def compile_steps(agent: Dreamer) -> None:
    """Compile what runs in the recurrent loops: a filter step and a predicted step."""
    world: Any = agent.world
    for name in ("_filter_step", "transition"):
        setattr(world, name, torch.compile(getattr(world, name)))


def make_batch(spec: Spec) -> SequenceBatch:
    """Noise in the shape of replayed sequences of one episode each."""
    draw = torch.Generator().manual_seed(0)
    shape = (spec.length, spec.batch)
    if spec.observation == "state":
        observation = torch.randn(*shape, STATE, generator=draw)
    else:
        observation = torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8, generator=draw)
    is_first = torch.zeros(shape, dtype=torch.bool)
    is_first[0] = True
    return SequenceBatch(
        observation={"observation": observation.to(spec.device)},
        action=(2 * torch.rand(*shape, ACTION, generator=draw) - 1).to(spec.device),
        reward=torch.rand(*shape, generator=draw).to(spec.device),
        is_first=is_first.to(spec.device),
        is_terminal=torch.zeros(shape, dtype=torch.bool, device=spec.device),
    )


if __name__ == "__main__":
    serve(build)
