"""Who gives up memory when somebody else needs it.

The order is total and never changes while a sequence lives: priority, then arrival, then sequence id. A victim is
always placed after the one it makes room for, so the best sequence is never a victim of another one and always
gets on. The one exception is a beam that is held: it has computed all it can until its siblings have, so they may
take its memory though it is placed before them.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from octavo.core.sequence import Sequence, State


def victim_for(requester: Sequence, resident: Ordered[Sequence]) -> Sequence | None:
    """The worst placed sequence with memory that has to yield to `requester`, or None.

    resident  all sequences with memory, best first
    """
    if resident and resident[-1].order > requester.order:
        return resident[-1]
    for sequence in reversed(resident):
        if (
            sequence.state is State.HELD
            and sequence.request is requester.request
            and sequence is not requester
        ):
            return sequence
    return None


def yielding_to(priority: int, resident: Ordered[Sequence]) -> list[Sequence]:
    """All sequences with memory of strictly worse priority, worst first."""
    found = []
    for sequence in reversed(resident):
        if sequence.request.priority <= priority:
            break
        found.append(sequence)
    return found
