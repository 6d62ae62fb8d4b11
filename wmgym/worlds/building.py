"""Modules that a file describes, compared with the parameters that it brings before they are built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from wmgym.files import CheckpointError


def require_fit(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor], source: str, prefix: str = "") -> None:
    """Check that the module that `make` builds has the parameters that a file brings, before memory is taken for it.

    It is made on torch's meta device, and no further than the file's parameters reach: so a description that asks for
    a trillion units, or a billion layers, is refused at once.

    Args:
        make: builds the module.
        tensors: the file's, by the names of the module's `state_dict`.
        source: what error messages call the file.
        prefix: what error messages put before a tensor's name.

    Raises:
        CheckpointError: naming the tensor that is missing, unknown or of another shape.

    Example:
        >>> require_fit(lambda: nn.Linear(2, 1), {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, "x.zip")
        >>> require_fit(lambda: nn.Linear(10**9, 10**9), {"weight": torch.zeros(1, 2)}, "x.zip")
        Traceback (most recent call last):
        wmgym.files.CheckpointError: x.zip describes more parameters than it holds.
    """
    with _not_much_more_than(tensors, source), torch.device("meta"):
        own = make().state_dict()
    for name, parameter in own.items():
        if name not in tensors:
            raise CheckpointError(f"{source} lacks the tensor '{prefix}{name}'.")
        if tensors[name].shape != parameter.shape:
            found, needed = tuple(tensors[name].shape), tuple(parameter.shape)
            raise CheckpointError(
                f"{source}: the tensor '{prefix}{name}' has shape {found}, but the module needs {needed}."
            )
    if unknown := sorted(set(tensors) - set(own)):
        raise CheckpointError(f"{source} has the unknown tensor '{prefix}{unknown[0]}'.")


@contextmanager
def _not_much_more_than(tensors: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Let no more than about twice as many parameters be made within the block: enough to say which is missing."""
    most_numbers = 2 * sum(tensor.numel() for tensor in tensors.values()) + 1000
    most_tensors = 2 * len(tensors) + 100
    sizes: list[int] = []

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        sizes.append(0 if parameter is None else parameter.numel())
        if len(sizes) > most_tensors or sum(sizes) > most_numbers:
            raise CheckpointError(f"{source} describes more parameters than it holds.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
