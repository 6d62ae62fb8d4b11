"""Ways to act in a world: agents with Stable-Baselines3's interface.

Example:
    >>> from agents import Dreamer
    >>> agent = Dreamer("CartPole-v1", seed=0)
"""

from agents.base import WorldModelAgent
from agents.director import Director
from agents.dreamer import Dreamer
from agents.dreamer_v1 import DreamerV1
from agents.dreamer_v2 import DreamerV2
from agents.dreamer_v3 import DreamerV3
from agents.planet import PlaNet
from agents.tdmpc import TDMPC
from agents.tdmpc2 import TDMPC2
from agents.world_models import WorldModels

ALGORITHMS: dict[str, type[WorldModelAgent]] = {
    "director": Director,
    "dreamer": Dreamer,
    "dreamer_v1": DreamerV1,
    "dreamer_v2": DreamerV2,
    "dreamer_v3": DreamerV3,
    "planet": PlaNet,
    "tdmpc": TDMPC,
    "tdmpc2": TDMPC2,
    "world_models": WorldModels,
}
"""The agents by the name that the zoo's command line uses."""

__all__ = [
    "ALGORITHMS",
    "TDMPC",
    "TDMPC2",
    "Director",
    "Dreamer",
    "DreamerV1",
    "DreamerV2",
    "DreamerV3",
    "PlaNet",
    "WorldModelAgent",
    "WorldModels",
]
