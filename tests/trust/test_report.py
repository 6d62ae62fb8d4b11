"""A perfect world is trusted fully, broken ones are not, and the report says where."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from wmgym.trust import Policy, TrustReport, TrustSettings, noisy_policies, trust_report
from wmgym.trust.ensemble import DoubtingWorld
from wmgym.trust.episodes import Returnable, record_episode
from wmgym.trust.policies import ConstantPolicy, RandomPolicy, WavePolicy

from .point import PUSH, SIZE, Point, PointState, PointWorld

QUICK = TrustSettings(
    horizon=20, windows=4, marks=(1, 5, 15), dreams=4, starts=6, candidates=9, length=8, temperatures=(1.0,),
    penalties=(), dream_steps=1,
)  # fmt: skip


def lazy(dreams: VecEnv, steps: int, seed: int) -> Policy:
    """Learns nothing."""
    return ConstantPolicy(PUSH, 0.1)


def policies() -> dict[str, Policy]:
    return {
        **noisy_policies("towards", Towards(), PUSH, levels=(0.0, 0.3, 0.6)),
        "random": RandomPolicy(PUSH, 0),
        "wave": WavePolicy(PUSH, 12),
        "left": ConstantPolicy(PUSH, -0.5),
        "right": ConstantPolicy(PUSH, 0.5),
        "still": ConstantPolicy(PUSH),
    }


class Towards:
    """Pushes towards where the reward is."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        place = observation["point"] if isinstance(observation, dict) else observation
        return np.clip(0.5 - place[:, :1] - 5 * place[:, 1:], -1, 1).astype(np.float32), None


def report_on(world: PointWorld, **changes: Any) -> TrustReport:
    return trust_report(
        world, changes.pop("env", None) or Point(), changes.pop("policies", policies()), 3, QUICK, train=lazy
    )


@pytest.fixture(scope="module")
def perfect() -> TrustReport:
    return report_on(PointWorld())


@pytest.fixture(scope="module")
def deaf() -> TrustReport:
    return report_on(PointWorld(fault="deaf"))


@pytest.fixture(scope="module")
def noisy() -> TrustReport:
    return report_on(PointWorld(fault="noisy"))


def value(report: TrustReport, section: str, name: str) -> float:
    return report[section].figures[name].value


def test_a_perfect_world_is_trusted_fully(perfect: TrustReport) -> None:
    for part in ("observation", "reward"):
        horizon = perfect["prediction"].figures[f"{part} trust horizon, persistence"]
        assert horizon.value == horizon.ceiling == 20
        assert horizon.interval == (20, 20)
        assert str(horizon).startswith("≥ 20")
    assert np.max(perfect["prediction"].data["errors"]["observation"]["world"]["p95"]) < 1e-5
    assert value(perfect, "actions", "observation sensitivity at 5") == pytest.approx(1, abs=1e-4)
    assert value(perfect, "actions", "observation share better at 5") > 0.95
    assert value(perfect, "returns", "Pearson") > 0.99  # noisy policies slip at other moments in the dream
    assert value(perfect, "returns", "mean size of gap") < 6
    assert value(perfect, "ranking", "rank correlation") == pytest.approx(1)
    assert value(perfect, "ranking", "relative regret") == 0
    assert value(perfect, "ranking", "repeat error") == 0
    assert abs(value(perfect, "exploitation", "gap, temperature 1")) < 1e-3


def test_policies_without_chance_earn_the_same_in_a_perfect_dream(perfect: TrustReport) -> None:
    rows = {row["policy"]: row for row in perfect["returns"].data["policies"]}
    for name in ("towards", "wave", "left", "right", "still"):
        assert rows[name]["dream"]["returns"] == pytest.approx(rows[name]["real"]["returns"], abs=1e-3)


def test_persistence_worsens_and_the_mean_does_not(deaf: TrustReport) -> None:
    errors = deaf["prediction"].data["errors"]["observation"]
    assert errors["persistence"]["p50"][0] < errors["persistence"]["p50"][10]
    assert errors["mean"]["p50"][0] > errors["persistence"]["p50"][0]


def test_a_world_that_is_deaf_to_actions_is_found_out(deaf: TrustReport) -> None:
    assert value(deaf, "actions", "observation sensitivity at 5") == 0
    assert value(deaf, "actions", "observation share better at 5") == 0.5
    assert value(deaf, "ranking", "rank correlation") == 0  # all sequences look the same to it
    chance = value(deaf, "ranking", "relative regret by chance")
    assert value(deaf, "ranking", "relative regret") == pytest.approx(chance)
    assert value(deaf, "prediction", "observation trust horizon, persistence") < 20


