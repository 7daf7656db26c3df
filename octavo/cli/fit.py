"""Scaling laws from your own runs: the constants, how sure they are, and what they advise.

octavo fit RUNS.csv                                   L(N, D) from columns params, tokens, loss
octavo fit RUNS.csv --budget 5.76e23 --plot fit.svg   the optimum of a budget, with charts
octavo fit RUNS.csv --html fit.html                   all of it as one page
octavo fit RUNS.csv --law power-params                a law of one variable
octavo fit RUNS.csv --drop-outliers 5 --json          without the five highest losses

A flop column may stand for params or for tokens: C = 6 N D. Names of other columns go into --columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli import output
from octavo.cli.amounts import amount, short
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.planner.fit_report import Figure, Report
    from octavo.planner.runs import Runs


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, metavar="RUNS.csv", help="one run a line, with a header")
    parser.add_argument("--law", default="chinchilla", help="chinchilla (default), kaplan, power-params, ...")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="such as loss=val_nll"
    )
    parser.add_argument(
        "--drop-outliers",
        default="0",
        metavar="N|auto",
        help="leave out the N highest losses, or whatever lies far off the fit",
    )
    parser.add_argument("--delta", type=float, default=1e-3, help="of the Huber loss (default %(default)g)")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples; 0 for none")
    parser.add_argument("--level", type=float, default=0.9, help="of all intervals (default %(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=amount, metavar="FLOPS", help="advice for so many training FLOPs")
    parser.add_argument("--experts", type=float, help="number of experts to advise for, with --law moe")
    parser.add_argument("--plot", type=Path, metavar="OUT.svg", help="charts; needs octavo[plan]")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="a page with charts; needs nothing else to be looked at"
    )
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from octavo.planner import fit_charts, fit_report

    if args.bootstrap < 0:
        raise ConfigError(f"--bootstrap must be 0 or more, got {args.bootstrap}")
    choices = fit_report.Choices(
        law=args.law,
        drop=_drop(args.drop_outliers),
        delta=args.delta,
        resamples=args.bootstrap,
        level=args.level,
        seed=args.seed,
        flop=args.budget,
        experts=args.experts,
    )
    told = fit_report.report(read(args.runs, args.columns), choices)
    if args.plot is not None:
        _write(args.plot, fit_charts.draw(told))
    if args.html is not None:
        _write(args.html, page(told, fit_charts.draw(told), f"Octavo fit: {args.runs.name}"))
    if args.json:
        from octavo.cli.fit_results import as_json

        output.print_json(as_json(told))
    else:
        _print(told)
    return 0


def read(path: Path, columns: list[str]) -> Runs:
    """The table of runs. Raises ConfigError."""
    from octavo.planner.runs import read_table

    names = {}
    for pair in columns:
        name, equals, column = pair.partition("=")
        if not equals or not column:
            raise ConfigError(f"--columns takes NAME=COLUMN, such as loss=val_nll; got {pair!r}")
        names[name] = column
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return read_table(lines, names, source=path.name)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is no text in UTF-8: byte {error.start} is {error.object[error.start]:#x}"
        ) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _drop(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"--drop-outliers takes a number of runs or auto, got {text!r}")
    return int(text)


def _print(told: Report) -> None:
    print("\n".join(head(told)) + "\n")
    print_figures("constant", told.constants, told.choices.level, "{:.5g}")
    print("".join(f"{line}\n" for line in profiles(told)), end="")
    if told.advice:
        print(f"\nfor {told.choices.flop:.4g} FLOPs:")
        print_figures("", told.advice, told.choices.level)
    print()
    print("\n".join((*about_runs(told), *other_approaches(told))))
    for warning in told.warnings:
        print(f"warning: {warning}")


def page(told: Report, charts: str, title: str) -> str:
    """The same as one HTML page, with the charts."""
    from octavo.planner.page import html_figure, html_page, html_table

    level = told.choices.level
    parts = [
        *_paragraphs(head(told)),
        html_table(figure_rows(told.constants, "{:.5g}"), figure_columns("constant", level)),
        *_paragraphs(profiles(told)),
    ]
    if told.advice:
        title_of = f"for {told.choices.flop:.4g} FLOPs"
        parts.append(html_table(figure_rows(told.advice), figure_columns(title_of, level)))
    parts.append(html_figure(charts, "Losses and the law, runs of equal compute, residuals; outliers ringed"))
    parts += _paragraphs((*about_runs(told), *other_approaches(told)))
    parts += _paragraphs(f"warning: {warning}" for warning in told.warnings)
    return html_page(title, "".join(parts))


def _paragraphs(lines: Iterable[str]) -> list[str]:
    return [f"<p>{escape(line.strip())}</p>" for line in lines]


def head(told: Report) -> list[str]:
    fitted = told.fitted
    dropped = f", {told.dropped} left out" if told.dropped else ""
    return [
        fitted.form.formula,
        f"{len(fitted.runs)} runs{dropped}; root mean square of log residuals {fitted.rms:.4f}",
    ]


def profiles(told: Report) -> list[str]:
    return [f"{name} by its profile: {low:.4g} to {high:.4g}" for name, (low, high) in told.profiles.items()]


def print_figures(title: str, figures: dict[str, Figure], level: float, form: str | None = None) -> None:
    """A table of values with their errors and the ends of their intervals."""
    output.print_table(figure_columns(title, level), figure_rows(figures, form), right=[1, 2, 3, 4])


def figure_columns(title: str, level: float) -> tuple[str, ...]:
    return title, "value", "std. error", f"{(1 - level) / 2:.1%}", f"{(1 + level) / 2:.1%}"


def figure_rows(figures: dict[str, Figure], form: str | None = None) -> list[tuple[str, ...]]:
    def text(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        if form is not None:
            return form.format(value)
        return f"{value:.4f}" if name == "loss" else short(value)

    return [
        (name, *(text(name, value) for value in (one.value, one.error, one.low, one.high)))
        for name, one in figures.items()
    ]


def about_runs(told: Report) -> list[str]:
    """Which runs decide the fit, and which do not belong to it."""
    rows = told.fitted.runs.row_numbers
    lines = [
        f"without row {rows[one.run]} {name} moves by {moves:+.2f} standard errors to {one.without[name]:.4g}"
        for one, name, moves in told.influences
    ]
    if told.outlying:
        names = ", ".join(str(rows[run]) for run in told.outlying[:8])
        more = f" and {len(told.outlying) - 8} more" if len(told.outlying) > 8 else ""
        lines.append(f"far off the fit: rows {names}{more}")
        if told.cleaned is not None:
            constants = ", ".join(f"{name} {value:.4g}" for name, value in told.cleaned.constants().items())
            lines.append(f"  without them and what then lies far off: {constants}")
    return lines


def other_approaches(told: Report) -> list[str]:
    if isinstance(told.parabolas, str):
        lines = [f"IsoFLOP parabolas: none; {told.parabolas}"]
    else:
        trend = told.parabolas
        bias = (
            ""
            if told.parabola_bias is None
            else f"; by themselves they would put N* at {told.parabola_bias:.3f} of it"
        )
        lines = [f"IsoFLOP parabolas: N* ~ C^{trend.exponent:.3f} from {trend.num_points} budgets{bias}"]
    if isinstance(told.envelope, str):
        return [*lines, f"envelope: none; {told.envelope}"]
    return [*lines, f"envelope: N* ~ C^{told.envelope.trend.exponent:.3f}"]
