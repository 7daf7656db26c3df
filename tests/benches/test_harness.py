"""The harness: the gate comes first, subjects take turns, budgets save repeats and say so."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benches import harness
from benches.harness import Bench, GateFailed, OtherLoad, Settings, answer, ask
from benches.record import read
from tests.benches.made import LIMITS


class Fakes:
    """Subjects that write down when they ran, and a clock that each of them moves on by `cost_s`."""

    def __init__(self, cost_s: float = 1.0) -> None:
        self.calls: list[tuple[str, int]] = []
        self.now_s = 0.0
        self.cost_s = cost_s

    def subject(self, name: str) -> Any:
        def run(repeat: int) -> dict[str, float]:
            self.calls.append((name, repeat))
            self.now_s += self.cost_s
            return {"rate_per_s": 10.0 + repeat, "peak_bytes": 7.0}

        return run

    def gate(self) -> str:
        self.calls.append(("gate", 0))
        return "results are right"

    def clock(self) -> float:
        return self.now_s

    def bench(self, *names: str, **changes: Any) -> Bench:
        values: dict[str, Any] = {
            "question": "which is fastest?",
            "slug": "speed",
            "figure": "rate_per_s",
            "unit": "tok/s",
            "better": "higher",
            "shape": {"T": 4},
            "gate": self.gate,
            "subjects": {name: self.subject(name) for name in names},
            "seeds": {"prompts": 1},
            "notes": ["as it is"],
        }
        return Bench(**{**values, **changes})


def test_gate_then_warmup_then_interleaved_rounds() -> None:
    fakes = Fakes()
    made = answer(fakes.bench("a", "b", "c"), Settings(repeats=4, warmup=1), limits=LIMITS, clock=fakes.clock)
    names = [name for name, _ in fakes.calls]
    assert names[:4] == ["gate", "a", "b", "c"]
    assert [repeat for _, repeat in fakes.calls[1:4]] == [-1, -1, -1]
    rounds = [names[start : start + 3] for start in range(4, len(names), 3)]
    assert rounds == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert [repeat for name, repeat in fakes.calls[4:] if name == "b"] == [0, 1, 2, 3]
    assert made.subjects["b"]["rate_per_s"].values == (10.0, 11.0, 12.0, 13.0)
    assert made.subjects["b"]["rate_per_s"].median == 11.5
    assert (made.repeats, made.warmup, made.correct, made.gate) == (4, 1, True, "results are right")


def test_the_record_says_what_it_rests_on() -> None:
    fakes = Fakes()
    settings = Settings(command="python -m benches.speed --repeats 5")
    made = answer(fakes.bench("a"), settings, limits=LIMITS, clock=fakes.clock)
    assert made.command == "python -m benches.speed --repeats 5"
    assert made.seeds == {"prompts": 1}
    assert made.shape == {"T": 4}
    assert made.hardware.cpu == LIMITS.cpu
    assert {"octavo", "python", "torch"} <= set(made.versions)
    assert made.commit
    assert made.notes == ["as it is", *LIMITS.notes]


def test_wrong_results_are_never_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> str:
        raise GateFailed("row 3 is off by 9")

    fakes = Fakes()
    good = fakes.bench("b", slug="good")
    code = ask([fakes.bench("a", gate=wrong), good], Settings(results=tmp_path), LIMITS)
    assert code == 1
    assert ("a", -1) not in fakes.calls
    assert "row 3 is off by 9" in capsys.readouterr().err
    assert [path.name.split("-", 3)[3] for path in tmp_path.glob("*/*.json")] == ["good.json"]


def test_a_budget_saves_repeats_and_says_so() -> None:
    fakes = Fakes(cost_s=10.0)
    settings = Settings(repeats=5, warmup=1, budget_s=45.0)
    made = answer(fakes.bench("a"), settings, limits=LIMITS, clock=fakes.clock)
    assert made.repeats == len(made.subjects["a"]["rate_per_s"].values) == 3
    assert "3 of 5 repeats were made: the time budget is 45 s" in made.notes


def test_a_budget_of_nothing_still_measures_once() -> None:
    fakes = Fakes(cost_s=10.0)
    made = answer(fakes.bench("a", "b"), Settings(budget_s=0.0), limits=LIMITS, clock=fakes.clock)
    assert made.repeats == 1
    assert [name for name, repeat in fakes.calls if repeat == 0 and name != "gate"] == ["a", "b"]


def test_a_budget_that_suffices_changes_nothing() -> None:
    fakes = Fakes(cost_s=1.0)
    made = answer(fakes.bench("a"), Settings(budget_s=100.0), limits=LIMITS, clock=fakes.clock)
    assert made.repeats == 5
    assert not any("budget" in note for note in made.notes)


def test_a_subject_must_return_the_figure_each_time() -> None:
    fakes = Fakes()
    with pytest.raises(ValueError, match="not the figure 'latency_s'"):
        answer(fakes.bench("a", figure="latency_s"), Settings(), limits=LIMITS, clock=fakes.clock)
    fickle = {"a": lambda repeat: {f"figure{repeat}": 1.0}}
    with pytest.raises(ValueError, match="in another"):
        answer(fakes.bench(subjects=fickle), Settings(), limits=LIMITS, clock=fakes.clock)


@pytest.mark.parametrize("change", [{"subjects": {}}, {"better": "faster"}])
def test_a_bench_that_cannot_be_answered_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="speed: "):
        Fakes().bench("a", **change)


@pytest.mark.parametrize("change", [{"repeats": 0}, {"warmup": -1}, {"threads": 0}])
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Settings(**change)


def test_flags_become_settings(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    harness.arguments(parser)
    words = ["--repeats", "7", "--threads", "3", "--budget-s", "9", "--results", str(tmp_path)]
    settings = harness.settings(parser.parse_args(words), "benches.speed", words)
    assert (settings.repeats, settings.threads, settings.budget_s) == (7, 3, 9.0)
    assert settings.results == tmp_path
    assert str(tmp_path) not in settings.command
    silent = harness.settings(parser.parse_args(["--no-record"]), "benches.speed", ["--no-record"])
    assert silent.results is None


def test_ask_stores_readable_records_and_shares_the_budget(tmp_path: Path) -> None:
    fakes = Fakes()
    settings = Settings(repeats=1, warmup=0, results=tmp_path, budget_s=1000.0)
    code = ask([fakes.bench("a", slug="one"), fakes.bench("a", slug="two")], settings, LIMITS)
    assert code == 0
    assert sorted(read(path).slug for path in tmp_path.glob("*/*.json")) == ["one", "two"]


def test_load_of_others_is_the_machine_less_ourselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    ticks = harness.os.sysconf("SC_CLK_TCK")
    times = {"wall": 50.0, "own": 5.0}
    monkeypatch.setattr(harness.time, "monotonic", lambda: times["wall"])
    monkeypatch.setattr(harness.os, "times", lambda: (times["own"], 0.0, 0.0, 0.0, 0.0))

    def write(busy_s: int) -> None:
        stat.write_text(f"cpu {busy_s * ticks} 0 0 123456 77 0 0 0 0 0\ncpu0 1 2 3\n")

    write(100)
    load = OtherLoad(stat)
    assert load.cores() is None
    write(130)
    times.update(wall=70.0, own=25.0)
    assert load.cores() == 0.5
    assert OtherLoad(tmp_path / "missing").cores() is None
