"""The dynamics models that PlaNet compares, by name; all share the RSSM's configuration and objectives.

name      carried on       drawn     decoded    source
rssm      h_t, s_t         s_t       h_t, s_t   Hafner et al. 2019, figure 2c
ssm       s_t              s_t       s_t        figure 2b
rnn       h_t, s_t         nothing   h_t, s_t   figure 2a
dmm_*     h_t (and s_t)    s_t       h_t        deep Markov models with a history
"""

from __future__ import annotations

from wmgym.worlds.dmm import DMMDynamics, DMMObservation
from wmgym.worlds.rnn import RNN
from wmgym.worlds.rssm import RSSM
from wmgym.worlds.ssm import SSM

DYNAMICS: dict[str, type[RSSM]] = {
    "rssm": RSSM,
    "ssm": SSM,
    "rnn": RNN,
    "dmm_observation": DMMObservation,
    "dmm_dynamics": DMMDynamics,
}
"""By the names that files and agents use."""
