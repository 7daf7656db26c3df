"""The deployment of a recording, as the simulator can play it: its limits, its step times, and what its host added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from octavo.core.limits import Limits
from octavo.core.scheduler import Scheduler
from octavo.core.step import Step
from octavo.errors import LoadError
from octavo.explain.arrivals import Bounded, Came, workload
from octavo.explain.figures import Figures
from octavo.explain.pools import handovers
from octavo.explain.trail import Trail
from octavo.obs.flight import Departed, Submitted
from octavo.sim.baselines import BASELINES
from octavo.sim.fitting import LEAST_STEPS, Chosen, choose
from octavo.sim.operations import Failure
from octavo.sim.replica import Decider
from octavo.sim.timing import Host, Timing, Work, work_of
from octavo.sim.workload import Workload
from octavo.sim.world import Deployment, Outcome, Split, simulate

LINK_PERCENTILE = 5
"""The way is what the quickest took: others came during a step, whose end the simulator has them wait for, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated.

    bound      one client, and how many requests it may have at a time
    is_public  prefixes are shared by all namespaces
    split      where prompts are computed on `num_replicas` engines, and answers on others
    """

    limits: Limits
    timing: Timing
    num_replicas: int = 1
    routing: str = "prefix"
    baseline: str | None = None
    split: Split | None = None
    failures: tuple[Failure, ...] = ()
    bound: tuple[str, int] | None = None
    is_public: bool = False

    def play(self, came: list[Came]) -> Outcome:
        decider: Callable[[Limits], Decider] = (
            Scheduler if self.baseline is None else BASELINES[self.baseline]
        )
        deployment = Deployment(
            limits=self.limits,
            timing=self.timing,
            num_replicas=self.num_replicas,
            routing=self.routing,
            decider=decider,
            split=self.split,
            operations=self.failures,
        )
        sent: Workload = workload(came, is_public=self.is_public)
        if self.bound is not None:
            sent = Bounded(sent, *self.bound)
        return simulate(deployment, sent)


def recorded_setup(figures: Figures, came: list[Came]) -> tuple[Setup, Chosen]:
    """As it was recorded, and how well a model of steps fits them. Raises LoadError where too few steps are there."""
    settings = figures.story.recording.saved.settings
    if not figures.trails:
        raise LoadError("the recording holds no engine's trail, so there is nothing to simulate")
    fit = choose(_measured(figures))
    timing = Timing(model=fit.model, host=_host(figures), source="the recording")
    moved = handovers(figures.story)
    answering = {one.to_engine for one in moved}
    split = None
    if moved:
        split = Split(
            num_decode=len(answering),
            kv_bytes_per_token=1,
            bytes_per_s=1e12,
            latency_s=max(min(one.waited_s for one in moved), 0.0),
        )
    setup = Setup(
        limits=figures.trails[0].opened.limits,
        timing=timing,
        num_replicas=len({one.number for one in figures.story.recording.engines} - answering),
        routing=settings.get("routing", "prefix"),
        baseline=settings.get("baseline"),
        split=split,
        failures=_failures(figures, came),
    )
    return setup, fit


def _measured(figures: Figures) -> list[tuple[Work, float]]:
    measured = [
        (work_of(Step(ran.number, ran.slices)), ran.took_s)
        for trail in figures.trails
        for _, ran in figures.steps(trail)
    ]
    if len(measured) < LEAST_STEPS:
        raise LoadError(
            f"the recording holds {len(measured)} measured steps; {LEAST_STEPS} are the least to simulate by"
        )
    return measured


def _host(figures: Figures) -> Host:
    """Gaps between steps, and what lies before and after the engine; without a front's notes these are 0."""
    turns, plans = list[float](), list[float]()
    for trail in figures.trails:
        _gaps(trail, turns, plans)
    turn_s = _mean_below_p99(turns)
    read, link, after = list[float](), list[float](), list[float]()
    for _, life, _ in figures.rows:
        served = figures.story.served.get(life.request_id)
        if served is None or len(served.placed) > len(served.prompts) or not life.tokens_s:
            continue
        posted_s = min(served.posted_s or life.submitted_s, life.submitted_s)
        read.append(posted_s - served.received_s)
        link.append(life.submitted_s - posted_s)
        after.append(served.sent_s - life.tokens_s[-1] - served.stalled_s)
    return Host(
        turn_s=turn_s,
        plan_s=max(_mean_below_p99(plans) - turn_s, 0.0),
        front_s=max(float(np.median(read) + np.percentile(link, LINK_PERCENTILE)), 0.0) if read else 0.0,
        reply_s=max(float(np.median(after)) if after else 0.0, 0.0),
    )


def _gaps(trail: Trail, turns: list[float], plans: list[float]) -> None:
    """From the end of a step to the launch of one planned before it ended; from the plan of another to its launch."""
    ended_s = float("-inf")
    for ran in trail.steps:
        if ran.took_s <= 0:
            continue
        if ran.planned_s < ended_s:
            turns.append(max(ran.launched_s - ended_s, 0.0))
        else:
            plans.append(max(ran.launched_s - ran.planned_s, 0.0))
        ended_s = ran.ended_s


def _mean_below_p99(values: list[float]) -> float:
    if not values:
        return 0.0
    found = np.asarray(values)
    return float(found[found <= np.percentile(found, 99)].mean())


def _failures(figures: Figures, came: list[Came]) -> tuple[Failure, ...]:
    first_s = _first_s(figures)
    numbers = sorted({one.number for one in figures.story.recording.engines})
    found = []
    for departed in figures.story.departed:
        at_s = departed.at_s - first_s
        if at_s < 0 or departed.engine not in numbers or len(numbers) < 2:
            continue
        found_s = min(_unnoticed_s(figures, departed, came), at_s)
        back = [
            life.submitted_s - departed.at_s
            for trail in figures.trails
            if trail.engine == departed.engine
            for life in trail.lives.values()
            if life.submitted_s > departed.at_s
        ]
        found.append(
            Failure(
                at_s=at_s - found_s,
                replica=numbers.index(departed.engine),
                found_s=found_s,
                back_after_s=min(back) + found_s if back else None,
            )
        )
    return tuple(found)


def _first_s(figures: Figures) -> float:
    """When the first request came, on the recording's clock."""
    times = [served.received_s for served in figures.story.served.values()]
    times += [life.submitted_s for life in figures.lives]
    return min((one for one in times if one >= figures.begin_s), default=figures.begin_s)


def _unnoticed_s(figures: Figures, departed: Departed, came: list[Came]) -> float:
    """How long an engine was silent before it was taken for gone: by the tokens that its requests had by then."""
    ttft = float(np.median([one.ttft_s for one in came if one.ttft_s is not None] or [0.0]))
    tpot = float(np.median([one.tpot_s for one in came if one.tpot_s is not None] or [0.0]))
    silent = []
    for trail in figures.trails:
        for entry in trail.entries:
            if not isinstance(entry, Submitted) or not entry.begun:
                continue
            served = figures.story.served.get(entry.request_id)
            if served is None or not served.placed or served.placed[0][0] != departed.engine:
                continue
            tokens = max(len(names) // 4 for _, names in entry.begun)
            silent.append(departed.at_s - served.placed[0][1] - ttft - tokens * tpot)
    return max(float(np.median(silent)), 0.0) if silent else 0.0
