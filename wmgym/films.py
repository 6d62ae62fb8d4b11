"""Films: pictures one after the other in a file that browsers play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_film(path: str | Path, frames: Sequence[NDArray[np.uint8]], fps: int) -> Path:
    """Write frames `(H, W, 3)` of even sizes as an H.264 film.

    Args:
        path: an mp4; its folder is made when missing.
        frames: uint8.
        fps: frames a second.

    Returns:
        The path.
    """
    from moviepy import ImageSequenceClip  # it takes a second to import, and few need it

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = ImageSequenceClip(list(frames), fps=fps)
    try:
        clip.write_videofile(str(path), codec="libx264", audio=False, pixel_format="yuv420p", logger=None)
    finally:
        clip.close()
    return path
