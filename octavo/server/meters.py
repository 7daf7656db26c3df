"""From what happens in the server to numbers: what requests did as they end, what engines say when asked."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.api.batches import OPEN
from octavo.link import frames
from octavo.link.frames import STEP_BUCKETS_S, TOKEN_BUCKETS
from octavo.obs.metrics import PREFIX, Metrics
from octavo.server.member import Phase
from octavo.server.running import Running

if TYPE_CHECKING:
    from octavo.server.front import Front

LAG_PERIOD_S = 0.5


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    front: Front = request.state.front
    body, kind = front.metrics.shown(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": kind})


def note_run(meters: Metrics, running: Running) -> None:
    """A request that was admitted has ended, one way or another."""
    marks = running.marks
    prompt_tokens = running.num_prompt_tokens
    meters.tokens.labels("input").inc(prompt_tokens)
    meters.tokens.labels("cached").inc(marks.cached_tokens)
    meters.tenant_tokens.labels(meters.tenant(running.caller.tenant.tenant_id)).inc(
        prompt_tokens + marks.output_tokens
    )
    meters.prompt_tokens.observe(prompt_tokens)
    meters.output_tokens.observe(marks.output_tokens)
    meters.cached_tokens.observe(marks.cached_tokens)
    if marks.first_s is not None:
        meters.ttft.observe(marks.first_s - marks.received_s)
        meters.e2e.observe(marks.last_s - marks.received_s)
        if marks.output_tokens > 1 and len(running.submits) == 1:
            meters.tpot.observe((marks.last_s - marks.first_s) / (marks.output_tokens - 1))
    for ended in marks.ended:
        _note_engine(meters, ended.metrics)
    note_objective(meters, running)


def note_objective(meters: Metrics, running: Running) -> None:
    """A request with a deadline has ended or was refused. Of one whose client left, nothing can be said."""
    if running.deadline_s is None or running.is_gone:
        return
    marks = running.marks
    is_met = marks.failure is None and len(marks.ended) == len(running.submits)
    meters.objectives.labels(
        "batch" if running.caller.is_batch else "online", "true" if is_met else "false"
    ).inc()


def _note_engine(meters: Metrics, told: frames.Metrics) -> None:
    if told.first_scheduled_s is None:
        return
    meters.queue.observe(max(told.first_scheduled_s - told.arrival_s, 0.0))
    if told.first_token_s is not None and told.finished_s is not None:
        meters.prefill.observe(max(told.first_token_s - told.first_scheduled_s, 0.0))
        meters.decode.observe(max(told.finished_s - told.first_token_s, 0.0))


async def watch_loop(meters: Metrics) -> None:
    """Note how late this loop is, for ever."""
    while True:
        due_s = time.monotonic() + LAG_PERIOD_S
        await asyncio.sleep(LAG_PERIOD_S)
        meters.loop_lag.set(max(time.monotonic() - due_s, 0.0))


class FleetCollector(Collector):
    """What is so at the moment of asking. Counters of an engine begin anew with each engine, as Prometheus expects."""

    def __init__(self, front: Front, *, compat: str | None) -> None:
        self._front = front
        self._compat = compat
        ProcessCollector(registry=front.metrics.registry)
        front.metrics.registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Names only, so that two metrics of one name are found out at the start."""
        yield from self.collect()

    def collect(self) -> Iterator[Metric]:
        yield from self._front_state()
        yield from self._engine_state()
        known = [(str(one.number), one.stats) for one in self._front.fleet.members if one.stats is not None]
        yield from _gauges(known)
        yield from _counters(known)
        yield from _steps(known)
        if self._compat == "vllm":
            yield from _vllm(known, self._front)

    def _front_state(self) -> Iterator[Metric]:
        fleet = self._front.fleet
        card, ready = self._front.card, fleet.ready
        build = GaugeMetricFamily(
            PREFIX + "build_info", "1; what is served", labels=["version", "model", "weights"]
        )
        build.add_metric([octavo.__version__, card.id, ready.fingerprint[:16] if ready else ""], 1)
        yield build
        config = GaugeMetricFamily(
            PREFIX + "config_info", "1; changes with any setting that is no secret", labels=["hash"]
        )
        config.add_metric([hashlib.sha256(repr(self._front.settings()).encode()).hexdigest()[:16]], 1)
        yield config
        for name, help, value in (
            ("gateway_inflight", "Requests admitted and not yet answered", len(self._front.running)),
            ("gateway_queue_depth", "Prompts that wait for an engine to be ready", fleet.num_held),
        ):
            yield GaugeMetricFamily(PREFIX + name, help, value=value)
        yield from self._batch_state()
        yield CounterMetricFamily(
            PREFIX + "gateway_resumed",
            "Prompts that went on after their engine had gone",
            value=fleet.num_resumed,
        )

        traces = self._front.traces
        spans = CounterMetricFamily(PREFIX + "trace_spans", "Spans by what became of them", labels=["result"])
        spans.add_metric(["sent"], traces.num_sent if traces else 0)
        spans.add_metric(["dropped"], traces.num_dropped if traces else 0)
        yield spans

    def _batch_state(self) -> Iterator[Metric]:
        lives = self._front.batches.lives if self._front.batches else []
        counts = Counter(life.status for life in lives)
        jobs = GaugeMetricFamily(PREFIX + "batch_jobs", "Batches that have not ended", labels=["state"])
        for state in sorted(OPEN):
            jobs.add_metric([state], counts[state])
        yield jobs
        oldest = GaugeMetricFamily(
            PREFIX + "batch_oldest_deadline_seconds",
            "Until the first of the open batches expires; absent while there is none",
        )
        if lives:
            oldest.add_metric([], min(life.left_s for life in lives))
        yield oldest

    def _engine_state(self) -> Iterator[Metric]:
        members = self._front.fleet.members
        state = GaugeMetricFamily(
            PREFIX + "engine_state", "1 for the state an engine is in", labels=["replica", "state"]
        )
        queue = GaugeMetricFamily(
            PREFIX + "ipc_queue_bytes", "What waits to be sent to an engine", labels=["replica"]
        )
        up = GaugeMetricFamily(PREFIX + "replica_up", "Whether an engine takes requests", labels=["replica"])
        restarts = CounterMetricFamily(
            PREFIX + "engine_restarts", "Engines started in place of another", labels=["replica"]
        )
        for member in members:
            name = str(member.number)
            for phase in Phase:
                state.add_metric([name, phase.value], phase is member.phase)
            up.add_metric([name], member.phase is Phase.READY)
            restarts.add_metric([name], member.num_restarts)
            queue.add_metric([name], member.num_unsent_bytes)
        yield from (state, up, restarts, queue)