def test_a_world_with_rewards_upside_down_predicts_well_and_ranks_badly() -> None:
    report = report_on(PointWorld(fault="upside down"))
    assert value(report, "prediction", "observation trust horizon, persistence") == 20
    assert value(report, "prediction", "reward trust horizon, persistence") < 5
    assert value(report, "returns", "Pearson") < -0.9
    assert value(report, "returns", "regret@1") > 5
    assert value(report, "ranking", "rank correlation") == pytest.approx(-1)
    assert value(report, "ranking", "relative regret") > 0.9


def test_disagreement_that_predicts_the_error_is_told_from_none(perfect: TrustReport) -> None:
    knows = report_on(PointWorld(fault="drifting", ensemble=True))["calibration"]
    assert knows.figures["disagreement and error at 1"].value > 0.5
    fifths = knows.data["median error by fifth of the windows"]["disagreement"]["1"]
    assert fifths[0] < fifths[-1] / 2
    none = perfect["calibration"]
    assert not any(name.startswith("disagreement") for name in none.figures)
    assert any("no ensemble" in note for note in none.notes)


def test_an_ensemble_fitted_afterwards_doubts_what_is_strange_to_it() -> None:
    near = [record_episode(Returnable(Point()), "wave", WavePolicy(PUSH, 12), seed, 40) for seed in range(4)]
    world = DoubtingWorld(PointWorld(), heads=3)
    untrained = world.disagreement(world.initial(1), torch.zeros(1, 1))
    assert world.fit(near, updates=300, seed=0) < 0.1
    seen = PointState(torch.tensor(near[0].observation["observation"][:-1]))
    usual = float(world.disagreement(seen, torch.tensor(near[0].env_action)).mean())
    strange = float(world.disagreement(PointState(torch.tensor([[8.0, 3.0]])), torch.zeros(1, 1)))
    assert usual < float(untrained) / 2
    assert strange > 2 * usual


def test_a_report_can_bring_its_own_ensemble() -> None:
    settings = dataclasses.replace(QUICK, ensemble=2, penalties=(1.0,))
    report = trust_report(PointWorld(fault="noisy"), Point(), {"wave": WavePolicy(PUSH, 12)}, 4, settings, train=lazy)
    assert "disagreement and error at 5" in report["calibration"].figures
    assert "gap, temperature 1, penalty 1" in report["exploitation"].figures
    assert any("fitted for this report" in note for note in report["calibration"].notes)
    windows = report["prediction"].figures["observation trust horizon, persistence"].n
    assert report["calibration"].figures["disagreement and error at 5"].n == windows / 2


def test_chance_that_reality_does_not_have_shows_as_too_much_spread(noisy: TrustReport) -> None:
    assert noisy["calibration"].figures["spread over skill at 1"].value > 1.5


def test_ends_of_episodes_are_judged() -> None:
    report = report_on(
        PointWorld(), env=Point(edge=1.5), policies={"wave": WavePolicy(PUSH, 12), "right": ConstantPolicy(PUSH, 0.5)}
    )
    errors = report["prediction"].data["errors"]["continues"]["world"]
    assert np.nanmax(errors["p95"]) > 0.5  # this world never expects an end
    assert report["prediction"].figures["continues trust horizon, mean"].n > 0


def test_pictures_are_compared_and_filmed(tmp_path: Path) -> None:
    from moviepy import VideoFileClip

    env = Point(pictures=True)
    few = {"towards": Towards(), "wave": WavePolicy(PUSH, 12)}
    good = report_on(PointWorld(env.observation_space), env=env, policies=few)
    bad = report_on(PointWorld(env.observation_space, fault="deaf"), env=Point(pictures=True), policies=few)
    assert value(good, "pictures", "PSNR at 15, world") == 100
    assert value(good, "pictures", "SSIM at 15, world") == pytest.approx(1)
    assert value(good, "pictures", "PSNR at 15, persistence") < 30
    assert value(bad, "pictures", "PSNR at 15, world") < 40
    bad.save(tmp_path)
    assert (tmp_path / "pictures.png").stat().st_size > 1000
    with VideoFileClip(str(tmp_path / "dream.mp4")) as clip:
        frame = clip.get_frame(clip.duration * 0.9).astype(float)
    third, inside = len(frame) // 3, slice(0, 3 * SIZE - 4)
    real, dreamt, difference = (frame[row * third :][inside] for row in range(3))
    widths = np.r_[inside]  # of the first picture, without its white frame
    apart = np.abs(real - dreamt)[:, widths]
    assert apart.mean() > 5
    assert np.abs(apart - difference[:, widths]).mean() < apart.mean() / 2  # but for what compression loses


