"""What a checkpoint or a data set tells of its real environment.

A JSON object: the arguments of `make_vec` as they were given (`id` among them), `episode_limit`, and in `lost` the
names of arguments that no file can hold.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from wmgym.files import CheckpointError

log = logging.getLogger("wmgym")

LIMIT = "episode_limit"
"""Decisions after which the real environment cuts its episodes; None where that is not known."""
LOST = "lost"
_OLD_LIMIT = "max_episode_steps"
"""The limit's name in files that do not have `LIMIT`; in others it is an argument of `gym.make`, in its own steps."""


def facts_to_json(arguments: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """What a file can keep of an environment; a warning names the arguments that it cannot.

    Args:
        arguments: of `make_vec`, `id` among them.
        limit: decisions after which episodes are cut; None: not known.

    Example:
        >>> facts_to_json({"id": "CartPole-v1", "wrapper": print}, 500)
        {'id': 'CartPole-v1', 'episode_limit': 500, 'lost': ['wrapper']}
    """
    lost = [name for name, value in arguments.items() if not is_json(value)]
    if lost:
        log.warning("The environment's %s cannot be saved: give the environment again to load.", ", ".join(lost))
    kept = {name: value for name, value in arguments.items() if name not in lost}
    return {**kept, LIMIT: limit, **({LOST: lost} if lost else {})}


def facts_from_json(facts: Any, source: Any) -> dict[str, Any]:
    """What the file `source` tells of its environment, if that can be.

    Raises:
        CheckpointError: naming the file and what cannot be.
    """
    try:
        episode_limit(facts or {})
        return dict(facts or {})
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} tells nonsense of its environment: {error}.") from error


def is_json(value: Any) -> bool:
    """Whether a JSON file can hold `value`."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def episode_limit(facts: Mapping[str, Any]) -> int | None:
    """Decisions after which episodes are cut, if that is known.

    Raises:
        ValueError: if it is no whole number of 1 or more.

    Example:
        >>> episode_limit({"id": "CartPole-v1", "episode_limit": 500})
        500
    """
    limit = facts.get(LIMIT if LIMIT in facts else _OLD_LIMIT)
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"an environment's {LIMIT} must be a whole number, 1 or more, not {limit!r}")
    return limit


def registered_limit(arguments: Mapping[str, Any], repeat: int) -> int | None:
    """Decisions of `repeat` steps after which `gym.make` cuts the episodes of an id, if it does.

    Example:
        >>> registered_limit({"id": "Pendulum-v1"}, repeat=4)
        50
    """
    name = arguments.get("id", "")
    spec = gym.registry.get(name.partition(":")[2] or name)  # "module:Name-v0"
    steps = arguments.get(_OLD_LIMIT) or (spec.max_episode_steps if spec else None)
    return in_decisions(steps, repeat)


def in_decisions(steps: int | None, repeat: int) -> int | None:
    """A limit of so many simulator steps (None or less than 1: none) in decisions of `repeat` steps."""
    return math.ceil(steps / repeat) if steps and steps > 0 else None


def make_arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `make_vec` that the environment was made with, as far as they are told.

    Example:
        >>> make_arguments({"id": "CartPole-v1", "subprocess": True, "episode_limit": 500})
        {'id': 'CartPole-v1', 'subprocess': True}
    """
    told = (LIMIT, LOST) if LIMIT in facts else (LOST, _OLD_LIMIT)
    return {name: value for name, value in facts.items() if name not in told}


def with_limit(facts: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """The same facts of an environment whose episodes are cut after `limit` decisions."""
    lost = {LOST: facts[LOST]} if LOST in facts else {}
    return {**make_arguments(facts), LIMIT: limit, **lost}
