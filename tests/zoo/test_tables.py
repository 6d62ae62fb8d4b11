"""The committed tables are what the result files give, and say what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents.zoo.benchmark import write_tables
from agents.zoo.dream_tables import dream_overview, dream_section, read_dream_rows, read_dreams
from agents.zoo.hyperparams import read_preset
from agents.zoo.plot import interquartile_mean, plot_curves, plot_suite, scores_of
from agents.zoo.published import Published, methods, published_mean, read_published
from agents.zoo.suites import Suite, read_suites
from agents.zoo.tables import (
    BEGIN,
    END,
    benchmark_page,
    group,
    overview,
    put_between_markers,
    read_files,
    suite_table,
)

ROOT = Path(__file__).parents[2]
SUITE = Suite("two", "two tasks", ("good", "other/small"), ("A-v0", "B-v0"), (0, 1), 20_000)
PUBLISHED = [
    Published("state", "Theirs", "A-v0", 20_000, 300.0, 10.0, 5, "them/code: scores.csv", "evaluation episodes"),
    Published("state", "Theirs", "B-v0", 20_000, 500.0, 10.0, 5, "them/code: scores.csv", "evaluation episodes"),
    Published("pixels", "Seeing", "A-v0", 20_000, 100.0, None, None, "them/code: scores.csv", "training episodes"),
]


def run(env_id: str, seed: int, last: float, algo: str = "good", preset: str = "default", **more: Any) -> dict:
    return {
        "algo": algo, "preset": preset, "env_id": env_id, "seed": seed, "observation": "state", "commit": "abc",
        "machine": "here", "wall_clock_s": 600.0, "complete": True, "eval_episodes": 10,
        "env_steps": [0, 10_000, 20_000], "return_mean": [0.0, last / 2, last], "return_std": [0.0, 0.0, 0.0], **more,
    }  # fmt: skip


RUNS = [run("A-v0", 0, 100.0), run("A-v0", 1, 200.0), run("B-v0", 0, 400.0), run("B-v0", 1, 400.0)]
PARTLY = [
    run("A-v0", 0, 900.0, "other", "small"),
    run("A-v0", 1, 7.0, "other", "small", error="Traceback\nValueError: x"),
]


def test_runs_that_override_a_preset_are_not_counted_as_its_seeds() -> None:
    preset = {"algo": "world_models", "preset": "default", "last": 1.0}
    changed, same = {"population": 7, "rollouts": 9}, read_preset("world_models", "A-v0")
    runs = [
        run("A-v0", 0, **preset),
        run("A-v0", 1, **preset, overrides={"n_timesteps": same["n_timesteps"]}),  # what the preset says too by now
        run("A-v0", 2, **preset, overrides={**changed, "n_timesteps": same["n_timesteps"]}),
        run("A-v0", 3, **preset | {"preset": "of one's own"}, overrides={"population": 7}),
    ]
    found = {key.preset: [one["seed"] for one in seeds] for key, seeds in group(runs).items()}
    assert found == {
        "default": [0, 1],
        "default with population=7, rollouts=9": [2],
        "of one's own with population=7": [3],
    }


# -- what is committed ----------------------------------------------------------------------------------------


def test_the_committed_tables_are_what_the_result_files_give() -> None:
    files = read_files(ROOT / "zoo_configs/results")
    dreams = read_dreams(ROOT / "zoo_configs/results")
    page = f"{benchmark_page(files, read_suites().values(), read_published())}\n{dream_section(dreams)}\n"
    again = "run: python -m agents.zoo benchmark --table"
    assert (ROOT / "zoo_configs/BENCHMARK.md").read_text() == page, again
    real, dreamt = overview(group(files.values())), dream_overview(dreams, read_dream_rows())
    for name, table in (("README.md", real), ("docs/results.md", real), ("docs/dream.md", dreamt)):
        assert (ROOT / name).read_text().partition(BEGIN)[2].partition(END)[0].strip() == table, again


@pytest.mark.parametrize("path", sorted((ROOT / "zoo_configs/results").glob("*/*/*.json")), ids=lambda path: path.stem)
def test_every_result_file_has_the_form_that_tables_read(path: Path) -> None:
    result = json.loads(path.read_text())
    assert path.parts[-3:-1] == (result["algo"], result["env_id"].replace("/", "-"))
    name = f"{result['preset']}-seed{result['seed']}"
    # Under longer names: failed runs whose own a later one has taken, and those that say what they overrode.
    overrode = "-".join([name, *(f"{key}_{value}" for key, value in result.get("overrides", {}).items())])
    assert path.stem in (name, overrode) or (path.stem.startswith(f"{name}-") and "error" in result)
    assert len(result["env_steps"]) == len(result["return_mean"]) == len(result["return_std"])
    assert result["env_steps"] == sorted(set(result["env_steps"]))
    assert result["complete"] != ("error" in result)
    for key in ("command", "commit", "versions", "machine", "wall_clock_s", "updates", "eval_episodes"):
        assert key in result


def test_published_scores_give_the_means_that_are_known() -> None:
    """At 100k steps, from the score files: six tasks DreamerV3 579 and TD-MPC2 864, nine tasks SimbaV2 739."""
    rows, suites = read_published(), read_suites()

    def mean(method: str, suite: str) -> float:
        envs = suites[suite].envs
        return float(np.mean([published_mean(rows, "state", method, env_id, 100_000) for env_id in envs]))

    assert [round(mean(method, "planet-6")) for method in ("DreamerV3", "TD-MPC2", "TD-MPC")] == [579, 864, 874]
    assert [round(mean(method, "nine")) for method in ("TD-MPC2", "SimbaV2", "SAC (run by TD-MPC2)")] == [712, 739, 501]


def test_suites_name_what_there_is() -> None:
    suites = read_suites()
    assert {"planet-6", "nine", "sac", "papers", "pixels"} <= set(suites)
    assert len(suites["nine"].runs()) == 27
    assert suites["sac"].envs == suites["nine"].envs
    assert len(set(suites["papers"].runs())) == 6


# -- what a table says ----------------------------------------------------------------------------------------


def test_a_suite_table_has_means_over_seeds_beside_published_ones() -> None:
    lines = suite_table(SUITE, group([*RUNS, *PARTLY]), PUBLISHED).splitlines()
    assert lines[0] == "| task | **good**, default | **other**, small | Theirs |"
    assert lines[2] == "| A | 150 ± 50 (2) | 900 (1) | 300 |"  # the run with an error is left out
    assert lines[3] == "| B | 400 ± 0 (2) | - | 500 |"
    assert lines[4] == "| mean of 2 | 275 | - (1 of 2 tasks) | 400 |"


def test_the_page_shows_failed_runs_and_each_table_once(tmp_path: Path) -> None:
    files = {Path(f"{i}.json"): result for i, result in enumerate([*RUNS, *PARTLY])}
    twin = Suite("twin", "the same tasks", ("other",), SUITE.envs, (0,), SUITE.env_steps)
    page = benchmark_page(files, [SUITE, twin], PUBLISHED)
    assert page.count("**good**") == 1
    assert "| `5.json` | 7 at 20k | 10 | abc | here | ValueError: x |" in page
    assert "| Seeing | pixels | them/code: scores.csv | training episodes |" in page


def test_write_tables_changes_only_what_is_between_the_markers(tmp_path: Path) -> None:
    for index, result in enumerate(RUNS):
        path = tmp_path / "results" / "good" / result["env_id"] / f"default-seed{index}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_tables(tmp_path / "results", tmp_path / "BENCHMARK.md", [page])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| A | good, default | 0, 1 | - | - | 100 at 20k, 200 at 20k | 10 |" in text
    assert (tmp_path / "BENCHMARK.md").read_text().startswith("# Benchmark")
    (tmp_path / "bare.md").write_text("no markers")
    with pytest.raises(ValueError, match=r"bare\.md"):
        put_between_markers(tmp_path / "bare.md", "text")


# -- pictures -------------------------------------------------------------------------------------------------


def test_aggregates_are_of_agents_that_ran_every_task() -> None:
    groups = group([*RUNS, *PARTLY])
    found = scores_of("good, default", SUITE, groups)
    assert found is not None
    assert found.steps == [0, 10_000, 20_000]
    assert found.values.shape == (2, 2, 3)
    assert found.values[:, :, -1].tolist() == [[0.1, 0.4], [0.2, 0.4]]
    assert scores_of("other, small", SUITE, groups) is None


def test_the_interquartile_mean_leaves_out_the_outer_quarters_and_its_interval_holds_it() -> None:
    values = np.array([[[0.0], [0.4], [0.6], [1.0]]] * 2)
    values[0] += 0.02
    mean, interval = interquartile_mean(values)
    assert mean[0] == pytest.approx(0.51)
    assert interval[0, 0] <= mean[0] <= interval[1, 0]
    assert np.array_equal(interval, interquartile_mean(values)[1])  # the bootstrap is seeded


def test_plots_are_pictures_and_the_same_each_time(tmp_path: Path) -> None:
    groups = group([*RUNS, *PARTLY])
    for name in ("one", "two"):
        plot_curves(tmp_path / name / "curves", groups, PUBLISHED)
        plot_suite(tmp_path / name / "suite", SUITE, groups, PUBLISHED)
    for name in ("curves", "suite"):
        assert np.asarray(Image.open(tmp_path / "one" / f"{name}.png").convert("L")).std() > 1
        svg = (tmp_path / "one" / f"{name}.svg").read_bytes()
        assert svg.startswith(b"<?xml")
        assert svg == (tmp_path / "two" / f"{name}.svg").read_bytes()


def test_returns_below_zero_are_drawn_inside_their_panel(tmp_path: Path) -> None:
    below = group([run("A-v0", 0, -1000.0)])
    picture = np.asarray(Image.open(plot_curves(tmp_path / "curves", below)[0]).convert("RGB")).astype(int)
    height = len(picture)
    blue = (np.abs(picture - [31, 119, 180]).sum(-1) < 30)[: height // 2]  # the line's colour, above the legend
    assert blue.sum() > 50


def test_without_results_there_is_no_aggregate(tmp_path: Path) -> None:
    assert plot_suite(tmp_path / "suite", SUITE, group(PARTLY), PUBLISHED) == []
    assert methods(PUBLISHED, "pixels") == ["Seeing"]


# -- trained in a dream ---------------------------------------------------------------------------------------


def dreamt(seed: int, real: float, **more: Any) -> dict:
    return {
        "algo": "ppo", "preset": "dreamer", "env_id": "A-v0", "seed": seed, "complete": True, "dream_steps": [0, 5000],
        "return_mean": [1.0, real], "dream_return_mean": [2.0, 500.0], "wall_clock_s": 120.0, "eval_episodes": 10,
        "teacher_return_mean": 400.0, "settings": {"dream": {"observation": "latent"}}, **more,
    }  # fmt: skip


def test_dream_trained_agents_stand_beside_the_worlds_own() -> None:
    runs = [dreamt(0, 300.0), dreamt(1, 340.0), dreamt(2, 0.0, complete=False), dreamt(3, 0.0, error="x")]
    alone = dreamt(0, 50.0, preset="offline")
    del alone["teacher_return_mean"]
    judged = dreamt(0, 50.0, preset="judged", return_mean=[300.0, 50.0], judge_return_mean=[90.0, 80.0], kept=0,
                    settings={"dream": {}})  # fmt: skip
    section = dream_section({Path(str(number)): run for number, run in enumerate([*runs, alone, judged])})
    assert "| A | dreamer | latent | ppo | 5,000 | 10 | 320 ± 20 (2) | 500 ± 0 (2) | - | 400 | 80% | 2 |" in section
    assert "| A | offline | latent | ppo | 5,000 | 10 | 50 (1) | 500 (1) | - | - | - | 2 |" in section
    assert "| A | judged | decoded | ppo | 5,000 | 10 | 300 (1) | 2 (1) | 90 (1) | 400 | 75% | 2 |" in section


def test_the_overview_has_a_line_a_row_and_each_seed() -> None:
    files = {Path(f"dream/ppo/A-v0/dreamer-seed{seed}.json"): dreamt(seed, real) for seed, real in ((1, 340), (0, 300))}
    files[Path("dream/ppo/A-v0/dreamer_other-seed0.json")] = dreamt(0, 7.0)  # the same preset, otherwise set
    tasks = {"A-v0": {"teacher": "ppo/dreamer", "rows": [{"worlds": "its own", "runs": "ppo/dreamer"}]}}
    _, _, *rows = dream_overview(files, tasks).splitlines()
    assert rows == ["| A | its own | PPO | 5,000 | 300, 340 | 500, 500 | 80% |"]
    tasks["A-v0"]["rows"].append({"worlds": "none", "runs": "sac/none"})
    with pytest.raises(ValueError, match="sac/none of A-v0"):
        dream_overview(files, tasks)


def test_dream_results_lie_a_folder_deeper_and_are_no_runs_in_reality(tmp_path: Path) -> None:
    path = tmp_path / "dream" / "ppo" / "A-v0" / "dreamer-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dreamt(0, 300.0)))
    assert list(read_dreams(tmp_path)) == [path.relative_to(tmp_path)]
    assert not read_files(tmp_path)
