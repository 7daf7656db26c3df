"""How far is the predicted throughput at the greatest load from MLPerf's and TensorRT-LLM's, and a single step from
Splitwise's?

As many requests at once as memory has room for, or as the submission was configured for, in balance; nothing is fitted.
Splitwise's steps are those of one prompt and one token, of engines of 2023 without CUDA graphs: their token times are
mostly the host's. Figures per device are derived from the logs and are not MLPerf results.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from benches.planner.rows import Loaded, Step, folder, mlperf, splitwise, trtllm
from octavo.planner.capacity import Load, Steps, balance, room_for

NEAR = 0.30
SETS: dict[str, Callable[[], Iterable[Loaded]]] = {"TensorRT-LLM": trtllm, "MLPerf": mlperf}


def output_per_s(one: Loaded) -> float:
    """Full all the time, or over so many requests alike: as often as they fill the replica's room, and what is left
    over by itself, each wave as long as a request in it takes."""
    steps, room = Steps(one.replica, one.load), room_for(one.replica, one.load)
    if one.num_requests is None:
        return balance(steps, room).output_per_s
    full, left = divmod(one.num_requests, int(max(1.0, room)))
    took_s = full * balance(steps, int(max(1.0, room))).latency_s if full else 0.0
    took_s += balance(steps, left).latency_s if left else 0.0
    return one.num_requests * one.load.output_tokens / took_s


def throughput_error(one: Loaded) -> float:
    return output_per_s(one) / one.output_per_s - 1


def step_errors(one: Step) -> tuple[float, float]:
    """Of a batch of prompts by itself, and of a token of each."""
    steps = Steps(one.replica, Load(prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens))
    prompt_s = steps.seconds(0, one.batch * one.prompt_tokens)
    return prompt_s / one.prompt_s - 1, steps.seconds(one.batch) / one.token_s - 1


def figures(errors: Sequence[float]) -> Figures:
    return {
        "median_error": statistics.median(map(abs, errors)),
        "mean_error": statistics.fmean(map(abs, errors)),
        "median_signed": statistics.median(errors),
        "rows": len(errors),
        "within_30_percent": sum(abs(one) <= NEAR for one in errors) / len(errors),
    }


def of_set(name: str, repeat: int) -> Figures:
    """`repeat` changes nothing."""
    del repeat
    return figures([throughput_error(one) for one in SETS[name]()])


def of_steps(place: int, repeat: int) -> Figures:
    """Of prompts (0) or tokens (1). `repeat` changes nothing."""
    del repeat
    steps = (one for one in splitwise() if one.replica.shape.family == "llama")
    return figures([step_errors(one)[place] for one in steps])


def gate() -> str:
    """Every row has room for at least one request, and no rate is above that of steps at the speed of light."""
    count = 0
    for rows in SETS.values():
        for one in rows():
            steps, room = Steps(one.replica, one.load), room_for(one.replica, one.load)
            if room < 1:
                raise GateFailed(f"{one.name}: no room for a request")
            made = balance(steps, room)
            bound = room * one.load.output_tokens / steps.floor_s(room / one.replica.lanes)
            if made.output_per_s > bound:
                raise GateFailed(f"{one.name}: {made.output_per_s} tokens/s, above {bound}")
            count += 1
    return f"{count} rows with room, none above the bound of its decode steps"


def bench() -> Bench:
    subjects = {name: partial(of_set, name) for name in SETS}
    subjects |= {"Splitwise, prompts": partial(of_steps, 0), "Splitwise, tokens": partial(of_steps, 1)}
    return Bench(
        question="How far is the predicted throughput at the greatest load from published ones?",
        slug="planner-throughput",
        figure="median_error",
        unit="of the published value",
        better="lower",
        shape={"models": "as published", "fitted": 0},
        gate=gate,
        subjects=subjects,
        notes=[
            "MLPerf: Llama-2-70B offline, v4.1 and v5.1, one kind of device; prompts of 294 tokens are an assumption",
            "figures per device are derived from MLPerf's logs and are not MLPerf results",
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.planner.throughput", description=__doc__)
    parser.add_argument("--rows", action="store_true", help="print each row's error too")
    harness.arguments(parser)
    parser.set_defaults(repeats=1, warmup=0)  # the same every time: nothing here is drawn at random
    args = parser.parse_args(words)
    if not folder().is_dir():
        parser.error("reference is not here: set OCTAVO_SHARED_DATA")
    code = harness.ask([bench()], harness.settings(args, "benches.planner.throughput", words))
    if args.rows:
        for rows in SETS.values():
            for one in rows():
                print(f"{one.name}: {throughput_error(one):+.1%}")
    return code


if __name__ == "__main__":
    sys.exit(main())