def test_every_figure_has_a_definition_and_an_interval_around_it(noisy: TrustReport) -> None:
    figures = {name: figure for section in noisy.sections.values() for name, figure in section.figures.items()}
    assert len(figures) > 30
    assert all(len(figure.definition) > 10 and figure.n > 0 for figure in figures.values())
    del figures["repeat error"]  # a largest one: there is nothing to resample
    for name, figure in figures.items():
        assert figure.interval is not None, name
        assert figure.interval[0] - 1e-6 <= figure.value <= figure.interval[1] + 1e-6, name


def test_it_is_written_as_strict_json_markdown_and_pictures(perfect: TrustReport, tmp_path: Path) -> None:
    folder = perfect.save(tmp_path / "there")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    data = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert data["sections"]["returns"]["figures"]["Pearson"]["n"] == len(policies())
    text = (folder / "report.md").read_text()
    assert [int(n) for n in re.findall(r"^## (\d)\.", text, re.MULTILINE)] == [1, 2, 3, 4, 5, 6, 7]
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / name).stat().st_size > 1000


def test_it_is_summed_up(perfect: TrustReport) -> None:
    text = "\n".join(perfect.summary)
    assert "observations beat persistence for ≥ 20 [≥ 20, ≥ 20] steps" in text
    assert "(0.9 is reached)" in text
    assert f"over {len(policies())} of them" in text
    assert [line.split(":")[0] for line in perfect.summary] == [
        "**How long", "**Actions", "**Policies", "**Plans", "**Exploitation",
    ]  # a perfect world has no doubts  # fmt: skip


@pytest.mark.parametrize("episodes", [1, 2])
def test_without_other_actions_nothing_is_said_of_them(episodes: int) -> None:
    """One episode has no others; a policy that goes by the clock does the same in all of them."""
    report = trust_report(PointWorld(), Point(), {"wave": WavePolicy(PUSH, 12)}, episodes, QUICK, train=lazy)
    assert np.isnan(value(report, "actions", "observation sensitivity at 5"))
    assert report["actions"].figures["observation share better at 5"].n == 0
    assert "windows are left out: no other episode" in report.to_markdown()
    assert not any("Actions" in line for line in report.summary)


def test_what_cannot_be_trained_costs_one_answer_and_no_other(perfect: TrustReport) -> None:
    def fails(dreams: VecEnv, steps: int, seed: int) -> Policy:
        raise IndexError("Dimension out of range.")

    report = trust_report(PointWorld(), Point(), policies(), 3, QUICK, train=fails)
    assert "**Not measured** at temperature 1: IndexError: Dimension out of range." in report.to_markdown()
    assert report["ranking"].to_markdown() == perfect["ranking"].to_markdown()
    assert not any("Exploitation" in line for line in report.summary)


def test_the_same_seed_gives_the_same_report(perfect: TrustReport) -> None:
    assert report_on(PointWorld()).to_json() == perfect.to_json()


def test_bad_input_is_refused_with_the_way_out() -> None:
    world = PointWorld()
    with pytest.raises(ValueError, match="observation_space"):
        trust_report(world, gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="give it, env="):
        trust_report(world)
    with pytest.raises(ValueError, match="policies is empty"):
        trust_report(world, Point(), policies={})
    with pytest.raises(ValueError, match="episodes must be 1"):
        trust_report(world, Point(), episodes=0)
    with pytest.raises(ValueError, match="dreams must be 2"):
        TrustSettings(dreams=1)
    with pytest.raises(ValueError, match="marks are steps ahead, 1 or more"):
        TrustSettings(marks=(0, 8))
    with pytest.raises(ValueError, match="cannot be negative"):
        TrustSettings(temperatures=(-1.0,))
    with pytest.raises(ValueError, match="cannot be negative"):
        TrustSettings(penalties=(-1.0,))
    with pytest.raises(ValueError, match="lasts longer than the 39 steps"):
        trust_report(world, Point(edge=1.0), {"left": ConstantPolicy(PUSH, -1)}, 2, TrustSettings(context=39))
    with pytest.raises(KeyError, match="no section 'luck'"):
        TrustReport({}, {})["luck"]
