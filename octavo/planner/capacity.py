"""One replica under load: what a step holds on average, how long a token takes, how many sequences have room.

Continuous batching with chunked prompts: each step has a token of every sequence that decodes and, as long as prompts
wait, a chunk of them. What a steady load makes of this follows from three balances: as many prompts are begun as
sequences end, a sequence's time is its prompt's steps and its tokens' steps, and by Little's law the sequences in
flight are the rate times that time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

from octavo.arch.shape import Shape
from octavo.errors import ConfigError
from octavo.planner import comm
from octavo.planner.efficiency import Efficiency, efficiency
from octavo.planner.formats import FORMATS, WeightFormat
from octavo.planner.hardware import Device
from octavo.planner.inference import InferenceMemory, Serving, plan_inference
from octavo.planner.kv_layouts import LAYOUTS, KvLayout
from octavo.planner.links import Link
from octavo.planner.parallel import ALONE, Parallel
from octavo.planner.roofline import floor_seconds, step_parts
from octavo.planner.steady import Flow, MeanStep, Steady, in_balance
from octavo.planner.step_work import StepCounter, StepWork

TAIL = 2.0
"""Standard deviations of the sequences' lengths that are kept free, so that a batch seldom outgrows its memory."""

_ROUNDS, _CLOSE = 200, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What requests are like, on average.

    cached_tokens  of the prompt, found in a prefix cache
    """

    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0

    def __post_init__(self) -> None:
        if not self.prompt_tokens >= 1 or not self.output_tokens >= 1:
            raise ConfigError(
                f"a request has at least 1 token of prompt and 1 of output, got {self.prompt_tokens:g} and "
                f"{self.output_tokens:g}"
            )
        if not 0 <= self.cached_tokens < self.prompt_tokens:
            raise ConfigError(
                f"cached tokens must be at least 0 and fewer than the prompt's {self.prompt_tokens:g}, got "
                f"{self.cached_tokens:g}: the last one is always computed"
            )

    @property
    def fresh_tokens(self) -> float:
        return self.prompt_tokens - self.cached_tokens

    @property
    def resident_tokens(self) -> float:
        """Of a sequence in the cache, averaged over its life."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A model on the devices of one replica.

    budget_tokens  computed in one step at most
    basis          constants of a step; None takes what is known of the device
    """

    shape: Shape
    device: Device
    weights: WeightFormat = FORMATS["bf16"]
    kv: KvLayout = LAYOUTS["bf16"]
    parallel: Parallel = ALONE
    budget_tokens: int = 8192
    max_seqs: int = 1024
    utilization: float = 0.9
    basis: Efficiency | None = field(default=None, compare=False)

    @property
    def num_devices(self) -> int:
        return self.parallel.num_ranks

    @property
    def lanes(self) -> int:
        """Batches under way at once: one in each stage of a pipeline, in each group that attends for itself."""
        return self.parallel.data * self.parallel.pipeline

    @cached_property
    def constants(self) -> Efficiency:
        return efficiency(self.device.name, self.precision) if self.basis is None else self.basis

    @cached_property
    def precision(self) -> str:
        """Products run at."""
        return self.device.computes_in(self.weights.compute)

    @cached_property
    def link(self) -> Link | None:
        """Between the ranks that share layers."""
        ranks = self.parallel.tensor * self.parallel.data
        if ranks == 1:
            return None
        return self.device.between(ranks)

    def check(self) -> None:
        """Raises ConfigError where the spread does not divide the model, or nobody gives the precision's rate."""
        _ = self.counter, self.precision

    @cached_property
    def counter(self) -> StepCounter:
        """Raises ConfigError where the spread does not divide the model."""
        return StepCounter(self.shape, weights=self.weights, kv=self.kv, parallel=self.parallel)

    @cached_property
    def memory(self) -> InferenceMemory:
        """Of the rank with least room. Raises ConfigError where the spread does not divide the model."""
        serving = Serving(max_tokens=self.budget_tokens, max_seqs=self.max_seqs, utilization=self.utilization)
        return plan_inference(
            self.shape,
            self.device.limit_bytes,
            self.weights,
            self.kv,
            parallel=self.parallel,
            serving=serving,
        )

    def boundary_s(self, num_tokens: float) -> float:
        """Of so many tokens from stage to stage, and each further stage's own program."""
        stages = self.parallel.pipeline
        if stages == 1:
            return 0.0
        sent = comm.pipeline_parallel(self.shape, 1, stages, tensor=self.parallel.tensor)
        link = self.device.node() if self.num_devices <= self.device.per_node else self.device.network()
        return (
            link.seconds(num_tokens * sent.sent_bytes, sent.operations) + (stages - 1) * self.constants.step_s
        )


