"""Records and a table of S1: one record per rate and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from benches import record as records
from benches.peers.process import Plan
from benches.peers.report import median_limits, unavailable
from benches.peers.rounds import Session
from benches.peers.subjects import PRECISIONS, Subject
from benches.peers.windows import FIGURE, REFUSED, Terms, Window
from benches.record import Hardware, Record, Series, slug
from benches.serving import trace
from octavo.engine.limits import MachineLimits

GATE = "every answer of every server had the number of tokens asked for"


def records_of(
    session: Session,
    plan: Plan,
    terms: Terms,
    capacities: Mapping[str, float],
    subjects: Sequence[Subject],
    asked: Sequence[Window],
    command: str,
) -> list[Record]:
    """Records of all windows that at least one server answered; `unanswered` tells of the rest."""
    limits, made = median_limits(session.limits), []
    for precision in PRECISIONS:
        here = [one for one in subjects if one.precision == precision]
        for window in asked:
            answered = _answered(session, here, window)
            if answered:
                notes = [
                    *_notes(terms, capacities[precision]),
                    *limits.notes,
                    *unavailable(session, here, window.id),
                ]
                made.append(
                    _record(
                        plan,
                        terms,
                        precision,
                        window,
                        answered,
                        _hardware(session, here, limits),
                        command,
                        notes,
                    )
                )
    return made


def _answered(session: Session, subjects: Sequence[Subject], window: Window) -> dict[str, dict[str, Series]]:
    answered = {}
    for one in subjects:
        given = session.outcomes.get((one.name, one.precision), [])
        rounds = [outcome.figures[window.id] for outcome in given if window.id in outcome.figures]
        if rounds:
            answered[one.name] = {key: Series.of([figures[key] for figures in rounds]) for key in rounds[0]}
    return answered


def _hardware(session: Session, subjects: Sequence[Subject], limits: MachineLimits) -> Hardware:
    given = [
        one for subject in subjects for one in session.outcomes.get((subject.name, subject.precision), [])
    ]
    return Hardware.of(
        limits, max((one.other_cores for one in given if one.other_cores is not None), default=None)
    )


def _record(
    plan: Plan,
    terms: Terms,
    precision: str,
    window: Window,
    answered: dict[str, dict[str, Series]],
    hardware: Hardware,
    command: str,
    notes: list[str],
) -> Record:
    return Record(
        question=f"{window.id} of capacity: how do engines serve {plan.model} with {precision} weights over HTTP"
        f" on {plan.num_threads} threads?",
        slug=slug(f"peers {window.id} {plan.model} {precision}"),
        correct=True,
        gate=GATE,
        figure=FIGURE,
        unit="of offered",
        better="higher",
        shape={
            "workload": "S1",
            "model": plan.model,
            "precision": precision,
            "rate": window.rate,
            "window_s": terms.window_s,
            "seats": terms.seats,
            "longest": terms.longest,
            "trace": trace.source(),
            "slo_ttft_s": terms.slo.ttft_s,
            "slo_tpot_s": terms.slo.tpot_s,
        },
        repeats=min(len(one[FIGURE].values) for one in answered.values()),
        warmup=1,
        seeds={"requests": f"'{window.id} ROUND', rounds counted from 0", "weights": 0},
        subjects=answered,
        hardware=hardware,
        versions=records.versions(),
        commit=records.commit(),
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        notes=notes,
    )


def _notes(terms: Terms, capacity_per_s: float) -> list[str]:
    prompt, output = terms.longest
    return [
        f"capacity is {capacity_per_s:.4g} requests per second: those of octavo's own server in a closed loop with"
        f" {terms.seats} under way",
        f"prompts are cut to {prompt} tokens and answers to {output}",
        f"good is a first token within {terms.slo.ttft_s:g} s and a mean of {1000 * terms.slo.tpot_s:g} ms for each"
        f" one after; refused ({REFUSED}) is not good",
        "the load is sent by a process on the same cores; weights are random",
        "peak_bytes adds up all processes of a server, pages they share included",
    ]


def unanswered(session: Session, subjects: Sequence[Subject], asked: Sequence[Window]) -> list[str]:
    """Why there is no record of a window and precision that no server answered."""
    lines = []
    for precision in PRECISIONS:
        here = [one for one in subjects if one.precision == precision]
        for window in asked:
            if here and not _answered(session, here, window):
                reasons = "; ".join(unavailable(session, here, window.id))
                lines.append(f"{window.id} {precision}: no record: {reasons}")
    return lines


def table(made: Sequence[Record]) -> str:
    """A line for every server of every record."""
    lines: list[Sequence[str]] = [
        (
            "rate",
            "precision",
            "server",
            "good",
            "good/s",
            "of",
            "TTFT p50",
            "p99",
            "TPOT p50",
            "p99",
            "peak RSS",
        )
    ]
    for record in made:
        for name, series in record.subjects.items():
            found = {key: one.median for key, one in series.items()}
            lines.append(
                (
                    f"{record.shape['rate']:g}",
                    str(record.shape["precision"]),
                    name,
                    f"{100 * found[FIGURE]:.0f} %",
                    f"{found['goodput_per_s']:.3g}",
                    f"{found['offered_per_s']:.3g}",
                    f"{found['ttft_p50_s']:.2f} s",
                    f"{found['ttft_p99_s']:.2f} s",
                    f"{1000 * found['tpot_p50_s']:.0f} ms",
                    f"{1000 * found['tpot_p99_s']:.0f} ms",
                    f"{found['peak_bytes'] / 2**30:.3g} GiB",
                )
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
