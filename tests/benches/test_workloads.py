"""W1 to W5 have the lengths they are defined by, fresh tokens each repeat, and fit a model's window."""

from __future__ import annotations

import pytest

from benches.workloads import SHAPES, shape, shapes
from octavo.errors import ConfigError


def test_the_definitions() -> None:
    assert shape("W1").sizes == ((128, 128),)
    assert shape("W2").sizes == ((2048, 1),)
    mixed = shape("W3").sizes
    assert len(mixed) == 32
    assert all(64 <= prompt <= 512 and 32 <= output <= 128 for prompt, output in mixed)
    assert len(set(mixed)) > 20
    shared = shape("W4")
    assert shared.sizes == ((1056, 32),) * 32
    assert shared.shared_tokens == 1024
    assert shape("W5").sizes == ((2048, 64),) * 8
    with pytest.raises(ConfigError, match="no workload 'W9'"):
        shape("W9")


@pytest.mark.parametrize("name", list(SHAPES))
def test_jobs_have_the_lengths_and_stay_in_the_vocabulary(name: str) -> None:
    made = shape(name)
    jobs = made.jobs(17, 0)
    assert [(len(job.prompt), job.num_output_tokens) for job in jobs] == list(made.sizes)
    assert {token for job in jobs for token in job.prompt} <= set(range(17))
    assert jobs == made.jobs(17, 0)
    assert made.num_prompt_tokens == sum(len(job.prompt) for job in jobs)
    assert made.num_output_tokens == sum(job.num_output_tokens for job in jobs)


@pytest.mark.parametrize("name", list(SHAPES))
def test_repeats_share_no_prompt(name: str) -> None:
    """A vocabulary of 4096 makes 16 equal leading tokens, one block, impossible in practice."""
    starts = [{job.prompt[:16] for job in shape(name).jobs(4096, repeat)} for repeat in (-1, 0, 1, 2)]
    assert len(set.union(*starts)) == sum(map(len, starts))


def test_only_w4_shares_a_prefix() -> None:
    jobs = shape("W4").jobs(4096, 0)
    assert len({job.prompt[:1024] for job in jobs}) == 1
    assert len({job.prompt[1024:] for job in jobs}) == 32
    assert len({job.prompt[:16] for job in shape("W5").jobs(4096, 0)}) == 8


def test_blocks_count_the_shared_prefix_once() -> None:
    assert shape("W1").num_blocks(16) == 16
    assert shape("W2").num_blocks(16) == 129
    assert shape("W4").num_blocks(16) == 64 + 32 * 4


def test_prompts_give_way_to_outputs_in_a_small_window() -> None:
    assert shape("W1", 2048) == shape("W1")
    two, five = shapes(["W2", "W5"], 2048)
    assert two.sizes == ((2047, 1),)
    assert five.sizes == ((1984, 64),) * 8
    assert "8 of 8 prompts shortened" in five.notes[0]
    assert "2048 to 1984 tokens" in five.notes[0]
    assert len(five.jobs(50, 0)[0].prompt) == 1984
    three = shape("W3", 400)
    assert all(prompt + output <= 400 for prompt, output in three.sizes)
    assert [output for _, output in three.sizes] == [output for _, output in shape("W3").sizes]


@pytest.mark.parametrize(("name", "window"), [("W1", 128), ("W4", 1056), ("W5", 10)])
def test_a_window_without_room_is_refused(name: str, window: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} does not fit a window of {window}"):
        shape(name, window)


@pytest.mark.parametrize("name", list(SHAPES))
def test_warming_up_is_a_small_part_of_the_same(name: str) -> None:
    full, part = shape(name), shape(name).warmup()
    assert len(part.sizes) <= 4
    assert part.num_output_tokens <= 16
    assert [prompt for prompt, _ in part.sizes] == [prompt for prompt, _ in full.sizes[:4]]
