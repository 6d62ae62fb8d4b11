"""World Models: see with V, remember with M, act with C; C evolves in M's dream.

    repeat `iterations` times
        collect    decisions at random (later: of C) in the real environment
        vision     V <- V - grad [ |o - decode(z)|^2 + max(KL, floor) ]                  single frames, until "together"
        together   V, M <- both - grad [ |o - decode(z)|^2 + ln q(z | o) - ln p(z | h) + ... ]   if asked for
        memory     M <- M - grad [ -ln p(z' | h') + (r - r')^2 - ln p(end) ]             sequences of V's codes
        controller CMA-ES: P candidates x R dreams of M, one batch; C <- the best mean so far

Source: Ha & Schmidhuber 2018, "World Models", with the iterative procedure of its section 5.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from agents.arguments import check_choices, check_constant, check_range, check_whole
from agents.controllers import Controller
from agents.evolution import Evolution
from agents.policy import Carry, WorldModelPolicy
from agents.rollouts import Ends, dream_returns, real_returns
from agents.vision_memory import VisionMemoryAgent
from wmgym.nets.coders import PATCHES, CoderConfig
from wmgym.random import TorchNoise
from wmgym.real import make_vec
from wmgym.worlds.base import Observation, State, World, index_state
from wmgym.worlds.mdn_rnn import MDNRNN, MDNRNNConfig

_OF_EVOLUTION = {
    "train_in", "generations", "population", "rollouts", "sigma", "weight_decay", "evaluate_every",
    "evaluate_rollouts", "temperature", "ends", "dream_horizon", "starts", "real_envs",
}  # fmt: skip

_WATCHED = 32  # steps that a replay must hold for dreams to begin in it rather than in the states of a file


class WorldModels(VisionMemoryAgent):
    """V, M and C, each fitted in a stage of its own.

    `learn(n)` goes once through the whole procedure with `n` decisions in the real environment, which are shared out
    among the iterations; called again, it goes on from the networks that there are. A run that is interrupted, or
    saved by a callback, goes on within the stage it was in: `load(path).learn(rest, reset_num_timesteps=False)`, where
    `rest` are the decisions of `n` that were not yet taken, 0 once all are.

    Args:
        env: see `WorldModelAgent`, as for every argument that is not listed here. `train_ratio`, `train_freq`,
            `gradient_steps`, `pretrain`, `learning_starts` and `online_queue` have no meaning here.
        policy: see `WorldModelAgent`.
        learning_rate: Adam's first rate for V.
        vision_decay: factor on it after each update.
        vision_updates: updates of V in each iteration; in the first alone if V goes on to learn from M.
        vision_batch: frames in each.
        together_updates: updates of V and M at once, between their stages: V's codes become such as M can foretell
            (`MDNRNNConfig.end_to_end`).
        together_length: steps of the `batch_size` sequences in each.
        memory_learning_rate: Adam's first rate for M.
        memory_decay: factor on it after each update; it falls towards 1e-5.
        memory_weight_decay: of M's weights (AdamW), 0 in the paper: what is rare, as ends are, is soon learnt by heart.
        memory_updates: updates of M in each iteration.
        batch_size: sequences in each.
        batch_length: steps in a sequence.
        precision: of M's matrix products while it is fitted (see `Dreamer`'s `dream_precision`).
        latent: Z, numbers in a latent.
        hidden: H, width of M.
        layers: of each of two MLPs around M's memory, 0 in the paper (`MDNRNNConfig`).
        mixture: M's mixtures, "factored" or "joint" (`MDNRNNConfig`).
        components: of each.
        depth: channels of V's first convolution; see `CoderConfig` for the other kinds of `image`.
        image: V's network for pictures, "dreamer" (the paper's) or the faster "patches".
        observation_scale: weight of V's squared error.
        rarity: power by which pixels of rare colours count more in it, 0 in the paper (`wmgym.nets.rarity`).
        cell_in_features: whether C reads M's cell beside what it says, as in the paper's Take Cover.
        world_config: a whole world configuration, instead of the ten above.
        ordered: whether discrete actions lie on a line (`Controller`).
        bias: whether C has one.
        train_in: where C evolves, "dream" or "real".
        iterations: rounds of the procedure.
        first_decisions: how many of `learn`'s decisions the first of them takes, the others share the rest; None: as
            many as each other.
        later_updates: the others' updates of V and M, as a share of the first's.
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
        habits: while actions are random, each episode has a longest hold of its own, from 1 to `hold` on a logarithmic
            scale, so that some tremble throughout and some keep still; discrete actions also have odds of their own.
        wander: while C collects, every episode is played by a neighbour of C, whose parameters are off by normal noise
            of a deviation drawn from [0, `wander`]: so M sees what evolution is going to try.
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
        vision_decay: float = 1.0,
        vision_updates: int = 2000,
        vision_batch: int = 100,
        together_updates: int = 0,
        together_length: int = 24,
        memory_learning_rate: float = 1e-3,
        memory_decay: float = 0.99999,
        memory_weight_decay: float = 0.0,
        memory_updates: int = 4000,
        batch_size: int = 100,
        batch_length: int = 100,
        precision: Literal["float32", "bfloat16"] = "float32",
        latent: int = 32,
        hidden: int = 256,
        layers: int = 0,
        mixture: Literal["factored", "joint"] = "factored",
        components: int = 5,
        depth: int = 32,
        image: Literal["dreamer", "patches"] = "dreamer",
        observation_scale: float = 1.0,
        rarity: float = 0.0,
        cell_in_features: bool = False,
        world_config: MDNRNNConfig | None = None,
        ordered: bool = False,
        bias: bool = True,
        train_in: Literal["dream", "real"] = "dream",
        iterations: int = 1,
        first_decisions: int | None = None,
        later_updates: float = 1.0,
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
        habits: bool = False,
        wander: float = 0.0,
        **options: Any,
    ) -> None:
        self.latent, self.hidden, self.layers, self.depth, self.image = latent, hidden, layers, depth, image
        self.mixture, self.components = mixture, components
        self.observation_scale, self.rarity = observation_scale, rarity
        self.cell_in_features = cell_in_features
        self.together_updates, self.together_length, self.vision_decay = together_updates, together_length, vision_decay
        self.precision = precision
        self.world_config = world_config or self._world_config()
        self.vision_updates, self.vision_batch = vision_updates, vision_batch
        self.memory_learning_rate, self.memory_decay = memory_learning_rate, memory_decay
        self.memory_weight_decay, self.memory_updates = memory_weight_decay, memory_updates
        self.ordered, self.bias, self.train_in, self.iterations = ordered, bias, train_in, iterations
        self.generations, self.population, self.rollouts = generations, population, rollouts
        self.sigma, self.weight_decay = sigma, weight_decay
        self.evaluate_every, self.evaluate_rollouts = evaluate_every, evaluate_rollouts
        self.temperature, self.ends, self.dream_horizon, self.starts = temperature, ends, dream_horizon, starts
        self.real_envs, self.exploration_noise, self.habits, self.wander = real_envs, exploration_noise, habits, wander
        self.first_decisions, self.later_updates = first_decisions, later_updates
        check_constant("WorldModels", learning_rate, "vision_decay")
        self._check_own_arguments()
        self._begin_stages()
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
        check_choices(self, {"mixture": ("factored", "joint"), "image": ("dreamer", "patches")})
        check_choices(self, {"starts": ("episode", "any"), "precision": ("float32", "bfloat16")})
        least = dict.fromkeys(("vision_batch", "iterations", "rollouts", "dream_horizon", "evaluate_every"), 1)
        least |= {"components": 1, "together_updates": 0, "together_length": 2, "layers": 0}
        least |= {"vision_updates": 0, "memory_updates": 0, "generations": 0, "population": 2, "evaluate_rollouts": 1}
        check_whole(self, least | ({} if self.first_decisions is None else {"first_decisions": 1}))
        check_range(self, ("temperature", "exploration_noise", "wander", "sigma"))
        check_range(self, ("later_updates", "rarity", "memory_weight_decay"))

    # -- networks ---------------------------------------------------------------------------------------------

    def _build_world(self) -> MDNRNN:
        return MDNRNN(self.observation_space, self.action_space, self.world_config)  # type: ignore[arg-type]

    def _world_config(self) -> MDNRNNConfig:
        fast = self.precision == "bfloat16"
        coder = CoderConfig(depth=self.depth, squash=True, symlog=False, bfloat16=fast)
        if self.image == "patches":
            coder = replace(coder, **PATCHES)
        return MDNRNNConfig(
            latent=self.latent,
            hidden=self.hidden,
            layers=self.layers,
            components=self.components,
            mixture=self.mixture,
            coder=coder,
            observation_scale=self.observation_scale,
            rarity=self.rarity,
            cell_in_features=self.cell_in_features,
            end_to_end=self.together_updates > 0,
        )

    def _build_behaviour(self, world: World) -> dict[str, nn.Module]:
        return {"actor": Controller(world.feature_size, self.action_space, self.ordered, self.bias)}

    def _build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rates = {"vision": self.lr_schedule(1.0), "memory": self.memory_learning_rate}
        decays = {"vision": 0.0, "memory": self.memory_weight_decay}
        return {
            name: torch.optim.AdamW(self._part(name), rate, weight_decay=decays[name], fused=True)
            for name, rate in rates.items()
        }

    # -- collecting -------------------------------------------------------------------------------------------

    def _act(self, carry: Carry, observation: Observation, is_first: Tensor) -> Carry:
        """What C does or, where `wander` says so, its neighbours do."""
        carry = super()._act(carry, observation, is_first)
        if not self.wander:
            return carry
        actor = self.policy.actor
        noise = self.policy.noise
        drawn = self.wander * noise.uniform(self.n_envs, 1) * noise.normal(self.n_envs, len(actor.weights))
        weights = actor.weights + self._of_episode("wandering", drawn)
        return Carry(carry.state, actor.act(self.world.features(carry.state), weights))

    def _hold_lengths(self) -> Tensor:
        if not self.habits:
            return super()._hold_lengths()
        noise = self.policy.noise
        longest = self._of_episode("longest", self.hold ** noise.uniform(self.n_envs))
        return 1 + (noise.uniform(self.n_envs) * longest).long()

    def _draw_action(self) -> Tensor:
        if not self.habits or not isinstance(self.action_space, spaces.Discrete):
            return super()._draw_action()
        noise, size = self.policy.noise, int(self.action_space.n)
        # From even odds to one choice nearly always.
        odds = self._of_episode("odds", 4 * noise.uniform(self.n_envs, 1) * noise.normal(self.n_envs, size))
        return nn.functional.one_hot((odds + noise.gumbel(self.n_envs, size)).argmax(-1), size).float()

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

    def evolve(self, anew: bool = True, **changes: Any) -> WorldModels:
        """Evolve another C, in the world as it is.

        Args:
            anew: from nothing; else from the C that there is.
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
        if anew:
            self.policy.actor.weights.zero_()
        self.learn(0, reset_num_timesteps=False)
        return self

    def dream(self, episodes: int) -> np.ndarray:
        """Returns `(episodes,)` of C in dreams like those it evolves in, others than it saw there."""
        weights = self.policy.actor.weights[None]
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
        weights = torch.as_tensor(candidates, dtype=torch.float32, device=self.device)
        if self.train_in == "dream":
            return self._judge_in_dream(weights, rollouts, stream)
        self.policy.set_training_mode(False)
        env = self._open_real()
        env.seed(self._seed_of(2 + stream) % 2**31)  # so that a run that goes on plays what it would have played
        returns, steps = real_returns(env, self.policy, weights, rollouts)
        self.evolution_steps += steps
        return returns

    def _judge_in_dream(self, weights: Tensor, rollouts: int, stream: int) -> Tensor:
        self.policy.set_training_mode(False)
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
            found, replay = self._saved_starts, self.replay_buffer  # the first of the file that was loaded
            if found is None or (replay and replay.can_sample(_WATCHED)):  # a new replay is as good as empty
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
            self._real = make_vec(**{**self.env_settings, "n_envs": self.real_envs, "subprocess": True})
        return self._real

    def _finish_stage(self) -> None:
        self._codes = self._codes_state = self._evolution = self._first_weights = self._dream_starts = None
        self._told = []

    def _close_real(self) -> None:
        if self._real is not None:
            self._real.close()
            self._real = None
