"""Block keys: injective, chained, apart by namespace and by weights."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.keys import MAX_TOKEN, Chain, Extra, Lineage, block_key, seed_key

SEED = seed_key(b"weights", b"tenant")


def test_layout_of_a_key_is_the_documented_one():
    seed = hashlib.sha256(
        b"kvk1" + b"\x10" + struct.pack("<I", 1) + b"w" + b"\x11" + struct.pack("<I", 2) + b"ns"
    ).digest()
    assert seed_key(b"w", b"ns") == seed
    body = b"kvb1" + seed + struct.pack("<I", 3) + struct.pack("<III", 7, 0, MAX_TOKEN)
    assert block_key(seed, [7, 0, MAX_TOKEN]) == hashlib.sha256(body).digest()
    tail = b"\x01" + struct.pack("<I", 2) + b"ad"
    assert (
        block_key(seed, [7, 0, MAX_TOKEN], [(Extra.ADAPTER, b"ad")]) == hashlib.sha256(body + tail).digest()
    )


def test_a_namespace_cannot_imitate_a_fingerprint():
    keys = [
        seed_key(a, b) for a, b in [(b"ab", b"c"), (b"a", b"bc"), (b"", b"abc"), (b"abc", b""), (b"c", b"ab")]
    ]
    assert len(set(keys)) == len(keys)


def test_one_kind_of_extra_cannot_imitate_another():
    """An adapter named like a media digest, or two extras run together, give other keys."""
    variants = [
        [],
        [(Extra.ADAPTER, b"xy")],
        [(Extra.MEDIA, b"xy")],
        [(Extra.POLICY, b"xy")],
        [(Extra.ADAPTER, b"x"), (Extra.MEDIA, b"y")],
        [(Extra.ADAPTER, b"x"), (Extra.ADAPTER, b"y")],
        [(Extra.ADAPTER, b"x" + struct.pack("<BI", 2, 1) + b"y")],
        [(Extra.ADAPTER, b"")],
    ]
    keys = [block_key(SEED, [1, 2], extras) for extras in variants]
    assert len(set(keys)) == len(keys)


def test_the_order_in_which_extras_are_named_does_not_matter():
    one, two = (Extra.ADAPTER, b"x"), (Extra.MEDIA, b"y")
    assert block_key(SEED, [1], [one, two]) == block_key(SEED, [1], [two, one])


def test_a_key_names_the_whole_prefix():
    first, other = block_key(SEED, [1, 2]), block_key(SEED, [1, 3])
    assert block_key(first, [9, 9]) != block_key(other, [9, 9])
    assert block_key(first, [9, 9]) != block_key(SEED, [9, 9])


def test_tokens_that_are_no_u32_are_refused():
    with pytest.raises(struct.error):
        block_key(SEED, [MAX_TOKEN + 1])
    with pytest.raises(struct.error):
        block_key(SEED, [-1])


tokens = st.lists(st.integers(0, MAX_TOKEN), max_size=5)
extras = st.lists(st.tuples(st.sampled_from(list(Extra)), st.binary(max_size=6)), max_size=3)
fields = st.tuples(st.binary(max_size=5), st.binary(max_size=5), tokens, extras)


@given(fields, fields)
def test_different_fields_give_different_keys(a, b):
    def key(which):
        fingerprint, namespace, values, more = which
        return block_key(seed_key(fingerprint, namespace), values, more)

    same = a[:3] == b[:3] and sorted(a[3]) == sorted(b[3])
    assert (key(a) == key(b)) == same


@given(
    st.lists(st.integers(0, MAX_TOKEN), max_size=23),
    st.integers(0, 6),
    st.lists(st.integers(0, 5), max_size=4),
)
def test_a_chain_has_the_documented_keys_however_it_is_extended(values, num_public, counts):
    """Each key from the bytes of `keys.py`, the border of a public prefix included; blocks of 4 tokens."""
    public, own = seed_key(b"w", b"public"), seed_key(b"w", b"tenant")
    chain, whole = Chain(), len(values) // 4
    for count in [*sorted(min(count, whole) for count in counts), whole]:
        Lineage(own, public, num_public).extend(chain, values, 4, count)
        assert len(chain) == count
    parent = public if num_public else own
    for index in range(whole):
        if index and index == num_public:
            parent = hashlib.sha256(b"kvr1" + parent + own).digest()
        packed = b"".join(value.to_bytes(4, "little") for value in values[4 * index : 4 * index + 4])
        parent = hashlib.sha256(b"kvb1" + parent + b"\x04\0\0\0" + packed).digest()
        assert (chain.keys[index], chain.blocks[index]) == (parent, packed)
