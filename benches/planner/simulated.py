"""Does `octavo plan serve` choose what simulating every layout would choose, with as many replicas?

Scenarios are drawn: a dense model, devices, lengths, a rate of arrivals, limits of mean TTFT and TPOT. The planner
ranks tensor-parallel layouts by balances; here the real scheduler simulates them under Poisson arrivals, with the same
step times. Of the planner's first layout the fewest replicas that keep the limits are searched for from the planner's
number; of every other layout it is tried whether as many keep them as would cost less than that by more than 5 %. How
often does none, and how often is the planner's number within 1 of the fewest?
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
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
from octavo.sim.timing import NS_PER_S
from octavo.sim.workload import Job, Maker, Mix, Open
from octavo.sim.world import Deployment, simulate

MODELS = ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b")
DEVICES = ("h100", "h200")
PER_REPLICA, LEAST = 100, 800
"""Requests that are looked at for each replica, and in all, at least."""

SETTLES, LOOKED_AT, DRAINS = 1.5, 2.0, 1.0
"""Lifetimes of a request at its limits: before a batch has filled, that are looked at at least, and after the last
arrival, when it empties again. Requests of the first and the last are simulated and left out."""

NEAR_COST, NEAR_REPLICAS = 1.05, 1
HOPELESS_LOAD = 1.15
"""Replicas with so many times the load that the planner takes to be their most are not simulated, and taken to break
the limits. `greatest_load_kept` says how far from it those were that keep them."""

EDGE, SEEDS, APART = 0.06, 3, 1000
"""Where TTFT and TPOT are this near to their limits, the mean of so many seeds decides, each so far from the next."""

WIDTH = 0.3
"""Lengths lie evenly within this share of their mean."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one scenario. `cost` is the planner's layout's over the cheapest's, both as simulated; see `Trials`."""

    cost: float
    replicas_off: int
    num_torn: int
    most_kept: float


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


class Hopeless(Exception):
    """What has ended so far took longer than all that is looked at may take together."""


@dataclass(kw_only=True)
class Even(Open):
    """Poisson arrivals, stretched so that those looked at come at the very rate.

    Of 800 arrivals the rate differs by 3.5 % from seed to seed, and a full replica's TPOT by many times that. A run
    ends as soon as it cannot keep the limits any more.

    looked_at     requests from the first to before the second
    longest_s     all these together, at most, where their means keep the limits
    """

    looked_at: tuple[int, int]
    longest_s: float
    _took_s: float = 0.0

    def arrivals(self) -> Iterator[Job]:
        self._took_s = 0.0
        jobs = list(super().arrivals())
        first, end = self.looked_at
        factor = (
            (end - first - 1) / self.gaps.rate_per_s / ((jobs[end - 1].at_ns - jobs[first].at_ns) / NS_PER_S)
        )
        for job in jobs:
            job.at_ns = round(job.at_ns * factor)
        return iter(jobs)

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:
        first, end = self.looked_at
        if first <= job.number < end:
            self._took_s += (now_ns - job.at_ns) / NS_PER_S
            if self._took_s > self.longest_s:
                raise Hopeless
        return super().after(job, now_ns, is_answered=is_answered)


def excess(asked: Ask, replica: Replica, num_replicas: int, seed: int) -> float:
    """The mean TTFT or TPOT over its limit in a simulation, whichever is more. Infinite where it is hopeless."""
    load, rate, slo = asked.load, asked.requests_per_s or 0.0, asked.slo
    ttft_s, tpot_s = slo.ttft_s or 0.0, slo.tpot_s or 0.0
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
    lifetime = rate * (ttft_s + output * tpot_s)  # in arrivals
    first = round(SETTLES * lifetime)
    end = first + max(round(LOOKED_AT * lifetime), PER_REPLICA * num_replicas, LEAST)
    mix = Mix(prompt=_around(prompt), output=_around(output))
    longest_s = (end - first) * (ttft_s + (_around(output).high - 1) * tpot_s)
    workload = Even(
        gaps=Poisson(rate),
        maker=Maker(mix, seed),
        num_requests=end + round(DRAINS * lifetime),
        looked_at=(first, end),
        longest_s=longest_s,
    )
    try:
        found = lines(simulate(deployment, workload))[first:end]
    except Hopeless:
        return math.inf
    mean_ttft_s = statistics.fmean(one.ttft_s for one in found if one.ttft_s is not None)
    mean_tpot_s = statistics.fmean(one.tpot_s for one in found if one.tpot_s is not None)
    return max(mean_ttft_s / ttft_s, mean_tpot_s / tpot_s)


