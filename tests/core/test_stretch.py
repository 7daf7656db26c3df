"""Turns that are skipped leave behind exactly what played ones do."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Request, SamplingParams, Sequence
from octavo.core.step import Output, Step, StepResult
from octavo.core.stretch import measure, skip
from octavo.core.turns import TurnTaker


def drawn(tokens: list[int]) -> int:
    """The next token, from the last few: prompts that are equal go on alike, so that equal blocks come about."""
    return sum(tokens[-3:]) % 3


class Played(TurnTaker[None]):
    """A scheduler with a clock that is told."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits.max_num_batched_tokens)
        self.scheduler = Scheduler(limits)
        self.now_s = 0.0
        self.steps: list[Step] = []

    def _planned(self) -> Step | None:
        step = self.scheduler.plan(self.now_s)
        if step is not None:
            self.steps.append(step)
        return step

    def _launch(self, step: Step) -> None:
        pass

    def _committed(self, step: Step, result: StepResult) -> None:
        self.scheduler.commit(step, result, self.now_s)
        self.scheduler.check()

    def _is_wanted(self) -> bool:
        return not self.scheduler.idle

    def turn(self, ends_s: float) -> None:
        step = self.begin_turn()
        self.now_s = ends_s
        if step is not None:
            self.end_turn(self._result(step))

    def _result(self, step: Step) -> StepResult:
        outputs = []
        for piece in step.slices:
            sequence = self.scheduler.sequences.get(piece.seq_id)
            tokens = [] if sequence is None else sequence.tokens[: piece.end]
            outputs.append(Output(piece.seq_id, piece.epoch, (drawn(tokens),) * piece.samples))
        return StepResult(step.number, tuple(outputs))

    def skip(self, ends: list[float]) -> bool:
        """Skip so many turns if that may be done; False when the next must be played."""
        if self.awaited is None or len(self.awaited.slices) > self._long_tokens:
            return False
        stretch = measure(self.scheduler, self.awaited)
        if stretch is None or len(ends) > stretch.num_turns or not stretch.reaches(ends[-1]):
            return False
        self.awaited = skip(self.scheduler, self.awaited, stretch, ends, next_tokens).step
        self.now_s = ends[-1]
        self.scheduler.check()
        return True


def next_tokens(sequence: Sequence, count: int) -> list[int]:
    tokens = list(sequence.tokens)
    for _ in range(count):
        tokens.append(drawn(tokens))
    return tokens[len(tokens) - count :]


def state(scheduler: Scheduler) -> dict[str, object]:
    """Everything that a later decision can depend on."""
    pool, cache, turns = scheduler.cache.pool, scheduler.cache, scheduler.roster.turns
    names = [name for name in Sequence.__slots__ if name not in ("request", "node", "lineage")]
    return {
        "sequences": [
            {name: getattr(sequence, name) for name in names} | {"node": sequence.node and sequence.node.key}
            for sequence in scheduler.sequences.values()
        ],
        "references": list(pool.references),
        "generations": list(pool.generations),
        "scratch": list(pool.scratch),
        "idle": list(pool.idle),
        "deferred": list(pool.deferred.items()),
        "anchors": [
            (block, pool.anchor(block)) for block in range(pool.num_blocks) if pool.is_published(block)
        ],
        "ghosts": list(cache.ghosts.items()),
        "nodes": sorted((node.key, node.payload) for node in cache.tree.nodes()),
        "counters": cache.counters,
        "clients": {
            name: (one.served, one.lately, one.charged_s, one.num_seats)
            for name, one in turns.clients.items()
        },
        "flights": [(flight.step, flight.generations) for flight in scheduler.flights],
        "now_s": scheduler.roster.now_s,
    }


