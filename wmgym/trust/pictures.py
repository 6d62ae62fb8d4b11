"""Section 2: how dreamt pictures compare with real ones, and a film of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from wmgym.dream.frames import picture_key, rgb
from wmgym.films import write_film
from wmgym.trust.figures import Figure, Section
from wmgym.trust.plots import draw_pictures
from wmgym.trust.statistics import bootstrap_groups
from wmgym.trust.windows import Windows, dream
from wmgym.worlds.base import World, index_state

Pictures = NDArray[np.uint8]  # (N, H, W, C)

_FILMED = 4
_SCALE = 3
_GAP = 4
_FPS = 15
_MOST_DECIBELS = 100.0


def compare_pictures(world: World, windows: Windows, marks: Sequence[int], seed: int) -> Section:
    """Section 2: PSNR and SSIM of dreamt pictures, against a picture that stands still, and a film.

    Args:
        world: the world.
        windows: of real episodes.
        marks: steps ahead for which there are figures.
        seed: of the dreams.
    """
    section = Section(
        "pictures",
        "2. Do dreamt pictures look like real ones?",
        "Pictures dreamt as in section 1, one dream a window, against the real ones of the same step. PSNR is "
        "10 log10(255² / mean squared error) in dB; SSIM (Wang et al. 2004) is scikit-image's, Gaussian-weighted. Of "
        "both more is better. Persistence is the start's picture standing still. Likeness is not trust: a world may "
        "draw well and rank badly. Intervals resample whole episodes.",
    )
    key = picture_key(world)
    if key is None:
        section.notes.append("This world sees no pictures: there is nothing to compare.")
        return section
    measures = _measures(section)
    horizon = windows.horizon
    values = {name: {who: np.full((horizon, len(windows)), np.nan) for who in _WHO} for name in measures}
    for k, step in enumerate(dream(world, windows.state, windows.action, seed)):
        valid, true = windows.valid[k], windows.observation[key][k]
        for who, shown in zip(_WHO, (step.observation[key], windows.start[key])):
            for name, measure in measures.items():
                values[name][who][k, valid] = measure(shown[valid], true[valid])
    for name in measures:
        for mark in windows.reached(marks):
            for who in _WHO:
                section.figures[f"{name} at {mark}, {who}"] = _figure(values[name][who][mark - 1], windows, name, mark)
    section.data = {
        name: {who: _median_by_step(by_window) for who, by_window in sides.items()} for name, sides in values.items()
    }
    section.drawings["pictures.png"] = partial(draw_pictures, section.data)
    section.drawings["dream.mp4"] = partial(write_film, frames=film_frames(world, windows, key, seed), fps=_FPS)
    return section


_WHO = ("world", "persistence")


def psnr(shown: Pictures, true: Pictures) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each of N pictures; equal pictures, which have infinity, count as 100.

    Example:
        >>> black = np.zeros((1, 8, 8, 3), np.uint8)
        >>> float(psnr(black + np.uint8(255), black)[0]), float(psnr(black, black)[0])
        (0.0, 100.0)
    """
    error = np.square(shown.astype(np.float64) - true).mean((1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 255.0**2 * 10 ** (-_MOST_DECIBELS / 10)))


def film_frames(world: World, windows: Windows, key: str, seed: int, count: int = _FILMED) -> list[Pictures]:
    """Frames `(H, W, 3)` of some windows side by side: real above dream above their difference, same actions."""
    lengths = windows.valid.sum(0)
    rows = np.sort(np.argsort(-lengths, kind="stable")[: min(count, len(windows))])
    state, action = index_state(windows.state, rows), windows.action[:, rows]
    frames = [_frame(windows.start[key][rows], windows.start[key][rows])]
    for k, step in enumerate(dream(world, state, action, seed)):
        if windows.valid[k, rows].all():
            frames.append(_frame(windows.observation[key][k, rows], step.observation[key]))
    return frames


def _frame(real: Pictures, dreamt: Pictures) -> Pictures:
    difference = np.abs(real.astype(np.int16) - dreamt).astype(np.uint8)
    rows = [np.concatenate(list(_framed(pictures)), 1) for pictures in (real, dreamt, difference)]
    return np.concatenate(rows, 0)


def _framed(pictures: Pictures) -> Iterable[Pictures]:
    for picture in pictures:
        large = rgb(picture).repeat(_SCALE, 0).repeat(_SCALE, 1)
        even = [(0, _GAP + size % 2) for size in large.shape[:2]]  # H.264 wants even sides
        yield np.pad(large, [*even, (0, 0)], constant_values=255)


def _measures(section: Section) -> dict[str, Callable[[Pictures, Pictures], np.ndarray]]:
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError:
        section.notes.append(
            'SSIM is not computed, because scikit-image is not installed: `pip install "wmgym[trust]"`.'
        )
        return {"PSNR": psnr}

    def ssim(shown: Pictures, true: Pictures) -> np.ndarray:
        options = {"channel_axis": -1, "data_range": 255, "gaussian_weights": True, "sigma": 1.5}
        options["use_sample_covariance"] = False
        return np.array([structural_similarity(a, b, **options) for a, b in zip(shown, true)])

    return {"PSNR": psnr, "SSIM": ssim}


def _figure(values: np.ndarray, windows: Windows, name: str, mark: int) -> Figure:
    kept = windows.valid[mark - 1]
    interval = bootstrap_groups(lambda v: float(np.median(v)), [values[kept]], windows.episode[kept])
    meaning = f"median {name} {mark} steps ahead"
    return Figure(float(np.median(values[kept])), meaning, int(kept.sum()), "windows", interval)


def _median_by_step(values: np.ndarray) -> np.ndarray:
    lasting = np.isfinite(values).any(1)
    medians = np.full(len(values), np.nan)
    medians[lasting] = np.nanmedian(values[lasting], 1)
    return medians
