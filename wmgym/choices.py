"""Settings that are one of a few words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: naming the setting and what it can be.

    Example:
        >>> check_choice("output", "numpi", ("numpy", "torch"))
        Traceback (most recent call last):
        ValueError: output='numpi' is unknown: choose one of 'numpy', 'torch'.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(map(repr, choices))}.")


def check_literals(config: Any) -> None:
    """Refuse a dataclass with a field of a `Literal` type that holds none of its words.

    Raises:
        ValueError: naming the field and what it can be.
    """
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            check_choice(name, getattr(config, name), get_args(hint))
