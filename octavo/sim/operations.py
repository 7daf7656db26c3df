"""What happens to a deployment while it serves: replicas that fail, and replicas that come and go with the load."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.sim.timing import NS_PER_S

if TYPE_CHECKING:
    from octavo.sim.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A replica is gone from one moment to the next.

    replica       its number
    found_s       until that is noticed and its requests go on elsewhere, from the tokens their clients have
    back_after_s  another one is started at once, and takes requests after so long; None leaves the place empty
    """

    at_s: float
    replica: int
    found_s: float = 0.0
    back_after_s: float | None = None

    def __post_init__(self) -> None:
        if not self.at_s >= 0 or self.replica < 0 or not self.found_s >= 0:
            raise ConfigError(
                f"a failure needs a time, a replica and a delay of at least 0, got {self.at_s}, {self.replica} and"
                f" {self.found_s}"
            )

    def start(self, world: World) -> None:
        if self.replica >= world.deployment.num_replicas:
            raise ConfigError(
                f"replica {self.replica} is to fail, and there are {world.deployment.num_replicas}, counted from 0"
            )
        world.later(round(self.at_s * NS_PER_S), lambda: self._fail(world))

    def _fail(self, world: World) -> None:
        lost = world.lose(self.replica)
        back_ns = None if self.back_after_s is None else world.now_ns + round(self.back_after_s * NS_PER_S)
        if back_ns is not None:
            number = world.add_replica()
            world.later(back_ns, lambda: world.open(number))
        for served in lost:
            served.resumed += 1
        found_ns = world.now_ns + round(self.found_s * NS_PER_S)
        world.later(found_ns, lambda: world.dispatch_all(lost))


@dataclass(slots=True, kw_only=True)
class Autoscale:
    """As many replicas as the arrivals of the last while ask for.

    Demand is read from arrivals: what comes out of a system that is full says only how full it is.

    per_replica_per_s  arrivals that one replica is to have
    least, most        replicas
    every_s, window_s  how often it is looked, and how far back
    start_s            until a replica that is started takes requests; it is paid for from the start
    patience_s         how long fewer must have been enough before one is let go; it ends what it has
    """

    per_replica_per_s: float
    least: int = 1
    most: int = 64
    every_s: float = 15.0
    window_s: float = 60.0
    start_s: float = 60.0
    patience_s: float = 300.0
    _seen: deque[tuple[int, int]] = field(default_factory=deque)
    _starting: set[int] = field(default_factory=set)
    _enough_since_ns: int | None = None

    def __post_init__(self) -> None:
        for name in ("per_replica_per_s", "every_s", "window_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"autoscaling: {name} must be above 0, got {getattr(self, name)}")
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"autoscaling: need 1 <= least <= most, got least={self.least} and most={self.most}"
            )
        if not self.start_s >= 0 or not self.patience_s >= 0:
            raise ConfigError("autoscaling: start_s and patience_s must be at least 0")

    def start(self, world: World) -> None:
        self._seen.clear()
        self._starting.clear()
        self._enough_since_ns = None
        world.later(round(self.every_s * NS_PER_S), lambda: self._look(world))

    def wanted(self, world: World) -> int:
        """Replicas for the arrivals of the window."""
        now_ns, window_ns = world.now_ns, round(self.window_s * NS_PER_S)
        self._seen.append((now_ns, len(world.served)))
        while len(self._seen) > 1 and self._seen[1][0] <= now_ns - window_ns:
            self._seen.popleft()
        since_ns, before = self._seen[0]
        if since_ns > now_ns - window_ns:
            since_ns, before = max(now_ns - window_ns, 0), 0
        rate = (len(world.served) - before) / max(now_ns - since_ns, 1) * NS_PER_S
        return min(max(math.ceil(rate / self.per_replica_per_s), self.least), self.most)

    def _look(self, world: World) -> None:
        wanted, there = self.wanted(world), len(world.ready) + len(self._starting)
        if wanted > there:
            for _ in range(wanted - there):
                self._begin(world)
        if wanted >= there:
            self._enough_since_ns = None
        elif self._enough_since_ns is None:
            self._enough_since_ns = world.now_ns
        if self._enough_since_ns is not None and len(world.ready) > 1:
            waited_ns = world.now_ns - self._enough_since_ns
            if waited_ns >= round(self.patience_s * NS_PER_S):
                world.retire(min(world.ready, key=world.num_aboard))
                self._enough_since_ns = world.now_ns
        if world.is_busy:
            world.later(world.now_ns + round(self.every_s * NS_PER_S), lambda: self._look(world))

    def _begin(self, world: World) -> None:
        number = world.add_replica()
        self._starting.add(number)

        def open_it() -> None:
            self._starting.discard(number)
            world.open(number)

        world.later(world.now_ns + round(self.start_s * NS_PER_S), open_it)
