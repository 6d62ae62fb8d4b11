"""World Models: see with V, remember with M, act with C; C evolves in M's dream.

    repeat `iterations` times
        collect    decisions at random (later: of C) in the real environment
        vision     V <- V - grad [ |o - decode(z)|^2 + max(KL, floor) ]                  single frames
        memory     M <- M - grad [ -ln p(z' | h') + (r - r')^2 - ln p(end) ]             sequences of V's codes
        controller CMA-ES: P candidates x R dreams of M, one batch; C <- the best mean so far

Source: Ha & Schmidhuber 2018, "World Models", with the iterative procedure of its section 5.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from agents.arguments import check_choices, check_range, check_whole
from agents.controllers import Controller
from agents.evolution import Evolution
from agents.imagination import matmul_precision
from agents.latents import code_of, latent_replay
from agents.policy import WorldModelPolicy
from agents.rollouts import Ends, dream_returns, real_returns
from agents.stages import StagedAgent
from wmgym.nets.coders import CoderConfig
from wmgym.random import TorchNoise
from wmgym.real import make_vec
from wmgym.replay import SequenceReplay
from wmgym.worlds.base import SequenceBatch, State, World, index_state
from wmgym.worlds.mdn_rnn import MDNRNN, MDNRNNConfig

_OF_EVOLUTION = {
    "train_in", "generations", "population", "rollouts", "sigma", "weight_decay", "evaluate_every",
    "evaluate_rollouts", "temperature", "ends", "dream_horizon", "starts", "real_envs",
}  # fmt: skip


class WorldModels(StagedAgent):
    """V, M and C, each fitted in a stage of its own.

    `learn(n)` goes once through the whole procedure with `n` decisions in the real environment, which are shared out
    among the iterations; called again, it goes on from the networks that there are. A run that is interrupted, or
    saved by a callback, goes on within the stage it was in: `load(path).learn(0, reset_num_timesteps=False)`.

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here. `train_ratio`, `train_freq`,
            `gradient_steps`, `pretrain`, `learning_starts` and `online_queue` have no meaning here.
        policy: see `WorldModelAgent`.
        learning_rate: Adam's, for V.
        vision_updates: updates of V in each iteration.
        vision_batch: frames in each.
        memory_learning_rate: Adam's first rate for M.
        memory_decay: factor on it after each update; it falls towards 1e-5.
        memory_updates: updates of M in each iteration.
        batch_size: sequences in each.
        batch_length: steps in a sequence.
        precision: of M's matrix products while it is fitted (see `Dreamer`'s `dream_precision`).
        latent: Z, numbers in a latent.
        hidden: H, width of M.
        depth: channels of V's first convolution.
        world_config: a whole world configuration, instead of the three above.
        ordered: whether discrete actions lie on a line (`Controller`).
        bias: whether C has one.
        train_in: where C evolves, "dream" or "real".
        iterations: rounds of the procedure.
        generations: of CMA-ES in each.
        population: candidates in a generation.
        rollouts: episodes that a candidate is judged by.
        sigma: first deviation of the candidates.
        weight_decay: see `Evolution`.
        evaluate_every: generations between evaluations of the mean; the best of these becomes C.
        evaluate_rollouts: episodes of each.
        temperature: of the dreams.
        ends: how dreams end (`dream_returns`).
        dream_horizon: steps after which a dream is cut.
        starts: where dreams begin, at first steps of "episode"s or at "any" step.
        real_envs: processes in which C's real episodes run, when `env` is an id; 0: in the environment it has.
        exploration_noise: while C collects, deviation of the noise on continuous actions; for discrete ones the
            probability of a random one.
        options: the rest of `WorldModelAgent`'s arguments.

    Attributes:
        history: of every generation of the procedure, best and mean fitness and the deviation; where the mean solution
            was evaluated, its score.
        costs: seconds that each stage has taken, by the clock and of the processor.
        evolution_steps: decisions that evolution took in the real environment, beside `num_timesteps`.

    Example:
        >>> agent = WorldModels("Pendulum-v1", vision_updates=2, memory_updates=2, generations=2, population=4,
        ...     rollouts=2, evaluate_rollouts=2, dream_horizon=5, batch_size=2, batch_length=8, latent=4, hidden=8,
        ...     seed=0)
        >>> agent.learn(40).num_timesteps, len(agent.history)
        (40, 2)
    """

    def __init__(
        self,
        env: GymEnv | str | None,
        policy: str | type[WorldModelPolicy] = "WorldModelPolicy",
        *,
        learning_rate: float = 1e-3,
        vision_updates: int = 2000,
        vision_batch: int = 100,
        memory_learning_rate: float = 1e-3,
        memory_decay: float = 0.99999,
        memory_updates: int = 4000,
        batch_size: int = 100,
        batch_length: int = 100,
        precision: Literal["float32", "bfloat16"] = "float32",
        latent: int = 32,
        hidden: int = 256,
        depth: int = 32,
        world_config: MDNRNNConfig | None = None,
        ordered: bool = False,
        bias: bool = True,
        train_in: Literal["dream", "real"] = "dream",
        iterations: int = 1,
        generations: int = 100,
        population: int = 64,
        rollouts: int = 16,
        sigma: float = 0.1,
        weight_decay: float = 0.01,
        evaluate_every: int = 25,
        evaluate_rollouts: int = 1024,
        temperature: float = 1.0,
        ends: Ends = "sample",
        dream_horizon: int = 1000,
        starts: Literal["episode", "any"] = "episode",
        real_envs: int = 2,
        exploration_noise: float = 0.1,
        **options: Any,
    ) -> None:
        coder = CoderConfig(depth=depth, squash=True, symlog=False, bfloat16=precision == "bfloat16")
        self.latent, self.hidden, self.depth = latent, hidden, depth
        self.world_config = world_config or MDNRNNConfig(latent=latent, hidden=hidden, coder=coder)
        self.vision_updates, self.vision_batch = vision_updates, vision_batch
        self.memory_learning_rate, self.memory_decay = memory_learning_rate, memory_decay
        self.memory_updates, self.precision = memory_updates, precision
        self.ordered, self.bias, self.train_in, self.iterations = ordered, bias, train_in, iterations
        self.generations, self.population, self.rollouts = generations, population, rollouts
        self.sigma, self.weight_decay = sigma, weight_decay
        self.evaluate_every, self.evaluate_rollouts = evaluate_every, evaluate_rollouts
        self.temperature, self.ends, self.dream_horizon, self.starts = temperature, ends, dream_horizon, starts
        self.real_envs, self.exploration_noise = real_envs, exploration_noise
        self._check_own_arguments()
        self._begin_stages()
        self._codes: SequenceReplay | None = None
        self._evolution: Evolution | None = None
        self._dream_starts: State | None = None
        self._real: VecEnv | None = None
        super().__init__(
            env,
            policy,
            learning_rate=learning_rate,
            batch_size=batch_size,
            batch_length=batch_length,
            learning_starts=0,
            **{name: value for name, value in options.items() if name != "learning_starts"},
        )

    def _check_own_arguments(self) -> None:
        check_choices(self, {"train_in": ("dream", "real"), "ends": ("sample", "threshold", "never")})
        least = dict.fromkeys(("vision_batch", "iterations", "rollouts", "dream_horizon", "evaluate_every"), 1)
        least |= {"vision_updates": 0, "memory_updates": 0, "generations": 0, "population": 2, "evaluate_rollouts": 1}
        check_whole(self, least)
        check_range(self, ("temperature", "exploration_noise", "sigma"))

    # -- networks ---------------------------------------------------------------------------------------------

    world: MDNRNN

    def _build_world(self) -> MDNRNN:
        return MDNRNN(self.observation_space, self.action_space, self.world_config)  # type: ignore[arg-type]

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        return {"actor": Controller(world.feature_size, self.action_space, self.ordered, self.bias)}

    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rates = {"vision": self.lr_schedule(1.0), "memory": self.memory_learning_rate}
        return {name: torch.optim.Adam(self._part(name), rate, fused=True) for name, rate in rates.items()}

    def _part(self, name: str) -> list[nn.Parameter]:
        """The parameters of V ("vision") or M ("memory")."""
        named = self.policy.world.named_parameters()
        return [parameter for key, parameter in named if key.startswith("vae.") == (name == "vision")]

    # -- V and M ----------------------------------------------------------------------------------------------

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """V and M at once, on the same sequences; `learn` fits one after the other instead."""
        loss = self.world.loss(batch, self.noise)
        self._descend_together(loss.total, "vision", "memory")
        return loss.parts

    def _vision_step(self) -> None:
        """One update of V on single frames."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        batch = self.replay_buffer.sample(self.vision_batch, 1, device=self.device)
        _, terms = self.world.vae.loss({key: value[0] for key, value in batch.observation.items()}, self.noise)
        means = {f"{name}_loss": term.mean() for name, term in terms.items()}
        self._descend_together(torch.stack(list(means.values())).sum(), "vision")
        self._note(means)

    def _memory_step(self) -> None:
        """One update of M on sequences of V's codes, drawn anew for every batch."""
        codes = self._open_codes()
        batch = codes.sample(self.batch_size, self.batch_length, device=self.device)
        self._codes_state = codes.get_state()
        self._set_memory_rate()
        with matmul_precision(self.precision):
            parts, _ = self.world.memory_loss(code_of(batch).sample(self.noise), batch)
            self._descend_together(torch.stack(list(parts.values())).sum(), "memory")
        self._note(parts)

    def _open_codes(self) -> SequenceReplay:
        if self._codes is None:
            assert self.replay_buffer is not None
            self.policy.set_training_mode(False)
            self._codes = latent_replay(self.world, self.replay_buffer, self._seed_of(0))
            if self._codes_state is not None:  # the stage was interrupted here
                self._codes.set_state(self._codes_state)
        return self._codes

    def _set_memory_rate(self) -> None:
        least = min(1e-5, self.memory_learning_rate)
        rate = least + (self.memory_learning_rate - least) * self.memory_decay**self._stage_step
        for group in self.optimizers["memory"].param_groups:
            group["lr"] = rate

    def _descend_together(self, loss: Tensor, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        if "memory" in names:  # the paper clips each number of M's gradient, and V's not at all
            nn.utils.clip_grad_value_(self._part("memory"), 1.0)
        for name in names:
            self.optimizers[name].step()

    def _note(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._metrics[name].append(value.detach())

    # -- C ----------------------------------------------------------------------------------------------------

    def _controller_step(self) -> None:
        """One generation; now and then the mean is evaluated, and becomes C if it is the best so far."""
        evolution = self._open_evolution()
        returns = self._judge(evolution.ask(), self.rollouts, stream=2 * evolution.generation)
        evolution.tell(returns.mean(1).double().cpu().numpy())
        self._told = evolution.told
        facts = {"best": float(evolution.told[-1].max()), "mean": float(evolution.told[-1].mean())}
        facts["deviation"] = evolution.deviation
        if evolution.generation % self.evaluate_every == 0 or evolution.generation == self.generations:
            facts["score"] = self._evaluate_mean(evolution)
        self.history.append({"iteration": self._iteration, "generation": evolution.generation, **facts})
        self._note({name: torch.tensor(value) for name, value in facts.items()})

    def evolve(self, **changes: Any) -> WorldModels:
        """Evolve a new C from nothing, in the world as it is.

        Args:
            changes: of the arguments that C's stage has, such as `temperature=0.5, generations=50`.

        Raises:
            ValueError: for an argument of another stage, or before there is a world.
        """
        if unknown := sorted(set(changes) - _OF_EVOLUTION):
            raise ValueError(f"{unknown[0]} has no part in evolution: choose among {sorted(_OF_EVOLUTION)}.")
        if not self.num_timesteps:
            raise ValueError("There is no world to evolve in: call learn first.")
        for name, value in changes.items():
            setattr(self, name, value)
        self._check_own_arguments()
        self._finish_stage()
        self._iteration, self._stage, self._stage_step, self.history = self.iterations - 1, "controller", 0, []
        self.costs.pop("controller", None)
        self.policy.actor.weights.zero_()
        self.learn(0, reset_num_timesteps=False)
        return self

    def dream(self, episodes: int) -> np.ndarray:
        """Returns `(episodes,)` of C in dreams like those it evolves in, others than it saw there."""
        weights = self.policy.actor.weights[None].cpu().numpy()
        return self._judge_in_dream(weights, episodes, stream=2 * self.generations + 2)[0].cpu().numpy()

    def _open_evolution(self) -> Evolution:
        if self._evolution is None:
            if self._first_weights is None:
                self._first_weights, self._best_score = self.policy.actor.weights.clone(), -math.inf
            first = self._first_weights.double().cpu().numpy()
            settings = (self.population, self.sigma, self.weight_decay, self._seed_of(1))
            self._evolution = Evolution(first, *settings, told=self._told)
        return self._evolution

    def _evaluate_mean(self, evolution: Evolution) -> float:
        mean = evolution.mean
        score = float(self._judge(mean[None], self.evaluate_rollouts, stream=2 * evolution.generation + 1).mean())
        if score > self._best_score:
            self._best_score = score
            self.policy.actor.weights.copy_(torch.as_tensor(mean))
        return score

    def _judge(self, candidates: np.ndarray, rollouts: int, stream: int) -> Tensor:
        """Returns `(P, R)` of candidates `(P, N)` where C is trained."""
        if self.train_in == "dream":
            return self._judge_in_dream(candidates, rollouts, stream)
        self.policy.set_training_mode(False)
        weights = torch.as_tensor(candidates, dtype=torch.float32, device=self.device)
        returns, steps = real_returns(self._open_real(), self.policy, weights, rollouts)
        self.evolution_steps += steps
        return returns

    def _judge_in_dream(self, candidates: np.ndarray, rollouts: int, stream: int) -> Tensor:
        self.policy.set_training_mode(False)
        weights = torch.as_tensor(candidates, dtype=torch.float32, device=self.device)
        generator = torch.Generator(self.device).manual_seed(self._seed_of(2 + stream))
        return dream_returns(
            self.world,
            self.policy.actor,
            weights,
            self._open_starts(),
            rollouts,
            self.dream_horizon,
            TorchNoise(generator, self.device),
            self.temperature,
            self.ends,
        )[0]

    def _open_starts(self) -> State:
        if self._dream_starts is None:
            found = self.start_states(1000, 1) if self.starts == "episode" else self.start_states()
            if found is None:
                raise ValueError("There is nothing to begin dreams from: collect first (total_timesteps above 0).")
            first = found.is_first if self.starts == "episode" else torch.ones_like(found.is_first)
            self._dream_starts = index_state(found.states, first)
        return self._dream_starts

    def _open_real(self) -> VecEnv:
        """Where C's real episodes run: processes of their own, or the environment that there is."""
        if self.env_settings is None or not self.real_envs:
            assert self.env is not None
            self._last_obs = None  # whoever collects next must begin new episodes
            return self.env
        if self._real is None:
            options = {key: value for key, value in self.env_settings.items() if key != "id"}
            seed = self._seed_of(1) % 2**31
            self._real = make_vec(self.env_settings["id"], self.real_envs, subprocess=True, seed=seed, **options)
        return self._real

    def _finish_stage(self) -> None:
        self._codes = self._codes_state = self._evolution = self._first_weights = self._dream_starts = None
        self._told = []
        if self._real is not None:
            self._real.close()
            self._real = None

    def _seed_of(self, stream: int) -> int:
        """A seed for each purpose in each iteration, so that what is resumed draws what it would have drawn."""
        assert self.seed is not None
        return int(np.random.SeedSequence([self.seed, self._begun, self._iteration, stream]).generate_state(1)[0])
