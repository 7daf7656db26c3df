"""How long does `octavo plan serve` take to look at ten thousand layouts?

Llama-3.1-70B on four kinds of device, three weight formats, two KV layouts, up to sixteen ranks, and up to some forty
numbers of requests at once each. The gate checks that the ranking is in order and that what it says of its first
layout is what a balance by itself says.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from octavo.arch import known
from octavo.planner.arrivals import arriving
from octavo.planner.capacity import Load, Steps
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.kv_layouts import LAYOUTS
from octavo.planner.layouts import Ask, Rejected, ladder, replicas
from octavo.planner.ranking import rank
from octavo.planner.slo import Slo


def question() -> Ask:
    return Ask(
        shape=known.shape("llama-3.1-70b"),
        devices=tuple(device(name) for name in ("h100", "h200", "b200", "mi300x")),
        weights=tuple(FORMATS[name] for name in ("bf16", "fp8", "int4-g128")),
        kvs=(LAYOUTS["bf16"], LAYOUTS["fp8"]),
        load=Load(prompt_tokens=2000, output_tokens=300),
        slo=Slo(ttft_s=1.0, tpot_s=0.05),
        requests_per_s=20.0,
        max_ranks=16,
    )


def count() -> int:
    """Layouts times requests at once, counted without ranking them."""
    asked = question()
    return sum(1 if isinstance(one, Rejected) else len(ladder(one, asked.load)) for one in replicas(asked))


def measure(repeat: int) -> Figures:
    """`repeat` changes nothing."""
    del repeat
    started_s = time.perf_counter()
    made = rank(question())
    took_s = time.perf_counter() - started_s
    return {"seconds": took_s, "layouts": made.num_layouts, "per_second": made.num_layouts / took_s}


def gate() -> str:
    asked = question()
    made = rank(asked)
    if [plan.order for plan in made.plans] != sorted(plan.order for plan in made.plans):
        raise GateFailed("the ranking is not in order")
    best = made.plans[0]
    steps = Steps(best.replica, asked.load)
    alone = arriving(steps, best.made.at_once, num_replicas=best.num_replicas)
    if alone.tpot_s != best.made.tpot_s or abs(alone.requests_per_s / best.made.requests_per_s - 1) > 1e-4:
        raise GateFailed("the first layout's balance is another by itself")
    if made.num_layouts != count():
        raise GateFailed(f"{made.num_layouts} layouts looked at, {count()} there are")
    return f"{made.num_layouts} layouts, in order, the first as by itself"


def bench() -> Bench:
    return Bench(
        question="How long does it take to rank ten thousand layouts?",
        slug="planner-search",
        figure="seconds",
        unit="s",
        better="lower",
        shape={"layouts": count(), "devices": 4, "max ranks": 16},
        gate=gate,
        subjects={"octavo plan serve": measure},
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.planner.search", description=__doc__)
    harness.arguments(parser)
    args = parser.parse_args(words)
    return harness.ask([bench()], harness.settings(args, "benches.planner.search", words))


if __name__ == "__main__":
    sys.exit(main())