def _around(tokens: int) -> Uniform:
    return Uniform(max(1, round(tokens * (1 - WIDTH))), round(tokens * (1 + WIDTH)))


@dataclass(kw_only=True)
class Trials:
    """Simulations of one scenario.

    num_torn   decisions at the edge of the limits over which seeds did not agree
    most_kept  the greatest load that was kept, over what the planner takes to be the most
    """

    asked: Ask
    seed: int
    num_torn: int = 0
    most_kept: float = 0.0

    def keeps(self, plan: Plan, num_replicas: int) -> bool:
        """Whether so many replicas keep the limits, by the mean of SEEDS where one is near them."""
        load = (self.asked.requests_per_s or 0.0) / num_replicas / plan.most.requests_per_s
        if load > HOPELESS_LOAD:
            return False
        found = [excess(self.asked, plan.replica, num_replicas, self.seed)]
        if abs(found[0] - 1) <= EDGE:
            seeds = range(self.seed + APART, self.seed + APART * SEEDS, APART)
            found += [excess(self.asked, plan.replica, num_replicas, seed) for seed in seeds]
            self.num_torn += len({one <= 1 for one in found}) > 1
        kept = statistics.fmean(found) <= 1
        if kept:
            self.most_kept = max(self.most_kept, load)
        return kept

    def fewest(self, plan: Plan) -> int:
        """Replicas, from the planner's number down or up."""
        count = plan.num_replicas
        if self.keeps(plan, count):
            while count > 1 and self.keeps(plan, count - 1):
                count -= 1
            return count
        while not self.keeps(plan, count + 1):
            count += 1
        return count + 1

    def usd_per_hour(self, plan: Plan, num_replicas: int) -> float:
        return num_replicas * plan.replica.num_devices * (self.asked.price(plan.replica.device) or 0.0)

    def cheaper(self, plan: Plan, usd_per_hour: float) -> float:
        """What a layout costs with as few replicas as keep the limits, where that is less by more than what is near;
        otherwise what was given."""
        count = plan.num_replicas + NEAR_REPLICAS
        while count and self.usd_per_hour(plan, count) * NEAR_COST >= usd_per_hour:
            count -= 1
        least = usd_per_hour
        while count and self.keeps(plan, count):
            least = self.usd_per_hour(plan, count)
            count -= 1
        return least


def outcome(seed: int) -> Outcome:
    asked = draw(seed)
    plans = tensor_plans(asked)
    trials, first = Trials(asked=asked, seed=seed), plans[0]
    needed = trials.fewest(first)
    cost = trials.usd_per_hour(first, needed)
    least = min([trials.cheaper(plan, cost) for plan in plans[1:]], default=cost)
    return Outcome(
        cost=cost / least,
        replicas_off=first.num_replicas - needed,
        num_torn=trials.num_torn,
        most_kept=trials.most_kept,
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
        "seeds_disagree": statistics.fmean(one.num_torn > 0 for one in made),
        "greatest_load_kept": max(one.most_kept for one in made),
    }


def gate() -> str:
    """More replicas do not break limits that fewer keep, and a hundredth of the load is kept by one."""
    asked = draw(0)
    plan = tensor_plans(asked)[0]
    count = Trials(asked=asked, seed=0).fewest(plan)
    if excess(asked, plan.replica, count + 1, 0) > 1:
        raise GateFailed(f"{count} replicas keep the limits and {count + 1} do not")
    light = replace(asked, requests_per_s=(asked.requests_per_s or 0.0) / 100)
    if excess(light, plan.replica, 1, 0) > 1:
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
        notes=[
            "layouts are tensor-parallel; limits are means; step times of both are the roofline's",
            "other layouts are simulated with as many replicas as would cost less than the first by more than 5 %",
        ],
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
