"""A fit as charts in one SVG: losses and curves, valleys of equal compute, residuals."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.errors import ConfigError
from octavo.planner.forms import FORMS
from octavo.planner.laws import FLOP_PER_PARAM_TOKEN, KaplanLaw, ParametricLaw, PowerLaw

if TYPE_CHECKING:
    from octavo.planner.fit_report import Report

MAX_CURVES = 8


def draw(told: Report) -> str:
    """SVG text; the same report gives the same bytes.

    Raises ConfigError when matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            'charts need matplotlib: pip install "octavo[plan]", or leave --plot out'
        ) from error
    with mpl.rc_context({"svg.hashsalt": "octavo fit", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(13, 4), layout="constrained")
        FigureCanvasSVG(figure)
        left, middle, right = figure.subplots(1, 3)
        _losses(left, told)
        _valleys(middle, told)
        _residuals(right, told)
        for axes in (left, middle, right):
            axes.grid(visible=True, which="major", linewidth=0.3)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _losses(axes: Any, told: Report) -> None:
    """Loss along the law's first free variable: tokens for one curve a size, or the variable of a plain power."""
    runs, law = told.fitted.runs, told.fitted.law
    axes.set_xscale("log")
    axes.set_ylabel("loss, nats per token")
    if isinstance(law, PowerLaw):
        name = FORMS[told.fitted.form.name].needs[0]
        values = getattr(runs, name)
        grid = np.geomspace(values.min(), values.max(), 200)
        axes.plot(values, runs.loss, ".", markersize=4)
        axes.plot(grid, law.losses(grid), linewidth=1)
        axes.set_xlabel({"params": "parameters N", "tokens": "tokens D", "flop": "FLOPs C"}[name])
        axes.set_title(told.fitted.form.formula)
        return
    axes.scatter(runs.tokens, runs.loss, c=np.log10(runs.params), s=8, cmap="viridis")
    axes.set_xlabel("tokens D; shade and curves by parameters N")
    axes.set_title(told.fitted.form.formula)
    if not isinstance(law, ParametricLaw | KaplanLaw):
        return
    sizes = np.unique(np.round(np.log(runs.params), 2))
    chosen = sizes[np.linspace(0, len(sizes) - 1, min(len(sizes), MAX_CURVES)).round().astype(int)]
    grid = np.geomspace(runs.tokens.min(), runs.tokens.max(), 200)
    for size in np.exp(chosen):
        axes.plot(grid, law.losses(size, grid), linewidth=0.8, label=f"{size:.2g}")
    axes.legend(title="N", fontsize=7, title_fontsize=7)


def _valleys(axes: Any, told: Report) -> None:
    """Runs of equal compute over N, their parabolas, and the law's own valleys (dashed)."""
    runs, law = told.fitted.runs, told.fitted.law
    axes.set_xscale("log")
    axes.set_xlabel("parameters N")
    axes.set_title("equal compute: runs, parabolas, and the law (dashed)")
    if not told.valleys:
        axes.text(0.5, 0.5, "no compute budget has enough sizes", ha="center", transform=axes.transAxes)
        return
    step = max(1, -(-len(told.valleys) // MAX_CURVES))
    for number, valley in enumerate(told.valleys[::step]):
        colour = f"C{number}"
        members = list(valley.members)
        sizes = runs.params[members]
        axes.plot(sizes, runs.loss[members], ".", color=colour, markersize=4, label=f"{valley.flop:.2g}")
        grid = np.geomspace(sizes.min(), sizes.max(), 100)
        x = np.log(grid) - valley.centre
        level, slope, square = valley.coefficients
        axes.plot(grid, level + slope * x + square * x * x, color=colour, linewidth=0.8)
        if isinstance(law, ParametricLaw | KaplanLaw):
            tokens = valley.flop / FLOP_PER_PARAM_TOKEN / grid
            axes.plot(grid, law.losses(grid, tokens), "--", color=colour, linewidth=0.6)
        if valley.optimum is not None and valley.is_inside:
            place = np.log(valley.optimum) - valley.centre
            axes.plot(valley.optimum, level + slope * place + square * place**2, "x", color=colour)
    axes.legend(title="C", fontsize=7, title_fontsize=7)


def _residuals(axes: Any, told: Report) -> None:
    """Predicted minus observed log loss over compute; outlying runs ringed."""
    runs, residuals = told.fitted.runs, told.fitted.residuals
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs C")
    axes.set_title("predicted minus observed log loss")
    axes.axhline(0, linewidth=0.6, color="black")
    axes.scatter(runs.flop, residuals, c=np.log10(runs.params), s=8, cmap="viridis")
    if told.outlying:
        axes.scatter(
            runs.flop[told.outlying], residuals[told.outlying], s=60, facecolors="none", edgecolors="C3"
        )
