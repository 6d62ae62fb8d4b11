"""Pictures of real environments: the OpenGL backend and, for MuJoCo, a fast cached renderer."""

from __future__ import annotations

import ctypes.util
import os
import sys


def choose_backend() -> None:
    """Choose how MuJoCo renders on a machine without a display, before dm_control or mujoco is imported.

    Both read `MUJOCO_GL` once, at import, and unset means GLFW, which fails at the first frame without a display
    (dm_control tries it first because it imports anywhere). A value that the user has set stays.
    Without libEGL rendering is disabled, because asking for EGL would then break the import of dm_control itself;
    everything that needs no pixels works.
    """
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "disable")
