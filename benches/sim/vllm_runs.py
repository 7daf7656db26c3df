"""How far is a simulation from real vLLM runs, when five to seven constants are fitted to their first 60 requests?

Public logs of vLLM 0.19 (LLMServingSim, MIT licence): 300 requests each, with arrival, first and last token. Our own
scheduler plays them with the same limits; a step takes `Blend` of five constants, of seven where replicas share
experts, which are moved until the first 60 requests take what they took, and the other 240 are compared: mean, p50, p90
and p99 of TTFT, TPOT and end to end, simulated over measured, less 1. TTFT and end to end count from the client's
arrival.

The logs lie beside the project or under OCTAVO_SHARED_DATA, in `vllm_runs`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benches import harness
from benches.harness import Bench, Figures, GateFailed
from octavo.core.limits import Limits
from octavo.sim.from_requests import FITTED, FITTED_TOO, Took, fit_to_requests
from octavo.sim.report import Line, lines
from octavo.sim.timing import Blend, Timing
from octavo.sim.traces import Replay, Row, Trace
from octavo.sim.world import Deployment, simulate

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
NUM_FITTED = 60
LLAMA = Blend(
    overhead_s=2e-3,
    seq_s=7e-6,
    weights_s=0.0118,
    token_s=4.65e-5,
    context_s=1.03e-7,
    sampled_tokens=525 / 6980,
    pair_tokens=524288 / 13.96e9,
)
"""Where the search begins: 16.06 GB of weights, 13.96 GFLOP a token and 128 KiB of keys and values at 0.85, 0.6 and 0.8
of 1597 GB/s and 500 TFLOP/s. A row of logits is 525 M of 6980 M multiply-adds, a pair 4 x 4096 FLOP in 32 layers."""
QWEN = Blend(
    overhead_s=5e-3,
    seq_s=2e-5,
    weights_s=0.0235,
    token_s=4.4e-5,
    context_s=7.7e-8,
    mixed_s=2e-3,
    mixed_context_s=1.54e-7,
    sampled_tokens=311 / 3300,
    pair_tokens=786432 / 6.6e9,
    group_share=1.81 / 2.72,
)
"""The same for 30 B parameters, of which a token passes 3.3 B, and 96 KiB; all experts are touched. Of 2.72 B in the
layers 1.81 B are experts'. Steps with prompts are launched piece by piece, and their attention is not the one that was
made for decodes: queries of a key-value head lie apart."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One log. `num_blocks` is the run's own where its log says it, else more than it can use."""

    file: str
    prompts: str
    num_blocks: int
    max_num_seqs: int
    start: Blend
    num_replicas: int = 1
    lockstep: int = 1
    block_tokens: int = 16
    max_num_batched_tokens: int = 2048

    def deployment(self) -> Deployment:
        limits = Limits(
            num_blocks=self.num_blocks,
            block_tokens=self.block_tokens,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=32768,
        )
        timing = Timing(model=self.start, source="start of a search")
        return Deployment(
            limits=limits,
            timing=timing,
            num_replicas=self.num_replicas,
            lockstep=self.lockstep,
            routing="least_loaded",
        )


RUNS = {
    "RTX PRO 6000, Llama-3.1-8B": Run(
        file="rtxpro6000_llama3.1-8b_tp1",
        prompts="sharegpt_llama3_300",
        num_blocks=33000,
        max_num_seqs=128,
        start=LLAMA,
    ),
    "RTX 4090, Llama-3.1-8B, with preemption": Run(
        file="rtx4090_llama3.1-8b_tp1",
        prompts="sharegpt_llama3_300",
        num_blocks=2588,
        max_num_seqs=256,
        start=replace(LLAMA, weights_s=0.0187, token_s=1.41e-4, context_s=1.63e-7),
    ),
    "2 x RTX PRO 6000, Qwen3-30B-A3B, DP2 EP2": Run(
        file="rtxpro6000_qwen3-30b-a3b_dp2ep2",
        prompts="sharegpt_qwen3_300",
        num_blocks=20000,
        max_num_seqs=128,
        start=QWEN,
        num_replicas=2,
        lockstep=2,
    ),
}


@dataclass(frozen=True)
class Log:
    """What was sent, and what each request took."""

    trace: Trace
    took: list[Took]
    e2e_s: list[float]


def read_log(run: Run, folder: Path) -> Log:
    """Raises FileNotFoundError."""
    rows, took, e2e = [], [], []
    prompts = gzip.decompress((folder / f"{run.prompts}.prefix_blocks.jsonl.gz").read_bytes()).decode()
    with (folder / f"{run.file}.requests.csv").open(encoding="utf-8") as file:
        for fields, line in zip(csv.DictReader(file), prompts.splitlines(), strict=True):
            times = {name: float(value) for name, value in fields.items() if name.endswith("_s")}
            output = int(fields["output_toks"])
            rows.append(
                Row(
                    arrival_s=times["client_arrival_s"],
                    prompt_tokens=int(fields["input_toks"]),
                    output_tokens=output,
                    blocks=tuple(json.loads(line)["blocks"]),
                    block_tokens=run.block_tokens,
                )
            )
            decoding_s = times["last_token_s"] - times["first_token_s"]
            took.append(
                Took(
                    times["first_token_s"] - times["client_arrival_s"],
                    decoding_s / (output - 1) if output > 1 else None,
                )
            )
            e2e.append(times["last_token_s"] - times["client_arrival_s"])
    return Log(Trace("vllm", tuple(rows)), took, e2e)


