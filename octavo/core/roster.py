"""Who is here: requests and their sequences, who has memory, who waits, and the seats they take."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from octavo.core.fair import CACHED_COST, INPUT_COST, OUTPUT_COST, Turns
from octavo.core.sequence import Request, Sequence, State
from octavo.errors import Bug


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


@dataclass(slots=True, eq=False)
class Group:
    """One request and its live sequences.

    turn          which in the order of turns; None while it waits for its own
    width         sequences it may have at once: choices or beams
    has_branched  the choices exist; from then on only the live ones need seats. Beams come and go to the end.
    num_resident  members with memory
    num_seats     seats the group takes now
    next_index    index of the next sequence to be made
    """

    request: Request
    arrival: int
    width: int
    turn: int | None = None
    has_branched: bool = False
    members: dict[int, Sequence] = field(default_factory=dict)
    num_resident: int = 0
    num_seats: int = 0
    next_index: int = 0

    @property
    def is_beam(self) -> bool:
        return self.request.params.beam_width is not None

    @property
    def num_seats_wanted(self) -> int:
        """Seats while any member has memory: room for every sequence it may still have."""
        return len(self.members) if self.has_branched and not self.is_beam else self.width


class Roster:
    """Live sequences, in two lists ordered best first: `resident` (with memory) and `waiting`.

    A held beam without memory is in neither list; it waits for its siblings, not for memory. A request that has not
    had its turn has no place in an order yet; it is in `turns`.

    now_s  the latest time the scheduler was told
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.groups: dict[str, Group] = {}
        self.sequences: dict[int, Sequence] = {}
        self.resident: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.num_seats = 0
        self.turns = Turns(max_num_seqs)
        self.now_s = float("-inf")
        self.max_num_seqs = max_num_seqs
        self._num_arrivals = 0
        self._num_turns = 0
        self._next_seq_id = 0

    def tell(self, now_s: float) -> None:
        """It is later now."""
        self.now_s = now_s
        self.turns.tell(now_s)

    def enter(self, request: Request, width: int) -> Group:
        """Open a group for a new request; it has no sequence yet."""
        group = Group(request=request, arrival=self._num_arrivals, width=width, has_branched=width == 1)
        self._num_arrivals += 1
        self.groups[request.request_id] = group
        return group

    def next_id(self) -> int:
        """The id of a sequence to be made; counts from 0."""
        seq_id = self._next_seq_id
        self._next_seq_id += 1
        return seq_id

    def join(self, group: Group, sequence: Sequence) -> Sequence:
        """Add a sequence to the group; where it is listed is the caller's to say."""
        group.next_index = max(group.next_index, sequence.index + 1)
        group.members[sequence.seq_id] = sequence
        self.sequences[sequence.seq_id] = sequence
        self._reseat(group)
        return sequence

    def group_of(self, sequence: Sequence) -> Group:
        return self.groups[sequence.request.request_id]

    def await_turn(self, group: Group) -> None:
        """Its sequences wait until it is their client's turn."""
        for sequence in group.members.values():
            sequence.state = State.WAITING
            sequence.waits_since_s = self.now_s
        self.turns.add(group)

    def call(self, sequence: Sequence) -> None:
        """It is its request's turn: all sequences of that take their place in the waiting list."""
        group = self.group_of(sequence)
        self.turns.remove(group)
        self.turns.charge(group.request, INPUT_COST * sequence.num_prompt_tokens)
        group.turn = self._num_turns
        self._num_turns += 1
        for sequence in group.members.values():
            sequence.turn = group.turn
            insort(self.waiting, sequence, key=_order)

    @property
    def head(self) -> Sequence | None:
        """Who is to have memory next."""
        if self.waiting:
            return self.waiting[0]
        return self.next_in_turn()

    def next_in_turn(self) -> Sequence | None:
        """The first sequence of the request whose turn is next."""
        group = self.turns.head()
        return None if group is None else next(iter(group.members.values()))

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for memory, with a turn or without."""
        return len(self.waiting) + self.turns.num_sequences

    def served_output(self, sequence: Sequence) -> None:
        """Its client has had one more output token."""
        self.turns.charge(sequence.request, OUTPUT_COST)

    def served_cached(self, sequence: Sequence) -> None:
        """So much of the prompt, charged when its turn came, need not be computed."""
        self.turns.charge(sequence.request, (CACHED_COST - INPUT_COST) * sequence.num_cached_tokens)

    def queue(self, sequence: Sequence) -> None:
        """Put it in the waiting list, at the place its turn gives it."""
        sequence.state = State.WAITING
        sequence.waits_since_s = self.now_s
        insort(self.waiting, sequence, key=_order)

    def seat(self, sequence: Sequence) -> None:
        """It has memory from now on."""
        insort(self.resident, sequence, key=_order)
        group = self.group_of(sequence)
        group.num_resident += 1
        self._reseat(group)

    def unseat(self, sequence: Sequence) -> None:
        """It has no memory any more."""
        _remove(self.resident, sequence)
        group = self.group_of(sequence)
        group.num_resident -= 1
        self._reseat(group)

    def unqueue(self, sequence: Sequence) -> None:
        """It waits no longer."""
        if sequence.turn is not None:
            _remove(self.waiting, sequence)
        elif len(self.group_of(sequence).members) == 1:
            self.turns.remove(self.group_of(sequence))
        sequence.waited_s += self.now_s - sequence.waits_since_s

    def is_resident(self, sequence: Sequence) -> bool:
        if sequence.turn is None:
            return False
        place = bisect_left(self.resident, sequence.order, key=_order)
        return place < len(self.resident) and self.resident[place] is sequence

    def leave(self, sequence: Sequence) -> None:
        """It has ended. The group goes with its last member."""
        if self.is_resident(sequence):
            self.unseat(sequence)
        elif sequence.state is State.WAITING:
            self.unqueue(sequence)
        sequence.state = State.FINISHED
        group = self.group_of(sequence)
        del group.members[sequence.seq_id]
        del self.sequences[sequence.seq_id]
        self._reseat(group)
        if not group.members:
            del self.groups[group.request.request_id]

    def branched(self, group: Group) -> None:
        """All choices of the group exist now."""
        group.has_branched = True
        self._reseat(group)

    def seats_missing(self, sequence: Sequence) -> int:
        """Seats that would have to become free before `sequence` can be seated; 0 or less when it can be now."""
        group = self.group_of(sequence)
        return self.num_seats - group.num_seats + group.num_seats_wanted - self.max_num_seqs

    def _reseat(self, group: Group) -> None:
        seats = group.num_seats_wanted if group.num_resident else 0
        if seats != group.num_seats:
            self.turns.seated(group.request, seats - group.num_seats)
        self.num_seats += seats - group.num_seats
        group.num_seats = seats


def _remove(ordered: list[Sequence], sequence: Sequence) -> None:
    place = bisect_left(ordered, sequence.order, key=_order)
    if place == len(ordered) or ordered[place] is not sequence:
        raise Bug(f"sequence {sequence.seq_id} is not listed where its order puts it")
    del ordered[place]
