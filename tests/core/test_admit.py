"""Each admission rule by itself: what it refuses, and in which words."""

from __future__ import annotations

import pytest

from octavo.core.admit import FreeBlocks, PrefixUnderWay, Seats, TokenBudget
from octavo.core.draft import Draft
from octavo.core.scheduler import Scheduler
from octavo.core.step import Output, StepResult
from tests.core.requests import request
from tests.core.world import limits


def waiting(prompt_length: int = 8, **changes):
    """A scheduler with one waiting sequence, and an empty draft."""
    scheduler = Scheduler(limits(**changes))
    scheduler.submit(request("a", range(prompt_length)), 0.0)
    return scheduler, scheduler.sequences[0], Draft(scheduler.cache, 16)


def test_token_budget_wants_one_token_that_is_not_promised():
    _, sequence, draft = waiting()
    assert TokenBudget().allows(sequence, draft) is None
    draft.num_tokens, draft.promised_tokens = 10, 5
    assert TokenBudget().allows(sequence, draft) is None
    draft.promised_tokens = 6
    assert TokenBudget().allows(sequence, draft) == "the step's token budget is used up"


def test_seats_count_every_choice_to_come():
    scheduler, _, draft = waiting()
    scheduler.submit(request("b", [1], n=3), 0.0)
    rule, second = Seats(scheduler.roster), scheduler.sequences[1]
    for taken, reason in ((1, None), (2, "all seats are taken")):
        scheduler.roster.num_seats = taken
        assert rule.allows(second, draft) == reason


@pytest.mark.parametrize(("reserved", "reason"), [(29, None), (30, "not enough free blocks")])
def test_free_blocks_wants_room_for_all_known_tokens_and_one_more(reserved, reason):
    """8 tokens and one more take 3 of the 32 blocks."""
    scheduler, sequence, draft = waiting()
    draft.reserve(7, reserved)
    assert FreeBlocks(scheduler.tables).allows(sequence, draft) == reason
    draft.withdraw(7)
    assert FreeBlocks(scheduler.tables).allows(sequence, draft) is None


def test_free_blocks_refuses_everybody_while_a_running_sequence_is_short():
    scheduler, sequence, draft = waiting()
    draft.is_short = True
    assert FreeBlocks(scheduler.tables).allows(sequence, draft) == "running sequences wait for blocks"


def test_free_blocks_counts_idle_hits_as_taken():
    """Taking over idle blocks leaves that many fewer to take: nothing is saved by a hit that nobody else uses."""
    scheduler, sequence, draft = waiting(num_blocks=5, max_model_len=16)
    step = scheduler.plan(0.0)
    scheduler.commit(step, StepResult(0, (Output(sequence.seq_id, 0, (5,)),)), 0.0)
    scheduler.cancel("a", 0.0)
    assert len(scheduler.cache.pool.idle) == 2
    scheduler.submit(request("b", range(8), max_tokens=1), 0.0)
    second, rule = scheduler.sequences[1], FreeBlocks(scheduler.tables)
    assert scheduler.tables.needed_with(second, draft.hit(second)) == 3
    draft.reserve(7, 1)
    assert rule.allows(second, draft) is None
    draft.reserve(8, 1)
    assert rule.allows(second, draft) == "not enough free blocks"


def test_prefix_under_way_looks_once_and_then_only_at_the_key_it_waits_for():
    scheduler, _, draft = waiting()
    scheduler.plan(0.0)
    scheduler.submit(request("b", [*range(8), 1]), 0.0)
    second, rule = scheduler.sequences[1], PrefixUnderWay(scheduler.cache, 4)
    assert rule.lets_others_pass
    assert rule.allows(second, draft) == "another sequence is computing its prefix right now"
    assert second.awaits_key == second.keys[0]
    scheduler.cache.computing.clear()
    draft.forget_hit()
    assert rule.allows(second, draft) is None
    assert second.awaits_key is None
