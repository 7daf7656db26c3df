"""Clients that wait take turns: who has been served least is next, and nobody is left far behind.

Service is counted here from the events alone: 1 for a prompt token, 2 for an output token.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from octavo.core.scheduler import HAS_ITS_SEATS
from octavo.core.step import Token
from tests.core.requests import request
from tests.core.world import World, limits


def ask(client: str, number: int, *, prompt: int = 4, weight: float = 1.0, **params):
    """A request whose prompt shares no block with any other."""
    stem = [1000 + 50 * number + ord(client[0]) * 100_000 + n for n in range(prompt)]
    return replace(request(f"{client}{number}", stem, **params), client=client, cost_weight=weight)


def order_of_beginning(world: World, num_plans: int = 200) -> list[str]:
    """Names of requests in the order in which they got memory."""
    begun: list[str] = []
    for _ in range(num_plans):
        step = world.plan()
        if step is None:
            break
        for piece in step.slices:
            name = world.scheduler.sequences[piece.seq_id].request.request_id
            if name not in begun:
                begun.append(name)
        world.land()
    return begun


def test_a_flood_does_not_keep_another_client_waiting():
    world = World(limits(max_num_seqs=1))
    for number in range(6):
        world.submit(ask("a", number))
    for number in range(3):
        world.submit(ask("b", number))
    assert order_of_beginning(world) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "a4", "a5"]


def test_one_client_is_served_in_order_of_arrival():
    world = World(limits(max_num_seqs=1))
    for number in (3, 1, 2):
        world.submit(ask("a", number, prompt=2 + number))
    assert order_of_beginning(world) == ["a3", "a1", "a2"]


def test_who_asks_for_more_is_served_less_often():
    world = World(limits(max_num_seqs=1))
    for number in range(4):
        world.submit(ask("a", number, prompt=4, max_tokens=7))  # 18
        world.submit(ask("b", number, prompt=2, max_tokens=2))  # 6
    assert order_of_beginning(world) == ["a0", "b0", "b1", "b2", "a1", "b3", "a2", "a3"]


def test_a_weight_makes_tokens_count_less():
    world = World(limits(max_num_seqs=1))
    for number in range(4):
        world.submit(ask("a", number, weight=0.4))
        world.submit(ask("b", number))
    begun = order_of_beginning(world)
    assert begun[:6] == ["a0", "b0", "a1", "a2", "b1", "a3"]


def test_better_priority_goes_before_any_turn():
    world = World(limits(max_num_seqs=1))
    for number in range(2):
        world.submit(ask("a", number))
    world.submit(replace(ask("b", 0), priority=1))
    world.submit(replace(ask("a", 7), priority=-1))
    assert order_of_beginning(world) == ["a7", "a0", "a1", "b0"]


def test_service_cannot_be_saved_up():
    world = World(limits(max_num_seqs=1))
    for number in range(20):
        world.submit(ask("a", number))
    for _ in range(60):
        world.plan()
        world.land()
    for number in range(6):
        world.submit(ask("b", number))
    begun = order_of_beginning(world)
    first = begun.index("b0")
    assert Counter(name[0] for name in begun[first : first + 6]) == {"a": 3, "b": 3}


def test_what_the_cache_saves_is_given_back():
    world = World(limits(num_blocks=65, max_num_seqs=1))
    shared = list(range(16))
    world.submit(replace(request("warm", shared, max_tokens=1), client="a"))
    world.drain()
    turns = world.scheduler.roster.turns
    before = turns.clients["a"].served
    world.submit(replace(request("again", [*shared, 99], max_tokens=1), client="a"))
    world.plan()
    assert turns.clients["a"].served - before == pytest.approx(17 - 0.9 * 16)


def test_a_request_that_ends_in_line_leaves_nothing():
    world = World(limits(max_num_seqs=1))
    for number in range(3):
        world.submit(ask("a", number))
        world.submit(ask("b", number, n=1))
    world.plan()
    world.cancel("a2")
    world.cancel("b0")
    world.land()
    world.drain()
    assert not world.scheduler.roster.turns.num_sequences
    assert world.scheduler.roster.turns.best_priority is None


@pytest.mark.parametrize("seed", range(20))
def test_the_gap_between_two_backlogged_clients_is_bounded(seed):
    """Theorem 4.4 of the paper: at most 2 max(w_in longest input, w_out tokens that fit the batch)."""
    rng = random.Random(seed)
    world = World(limits(num_blocks=33, max_num_seqs=rng.choice([1, 2, 4])))
    shapes = {
        "a": (rng.randrange(1, 12), rng.randrange(1, 9)),
        "b": (rng.randrange(1, 12), rng.randrange(1, 9)),
    }
    served: dict[str, float] = defaultdict(float)
    begun: set[str] = set()
    submitted: Counter[str] = Counter()
    bound = 2 * max(1.0 * 12, 2.0 * 32 * world.limits.block_tokens)
    per_request = 12 + 2 * 9
    tight = 2 * world.limits.max_num_seqs * per_request + per_request
    for _ in range(300):
        for client, (prompt, output) in shapes.items():
            while submitted[client] - len({name for name in begun if name[0] == client}) < 5:
                world.submit(ask(client, submitted[client], prompt=prompt, max_tokens=output))
                submitted[client] += 1
        step = world.plan()
        for piece in step.slices:
            name = world.scheduler.sequences[piece.seq_id].request.request_id
            if name not in begun:
                begun.add(name)
                served[name[0]] += shapes[name[0]][0]
        for event in world.land():
            if isinstance(event, Token):
                served[event.request_id[0]] += 2
        assert abs(served["a"] - served["b"]) <= min(bound, tight)
    assert min(served.values()) > 10 * per_request


# Seats, and long prompts


def seats_of(world: World) -> Counter[str]:
    return Counter(sequence.request.client for sequence in world.scheduler.roster.resident)


def test_a_client_does_not_hold_every_seat_where_there_are_others():
    world = World(limits(num_blocks=200, max_num_seqs=16))
    world.submit(ask("b", 99))
    world.drain()
    for number in range(30):
        world.submit(ask("a", number, max_tokens=40))
    for _ in range(12):
        world.turn()
    assert seats_of(world) == {"a": 8}, "half, while the other has asked lately"
    last = world.sequence("a29")
    assert world.scheduler.why_waiting(last.seq_id).because == HAS_ITS_SEATS
    world.now_s = 100.0
    for _ in range(12):
        world.turn()
    assert seats_of(world) == {"a": 14}, "all but an eighth, when it has not"
    world.submit(ask("b", 0, max_tokens=3))
    world.turn()
    assert seats_of(world)["b"] == 1, "it begins at once"
    world.drain()


def test_a_client_that_is_alone_has_every_seat():
    world = World(limits(num_blocks=200, max_num_seqs=16))
    for number in range(30):
        world.submit(ask("a", number, max_tokens=40))
    for _ in range(12):
        world.turn()
    assert seats_of(world) == {"a": 16}


def test_requests_with_many_choices_begin_though_they_take_more_than_is_left():
    world = World(limits(num_blocks=200, max_num_seqs=16))
    world.submit(ask("b", 99))
    world.drain()
    world.submit(ask("a", 0, n=16, max_tokens=4))
    world.submit(ask("a", 1, n=16, max_tokens=4))
    world.drain()
    assert world.output("a1")


def a_reads_a_long_prompt() -> World:
    """Steps of 16 tokens; `b` has asked before."""
    world = World(limits(num_blocks=200, max_num_batched_tokens=16, max_chunk_tokens=16, max_model_len=256))
    world.submit(ask("b", 99, prompt=1))
    world.drain()
    world.submit(ask("a", 0, prompt=48))
    world.turn()
    return world


def test_a_short_prompt_does_not_wait_for_the_rest_of_anothers_long_one():
    world = a_reads_a_long_prompt()
    world.submit(ask("b", 0, prompt=4))
    step = world.plan()
    tokens = {
        world.scheduler.sequences[piece.seq_id].request.client: piece.num_tokens for piece in step.slices
    }
    assert tokens == {"a": 2, "b": 4}, "nor is its step made long by it"
    world.land()
    world.drain()


def test_going_early_leaves_a_token_to_the_others():
    world = a_reads_a_long_prompt()
    world.submit(ask("b", 0, prompt=30))
    step = world.plan()
    assert sorted(piece.num_tokens for piece in step.slices) == [1, 15]
    world.land()
    world.drain()


def test_running_prefills_of_several_clients_share_a_step():
    world = a_reads_a_long_prompt()
    world.submit(ask("b", 0, prompt=30))
    world.turn()
    equally_served(world)
    assert [piece.num_tokens for piece in world.plan().slices] == [8, 8]
    world.land()
    world.drain()


@pytest.mark.parametrize(("num_decodes", "tokens"), [(1, 8), (3, 8), (6, 10)])
def test_a_step_in_which_somebody_decodes_is_short(num_decodes, tokens):
    world = World(
        limits(
            num_blocks=400,
            max_num_seqs=8,
            max_num_batched_tokens=32,
            max_num_mixed_tokens=8,
            max_chunk_tokens=None,
            max_model_len=256,
        )
    )
    world.submit(ask("a", 99, prompt=60))
    assert world.plan().num_tokens == 32, "nobody waits for it"
    world.land()
    world.drain()
    for number in range(num_decodes):
        world.submit(ask("a", number, prompt=1, max_tokens=30))
    world.turn()
    world.submit(ask("a", 50, prompt=60))
    assert world.plan().num_tokens == tokens
    world.land()
    world.drain()


def test_who_has_been_served_more_goes_early_with_a_small_piece():
    world = World(limits(num_blocks=200, max_num_batched_tokens=16, max_chunk_tokens=16, max_model_len=256))
    world.submit(ask("b", 99, prompt=40, max_tokens=9))
    world.drain()
    world.submit(ask("a", 0, prompt=48))
    world.turn()
    turns = world.scheduler.roster.turns
    turns.charge(ask("b", 1), 1000.0)
    world.submit(ask("b", 0, prompt=40))
    assert turns.clients["b"].served > turns.clients["a"].served
    assert [piece.num_tokens for piece in world.plan().slices] == [2, 14]
    world.land()
    world.drain()


def test_seats_are_not_kept_for_those_of_worse_priority():
    world = World(limits(num_blocks=200, max_num_seqs=16))
    world.submit(replace(ask("b", 99), priority=9))
    world.drain()
    for number in range(30):
        world.submit(ask("a", number, max_tokens=40))
    for _ in range(12):
        world.turn()
    assert seats_of(world) == {"a": 16}
    for number in range(30):
        world.submit(replace(ask("b", number, max_tokens=40), priority=9))
    world.drain()
    assert world.output("b29")


def test_those_who_decode_at_a_worse_priority_do_not_shorten_the_step():
    more = {"max_num_batched_tokens": 32, "max_num_mixed_tokens": 8, "max_chunk_tokens": None}
    world = World(limits(num_blocks=400, max_num_seqs=8, max_model_len=256, **more))
    world.submit(replace(ask("a/batch", 0, prompt=1, max_tokens=50), priority=9))
    world.turn()
    world.submit(replace(ask("a", 1, prompt=60), priority=0))
    assert world.plan().num_tokens == 32
    world.land()
    world.drain()


def test_prompts_in_the_background_go_on_in_small_pieces_while_better_ones_come():
    more = {"max_num_batched_tokens": 32, "max_num_mixed_tokens": 16, "max_chunk_tokens": None}
    world = World(limits(num_blocks=400, max_num_seqs=8, max_model_len=256, **more))
    world.submit(replace(ask("a/batch", 0, prompt=60), priority=9))
    assert world.plan().num_tokens == 32
    world.land()
    world.drain()
    world.submit(ask("a", 0, prompt=8))
    world.drain()
    world.submit(replace(ask("a/batch", 1, prompt=60), priority=9))
    assert world.plan().num_tokens == 2
    world.land()
    world.now_s = 100.0
    assert world.plan().num_tokens == 32, "nobody has come lately"
    world.land()
    world.drain()


def test_a_heavy_users_prompts_go_on_in_small_pieces_while_light_ones_ask():
    more = {"max_num_batched_tokens": 32, "max_num_mixed_tokens": 16, "max_chunk_tokens": None}
    world = World(limits(num_blocks=400, max_num_seqs=8, max_model_len=256, **more))
    world.submit(ask("b", 0, prompt=4))
    world.drain()
    for number in range(3):
        world.submit(ask("a", number, prompt=60))
        world.drain()
    world.submit(ask("a", 9, prompt=60))
    assert world.plan().num_tokens == 2
    world.land()
    world.now_s = 100.0
    assert world.plan().num_tokens == 32, "the light user has not asked lately"
    world.land()
    world.drain()


def test_what_a_short_rest_leaves_is_the_others():
    world = a_reads_a_long_prompt()
    world.submit(ask("b", 0, prompt=18))
    world.turn()
    equally_served(world)
    assert [piece.num_tokens for piece in world.plan().slices] == [3, 13]
    world.land()
    world.drain()


def equally_served(world: World) -> None:
    """Neither client has had more lately."""
    clients = world.scheduler.roster.turns.clients
    clients["b"].lately, clients["b"].charged_s = clients["a"].lately, clients["a"].charged_s


def shared(step) -> dict[int, int]:
    return {piece.seq_id: piece.num_tokens for piece in step.slices}


def test_all_prompts_that_give_way_have_one_part_together():
    more = {"max_num_batched_tokens": 64, "max_num_mixed_tokens": 32, "max_chunk_tokens": None}
    world = World(limits(num_blocks=400, max_num_seqs=8, max_model_len=256, **more))
    world.submit(ask("b", 0, prompt=1, max_tokens=50))
    world.turn()
    for number in range(3):
        world.submit(ask("a", number, prompt=60))
    for _ in range(6):
        world.turn()
    step = world.plan()
    assert sum(piece.num_tokens for piece in step.slices[1:]) <= 32 // 8 + 2, "a token each where one begins"
    world.land()
    world.drain()


def test_what_steps_cost_says_how_long_prompts_of_heavy_users_may_make_them():
    more = {"max_num_batched_tokens": 64, "max_num_mixed_tokens": 32, "max_chunk_tokens": None}
    world = World(limits(num_blocks=400, max_num_seqs=8, max_model_len=256, **more))
    world.submit(ask("b", 0, prompt=1, max_tokens=60))
    world.turn()
    world.submit(ask("a", 0, prompt=100))
    world.turn()
    for fixed, wanted in ((21, 11), (3, 2), (1, 1)):
        world.scheduler.tell_costs(fixed)
        assert shared(world.plan()) == {0: 1, 1: wanted}, "half as long again as with one that decodes"
        world.land()
    world.drain()


def test_of_what_decodes_at_a_worse_priority_only_so_many_go_on_as_others_hardly_feel():
    world = World(limits(num_blocks=400, max_num_seqs=16, max_num_batched_tokens=64, max_model_len=256))
    for number in range(8):
        world.submit(replace(ask("a/batch", number, prompt=1, max_tokens=40), priority=9))
    world.turn(ahead=False)
    world.submit(ask("a", 0, prompt=1, max_tokens=4))
    world.turn(ahead=False)
    assert shared(world.plan()) == dict.fromkeys(range(9), 1), "nothing is known of what steps cost"
    world.land()
    world.scheduler.tell_costs(29)
    assert shared(world.plan()) == dict.fromkeys((0, 1, 2, 8), 1), "a tenth of 29 and one"
    world.land()
    while world.scheduler.live("a0"):
        world.turn(ahead=False)
    assert shared(world.plan()) == dict.fromkeys(range(8), 1), "all of them when nobody else is there"
    world.land()
    world.drain()
    assert world.num_verified == 9


def test_a_client_gives_way_to_its_own_better_requests():
    more = {"max_num_batched_tokens": 64, "max_num_mixed_tokens": 32, "max_chunk_tokens": None}
    world = World(limits(num_blocks=400, max_num_seqs=8, max_model_len=256, **more))
    world.submit(ask("a", 0, prompt=1, max_tokens=50))
    world.turn()
    world.submit(replace(ask("a", 1, prompt=60), priority=9))
    world.turn()
    assert shared(world.plan()) == {0: 1, 1: 4}
    world.land()
    world.drain()


def test_nothing_of_a_step_is_kept_for_those_who_give_way():
    world = a_reads_a_long_prompt()
    world.scheduler.roster.turns.clients["a"].lately = 1000.0
    world.submit(ask("b", 0, prompt=60))
    world.turn()
    assert [piece.num_tokens for piece in world.plan().slices] == [16]
    world.land()
    world.drain()


def test_a_prompt_that_one_step_holds_does_not_give_way():
    """However much its client has had: it is not what makes others wait."""
    world = a_reads_a_long_prompt()
    world.scheduler.roster.turns.charge(ask("b", 1), 1000.0)
    world.submit(ask("b", 0, prompt=12))
    world.turn()
    assert world.plan().slices[0].num_tokens == 4, "8 were computed in the turn before"
    world.land()
    world.drain()
