"""Benches of the simulator: what they compare, and that they run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benches.serving import recorder
from benches.sim import band, band_load, band_runs, neighbours, speed, vllm_runs
from octavo.config import EngineConfig
from octavo.engine.build import build
from octavo.sim.from_requests import Took
from octavo.sim.report import Line
from octavo.sim.timing import Linear, Timing
from octavo.sim.traces import Row, Trace
from tests.engine.tiny import write_checkpoint
from tests.shared_data import shared


def line(ttft_s: float, tpot_s: float | None, e2e_s: float) -> Line:
    return Line(
        request_id="0",
        client="",
        replica=0,
        reason="length",
        arrival_s=0.0,
        prompt_tokens=1,
        output_tokens=2,
        cached_tokens=0,
        queue_s=0.0,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=e2e_s,
        longest_gap_s=None,
        preemptions=0,
        resumed=0,
    )


def test_errors_are_those_of_the_requests_that_were_not_fitted() -> None:
    log = vllm_runs.Log(Trace("vllm", ()), [Took(9.0, 9.0), Took(1.0, 0.1), Took(3.0, None)], [9.0, 2.0, 4.0])
    found = vllm_runs.errors([line(0.0, 0.0, 0.0), line(1.1, 0.12, 2.0), line(3.3, None, 8.0)], log, first=1)
    assert found["ttft_mean"] == pytest.approx(0.1)
    assert found["ttft_p50"] == pytest.approx(0.1)
    assert found["tpot_p99"] == pytest.approx(0.2)
    assert found["e2e_mean"] == pytest.approx(10 / 6 - 1)


@pytest.mark.parametrize("name", vllm_runs.RUNS)
def test_a_log_is_read_whole(name: str) -> None:
    run = vllm_runs.RUNS[name]
    folder = shared(f"vllm_runs/{run.file}.requests.csv").parent
    log = vllm_runs.read_log(run, folder)
    assert len(log.trace.rows) == len(log.took) == 300
    for row, took, e2e_s in zip(log.trace.rows, log.took, log.e2e_s, strict=True):
        assert 0 < took.ttft_s <= e2e_s
        assert len(row.blocks) * 16 <= row.prompt_tokens
        assert e2e_s == pytest.approx(took.ttft_s + (took.tpot_s or 0.0) * (row.output_tokens - 1))


def test_speed_of_a_short_run() -> None:
    case = replace(speed.cases(None, with_day=False)["one replica, 8 requests/s"], num_requests=20)
    found = speed.speed(replace(case, workload=lambda: speed.opened(8, 20)), 0)
    assert found["steps"] > 100
    assert found["requests_per_core_s"] == pytest.approx(20 / found["core_s"])
    assert "same times" in speed.gate()


def test_a_day_is_24_hours() -> None:
    rows = (
        Row(arrival_s=0.0, prompt_tokens=5, output_tokens=2),
        Row(arrival_s=9.0, prompt_tokens=6, output_tokens=2),
    )
    found = speed.day(Trace("azure", rows)).rows
    assert len(found) == 48
    assert (found[-1].arrival_s, found[-1].prompt_tokens) == (23 * 3600 + 9, 6)
    assert (
        speed.cases(Trace("azure", rows), with_day=True)["Azure conversation day, 100 replicas"].num_requests
        == 48
    )


def test_arrivals_scale_with_the_rate_and_nothing_else_does() -> None:
    case = band_load.CASES["shared prefixes"]
    slow, fast, other = (
        band_load.planned(case, 70, rate, range(90), seed)
        for rate, seed in ((2.0, "a"), (4.0, "a"), (4.0, "b"))
    )
    assert slow.prompts == fast.prompts != other.prompts
    assert [at_s / 2 for at_s in slow.at_s] == pytest.approx(fast.at_s)
    assert slow.at_s[-1] / 69 == pytest.approx(0.5, rel=0.35)


def test_prompts_share_what_the_trace_says() -> None:
    plan = band_load.planned(band_load.CASES["shared prefixes"], 40, 1.0, range(5000), "a")
    for prompt, row in zip(plan.prompts, plan.trace.rows, strict=True):
        assert row.prompt_tokens == len(prompt)
        assert len(row.blocks) == 512 // band_load.BLOCK_TOKENS
    begins = {
        (tuple(prompt[:512]), row.blocks) for prompt, row in zip(plan.prompts, plan.trace.rows, strict=True)
    }
    assert len(begins) == 8, "eight prefixes, each under names of its own"


def test_figures_are_those_of_requests_not_fitted() -> None:
    first = [band_runs.Took(0.0, 9.0, 99.0, 5)] * band_runs.NUM_FITTED
    rest = [band_runs.Took(10.0 + n, 10.5 + n, 12.5 + n, 5) for n in range(9)] + [
        band_runs.Took(19.0, 20.0, 20.0, 1)
    ]
    found = band.of_took([*first, *rest])
    assert found["tpot_p50"] == found["tpot_p99"] == pytest.approx(0.5)
    assert found["ttft_p50"] == pytest.approx(0.5)
    assert found["throughput"] == pytest.approx(46 / 10.5)


def test_the_worst_is_measured_by_what_it_may_be() -> None:
    was = {"tpot_p50": 1.0, "tpot_p99": 1.0, "ttft_p50": 1.0, "ttft_p99": 1.0, "throughput": 10.0}
    errors, worst = band.score({**was, "tpot_p50": 1.01, "throughput": 9.7}, was)
    assert errors["throughput"] == pytest.approx(-0.03)
    assert worst == pytest.approx(2.0)
    assert band.score({**was, "throughput": 9.7}, was, 2.0)[1] == pytest.approx(1.0)
    short = {**was, "ttft_p99": 0.030}
    assert band.score({**short, "ttft_p99": 0.033}, short)[1] == pytest.approx(1.0)
    assert band.score({**was, "ttft_p99": 1.1}, was)[1] == pytest.approx(2.0)


def test_a_run_is_measured_fitted_and_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model of nothing, as fast as it goes; how near the two are says nothing here."""
    case = band_load.Case(prompt=(4, 20), output=(20, 40), num_seqs=4)
    monkeypatch.setitem(band_load.CASES, "tight memory", case)
    settings = {
        "max_model_len": 128,
        "max_num_seqs": 8,
        "num_threads": 1,
        "num_kv_blocks": 64,
        "block_size": 16,
    }
    built = build(EngineConfig.of(model=str(write_checkpoint(tmp_path / "tiny")), **settings))
    bed = band_runs.Bed(built, "", list(range(200)), Timing(model=Linear(overhead_s=1e-4)), 90, 1.0)
    try:
        assert "are the same" in band.gate(bed)
        found = band.one(bed, "tight memory", "near", "engine", 0)
    finally:
        built.engine.close()
    assert found["requests"] == 90
    assert found["worst"] >= 0
    assert found["steps"] > 30
    assert found["simulated_steps"] > 30
    assert found["measured_throughput"] > 0


