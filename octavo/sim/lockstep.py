"""Replicas that wait for each other: each of their steps begins when all are ready and ends when the slowest is done.

Engines that are data-parallel in attention and hold different experts exchange tokens in every layer, so none is ahead
of the others, and one that has nothing to compute runs an empty step along while any other works. A request that comes
meanwhile waits until that is over. Experts compute the tokens of all: a time model is told their mean, too.

    member 0   | chunk, 20 ms .... | decode, 8 ms . | empty ......... |
    member 1   | decode, 7 ms .... | decode, 9 ms . | chunk, 15 ms .. |
               0                  20               29                44

Source: vLLM 0.19, `DPEngineCoreProc.run_busy_loop`, which runs `execute_dummy_batch` where nothing is to be computed.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from octavo.core.step import Step
from octavo.core.stretch import Stretch
from octavo.errors import Bug
from octavo.sim.replica import Command, Replica, Skipping, ends_of
from octavo.sim.timing import NS_PER_S, Timing, Work, step_ns, work_of


@dataclass(frozen=True, slots=True)
class Launched:
    """A member's step of the round that begins, and what is written down of it."""

    work: Work
    gap_ns: int
    used_blocks: int
    num_waiting: int


class Member(Replica):
    """A replica whose steps last as long as those of its group, which fires it.

    launched  its step of the round that begins, until that is timed
    """

    group: Lockstep
    launched: Launched | None = None

    @property
    def driver(self) -> Lockstep:
        return self.group

    def send(self, command: Command, now_ns: int) -> None:
        self.inbox.append(command)
        self.group.wake(now_ns)

    def _launch(self, step: Step) -> None:
        work = work_of(step, with_slices=self._needs_slices)
        self.launched = Launched(
            work,
            self._gap_ns(),
            self.scheduler.num_used_blocks,
            self.scheduler.num_waiting,
        )

    def end(self, now_ns: int) -> None:
        """The step under way, if there is one, is over."""
        self.now_ns = now_ns
        if self.awaited is not None:
            self.end_turn(self._result(self.awaited))

    def take(self, now_ns: int) -> None:
        """Take what has come, between two turns."""
        self.now_ns = now_ns
        self._take_commands()

    @property
    def has_launched(self) -> bool:
        """Whether its step of the round that begins is certain: it is launched, or an empty one."""
        return self.awaited is not None or self.scheduler.idle

    def play(self, now_ns: int) -> None:
        """Begin a turn at that time."""
        self.now_ns = now_ns
        self._play()
        if not self.has_launched:
            raise Bug(f"{len(self.scheduler.sequences)} sequences wait, and the scheduler plans nothing")

    def run(self, starts_ns: int, ends_ns: int) -> None:
        """What it has launched lasts as long as the round."""
        self._ends_ns = ends_ns
        one, self.launched = self.launched, None
        if one is not None:
            self.tally.launched(starts_ns, ends_ns - starts_ns, one.work, one.used_blocks, one.num_waiting)

    def measure(self, group_tokens: float) -> tuple[Stretch, list[int]] | None:
        """The turns that need not be played, and what it takes of the step launched at the end of each."""
        return self._measure(group_tokens)

    def skip(self, stretch: Stretch, ends_ns: list[int], durations_ns: list[int]) -> None:
        """Play a stretch; its steps last as long as the group's."""
        self._skip(Skipping(stretch, ends_ns, durations_ns))


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds that are skipped, when each ends, and how long that lasts which begins then."""

    stretches: tuple[tuple[Member, Stretch], ...]
    ends_ns: list[int]
    durations_ns: list[int]


class Lockstep:
    """Members on one rhythm.

    due_ns  when `fire` is to be called next; None while no member has anything to do
    """

    def __init__(self, timing: Timing) -> None:
        self.members: list[Member] = []
        self.due_ns: int | None = None
        self._model = timing.model
        self._turn_ns = round(timing.host.turn_s * NS_PER_S)
        self._ends_ns = 0
        self._is_under_way = False
        self._rounds: Rounds | None = None

    @property
    def number(self) -> int:
        return self.members[0].number

    def add(self, member: Member) -> None:
        member.group = self
        self.members.append(member)

    def wake(self, now_ns: int) -> None:
        """Something has come to a member; it is taken when the round is over, at once when there is none."""
        if self._rounds is not None:
            self._play(self._skip(self._rounds, bisect_left(self._rounds.ends_ns, now_ns)))
        elif self.due_ns is None:
            self.due_ns = now_ns

    def fire(self, now_ns: int) -> None:
        """Do what is due now."""
        if self._rounds is not None:
            self._skip(self._rounds, len(self._rounds.ends_ns))
        elif self._is_under_way:
            for member in self.members:
                member.end(now_ns)
        for member in self.members:
            member.take(now_ns)
        if all(member.has_launched for member in self.members):
            self._time_round(now_ns)
            self._rounds = self._measure()
        if self._rounds is not None:
            self.due_ns = self._rounds.ends_ns[-1]
            return
        self._play(now_ns)

    def _play(self, now_ns: int) -> None:
        """Begin a turn of each at that time."""
        for member in self.members:
            member.play(now_ns)
        self._time_round(now_ns)
        self._is_under_way = any(member.awaited is not None for member in self.members)
        self.due_ns = self._ends_ns if self._is_under_way else None

    def _time_round(self, now_ns: int) -> None:
        """What has been launched now begins when the last is ready and ends when the slowest is done."""
        launched = [member.launched for member in self.members if member.launched is not None]
        if launched:
            starts_ns = now_ns + max(one.gap_ns for one in launched)
            mean = sum(one.work.num_tokens for one in launched) / len(self.members)
            self._ends_ns = starts_ns + max(
                step_ns(self._model, one.work._replace(group_tokens=mean)) for one in launched
            )
            for member in self.members:
                member.run(starts_ns, self._ends_ns)

    def _measure(self) -> Rounds | None:
        """The rounds that need not be played: each member's next turns are like this one, or empty."""
        stretches, durations = list[tuple[Member, Stretch]](), list[list[int]]()
        under_way = [member.awaited for member in self.members if member.awaited is not None]
        mean = sum(step.num_tokens for step in under_way) / len(self.members)
        for member in self.members:
            if member.awaited is None:
                continue
            found = member.measure(mean)
            if found is None:
                return None
            stretches.append((member, found[0]))
            durations.append(found[1])
        if not stretches:
            return None
        durations_ns = [max(each) for each in zip(*durations, strict=False)]
        ends_ns = ends_of([one for _, one in stretches], durations_ns, self._ends_ns, self._turn_ns)
        return Rounds(tuple(stretches), ends_ns, durations_ns) if ends_ns else None

    def _skip(self, rounds: Rounds, count: int) -> int:
        """Play the first so many rounds at once. Returns when the one under way then began to be."""
        self._rounds = None
        if not count:
            return self.members[0].now_ns
        began_ns = rounds.ends_ns[count - 1]
        for member, stretch in rounds.stretches:
            member.skip(stretch, rounds.ends_ns[:count], rounds.durations_ns)
        self._ends_ns = began_ns + self._turn_ns + rounds.durations_ns[count - 1]
        return began_ns
