"""Frames survive the wire whole and in order; anything else is a typed error, and never a wait for more."""

from __future__ import annotations

import itertools
import random
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.core.sequence import SamplingParams
from octavo.link import frames, wire

HEADER = 16

texts = st.text(max_size=20)
ids = st.lists(st.integers(0, 2**31), max_size=12).map(tuple)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
logprobs = st.builds(
    frames.TokenLogprob,
    token_id=st.integers(0, 2**31),
    logprob=numbers,
    top=st.lists(st.tuples(st.integers(0, 2**31), numbers), max_size=3).map(tuple),
)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 1000), st.floats(-100, 100), max_size=3),
)
to_engine = st.one_of(
    st.builds(
        frames.Submit, request_id=texts, prompt_token_ids=ids, params=params, namespace=st.binary(max_size=32)
    ),
    st.builds(frames.Cancel, request_id=texts),
    st.builds(frames.Drain),
    st.builds(
        frames.Configure,
        protocol=st.integers(0, 9),
        version=texts,
        config=st.builds(EngineConfig.of, max_num_seqs=st.integers(1, 99)),
    ),
)
to_front = st.one_of(
    st.builds(
        frames.Delta,
        request_id=texts,
        index=st.integers(0, 127),
        text=texts,
        token_ids=ids,
        logprobs=st.none() | st.lists(logprobs, max_size=3).map(tuple),
    ),
    st.builds(frames.Refused, request_id=texts, code=texts, message=texts, param=st.none() | texts),
    st.builds(
        frames.ChoiceEnded,
        request_id=texts,
        index=st.integers(0, 127),
        finish_reason=texts,
        stop_reason=st.none() | texts | st.integers(0, 2**31),
    ),
)


def cut(stream: bytes, seed: int) -> list[bytes]:
    """The stream in pieces of random length, empty ones included."""
    rng = random.Random(seed)
    places = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(8)))
    edges = [0, *places, len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def unpack(
    stream: bytes, *, union: object = frames.TO_ENGINE, epoch: int = 1, seed: int = 0, limit: int = 10**6
):
    """Every frame before the first error, and that error's type (None when the stream ends well)."""
    unpacker: wire.Unpacker[object] = wire.Unpacker(union, epoch, limit)
    got: list[object] = []
    try:
        for piece in cut(stream, seed):
            for frame in unpacker.feed(piece):
                got.append(frame)
        unpacker.end()
    except wire.LinkError as error:
        return got, type(error)
    return got, None


def pack(sent: list[frames.Frame], epoch: int = 1) -> list[bytes]:
    packer = wire.Packer(epoch)
    return [packer.pack(frame) for frame in sent]


@settings(deadline=None)
@given(st.lists(to_engine, max_size=6), st.integers(0, 10**6))
def test_frames_to_the_engine_arrive_equal_and_in_order_however_the_stream_is_cut(sent, seed):
    assert unpack(b"".join(pack(sent)), seed=seed) == (sent, None)


@settings(deadline=None)
@given(st.lists(to_front, max_size=6), st.integers(0, 10**6))
def test_frames_to_the_front_arrive_equal_and_in_order(sent, seed):
    assert unpack(b"".join(pack(sent)), union=frames.TO_FRONT, seed=seed) == (sent, None)


@settings(deadline=None)
@given(st.lists(to_engine, min_size=1, max_size=4), st.data())
def test_a_cut_stream_is_truncated_and_gives_the_whole_frames_before_the_cut(sent, data):
    packed = pack(sent)
    stream = b"".join(packed)
    place = data.draw(st.integers(0, len(stream) - 1))
    whole, ends = 0, 0
    while ends + len(packed[whole]) <= place:
        ends += len(packed[whole])
        whole += 1
    expected = None if ends == place else wire.Truncated
    assert unpack(stream[:place]) == (sent[:whole], expected)


@settings(deadline=None)
@given(st.permutations(range(5)))
def test_swapped_frames_are_out_of_order(order):
    sent = [frames.Cancel(request_id=str(i)) for i in range(5)]
    packed = pack(sent)
    right = 0
    while right < 5 and order[right] == right:
        right += 1
    got = unpack(b"".join(packed[i] for i in order))
    assert got == (sent[:right], None if right == 5 else wire.OutOfOrder)


def test_a_repeated_and_a_missing_frame_are_out_of_order():
    a, b, c = pack([frames.Drain(), frames.Drain(), frames.Drain()])
    assert unpack(a + a) == ([frames.Drain()], wire.OutOfOrder)
    assert unpack(a + c) == ([frames.Drain()], wire.OutOfOrder)
    assert unpack(a + b + c) == ([frames.Drain()] * 3, None)


def test_another_epoch_is_fenced_off():
    assert unpack(b"".join(pack([frames.Drain()], epoch=1)), epoch=2) == ([], wire.WrongEpoch)


def test_a_frame_of_the_other_direction_is_refused():
    assert unpack(b"".join(pack([frames.Accepted(request_id="a")]))) == ([], wire.BadFrame)


def test_an_announced_length_above_the_limit_is_refused_before_its_bytes_come():
    header = struct.pack("!IIQ", 1001, 1, 0)
    assert unpack(header, limit=1000) == ([], wire.FrameTooLarge)


def test_a_frame_of_exactly_the_limit_passes_and_one_more_byte_does_not():
    frame = frames.Cancel(request_id="x" * 100)
    size = len(wire.Packer(1).pack(frame)) - HEADER
    assert unpack(wire.Packer(1, size).pack(frame), limit=size) == ([frame], None)
    packer = wire.Packer(1, size - 1)
    with pytest.raises(wire.FrameTooLarge, match=f"{size} bytes"):
        packer.pack(frame)
    assert unpack(packer.pack(frames.Drain())) == ([frames.Drain()], None), "a refused frame takes no number"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x93\x01\x02\x03",
        msgspec.msgpack.encode({"type": "Nothing"}),
        msgspec.msgpack.encode({"type": "Cancel"}),
        msgspec.msgpack.encode({"type": "Cancel", "request_id": 7}),
        msgspec.msgpack.encode({"type": "Cancel", "request_id": "a", "extra": 1}),
        msgspec.msgpack.encode({"type": "Cancel", "request_id": "a"}) + b"\x00",
        msgspec.msgpack.encode(
            {"type": "Submit", "request_id": "a", "prompt_token_ids": [1], "params": {"n": 0}}
        ),
        b"\x91" * 5000,
        b"\x82\xa4type\xa6Cancel\xaarequest_id\xa2\xff\xfe",
    ],
)
def test_garbage_inside_a_frame_is_a_bad_frame(payload):
    stream = struct.pack("!IIQ", len(payload), 1, 0) + payload
    assert unpack(stream) == ([], wire.BadFrame)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_end_in_a_typed_error(junk):
    got, error = unpack(junk, limit=4096)
    assert (got, error) == ([], None) if not junk else error is not None


@settings(max_examples=300, deadline=None)
@given(st.lists(to_engine, min_size=1, max_size=3), st.data())
def test_one_flipped_bit_never_adds_frames_or_raises_anything_untyped(sent, data):
    stream = bytearray(b"".join(pack(sent)))
    place = data.draw(st.integers(0, len(stream) * 8 - 1))
    stream[place // 8] ^= 1 << (place % 8)
    got, _error = unpack(bytes(stream), limit=10**5)
    assert len(got) <= len(sent)
    first_touched = sum(len(p) for p in pack(sent[:1]))
    if place // 8 >= first_touched:
        assert got[:1] == sent[:1]
