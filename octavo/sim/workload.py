"""Who asks for what, and when: jobs in order of time, and those that follow the end of another.

Token ids mean nothing here but which prompts begin alike. They are handed out as ranges of numbers nobody else has, so
that two prompts share exactly the prefixes that are said to be shared; a prompt becomes a tuple only when it is sent.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Protocol, TypeVar

from octavo.errors import ConfigError
from octavo.sim.lengths import Gaps, Lengths
from octavo.sim.timing import NS_PER_S

NUM_TOKEN_IDS = 2**32 - 2**24
"""Ids before they begin anew; what is asked for at once stays below what is left of 2**32."""

Kind = TypeVar("Kind")
Piece = tuple[int, int]
"""(first token id, how many): a run of consecutive ids."""


@lru_cache(maxsize=256)
def spelled(piece: Piece) -> tuple[int, ...]:
    """Its ids, the same objects each time."""
    first, count = piece
    return tuple(range(first, first + count))


class TokenSpace:
    """Hands out runs of token ids that nobody else has."""

    def __init__(self) -> None:
        self._next = 0
        self._named: dict[str, Piece] = {}

    def take(self, count: int) -> Piece:
        if count > 2**24:
            raise ConfigError(f"a prompt or output of {count} tokens is more than can be simulated ({2**24})")
        if self._next >= NUM_TOKEN_IDS:
            self._next = 0
        first = self._next
        self._next += count
        return first, count

    def named(self, name: str, count: int) -> Piece:
        """The first `count` ids of the run of that name; asking for more than before makes another run."""
        known = self._named.get(name)
        if known is None or known[1] < count:
            known = self._named[name] = self.take(count)
        return known[0], count


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One request that is to come.

    at_ns            when it is sent
    prompt           runs of token ids
    output           run of the ids it will draw
    cancel_after_ns  its client leaves so long after sending it; None stays
    session          which conversation it is a turn of, and `turn` which one, from 0
    """

    number: int
    at_ns: int
    prompt: tuple[Piece, ...]
    output: Piece
    client: str = ""
    priority: int = 0
    cancel_after_ns: int | None = None
    session: int | None = None
    turn: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(count for _, count in self.prompt)

    @property
    def num_output_tokens(self) -> int:
        return self.output[1]

    def tokens(self) -> tuple[int, ...]:
        """The prompt, spelled out. All but its last piece may be in others, too."""
        *shared, (first, count) = self.prompt
        return (*chain.from_iterable(spelled(piece) for piece in shared), *range(first, first + count))


class Workload(Protocol):
    """Jobs in order of time, and what the end of one brings about.

    shares   whether any two prompts may begin alike; where none do, nothing is looked up in caches
    follows  whether the end of one may bring another
    """

    @property
    def follows(self) -> bool: ...

    @property
    def shares(self) -> bool: ...

    def arrivals(self) -> Iterator[Job]:
        """Those that come whatever happens. Each call begins the workload anew."""
        ...

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:
        """Who comes because this one has ended now, at `at_ns` of its own; None for nobody."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """Beginnings that prompts share.

    number  of different ones, each as likely as the others
    tokens  length of each
    share   of prompts that begin with one
    """

    number: int
    tokens: int
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.number < 1 or self.tokens < 1 or not 0 <= self.share <= 1:
            raise ConfigError(
                f"shared prefixes: need a number and tokens of at least 1 and a share from 0 to 1, got {self.number},"
                f" {self.tokens} and {self.share}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """Clients that give up: `share` of them, so many seconds after sending, exponentially with mean `after_s`."""

    share: float
    after_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.after_s > 0:
            raise ConfigError(
                f"cancellations: need a share from 0 to 1 and a time above 0, got {self.share} and {self.after_s}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What one request is like.

    clients     (name, weight) of tenants that share the load; none is one nameless client
    priorities  (priority, weight)
    """

    prompt: Lengths
    output: Lengths
    prefixes: Prefixes | None = None
    leaving: Leaving | None = None
    clients: tuple[tuple[str, float], ...] = ()
    priorities: tuple[tuple[int, float], ...] = ()


