"""The two tests everything stands on: company changes nothing, and the same calls make the same decisions."""

from __future__ import annotations

import random

import pytest

from octavo.core.scheduler import Limits, Scheduler
from octavo.core.step import Step
from tests.core.random_driver import RandomDriver
from tests.core.requests import request
from tests.core.world import World

TIGHT = {
    "num_blocks": 14,
    "block_tokens": 4,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 12,
    "max_model_len": 48,
    "max_chunk_tokens": 7,
}


def busy_world(seed: int, changes: dict, ahead: bool) -> World:
    """Forty requests of all kinds over common stems, arriving while others run; run to the end."""
    rng = random.Random(seed)
    world = World(Limits(**(TIGHT | changes)))
    stem = [rng.randrange(3) for _ in range(30)]
    kinds = [{}, {}, {}, {"n": 3}, {"beam_width": 2}, {"prompt_logprobs": 0}]
    for number in range(40):
        prompt = [*stem[: rng.randrange(30)], *(rng.randrange(3) for _ in range(rng.randrange(1, 6)))]
        world.submit(
            request(
                f"r{number}",
                prompt,
                priority=rng.choice([0, 0, 1]),
                namespace=rng.choice([b"", b"", b"x"]),
                ends={5},
                max_tokens=rng.randrange(1, 16),
                **rng.choice(kinds),
            )
        )
        for _ in range(rng.randrange(3)):
            world.turn(ahead=ahead)
    world.drain(ahead=ahead)
    return world


@pytest.mark.parametrize("ahead", [False, True], ids=["step by step", "one step ahead"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"window_tokens": 9, "num_blocks": 8}, {"enable_prefix_caching": False}],
    ids=["full attention", "window", "no caching"],
)
def test_every_sequence_gives_the_tokens_it_gives_alone(changes, ahead):
    """Continuous batching, chunked prefill, prefix hits, preemption, forks, beams, priorities, tight memory.

    The world compares every finished sequence with a loop that runs it alone, runs `check` after every call, and
    the shadow executor asserts the tag of every slot that is read.
    """
    worlds = [busy_world(seed, changes, ahead) for seed in range(4)]
    assert sum(world.num_verified for world in worlds) >= 160
    counters = [world.scheduler.counters for world in worlds]
    assert sum(c.preemptions for c in counters) > 10, "memory was to be tight"
    assert sum(world.shadow.num_copies for world in worlds) > 50
    if worlds[0].limits.enable_prefix_caching:
        assert sum(c.hits for c in counters) > 30
        assert sum(c.evictions for c in counters) > 60


def replay(limits: Limits, calls: list[tuple]) -> list[Step]:
    """Make the recorded calls of a new scheduler; its steps."""
    scheduler, steps = Scheduler(limits), []
    for name, *arguments in calls:
        if name in ("pin", "unpin"):
            getattr(scheduler, name)(*arguments)
            continue
        step = getattr(scheduler, name)(*arguments, 0.0)
        if name == "plan" and step is not None:
            steps.append(step)
    return steps


@pytest.mark.parametrize("seed", range(12))
def test_a_recorded_run_makes_the_same_decisions_again(seed):
    driver = RandomDriver(1000 + seed)
    driver.play(250)
    world = driver.world
    assert len(world.steps) > 50
    assert replay(world.limits, world.calls) == world.steps


def test_two_runs_of_one_driver_are_equal_call_for_call():
    runs = [RandomDriver(77), RandomDriver(77)]
    for run in runs:
        run.play(300)
    assert runs[0].world.calls == runs[1].world.calls
    assert runs[0].world.events == runs[1].world.events
