"""The order of calls in one turn: plan ahead, launch, commit. An engine and a simulator run this same code.

    begin: plan n+1 ── whoever computes gets done with n ── end: launch n+1, commit n, plan again if nothing was ahead

One step is under way at most, and one more is planned while it runs. While a long one runs (LONG_STEP) nothing is
planned, and the next turn does it: whoever comes meanwhile is in the next step then, and not in the one after it, and
the pause for planning is little beside it.

Where computing goes on by itself (a device with a queue of its own), the step ahead is launched as soon as it has been
planned, behind the one that runs, so that nothing waits between the two:

    begin: plan n+1, launch n+1 ── the device gets done with n ── end: commit n, plan again if nothing was ahead

Plans and commits come in the same order either way, so the same requests lead to the same steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from octavo.core.step import Step, StepResult

LONG_STEP = 0.25
"""Of the most tokens in a step: more make a long one."""

Told = TypeVar("Told")


class TurnTaker(ABC, Generic[Told]):
    """Whoever has a scheduler and something that computes. `Told` is what a commit has to tell.

    awaited    the step under way, launched and not yet committed
    is_paused  nothing was planned in this turn because a long step was running

    launches_behind  whether the step ahead can be launched while another is under way
    """

    def __init__(self, max_num_batched_tokens: int, *, launches_behind: bool = False) -> None:
        self.awaited: Step | None = None
        self.is_paused = False
        self._ahead: Step | None = None
        self._launches_behind = launches_behind
        self._long_tokens = LONG_STEP * max_num_batched_tokens

    @abstractmethod
    def _planned(self) -> Step | None:
        """The scheduler's next step, or None; what belongs to it is kept until it is launched."""

    @abstractmethod
    def _launch(self, step: Step) -> None:
        """Start computing the step planned last."""

    @abstractmethod
    def _committed(self, step: Step, result: StepResult) -> Told:
        """Let the scheduler take in the step that was under way."""

    @abstractmethod
    def _is_wanted(self) -> bool:
        """Whether any request lives."""

    def begin_turn(self) -> Step | None:
        """The first half. Returns the step whose result `end_turn` needs; None when the turn is over already."""
        step = self.awaited
        self.is_paused = step is not None and step.num_tokens > self._long_tokens
        ahead = None if self.is_paused else self._planned()
        if step is None:
            self._launch_if(ahead)
        else:
            self._ahead = ahead
            if self._launches_behind and ahead is not None:
                self._launch(ahead)
        return step

    def end_turn(self, result: StepResult) -> Told:
        """The second half: the step that `begin_turn` returned has been carried out."""
        step = self.awaited
        assert step is not None, "end_turn follows a begin_turn that returned a step"
        self.awaited = None
        ahead, self._ahead = self._ahead, None
        if self._launches_behind:
            self.awaited = ahead
        else:
            self._launch_if(ahead)
        told = self._committed(step, result)
        if self.awaited is None and self._is_wanted() and not self.is_paused:
            self._launch_if(self._planned())
        return told

    def _launch_if(self, step: Step | None) -> None:
        if step is not None:
            self._launch(step)
            self.awaited = step