class Maker:
    """Draws jobs of a mix, one after another. The same seed draws the same."""

    def __init__(self, mix: Mix, seed: int) -> None:
        self.mix = mix
        self._seed = seed
        self.restart()

    def restart(self) -> None:
        """From the first draw on again."""
        self.rng = random.Random(f"octavo workload {self._seed}")
        self.space = TokenSpace()
        self._num_made = 0

    def job(self, at_ns: int) -> Job:
        mix, rng = self.mix, self.rng
        prompt: tuple[Piece, ...] = (self.space.take(mix.prompt.draw(rng)),)
        if mix.prefixes is not None and rng.random() < mix.prefixes.share:
            name = f"prefix {rng.randrange(mix.prefixes.number)}"
            prompt = (self.space.named(name, mix.prefixes.tokens), *prompt)
        leaves_ns = None
        if mix.leaving is not None and rng.random() < mix.leaving.share:
            leaves_ns = round(rng.expovariate(1 / mix.leaving.after_s) * NS_PER_S)
        return self.made(
            at_ns,
            prompt,
            self.space.take(mix.output.draw(rng)),
            client=_one_of(mix.clients, rng, ""),
            priority=_one_of(mix.priorities, rng, 0),
            cancel_after_ns=leaves_ns,
        )

    def made(self, at_ns: int, prompt: tuple[Piece, ...], output: Piece, **more: object) -> Job:
        job = Job(number=self._num_made, at_ns=at_ns, prompt=prompt, output=output, **more)  # type: ignore[arg-type]
        self._num_made += 1
        return job


def _one_of(weighted: Sequence[tuple[Kind, float]], rng: random.Random, default: Kind) -> Kind:
    if not weighted:
        return default
    chosen = rng.choices(weighted, [weight for _, weight in weighted])[0]
    return chosen[0]


@dataclass(slots=True, kw_only=True)
class Open:
    """Arrivals that do not wait for answers.

    num_requests, duration_s  ends after either; one of them must be given
    """

    gaps: Gaps
    maker: Maker
    num_requests: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.num_requests is None and self.duration_s is None:
            raise ConfigError("an open workload needs an end: a number of requests, or a duration")

    @property
    def follows(self) -> bool:
        return False

    @property
    def shares(self) -> bool:
        return self.maker.mix.prefixes is not None

    def arrivals(self) -> Iterator[Job]:
        self.maker.restart()
        at_s, count = 0.0, 0
        while self.num_requests is None or count < self.num_requests:
            at_s += self.gaps.draw_s(self.maker.rng)
            if self.duration_s is not None and at_s > self.duration_s:
                return
            yield self.maker.job(round(at_s * NS_PER_S))
            count += 1

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:  # noqa: ARG002
        return None


@dataclass(slots=True, kw_only=True)
class Closed:
    """`concurrency` clients, each of which sends its next request when it has its answer, after `think_s`."""

    concurrency: int
    num_requests: int
    maker: Maker
    think_s: float = 0.0
    _num_sent: int = 0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.num_requests < 1 or not self.think_s >= 0:
            raise ConfigError(
                "a closed workload needs a concurrency and a number of requests of at least 1 and a pause of at least 0"
                f" s, got {self.concurrency}, {self.num_requests} and {self.think_s}"
            )

    @property
    def follows(self) -> bool:
        return True

    @property
    def shares(self) -> bool:
        return self.maker.mix.prefixes is not None

    def arrivals(self) -> Iterator[Job]:
        self.maker.restart()
        self._num_sent = 0
        for _ in range(min(self.concurrency, self.num_requests)):
            self._num_sent += 1
            yield self.maker.job(0)

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:  # noqa: ARG002
        if self._num_sent >= self.num_requests:
            return None
        self._num_sent += 1
        return self.maker.job(now_ns + round(self.think_s * NS_PER_S))


@dataclass(slots=True, kw_only=True)
class Sessions:
    """Conversations: each turn sends all that was said before again, and what its client adds after thinking.

    gaps     between the first turns of sessions
    turns    of a session
    think_s  mean of the exponential pause between an answer and the next turn
    The maker's prompt length is what each turn adds; who leaves, leaves for good.
    """

    gaps: Gaps
    maker: Maker
    num_sessions: int
    turns: Lengths
    think_s: float
    _left: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_sessions < 1 or not self.think_s > 0:
            raise ConfigError(
                f"sessions: need at least 1 of them and a pause above 0 s, got {self.num_sessions} and {self.think_s}"
            )

    @property
    def follows(self) -> bool:
        return True

    @property
    def shares(self) -> bool:
        return True

    def arrivals(self) -> Iterator[Job]:
        self.maker.restart()
        self._left.clear()
        at_s = 0.0
        for session in range(self.num_sessions):
            at_s += self.gaps.draw_s(self.maker.rng)
            self._left[session] = self.turns.draw(self.maker.rng) - 1
            job = self.maker.job(round(at_s * NS_PER_S))
            job.session = session
            yield job

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:
        session = job.session
        if session is None or not is_answered or not self._left[session]:
            return None
        self._left[session] -= 1
        pause_s = self.maker.rng.expovariate(1 / self.think_s)
        following = self.maker.job(now_ns + round(pause_s * NS_PER_S))
        following.prompt = (*job.prompt, job.output, following.prompt[-1])
        following.session, following.turn = session, job.turn + 1
        following.client, following.priority = job.client, job.priority
        return following
