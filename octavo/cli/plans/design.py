"""From compute to a model: how many parameters and tokens, then widths, layers, heads and vocabulary.

octavo plan design --flop 5.76e23                       what each published law would train
octavo plan design --gpu-hours 100k --device h100-sxm   or from device-hours, or --usd 2M
octavo plan design --flop 1e22 --runs RUNS.csv          by a law fitted to your own runs, with intervals
octavo plan design --flop 1e23 --served-tokens 2T       smaller and longer trained, for what serving will cost
octavo plan design --flop 1e23 --experts 64 --active 8  with experts

With --served-tokens every served token costs as many FLOPs as a forward pass. Where you know your prices, say what
serving a million tokens costs (--usd-per-million-output, ...) for a model of how many parameters (--priced-params):
then dollars are counted, the training's among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli import output
from octavo.cli.amounts import amount
from octavo.cli.plans import training_flags
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.cli.plans.design_output import Plan
    from octavo.planner.design import Ranked, Wishes
    from octavo.planner.fit_report import Report
    from octavo.planner.laws import Optimum, ParametricLaw
    from octavo.planner.served import Costs
    from octavo.planner.train_cost import Fleet


def configure(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--flop", type=amount, help="training FLOPs, as 6 N D counts them")
    budget.add_argument("--gpu-hours", type=amount, metavar="HOURS", help="device-hours of --device")
    budget.add_argument("--usd", type=amount, help="dollars at --price")
    training_flags.add(parser)
    parser.add_argument("--runs", type=Path, metavar="RUNS.csv", help="fit a law to your own runs and use it")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="of RUNS.csv")
    parser.add_argument(
        "--drop-outliers", type=int, default=0, metavar="N", help="highest losses of RUNS.csv"
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples of RUNS.csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--served-tokens", type=amount, help="prompt and answer tokens of the model's life")
    parser.add_argument("--prompt-tokens", type=amount, help="of the model's life, where prices differ")
    parser.add_argument("--output-tokens", type=amount, help="of the model's life, where prices differ")
    parser.add_argument("--cached-share", type=float, default=0.0, help="of prompt tokens found in a cache")
    parser.add_argument("--usd-per-million-prompt", type=float, metavar="USD", help="measured, not cached")
    parser.add_argument("--usd-per-million-cached", type=float, default=0.0, metavar="USD")
    parser.add_argument("--usd-per-million-output", type=float, metavar="USD", help="measured")
    parser.add_argument("--priced-params", type=amount, help="active parameters of the model measured")
    parser.add_argument("--tp", type=int, default=1, help="devices that will share a layer")
    parser.add_argument("--vocabulary", type=int, help="tokens (default: by size)")
    parser.add_argument("--experts", type=int, default=1)
    parser.add_argument("--active", type=int, default=None, help="experts of a token (default 1 in 8)")
    parser.add_argument(
        "--context", type=amount, default=4096.0, help="of a served token (default %(default)g)"
    )


def run(args: argparse.Namespace) -> int:
    from octavo.cli.plans.design_output import as_json, show

    plan = _plan(args)
    if args.json:
        output.print_json(as_json(plan))
    else:
        show(plan)
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    from octavo.cli.plans.design_output import Plan
    from octavo.planner import served, train_cost
    from octavo.planner.design import neighbours

    fleet = training_flags.fleet(args)
    flop = _budget(args, fleet)
    law_name, law, report = _law(args, flop)
    optima = _optima(flop, law_name, law, report)
    costs, unit = _costs(args, fleet)
    best = law.optimum(flop)
    wishes = _wishes(args)
    life = whole = None
    if costs is not None:
        plain = served.life(law, costs, best.params, best.tokens)
        cheapest = served.cheapest_of_quality(law, costs, plain.loss)
        life = (plain, cheapest)
        whole = served.best_of_budget(law, costs, flop * costs.per_training_flop)
        target, tokens_of = cheapest.params, lambda n: law.tokens_for_loss(n, plain.loss)
    else:
        target, tokens_of = best.params, lambda n: flop / (6 * n)
    designs = neighbours(
        law,
        target,
        tokens_of,
        wishes,
        costs=costs,
        sequence_tokens=int(args.sequence),
        context=int(args.context),
    )
    if not designs:
        raise ConfigError(f"{flop:.3g} FLOPs train no model on a whole sequence of {args.sequence:g} tokens")
    return Plan(
        flop=flop,
        law_name=law_name,
        law=law,
        optima=optima,
        report=report,
        unit=unit,
        life=life,
        whole_budget=whole,
        designs=designs,
        bill=train_cost.cost(designs[0].training_flop, fleet),
        fleet=fleet,
        warnings=_warnings(args, report, wishes, designs[0]),
    )


def _budget(args: argparse.Namespace, fleet: Fleet) -> float:
    if args.flop is not None:
        return float(args.flop)
    return fleet.flop_of_usd(args.usd) if args.usd is not None else fleet.flop_of_hours(args.gpu_hours)


def _law(args: argparse.Namespace, flop: float) -> tuple[str, ParametricLaw, Report | None]:
    """The law that decides: published, or fitted to the user's runs."""
    from octavo.planner.laws import MoeLaw, ParametricLaw
    from octavo.planner.published import PUBLISHED, published

    if args.runs is not None:
        from octavo.cli.fit import read
        from octavo.planner import fit_report

        runs = read(args.runs, args.columns)
        form = "chinchilla" if runs.experts is None else "moe"
        choices = fit_report.Choices(
            law=form,
            drop=args.drop_outliers,
            resamples=args.bootstrap,
            seed=args.seed,
            flop=flop,
            experts=float(args.experts),
        )
        report = fit_report.report(runs, choices)
        fitted = report.fitted.law
        assert isinstance(fitted, ParametricLaw | MoeLaw), "these two forms were asked for"
        law = fitted if isinstance(fitted, ParametricLaw) else fitted.at_experts(args.experts)
        return args.runs.name, law, report
    chosen = published(args.law).law
    if not isinstance(chosen, ParametricLaw):
        with_loss = ", ".join(name for name, one in PUBLISHED.items() if isinstance(one.law, ParametricLaw))
        raise ConfigError(
            f"{args.law} advises sizes without predicting a loss, so designs cannot be ranked by it; laws that do: "
            f"{with_loss}"
        )
    return args.law, chosen, None


