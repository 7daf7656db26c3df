"""Everything at any moment: a Hypothesis machine over the scheduler, and a short run of the random driver.

The world behind both asserts the invariants, the rules of planning and the tag of every slot that is read.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from octavo.core.scheduler import Limits
from tests.core.requests import request
from tests.core.soak import soak
from tests.core.world import World

STEMS = [(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 2, 2)]
NAMESPACES = st.sampled_from([b"", b"tenant"])

PROMPT = {
    "stem": st.integers(0, 1),
    "length": st.integers(0, 14),
    "tail": st.lists(st.integers(0, 1), min_size=1, max_size=2),
    "namespace": NAMESPACES,
    "priority": st.sampled_from([0, 0, 1]),
    "max_tokens": st.integers(1, 6),
}


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        block_tokens=st.sampled_from([1, 2, 4]),
        slack=st.sampled_from([0, 2, 8]),
        seats=st.integers(1, 4),
        budget=st.sampled_from([0, 3, 20]),
        window=st.sampled_from([None, None, 3, 6]),
        caching=st.sampled_from([True, True, True, False]),
        chunk=st.sampled_from([None, 2, 5]),
        pinned=st.sampled_from([0, 3]),
    )
    def begin(self, block_tokens, slack, seats, budget, window, caching, chunk, pinned):
        longest = 18
        self.world = World(
            Limits(
                num_blocks=1 + -(-longest // block_tokens) + slack,
                block_tokens=block_tokens,
                max_num_seqs=seats,
                max_num_batched_tokens=seats + budget,
                max_model_len=longest,
                window_tokens=window,
                enable_prefix_caching=caching,
                max_chunk_tokens=chunk,
                max_pinned_blocks=pinned,
            )
        )
        self.number = 0

    def _submit(self, stem, length, tail, **more):
        self.number += 1
        prompt = (*STEMS[stem][:length], *tail)
        self.world.submit(request(f"r{self.number}", prompt, ends={5}, **more))

    @rule(**PROMPT)
    def submit(self, stem, length, tail, **more):
        self._submit(stem, length, tail, **more)

    @rule(n=st.integers(1, 4), **PROMPT)
    def submit_choices(self, n, stem, length, tail, **more):
        self._submit(stem, length, tail, n=min(n, self.world.limits.max_num_seqs), **more)

    @rule(width=st.integers(1, 3), **PROMPT)
    def submit_beams(self, width, stem, length, tail, **more):
        self._submit(stem, length, tail, beam_width=min(width, self.world.limits.max_num_seqs), **more)

    @rule(**PROMPT)
    def submit_for_prompt_logprobs(self, stem, length, tail, **more):
        self._submit(stem, length, tail, prompt_logprobs=0, **more)

    @rule()
    def plan(self):
        self.world.plan()

    @precondition(lambda self: self.world.planned)
    @rule()
    def land(self):
        self.world.land()

    @rule(turns=st.integers(1, 4), ahead=st.booleans())
    def turn(self, turns, ahead):
        for _ in range(turns):
            self.world.turn(ahead=ahead)

    @rule(fixed_tokens=st.integers(1, 40))
    def tell_costs(self, fixed_tokens):
        self.world.tell_costs(fixed_tokens)

    @rule()
    def advance(self):
        self.world.advance_ready()

    @precondition(lambda self: self.world.scheduler.sequences)
    @rule(choice=st.integers(0, 100), how=st.sampled_from(["cancel", "finish", "error"]))
    def break_off(self, choice, how):
        live = list(self.world.scheduler.sequences.values())
        sequence = live[choice % len(live)]
        if how == "cancel":
            self.world.cancel(sequence.request.request_id)
        elif how == "finish":
            self.world.finish(sequence.seq_id)
        else:
            self.world.land(errors=frozenset({sequence.seq_id}))

    @rule(stem=st.integers(0, 1), length=st.integers(1, 14), namespace=NAMESPACES)
    def pin(self, stem, length, namespace):
        self.world.pin(STEMS[stem][:length], namespace)

    @precondition(lambda self: self.world.scheduler.cache.pins)
    @rule(choice=st.integers(0, 100))
    def unpin(self, choice):
        pins = list(self.world.scheduler.cache.pins)
        namespace, tokens = pins[choice % len(pins)]
        self.world.unpin(tokens, namespace)

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()
            for namespace, tokens in list(self.world.scheduler.cache.pins):
                self.world.unpin(tokens, namespace)
            assert self.world.pool.num_available == self.world.limits.num_blocks - 1, "a block has leaked"


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_ten_thousand_random_operations():
    totals = soak(10_000, seed=11, operations_per_world=250)
    assert totals["operations"] >= 10_000
    for what in ("sequences_verified", "copies", "hits", "evictions", "preemptions"):
        assert totals[what] > 100, what
