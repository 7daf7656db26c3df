"""What a simulation writes down: a line for each request, and sums for each replica."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from octavo.sim.timing import Work
from octavo.sim.workload import Job

GAP_NS = 1000
"""Gaps between tokens are counted in microseconds."""
MAX_SAMPLES = 4096
"""Points of a replica's curve; when there are more, every second one is let go."""

_COUNTED = list(range(4096))


@dataclass(slots=True, eq=False)
class Served:
    """One request on its way. Times are of the engine's clock; what the client sees comes `Host.reply_s` later.

    is_listed     it is one of the workload's arrivals, and the next of them is to be asked for when it has come
    is_pending    its prompt counts in its replica's load
    num_matched   prompt tokens its replica is taken to hold
    scheduled_ns  when its first slice was planned; `first_ns` and `last_ns`: commits of its first and last token
    reason        how it ended: "length", "cancelled" or "refused"; None while it lives
    resumed       how often it had to go on elsewhere, because its replica was gone
    first_output  added to the end of a slice: the id of the token that is drawn there
    """

    job: Job
    request_id: str
    num_prompt_tokens: int
    is_listed: bool = False
    replica: int = -1
    num_matched: int = 0
    is_pending: bool = False
    scheduled_ns: int | None = None
    first_ns: int | None = None
    last_ns: int = 0
    ended_ns: int | None = None
    num_tokens: int = 0
    num_cached_tokens: int = 0
    preemptions: int = 0
    longest_gap_ns: int = 0
    resumed: int = 0
    reason: str | None = None
    refusal: str | None = None
    first_output: int = 0
    _tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.first_output = self.job.output[0] - self.num_prompt_tokens

    def tokens(self) -> tuple[int, ...]:
        """The prompt, spelled out once."""
        if self._tokens is None:
            self._tokens = self.job.tokens()
        return self._tokens

    def output_tokens(self) -> tuple[int, ...]:
        """What it has drawn so far."""
        first = self.job.output[0]
        return tuple(range(first, first + self.num_tokens))

    @property
    def is_complete(self) -> bool:
        """Whether all of its output is drawn."""
        return self.num_tokens >= self.job.num_output_tokens

    def any_tokens(self) -> tuple[int, ...]:
        """As many token ids as the prompt has, for whoever only counts them."""
        count = self.num_prompt_tokens
        if count > len(_COUNTED):
            _COUNTED.extend(range(len(_COUNTED), 2 * count))
        return tuple(_COUNTED[:count])

    def forget(self) -> None:
        """The prompt's tokens are needed no more."""
        self._tokens = None

    def end(self, reason: str, now_ns: int) -> None:
        self.reason, self.ended_ns = reason, now_ns


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over the steps of one replica, and a curve of samples.

    busy_ns   time in steps; `seqs_ns`, `kv_ns` and `waiting_ns` weigh sequences, used blocks and those waiting with it
    gaps      microseconds between two tokens of a request -> how many such gaps
    samples   (at_ns, sequences in the step, used blocks, waiting)
    """

    replica: int
    num_kv_blocks: int
    num_steps: int = 0
    num_tokens: int = 0
    busy_ns: int = 0
    seqs_ns: int = 0
    kv_ns: int = 0
    waiting_ns: int = 0
    peak_kv_blocks: int = 0
    gaps: dict[int, int] = field(default_factory=dict)
    samples: list[tuple[int, int, int, int]] = field(default_factory=list)
    _every: int = 1
    _num_seen: int = 0

    def launched(self, at_ns: int, duration_ns: int, work: Work, used_blocks: int, num_waiting: int) -> None:
        """A step begins."""
        self.add(duration_ns, 1, work.num_seqs, work.num_tokens, used_blocks, num_waiting)
        self._sample(at_ns, work.num_seqs, used_blocks, num_waiting)

    def add(
        self, duration_ns: int, steps: int, seqs: int, tokens: int, used_blocks: int, num_waiting: int
    ) -> None:
        """So many steps, alike but for their duration, that took so long together; `tokens` of all of them."""
        self.num_steps += steps
        self.num_tokens += tokens
        self.busy_ns += duration_ns
        self.seqs_ns += seqs * duration_ns
        self.kv_ns += used_blocks * duration_ns
        self.waiting_ns += num_waiting * duration_ns
        self.peak_kv_blocks = max(self.peak_kv_blocks, used_blocks)

    def skipped(
        self,
        at_ns: int,
        starts_ns: list[int],
        gap_ns: int,
        num_seqs: int,
        used: tuple[tuple[int, int], ...],
        num_waiting: int,
    ) -> None:
        """Steps of a stretch, the first launched at `at_ns`.

        starts_ns  when each begins, and at last when the last one ends; `gap_ns` of each belong to no step
        used       that of `octavo.core.stretch.Skipped`
        """
        count = len(starts_ns) - 1
        total_ns = starts_ns[-1] - starts_ns[0] - count * gap_ns
        self.add(total_ns, count, num_seqs, num_seqs * count, 0, num_waiting)
        turn, level = used[0]
        for following, next_level in (*used[1:], (count + 1, 0)):
            following = min(following, count + 1)
            if following > turn:
                span_ns = starts_ns[following - 1] - starts_ns[turn - 1] - (following - turn) * gap_ns
                self.kv_ns += level * span_ns
                self.peak_kv_blocks = max(self.peak_kv_blocks, level)
            turn, level = following, next_level
        self._sample(at_ns, num_seqs, used[0][1], num_waiting)

    def _sample(self, at_ns: int, num_seqs: int, used_blocks: int, num_waiting: int) -> None:
        self._num_seen += 1
        if self._num_seen % self._every == 0:
            self.samples.append((at_ns, num_seqs, used_blocks, num_waiting))
            if len(self.samples) > MAX_SAMPLES:
                del self.samples[1::2]
                self._every *= 2

    def gaps_of(self, gaps_ns: list[int], count: int, *, is_sorted: bool) -> None:
        """So many gaps of each of these lengths. Sorted ones are counted by runs of equal microseconds."""
        gaps = self.gaps
        if is_sorted:
            place, end = 0, len(gaps_ns)
            while place < end:
                micros = gaps_ns[place] // GAP_NS
                following = bisect_left(gaps_ns, (micros + 1) * GAP_NS, place)
                gaps[micros] = gaps.get(micros, 0) + count * (following - place)
                place = following
            return
        for gap_ns in gaps_ns:
            micros = gap_ns // GAP_NS
            gaps[micros] = gaps.get(micros, 0) + count

    def gap(self, gap_ns: int, count: int) -> None:
        micros = gap_ns // GAP_NS
        self.gaps[micros] = self.gaps.get(micros, 0) + count
