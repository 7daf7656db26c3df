"""Places for lines of batches: in turn, never too many, none while others wait, and one alone when asked."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from octavo.server.pace import FIRST, Pace, next_limit

sizes = st.integers(0, 300)


@given(limit=st.integers(1, 200), most=st.integers(1, 200), running=sizes, waiting=sizes, online=sizes)
def test_a_limit_stays_in_bounds_and_moves_the_right_way(limit, most, running, waiting, online):
    limit = min(limit, most)
    after = next_limit(limit, most, running=running, waiting=waiting, online=online)
    assert 1 <= after <= most
    if waiting:
        assert after <= limit
    else:
        assert after >= limit
        assert after == limit or running >= limit, "it grows only when every place is taken"


def test_it_grows_faster_alone_than_beside_others():
    assert next_limit(8, 64, running=8, waiting=0, online=0) == 16
    assert next_limit(8, 64, running=8, waiting=0, online=3) == 10
    assert next_limit(40, 64, running=40, waiting=10, online=0) == 30
    assert next_limit(40, 64, running=40, waiting=10, online=1) == 20


def test_places_are_given_in_turn_and_never_more_than_there_are():
    async def scene() -> None:
        pace = Pace(3, 3)
        order: list[int] = []
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            await pace.enter()
            order.append(number)
            most = max(most, pace.running)
            await asyncio.sleep(0)
            pace.leave()

        await asyncio.gather(*[one(number) for number in range(20)])
        assert order == list(range(20))
        assert (most, pace.running) == (3, 0)

    asyncio.run(scene())


def test_nothing_starts_while_others_wait_and_everything_after():
    async def scene() -> None:
        pace = Pace(64)
        pace.look(waiting=1, online=1)
        waiting = [asyncio.create_task(pace.enter()) for _ in range(FIRST)]
        await asyncio.sleep(0.01)
        assert (pace.running, pace.limit) == (0, FIRST // 2)
        pace.look(waiting=0, online=1)
        await asyncio.sleep(0)
        assert pace.running == FIRST // 2
        pace.look(waiting=0, online=0)
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert (pace.running, pace.limit) == (FIRST, FIRST)

    asyncio.run(scene())


def test_who_is_alone_is_alone():
    async def scene() -> None:
        pace = Pace(4, 4)
        alone_with: list[int] = []

        async def loner() -> None:
            await pace.enter()
            await asyncio.sleep(0)
            async with pace.alone():
                alone_with.append(pace.running)
                await asyncio.sleep(0.001)
                alone_with.append(pace.running)
            pace.leave()

        async def other() -> None:
            await pace.enter()
            await asyncio.sleep(0.001)
            pace.leave()

        await asyncio.wait_for(asyncio.gather(*[[loner, other][n % 2]() for n in range(20)]), 20)
        assert alone_with == [1] * 20
        assert pace.running == 0

    asyncio.run(scene())


@given(st.lists(st.tuples(st.sampled_from(["enter", "alone"]), st.integers(0, 5)), max_size=12))
def test_cancelled_waits_leave_every_place_free(asked):
    """Tasks are cancelled after some turns of the loop, wherever they are by then."""

    async def one(pace: Pace, kind: str) -> None:
        await pace.enter()
        try:
            if kind == "alone":
                async with pace.alone():
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(0)
        finally:
            pace.leave()

    async def scene() -> None:
        pace = Pace(2, 2)
        tasks = []
        for kind, turns in asked:
            tasks.append(asyncio.create_task(one(pace, kind)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns % 2:
                tasks[-1].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert pace.running == 0
        await asyncio.wait_for(pace.enter(), 5)

    asyncio.run(scene())
