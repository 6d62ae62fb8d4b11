"""The update of Dreamer by TorchRL's losses and environment, for `benchmarks.update`: a worker of `benchmarks.serving`.

`make bench-peers` builds the environment that it runs in; nothing of this package is imported but `serving`. TorchRL
has parts and no agent. Its encoder, decoder, prior, posterior, actor, `DreamerEnv` and three losses are put together
here at the sizes of Dreamer V1 (Hafner et al. 2020).
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from tensordict.nn import TensorDictModule as Part
from tensordict.nn import TensorDictSequential as Chain
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.model_based.dreamer import DreamerEnv
from torchrl.modules import (
    MLP,
    DreamerActor,
    ObsDecoder,
    ObsEncoder,
    RSSMPosterior,
    RSSMPrior,
    RSSMRollout,
    TanhNormal,
    WorldModelWrapper,
)
from torchrl.objectives import DreamerActorLoss, DreamerModelLoss, DreamerValueLoss
from torchrl.objectives.utils import ValueEstimators

from benchmarks.serving import ACTION, Spec, Update, serve

DETER, STOCH, UNITS, HEAD, PICTURE = 200, 30, 200, 400, 1024
RATES = {"world": 6e-4, "actor": 8e-5, "critic": 8e-5}
NEXT = ("next", "state"), ("next", "belief")


def build(spec: Spec) -> Update:
    """One update of world, actor and critic.

    Raises:
        ValueError: for what TorchRL has no parts for: other agents, and observations that are no pictures.
    """
    if spec.agent != "dreamer_v1" or spec.observation != "pixels":
        raise ValueError(f"TorchRL's parts make a Dreamer V1 from pixels, not {spec}.")
    torch.manual_seed(0)
    prior = RSSMPrior(Bounded(-1, 1, (ACTION,)), UNITS, DETER, STOCH, action_dim=ACTION)
    reward = MLP(out_features=1, depth=2, num_cells=HEAD, activation_class=nn.ELU, in_features=STOCH + DETER)
    world = DreamerModelLoss(_world(prior, reward))
    actor, critic = _actor(), _critic()
    actor_loss = DreamerActorLoss(actor, critic, _dreams(prior, reward))
    actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.99, lmbda=0.95)
    critic_loss = DreamerValueLoss(critic)
    modules = {"world": world, "actor": actor, "critic": critic}
    optimizers = {name: torch.optim.Adam(modules[name].parameters(), rate) for name, rate in RATES.items()}
    batch = make_batch(spec)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bfloat16"):
            losses, seen = world(batch.clone())
            _descend(optimizers["world"], sum(losses.values()))
            start = TensorDict({"state": seen[NEXT[0]], "belief": seen[NEXT[1]]}, seen.batch_size).reshape(-1)
            losses, dreamt = actor_loss(start)
            _descend(optimizers["actor"], losses["loss_actor"])
            losses, _ = critic_loss(dreamt)
            _descend(optimizers["critic"], losses["loss_value"])

    trained = {id(p): p.numel() for module in modules.values() for p in module.parameters()}
    return Update(step, sum(trained.values()))


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 100.0)
    optimizer.step()


def _world(prior: nn.Module, reward: nn.Module) -> WorldModelWrapper:
    """Encodes all frames, filters step by step, decodes all, and predicts rewards."""
    posterior = RSSMPosterior(UNITS, STOCH, rnn_hidden_dim=DETER, obs_embed_dim=PICTURE)
    stats = [("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")]
    rollout = RSSMRollout(
        Part(prior, in_keys=["state", "belief", "action"], out_keys=stats),
        Part(
            posterior,
            in_keys=[("next", "belief"), ("next", "encoded_latents")],
            out_keys=[("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")],
        ),
    )
    encode = Part(ObsEncoder(in_channels=3), in_keys=[("next", "pixels")], out_keys=[("next", "encoded_latents")])
    decode = Part(ObsDecoder(latent_dim=STOCH + DETER), in_keys=[*NEXT], out_keys=[("next", "reco_pixels")])
    return WorldModelWrapper(
        Chain(encode, rollout, decode), Part(reward, in_keys=[*NEXT], out_keys=[("next", "reward")])
    )


def _dreams(prior: nn.Module, reward: nn.Module) -> DreamerEnv:
    """TorchRL's environment over the prior."""
    model = WorldModelWrapper(
        Part(prior, in_keys=["state", "belief", "action"], out_keys=["_", "_", "state", "belief"]),
        Part(reward, in_keys=["state", "belief"], out_keys=["reward"]),
    )
    env = DreamerEnv(model, prior_shape=(STOCH,), belief_shape=(DETER,))
    env.observation_spec = Composite(state=Unbounded((STOCH,)), belief=Unbounded((DETER,)))
    env.state_spec = env.observation_spec.clone()
    env.action_spec = Bounded(-1, 1, (ACTION,))
    env.reward_spec = Unbounded((1,))
    return env


def _actor() -> ProbabilisticTensorDictSequential:
    net = DreamerActor(out_features=ACTION, depth=4, num_cells=HEAD)
    net(torch.zeros(1, STOCH), torch.zeros(1, DETER))  # its first layer is as wide as what it sees
    sample = ProbabilisticTensorDictModule(
        in_keys=["loc", "scale"],
        out_keys=["action"],
        default_interaction_type="random",
        distribution_class=TanhNormal,
        distribution_kwargs={"tanh_loc": True},
    )
    return ProbabilisticTensorDictSequential(Part(net, ["state", "belief"], ["loc", "scale"]), sample)


def _critic() -> Part:
    net = MLP(out_features=1, depth=3, num_cells=HEAD, activation_class=nn.ELU, in_features=STOCH + DETER)
    return Part(net, in_keys=["state", "belief"], out_keys=["state_value"])


def make_batch(spec: Spec) -> TensorDict:
    """Noise in the shape of replayed sequences, as `benchmarks.ours.make_batch`."""
    draw = torch.Generator().manual_seed(0)
    shape = (spec.batch, spec.length)
    after = {
        "pixels": torch.rand(*shape, 3, 64, 64, generator=draw) - 0.5,
        "reward": torch.rand(*shape, 1, generator=draw),
    }
    return TensorDict(
        {
            "action": 2 * torch.rand(*shape, ACTION, generator=draw) - 1,
            "state": torch.zeros(*shape, STOCH),
            "belief": torch.zeros(*shape, DETER),
            "next": TensorDict(after, shape),
        },
        shape,
    )


if __name__ == "__main__":
    serve(build)
