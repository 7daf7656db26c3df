"""Memory of a fixed size that keeps the latest records whole, whenever its writer stops."""

from __future__ import annotations

import random
import struct

import pytest

from octavo.errors import ConfigError
from octavo.obs.ring import LEAST_BYTES, NUM_SEGMENTS, Ring, records


def test_what_fits_is_all_there_behind_one_opening():
    memory = bytearray(LEAST_BYTES)
    ring = Ring(memory, b"opening", b"again")
    for number in range(100):
        ring.write(b"%d" % number)
    assert list(records(memory)) == [b"opening", *(b"%d" % number for number in range(100))]


def test_the_oldest_go_first_and_what_is_left_has_no_gap():
    memory = bytearray(LEAST_BYTES)
    ring = Ring(memory, b"opening", b"again")
    rng = random.Random(1)
    written = [struct.pack("<I", number) + bytes(rng.randrange(300)) for number in range(5000)]
    for record in written:
        ring.write(record)
    opening, *kept = records(memory)
    assert opening == b"again"
    assert kept == written[-len(kept) :]
    assert LEAST_BYTES * (NUM_SEGMENTS - 2) / NUM_SEGMENTS < sum(map(len, kept)) < LEAST_BYTES


def test_a_record_that_no_segment_holds_is_counted():
    ring = Ring(bytearray(LEAST_BYTES), b"opening", b"again")
    ring.write(bytes(LEAST_BYTES))
    assert ring.num_lost == 1


def test_a_writer_that_dies_in_a_record_leaves_those_before_it():
    """Whatever part of the bytes of the last record is there, it is not read, and those before are."""
    memory = bytearray(LEAST_BYTES)
    ring = Ring(memory, b"opening", b"again")
    ring.write(b"first")
    before = bytes(memory)
    ring.write(b"second")
    after = bytes(memory)
    changed = [place for place in range(len(before)) if before[place] != after[place]]
    body = [place for place in changed if place >= 16]
    torn = bytearray(before)
    for place in body:  # the mark in the head of the segment comes last
        torn[place] = after[place]
        assert list(records(torn)) == [b"opening", b"first"]
    assert list(records(after)) == [b"opening", b"first", b"second"]


def test_too_little_memory_is_refused():
    with pytest.raises(ConfigError, match="65536"):
        Ring(bytearray(100), b"opening", b"again")
