"""Pictures of real environments: the OpenGL backend and, for MuJoCo, fast cached cameras.

On software OpenGL shadows and multisampling are 85 % of the time of a 64x64 frame, and building a new scene for each
frame most of the rest: without them a frame of walker takes 1 to 2 ms instead of 16 ms.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from dm_control.mujoco.engine import Camera, Physics

Picture = NDArray[np.uint8]  # (H, W, 3)

SYSTEM_PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri")


class RenderingError(RuntimeError):
    """This machine, as it is set up, cannot render; the message says what is missing."""


def choose_backend() -> None:
    """Choose how MuJoCo renders on a Linux machine without a display, before dm_control or mujoco is imported.

    Both read `MUJOCO_GL` once, at import, and unset means GLFW, which imports anywhere and then fails at the first
    frame without a display. A value that the user has set stays. Where EGL does not work, rendering is disabled,
    because asking for EGL would break the import of dm_control itself; everything that needs no pixels works.
    """
    if not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or "MUJOCO_GL" in os.environ:
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        importlib.import_module("dm_control._render")
    except (ImportError, AttributeError):  # PyOpenGL gives the second without libEGL, dm_control the first without Mesa
        os.environ["MUJOCO_GL"] = "disable"


def check_rendering() -> None:
    """Render one MuJoCo frame.

    Raises:
        RenderingError: if that fails; the message names the fix.
    """
    choose_backend()
    from dm_control import mujoco

    physics = mujoco.Physics.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    try:
        with _explained():
            mujoco.Camera(physics, 8, 8, -1).render()
    finally:
        physics.free()


def require_backend() -> None:
    """Say early, before any frame, that rendering is disabled.

    Raises:
        RenderingError: if `MUJOCO_GL` is "disable", by the user or by `choose_backend`.
    """
    if os.environ.get("MUJOCO_GL") == "disable":
        raise RenderingError(_fix("no OpenGL backend was found, or you have disabled it"))


def resize(picture: Picture, size: int) -> Picture:
    """`picture` (H, W, 3) or (H, W, 1) as (size, size, C), each pixel the mean of the area that it covers."""
    if picture.shape[:2] == (size, size):
        return picture
    grey = picture.shape[2] == 1
    image = Image.fromarray(picture[:, :, 0] if grey else picture)
    small = np.array(image.resize((size, size), Image.Resampling.BOX))
    return small[:, :, None] if grey else small


class ScreenPictures(gym.Wrapper, RecordConstructorArgs):
    """Pictures of any environment that renders to `rgb_array`: `frame(size)` is its `render()`, resized.

    Example:
        >>> env = ScreenPictures(gym.make("CartPole-v1", render_mode="rgb_array"))
        >>> _ = env.reset(seed=0)
        >>> env.frame(64).shape
        (64, 64, 3)
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def frame(self, size: int) -> Picture:
        """The present state as (size, size, 3)."""
        picture = self.env.render()
        if not isinstance(picture, np.ndarray):
            raise RenderingError(
                f"Pixels of {_name(self.env)} need an environment that supports render_mode='rgb_array'; "
                f"it was made with render_mode={self.env.render_mode!r}."
            )
        return resize(picture, size)


