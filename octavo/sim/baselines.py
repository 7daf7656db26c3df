"""How serving was done before: whole batches, and memory reserved in one piece. Only to be compared with.

    static      a batch begins when it is full and runs until its longest answer has ended; nobody joins meanwhile
    dynamic     the same, and it also begins when the first has waited `wait_s` (as Triton's dynamic batcher does)
    contiguous  sequences come and go step by step (Yu et al., "Orca", OSDI 2022), each with one piece of memory for the
                longest it might become, `max_model_len`, from a buddy allocator, as "Orca (Max)" of Kwon et al. 2023
                (arXiv 2309.06180, section 6.1) has it

The memory of all three is reserved in such pieces. In a whole batch prompts are padded to the longest, and those that
have ended go on as padding. `num_used_blocks` counts what holds tokens; what is reserved beyond is waste.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from octavo.core.cache import Counters
from octavo.core.limits import Limits, check_request
from octavo.core.sequence import Request
from octavo.core.step import Event, Finished, Slice, Step, StepResult, Token
from octavo.errors import Bug, ConfigError

STATIC_WAIT_S = 60.0
"""A static batch that does not fill begins after so long, so that the last requests of a run are answered."""
DYNAMIC_WAIT_S = 0.1


@dataclass(slots=True, eq=False)
class Line:
    """One sequence. `place` is the first block of its piece of memory; `has_ended` makes it padding."""

    seq_id: int
    request: Request
    came_s: float
    num_tokens: int
    max_tokens: int
    place: int = -1
    num_computed: int = 0
    num_cached_tokens: int = 0
    has_ended: bool = False


class Buddies:
    """Pieces of a power of two blocks, split and joined in halves (Knowlton 1965)."""

    def __init__(self, num_blocks: int) -> None:
        self._free: dict[int, set[int]] = {}
        place = 0
        for order in range(num_blocks.bit_length() - 1, -1, -1):
            if num_blocks >> order & 1:
                self._free.setdefault(order, set()).add(place)
                place += 1 << order
        self._orders: dict[int, int] = {}
        self._roots = {start: order for order, starts in self._free.items() for start in starts}

    def take(self, count: int) -> int | None:
        """The first block of a piece of at least `count`, or None when no piece is free that is large enough."""
        wanted = max(count - 1, 0).bit_length()
        order = min((one for one, starts in self._free.items() if one >= wanted and starts), default=None)
        if order is None:
            return None
        place = min(self._free[order])
        self._free[order].discard(place)
        while order > wanted:
            order -= 1
            self._free.setdefault(order, set()).add(place + (1 << order))
        self._orders[place] = order
        return place

    def give_back(self, place: int) -> None:
        order = self._orders.pop(place)
        while self._roots.get(place) != order:
            root = max(start for start in self._roots if start <= place)
            buddy = root + ((place - root) ^ (1 << order))
            if buddy not in self._free.get(order, ()):
                break
            self._free[order].discard(buddy)
            place, order = min(place, buddy), order + 1
        self._free.setdefault(order, set()).add(place)


@dataclass(slots=True)
class Baseline:
    """A scheduler with the calls of the real one that a replica makes.

    is_whole    batches run as a whole; otherwise sequences come and go
    wait_s      how long a whole batch waits to be full
    """

    limits: Limits
    is_whole: bool
    wait_s: float = 0.0
    counters: Counters = field(default_factory=Counters)
    _waiting: deque[Line] = field(default_factory=deque)
    _running: list[Line] = field(default_factory=list)
    _by_id: dict[int, Line] = field(default_factory=dict)
    _flight: Step | None = None
    _next_seq: int = 0
    _next_step: int = 0
    _memory: Buddies = field(init=False)
    _piece_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        self._piece_blocks = -(-limits.max_model_len // limits.block_tokens)
        self._memory = Buddies(limits.num_blocks - 1)
        place = self._memory.take(self._piece_blocks)
        if place is None:
            raise ConfigError(
                f"a sequence of max_model_len={limits.max_model_len} needs {self._piece_blocks} blocks in one piece,"
                f" rounded up to a power of two, and there are {limits.num_blocks - 1}; lower max_model_len"
            )
        self._memory.give_back(place)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def sequences(self) -> Mapping[int, Line]:
        return self._by_id

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_used_blocks(self) -> int:
        size = self.limits.block_tokens
        return sum(-(-line.num_computed // size) for line in self._running)

    @property
    def asks_again_s(self) -> float | None:
        """When a batch that waits to be full begins all the same."""
        if not self.is_whole or self._running or not self._waiting:
            return None
        return self._waiting[0].came_s + self.wait_s

    def submit(self, request: Request, now_s: float) -> None:
        _, total = check_request(self.limits, request)
        begun = sum(len(one.tokens) for one in request.begun)
        line = Line(self._next_seq, request, now_s, len(request.prompt) + begun, total)
        self._next_seq += 1
        self._by_id[line.seq_id] = line
        self._waiting.append(line)

    def cancel(self, request_id: str, now_s: float) -> list[Event]:  # noqa: ARG002
        for line in [*self._waiting, *self._running]:
            if line.request.request_id == request_id and not line.has_ended:
                return [self._end(line, "cancelled")]
        return []

    def plan(self, now_s: float) -> Step | None:
        """The next step; None while one is under way, and while a batch is not full."""
        if self._flight is not None:
            return None
        fresh = self._admitted(now_s)
        if not self._running:
            return None
        longest = max((line.num_tokens for line in fresh), default=0) if self.is_whole else 0
        slices = []
        for line in self._running:
            is_prompt = line.num_computed == 0
            count = max(longest, line.num_tokens) if is_prompt else 1
            start = 0 if is_prompt else max(line.num_tokens - 1, 0)
            slices.append(Slice(line.seq_id, 0, start, count, (), (), 0 if line.has_ended else 1))
        self._flight = Step(self._next_step, tuple(slices))
        self._next_step += 1
        self.counters.computed_tokens += self._flight.num_tokens
        return self._flight

    def commit(self, step: Step, result: StepResult, now_s: float) -> list[Event]:  # noqa: ARG002
        if self._flight is None or step != self._flight:
            raise Bug(f"commit: step {step.number} is not under way")
        self._flight = None
        events: list[Event] = []
        for output in result.outputs:
            line = self._by_id.get(output.seq_id)
            if line is None:
                continue
            line.num_computed = line.num_tokens
            if line.has_ended:
                line.num_tokens += 1
                continue
            position = line.num_tokens
            line.num_tokens += 1
            events.append(Token(line.request.request_id, line.seq_id, 0, position, output.tokens[0]))
            if line.num_tokens >= line.max_tokens:
                events.append(self._end(line, "length"))
        if self.is_whole and all(line.has_ended for line in self._running):
            for line in self._running:
                self._leave(line)
            self._running.clear()
        return events

    def _admitted(self, now_s: float) -> list[Line]:
        """Who begins in this step."""
        if self.is_whole and (self._running or not self._is_ready(now_s)):
            return []
        fresh: list[Line] = []
        tokens = len(self._running)
        while self._waiting and len(self._running) < self.limits.max_num_seqs:
            line = self._waiting[0]
            tokens += line.num_tokens
            if not self.is_whole and fresh and tokens > self.limits.max_num_batched_tokens:
                break
            place = self._memory.take(self._piece_blocks)
            if place is None:
                break
            line.place = place
            self._waiting.popleft()
            self._running.append(line)
            fresh.append(line)
        return fresh

    def _is_ready(self, now_s: float) -> bool:
        is_full = len(self._waiting) >= self.limits.max_num_seqs
        again_s = self.asks_again_s
        return is_full or (again_s is not None and now_s >= again_s)

    def _end(self, line: Line, reason: str) -> Finished:
        line.has_ended = True
        if line in self._waiting:
            self._waiting.remove(line)
            del self._by_id[line.seq_id]
        elif not self.is_whole:
            self._running.remove(line)
            self._leave(line)
        elif all(one.has_ended for one in self._running) and self._flight is None:
            for one in self._running:
                self._leave(one)
            self._running.clear()
        return Finished(line.request.request_id, line.seq_id, 0, reason)

    def _leave(self, line: Line) -> None:
        self._memory.give_back(line.place)
        del self._by_id[line.seq_id]


BASELINES: Mapping[str, Callable[[Limits], Baseline]] = {
    "static": lambda limits: Baseline(limits, is_whole=True, wait_s=STATIC_WAIT_S),
    "dynamic": lambda limits: Baseline(limits, is_whole=True, wait_s=DYNAMIC_WAIT_S),
    "contiguous": lambda limits: Baseline(limits, is_whole=False),
}
"""By name."""
