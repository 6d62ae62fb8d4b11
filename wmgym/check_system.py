"""Says what this machine can do: `python -m wmgym.check_system`, which `make setup` runs. It never fails."""

from __future__ import annotations

import importlib.metadata
import os
import platform

_PACKAGES = ("torch", "gymnasium", "stable-baselines3", "dm_control", "mujoco")


def main() -> None:
    """Print the versions, the device and whether MuJoCo can render."""
    import torch

    from wmgym.rendering import RenderingError, check_rendering

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    print(f"Python {platform.python_version()}, {versions}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    print(f"{os.cpu_count()} CPU cores, {device}")
    try:
        check_rendering()
    except RenderingError as error:
        print(f"Rendering: NO. {error}")
    else:
        print(f"Rendering: works (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')})")


if __name__ == "__main__":
    main()
