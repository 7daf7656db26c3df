"""An engine's load, as whoever asks is told: from another thread, too."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from octavo.core.cache import Counters
from octavo.link.frames import STEP_BUCKETS_S, TOKEN_BUCKETS


@dataclass(slots=True)
class StepTimes:
    """How long forward passes took, from launch to result, and how many tokens they had.

    counts        by duration, in the buckets of STEP_BUCKETS_S and above
    token_counts  by tokens, in those of TOKEN_BUCKETS and above
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(STEP_BUCKETS_S) + 1))
    token_counts: list[int] = field(default_factory=lambda: [0] * (len(TOKEN_BUCKETS) + 1))
    num_tokens: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0
    ended_s: float = 0.0

    def note(self, num_tokens: int, launched_s: float, ended_s: float) -> None:
        took_s = ended_s - launched_s
        self.token_counts[bisect_left(TOKEN_BUCKETS, num_tokens)] += 1
        self.num_tokens += num_tokens
        self.counts[bisect_left(STEP_BUCKETS_S, took_s)] += 1
        self.total_s += took_s
        self.longest_s = max(self.longest_s, took_s)
        self.ended_s = ended_s


@dataclass(frozen=True, slots=True)
class Counts:
    """An engine's load. `used_kv_blocks` are those of live sequences; cached ones nobody runs on are free."""

    num_steps: int
    num_running: int
    num_waiting: int
    used_kv_blocks: int
    num_kv_blocks: int
    block_tokens: int
    cached_kv_blocks: int
    pinned_kv_blocks: int
    steps: StepTimes
    totals: Counters
    fairness_gap: float
