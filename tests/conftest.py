"""What all tests share: one thread, and a reason to skip where nothing can be rendered."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import settings

from wmgym.rendering import RenderingError, check_rendering

settings.register_profile("same", derandomize=True)  # the same examples in every run
settings.load_profile("same")

torch.set_num_threads(1)  # small networks on few cores: threads only wait for one another


@functools.cache
def _rendering_fault() -> str | None:
    try:
        check_rendering()
    except RenderingError as error:
        return str(error)
    return None


@pytest.fixture
def needs_rendering() -> None:
    """Skip the test, with the reason, where MuJoCo cannot render."""
    if fault := _rendering_fault():
        pytest.skip(fault)
