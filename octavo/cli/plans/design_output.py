"""A plan of what to train, for people and as plain JSON values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from octavo.cli import output
from octavo.cli.amounts import short
from octavo.cli.fit import print_figures
from octavo.cli.fit_results import figure_json, finite
from octavo.cli.plans import training_flags
from octavo.planner.design import Ranked
from octavo.planner.fit_report import Report
from octavo.planner.laws import Optimum, ParametricLaw
from octavo.planner.published import rates
from octavo.planner.served import Life
from octavo.planner.train_cost import Fleet, TrainCost


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is printed.

    optima    law -> (its optimum, whether it is sound, what to know of it)
    life      the plain optimum and the model of the same loss that costs least over its life, where serving counts
    """

    flop: float
    law_name: str
    law: ParametricLaw
    optima: dict[str, tuple[Optimum, bool, str]]
    report: Report | None
    unit: str
    life: tuple[Life, Life] | None
    whole_budget: Life | None
    designs: list[Ranked]
    bill: TrainCost
    fleet: Fleet
    warnings: list[str]


def show(plan: Plan) -> None:
    """Print it for people."""
    print(f"{plan.flop:.4g} training FLOPs\n")
    rows = [
        (name if sound else f"({name})", *_split(best), remark)
        for name, (best, sound, remark) in plan.optima.items()
    ]
    output.print_table(["law", "params", "tokens", "tokens/param", "loss", ""], rows, right=[1, 2, 3, 4])
    print("in brackets: constants kept only to show what rounding does\n")
    if plan.report is not None:
        print(f"by {plan.law_name}, {plan.report.fitted.form.formula}:")
        print_figures("", plan.report.advice, plan.report.choices.level)
        print()
    _print_life(plan)
    _print_designs(plan)
    for warning in plan.warnings:
        print(f"warning: {warning}")


def _split(best: Optimum) -> tuple[str, str, str, str]:
    loss = "-" if best.loss is None else f"{best.loss:.4f}"
    return short(best.params), short(best.tokens), f"{best.tokens_per_param:.1f}", loss


def _print_life(plan: Plan) -> None:
    if plan.life is None or plan.whole_budget is None:
        return
    plain, cheapest = plan.life
    named = {
        "best for training alone": plain,
        "as good, cheapest over its life": cheapest,
        "best for a budget that pays for serving too": plan.whole_budget,
    }
    rows = [
        (
            name,
            short(one.params),
            short(one.tokens),
            f"{one.tokens_per_param:.1f}",
            f"{one.loss:.4f}",
            short(one.training_cost),
            short(one.serving_cost),
            short(one.total_cost),
        )
        for name, one in named.items()
    ]
    columns = ["", "params", "tokens", "tokens/param", "loss", f"training {plan.unit}", "serving", "total"]
    output.print_table(columns, rows, right=[1, 2, 3, 4, 5, 6, 7])
    print(f"saved at the same loss: {1 - cheapest.total_cost / plain.total_cost:.1%}\n")


def _print_designs(plan: Plan) -> None:
    first = plan.designs[0].design
    moe = f", {first.active} of {first.experts} experts" if first.experts > 1 else ""
    print(f"designs by {plan.law_name}{moe}, best first:")
    rows = []
    for one in plan.designs:
        d = one.design
        rows.append(
            (
                f"{d.hidden} x {d.layers}",
                f"{d.query_heads}/{d.kv_heads} x {d.head_width}",
                f"{d.ffn // d.active}",
                d.vocabulary,
                short(d.params) if d.experts == 1 else f"{short(d.active_params)} of {short(d.params)}",
                short(one.tokens),
                f"{one.loss:.4f}",
                short(one.served_flop),
                one.serving_rank,
                *([] if one.life_cost is None else [short(one.life_cost)]),
            )
        )
    columns = ["width x layers", "heads/kv x width", "ffn", "vocabulary", "params", "tokens", "loss"]
    columns += ["FLOPs/served token", "rank"] + ([] if plan.life is None else [f"life {plan.unit}"])
    output.print_table(columns, rows, right=list(range(2, len(columns))))
    share = plan.designs[0].training_flop / (6 * first.active_params * plan.designs[0].tokens)
    print(
        f"\nthe first one takes {plan.designs[0].training_flop:.4g} FLOPs, counted exactly: {share:.3f} x 6 N D"
    )
    print(training_flags.describe(plan.bill, plan.fleet))
    guess = rates(plan.designs[0].training_flop)
    batch, rate = short(guess.batch_tokens), f"{guess.learning_rate:.2g}"
    print(f"a first guess: batches of {batch} tokens, AdamW at {rate} (DeepSeek LLM)")


def as_json(plan: Plan) -> dict[str, Any]:
    """The same as plain JSON values."""
    return {
        "flop": plan.flop,
        "law": plan.law_name,
        "constants": plan.law.constants(),
        "optima": {
            name: _optimum_json(best) | {"is_sound": sound, "remark": remark}
            for name, (best, sound, remark) in plan.optima.items()
        },
        "own_runs": None
        if plan.report is None
        else finite({name: figure_json(one) for name, one in plan.report.advice.items()}),
        "unit": plan.unit,
        "life": None
        if plan.life is None or plan.whole_budget is None
        else {
            "training_alone": _life_json(plan.life[0]),
            "cheapest_of_same_loss": _life_json(plan.life[1]),
            "best_of_whole_budget": _life_json(plan.whole_budget),
        },
        "designs": [_design_json(one) for one in plan.designs],
        "first_guess": asdict(rates(plan.designs[0].training_flop)),
        "fleet": training_flags.fleet_json(plan.fleet),
        "bill": training_flags.bill_json(plan.bill),
        "warnings": plan.warnings,
    }


def _optimum_json(best: Optimum) -> dict[str, Any]:
    return {
        "params": best.params,
        "tokens": best.tokens,
        "tokens_per_param": best.tokens_per_param,
        "loss": best.loss,
    }


def _life_json(one: Life) -> dict[str, float]:
    return {
        "params": one.params,
        "tokens": one.tokens,
        "tokens_per_param": one.tokens_per_param,
        "loss": one.loss,
        "training_cost": one.training_cost,
        "serving_cost": one.serving_cost,
        "total_cost": one.total_cost,
    }


def _design_json(one: Ranked) -> dict[str, Any]:
    return {
        "config": one.design.config(),
        "params": one.design.params,
        "active_params": one.design.active_params,
        "width_over_layers": one.design.aspect,
        "tokens": one.tokens,
        "loss": one.loss,
        "training_flop": one.training_flop,
        "served_flop_per_token": one.served_flop,
        "kv_elements_per_token": one.kv_elements,
        "life_cost": one.life_cost,
        "loss_rank": one.loss_rank,
        "serving_rank": one.serving_rank,
        "life_rank": one.life_rank,
    }
