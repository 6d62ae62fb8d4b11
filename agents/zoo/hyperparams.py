"""Hyperparameters as RL Zoo keeps them: one YAML an algorithm, and nothing in it that is run.

    default:                       one set for every task, as in RL Zoo
    <name>:                        another preset, chosen by --preset <name>
    dm_control/walker-walk-v0:     <<: *default and what is different for this task, in every preset

Beside the arguments of the algorithm an entry has RL Zoo's keys (`n_timesteps` in decisions, `policy`, `normalize`,
`frame_stack`, `env_wrapper`, `callback`, ...). `observation`, `action_repeat` and `env_kwargs` are those of
`wmgym.make_env`, for Stable-Baselines3's algorithms too.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

DEFAULT = "default"

# RL Zoo runs strings of these as Python; here they are mappings, or left out.
_EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs", "normalize")


def load_preset(algo: str, env_id: str, preset: str = DEFAULT) -> dict[str, Any]:
    """Arguments of an agent in a preset for an environment: `read_preset` without how long it is trained.

    Example:
        >>> load_preset("dreamer", "dm_control/walker-walk-v0", "pixels")["observation"]
        'pixels'
    """
    settings = read_preset(algo, env_id, preset)
    settings.pop("n_timesteps", None)
    return settings


def read_preset(algo: str, env_id: str, preset: str = DEFAULT, file: str | Path | None = None) -> dict[str, Any]:
    """All that a preset says for an environment.

    What an environment's entry changes against `default` it changes in every preset.

    Args:
        algo: name of the file below `zoo_configs`.
        env_id: looked up among the entries.
        preset: a key of the file.
        file: another file instead.

    Raises:
        KeyError: if there is no such file or preset; the message lists those there are.
        ValueError: for a string that RL Zoo would run as Python.
    """
    source = Path(file) if file else files("zoo_configs") / f"{algo}.yml"
    if not source.is_file():
        raise KeyError(f"There is no {source if file else f'zoo_configs/{algo}.yml'}.")
    presets = yaml.safe_load(source.read_text())
    if preset not in presets:
        raise KeyError(f"{source.name} has no preset {preset!r}; it has {sorted(presets)}.")
    general = presets.get(DEFAULT, {})
    changed = {key: value for key, value in presets.get(env_id, {}).items() if general.get(key) != value}
    settings = {**presets[preset], **changed}
    _refuse_code(settings, source.name)
    return settings


def _refuse_code(settings: Mapping[str, Any], source: str) -> None:
    for key in _EVALUATED:
        if isinstance(settings.get(key), str):
            raise ValueError(
                f"{source}: {key} is the string {settings[key]!r}, which RL Zoo would run as Python. Write a mapping."
            )


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings from the command line as Python literals, or strings.

    Args:
        pairs: each `name=value`, or `name:value` as RL Zoo writes it.

    Raises:
        ValueError: for one that has neither sign.

    Example:
        >>> overrides(["horizon=10", "observation=pixels", "learning_rate:3e-4"])
        {'horizon': 10, 'observation': 'pixels', 'learning_rate': 0.0003}
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        sign = min((s for s in "=:" if s in pair), key=pair.index, default=None)
        if sign is None:
            raise ValueError(f"{pair!r} sets nothing: write name=value.")
        name, _, text = pair.partition(sign)
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def in_words(changed: Mapping[str, Any]) -> str:
    """What overrides a preset, to stand behind its name; nothing where nothing does.

    Example:
        >>> in_words({"horizon": 10, "observation": "pixels"})
        ' with horizon=10, observation=pixels'
    """
    pairs = ", ".join(f"{name}={value}" for name, value in changed.items())
    return f" with {pairs}" if pairs else ""
