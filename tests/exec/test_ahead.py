"""Steps launched behind one another, and decode steps padded to a graph's size, against steps one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from octavo.core.sequence import SamplingParams
from octavo.core.step import Slice, Step, StepResult
from octavo.decode.logprobs import BadLogits, Choice
from octavo.exec.batch import UNKNOWN
from octavo.exec.draws import Drawn, draw_together
from octavo.exec.executor import Start
from octavo.exec.graphs import Bucket, Graphs, Sizes, why_not
from octavo.exec.runner import Payload, Pending, Runner
from octavo.kv.pool import KvPool
from octavo.models.loader import load
from octavo.models.model import Model
from octavo.models.ops import Decision
from tests.engine.tiny import CONFIG, write_checkpoint

P, NUM_BLOCKS = 4, 128
SIZES = Sizes(max_seqs=8, max_positions=P * NUM_BLOCKS, width=12)
PARAMS = (
    SamplingParams(temperature=0.0, max_tokens=None),
    SamplingParams(temperature=0.9, top_p=0.9, logprobs=2, max_tokens=None),
    SamplingParams(temperature=1.2, repetition_penalty=1.3, max_tokens=None),
    SamplingParams(temperature=0.0, logprobs=3, min_tokens=4, max_tokens=None),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    folder = write_checkpoint(tmp_path_factory.mktemp("m"), with_tokenizer=False, **CONFIG)
    return load(folder, dtype=torch.float32, kernels="reference")


@dataclass
class Late:
    """Results that count how often they were asked for, and may only be read when they are allowed to."""

    drawn: Drawn
    log: list[str]

    @property
    def tokens(self) -> torch.Tensor | None:
        return self.drawn.tokens

    def read(self) -> list[Choice | BadLogits]:
        self.log.append("read")
        return self.drawn.read()


@dataclass
class Replayed:
    """Graphs without a device: what was recorded is carried out again, on whatever lies in memory by then."""

    recorded: int = 0
    replayed: int = 0

    def __call__(self, work: Callable[[], object]) -> Callable[[], object]:
        self.recorded += 1
        work()

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


@dataclass
class Desk:
    """A few sequences with prompts of their own, decoded side by side; they end one after another."""

    runner: Runner
    lengths: tuple[int, ...] = (9, 1, 5, 14, 2)
    params: tuple[SamplingParams, ...] = PARAMS
    samples: int = 1
    number: int = 0
    tables: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = list(range(1, NUM_BLOCKS))
        random.Random(3).shuffle(self.free)
        self.runner.kv.poison(range(NUM_BLOCKS))

    def steps(self, num_decodes: int) -> list[tuple[Step, list[Start], list[int]]]:
        """(step, starts, ended): the prompts in one step, then one token of each sequence in every step."""
        starts, slices = [], []
        for seq_id, length in enumerate(self.lengths):
            tokens = tuple((seq_id * 31 + i * 7) % 290 for i in range(length))
            params = self.params[seq_id % len(self.params)]
            starts.append(
                Start(
                    seq_id=seq_id, epoch=0, tokens=tokens, num_prompt=length, params=params, index=0,
                    seed=seq_id, end_token_ids=frozenset({3}),
                )
            )  # fmt: skip
            slices.append(self.slice(seq_id, 0, length, self.samples))
        made: list[tuple[Step, list[Start], list[int]]] = [(self.step(slices), starts, [])]
        alive = list(range(len(self.lengths)))
        for n in range(num_decodes):
            ended = [alive.pop(0)] if n % 3 == 2 and len(alive) > 1 else []
            order = alive[n % len(alive) :] + alive[: n % len(alive)]
            made.append((self.step([self.slice(i, self.lengths[i] + n, 1) for i in order]), [], ended))
        return made

    def slice(self, seq_id: int, start: int, count: int, samples: int = 1) -> Slice:
        table = self.tables.setdefault(seq_id, [])
        fresh = [self.free.pop() for _ in range(-(-(start + count) // P) - len(table))]
        table.extend(fresh)
        return Slice(seq_id, 0, start, count, tuple(fresh), samples=samples)

    def step(self, slices: list[Slice]) -> Step:
        self.number += 1
        return Step(self.number, tuple(slices))

    def one_by_one(self, num_decodes: int) -> list[StepResult]:
        return [self.runner.run(step, starts, (), ended) for step, starts, ended in self.steps(num_decodes)]

    def behind(self, num_decodes: int, log: list[str]) -> list[StepResult]:
        """Each step is launched before the result of the one before is asked for."""
        results, pending = [], None
        for step, starts, ended in self.steps(num_decodes):
            launched: Pending = self.runner.launch(step, starts, (), ended)
            log.append("launched")
            if pending is not None:
                results.append(pending.result())
            pending = launched
        assert pending is not None
        return [*results, pending.result()]


def runner(model: Model, **options: Any) -> Runner:
    return Runner(model, KvPool(model.kv_layout(P), model.arch.num_layers, NUM_BLOCKS), **options)


def told(results: list[StepResult]) -> list[Any]:
    return [(one.number, [(output, output.payload) for output in one.outputs]) for one in results]


def waiting(model: Model, log: list[str]) -> Runner:
    together = draw_together(model)
    return runner(model, draw=lambda logits, jobs: Late(together(logits, jobs), log))


def test_launching_ahead_changes_nothing(model: Model) -> None:
    want = Desk(runner(model, draw=draw_together(model))).one_by_one(11)
    log: list[str] = []
    got = Desk(waiting(model, log)).behind(11, log)
    assert told(got) == told(want)
    assert all(output.error is None for one in want for output in one.outputs)


def test_tokens_nobody_needs_to_know_are_not_read_before_the_next_launch(model: Model) -> None:
    log: list[str] = []
    Desk(waiting(model, log), params=PARAMS[:2]).behind(3, log)
    assert log == ["launched", "launched", "read", "launched", "read", "launched", "read", "read"]


def test_a_penalty_needs_the_tokens(model: Model) -> None:
    log: list[str] = []
    Desk(waiting(model, log), params=PARAMS[2:3]).behind(2, log)
    assert log == ["launched", "read", "launched", "read", "launched", "read"]


def test_draws_on_the_device_are_those_of_the_processor(model: Model) -> None:
    want = Desk(runner(model)).one_by_one(6)
    got = Desk(runner(model, draw=draw_together(model))).one_by_one(6)
    tokens = [[output.tokens for output in one.outputs] for one in want]
    assert [[output.tokens for output in one.outputs] for one in got] == tokens


def test_padded_steps_give_the_same_bits(model: Model) -> None:
    """Buckets of 8, 4, 2 and 1 sequences take steps of 5, 4, 3, 2 and 1; logits are compared through log-probabilities
    of every row."""
    want = Desk(runner(model, draw=draw_together(model))).one_by_one(13)
    kv = KvPool(model.kv_layout(P), model.arch.num_layers, NUM_BLOCKS)
    record = Replayed()
    graphs = Graphs(model, kv, SIZES, capture=record)
    graphs.reserve()
    padded = Runner(model, kv, forward=graphs, draw=draw_together(model))
    log: list[str] = []
    got = Desk(padded).behind(13, log)
    assert told(got) == told(want)
    assert record.replayed == 13
    assert 1 < record.recorded <= 5, "largest, 8, 4, 2 and 1"


def test_only_block_zero_takes_what_nobody_owns(model: Model) -> None:
    kv = KvPool(model.kv_layout(P), model.arch.num_layers, NUM_BLOCKS)
    graphs = Graphs(model, kv, SIZES, capture=Replayed())
    desk = Desk(Runner(model, kv, forward=graphs, draw=draw_together(model)), lengths=(5, 3, 2))
    desk.one_by_one(4)
    used = {block for table in desk.tables.values() for block in table}
    for block in set(range(1, NUM_BLOCKS)) - used:
        assert bool(kv.arena[:, block].isnan().all())
    assert not bool(kv.arena[:, 0].isnan().all()), "rows that fill up went nowhere"


def test_buckets() -> None:
    sizes = Sizes(max_seqs=100, max_positions=50_000, width=8)
    assert sizes.bucket(1, 1) == Bucket(1, 1024)
    assert sizes.bucket(3, 1023) == Bucket(4, 1024)
    assert sizes.bucket(3, 1024) == Bucket(4, 2048), "the sequence that fills up has a position, too"
    assert sizes.bucket(97, 40_000) == Bucket(100, 50_100)
    assert sizes.bucket(100, 50_100) == sizes.largest
    assert sizes.bucket(101, 200) is None
    assert sizes.bucket(2, 50_003) is None, "a shared prefix counts once for each that shares it"


def test_steps_that_graphs_do_not_take_go_op_by_op(model: Model) -> None:
    kv = KvPool(model.kv_layout(P), model.arch.num_layers, NUM_BLOCKS)
    record = Replayed()
    graphs = Graphs(model, kv, Sizes(max_seqs=8, max_positions=8, width=12), capture=record)
    got = Desk(Runner(model, kv, forward=graphs, draw=draw_together(model))).one_by_one(5)
    assert record.replayed == 0
    assert told(got) == told(Desk(runner(model, draw=draw_together(model))).one_by_one(5))


def test_more_draws_than_there_are_sequences(model: Model) -> None:
    """Each prompt draws three choices, more in all than a graph's memory of tokens holds: one step goes op by op."""
    want = Desk(runner(model, draw=draw_together(model)), params=PARAMS[:2], samples=3).one_by_one(5)
    kv = KvPool(model.kv_layout(P), model.arch.num_layers, NUM_BLOCKS)
    record = Replayed()
    padded = Runner(model, kv, forward=Graphs(model, kv, SIZES, capture=record), draw=draw_together(model))
    got = Desk(padded, params=PARAMS[:2], samples=3).behind(5, [])
    assert told(got) == told(want)
    assert record.replayed == 4


def test_why_not(model: Model) -> None:
    arch, cuda = model.arch, torch.device("cuda")
    assert why_not(arch, model.device, model.decisions) == "graphs are for cuda, not for cpu"
    assert (
        why_not(arch, cuda, model.decisions)
        == "the reference of paged_attention, linear reads from the device"
    )
    triton = [Decision(op, "triton", ()) for op in ("paged_attention", "linear")]
    assert why_not(arch, cuda, triton) is None
    stretched = replace(arch, rope=replace(arch.rope, kind="dynamic"))
    assert "dynamic RoPE" in str(why_not(stretched, cuda, triton))


def test_an_unread_token_is_marked(model: Model) -> None:
    desk = Desk(runner(model, draw=draw_together(model)), params=PARAMS[:1])
    (step, starts, _), *_ = desk.steps(0)
    pending = desk.runner.launch(step, starts)
    assert [part.held.tokens[-1] for part in pending.parts] == [UNKNOWN] * 5
    (first, *_) = pending.result().outputs
    assert pending.parts[0].held.tokens[-1] == first.tokens[0]
    assert isinstance(first.payload, Payload)
    assert pending.result() is pending.result()
