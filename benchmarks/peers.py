"""The updates of sheeprl's Dreamers, for `benchmarks.update`: a worker of `benchmarks.serving`.

`make bench-peers` builds the environment that it runs in, `.venv-peers`; nothing of this package is imported. Each
update is sheeprl's own `train` function, on its own networks and optimisers, configured through its own Hydra files to
this package's sizes. DreamerV3 is its `dreamer_v3_5`, the algorithm of 2024 that `agents.DreamerV3` follows; replayed
sequences begin in the initial state in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import hydra
import numpy as np
import torch
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v1 import agent as v1_agent
from sheeprl.algos.dreamer_v1 import dreamer_v1
from sheeprl.algos.dreamer_v2 import agent as v2_agent
from sheeprl.algos.dreamer_v2 import dreamer_v2
from sheeprl.algos.dreamer_v2.utils import build_optimizer
from sheeprl.algos.dreamer_v3_5 import agent as v3_agent
from sheeprl.algos.dreamer_v3_5 import dreamer_v3_5
from sheeprl.utils.metric import MetricAggregator
from sheeprl.utils.utils import dotdict

from benchmarks.serving import ACTION, STATE, Spec, Update, serve

_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
_SIZES = {
    "dreamer_v1": [
        "algo.world_model.encoder.mlp_layers=2",
        "algo.world_model.observation_model.mlp_layers=2",
    ],
    "dreamer_v2": [
        "algo.world_model.recurrent_model.recurrent_state_size=200",
        "algo.world_model.transition_model.hidden_size=200",
        "algo.world_model.representation_model.hidden_size=200",
    ],
    "dreamer_v3": ["algo.replay_context=0"],
}
"""What sheeprl's defaults have otherwise than this package's."""


def build(spec: Spec) -> Update:
    """One call of sheeprl's `train`."""
    MetricAggregator.disabled = True
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    cfg = configure(spec)
    fabric = Fabric(accelerator=spec.device, devices=1, precision=_PRECISIONS[spec.precision])
    makers: dict[str, Callable[..., tuple[Callable[[dict[str, Any]], None], list[Any]]]]
    makers = {"dreamer_v1": _v1, "dreamer_v2": _v2, "dreamer_v3": _v3}
    train, optimizers = makers[spec.agent](fabric, cfg, _space(spec))
    batch = {key: value.to(spec.device) for key, value in make_batch(spec).items()}
    trained = {id(p): p.numel() for o in optimizers for group in o.param_groups for p in group["params"]}
    return Update(lambda: train(dict(batch)), sum(trained.values()))


def configure(spec: Spec) -> Any:
    """The configuration of the experiment, as the command line of sheeprl makes it."""
    experiment = "dreamer_v3_5" if spec.agent == "dreamer_v3" else spec.agent
    seen, unseen = ("mlp", "cnn") if spec.observation == "state" else ("cnn", "mlp")
    overrides = [f"exp={experiment}", "env=dummy", *_SIZES[spec.agent]]
    overrides += [f"algo.{seen}_keys.encoder=[{spec.observation}]", f"algo.{unseen}_keys.encoder=[]"]
    overrides += [f"algo.{seen}_keys.decoder=[{spec.observation}]", f"algo.{unseen}_keys.decoder=[]"]
    overrides += [f"algo.per_rank_batch_size={spec.batch}", f"algo.per_rank_sequence_length={spec.length}"]
    overrides += [f"algo.compile.enabled={spec.mode == 'compiled'}"]
    if spec.size:
        overrides.append(f"algo=dreamer_v3_5_{spec.size.upper()}")
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        composed = hydra.compose("config", overrides=overrides)
    needed = ("algo", "distribution", "env")
    return dotdict({name: OmegaConf.to_container(composed[name], resolve=True) for name in needed})


def _space(spec: Spec) -> gym.spaces.Dict:
    if spec.observation == "state":
        return gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float32)})
    return gym.spaces.Dict({"pixels": gym.spaces.Box(0, 255, (3, 64, 64), np.uint8)})


def make_batch(spec: Spec) -> dict[str, torch.Tensor]:
    """Noise in the shape of sheeprl's replayed sequences, as `benchmarks.ours.make_batch`."""
    draw = torch.Generator().manual_seed(0)
    shape = (spec.length, spec.batch)
    if spec.observation == "state":
        observation = torch.randn(*shape, STATE, generator=draw)
    else:
        observation = torch.randint(0, 256, (*shape, 3, 64, 64), dtype=torch.uint8, generator=draw)
    zeros = torch.zeros(*shape, 1)
    return {
        spec.observation: observation,
        "actions": 2 * torch.rand(*shape, ACTION, generator=draw) - 1,
        "rewards": torch.rand(*shape, 1, generator=draw),
        "terminated": zeros,
        "truncated": zeros.clone(),
        "is_first": zeros.clone(),
    }


def _v1(fabric: Fabric, cfg: Any, space: gym.spaces.Dict) -> tuple[Callable[[dict[str, Any]], None], list[Any]]:
    world, actor, critic, _ = v1_agent.build_agent(fabric, (ACTION,), True, cfg, space)
    parts = ((cfg.algo.world_model, world), (cfg.algo.actor, actor), (cfg.algo.critic, critic))
    made = [hydra.utils.instantiate(c.optimizer, params=m.parameters(), _convert_="all") for c, m in parts]
    optimizers = fabric.setup_optimizers(*made)

    def train(data: dict[str, Any]) -> None:
        dreamer_v1.train(fabric, world, actor, critic, *optimizers, data, None, cfg)

    return train, list(optimizers)


def _v2(fabric: Fabric, cfg: Any, space: gym.spaces.Dict) -> tuple[Callable[[dict[str, Any]], None], list[Any]]:
    world, actor, critic, target, _ = v2_agent.build_agent(fabric, (ACTION,), True, cfg, space)
    parts = ((cfg.algo.world_model, world), (cfg.algo.actor, actor), (cfg.algo.critic, critic))
    optimizers = fabric.setup_optimizers(*(build_optimizer(c.optimizer, m.parameters()) for c, m in parts))

    def train(data: dict[str, Any]) -> None:
        dreamer_v2.train(fabric, world, actor, critic, target, *optimizers, data, None, cfg, (ACTION,))

    return train, list(optimizers)


def _v3(fabric: Fabric, cfg: Any, space: gym.spaces.Dict) -> tuple[Callable[[dict[str, Any]], None], list[Any]]:
    world, actor, critic, target, _ = v3_agent.build_agent(fabric, (ACTION,), True, cfg, space)
    parameters = [*world.parameters(), *actor.parameters(), *critic.parameters()]
    made = hydra.utils.instantiate(cfg.algo.optimizer, params=parameters, _convert_="all")
    optimizer = fabric.setup_optimizers(made)
    scale = cfg.algo.actor.moments
    moments = dreamer_v3_5.Moments(scale.decay, scale.max, scale.percentile.low, scale.percentile.high)

    def train(data: dict[str, Any]) -> None:
        dreamer_v3_5.train(fabric, cfg, world, actor, critic, target, optimizer, moments, data, None, (ACTION,))
        dreamer_v3_5.update_target_critic(critic, target, cfg.algo.critic.tau)

    return train, [optimizer]


if __name__ == "__main__":
    serve(build)