def errors(found: Sequence[Line], log: Log, first: int = NUM_FITTED) -> dict[str, float]:
    """Simulated over measured, less 1, of the requests from `first` on."""
    measured: dict[str, Sequence[float | None]] = {
        "ttft": [one.ttft_s for one in log.took],
        "tpot": [one.tpot_s for one in log.took],
        "e2e": log.e2e_s,
    }
    made: dict[str, float] = {}
    for name, theirs in measured.items():
        ours = [getattr(line, f"{name}_s") for line in found]
        a, b = (np.array([one for one in values[first:] if one is not None]) for values in (ours, theirs))
        made[f"{name}_mean"] = float(a.mean() / b.mean() - 1)
        for quantile in (50, 90, 99):
            made[f"{name}_p{quantile}"] = float(np.percentile(a, quantile) / np.percentile(b, quantile) - 1)
    return made


def error(name: str, num_runs: int, folder: Path, repeat: int) -> Figures:
    """Fit on the first requests, score on the others. `repeat` changes nothing."""
    del repeat
    run = RUNS[name]
    log, deployment = read_log(run, folder), run.deployment()
    workload = Replay(log.trace)
    found = fit_to_requests(deployment, workload, log.took[:NUM_FITTED], run.start, num_runs=num_runs)
    fitted = lines(simulate(replace(deployment, timing=Timing(model=found.model)), workload))
    made = errors(fitted, log)
    constants = {f"fitted_{field}": getattr(found.model, field) for field in (*FITTED, *FITTED_TOO)}
    return {
        "largest_error": max(abs(one) for one in made.values()),
        **made,
        **constants,
        "preemptions": sum(line.preemptions for line in fitted),
        "unfitted_largest_error": max(
            abs(one) for one in errors(lines(simulate(deployment, workload)), log).values()
        ),
    }


def gate(folder: Path) -> str:
    """Every request of every log is answered in full, step by step and skipping alike."""
    for name, run in RUNS.items():
        log, deployment = read_log(run, folder), run.deployment()
        fast, slow = (
            lines(simulate(replace(deployment, is_exact=is_exact), Replay(log.trace)))
            for is_exact in (False, True)
        )
        if fast != slow:
            raise GateFailed(f"{name}: skipping and playing every step differ")
        if any(
            line.output_tokens != row.output_tokens for line, row in zip(fast, log.trace.rows, strict=True)
        ):
            raise GateFailed(f"{name}: an answer has another length than in the log")
    return "answers as long as in the logs; every step played and stretches skipped give the same times"


def bench(names: Sequence[str], num_runs: int, folder: Path) -> Bench:
    return Bench(
        question="How far is a simulation from real vLLM runs, with constants fitted to their first 60 requests?",
        slug="sim-vllm-runs",
        figure="largest_error",
        unit="of the measured value",
        better="lower",
        shape={"requests": 300, "fitted": NUM_FITTED, "scored": 300 - NUM_FITTED, "simulations": num_runs},
        gate=partial(gate, folder),
        subjects={name: partial(error, name, num_runs, folder) for name in names},
        notes=[
            "errors are simulated / measured - 1, signed; largest_error is the largest magnitude of the twelve",
            "the pool of the runs on RTX PRO 6000 was not logged and is taken to be ample",
            "the two engines of the data-parallel group take their steps together",
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benches.sim.vllm_runs", description=__doc__)
    parser.add_argument(
        "--runs", default=",".join(str(n) for n in range(len(RUNS))), help="which, by number from 0"
    )
    parser.add_argument("--simulations", type=int, default=120, help="of each search (default %(default)s)")
    parser.add_argument("--data", type=Path, help="folder that holds vllm_runs")
    harness.arguments(parser)
    parser.set_defaults(repeats=1, warmup=0)  # the same every time: nothing here is drawn at random
    args = parser.parse_args(words)
    folder = (args.data or Path(os.environ.get("OCTAVO_SHARED_DATA", BESIDE))) / "vllm_runs"
    if not folder.is_dir():
        parser.error(f"{folder.name} is not here: say --data, or set OCTAVO_SHARED_DATA")
    names = [list(RUNS)[int(number)] for number in args.runs.split(",")]
    asked = bench(names, args.simulations, folder)
    return harness.ask([asked], harness.settings(args, "benches.sim.vllm_runs", words))


if __name__ == "__main__":
    sys.exit(main())
