"""Reports on tables of all kinds: always a report or an error that a user can act on, never a warning or a crash."""

import json
import warnings

import numpy as np
import pytest

from octavo.cli.fit_results import as_json
from octavo.errors import ConfigError
from octavo.planner import fit_report, forms
from octavo.planner.fit_report import Choices
from octavo.planner.runs import from_columns

LAWS = list(forms.FORMS)


def table(rng, kind, law):
    """Sizes and tokens far apart, few sizes, one size, tokens in step with sizes; losses of a law, or plain noise."""
    count = int(rng.integers(1, 40))
    params = np.exp(rng.uniform(8, 30, count))
    if kind == "one size":
        params = np.full(count, 1e8)
    if kind == "few sizes":
        params = rng.choice([1e6, 1e7, 1e8], count)
    tokens = 20 * params if kind == "in step" else np.exp(rng.uniform(8, 30, count))
    loss = 1.7 + 400 / params**0.34 + 400 / tokens**0.28 + np.abs(rng.normal(0, 0.01, count))
    if kind == "noise":
        loss = np.exp(rng.normal(0, 1, count))
    columns = {"params": params, "tokens": tokens, "loss": loss}
    return columns | ({"experts": rng.choice([1.0, 8.0, 64.0], count)} if law == "moe" else {})


@pytest.mark.parametrize("kind", ["wide", "one size", "few sizes", "in step", "noise"])
def test_any_table_gives_a_report_or_an_error(kind):
    rng, reports = np.random.default_rng(sum(map(ord, kind))), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(24):
            law = LAWS[number % len(LAWS)]
            advised = law in ("chinchilla", "kaplan", "moe", "power-flop")
            choices = Choices(
                law=law,
                resamples=40 * (number % 2),
                drop="auto" if number % 5 == 0 else 0,
                flop=float(np.exp(rng.uniform(30, 60))) if advised else None,
                experts=4.0,
            )
            try:
                told = fit_report.report(from_columns(table(rng, kind, law)), choices)
            except ConfigError:
                continue
            json.dumps(as_json(told), allow_nan=False)
            reports += 1
    assert reports >= 4


def test_sizes_and_tokens_in_step_are_warned_about():
    rng = np.random.default_rng(0)
    params = np.geomspace(1e6, 1e9, 20)
    tokens = 20 * params * np.exp(rng.normal(0, 0.05, 20))
    columns = {"params": params, "tokens": tokens, "loss": 1.7 + 400 / params**0.34 + 400 / tokens**0.28}
    told = fit_report.report(from_columns(columns), Choices(resamples=0))
    assert any("N and D of the runs move together (correlation 1.00" in text for text in told.warnings)


def test_a_flop_column_of_another_count_is_warned_about():
    params, tokens = np.repeat([1e6, 1e7, 1e8], 4), np.tile([1e9, 2e9, 4e9, 8e9], 3)
    columns = {"params": params, "tokens": tokens, "loss": 1.7 + 400 / params**0.34 + 400 / tokens**0.28}
    told = fit_report.report(from_columns(columns | {"flop": 12 * params * tokens}), Choices(resamples=0))
    assert any("the flop column is 2 times 6 N D" in text for text in told.warnings)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"drop": "some"}, "a number or 'auto', got 'some'"),
        ({"level": 1.0}, "between 0 and 1, got 1"),
        ({"flop": -1.0}, "positive FLOPs, got -1"),
    ],
)
def test_bad_choices(fields, words):
    with pytest.raises(ConfigError, match=words):
        Choices(**fields)
