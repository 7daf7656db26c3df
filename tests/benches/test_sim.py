"""Benches of the simulator: what they compare, and that they run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benches.sim import speed, vllm_runs
from octavo.sim.from_requests import Took
from octavo.sim.report import Line
from octavo.sim.traces import Row, Trace
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
