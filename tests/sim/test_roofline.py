"""The roofline as a time model is the planner's, slice by slice, and a pool is what a device has room for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from octavo.arch import known
from octavo.core.limits import Limits
from octavo.core.step import Slice, Step
from octavo.errors import ConfigError
from octavo.planner.efficiency import efficiency
from octavo.planner.formats import FORMATS
from octavo.planner.hardware import device
from octavo.planner.parallel import Parallel
from octavo.planner.roofline import floor_seconds, step_seconds
from octavo.planner.step_work import step_work
from octavo.sim.lengths import Poisson, Uniform
from octavo.sim.roofline import Rank, Sliced, Summed, pool_limits, roofline
from octavo.sim.timing import work_of
from octavo.sim.workload import Maker, Mix, Open
from octavo.sim.world import Deployment, simulate

CASES = {
    "llama-3.1-8b": (Summed, Parallel(), "bf16"),
    "llama-3.1-70b": (Summed, Parallel(tensor=4), "fp8"),
    "mixtral-8x7b": (Summed, Parallel(tensor=2), "bf16"),
    "gemma-3-27b": (Sliced, Parallel(), "bf16"),
    "deepseek-v3": (Sliced, Parallel(tensor=8), "fp8"),
}


def rank(name: str) -> Rank:
    _, parallel, form = CASES[name]
    return Rank(shape=known.shape(name), device=device("h100-sxm"), weights=FORMATS[form], parallel=parallel)


def random_step(rng: random.Random) -> Step:
    slices = [Slice(seq, 0, rng.randrange(0, 9000), 1, samples=1) for seq in range(rng.randrange(0, 9))]
    for seq in range(rng.randrange(not slices, 3)):
        start = rng.choice([0, 0, rng.randrange(0, 5000)])
        slices.append(Slice(100 + seq, 0, start, rng.randrange(2, 700), samples=rng.randrange(2)))
    return Step(0, tuple(slices))


@pytest.mark.parametrize("name", CASES)
def test_seconds_are_those_of_the_planner(name: str) -> None:
    kind, parallel, form = CASES[name]
    one, rng = rank(name), random.Random(name)
    model = roofline(one).model
    assert isinstance(model, kind)
    link = one.device.node() if parallel.tensor > 1 else None
    for _ in range(40):
        step = random_step(rng)
        work = step_work(
            one.shape,
            [(piece.start, piece.num_tokens, piece.samples) for piece in step.slices],
            weights=FORMATS[form],
            parallel=parallel,
        )
        wanted = step_seconds(work, one.device, efficiency("h100-sxm", form), precision=form, link=link)
        got = model.seconds(work_of(step, with_slices=model.needs_slices))
        assert got == pytest.approx(wanted, rel=1e-9)
        assert got > floor_seconds(work, one.device, precision=form, link=link)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-27b"])
def test_skipping_changes_nothing(name: str) -> None:
    limits = Limits(
        num_blocks=2000, block_tokens=16, max_num_seqs=32, max_num_batched_tokens=2048, max_model_len=4096
    )
    mix = Mix(prompt=Uniform(20, 900), output=Uniform(5, 150))
    deployment = Deployment(limits=limits, timing=roofline(rank(name)))
    fast, slow = (
        simulate(
            replace(deployment, is_exact=is_exact),
            Open(gaps=Poisson(8), maker=Maker(mix, 0), num_requests=30),
        )
        for is_exact in (False, True)
    )
    assert [one.last_ns for one in fast.served] == [one.last_ns for one in slow.served]
    assert fast.tallies[0].gaps == slow.tallies[0].gaps


def test_a_pool_is_what_is_left() -> None:
    limits = Limits(
        num_blocks=2, block_tokens=16, max_num_seqs=1024, max_num_batched_tokens=8192, max_model_len=131072
    )
    found = pool_limits(rank("llama-3.1-8b"), limits)
    tokens = (found.num_blocks - 1) * 16
    assert 0.9 < tokens / 476_016 < 1.0, (
        "vLLM reported that and samples 1024 rows less often: llm-d planner, #205"
    )
    few = pool_limits(rank("llama-3.1-8b"), replace(limits, max_num_seqs=2, max_model_len=1000))
    assert few.num_blocks == 2 * 63 + 1, "no more than can be used"


def test_a_model_that_does_not_fit_is_named() -> None:
    limits = Limits(
        num_blocks=2, block_tokens=16, max_num_seqs=8, max_num_batched_tokens=2048, max_model_len=8192
    )
    alone = replace(rank("llama-3.1-70b"), parallel=Parallel(), weights=FORMATS["bf16"])
    with pytest.raises(ConfigError, match="of weights leave 0 tokens of KV on 1 x NVIDIA H100"):
        pool_limits(alone, limits)
