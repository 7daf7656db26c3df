"""Does `octavo plan serve` choose what simulating every layout would choose, with as many replicas?

Scenarios are drawn: a dense model, devices, lengths, a rate of arrivals, limits of mean TTFT and TPOT. The planner
ranks tensor-parallel layouts in balance; here each of them is simulated by the real scheduler under Poisson arrivals,
with the same step times, and the fewest replicas that keep the limits are searched for from the planner's number. How
often does the planner's first layout cost within 5 % of the cheapest simulated one, and is its number of replicas
within 1 of the fewest simulated?
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from octavo.arch import known
from octavo.core.limits import Limits
from octavo.planner.capacity import Load, Replica
from octavo.planner.formats import FORMATS
from octavo.planner.front_end import FrontEnd
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.layouts import Ask
from octavo.planner.ranking import Plan, rank
from octavo.planner.slo import Slo
from octavo.sim.lengths import Poisson, Uniform
from octavo.sim.report import lines
from octavo.sim.roofline import Rank, pool_limits, roofline
from octavo.sim.workload import Maker, Mix, Open
from octavo.sim.world import Deployment, simulate

MODELS = ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b")
DEVICES = ("h100", "h200")
PER_REPLICA, LEAST = 100, 800
"""Requests that are looked at for each replica, and in all, at least: of a hundred the mean TPOT differs by a fifth
from seed to seed."""

SETTLES, LOOKED_AT, DRAINS = 1.5, 2.0, 1.0
"""Lifetimes of a request at its limits: before a batch has filled, that are looked at at least, and after the last
arrival, when it empties again. Requests of the first and the last are simulated and left out."""

NEAR_COST, NEAR_REPLICAS = 1.05, 1
HOPELESS = 2.0
"""Layouts that the planner takes to cost this many times its first are not simulated."""

WIDTH = 0.3
"""Lengths lie evenly within this share of their mean."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one scenario. `cost` is the planner's layout's over the cheapest's, both as simulated."""

    cost: float
    replicas_off: int


def draw(seed: int) -> Ask:
    """A scenario that some layout serves with at most a dozen replicas."""
    rng = random.Random(seed)
    while True:
        asked = Ask(
            shape=known.shape(rng.choice(MODELS)),
            devices=tuple(device(name) for name in DEVICES),
            weights=(FORMATS["fp8"],),
            kvs=(LAYOUTS["fp8"],),
            load=Load(prompt_tokens=rng.randrange(200, 4000), output_tokens=rng.randrange(40, 400)),
            slo=Slo(ttft_s=rng.uniform(0.3, 2.0), tpot_s=rng.uniform(0.015, 0.06)),
            requests_per_s=rng.uniform(2.0, 30.0),
            front_end=FrontEnd(),
        )
        plans = tensor_plans(asked)
        if plans and plans[0].num_replicas <= 12:
            return asked


def tensor_plans(asked: Ask) -> list[Plan]:
    """The simulator's replicas have no stages."""
    return [plan for plan in rank(asked).plans if plan.replica.parallel.pipeline == 1]


def keeps(asked: Ask, replica: Replica, num_replicas: int, seed: int) -> bool:
    """Whether so many replicas keep the limits in a simulation."""
    load, rate = asked.load, asked.requests_per_s or 0.0
    prompt, output = round(load.prompt_tokens), round(load.output_tokens)
    limits = Limits(
        num_blocks=2,
        block_tokens=16,
        max_num_seqs=replica.max_seqs,
        max_num_batched_tokens=replica.budget_tokens,
        max_model_len=round((prompt + output) * (1 + WIDTH)) + 16,
    )
    spread = Rank(
        shape=replica.shape,
        device=replica.device,
        weights=replica.weights,
        kv=replica.kv,
        parallel=replica.parallel,
    )
    deployment = Deployment(
        limits=pool_limits(spread, limits, replica.utilization),
        timing=roofline(spread),
        num_replicas=num_replicas,
        routing="least_loaded",
    )
    lifetime = rate * ((asked.slo.ttft_s or 0.0) + output * (asked.slo.tpot_s or 0.0))  # in arrivals
    before, after = round(SETTLES * lifetime), round(DRAINS * lifetime)
    looked_at = max(round(LOOKED_AT * lifetime), PER_REPLICA * num_replicas, LEAST)
    count = before + looked_at + after
    mix = Mix(prompt=_around(prompt), output=_around(output))
    found = lines(simulate(deployment, Open(gaps=Poisson(rate), maker=Maker(mix, seed), num_requests=count)))
    settled = found[before : before + looked_at]
    ttft_s = statistics.fmean(one.ttft_s for one in settled if one.ttft_s is not None)
    tpot_s = statistics.fmean(one.tpot_s for one in settled if one.tpot_s is not None)
    return ttft_s <= (asked.slo.ttft_s or 0.0) and tpot_s <= (asked.slo.tpot_s or 0.0)


