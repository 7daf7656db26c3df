"""The cheapest deployment that meets an objective: what cannot is ruled out by arithmetic, what may is simulated.

A bound is only used to rule out, and never does so wrongly: it takes every step for as quick as the model lets it be,
and every request for as cheap as the fullest step makes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.errors import ConfigError
from octavo.sim.report import Line, Slo, lines, summary
from octavo.sim.timing import NS_PER_S, Work
from octavo.sim.workload import Job, Workload
from octavo.sim.world import Deployment, simulate

Choice = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Built:
    """A choice as a deployment. `usd_per_hour` is the price of all of it; without prices, the number of devices."""

    deployment: Deployment
    usd_per_hour: float


@dataclass(slots=True, kw_only=True)
class Candidate:
    """One choice and what became of it.

    ruled_out  why it was not simulated; None for one that was
    share      of good answers; `document` all its figures
    needs      objective -> the least it would have to be for this candidate to meet it, the others kept
    """

    choice: Choice
    usd_per_hour: float = 0.0
    ruled_out: str | None = None
    share: float = 0.0
    is_met: bool = False
    document: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Found:
    """What a search found.

    best         the cheapest that meets the objective; None when none does
    front        those that no other beats in price, in p99 of TTFT and in p99 of TPOT together, cheapest first
    sensitivity  knob -> the candidates that differ from the best, or the nearest to it, in nothing else
    binding      without a best: which promise is broken most by the candidate with most good answers
    relaxation   without a best: the promise that has to grow least, to what, and the choice that would meet it then
    """

    candidates: list[Candidate]
    best: Candidate | None
    front: list[Candidate]
    sensitivity: dict[str, list[Candidate]]
    binding: str | None = None
    relaxation: tuple[str, float, Choice] | None = None


def search(
    space: Mapping[str, Sequence[Any]],
    build: Callable[[Choice], Built],
    workload: Workload,
    slo: Slo,
    *,
    num_runs: int = 200,
) -> Found:
    """Try every choice of a space, cheapest first, as far as `num_runs` simulations go.

    build  raises ConfigError for a choice that cannot be deployed, a model that does not fit say
    Raises ConfigError for an empty space and for an objective that promises nothing.
    """
    if not slo.is_set:
        raise ConfigError("a search needs an objective: --slo-ttft, --slo-tpot or --slo-e2e")
    if not space or not all(space.values()):
        raise ConfigError("a search needs at least one value for each knob")
    candidates, ready = [], []
    for choice in _choices(space):
        candidate = Candidate(choice=choice)
        candidates.append(candidate)
        try:
            built = build(choice)
        except ConfigError as error:
            candidate.ruled_out = str(error)
            continue
        candidate.usd_per_hour = built.usd_per_hour
        candidate.ruled_out = ruled_out(built.deployment, workload, slo)
        if candidate.ruled_out is None:
            ready.append((candidate, built.deployment))
    ready.sort(key=lambda one: one[0].usd_per_hour)
    for candidate, deployment in ready[:num_runs]:
        _simulated(candidate, deployment, workload, slo)
    for candidate, _ in ready[num_runs:]:
        candidate.ruled_out = f"not tried: {num_runs} cheaper ones were"
    return _judged(candidates, space, slo)


def _choices(space: Mapping[str, Sequence[Any]]) -> Iterator[Choice]:
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def _simulated(candidate: Candidate, deployment: Deployment, workload: Workload, slo: Slo) -> None:
    outcome = simulate(deployment, workload)
    candidate.document = summary(outcome, slo)
    candidate.share = candidate.document["goodput"]["share"]
    candidate.is_met = candidate.document["goodput"]["is_met"]
    candidate.needs = _needs(lines(outcome), slo)


def _needs(found: Sequence[Line], slo: Slo) -> dict[str, float]:
    """For each promise the least value with which, the others kept, enough answers would be good, if any is."""
    asked = [line for line in found if line.reason != "cancelled"]
    wanted = math.ceil(slo.quantile * len(asked) - 1e-9)
    needs = {}
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        if getattr(slo, name) is None:
            continue
        without = replace(slo, ttft_s=_unless(name, "ttft_s", slo), tpot_s=_unless(name, "tpot_s", slo))
        without = replace(without, e2e_s=_unless(name, "e2e_s", slo))
        values = sorted(
            getattr(line, name) or 0.0
            for line in asked
            if line.reason == "length" and not without.broken_by(line)
        )
        if 0 < wanted <= len(values):
            needs[name] = values[wanted - 1]
    return needs


def _unless(name: str, other: str, slo: Slo) -> float | None:
    value: float | None = getattr(slo, other)
    return None if name == other else value


def ruled_out(deployment: Deployment, workload: Workload, slo: Slo) -> str | None:
    """Why a deployment cannot meet an objective, however well all goes; None when it may.

    Shares of answers are bounded only where all requests are known beforehand, prompts only where none is cached.
    """
    if deployment.timing.model.needs_slices:
        return None  # a step's least time is not known by sums alone
    front_s = deployment.timing.host.front_s + deployment.timing.host.reply_s
    least_s = _least_s(deployment, Work(num_decodes=1, decode_context=1, num_sampled=1))
    if workload.follows:
        return None
    jobs = list(workload.arrivals())
    several = sum(job.num_output_tokens > 1 for job in jobs) / len(jobs) if jobs else 0.0
    if slo.tpot_s is not None and least_s > slo.tpot_s and several > 1 - slo.quantile:
        return f"a step takes at least {least_s:.4g} s, and the objective is {slo.tpot_s:.4g} s per token"
    if slo.ttft_s is not None and jobs and not workload.shares:
        alone = [front_s + _prompt_s(job, deployment) for job in jobs]
        share = sum(took <= slo.ttft_s for took in alone) / len(jobs)
        if share < slo.quantile:
            return f"alone, {share:.1%} of prompts are computed within {slo.ttft_s:.4g} s"
    return _too_much(deployment, jobs, slo)


def _least_s(deployment: Deployment, work: Work) -> float:
    """Of a step with this work; beside replicas in lock-step that have none."""
    if deployment.lockstep > 1:
        work = work._replace(group_tokens=work.num_tokens / deployment.lockstep)
    return deployment.timing.model.seconds(work)


def _prompt_s(job: Job, deployment: Deployment) -> float:
    """A prompt by itself, in as few chunks as may be."""
    most, start, total = deployment.limits.chunk_tokens, 0, 0.0
    while start < job.num_prompt_tokens:
        count = min(most, job.num_prompt_tokens - start)
        start += count
        pairs = count * (start - count) + count * (count + 1) // 2
        rows = int(start == job.num_prompt_tokens)
        total += _least_s(
            deployment,
            Work(num_chunks=1, chunk_tokens=count, chunk_pairs=pairs, chunks=((start - count, count, rows),))
            if count > 1
            else Work(num_decodes=1, decode_context=start),
        )
    return total


def _too_much(deployment: Deployment, jobs: Sequence[Job], slo: Slo) -> str | None:
    """Whether the cheapest of the requests that must be good are more work than there is time for."""
    if slo.e2e_s is None and slo.tpot_s is None:
        return None
    seats = deployment.limits.max_num_seqs
    full_s = _least_s(deployment, Work(num_decodes=seats, decode_context=seats, num_sampled=seats))
    token_s = full_s / seats
    costs = sorted(token_s * max(job.num_output_tokens - 1, 0) for job in jobs)
    longest = max(job.num_output_tokens for job in jobs)
    budgets = [slo.e2e_s] if slo.e2e_s is not None else []
    if slo.tpot_s is not None and slo.ttft_s is not None:
        budgets.append(slo.ttft_s + slo.tpot_s * longest)
    if not budgets:
        return None
    span_s = (jobs[-1].at_ns - jobs[0].at_ns) / NS_PER_S + min(budgets)
    work_s = sum(costs[: int(slo.quantile * len(costs))])
    replicas = deployment.split.num_decode if deployment.split is not None else deployment.num_replicas
    if deployment.operations or work_s <= replicas * span_s:
        return None
    return (
        f"the answers alone are {work_s:.4g} s of the fullest steps, and {replicas} have {span_s:.4g} s each"
    )


def _judged(candidates: list[Candidate], space: Mapping[str, Sequence[Any]], slo: Slo) -> Found:
    tried = [one for one in candidates if one.ruled_out is None]
    met = [one for one in tried if one.is_met]
    best = min(met, key=lambda one: (one.usd_per_hour, -one.share), default=None)
    nearest = best or max(tried, key=lambda one: one.share, default=None)
    found = Found(
        candidates=candidates,
        best=best,
        front=_front(tried),
        sensitivity={} if nearest is None else _around(nearest, candidates, space),
    )
    if best is None and nearest is not None:
        broken = nearest.document["goodput"]["broken_by"]
        found.binding = max(broken, key=lambda name: (broken[name], name), default=None)
        found.relaxation = _relaxation(tried, slo)
    elif best is None:
        found.binding = "nothing could be tried"
    return found


def _front(tried: Sequence[Candidate]) -> list[Candidate]:
    def worth(one: Candidate) -> tuple[float, float, float]:
        ttft, tpot = one.document["ttft_s"], one.document["tpot_s"]
        most = float("inf")
        return one.usd_per_hour, ttft["p99"] if ttft else most, tpot["p99"] if tpot else most

    worths = [worth(one) for one in tried]
    kept = [
        one
        for one, mine in zip(tried, worths, strict=True)
        if not any(
            other != mine and all(theirs <= ours for theirs, ours in zip(other, mine, strict=True))
            for other in worths
        )
    ]
    return sorted(kept, key=lambda one: one.usd_per_hour)


def _around(
    centre: Candidate, candidates: Sequence[Candidate], space: Mapping[str, Sequence[Any]]
) -> dict[str, list[Candidate]]:
    """One knob at a time."""
    found = {}
    for knob in space:
        rest = {name: value for name, value in centre.choice.items() if name != knob}
        others = [one for one in candidates if {n: v for n, v in one.choice.items() if n != knob} == rest]
        if len(others) > 1:
            found[knob] = others
    return found


def _relaxation(tried: Sequence[Candidate], slo: Slo) -> tuple[str, float, Choice] | None:
    """The one promise that has to grow least, of all candidates; the cheaper one of a tie."""
    options = [
        (value / getattr(slo, name), one.usd_per_hour, name, value, one.choice)
        for one in tried
        for name, value in one.needs.items()
    ]
    if not options:
        return None
    _, _, name, value, choice = min(options, key=lambda option: option[:3])
    return name, value, choice


def found_json(found: Found) -> dict[str, Any]:
    """A search as one JSON-ready document."""

    def told(one: Candidate) -> dict[str, Any]:
        document = one.document
        return {
            "choice": dict(one.choice),
            "usd_per_hour": one.usd_per_hour,
            "ruled_out": one.ruled_out,
            "share": one.share if one.ruled_out is None else None,
            "is_met": one.is_met,
            "ttft_s": document.get("ttft_s"),
            "tpot_s": document.get("tpot_s"),
            "needs": one.needs,
        }

    relaxation = None
    if found.relaxation is not None:
        name, value, choice = found.relaxation
        relaxation = {"objective": name, "least": value, "choice": dict(choice)}
    return {
        "best": None if found.best is None else told(found.best),
        "front": [told(one) for one in found.front],
        "sensitivity": {knob: [told(one) for one in ones] for knob, ones in found.sensitivity.items()},
        "binding": found.binding,
        "relaxation": relaxation,
        "candidates": [told(one) for one in found.candidates],
    }
