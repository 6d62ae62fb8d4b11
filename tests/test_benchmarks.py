"""The benchmarks measure what they say: the same computation on both sides, whole files, honest growth."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.captured import CAPTURABLE
from benchmarks import recipe, replay, report, train, update
from benchmarks.ours import AGENTS, build, compile_steps, make_agent, make_batch
from benchmarks.serving import Spec, Worker, alternate, flops, matrix_rate, timed

TINY = Spec("dreamer_v3", "state", "1m", batch=2, length=3)


def test_an_update_changes_every_trained_part() -> None:
    agent = make_agent(TINY)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    for group in agent.optimizers["all"].param_groups:
        group["lr"] = 1e-3  # the warm-up begins with nothing
    agent._update(make_batch(TINY))
    changed = {name.split(".")[0] for name, value in agent.policy.state_dict().items() if (value != before[name]).any()}
    assert {"world", "actor", "critic"} <= changed


@pytest.mark.parametrize("observation", ["state", "pixels"])
def test_precision_changes_neither_networks_nor_work(observation: str) -> None:
    spec = Spec("dreamer_v1", observation, batch=2, length=3)
    fast = dataclasses.replace(spec, precision="bfloat16")
    assert build(spec).parameters == build(fast).parameters
    assert flops(build(spec).step) == flops(build(fast).step)


@pytest.mark.parametrize("able", [True, False])
def test_no_row_is_called_bfloat16_where_ours_would_compute_in_float32(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "multiplies_bfloat16", lambda device: able)
    rows = update.rows_beside_peers([(4, 8)], [1], "cpu", ["eager"])
    assert {row.precision for row in rows} == ({"float32", "bfloat16"} if able else {"float32"})


def test_only_updates_that_ask_the_host_nothing_are_captured() -> None:
    rows = update.rows_beside_peers([(4, 8)], [1], "cuda", ["captured"])
    assert {row.agent for row in rows} == update.CAPTURED
    assert {AGENTS[name] for name in update.CAPTURED} == set(CAPTURABLE)


def test_work_grows_with_the_batch_and_no_faster() -> None:
    spec = Spec("dreamer", "state", batch=4, length=8)
    ratio = flops(build(dataclasses.replace(spec, batch=8)).step) / flops(build(spec).step)
    assert 1.8 < ratio <= 2.0


def test_own_defaults_dream_from_fewer_states() -> None:
    spec = Spec("dreamer", "state", batch=16, length=32)
    assert flops(build(dataclasses.replace(spec, defaults=True)).step) < flops(build(spec).step)


def test_compiled_steps_are_put_into_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def compile(function: Any) -> Any:
        def compiled(*args: Any) -> Any:
            called.append(function.__name__)
            return function(*args)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    agent = make_agent(TINY)
    compile_steps(agent)
    agent._update(make_batch(TINY))
    assert called.count("_filter_step") == TINY.length
    assert called.count("transition") == agent.horizon


@pytest.mark.slow
def test_compiled_updates_equal_eager_ones() -> None:
    agents = [make_agent(dataclasses.replace(TINY, mode=mode)) for mode in ("eager", "compiled")]
    batch = make_batch(TINY)
    for agent in agents:
        for group in agent.optimizers["all"].param_groups:
            group["lr"] = 1e-4
        agent._update(batch)
    for one, two in zip(agents[0].policy.parameters(), agents[1].policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_networks_of_other_sizes_are_not_compared() -> None:
    update.require_same({"ours": 1000, "peer": 1004})
    with pytest.raises(ValueError, match="not the same networks"):
        update.require_same({"ours": 1000, "peer": 1010})


def test_measurements_take_turns() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) or {"wall_s": 1.0} for name in "AB"}
    found = alternate(steps, 3)
    assert order == ["A", "B"] * 3
    assert len(found["A"]) == len(found["B"]) == 3


def test_a_worker_serves_updates_of_a_process_of_its_own() -> None:
    with Worker("benchmarks.ours", Path(sys.executable)) as worker:
        row = update.measure(TINY, {"ours": worker}, repeats=2)
    assert row["ours"]["parameters"] == build(TINY).parameters
    assert 0 < row["floor_s"] < row["ours"]["seconds"]
    assert len(update.describe(row)) == len(update.COLUMNS)


def test_a_worker_that_fails_says_so() -> None:
    with Worker("benchmarks.ours", Path(sys.executable)) as worker, pytest.raises(RuntimeError, match="has ended"):
        worker.build(dataclasses.replace(TINY, size="no such size"))


@pytest.mark.slow
@pytest.mark.skipif(not update.PEERS.exists(), reason="make bench-peers builds what this needs")
def test_sheeprl_has_the_same_networks() -> None:
    with Worker("benchmarks.ours", Path(sys.executable)) as ours, Worker("benchmarks.peers", update.PEERS) as peer:
        for spec in update.everyone():
            small = dataclasses.replace(spec, batch=2, length=3)
            update.require_same({"ours": ours.build(small)["parameters"], "peer": peer.build(small)["parameters"]})


def test_the_recipe_has_the_flagships_networks_and_learns() -> None:
    spec = Spec("dreamer", "state", batch=4, length=6)
    torch.manual_seed(0)
    plain, batch = recipe.Recipe(), make_batch(spec)
    flagship = make_agent(spec)
    ends = sum(p.numel() for p in flagship.world.continue_head.parameters())
    world = sum(p.numel() for p in flagship.world.parameters()) - ends
    assert sum(p.numel() for p in plain.parts["world"]) == world
    before = reconstruction(plain, batch)
    for _ in range(40):
        plain.update(batch)
    assert reconstruction(plain, batch) < 0.9 * before
    assert all(p.requires_grad for p in plain.parts["world"])


def reconstruction(plain: recipe.Recipe, batch: Any) -> float:
    """Squared error of the plain world on a batch, by a copy of its loss's first term."""
    seen = recipe.symlog(batch.observation["observation"])
    with torch.no_grad():
        embedded = plain.encoder(seen)
        deter, stoch = torch.zeros(seen.shape[1], recipe.WIDTH), torch.zeros(seen.shape[1], recipe.LATENTS)
        error = 0.0
        for t in range(len(seen)):
            deter = plain.step(deter, stoch, batch.action[t])
            stoch = recipe.normal(plain.posterior(torch.cat([deter, embedded[t]], -1))).mean
            error += (plain.decoder(torch.cat([deter, stoch], -1)) - seen[t]).square().sum().item()
    return error


