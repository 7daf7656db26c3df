"""The family's prediction: a law that is true foretells the largest model, and the record says what was done."""

import csv
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lab.scaling import predict
from lab.scaling.train import Outcome
from octavo.planner.laws import ParametricLaw

ROOT = Path(__file__).resolve().parents[2]
LAW = ParametricLaw(E=2.0, A=120.0, B=600.0, alpha=0.4, beta=0.42)


def outcomes(noise=0.0):
    rng = np.random.default_rng(1)
    made = []
    for name, params in (("0.1M", 1e5), ("0.3M", 3e5), ("1M", 1e6), ("3M", 3e6), ("6M", 6e6)):
        for tokens in (250_000, 500_000, 1_000_000, 2_000_000):
            loss = LAW.loss(params, tokens) * float(np.exp(rng.normal(0, noise)))
            made.append(
                Outcome(
                    name=name,
                    seed=1,
                    params=int(params),
                    total_params=int(params) + 300_000,
                    tokens=tokens,
                    loss=loss,
                    flop=6 * params * tokens,
                    train_loss=loss,
                    steps=tokens // 4032,
                    wall_s=1.5,
                )
            )
    return made


def test_a_true_law_foretells_the_largest():
    told = predict.record(outcomes(), "a machine", ["a note"])
    best = told["laws"]["chinchilla"]["matrices"]
    assert best["largest_miss"] == pytest.approx(0.0, abs=1e-8)
    assert [row["tokens"] for row in best["predictions"]] == [250_000, 500_000, 1_000_000, 2_000_000]
    for name, value in LAW.constants().items():
        assert best["constants"][name] == pytest.approx(value, rel=1e-6)
    guesses = {row["tokens"]: row["miss"] for row in told["without_a_law"]}
    assert guesses[500_000] == pytest.approx(LAW.loss(3e6, 5e5) / LAW.loss(6e6, 5e5) - 1)
    assert abs(best["mean_absolute_miss"]) < min(guesses.values())
    assert told["branches_wall_s"] == pytest.approx(30.0)


def test_the_largest_is_never_fitted():
    """Spoiling its losses changes the misses and not one constant."""
    clean = outcomes(noise=0.002)
    spoilt = [replace(one, loss=one.loss * 1.1) if one.name == "6M" else one for one in clean]
    one, two = (predict.record(rows, "a machine", []) for rows in (clean, spoilt))
    for law in predict.LAWS:
        for count in predict.COUNTS:
            assert one["laws"][law][count]["constants"] == two["laws"][law][count]["constants"]
            assert two["laws"][law][count]["mean_miss"] < one["laws"][law][count]["mean_miss"] - 0.08
    told = one["laws"]["chinchilla"]["matrices"]
    assert told["inside_interval"] >= 3
    for row in told["predictions"]:
        assert row["low"] < row["predicted"] < row["high"]


def test_the_command_reads_a_sweep_and_writes_a_record(tmp_path, monkeypatch, capsys):
    runs, out = tmp_path / "runs.csv", tmp_path / "record" / "scaling.json"
    rows = [asdict(one) for one in outcomes()]
    with runs.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert predict.read(runs) == outcomes()
    monkeypatch.setattr(
        sys, "argv", ["predict", str(runs), str(out), "--hardware", "two cores", "--note", "x"]
    )
    predict.main()
    told = json.loads(out.read_text())
    assert told["hardware"] == "two cores"
    assert told["notes"] == ["x"]
    assert len(told["runs"]) == 20
    assert "chinchilla, N = matrices: mean miss" in capsys.readouterr().out


def test_the_record_is_what_its_runs_give():
    """The kept record, fitted anew from the runs it holds, and the table of the docs beside it."""
    kept = json.loads((ROOT / "lab" / "record" / "scaling.json").read_text("utf-8"))
    again = predict.record([Outcome(**row) for row in kept["runs"]], kept["hardware"], kept["notes"])
    told = {name: kept["laws"][name]["matrices"]["predictions"] for name in predict.LAWS}
    for name, rows in told.items():
        for one, two in zip(rows, again["laws"][name]["matrices"]["predictions"], strict=True):
            assert one["predicted"] == pytest.approx(two["predicted"], rel=1e-6)
    page = (ROOT / "docs" / "scaling-laws.md").read_text("utf-8")
    for chinchilla, kaplan, guess in zip(
        told["chinchilla"], told["kaplan"], kept["without_a_law"], strict=True
    ):
        row = f"| {chinchilla['measured']:.3f} | {chinchilla['predicted']:.3f} | {100 * chinchilla['miss']:+.1f} % "
        row += f"| {kaplan['predicted']:.3f} | {100 * kaplan['miss']:+.1f} % | {100 * guess['miss']:+.1f} % |"
        assert row in page
