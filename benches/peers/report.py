"""Records and a table from a session's rounds: one record per workload and precision."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from benches import record as records
from benches.peers.process import FIGURES, THROUGHPUT, Outcome, Plan
from benches.peers.subjects import OURS, PRECISIONS, Subject
from benches.record import Hardware, Record, Series, slug
from benches.workloads import Shape
from octavo.engine.limits import MachineLimits

if TYPE_CHECKING:
    from benches.peers.rounds import Session

GATE = "every request of every subject gave the number of tokens asked for"
OUR_GATE = "; octavo's answers had equal tokens and log-probabilities together and alone"


def records_of(session: Session, plan: Plan, subjects: Sequence[Subject], command: str) -> list[Record]:
    """Records of all questions that at least one subject answered; `unanswered` tells of the rest."""
    limits = median_limits(session.limits)
    made = []
    for precision in PRECISIONS:
        here = [subject for subject in subjects if subject.precision == precision]
        for shape in plan.shapes:
            one = _record(session, plan, here, shape, precision, limits, command)
            if one is not None:
                made.append(one)
    return made


def _record(
    session: Session,
    plan: Plan,
    subjects: Sequence[Subject],
    shape: Shape,
    precision: str,
    limits: MachineLimits,
    command: str,
) -> Record | None:
    answered: dict[str, dict[str, Series]] = {}
    outcomes = {one.name: session.outcomes.get((one.name, precision), []) for one in subjects}
    for name, given in outcomes.items():
        rounds = [outcome.figures[shape.id] for outcome in given if shape.id in outcome.figures]
        if rounds:
            answered[name] = {key: Series.of([one[key] for one in rounds]) for key in rounds[0]}
    if not answered:
        return None
    loads = [one.other_cores for given in outcomes.values() for one in given if one.other_cores is not None]
    return Record(
        question=f"{shape.id}: how fast do engines serve {plan.model} with {precision} weights"
        f" on {plan.num_threads} threads?",
        slug=slug(f"peers {shape.id} {plan.model} {precision}"),
        correct=True,
        gate=GATE + (OUR_GATE if OURS in answered else ""),
        figure=FIGURES.get(shape.id, THROUGHPUT),
        unit="tok/s",
        better="higher",
        shape={
            "workload": shape.id,
            "model": plan.model,
            "precision": precision,
            "requests": len(shape.sizes),
            "prompt_tokens": shape.num_prompt_tokens,
            "output_tokens": shape.num_output_tokens,
            "shared_tokens": shape.shared_tokens,
        },
        repeats=min(len(one["ttft_s"].values) for one in answered.values()),
        warmup=1,
        seeds={"prompts": f"'{shape.id} ROUND', rounds counted from 0", "weights": 0},
        subjects=answered,
        hardware=Hardware.of(limits, max(loads, default=None)),
        versions=records.versions(),
        commit=records.commit(),
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        notes=[
            *shape.notes,
            *limits.notes,
            *_limits_notes(session.limits),
            *unavailable(session, subjects, shape.id),
            *_agreement(outcomes, shape.id),
            "weights are random; model files may lie in the page cache when a subject starts",
        ],
    )


def unavailable(session: Session, subjects: Sequence[Subject], workload: str) -> list[str]:
    """A line for every subject that did not answer, or stopped answering after some rounds."""
    notes = []
    for one in subjects:
        reason = session.failures.get((one.name, one.precision, workload))
        given = session.outcomes.get((one.name, one.precision), [])
        if reason is not None:
            count = sum(workload in outcome.figures for outcome in given)
            when = f" after {count} rounds" if count else ""
            notes.append(f"{one.name}: unavailable{when}: {reason}")
    return notes


def unanswered(session: Session, plan: Plan, subjects: Sequence[Subject]) -> list[str]:
    """Why there is no record of a workload and precision that no subject answered."""
    lines = []
    for precision in PRECISIONS:
        here = [one for one in subjects if one.precision == precision]
        for shape in plan.shapes:
            given = [outcome for one in here for outcome in session.outcomes.get((one.name, precision), [])]
            if here and not any(shape.id in outcome.figures for outcome in given):
                reasons = "; ".join(unavailable(session, here, shape.id))
                lines.append(f"{shape.id} {precision}: no record: {reasons}")
    return lines


def median_limits(measured: Sequence[MachineLimits]) -> MachineLimits:
    """Of each rate the median over the rounds."""
    int8 = [one.int8_op_per_s for one in measured if one.int8_op_per_s is not None]
    return replace(
        measured[0],
        read_bytes_per_s=statistics.median(one.read_bytes_per_s for one in measured),
        fp32_flop_per_s=statistics.median(one.fp32_flop_per_s for one in measured),
        bf16_flop_per_s=statistics.median(one.bf16_flop_per_s for one in measured),
        int8_op_per_s=statistics.median(int8) if int8 else None,
    )


def _limits_notes(measured: Sequence[MachineLimits]) -> list[str]:
    reads = [one.read_bytes_per_s / 1e9 for one in measured]
    return [f"memory read rate of the rounds, GB/s: {', '.join(f'{one:.3g}' for one in reads)}"]


def _agreement(outcomes: dict[str, list[Outcome]], workload: str) -> list[str]:
    """How many requests begin with the token that octavo begins with: a check that all compute the same model."""
    ours = [one.first_tokens.get(workload, []) for one in outcomes.get(OURS, [])]
    notes = []
    for name, given in outcomes.items():
        pairs = [
            (left, right)
            for mine, theirs in zip(ours, [one.first_tokens.get(workload, []) for one in given], strict=False)
            for left, right in zip(mine, theirs, strict=False)
            if right is not None
        ]
        if name != OURS and pairs:
            equal = sum(left == right for left, right in pairs)
            notes.append(f"{name}: {equal} of {len(pairs)} answers begin with octavo's first token")
    return notes


def ratio(record: Record) -> tuple[str, float | None]:
    """The best peer of a record, and octavo's figure over its; "-" without a peer, None without both."""
    medians = {name: figures[record.figure].median for name, figures in record.subjects.items()}
    ours = medians.pop(OURS, None)
    if not medians:
        return "-", None
    best = max(medians, key=lambda name: medians[name])
    return best, None if ours is None else ours / medians[best]


def table(made: Sequence[Record]) -> str:
    """Octavo beside the best peer of the same precision, one line per record."""
    heads = ("workload", "precision", "octavo", "best peer", "", "octavo / best", "TTFT", "peak RSS", "ready")
    lines = [heads]
    for record in made:
        best, times = ratio(record)
        lines.append(
            (
                str(record.shape["workload"]),
                str(record.shape["precision"]),
                _median(record, OURS, record.figure, 1, "tok/s"),
                _median(record, best, record.figure, 1, "tok/s"),
                best,
                "-" if times is None else f"{times:.2f}",
                _both(record, best, "ttft_s", 1, "s"),
                _both(record, best, "peak_bytes", 2**30, "GiB"),
                _both(record, best, "ready_s", 1, "s"),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _median(record: Record, subject: str, figure: str, unit: float, name: str) -> str:
    if subject not in record.subjects:
        return "-"
    return f"{record.subjects[subject][figure].median / unit:.3g} {name}"


def _both(record: Record, peer: str, figure: str, unit: float, name: str) -> str:
    return f"{_median(record, OURS, figure, unit, name)} / {_median(record, peer, figure, unit, name)}"
