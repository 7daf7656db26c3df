"""The order in which turns plan, launch and commit, with and without launching behind a running step."""

from __future__ import annotations

import pytest

from octavo.core.step import Slice, Step, StepResult
from octavo.core.turns import TurnTaker


class Diary(TurnTaker[str]):
    """Plans steps of the sizes it is given, and writes down what it is asked to do."""

    def __init__(self, sizes: list[int], *, launches_behind: bool) -> None:
        super().__init__(max_num_batched_tokens=16, launches_behind=launches_behind)
        self.sizes, self.lines, self.number = list(sizes), [""][:0], 0

    def _planned(self) -> Step | None:
        if not self.sizes:
            return None
        self.number += 1
        self.lines.append(f"plan {self.number}")
        return Step(self.number, (Slice(0, 0, 0, self.sizes.pop(0)),))

    def _launch(self, step: Step) -> None:
        self.lines.append(f"launch {step.number}")

    def _committed(self, step: Step, result: StepResult) -> str:
        assert step.number == result.number
        self.lines.append(f"commit {step.number}")
        return f"told {step.number}"

    def _is_wanted(self) -> bool:
        return bool(self.sizes)

    def turns(self) -> list[str]:
        """Takes turns until nothing is left."""
        for _ in range(20):
            step = self.begin_turn()
            if step is not None:
                self.lines.append(f"wait {step.number}")
                assert self.end_turn(StepResult(step.number, ())) == f"told {step.number}"
        assert self.awaited is None
        return self.lines


def test_a_step_ahead_is_planned_while_one_runs_and_launched_when_it_ends() -> None:
    assert Diary([1, 1, 1], launches_behind=False).turns() == [
        "plan 1", "launch 1", "plan 2", "wait 1", "launch 2", "commit 1", "plan 3", "wait 2", "launch 3", "commit 2",
        "wait 3", "commit 3",
    ]  # fmt: skip


def test_where_steps_queue_it_is_launched_at_once() -> None:
    assert Diary([1, 1, 1], launches_behind=True).turns() == [
        "plan 1", "launch 1", "plan 2", "launch 2", "wait 1", "commit 1", "plan 3", "launch 3", "wait 2", "commit 2",
        "wait 3", "commit 3",
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [5, 1, 1], [1, 5, 5, 1, 1], [5]])
def test_plans_and_commits_come_in_the_same_order(sizes: list[int]) -> None:
    """Also where a long step runs, during which nothing is planned."""
    kept = [
        [line for line in Diary(sizes, launches_behind=behind).turns() if line.startswith(("plan", "commit"))]
        for behind in (False, True)
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2 * len(sizes)
