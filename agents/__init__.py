"""Ways to act in a world: agents with Stable-Baselines3's interface.

Example:
    >>> from agents import Dreamer
    >>> agent = Dreamer("CartPole-v1", seed=0)
"""

from agents.base import WorldModelAgent
from agents.dreamer import Dreamer

ALGORITHMS: dict[str, type[WorldModelAgent]] = {"dreamer": Dreamer}
"""The agents by the name that the zoo's command line uses."""

__all__ = ["ALGORITHMS", "Dreamer", "WorldModelAgent"]
