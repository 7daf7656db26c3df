"""Replicas, a router and a workload on one clock: a heap of what happens next.

At one and the same nanosecond, arrivals come first, then those who leave, then replicas in the order of their numbers.
Nothing depends on the machine that simulates: the same inputs give the same bytes.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Protocol, cast

from octavo.core.route import COST, Load, Router
from octavo.core.scheduler import Limits, Scheduler
from octavo.errors import ConfigError
from octavo.sim.lockstep import Lockstep, Member
from octavo.sim.replica import CacheMissed, Cancel, Command, Decider, Land, Replica, Submit
from octavo.sim.served import Served, Tally
from octavo.sim.timing import NS_PER_S, Timing
from octavo.sim.workload import Job, Workload

ARRIVES, LEAVES, HAPPENS, TURNS = range(4)
Driver = Replica | Lockstep
"""Who takes turns."""
Happening = Callable[[], None]


class Operation(Protocol):
    """Something that happens to a deployment; see `operations.py`."""

    def start(self, world: World) -> None:
        """Before the first arrival: ask for what is to come with `World.later`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Prompts are computed by the deployment's replicas, answers by other ones.

    The first token is told where the prompt is computed; then its keys and values go to the replica that has least to
    do. Transfers from one replica follow one another, `latency_s` and the bytes of the prompt's tokens each.

    limits  of a replica that answers; None means those of the others
    """

    num_decode: int
    kv_bytes_per_token: int
    bytes_per_s: float
    latency_s: float = 0.0
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_decode <= 4096:
            raise ConfigError(f"replicas that answer must be from 1 to 4096, got {self.num_decode}")
        if self.kv_bytes_per_token < 1 or not self.bytes_per_s > 0 or not self.latency_s >= 0:
            raise ConfigError(
                "a transfer needs bytes per token of at least 1, bytes per second above 0 and a latency of at least"
                f" 0, got {self.kv_bytes_per_token}, {self.bytes_per_s} and {self.latency_s}"
            )

    def transfer_ns(self, num_tokens: int) -> int:
        return round((self.latency_s + num_tokens * self.kv_bytes_per_token / self.bytes_per_s) * NS_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """So many replicas alike, and how requests are spread over them.

    routing   a policy of `octavo.core.route.COST`
    lockstep  so many replicas, by their numbers, take every step together, see `lockstep.py`; 1 leaves each alone
    split     prompts and answers are computed by different replicas
    operations  failures, autoscaling
    decider   makes a replica's scheduler from the limits; the real one unless a baseline is asked for
    is_exact  every step is played; otherwise stretches in which nothing can change are skipped, with the same outcome
    """

    limits: Limits
    timing: Timing
    num_replicas: int = 1
    routing: str = "prefix"
    lockstep: int = 1
    decider: Callable[[Limits], Decider] = Scheduler
    split: Split | None = None
    operations: tuple[Operation, ...] = ()
    is_exact: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_replicas <= 4096:
            raise ConfigError(f"replicas must be from 1 to 4096, got {self.num_replicas}")
        if self.routing not in COST:
            raise ConfigError(f"routing must be one of {', '.join(COST)}, got {self.routing!r}")
        if self.split is not None:
            self._check_split(self.split)
        if self.lockstep != 1:
            self._check_lockstep()

    def _check_lockstep(self) -> None:
        counts = [self.num_replicas] if self.split is None else [self.num_replicas, self.split.num_decode]
        if self.lockstep < 1 or any(count % self.lockstep for count in counts):
            raise ConfigError(
                f"replicas in lock-step must be at least 1 and divide the replicas ({', '.join(map(str, counts))}),"
                f" got {self.lockstep}"
            )
        if self.operations or self.decider is not Scheduler:
            raise ConfigError("replicas in lock-step can have no failures, autoscaling or baseline here")

    def _check_split(self, split: Split) -> None:
        if self.operations or self.decider is not Scheduler:
            raise ConfigError(
                "a deployment whose prompts are computed apart can have no failures, autoscaling or baseline here"
            )
        for limits in (self.limits, split.limits or self.limits):
            if limits.window_tokens is not None or not limits.enable_prefix_caching:
                raise ConfigError(
                    "prompts computed apart arrive in the prefix cache: it must be on, without a sliding window"
                )


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
        self._heap: list[tuple[int, int, int, Served | Replica | Lockstep | Callable[[], None]]] = []
        self._num_later = 0
        self._router = Router(deployment.routing)
        self._pending: list[int] = []
        self._aboard: list[int] = []
        self._since_ns: list[int] = []
        self._up_ns: list[int] = []
        self.ready: list[int] = []
        self._held: list[Served] = []
        self._leaving: set[int] = set()
        self._link_free_ns: dict[int, int] = {}
        self._moving: set[Served] = set()
        self._group = Lockstep(deployment.timing)
        for _ in range(deployment.num_replicas):
            self.ready.append(self.add_replica())
        split = deployment.split
        self._answering = (
            [self.add_replica(split) for _ in range(split.num_decode)] if split is not None else []
        )

    def add_replica(self, answers_of: Split | None = None) -> int:
        """A replica that is up from now on, and paid for; it takes requests when it is in `ready`.

        answers_of  it goes on with prompts that others have computed
        """
        number = len(self.replicas)
        deployment = self.deployment
        limits = self._limits if answers_of is None else answers_of.limits or self._limits
        computes_prompts = deployment.split is not None and answers_of is None
        kind = Replica if deployment.lockstep == 1 else Member
        replica = kind(
            number,
            deployment.decider(limits),
            deployment.timing,
            on_first=self._settle,
            on_end=self._on_end,
            on_move=self._on_move if computes_prompts else None,
            is_exact=deployment.is_exact,
            is_blind=self._is_blind,
        )
        self.replicas.append(replica)
        if isinstance(replica, Member):
            if number % deployment.lockstep == 0:
                self._group = Lockstep(deployment.timing)
            self._group.add(replica)
        self._pending.append(0)
        self._aboard.append(0)
        self._since_ns.append(self.now_ns)
        self._up_ns.append(0)
        return number

    def run(self) -> Outcome:
        """Play it to the end."""
        self._arrivals = self._workload.arrivals()
        self._next_arrival()
        for operation in self.deployment.operations:
            operation.start(self)
        heap = self._heap
        while heap:
            at_ns, kind, _, who = heapq.heappop(heap)
            if kind == TURNS:
                driver = cast(Driver, who)
                if driver.due_ns == at_ns:
                    self.now_ns = at_ns
                    driver.fire(at_ns)
                    self._await(driver)
                continue
            self.now_ns = at_ns
            if kind == HAPPENS:
                cast(Happening, who)()
            elif kind == ARRIVES:
                self._arrive(cast(Served, who))
            elif cast(Served, who).reason is None:
                self._leave(cast(Served, who))
        return self._outcome()

    @property
    def is_busy(self) -> bool:
        """Whether anything but what has been asked for with `later` is still to come."""
        return any(kind != HAPPENS for _, kind, _, _ in self._heap) or bool(self._held)

    def num_aboard(self, number: int) -> int:
        """Requests that a replica has."""
        return self._aboard[number]

    def open(self, number: int) -> None:
        """A replica takes requests from now on; those that wait for one go to it."""
        self.ready.append(number)
        held, self._held = self._held, []
        self.dispatch_all(held)

    def retire(self, number: int) -> None:
        """A replica takes no more requests, and is gone when it has ended what it has."""
        self.ready.remove(number)
        self._router.forget(number)
        self._leaving.add(number)
        self._stop_if_empty(number)

    def lose(self, number: int) -> list[Served]:
        """A replica is gone with all it holds. Returns the requests it had; they are to be dispatched again."""
        if number in self.ready:
            self.ready.remove(number)
        self._router.forget(number)
        lost = self.replicas[number].kill(self.now_ns)
        for served in lost:
            self._settle(served)
            served.replica = -1
        self._aboard[number] = 0
        self._stop(number)
        return lost

    def dispatch_all(self, several: list[Served]) -> None:
        for served in several:
            if served.reason is None:
                self.dispatch(served)

    def _stop(self, number: int) -> None:
        """It is paid for no longer."""
        if self._since_ns[number] >= 0:
            self._up_ns[number] += self.now_ns - self._since_ns[number]
            self._since_ns[number] = -1

    def _stop_if_empty(self, number: int) -> None:
        if number in self._leaving and not self._aboard[number]:
            self._leaving.discard(number)
            self._stop(number)

    def _leave(self, served: Served) -> None:
        """Its client has gone."""
        if served in self._moving or served.replica < 0:
            self._moving.discard(served)
            if served in self._held:
                self._held.remove(served)
            served.end("cancelled", self.now_ns)
            self._over(served)
        else:
            self.send(served.replica, Cancel(served))

    def later(self, at_ns: int, call: Callable[[], None]) -> None:
        """Do something else at that time, in the order in which it was asked for."""
        heapq.heappush(self._heap, (at_ns, HAPPENS, self._num_later, call))
        self._num_later += 1

    def send(self, number: int, command: Command) -> None:
        replica = self.replicas[number]
        driver = replica.driver
        due_ns = driver.due_ns
        replica.send(command, self.now_ns)
        if driver.due_ns != due_ns:
            self._await(driver)

    def dispatch(self, served: Served) -> None:
        """Choose a replica for a request and hand it over; without any it waits for one."""
        if not self.ready:
            served.replica = -1
            self._held.append(served)
            return
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

    def _await(self, driver: Replica | Lockstep) -> None:
        if driver.due_ns is not None:
            heapq.heappush(self._heap, (driver.due_ns, TURNS, driver.number, driver))

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

    def _settle(self, served: Served) -> None:
        """Its prompt is computed, or nobody waits for it any more."""
        if served.is_pending:
            served.is_pending = False
            self._pending[served.replica] -= served.num_prompt_tokens - served.num_matched

    def _on_move(self, served: Served) -> None:
        """Its prompt is computed: keys and values go on their way when the link is free."""
        split = self.deployment.split
        assert split is not None, "only then is anything moved"
        source = served.replica
        self._aboard[source] -= 1
        self._moving.add(served)
        begins_ns = max(self.now_ns, self._link_free_ns.get(source, 0))
        arrives_ns = begins_ns + split.transfer_ns(served.num_prompt_tokens)
        self._link_free_ns[source] = arrives_ns
        self.later(arrives_ns, lambda: self._land(served))

    def _land(self, served: Served) -> None:
        if served not in self._moving:
            return
        self._moving.discard(served)
        served.replica = min(self._answering, key=lambda number: (self._aboard[number], number))
        self._aboard[served.replica] += 1
        self.send(served.replica, Land(served))

    def _on_end(self, served: Served) -> None:
        self._settle(served)
        self._aboard[served.replica] -= 1
        self._stop_if_empty(served.replica)
        self._over(served)

    def _over(self, served: Served) -> None:
        """A request has ended, one way or another."""
        served.forget()
        following = self._workload.after(served.job, self.now_ns, is_answered=served.reason == "length")
        if following is not None:
            self._expect(following, is_listed=False)

    def _outcome(self) -> Outcome:
        for served in self._held:
            served.refusal = "no replica was left"
            served.end("refused", self.now_ns)
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
    with _nothing_collected():
        if not workload.shares and deployment.split is None:
            try:
                return World(deployment, workload, looks_up=False).run()
            except CacheMissed:
                pass
        return World(deployment, workload).run()


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Meanwhile the garbage collector does not walk every request and cached block again and again. Only a whole world
    refers to itself; what it lets go on its way does not.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