def compared(seed: int) -> int:
    """Two runs of one story, one of which skips what it can. Returns how many turns were skipped."""
    rng = random.Random(seed)
    size, longest = rng.choice([1, 2, 4]), rng.choice([24, 48])
    least = -(-longest // size)
    limits = Limits(
        num_blocks=1 + least + rng.choice([0, 2, least, 4 * least]),
        block_tokens=size,
        max_num_seqs=rng.choice([1, 2, 4]),
        max_num_batched_tokens=rng.choice([4, 16, 64]),
        max_model_len=longest,
        enable_prefix_caching=rng.random() < 0.8,
    )
    played, skipping = Played(limits), Played(limits)
    clients = rng.choice([[""], [""], ["", "other"]])
    stems = [tuple(rng.randrange(3) for _ in range(longest)) for _ in range(2)]
    now_s, number, num_skipped = 0.0, 0, 0
    while number < 12 or not played.scheduler.idle or played.awaited is not None:
        if number < 12 and rng.random() < 0.4:
            length = rng.randrange(1, longest - 8)
            prompt = (
                rng.choice(stems)[:length]
                if rng.random() < 0.7
                else tuple(rng.randrange(3) for _ in range(length))
            )
            request = Request(
                request_id=str(number),
                prompt=prompt,
                params=SamplingParams(max_tokens=rng.randrange(1, longest - length), ignore_eos=True),
                client=rng.choice(clients),
                priority=rng.choice([0, 0, 0, 1]),
                cost_weight=rng.choice([1.0, 0.3]),
            )
            number += 1
            for one in (played, skipping):
                one.scheduler.submit(request, now_s)
        if rng.random() < 0.05 and played.scheduler.sequences:
            gone = next(iter(played.scheduler.sequences.values())).request.request_id
            for one in (played, skipping):
                one.scheduler.cancel(gone, now_s)
        ends = [
            now_s + (turn + 1) * rng.choice([0.01, 0.01, 3.0]) for turn in range(rng.choice([1, 2, 5, 9]))
        ]
        ends.sort()
        is_skipped = skipping.skip(ends)
        num_skipped += is_skipped * len(ends)
        for end_s in ends if is_skipped else ends[:1]:
            played.turn(end_s)
            if not is_skipped:
                skipping.turn(end_s)
            now_s = end_s
        assert state(played.scheduler) == state(skipping.scheduler), seed
        assert played.awaited == skipping.awaited
    return num_skipped


@given(st.integers(0, 10**6))
@hypothesis_settings(max_examples=120, deadline=None)
def test_skipped_turns_leave_what_played_ones_leave(seed: int) -> None:
    compared(seed)


def test_the_stories_skip_a_good_deal() -> None:
    assert sum(compared(seed) for seed in range(40)) > 300


def steady(**changes: object) -> Played:
    """Two sequences of one block and a bit that decode, with nothing else to do."""
    values: dict = {
        "num_blocks": 40,
        "block_tokens": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "max_model_len": 60,
    }
    one = Played(Limits(**(values | changes)))
    for name in "ab":
        params = SamplingParams(max_tokens=40, ignore_eos=True)
        one.scheduler.submit(Request(request_id=name, prompt=(1, 2, 0, 1, ord(name)), params=params), 0.0)
    for turn in range(4):
        one.turn(0.1 * (turn + 1))
    return one


def stretch_of(one: Played):
    assert one.awaited is not None
    return measure(one.scheduler, one.awaited)


def test_a_stretch_ends_before_a_sequence_does() -> None:
    one = steady()
    shortest = min(s.max_total_tokens - len(s.tokens) for s in one.scheduler.sequences.values())
    assert stretch_of(one).num_turns == shortest - 1


def test_a_stretch_ends_before_blocks_do() -> None:
    one = steady(num_blocks=19)
    free = one.scheduler.cache.pool.num_available
    turns = stretch_of(one).num_turns
    lengths = [len(s.tokens) for s in one.scheduler.sequences.values()]

    def blocks(after: int) -> int:
        return sum(-(-(length + after) // 4) - -(-length // 4) for length in lengths)

    assert blocks(turns) <= free < blocks(turns + 1)


@pytest.mark.parametrize("window_tokens", [8])
def test_a_window_is_played(window_tokens: int) -> None:
    assert stretch_of(steady(window_tokens=window_tokens)) is None


def test_a_token_that_might_end_it_is_played() -> None:
    one = steady()
    sequence = next(iter(one.scheduler.sequences.values()))
    sequence.request = replace(sequence.request, params=SamplingParams(stop_token_ids=(9,), ignore_eos=True))
    assert stretch_of(one) is None


def test_who_can_begin_is_not_kept_waiting() -> None:
    one = steady()
    one.scheduler.submit(Request(request_id="c", prompt=(5, 5)), 1.0)
    assert stretch_of(one) is None


def test_who_waits_for_a_seat_does_not_hinder() -> None:
    one = steady(max_num_seqs=2)
    one.scheduler.submit(Request(request_id="c", prompt=(5, 5)), 1.0)
    stretch = stretch_of(one)
    assert stretch.blocked is not None
    assert stretch.blocked[1] == "all seats are taken"
