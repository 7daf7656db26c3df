"""Workloads of `benches.sim.band`: what they ask for, and when."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from octavo.sim.traces import Row, Trace

MAX_NUM_SEQS = 32
BLOCK_TOKENS = 16
LOADS = {"low": 0.25, "half": 0.5, "near": 0.85}
"""Of what the engine can do when all requests are there at once."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One workload: ranges of lengths, drawn evenly.

    cv         coefficient of variation of the gaps between arrivals
    prefixes   (how many, tokens of each): every prompt begins with one of them
    num_seqs   so many of its longest sequences fit into memory; None: as many as may run
    """

    prompt: tuple[int, int]
    output: tuple[int, int]
    cv: float = 1.0
    prefixes: tuple[int, int] | None = None
    num_seqs: int | None = None

    @property
    def longest(self) -> int:
        return self.prompt[1] + self.output[1] + (self.prefixes[1] if self.prefixes else 0)

    def num_blocks(self, block_tokens: int) -> int:
        one = -(-self.longest // block_tokens) + 1
        kept = self.prefixes[0] * self.prefixes[1] // block_tokens if self.prefixes else 0
        return (self.num_seqs or MAX_NUM_SEQS) * one + kept + 1


CASES: Mapping[str, Case] = {
    "chat": Case(prompt=(64, 256), output=(32, 128)),
    "long prompts": Case(prompt=(256, 768), output=(16, 64)),
    "long answers": Case(prompt=(16, 64), output=(96, 256)),
    "bursts": Case(prompt=(64, 256), output=(32, 128), cv=3.0),
    "shared prefixes": Case(prompt=(32, 96), output=(32, 96), prefixes=(8, 512)),
    "tight memory": Case(prompt=(64, 192), output=(64, 192), num_seqs=4),
}


@dataclass(frozen=True)
class Plan:
    """Requests of one run: when each comes, its prompt, its output's length; and the same as a trace."""

    at_s: list[float]
    prompts: list[list[int]]
    outputs: list[int]
    trace: Trace


def planned(case: Case, count: int, rate: float, pool: Sequence[int], seed: str) -> Plan:
    """The same for the same seed; times scale with the rate and nothing else does."""
    draw, gaps = random.Random(f"{seed} requests"), random.Random(f"{seed} gaps")
    shape = 1 / case.cv**2
    prefixes = (
        [draw.choices(pool, k=case.prefixes[1]) for _ in range(case.prefixes[0])] if case.prefixes else []
    )
    now_s, plan = 0.0, Plan([], [], [], Trace("band", ()))
    rows = []
    for _ in range(count):
        own, output = draw.choices(pool, k=draw.randint(*case.prompt)), draw.randint(*case.output)
        which = draw.randrange(len(prefixes)) if prefixes else None
        prefix = [] if which is None else prefixes[which]
        plan.at_s.append(now_s)
        plan.prompts.append([*prefix, *own])
        plan.outputs.append(output)
        rows.append(
            Row(
                arrival_s=now_s,
                prompt_tokens=len(prefix) + len(own),
                output_tokens=output,
                blocks=tuple(f"{which}.{place}" for place in range(len(prefix) // BLOCK_TOKENS)),
                block_tokens=BLOCK_TOKENS,
            )
        )
        now_s += gaps.gammavariate(shape, 1 / (shape * rate))
    return replace(plan, trace=Trace("band", tuple(rows)))