Known = Sequence[tuple[str, frames.Stats]]


def _gauges(known: Known) -> Iterator[Metric]:
    for name, help, field in (
        ("requests_running", "Sequences with memory", "num_running"),
        ("requests_waiting", "Sequences in the engine's queue", "num_waiting"),
        ("kv_block_size_tokens", "Tokens in a block of the cache", "block_tokens"),
        ("engine_last_step_age_seconds", "Time since the last step ended, at the last pulse", "step_age_s"),
        (
            "fairness_gap_tokens",
            "Service between the most and the least served tenant that waits",
            "fairness_gap",
        ),
        ("engine_longest_step_seconds", "The longest step so far", "longest_step_s"),
    ):
        family = GaugeMetricFamily(PREFIX + name, help, labels=["replica"])
        for replica, stats in known:
            family.add_metric([replica], getattr(stats, field))
        yield family
    blocks = GaugeMetricFamily(
        PREFIX + "kv_blocks",
        "Blocks by state: used, cached (idle), free; pinned ones are used",
        labels=["replica", "state"],
    )
    usage = GaugeMetricFamily(
        PREFIX + "kv_usage_ratio", "Part of the blocks that is used", labels=["replica"]
    )
    for replica, stats in known:
        free = stats.num_kv_blocks - stats.used_kv_blocks - stats.cached_kv_blocks
        for state, count in (
            ("used", stats.used_kv_blocks),
            ("cached", stats.cached_kv_blocks),
            ("free", free),
            ("pinned", stats.pinned_kv_blocks),
        ):
            blocks.add_metric([replica, state], count)
        usage.add_metric(
            [replica], stats.used_kv_blocks / stats.num_kv_blocks if stats.num_kv_blocks else 0.0
        )
    yield from (blocks, usage)


