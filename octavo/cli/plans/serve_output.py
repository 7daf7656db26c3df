"""What `octavo plan serve` found, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.planner import certainty
from octavo.planner.front_end import FRONT_ENDS
from octavo.planner.ranking import lost
from octavo.units import format_seconds

if TYPE_CHECKING:
    from octavo.planner.certainty import Figure
    from octavo.planner.layouts import Ask
    from octavo.planner.ranking import Plan, Ranking, Relaxed
    from octavo.planner.split import Split


def figures(ask: Ask, plan: Plan) -> dict[str, Figure]:
    """Predictions of a plan with their intervals."""
    found = {
        "ttft_s": certainty.predicted("ttft", ask.shape, plan.ttft_s),
        "tpot_s": certainty.predicted("tpot", ask.shape, plan.tpot_s),
        "most_output_per_s": certainty.predicted(
            "rate", ask.shape, plan.num_replicas * plan.most.output_per_s
        ),
    }
    price = plan.usd_per_million_output
    if price is not None:
        found["usd_per_million_output"] = certainty.inverse(found["most_output_per_s"], price)
    return found


def as_json(
    name: str, ask: Ask, made: Ranking, relaxed: list[Relaxed], pools: Split | None
) -> dict[str, Any]:
    best = made.plans[0] if made.plans else None
    return {
        "model": name,
        "parameters": certainty.Figure(
            value=ask.shape.num_parameters(), basis=certainty.EXACT, source="its config"
        ).as_json(),
        "front_end_s": certainty.Figure(
            value=ask.front_end_s(0.0 if best is None else best.made.tpot_s),
            basis=certainty.FITTED,
            source="octavo.planner.front_end.FRONT_ENDS, or --front-end",
        ).as_json(),
        "num_layouts": made.num_layouts,
        "plans": [
            _plan(ask, plan) | {"lost": None if plan is best else lost(plan, best)}
            for plan in made.plans
            if best
        ],
        "rejected": [{"layout": one.label, "reason": one.reason} for one in made.rejected],
        "relaxations": [
            {
                "limits": list(one.what),
                "factor": one.factor,
                "ttft_s": one.slo.ttft_s,
                "tpot_s": one.slo.tpot_s,
                "plan": _plan(ask, one.best),
            }
            for one in relaxed
        ],
        "split": None if pools is None or best is None else _pools(ask, best, pools),
        "sharpen": None
        if best is None
        else certainty.sharpen(ask.shape, best.made.parts, best.replica.constants.basis),
    }


def _sharpen(ask: Ask, plan: Plan) -> str:
    return certainty.sharpen(ask.shape, plan.made.parts, plan.replica.constants.basis)


def _plan(ask: Ask, plan: Plan) -> dict[str, Any]:
    replica, made = plan.replica, plan.made
    return {
        "layout": plan.label,
        "device": replica.device.name,
        "weights": replica.weights.name,
        "kv": replica.kv.name,
        "tensor": replica.parallel.tensor,
        "pipeline": replica.parallel.pipeline,
        "data": replica.parallel.data,
        "expert": replica.parallel.expert,
        "replicas": plan.num_replicas,
        "devices": plan.num_devices,
        "requests_per_s": plan.requests_per_s,
        "output_per_s": plan.output_per_s,
        "concurrency": plan.num_replicas * made.concurrency,
        "most_requests_per_s": plan.num_replicas * plan.most.requests_per_s,
        "most_concurrency": plan.num_replicas * plan.most.concurrency,
        "limited_by": plan.limited_by,
        "bound": made.bound,
        "prompt_share": made.prompt_share,
        "step_parts_s": made.parts,
        "efficiency": {"basis": replica.constants.basis, "source": replica.constants.source},
        "usd_per_hour": plan.usd_per_hour,
        "watt_hours_per_million_at_most": plan.most_watt_hours,
        "figures": {key: one.as_json() for key, one in figures(ask, plan).items()},
    }


def _pools(ask: Ask, best: Plan, pools: Split) -> dict[str, Any]:
    rate = best.requests_per_s
    prompts, decodes = pools.replicas(rate)
    return {
        "prompt_replicas": prompts,
        "decode_replicas": decodes,
        "devices": (prompts + decodes) * best.replica.num_devices,
        "ratio": pools.ratio,
        "hand_over_s": pools.hand_over_s,
        "ttft_s": ask.front_end_s(0.0) + pools.ttft_s,
        "tpot_s": pools.tpot_s,
        "pays": prompts + decodes < best.num_replicas,
    }


def show(name: str, ask: Ask, made: Ranking, relaxed: list[Relaxed], pools: Split | None, top: int) -> None:
    load = ask.load
    cached = f", {load.cached_tokens:g} of them cached" if load.cached_tokens else ""
    demand = (
        f"{ask.requests_per_s:g} requests a second"
        if ask.requests_per_s is not None
        else f"{ask.concurrency:g} at once"
    )
    print(
        f"{name}: {load.prompt_tokens:g} tokens in{cached}, {load.output_tokens:g} out, {demand}{_limits(ask)}"
    )
    print(f"{made.num_layouts} layouts looked at: {len(made.plans)} serve, {len(made.rejected)} cannot\n")
    if made.plans:
        _show_best(ask, made.plans[0], pools)
        _show_others(made, top)
    else:
        _show_none(made, relaxed, top)


def _limits(ask: Ask) -> str:
    named = (("TTFT", ask.slo.ttft_s), ("TPOT", ask.slo.tpot_s))
    said = [f"{what} {format_seconds(limit)}" for what, limit in named if limit is not None]
    return f"; {ask.slo.label} {' and '.join(said)} at most" if said else ""


def _show_best(ask: Ask, plan: Plan, pools: Split | None) -> None:
    made, found = plan.made, figures(ask, plan)
    print(f"{plan.num_replicas} x [{plan.label}]: {plan.num_devices} devices, {_hourly(plan)}\n")
    power = plan.most_watt_hours
    rows = [
        ("TTFT", *_spread(found["ttft_s"], format_seconds), _front_end(ask, plan)),
        (
            "TPOT",
            *_spread(found["tpot_s"], format_seconds),
            f"{format_seconds(made.decode_s)} without prompts",
        ),
        ("tokens/s", f"{plan.output_per_s:.0f}", "", *_demand(ask, "rate", plan)),
        ("at once", f"{plan.num_replicas * made.concurrency:.0f}", "", *_demand(ask, "concurrency", plan)),
    ]
    if "usd_per_million_output" in found:
        spread = _spread(found["usd_per_million_output"], lambda value: f"${value:.2f}")
        rows.append(("million out", *spread, "all costs on answers; prices assumed unless given"))
    at_most = "unknown" if power is None else f"{power:.0f} Wh"
    rows.append(("energy", at_most, "", "assumed", "at most: each device at its power limit"))
    output.print_table(["", "value", "90 %", "basis", ""], rows, right=[1])
    print(f"\nA replica's load ends at {plan.most.concurrency:.0f} at once: {plan.limited_by}.")
    print(f"Bound: {made.bound}; prompts take {made.prompt_share:.0%} of the time.")
    print(_sharpen(ask, plan))
    print(_split(ask, plan, pools))


def _demand(ask: Ask, of: str, plan: Plan) -> tuple[str, str]:
    """What is asked for is exact; the other follows from it."""
    is_rate = ask.requests_per_s is not None
    basis = certainty.EXACT if is_rate == (of == "rate") else certainty.PREDICTED
    if of == "rate":
        return basis, f"of {plan.num_replicas * plan.most.output_per_s:.0f} at most"
    return basis, "by Little's law" if is_rate else "as asked"


def _front_end(ask: Ask, plan: Plan) -> str:
    basis = "fitted to vLLM" if ask.front_end == FRONT_ENDS["vllm"] else "given"
    return f"{format_seconds(ask.front_end_s(plan.made.tpot_s))} of it front end, {basis}"


def _spread(figure: Figure, form: Any) -> tuple[str, str, str]:
    return form(figure.value), f"{form(figure.low)} .. {form(figure.high)}", figure.basis


def _hourly(plan: Plan) -> str:
    return "no price known" if plan.usd_per_hour is None else f"${plan.usd_per_hour:.2f} an hour"


def _split(ask: Ask, plan: Plan, pools: Split | None) -> str:
    if pools is None:
        return "Apart: no pools of prompts and decodes keep the limits."
    prompts, decodes = pools.replicas(plan.requests_per_s)
    ratio = f"{prompts} for prompts and {decodes} for decoding (1 : {pools.ratio:.2f})"
    verdict = (
        f"pays, {prompts + decodes} replicas instead of {plan.num_replicas}"
        if prompts + decodes < plan.num_replicas
        else f"does not pay: {prompts + decodes} replicas, together {plan.num_replicas}"
    )
    times = f"TTFT {format_seconds(ask.front_end_s(0.0) + pools.ttft_s)}, TPOT {format_seconds(pools.tpot_s)}"
    return f"Apart: {ratio} {verdict}; hand-over {format_seconds(pools.hand_over_s)}, {times}."


def _show_others(made: Ranking, top: int) -> None:
    best, others = made.plans[0], made.plans[1:top]
    if others:
        print("\nWhat came after it")
        rows = [(f"{one.num_replicas} x [{one.label}]", lost(one, best)) for one in others]
        output.print_table(["layout", "lost because"], rows)
    if made.rejected:
        print("\nWhat cannot serve")
        rows = [(one.label, one.reason) for one in made.rejected[:top]]
        output.print_table(["layout", "because"], rows)
        if len(made.rejected) > top:
            print(f"... {len(made.rejected) - top} more; --top or --json shows them")


def _show_none(made: Ranking, relaxed: list[Relaxed], top: int) -> None:
    print("No layout keeps the limits.")
    for one in relaxed:
        kept = {"TTFT": one.slo.ttft_s, "TPOT": one.slo.tpot_s}
        said = " and ".join(f"{what} {format_seconds(kept[what] or 0.0)}" for what in one.what)
        print(f"  Binding: {' and '.join(one.what)}, by {one.best.most.bound}.")
        print(f"  With {said}: {one.best.num_replicas} x [{one.best.label}], {_hourly(one.best)}.")
    print()
    output.print_table(["layout", "because"], [(one.label, one.reason) for one in made.rejected[:top]])
    if len(made.rejected) > top:
        print(f"... {len(made.rejected) - top} more; --top or --json shows them")