def test_neighbours_come_beside_the_same_own_requests():
    alone, beside = neighbours.Beside(3, 0.2), neighbours.Beside(3, 0.2, batch=4)
    own = [job.at_ns for job in alone.arrivals()]
    assert own == [job.at_ns for job in beside.arrivals() if job.client == neighbours.OWN]
    assert len(own) > 60
    first = next(job for job in beside.arrivals() if job.client == neighbours.BATCH)
    following = beside.after(first, 5 * 10**9, is_answered=True)
    assert following is not None
    assert (following.client, following.priority, following.at_ns) == (neighbours.BATCH, 1, 5 * 10**9)
    assert beside.after(first, 13 * 10**9, is_answered=True) is None


def test_a_bound_flood_is_so_many_at_a_time():
    load = neighbours.Beside(0, 0.2, bound=2)
    lines = [one for one in neighbours.played(load) if one.client == neighbours.FLOODER]
    ends = [(round(one.arrival_s, 6), 1) for one in lines]
    ends += [(round(one.arrival_s + one.e2e_s, 6), -1) for one in lines]
    aboard = most = 0
    for _, change in sorted(ends):
        aboard += change
        most = max(most, aboard)
    assert most == 2


def test_recording_is_timed_on_the_same_steps(monkeypatch):
    monkeypatch.setattr(recorder, "TURNS", 12)
    assert recorder.gate()
    assert set(recorder.figures(0, make=recorder.recorded)) == {
        "turn_of_1_s",
        "turn_of_32_s",
        "turn_of_256_s",
    }
