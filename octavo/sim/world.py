"""Replicas, a router and a workload on one clock: a heap of what happens next.

At one and the same nanosecond, arrivals come first, then those who leave, then replicas in the order of their numbers.
Nothing depends on the machine that simulates: the same inputs give the same bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from octavo.core.route import COST, Load, Router
from octavo.core.scheduler import Limits, Scheduler
from octavo.errors import ConfigError
from octavo.sim.replica import CacheMissed, Cancel, Decider, Replica, Submit
from octavo.sim.served import Served, Tally
from octavo.sim.timing import NS_PER_S, Timing
from octavo.sim.workload import Job, Workload

ARRIVES, LEAVES, HAPPENS, TURNS = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """So many replicas alike, and how requests are spread over them.

    routing   a policy of `octavo.core.route.COST`
    decider   makes a replica's scheduler from the limits; the real one unless a baseline is asked for
    is_exact  every step is played; otherwise stretches in which nothing can change are skipped, with the same outcome
    """

    limits: Limits
    timing: Timing
    num_replicas: int = 1
    routing: str = "prefix"
    decider: Callable[[Limits], Decider] = Scheduler
    is_exact: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_replicas <= 4096:
            raise ConfigError(f"replicas must be from 1 to 4096, got {self.num_replicas}")
        if self.routing not in COST:
            raise ConfigError(f"routing must be one of {', '.join(COST)}, got {self.routing!r}")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of it.

    served    every request, in the order in which they were sent
    tallies   sums of every replica there ever was; `counters` of their caches, by replica
    up_ns     how long each was up and paid for
    ended_ns  when the last thing happened
    """

    deployment: Deployment
    served: list[Served]
    tallies: list[Tally]
    counters: list[dict[str, int]]
    up_ns: list[int]
    ended_ns: int


class World:
    """One run; `run` may be called once.

    looks_up  whether caches are looked into. Where no two prompts begin alike nothing would be found but by sequences
              that have been preempted; not looking is quicker, and then the first preemption raises CacheMissed.
    """

    def __init__(self, deployment: Deployment, workload: Workload, *, looks_up: bool = True) -> None:
        self.deployment = deployment
        self._looks_up = looks_up and deployment.limits.enable_prefix_caching
        self.replicas: list[Replica] = []
        self._limits = replace(deployment.limits, enable_prefix_caching=self._looks_up)
        self._is_blind = deployment.limits.enable_prefix_caching and not looks_up
        self.served: list[Served] = []
        self.now_ns = 0
        self._workload = workload
        self._arrivals: Iterator[Job] = iter(())
        self._front_ns = round(deployment.timing.host.front_s * NS_PER_S)
        self._heap: list[tuple[int, int, int, Served | Replica | Callable[[], None]]] = []
        self._num_later = 0
        self._router = Router(deployment.routing)
        self._pending: list[int] = []
        self._aboard: list[int] = []
        self._since_ns: list[int] = []
        self._up_ns: list[int] = []
        self.ready: list[int] = []
        for _ in range(deployment.num_replicas):
            self.ready.append(self.add_replica())

    def add_replica(self) -> int:
        """A replica that has been started; it takes requests when it is in `ready`."""
        number = len(self.replicas)
        deployment = self.deployment
        self.replicas.append(
            Replica(
                number,
                deployment.decider(self._limits),
                deployment.timing,
                on_first=self._on_first,
                on_end=self._on_end,
                is_exact=deployment.is_exact,
                is_blind=self._is_blind,
            )
        )
        self._pending.append(0)
        self._aboard.append(0)
        self._since_ns.append(self.now_ns)
        self._up_ns.append(0)
        return number

    def run(self) -> Outcome:
        """Play it to the end."""
        self._arrivals = self._workload.arrivals()
        self._next_arrival()
        heap = self._heap
        while heap:
            at_ns, kind, _, who = heapq.heappop(heap)
            if isinstance(who, Replica):
                if who.due_ns == at_ns:
                    self.now_ns = at_ns
                    who.fire(at_ns)
                    self._await(who)
                continue
            self.now_ns = at_ns
            if not isinstance(who, Served):
                who()
            elif kind == ARRIVES:
                self._arrive(who)
            elif who.reason is None:
                self.send(who.replica, Cancel(who))
        return self._outcome()

    def later(self, at_ns: int, call: Callable[[], None]) -> None:
        """Do something else at that time, in the order in which it was asked for."""
        heapq.heappush(self._heap, (at_ns, HAPPENS, self._num_later, call))
        self._num_later += 1

    def send(self, number: int, command: Submit | Cancel) -> None:
        replica = self.replicas[number]
        due_ns = replica.due_ns
        replica.send(command, self.now_ns)
        if replica.due_ns != due_ns:
            self._await(replica)

    def dispatch(self, served: Served) -> None:
        """Choose a replica for a request and hand it over."""
        replica, matched = self.ready[0], 0
        if len(self.ready) > 1:
            loads = [Load(one, self._pending[one], self._aboard[one]) for one in self.ready]
            route = self._router.choose(served.tokens() if self._looks_up else (), b"", loads)
            replica, matched = route.replica, route.num_matched
        served.replica, served.num_matched = replica, matched
        self._aboard[replica] += 1
        self._pending[replica] += served.num_prompt_tokens - matched
        served.is_pending = True
        self.send(replica, Submit(served))

    def _await(self, replica: Replica) -> None:
        if replica.due_ns is not None:
            heapq.heappush(self._heap, (replica.due_ns, TURNS, replica.number, replica))

    def _next_arrival(self) -> None:
        job = next(self._arrivals, None)
        if job is not None:
            self._expect(job, is_listed=True)

    def _expect(self, job: Job, *, is_listed: bool) -> None:
        served = Served(job, str(job.number), job.num_prompt_tokens, is_listed=is_listed)
        at_ns = max(job.at_ns + self._front_ns, self.now_ns)
        heapq.heappush(self._heap, (at_ns, ARRIVES, job.number, served))

    def _arrive(self, served: Served) -> None:
        job = served.job
        self.served.append(served)
        if job.cancel_after_ns is not None:
            heapq.heappush(
                self._heap,
                (max(job.at_ns + job.cancel_after_ns, self.now_ns), LEAVES, job.number, served),
            )
        self.dispatch(served)
        if served.is_listed:
            self._next_arrival()

    def _on_first(self, served: Served) -> None:
        self._settle(served)

    def _settle(self, served: Served) -> None:
        """Its prompt is computed, or nobody waits for it any more."""
        if served.is_pending:
            served.is_pending = False
            self._pending[served.replica] -= served.num_prompt_tokens - served.num_matched

    def _on_end(self, served: Served) -> None:
        self._settle(served)
        self._aboard[served.replica] -= 1
        served.forget()
        following = self._workload.after(served.job, self.now_ns, is_answered=served.reason == "length")
        if following is not None:
            self._expect(following, is_listed=False)

    def _outcome(self) -> Outcome:
        up_ns = [
            up + (self.now_ns - since if since >= 0 else 0)
            for up, since in zip(self._up_ns, self._since_ns, strict=True)
        ]
        return Outcome(
            deployment=self.deployment,
            served=self.served,
            tallies=[one.tally for one in self.replicas],
            counters=[asdict(one.scheduler.counters) for one in self.replicas],
            up_ns=up_ns,
            ended_ns=self.now_ns,
        )


def simulate(deployment: Deployment, workload: Workload) -> Outcome:
    """Play a workload on a deployment."""
    if not workload.shares:
        try:
            return World(deployment, workload, looks_up=False).run()
        except CacheMissed:
            pass
    return World(deployment, workload).run()
