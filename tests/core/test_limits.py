"""Limits: ranges, and the arithmetic of what always fits."""

from __future__ import annotations

import pytest

from octavo.errors import ConfigError
from tests.core.world import limits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 1}, "num_blocks must be at least 2, got 1"),
        ({"block_tokens": 0}, "block_tokens must be at least 1, got 0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"max_num_batched_tokens": 3}, r"max_num_batched_tokens must be at least max_num_seqs \(4\), got 3"),
        ({"max_model_len": 1}, "max_model_len must be at least 2, got 1"),
        ({"window_tokens": 0}, "window_tokens must be at least 1, got 0"),
        ({"max_chunk_tokens": 0}, "max_chunk_tokens must be at least 1, got 0"),
        ({"max_pinned_blocks": -1}, "max_pinned_blocks must be at least 0, got -1"),
    ],
)
def test_what_is_out_of_range_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        limits(**changes)


def test_a_chunk_is_bounded_by_the_step():
    assert limits().chunk_tokens == 16
    assert limits(max_chunk_tokens=5).chunk_tokens == 5
    assert limits(max_chunk_tokens=500).chunk_tokens == 16


@pytest.mark.parametrize(
    ("window", "tokens", "blocks"),
    [(None, 1, 1), (None, 4, 1), (None, 5, 2), (None, 64, 16), (1, 64, 2), (5, 64, 3), (6, 64, 4), (6, 7, 2)],
)
def test_the_least_one_sequence_needs(window, tokens, blocks):
    assert limits(window_tokens=window).min_blocks(tokens) == blocks


def test_pins_never_take_what_a_longest_request_needs():
    assert limits(max_pinned_blocks=99).pin_cap_blocks == 16  # 32 usable, 16 for 64 tokens
    assert limits(max_pinned_blocks=3).pin_cap_blocks == 3
    assert limits(max_pinned_blocks=99, num_blocks=10).pin_cap_blocks == 0
    assert limits(max_pinned_blocks=3).usable_blocks == 29


def test_span_counts_the_window_and_two_chunks_under_way():
    assert limits().span_blocks is None
    assert limits(window_tokens=6, max_chunk_tokens=4).span_blocks == 5  # ceil(13 / 4) + 1
    assert limits(window_tokens=6, max_chunk_tokens=4, num_blocks=5).span_blocks == 4
