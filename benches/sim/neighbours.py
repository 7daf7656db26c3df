"""How much later is a tenant's first token beside a flood or a batch, where steps take what a model of them says?

The questions of `benches.serving.http` (neighbours, batch) in the simulator: the same scheduler, lengths and rates, and
nothing that takes longer now and then. What is left between the two is the machine.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from octavo.core.limits import Limits
from octavo.sim.report import Line, lines, spread
from octavo.sim.timing import NS_PER_S, Host, Linear, Timing
from octavo.sim.workload import Job, TokenSpace
from octavo.sim.world import Deployment, World

TIMING = Timing(
    model=Linear(overhead_s=1.02e-3, token_s=6.04e-5, sampled_s=8.1e-5, context_s=1.1e-7, pair_s=8.2e-9),
    host=Host(turn_s=2e-4, plan_s=2e-4),
    source="a recording of the bundled model on one core of a Zen 5",
)
LIMITS = Limits(
    num_blocks=4097,
    block_tokens=16,
    max_num_seqs=32,
    max_num_batched_tokens=512,
    max_num_mixed_tokens=256,
    max_model_len=2048,
)
CAPACITY_PER_S, WINDOW_S = 45.0, 12.0
PROMPT, OUTPUT = (64, 256), (32, 128)
FLOOD, FLOOD_PROMPT, PATIENCE_S = 10.0, 1200, 12.0
OWN, FLOODER, BATCH = "own", "flooder", "own/batch"
SEEDS = 6


@dataclass
class Beside:
    """Online requests at a share of the capacity, and what comes beside them.

    flood  of the capacity, by a tenant with long prompts; `bound` of its requests at a time, 0 for any number
    batch  lines of a batch that run side by side, each followed by another
    """

    seed: int
    share: float
    flood: float = 0.0
    bound: int = 0
    batch: int = 0
    shares: bool = True
    follows: bool = True
    _rng: random.Random = field(default_factory=random.Random)
    _space: TokenSpace = field(default_factory=TokenSpace)
    _num_made: int = 0

    def arrivals(self) -> Iterator[Job]:
        self._rng = random.Random(f"octavo neighbours {self.seed}")
        self._space, self._num_made = TokenSpace(), 0
        came = [(at_s, OWN) for at_s in self._poisson(CAPACITY_PER_S * self.share)]
        if self.bound:
            came += [(0.001 * number, FLOODER) for number in range(self.bound)]
        else:
            came += [(at_s, FLOODER) for at_s in self._poisson(CAPACITY_PER_S * self.flood)]
        came += [(0.001 * number, BATCH) for number in range(self.batch)]
        for at_s, client in sorted(came):
            yield self._job(round(at_s * NS_PER_S), client)

    def after(self, job: Job, now_ns: int, *, is_answered: bool) -> Job | None:  # noqa: ARG002
        follows = job.client == BATCH or (job.client == FLOODER and self.bound)
        return self._job(now_ns, job.client) if follows and now_ns < WINDOW_S * NS_PER_S else None

    def _poisson(self, per_s: float) -> Iterator[float]:
        at_s = 0.0
        while per_s and (at_s := at_s + self._rng.expovariate(per_s)) < WINDOW_S:
            yield at_s

    def _job(self, at_ns: int, client: str) -> Job:
        prompt = FLOOD_PROMPT if client == FLOODER else self._rng.randint(*PROMPT)
        self._num_made += 1
        return Job(
            number=self._num_made - 1,
            at_ns=at_ns,
            prompt=(self._space.take(prompt),),
            output=self._space.take(self._rng.randint(*OUTPUT)),
            client=client,
            priority=int(client == BATCH),
            cancel_after_ns=round(PATIENCE_S * NS_PER_S) if client == FLOODER else None,
        )


def played(load: Beside) -> list[Line]:
    return lines(World(Deployment(limits=LIMITS, timing=TIMING), load).run())


def figures(repeat: int, *, share: float, flood: float = 0.0, bound: int = 0, batch: int = 0) -> Figures:
    """Over all seeds together; `repeat` changes nothing."""
    del repeat
    found = [line for seed in range(SEEDS) for line in played(Beside(seed, share, flood, bound, batch))]
    own = [line for line in found if line.client == OWN]
    ttft = spread([line.ttft_s for line in own if line.ttft_s is not None]) or {}
    tpot = spread([line.tpot_s for line in own if line.tpot_s is not None]) or {}
    answered = [line for line in found if line.client != OWN and line.reason == "length"]
    beside = sum(line.prompt_tokens + line.output_tokens for line in answered)
    return {
        "ttft_p99_s": ttft["p99"],
        "ttft_p50_s": ttft["p50"],
        "tpot_p50_s": tpot["p50"],
        "beside_tokens_per_s": beside / WINDOW_S / SEEDS,
    }


def gate() -> str:
    """Everybody's own requests are answered, and the same load gives the same lines."""
    first, second = (played(Beside(0, 0.2, FLOOD, 2)) for _ in range(2))
    if first != second:
        raise GateFailed("the same load has given two outcomes")
    if any(line.reason != "length" for line in first if line.client == OWN):
        raise GateFailed("a request of the tenant's own was not answered")
    return "own requests are all answered, and the same each time"


def bench() -> Bench:
    return Bench(
        question="How much later is a tenant's first token beside others, where steps take what a model says?",
        slug="sim-neighbours",
        figure="ttft_p99_s",
        unit="s",
        better="lower",
        shape={"capacity_per_s": CAPACITY_PER_S, "window_s": WINDOW_S, "seeds": SEEDS, "flood": FLOOD},
        gate=gate,
        subjects={
            "alone at 0.2": partial(figures, share=0.2),
            "beside a flood of 2 requests at a time": partial(figures, share=0.2, bound=2),
            "beside a flood without a bound": partial(figures, share=0.2, flood=FLOOD),
            "alone at 0.5": partial(figures, share=0.5),
            "beside a batch of 24 lines at a time": partial(figures, share=0.5, batch=24),
        },
        seeds={"arrivals and lengths": 0},
        notes=["nothing is measured but the model's constants: figures are the same on any machine"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.sim.neighbours", description=__doc__)
    harness.arguments(parser)
    args = parser.parse_args(words)
    return harness.ask([bench()], harness.settings(args, "benches.sim.neighbours", words))


if __name__ == "__main__":
    sys.exit(main())