class MujocoPictures(gym.Wrapper, RecordConstructorArgs):
    """Pictures of a MuJoCo environment, dm_control's or Gymnasium's, of any size, from cached cameras.

    `frame(size)` serves observations and `render()` films of `render_size`, so both may be used at once. No renderer
    exists before the first frame.

    Args:
        env: a dm_control environment of shimmy, or one of Gymnasium's MuJoCo environments.
        camera: number or name. None is, for dm_control, 0 (quadruped: 2), the usual choice of the literature; for
            Gymnasium the model's camera "track", or else the free camera.
        render_size: height and width of films.
        fast: no shadows and no multisampling; False gives the pixels of the literature.

    Raises:
        ValueError: for a camera that the model does not have.
        RenderingError: (from `frame` and `render`) if OpenGL does not work.
    """

    def __init__(
        self, env: gym.Env, camera: int | str | None = None, render_size: int = 240, fast: bool = True
    ) -> None:
        RecordConstructorArgs.__init__(self, camera=camera, render_size=render_size, fast=fast)
        gym.Wrapper.__init__(self, env)
        self._fast = fast
        self._render_size = render_size
        self._cameras: dict[int, Camera] = {}
        self._own_physics = _physics_of_gymnasium(env.unwrapped) if is_gymnasium_mujoco(env) else None
        self._drawn: Any = None  # the model that the cameras belong to: dm_control's composer makes one an episode
        self._camera = self._find_camera(camera)

    @property
    def _physics(self) -> Physics:
        return self._own_physics or cast("Any", self.env.unwrapped).physics

    def frame(self, size: int) -> Picture:
        """The present state as (size, size, 3)."""
        if self._drawn is not self._physics.model.ptr:
            self._prepare_model()
        with _explained():
            if size not in self._cameras:
                self._cameras[size] = self._make_camera(size)
            return np.array(self._cameras[size].render())  # a copy: the camera shows a view of its one buffer

    def render(self) -> Any:
        """A film's frame (render_size, render_size, 3), or what the environment gives in another render mode."""
        return self.frame(self._render_size) if self.env.render_mode == "rgb_array" else self.env.render()

    def close(self) -> None:
        """Free the renderer."""
        self._cameras.clear()
        self._drawn = None
        if self._own_physics is not None:
            self._own_physics.free()
        self.env.close()

    def _prepare_model(self) -> None:
        """What OpenGL reads once, when the first frame of a model is drawn."""
        self._cameras.clear()
        model = self._physics.model
        self._drawn = model.ptr
        if self._fast:
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0
        buffer = model.vis.global_
        buffer.offwidth = max(buffer.offwidth, _LARGEST_FRAME)
        buffer.offheight = max(buffer.offheight, _LARGEST_FRAME)

    def _make_camera(self, size: int) -> Camera:
        from dm_control.mujoco.engine import Camera, MovableCamera

        if self._camera != -1 or self._own_physics is None:
            return Camera(self._physics, size, size, self._camera)
        camera = MovableCamera(self._physics, size, size)
        config = cast("Any", self.env.unwrapped).mujoco_renderer.default_cam_config or {}
        pose = camera.get_pose()._asdict()
        camera.set_pose(**{key: config.get(key, value) for key, value in pose.items()})
        return camera

    def _find_camera(self, camera: int | str | None) -> int:
        model = self._physics.model
        names = [model.id2name(i, "camera") for i in range(model.ncam)]
        if camera is None:
            return self._usual_camera(names)
        if camera in names:
            return names.index(str(camera))
        if isinstance(camera, int) and not isinstance(camera, bool) and -1 <= camera < len(names):
            return camera
        raise ValueError(
            f"camera={camera!r}: {_name(self.env)} has the cameras {names} (by name or number) and -1, the free one."
        )

    def _usual_camera(self, names: list[str]) -> int:
        if self._own_physics is not None:
            return names.index("track") if "track" in names else -1
        usual = 2 if "/quadruped-" in _name(self.env) else 0
        return usual if usual < len(names) else -1


_LARGEST_FRAME = 640  # MuJoCo's own default; some models declare less


def is_gymnasium_mujoco(env: gym.Env) -> bool:
    """Whether `env` is one of Gymnasium's MuJoCo environments."""
    module = sys.modules.get("gymnasium.envs.mujoco.mujoco_env")  # an environment of that class has imported it
    return module is not None and isinstance(env.unwrapped, module.MujocoEnv)


def is_dm_control(env: gym.Env) -> bool:
    """Whether `env` is a dm_control environment in shimmy's coat."""
    module = sys.modules.get("shimmy.dm_control_compatibility")
    return module is not None and isinstance(env.unwrapped, module.DmControlCompatibilityV0)


def _physics_of_gymnasium(env: Any) -> Physics:
    """dm_control's view of the same simulation.

    dm_control and mujoco.Renderer each remember which OpenGL context is current and break the other's, so all
    environments render through one of them.
    """
    from dm_control.mujoco import wrapper
    from dm_control.mujoco.engine import Physics

    return Physics(wrapper.MjData(env.data))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what MuJoCo and dm_control raise where OpenGL is missing into a `RenderingError` with the fix."""
    from mujoco import FatalError

    try:
        yield
    except (FatalError, RuntimeError) as error:
        raise RenderingError(_fix(str(error))) from error


def _fix(fault: str) -> str:
    return (
        f"MuJoCo cannot render here (MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}): {fault.rstrip('.')}. On Debian or "
        f"Ubuntu: apt-get install {' '.join(SYSTEM_PACKAGES)}; then start Python anew without MUJOCO_GL or with "
        "MUJOCO_GL=egl. Everything that needs no pixels (observation='state') works without."
    )


def _name(env: gym.Env) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
