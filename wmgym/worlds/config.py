"""What fixes the shape and the objective of an RSSM and of its relatives (`wmgym.worlds.family`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wmgym.choices import check_literals
from wmgym.nets.coders import CoderConfig
from wmgym.nets.mlp import Activation, Init, Norm


@dataclass(frozen=True)
class HeadConfig:
    """A network that reads the features and predicts one number a step."""

    layers: int = 2
    units: int = 200
    likelihood: Literal["normal", "mse", "twohot"] = "mse"
    """`normal`: half the squared error; `mse`: the squared error; `twohot`: cross-entropy over 255 bins."""
    out_scale: float = 1.0

    def __post_init__(self) -> None:
        check_literals(self)


@dataclass(frozen=True)
class RSSMConfig:
    """Everything that fixes an RSSM's shape and objective. The defaults are the flagship `Dreamer`'s."""

    latent: Literal["gaussian", "categorical"] = "gaussian"
    stoch: int = 30
    classes: int = 32
    min_std: float = 0.1
    unimix: float = 0.0
    cell: Literal["gru", "layernorm", "block"] = "gru"
    deter: int = 200
    hidden: int = 200
    blocks: int = 8
    prior_layers: int = 1
    posterior_layers: int = 1
    act: Activation = "silu"
    norm: Norm = "layer"
    init: Init = "torch"
    encoder: CoderConfig = field(default_factory=CoderConfig)
    decoder: CoderConfig = field(default_factory=CoderConfig)
    reward: HeadConfig = field(default_factory=HeadConfig)
    continues: HeadConfig | None = field(default_factory=lambda: HeadConfig(layers=1))
    """None: the world never ends (DreamerV1 and V2 on continuous control)."""
    standardize: bool = False
    """Whether vectors are seen, and judged, in units of their deviation: else small numbers are not worth telling."""
    foresight: bool = False
    """Whether a number of a vector counts by how well the prior foretells it (`wmgym.worlds.foresight`)."""
    observed_keys: tuple[str, ...] | None = None
    """Keys that the encoder sees; None: all. The decoder always draws all of them."""
    picture_share: float = 1.0
    """Share of the frames that are decoded in each loss; the rest cost nothing."""
    picture_gradient: bool = True
    """Whether the picture decoder's gradient shapes the state. Turn off to only look at a state-trained world."""
    ensemble: int = 0
    """Number of one-step predictors whose disagreement estimates the world's own ignorance; 0: none."""
    kl_balance: float | None = 0.8
    """Share of the KL that trains the prior (DreamerV2); None: one undivided KL (PlaNet, DreamerV1)."""
    kl_scale: float = 1.0
    free_nats: float = 1.0
    free_per_step: bool = False
    dyn_scale: float | None = None
    """DreamerV3 weighs the two sides of the KL by `dyn_scale` and `rep_scale`, instead of balance and scale."""
    rep_scale: float | None = None
    vector_scale: float = 1.0
    picture_scale: float = 1.0
    reward_scale: float = 1.0
    continue_scale: float = 1.0
    continue_target: float = 1.0
    """What the continue head predicts for a step that does not end (DreamerV3: `1 - 1/333`)."""
    picture_bits: int = 8
    """Bits of each colour that pictures are cut down to; the rest is drawn anew each time (PlaNet: 5)."""
    latent_overshooting: int = 1
    """D: the prior is also trained to predict 2 to D steps ahead (PlaNet, eq. 7); 1 is the ordinary bound."""
    overshooting_weights: tuple[float, ...] | None = None
    """beta_1 to beta_D of latent overshooting; None: all 1."""
    observation_overshooting: int = 0
    """Predictions 1 to this many steps ahead are decoded too and judged as the posterior is; 0: none."""
    global_prior: float = 0.0
    """Weight of the posterior's divergence from a fixed standard distribution (PlaNet's code: 0.1 where on)."""

    def __post_init__(self) -> None:
        check_literals(self)
        if self.ensemble == 1:
            raise ValueError("ensemble=1 has nobody to disagree with: use 0 (none) or 2 and more.")
        if (self.dyn_scale is None) != (self.rep_scale is None):
            raise ValueError("dyn_scale and rep_scale weigh the two sides of one KL: give both or neither.")
        self._check_objectives()

    def _check_objectives(self) -> None:
        if self.foresight and self.vector_scale <= 0:
            raise ValueError(f"foresight divides vector_scale up, which must be above 0, not {self.vector_scale}.")
        if not 1 <= self.picture_bits <= 8:
            raise ValueError(f"picture_bits must be 1 to 8, not {self.picture_bits}.")
        if self.latent_overshooting < 1 or self.observation_overshooting < 0:
            raise ValueError(
                "latent_overshooting must be 1 (off) or more and observation_overshooting 0 (off) or more, not "
                f"{self.latent_overshooting} and {self.observation_overshooting}."
            )
        weights = self.overshooting_weights
        if weights is not None and len(weights) != self.latent_overshooting:
            raise ValueError(
                f"overshooting_weights has {len(weights)} numbers, and latent_overshooting={self.latent_overshooting} "
                "needs one for each distance."
            )
        if self.observation_overshooting and self.picture_share < 1:
            raise ValueError("observation_overshooting decodes every frame: leave picture_share at 1.")

    def overshooting_weight(self, distance: int) -> float:
        """`beta_d / D`, the share of the divergence at `distance` d in latent overshooting; 1 where it is off."""
        beta = 1.0 if self.overshooting_weights is None else self.overshooting_weights[distance - 1]
        return beta / self.latent_overshooting

    def kl_weights(self) -> tuple[float, float]:
        """Weights of the KL's two sides, (prior's, posterior's)."""
        if self.dyn_scale is not None and self.rep_scale is not None:
            return self.dyn_scale, self.rep_scale
        balance = 1.0 if self.kl_balance is None else self.kl_balance
        return self.kl_scale * balance, self.kl_scale * (1 - balance)