def test_replay_is_measured_in_ram_and_in_files(tmp_path: Path) -> None:
    rows = [replay.measure("state", 200, folder, samples=2) for folder in (None, str(tmp_path / "maps"))]
    assert [row["where"] for row in rows] == ["RAM", "files"]
    assert rows[0]["bytes_a_step"] == rows[1]["bytes_a_step"] > 4 * 24
    assert all(row["add_us"] > 0 and row["sample_ms"] > 0 for row in rows)


def test_growth_tells_constant_from_linear() -> None:
    rows = [{"observation": "state", "where": "RAM", "steps": n, "sample_ms": n / 7} for n in (10, 100, 1000)]
    assert replay.growth(rows, "state", "RAM") == pytest.approx(1)
    flat = [row | {"sample_ms": 3.0} for row in rows]
    assert replay.growth(flat, "state", "RAM") == pytest.approx(0)


def test_both_sides_train_with_the_same_settings() -> None:
    run = train.Run("state", starts=10, decisions=30, updates_per_decision=0.5, batch=4, length=8)
    command = train.peer_command(run, "/tmp/nowhere")
    assert {"algo.total_steps=30", "algo.learning_starts=10", "algo.replay_ratio=0.5"} <= set(command)
    assert {"algo.per_rank_batch_size=4", "algo.per_rank_sequence_length=8"} <= set(command)
    assert run.to_learning().decisions == 10


def test_what_a_process_takes_is_measured() -> None:
    spent = train.cost([sys.executable, "-c", "x = bytearray(200_000_000); sum(range(3_000_000))"])
    assert spent.peak_mb > 190
    assert spent.processor_s > 0
    with pytest.raises(subprocess.CalledProcessError):
        train.cost([sys.executable, "-c", "raise SystemExit(3)"])


def test_sections_of_the_page_are_replaced_one_by_one(tmp_path: Path) -> None:
    result = report.facts()
    report.save("one", "First", result, "a", tmp_path)
    report.save("two", "Second", result, "b", tmp_path)
    report.save("one", "First", result, "c", tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.count("## First") == text.count("## Second") == 1
    assert "\nc\n" in text
    assert "\na\n" not in text
    assert "\nb\n" in text
    assert (tmp_path / "results" / "one.json").is_file()


def test_a_busy_machine_is_told() -> None:
    quiet = {**report.facts(), "load_before": 0.1, "processors": 2}
    assert "shared" not in report.heading(quiet)
    assert "shared" in report.heading({**quiet, "load_before": 24.0})


def test_rates_and_times_are_positive() -> None:
    assert matrix_rate(size=64, repeats=3) > 0
    assert timed(lambda: torch.randn(100).sum())["wall_s"] > 0