def _counters(known: Known) -> Iterator[Metric]:
    for name, help, field in (
        ("engine_steps", "Forward passes; standing still while sequences run means a stall", "num_steps"),
        ("prefix_cache_query_tokens", "Tokens that admissions looked for in the cache", "lookup_tokens"),
        ("prefix_cache_hit_tokens", "Tokens they found", "hit_tokens"),
        ("prefix_cache_evicted_blocks", "Cached blocks given to others", "evictions"),
        ("preemptions", "Sequences that lost their memory and were computed anew", "preemptions"),
        ("computed_tokens", "Positions computed, anew ones too", "computed_tokens"),
    ):
        family = CounterMetricFamily(PREFIX + name, help, labels=["replica"])
        for replica, stats in known:
            family.add_metric([replica], getattr(stats, field))
        yield family


def _steps(known: Known) -> Iterator[Metric]:
    """What engines have counted by bucket themselves."""
    for name, help, bounds, field, total in (
        ("engine_step_seconds", "Forward passes by duration", STEP_BUCKETS_S, "step_counts", "steps_s"),
        (
            "batch_tokens",
            "Forward passes by the tokens in them",
            TOKEN_BUCKETS,
            "token_counts",
            "step_tokens",
        ),
    ):
        family = HistogramMetricFamily(PREFIX + name, help, labels=["replica"])
        names = (*(str(float(bound)) for bound in bounds), "+Inf")
        for replica, stats in known:
            counts = getattr(stats, field) or (0,) * len(names)
            buckets = list(zip(names, accumulate(counts), strict=True))
            family.add_metric([replica], buckets, sum_value=getattr(stats, total))
        yield family


def _vllm(known: Known, front: Front) -> Iterator[Metric]:
    """The names that tools made for vLLM look for."""
    labels = ["model_name", "engine"]
    model = front.card.id
    for name, help, field in (
        ("num_requests_running", "As octavo_requests_running", "num_running"),
        ("num_requests_waiting", "As octavo_requests_waiting", "num_waiting"),
    ):
        gauge = GaugeMetricFamily(f"vllm:{name}", help, labels=labels)
        for replica, stats in known:
            gauge.add_metric([model, replica], getattr(stats, field))
        yield gauge
    usage = GaugeMetricFamily(
        "vllm:kv_cache_usage_perc", "As octavo_kv_usage_ratio, from 0 to 1", labels=labels
    )
    config = GaugeMetricFamily(
        "vllm:cache_config_info", "1", labels=["block_size", "num_gpu_blocks", "engine"]
    )
    for replica, stats in known:
        usage.add_metric([model, replica], stats.used_kv_blocks / max(stats.num_kv_blocks, 1))
        config.add_metric([str(stats.block_tokens), str(stats.num_kv_blocks), replica], 1)
    yield from (usage, config)
    for name, field in (
        ("prefix_cache_queries", "lookup_tokens"),
        ("prefix_cache_hits", "hit_tokens"),
        ("num_preemptions", "preemptions"),
    ):
        counter = CounterMetricFamily(f"vllm:{name}", "As octavo's own", labels=labels)
        for replica, stats in known:
            counter.add_metric([model, replica], getattr(stats, field))
        yield counter
    (own,) = front.metrics.tokens.collect()
    counted = {one.labels["direction"]: one.value for one in own.samples if one.name.endswith("_total")}
    for name, direction in (("prompt_tokens", "input"), ("generation_tokens", "output")):
        tokens = CounterMetricFamily(f"vllm:{name}", "As octavo_tokens_total", labels=["model_name"])
        tokens.add_metric([model], counted.get(direction, 0.0))
        yield tokens
