"""A fit's report as plain JSON values."""

from __future__ import annotations

import math
from typing import Any

from octavo.planner import spans
from octavo.planner.fit_report import Figure, Report
from octavo.planner.fits import Bootstrap
from octavo.planner.isoflop import Trend


def as_json(told: Report) -> dict[str, Any]:
    """Everything the report holds; rows are numbered as in the table, from 1."""
    fitted = told.fitted
    reach = spans.ranges(fitted.runs)
    rows = fitted.runs.row_numbers
    plain = {
        "law": {"name": fitted.form.name, "formula": fitted.form.formula},
        "constants": {name: figure_json(figure) for name, figure in told.constants.items()},
        "fit": {
            "num_runs": len(fitted.runs),
            "num_dropped": told.dropped,
            "objective": fitted.objective,
            "delta": fitted.delta,
            "rms_log_residual": fitted.rms,
            "robust_sigma": fitted.robust_sigma,
            "num_starts": fitted.num_starts,
            "num_agreeing": fitted.num_agreeing,
        },
        "bootstrap": None if told.bootstrap is None else _bootstrap(told.bootstrap, told.choices.level),
        "profile_intervals": {
            name: {"low": low, "high": high} for name, (low, high) in told.profiles.items()
        },
        "ranges": {name: {"low": span.low, "high": span.high} for name, span in reach.items()},
        "influences": [
            {
                "row": int(rows[one.run]),
                "loss": float(fitted.runs.loss[one.run]),
                "residual": one.residual,
                "constant": name,
                "moves_sigmas": moves,
                "without": one.without,
            }
            for one, name, moves in told.influences
        ],
        "outlying_rows": [int(rows[run]) for run in told.outlying],
        "constants_without_outlying": None if told.cleaned is None else told.cleaned.constants(),
        "isoflop": _trend(told.parabolas, told.parabola_bias),
        "envelope": _trend(told.envelope if isinstance(told.envelope, str) else told.envelope.trend),
        "advice": None
        if told.choices.flop is None
        else {"flop": told.choices.flop} | {name: figure_json(one) for name, one in told.advice.items()},
        "warnings": told.warnings,
    }
    found: dict[str, Any] = finite(plain)
    return found


def figure_json(figure: Figure) -> dict[str, float | None]:
    return {
        "value": figure.value,
        "standard_error": figure.error,
        "low": figure.low,
        "high": figure.high,
    }


def _bootstrap(bootstrap: Bootstrap, level: float) -> dict[str, Any]:
    names = list(bootstrap.samples)
    return {
        "num_resamples": bootstrap.num_samples + bootstrap.num_unsettled,
        "num_unsettled": bootstrap.num_unsettled,
        "seed": bootstrap.seed,
        "level": level,
        "covariance": {
            "names": names,
            "matrix": bootstrap.covariance(names).tolist(),
        },
    }


def _trend(trend: Trend | str, bias: float | None = None) -> dict[str, Any]:
    if isinstance(trend, str):
        return {"exponent": None, "because": trend}
    found: dict[str, Any] = {
        "exponent": trend.exponent,
        "standard_error": trend.exponent_error,
        "num_points": trend.num_points,
        "spread": trend.spread,
    }
    return found if bias is None else found | {"bias": bias}


def finite(value: Any) -> Any:
    """The same without infinities, which JSON does not have: an open end is null."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