class Steps:
    """Seconds of steps of one replica under one load.

    A step of a lane has `decodes` sequences' next tokens and `fresh` tokens of prompts.
    """

    def __init__(self, replica: Replica, load: Load) -> None:
        self.replica, self.load = replica, load
        counter = replica.counter
        self._decode = counter.work([(max(0, round(load.resident_tokens) - 1), 1, 1)])
        self._prompt = _whole_prompt(counter, load, replica.budget_tokens)

    def work(self, decodes: float, fresh: float = 0.0) -> StepWork:
        one, prompt, counter = self._decode, self._prompt, self.replica.counter
        prompts = fresh / self.load.fresh_tokens
        return replace(
            one,
            num_tokens=round(decodes + fresh),
            num_seqs=round(decodes + prompts),
            num_sampled=round(decodes + prompts),
            linear_flop=decodes * one.linear_flop + prompts * prompt.linear_flop,
            attention_flop=decodes * one.attention_flop + prompts * prompt.attention_flop,
            chunk_attention_flop=prompts * prompt.attention_flop,
            weight_bytes=counter.weight_bytes(decodes + fresh, 1),
            kv_read_bytes=decodes * one.kv_read_bytes + prompts * prompt.kv_read_bytes,
            chunk_kv_read_bytes=prompts * prompt.kv_read_bytes,
            kv_write_bytes=decodes * one.kv_write_bytes + prompts * prompt.kv_write_bytes,
            activation_bytes=decodes * one.activation_bytes + prompts * prompt.activation_bytes,
            link_bytes=decodes * one.link_bytes + prompts * prompt.link_bytes,
            expert_flop=decodes * one.expert_flop + prompts * prompt.expert_flop,
            expert_bytes=counter.expert_bytes(decodes + fresh),
        )

    def parts(self, decodes: float, fresh: float = 0.0) -> dict[str, float]:
        """Seconds by what they wait for, as `roofline.PARTS`."""
        one = self.replica
        found = step_parts(
            self.work(decodes, fresh), one.device, one.constants, precision=one.precision, link=one.link
        )
        if one.parallel.pipeline > 1:
            found["links"] += one.boundary_s(decodes + fresh)
        return found

    def mean(self, flow: Flow) -> MeanStep:
        return MeanStep.of(self.parts(flow.decoding), self.parts(flow.decoding, flow.fresh), flow.mixed_share)

    def seconds(self, decodes: float, fresh: float = 0.0) -> float:
        return sum(self.parts(decodes, fresh).values())

    def floor_s(self, decodes: float, fresh: float = 0.0) -> float:
        """The speed of light."""
        one = self.replica
        return floor_seconds(self.work(decodes, fresh), one.device, precision=one.precision, link=one.link)


def _whole_prompt(counter: StepCounter, load: Load, budget: int) -> StepWork:
    """All chunks of a prompt added up, in steps of at most `budget` tokens."""
    start, end = round(load.cached_tokens), max(round(load.prompt_tokens), 1)
    end = max(end, start + 1)
    works = []
    while start < end:
        count = min(budget, end - start)
        works.append(counter.work([(start, count, int(start + count == end))]))
        start += count
    first = works[0]
    if len(works) == 1:
        return first
    summed = {
        name: sum(getattr(one, name) for one in works)
        for name in (
            "linear_flop", "attention_flop", "kv_read_bytes", "kv_write_bytes", "activation_bytes", "link_bytes",
            "expert_flop",
        )
    }  # fmt: skip
    return replace(first, **summed)


def steady(replica: Replica, load: Load, concurrency: float, *, crowding: float = 1.0) -> Steady:
    """Of a closed loop: every request that ends is followed by another at once.

    crowding  how many times as many prompts come together as in an even stream, as when lengths hardly differ
    """
    return balance(Steps(replica, load), concurrency, crowding=crowding)


