"""Runs of `benches.sim.band`: requests at their times, sent to an engine of this process or to a server."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from benches.harness import GateFailed
from benches.sim.band_load import BLOCK_TOKENS, CASES, LOADS, Case, Plan, planned
from octavo.cli import load
from octavo.cli.fronting import lone, server
from octavo.core.limits import Limits
from octavo.core.sequence import SamplingParams
from octavo.engine.build import Built
from octavo.engine.calibrating import drive, trials
from octavo.engine.loop import Engine
from octavo.engine.outputs import RequestEnded
from octavo.exec.runner import Runner
from octavo.kv.pool import KvPool
from octavo.obs import recorder, ring
from octavo.obs.replay import read
from octavo.sim.fitting import choose
from octavo.sim.hosts import Mark, front_of, host_of, lone_marks
from octavo.sim.recorded import Rehearsal
from octavo.sim.timing import Timing
from octavo.sim.traces import Replay
from octavo.sim.world import Deployment, simulate

NUM_FITTED = 60
TRAIL_BYTES = 1 << 27


@dataclass(frozen=True)
class Took:
    """One request, measured, in seconds after the start."""

    sent_s: float
    first_s: float
    last_s: float
    num_tokens: int


@dataclass(frozen=True)
class Measured:
    """A run that was, its steps, and when it began on their clock."""

    took: list[Took]
    played: Rehearsal
    start_s: float
    marks: list[Mark]
    front: tuple[float, float] | None = None


@dataclass
class Bed:
    """A loaded model and what is known of it before the runs."""

    built: Built
    source: str
    pool: list[int]
    timing: Timing
    num_requests: int
    longest_run_s: float
    http_timing: Timing | None = None
    http_threads: int = 1
    twice: bool = False
    kinds: dict[str, str] = field(default_factory=dict)

    def limits(self, case: Case) -> Limits:
        return replace(
            self.built.plan.resolved.limits,
            num_blocks=case.num_blocks(BLOCK_TOKENS),
            max_model_len=case.longest,
        )

    def plan(self, name: str, load_name: str, timing: Timing) -> Plan:
        """As many requests as come in the time of a run, within bounds; lengths do not depend on the rate."""
        case = CASES[name]
        at_once = planned(case, self.num_requests, 1e9, self.pool, name)
        outcome = simulate(Deployment(limits=self.limits(case), timing=timing), Replay(at_once.trace))
        rate = LOADS[load_name] * self.num_requests / (outcome.ended_ns / 1e9)
        count = min(self.num_requests, max(2 * NUM_FITTED, int(rate * self.longest_run_s)))
        return planned(case, count, rate, self.pool, name)


@contextmanager
def fresh(built: Built, limits: Limits) -> Iterator[tuple[Engine, memoryview]]:
    """An engine of its own on a loaded model, with so many blocks, and its trail."""
    arch = built.plan.arch
    layout = built.model.kv_layout(limits.block_tokens)
    kv = KvPool(layout, arch.num_layers, limits.num_blocks, built.model.device)
    memory = memoryview(bytearray(TRAIL_BYTES))
    limits = replace(limits, fingerprint=built.model.fingerprint)
    scheduler = recorder.RecordedScheduler(limits, recorder.ring(memory, limits), secrets.token_bytes(16))
    engine = Engine(
        scheduler,
        Runner(built.model, kv),
        built.tokenizer,
        vocab_size=arch.vocab_size,
        clock=time.monotonic,
        seed=built.plan.config.model.seed,
        on_ran=scheduler.ran,
    )
    try:
        yield engine, memory
    finally:
        engine.close()


def replayed(memory: memoryview) -> Rehearsal:
    played = Rehearsal(read(ring.records(memory)))
    played.run()
    return played


def measured_timing(built: Built, limits: Limits, budget_s: float) -> Timing:
    """What `octavo calibrate` would write."""
    from octavo.cli.calibrate import medians

    with fresh(built, limits) as (engine, memory):
        drive(engine, built.plan.arch.vocab_size, trials(limits), budget_s=budget_s)
    played = replayed(memory)
    return Timing(
        model=choose(medians(played.measured)).model, host=host_of(played), source="octavo calibrate"
    )


def play(engine: Engine, plan: Plan) -> list[Took]:
    """Send every request at its time, in this thread: between two steps, as an engine's own thread does."""
    ended: dict[str, RequestEnded] = {}
    start_s, coming, count = time.monotonic() + 0.05, 0, len(plan.at_s)
    while coming < count or engine.is_busy:
        now_s = time.monotonic() - start_s
        while coming < count and plan.at_s[coming] <= now_s:
            params = SamplingParams(temperature=0.0, max_tokens=plan.outputs[coming], ignore_eos=True)
            at_s = start_s + plan.at_s[coming]
            engine.add(plan.prompts[coming], params, request_id=str(coming), arrival_s=at_s)
            coming += 1
        if engine.is_busy:
            for update in engine.step():
                if isinstance(update, RequestEnded):
                    ended[update.request_id] = update
        elif coming < count:
            time.sleep(max(start_s + plan.at_s[coming] - time.monotonic(), 0.0))
    return [_took(ended[str(number)], start_s) for number in range(count)]