def _around(tokens: int) -> Uniform:
    return Uniform(max(1, round(tokens * (1 - WIDTH))), round(tokens * (1 + WIDTH)))


def fewest(asked: Ask, plan: Plan, seed: int) -> int:
    """Replicas, from the planner's number down or up."""
    count = plan.num_replicas
    if keeps(asked, plan.replica, count, seed):
        while count > 1 and keeps(asked, plan.replica, count - 1, seed):
            count -= 1
        return count
    while not keeps(asked, plan.replica, count + 1, seed):
        count += 1
    return count + 1


def outcome(seed: int) -> Outcome:
    asked = draw(seed)
    plans = tensor_plans(asked)
    most_usd = HOPELESS * (plans[0].usd_per_hour or 0.0)
    plans = [plan for plan in plans if (plan.usd_per_hour or 0.0) <= most_usd]
    needed = {plan.label: fewest(asked, plan, seed) for plan in plans}
    costs = {
        plan.label: needed[plan.label] * plan.replica.num_devices * (asked.price(plan.replica.device) or 0.0)
        for plan in plans
    }
    first = plans[0]
    return Outcome(
        cost=costs[first.label] / min(costs.values()), replicas_off=first.num_replicas - needed[first.label]
    )


def score(num_scenarios: int, repeat: int) -> Figures:
    """`repeat` changes nothing."""
    del repeat
    made = [outcome(seed) for seed in range(num_scenarios)]
    return {
        "near_cost": statistics.fmean(one.cost <= NEAR_COST for one in made),
        "near_replicas": statistics.fmean(abs(one.replicas_off) <= NEAR_REPLICAS for one in made),
        "same_replicas": statistics.fmean(one.replicas_off == 0 for one in made),
        "worst_cost": max(one.cost for one in made),
        "most_too_few": -min(0, *(one.replicas_off for one in made)),
        "most_too_many": max(0, *(one.replicas_off for one in made)),
    }


def gate() -> str:
    """More replicas do not break limits that fewer keep, and a hundredth of the load is kept by one."""
    asked = draw(0)
    plan = tensor_plans(asked)[0]
    count = fewest(asked, plan, 0)
    if not keeps(asked, plan.replica, count + 1, 0):
        raise GateFailed(f"{count} replicas keep the limits and {count + 1} do not")
    light = replace(asked, requests_per_s=(asked.requests_per_s or 0.0) / 100)
    if not keeps(light, plan.replica, 1, 0):
        raise GateFailed("one replica does not keep a hundredth of the load")
    return "more replicas keep what fewer keep"


def bench(num_scenarios: int) -> Bench:
    return Bench(
        question="Does the planner choose what simulating every layout would choose?",
        slug="planner-simulated",
        figure="near_cost",
        unit="of scenarios within 5 % of the cheapest",
        better="higher",
        shape={"scenarios": num_scenarios, "lifetimes": [SETTLES, LOOKED_AT, DRAINS]},
        gate=gate,
        subjects={"octavo plan serve": partial(score, num_scenarios)},
        seeds={"scenarios": list(range(num_scenarios))},
        notes=["layouts are tensor-parallel; limits are means; step times of both are the roofline's"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.planner.simulated", description=__doc__)
    parser.add_argument("--scenarios", type=int, default=200, help="how many (default %(default)s)")
    harness.arguments(parser)
    parser.set_defaults(repeats=1, warmup=0)  # the same every time: all that is drawn has a seed
    args = parser.parse_args(words)
    return harness.ask([bench(args.scenarios)], harness.settings(args, "benches.planner.simulated", words))


if __name__ == "__main__":
    sys.exit(main())