def _optima(
    flop: float, law_name: str, law: ParametricLaw, report: Report | None
) -> dict[str, tuple[Optimum, bool, str]]:
    from octavo.planner.isoflop import Trend
    from octavo.planner.published import PUBLISHED

    found = {
        name: (one.optimum(flop), one.is_sound, one.remark or one.source) for name, one in PUBLISHED.items()
    }
    if report is None:
        return found
    found[law_name] = (law.optimum(flop), True, f"{len(report.fitted.runs)} runs of your own")
    if isinstance(report.parabolas, Trend):
        advice = report.parabolas.allocation(flop).optimum(flop)
        found["your runs, IsoFLOP"] = (advice, True, f"{report.parabolas.num_points} budgets")
    if not isinstance(report.envelope, str):
        found["your runs, envelope"] = (report.envelope.trend.allocation(flop).optimum(flop), True, "")
    return found


def _costs(args: argparse.Namespace, fleet: Fleet) -> tuple[Costs | None, str]:
    """What serving costs, and the unit it is counted in; None where nobody asked for it."""
    from octavo.planner.served import MeasuredPrice, Traffic, flop_costs, money_costs

    prices = (args.usd_per_million_prompt, args.usd_per_million_output, args.priced_params)
    if all(price is None for price in prices):
        if args.served_tokens is None and (args.prompt_tokens or args.output_tokens):
            return flop_costs((args.prompt_tokens or 0.0) + (args.output_tokens or 0.0)), "FLOPs"
        return (None, "FLOPs") if args.served_tokens is None else (flop_costs(args.served_tokens), "FLOPs")
    if any(price is None for price in prices):
        raise ConfigError(
            "measured prices need all of --usd-per-million-prompt, --usd-per-million-output and --priced-params"
        )
    if args.prompt_tokens is None or args.output_tokens is None:
        raise ConfigError("measured prices need --prompt-tokens and --output-tokens of the model's life")
    traffic = Traffic(
        prompt_tokens=args.prompt_tokens, output_tokens=args.output_tokens, cached_share=args.cached_share
    )
    price = MeasuredPrice(
        params=args.priced_params,
        prompt_usd_per_million=args.usd_per_million_prompt,
        cached_usd_per_million=args.usd_per_million_cached,
        output_usd_per_million=args.usd_per_million_output,
    )
    return money_costs(fleet.usd_per_flop(), price, traffic), "USD"


def _wishes(args: argparse.Namespace) -> Wishes:
    from octavo.planner.design import Wishes

    active = max(1, args.experts // 8) if args.active is None else args.active
    return Wishes(tensor_parallel=args.tp, vocabulary=args.vocabulary, experts=args.experts, active=active)


def _warnings(args: argparse.Namespace, report: Report | None, wishes: Wishes, first: Ranked) -> list[str]:
    from octavo.planner.published import beyond

    params, tokens = first.design.active_params, first.tokens
    if report is not None:
        found = list(report.warnings)
    else:
        found = beyond(args.law, params=params, tokens=tokens, flop=6 * params * tokens)
    if wishes.experts > 1 and (report is None or report.fitted.form.name != "moe"):
        found.append(
            "no published law of experts has constants that could be checked: losses are those of dense models of the "
            "active parameters, an upper bound; fit your own runs with a column experts"
        )
    if report is None and args.law in ("chinchilla-rounded", "chinchilla-0.29"):
        found.append(f"{args.law} is here only to show what rounding does")
    return found