def _took(update: RequestEnded, start_s: float) -> Took:
    output = update.output
    metrics, tokens = output.metrics, output.outputs[0].token_ids
    if metrics.first_token_s is None or metrics.finished_s is None:
        raise GateFailed(f"request {update.request_id} had no token: {output.outputs[0].error}")
    return Took(
        metrics.arrival_s - start_s,
        metrics.first_token_s - start_s,
        metrics.finished_s - start_s,
        len(tokens),
    )


def run_engine(bed: Bed, name: str, plan: Plan) -> Measured:
    case = CASES[name]
    warm = planned(case, 8, 1e9, bed.pool, "warm-up")
    with fresh(bed.built, bed.limits(case)) as (engine, _):
        play(engine, warm)
    with fresh(bed.built, bed.limits(case)) as (engine, memory):
        began_s = time.monotonic() + 0.05
        took = play(engine, plan)
    marks = [
        Mark(str(number), began_s + one.sent_s, began_s + one.first_s)
        for number, one in enumerate(took[:NUM_FITTED])
    ]
    return Measured(took, replayed(memory), began_s, marks)


def run_http(bed: Bed, name: str, plan: Plan) -> Measured:
    """The engine has all cores but one, which the front and this process share."""
    limits = bed.limits(CASES[name])
    flags = [bed.source, *settings_flags(bed, limits)]
    asks = [
        load.Ask(at_s, prompt, count)
        for at_s, prompt, count in zip(plan.at_s, plan.prompts, plan.outputs, strict=True)
    ]

    async def both() -> tuple[list[tuple[float, float]], float, list[load.Outcome]]:
        sent = await lone(served.target)
        start_s = time.monotonic()
        return sent, start_s, await load.run_open(served.target, asks)

    with server(flags) as served:
        sent, start_s, outcomes = asyncio.run(both())
        played = Rehearsal(served.recorded())
    played.run()
    failed = [one.code for one in outcomes if one.code is not None or one.first_s is None]
    if failed:
        raise GateFailed(f"{len(failed)} requests failed: {failed[0]}")
    took = [Took(one.sent_s, one.first_s or 0.0, one.last_s, one.num_tokens) for one in outcomes]
    front = front_of(played, lone_marks(played, sent, len(asks))[10:])
    return Measured(took, played, start_s, [], front)


def settings_flags(bed: Bed, limits: Limits) -> list[str]:
    return [
        *("--num-kv-blocks", str(limits.num_blocks), "--block-size", str(limits.block_tokens)),
        *("--max-num-seqs", str(limits.max_num_seqs), "--max-model-len", str(limits.max_model_len)),
        *("--max-num-batched-tokens", str(limits.max_num_batched_tokens)),
        *("--num-threads", str(bed.http_threads), "--recorder-bytes", str(TRAIL_BYTES)),
        *("--dtype", bed.built.plan.resolved.dtype),
    ]
