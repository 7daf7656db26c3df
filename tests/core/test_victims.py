"""Who yields to whom."""

from __future__ import annotations

from octavo.core.sequence import Sequence, State
from octavo.core.victims import victim_for, yielding_to
from tests.core.requests import request


def line(*places: tuple[int, int]) -> list[Sequence]:
    """Running sequences with these (priority, arrival), best first."""
    return [
        Sequence(
            seq_id,
            request(f"r{arrival}", [1], priority=priority),
            0,
            arrival,
            9,
            [1],
            b"",
            state=State.RUNNING,
        )
        for seq_id, (priority, arrival) in enumerate(sorted(places))
    ]


def test_worst_priority_first_then_the_latest_arrival():
    resident = line((0, 5), (0, 7), (2, 1), (2, 3))
    assert victim_for(resident[0], resident) is resident[3]
    assert victim_for(resident[0], resident[:3]) is resident[2]
    assert victim_for(resident[0], resident[:2]) is resident[1]


def test_nobody_yields_to_a_worse_placed_one_nor_to_himself():
    resident = line((0, 5), (1, 2))
    assert victim_for(resident[1], resident) is None
    assert victim_for(resident[0], resident[:1]) is None
    assert victim_for(resident[0], []) is None


def test_held_siblings_yield_whatever_their_place():
    beams, other = line((0, 1), (0, 1), (0, 1)), line((0, 0))[0]
    for beam in beams:
        beam.request = beams[0].request
    beams[0].state = beams[1].state = State.HELD
    other.state = State.HELD
    assert victim_for(beams[2], [other, *beams]) is beams[1]
    assert victim_for(beams[2], [other, beams[0], beams[2]]) is beams[0]
    assert victim_for(beams[2], [other, beams[2]]) is None
    assert victim_for(beams[0], beams[:1]) is None


def test_only_strictly_worse_priority_makes_way_for_the_queue_worst_first():
    resident = line((0, 5), (1, 2), (2, 1), (2, 9))
    assert yielding_to(1, resident) == [resident[3], resident[2]]
    assert yielding_to(0, resident) == resident[:0:-1]
    assert yielding_to(2, resident) == []
