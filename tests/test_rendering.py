"""Machines without OpenGL: what needs no pictures works, the rest says what to install."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wmgym.rendering import RenderingError

_WITHOUT_OPENGL = """
from wmgym.real import make_env
from wmgym.rendering import RenderingError
env = make_env("dm_control/walker-walk-v0", seed=0)
env.reset()
env.step(env.action_space.sample())
for ask in (env.render, lambda: make_env("dm_control/walker-walk-v0", observation="pixels")):
    try:
        ask()
    except RenderingError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="EGL is Linux's")
def test_without_opengl_states_work_and_pixels_say_what_to_install() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY")}
    environment["__EGL_VENDOR_LIBRARY_FILENAMES"] = "/no/such/driver"  # libEGL without a driver
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT_OPENGL], env=environment, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert all("apt-get install libegl1 libgl1 libgl1-mesa-dri" in line for line in lines)


def test_rendering_error_is_a_runtime_error() -> None:
    assert issubclass(RenderingError, RuntimeError)
