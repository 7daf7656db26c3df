"""Clients by measured rates: windows, rates, bursts, and bad files."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.sim.clients import Clients, Window, read_client_rates
from octavo.sim.lengths import Fixed
from octavo.sim.timing import NS_PER_S
from octavo.sim.workload import Maker, Mix
from tests.shared_data import rows, shared

HEAD = "model,client,window_start_s,rate_rps,iat_cv\n"
MIX = Mix(prompt=Fixed(10), output=Fixed(5))


def test_windows_are_read_for_one_model(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(HEAD + "m,b,0,0,0\nm,b,600,2,1.5\nm,a,0,1,0\nother,a,0,9,1\n")
    assert read_client_rates(path, "m") == [
        Window("b", 600.0, 1200.0, 2.0, 1.5),
        Window("a", 0.0, 600.0, 1.0, 0.0),
    ]


def test_arrivals_have_each_windows_rate_and_variation() -> None:
    windows = [
        Window("a", 0.0, 4000.0, 1.0, 2.0),
        Window("a", 4000.0, 8000.0, 0.25, 0.5),
        Window("b", 0.0, 10.0, 1.0, 0.0),
    ]
    workload = Clients(windows, Maker(MIX, 0), 0)
    jobs = list(workload.arrivals())
    at = [job.at_ns / NS_PER_S for job in jobs]
    assert at == sorted(at)
    own = [job.at_ns / NS_PER_S for job in jobs if job.client == "a"]
    early, late = ([one for one in own if low <= one < low + 4000] for low in (0, 4000))
    assert len(early) == pytest.approx(4000, rel=0.15)
    assert len(late) == pytest.approx(1000, rel=0.1)
    gaps = [after - before for before, after in pairwise(early)]
    assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(2.0, rel=0.15)
    assert sum(job.client == "b" for job in jobs) == 10
    assert [job.at_ns for job in workload.arrivals()] == [job.at_ns for job in jobs]
    short = Clients(windows, Maker(MIX, 0), 0, duration_s=100.0)
    assert [job.at_ns for job in short.arrivals()] == [
        job.at_ns for job in jobs if job.at_ns < 100 * NS_PER_S
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "m,a,0,x,1\n", "line 2: rate_rps is 'x'; it should be a number of at least 0"),
        (HEAD + "m,,0,1,1\n", "line 2: client is missing"),
        (HEAD + "m,a,0,0,1\n", "hold no requests of the model 'm'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_client_rates(path, "m")
    assert message in str(caught.value)


def test_two_hours_of_servegen() -> None:
    name = "traces/servegen_client_rates_day1.csv.gz"
    wanted = sum(
        float(row["rate_rps"]) * 600
        for row in rows(name)
        if row["model"] == "deepseek-r1" and float(row["window_start_s"]) < 7200
    )
    windows = read_client_rates(shared(name), "deepseek-r1")
    found = sum(1 for _ in Clients(windows, Maker(MIX, 0), 0, 7200.0).arrivals())
    assert found == pytest.approx(wanted, rel=0.05)