def balance(steps: Steps, concurrency: float, *, crowding: float = 1.0) -> Steady:
    """`steady`, where steps are counted already."""
    load, lanes = steps.load, steps.replica.lanes
    if not concurrency > 0:
        raise ConfigError(f"concurrency must be above 0, got {concurrency:g}")
    flow = _flow(load, steps.replica.budget_tokens, concurrency / lanes)
    step = steps.mean(flow)
    tpot_s = step.mean_s
    together = max(1.0, min(1 + crowding * flow.begun, flow.room / load.fresh_tokens, concurrency / lanes))
    own_s = flow.chunks * steps.seconds(flow.decoding, min(load.fresh_tokens * together, flow.room))
    full_s = steps.seconds(flow.decoding, flow.room)
    queue_s = flow.queue * full_s
    if crowding > 1:
        window_s = load.output_tokens * tpot_s / crowding
        all_s = concurrency / lanes * load.fresh_tokens / flow.room * full_s
        queue_s = max(queue_s, (all_s - window_s) / 2)
    wait_s = queue_s + tpot_s / 2
    requests = concurrency / (wait_s + own_s + flow.further * tpot_s)
    return in_balance(
        flow,
        step,
        lanes=lanes,
        at_once=concurrency,
        concurrency=concurrency,
        wait_s=wait_s,
        own_s=own_s,
        tpot_s=tpot_s,
        requests_per_s=requests,
        output_tokens=load.output_tokens,
    )


def _flow(load: Load, budget: int, in_lane: float) -> Flow:
    """Requests end, and others come, step by step however long steps are, so that what a request finds is an average
    over steps.

    It finds those of the others that do not decode, the first of them half done, and waits while they fill the steps
    before its own: mean value analysis of a closed queue (Reiser and Lavenberg 1980, J. ACM 27) with a service of
    constant length.
    """
    further = max(load.output_tokens - 1, 0.0)
    others = max(0.0, 1 - 1 / in_lane)
    queue, decoding, room, chunks, busy = 0.0, 0.0, float(budget), 1.0, 0.0
    for _ in range(_ROUNDS):
        spent = queue + chunks + 0.5  # half a step until the next one begins
        before, decoding = decoding, in_lane * further / (spent + further)
        room = max(budget - decoding, 1.0)
        turn = load.fresh_tokens / room
        chunks = max(1.0, turn)
        busy = min(1.0, turn * in_lane / (spent + further))
        waiting = in_lane * (queue + turn) / (spent + further)
        queue = (queue + turn * others * max(0.0, waiting - busy / 2)) / 2
        if abs(decoding - before) <= _CLOSE * in_lane and queue <= spent:
            break
    begun = in_lane / (queue + chunks + 0.5 + further)
    return Flow.of(
        load.fresh_tokens,
        further=further,
        decoding=decoding,
        room=room,
        begun=begun,
        busy=busy,
        queue=queue,
        chunks=chunks,
    )


def at_once_s(steps: Steps, concurrency: float) -> float:
    """Mean time to the first token where so many requests come to an idle replica at the same moment."""
    in_lane = max(1.0, concurrency / steps.replica.lanes)
    budget, fresh = steps.replica.budget_tokens, steps.load.fresh_tokens
    total = in_lane * fresh
    if total <= budget:
        return steps.seconds(0.0, total)
    return (total + min(budget, total)) / 2 / budget * steps.seconds(in_lane / 2, budget)


def room_for(replica: Replica, load: Load) -> float:
    """Requests whose keys and values have room at once, in all lanes. 0 where the weights leave none.

    Lengths are spread evenly between the prompt's and the whole, so that n sequences take n means, give or take the
    square root of n standard deviations.
    """
    memory = replica.memory
    if memory.pool_bytes <= 0:
        return 0.0
    block = memory.block_tokens
    longest = memory.kv.sequence_bytes(_blocks(load.prompt_tokens + load.output_tokens, block))
    mean = memory.kv.sequence_bytes(_blocks(load.resident_tokens, block))
    if longest > memory.pool_bytes:
        return 0.0
    spread = TAIL * (longest - memory.kv.sequence_bytes(_blocks(load.prompt_tokens, block))) / math.sqrt(12)
    root = (math.sqrt(spread**2 + 4 * mean * memory.pool_bytes) - spread) / (2 * mean)
    count = max(1.0, root**2)
    return min(count, float(replica.max_seqs)) * replica.parallel.data


def _blocks(tokens: float, block: int) -> int:
    return -(-math.ceil(tokens) // block) * block
