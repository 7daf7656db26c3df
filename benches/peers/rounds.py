"""How fast do other engines serve W1 to W5 here, and how does Octavo stand beside the best of them?

Every round measures the machine's limits, then runs each subject in a process of its own, one at a time, each
round starting with another. All get the same token ids. A subject that fails at a workload is not asked it again,
and the record says why. Every outcome goes to a log at once; records of a session that was cut short are made from it
with --from-log and otherwise the same arguments.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from benches import record as records
from benches.peers import report
from benches.peers.process import Outcome, Plan, run, wait_for_quiet
from benches.peers.subjects import PEERS, PRECISIONS, Subject, chosen
from benches.serving.workloads import CONFIGS, shape_names
from benches.workloads import SHAPES, Shape, shapes
from octavo.arch import Arch
from octavo.engine.limits import MachineLimits, measure_machine
from octavo.errors import OctavoError


class Question(Protocol):
    """What subjects are asked: a workload, or a window of one."""

    @property
    def id(self) -> str: ...


Q = TypeVar("Q", bound=Question)


@dataclass
class Session:
    """Everything measured so far. `failures` are by subject, precision and workload."""

    limits: list[MachineLimits] = field(default_factory=list)
    outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    failures: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def wanted(self, subject: Subject, asked: Sequence[Q]) -> list[Q]:
        """What a subject is still to be asked."""
        who = (subject.name, subject.precision)
        for shape in asked:
            if subject.workloads and shape.id not in subject.workloads:
                limited = f"asked only {' and '.join(subject.workloads)}"
                self.failures.setdefault((*who, shape.id), limited)
        return [shape for shape in asked if (*who, shape.id) not in self.failures]

    def add(self, subject: Subject, wanted: Sequence[Question], outcome: Outcome) -> None:
        """What a subject made of the workloads it was asked."""
        who = (subject.name, subject.precision)
        self.outcomes.setdefault(who, []).append(outcome)
        for shape in wanted:
            if shape.id not in outcome.figures:
                self.failures[(*who, shape.id)] = outcome.reason or "its driver said nothing of it"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    arch = Arch.from_file(CONFIGS / f"{args.model}.json")
    try:
        subjects = chosen(args.precisions.split(","), args.only)
        asked = [scaled(one, args.scale) for one in shapes(args.workloads.split(","), arch.max_positions)]
    except (OctavoError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    # An exit ends the driver that runs; the default for this signal would leave it behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = Plan(model=args.model, arch=arch, shapes=asked, num_threads=args.threads)
    if args.from_log is None:
        session = _measure(args, plan, subjects)
    else:
        try:
            session = from_log(args.from_log, plan, subjects)
        except (OSError, ValueError) as error:
            print(f"--from-log {args.from_log}: {error}", file=sys.stderr)
            return 2
        words = _to_measure_again(words)
    made = report.records_of(session, plan, subjects, records.command("benches.peers.rounds", words))
    for one in made:
        path = None if args.no_record else records.write(one, args.results)
        records.show(one, path)
    print("\n".join([report.table(made), *report.unanswered(session, plan, subjects)]))
    return 0 if made else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.peers.rounds", description=__doc__)
    add = parser.add_argument
    add("--model", default="qwen3-0.6b", choices=shape_names())
    add("--workloads", default=",".join(SHAPES), help="comma separated (default %(default)s)")
    add("--precisions", default=",".join(PRECISIONS), help="comma separated (default %(default)s)")
    add("--rounds", type=int, default=5, help="default %(default)s")
    add("--only", default="", help="regular expression found in 'NAME PRECISION' of a subject")
    add("--scale", type=float, default=1.0, help="part of every workload, for a slow machine")
    add("--timeout-s", type=float, default=1800.0, help="of one process (default %(default)s)")
    add("--patience-s", type=float, default=60.0, help="wait this long for quiet (default %(default)s)")
    add("--threads", type=int, default=2, help="default %(default)s")
    add("--log", type=Path, default=PEERS / "rounds.jsonl", help="lines are appended to it")
    add("--from-log", type=Path, help="measure nothing; make records of what this log holds of the model")
    add("--results", type=Path, default=records.RESULTS, help="folder of the records")
    add("--no-record", action="store_true", help="print only")
    return parser


def _measure(args: argparse.Namespace, plan: Plan, subjects: Sequence[Subject]) -> Session:
    """All rounds. What drivers print goes to one file per subject beside the log."""
    logs = args.log.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def ask(subject: Subject, asked: Sequence[Shape], number: int) -> Outcome:
        wait_for_quiet(args.patience_s)
        output = logs / f"{plan.model}-{subject.name}-{subject.precision}.log"
        return run(plan, subject, asked, number, args.timeout_s, output)

    def limits() -> MachineLimits:
        wait_for_quiet(args.patience_s)
        return measure_machine(args.threads)

    return rounds(subjects, plan.shapes, args.rounds, ask, limits, Log(args.log, plan.model))


def scaled(shape: Shape, scale: float) -> Shape:
    """A part of a workload: fewer requests where there are several, else fewer output or prompt tokens.

    Raises ValueError for a scale outside (0, 1].
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, got {scale}")
    if scale == 1:
        return shape
    count, (prompt, output) = len(shape.sizes), shape.sizes[0]
    if count > 1:
        sizes, what = shape.sizes[: math.ceil(count * scale)], "requests"
        before, after = count, len(sizes)
    elif output > 1:
        before, after, what = output, max(2, math.ceil(output * scale)), "output tokens"
        sizes = ((prompt, after),)
    else:
        before, after, what = prompt, math.ceil(prompt * scale), "prompt tokens"
        sizes = ((after, output),)
    note = f"shortened by --scale {scale:g}: {after} of {before} {what}"
    return replace(shape, sizes=sizes, notes=(*shape.notes, note))


def rounds(
    subjects: Sequence[Subject],
    asked: Sequence[Q],
    count: int,
    ask: Callable[[Subject, Sequence[Q], int], Outcome],
    limits: Callable[[], MachineLimits],
    log: Callable[..., None],
) -> Session:
    """Run all rounds, one subject at a time."""
    session = Session()
    for number in range(count):
        session.limits.append(limits())
        log(round=number, limits=asdict(session.limits[-1]))
        turn = number % len(subjects)
        for subject in [*subjects[turn:], *subjects[:turn]]:
            _turn(session, subject, asked, number, ask, log)
    return session


def _turn(
    session: Session,
    subject: Subject,
    asked: Sequence[Q],
    number: int,
    ask: Callable[[Subject, Sequence[Q], int], Outcome],
    log: Callable[..., None],
) -> None:
    wanted = session.wanted(subject, asked)
    if not wanted:
        return
    outcome = ask(subject, wanted, number)
    session.add(subject, wanted, outcome)
    log(round=number, subject=subject.name, precision=subject.precision, **asdict(outcome))


def _to_measure_again(words: Sequence[str]) -> list[str]:
    """The command line without --from-log and its value, in either form."""
    kept, values = [], iter(words)
    for word in values:
        if word == "--from-log":
            next(values)
        elif not word.startswith("--from-log="):
            kept.append(word)
    return kept


def from_log(path: Path, plan: Plan, subjects: Sequence[Subject]) -> Session:
    """The session that wrote a log, as far as it came. Lines of other models and subjects are passed over.

    Raises OSError where the log cannot be read, ValueError where a line is none of ours or none is of this model.
    """
    session, known = Session(), {(one.name, one.precision): one for one in subjects}
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            if line["model"] != plan.model:
                continue
            if "limits" in line:
                session.limits.append(msgspec.convert(line["limits"], MachineLimits))
                continue
            subject = known.get((line["subject"], line["precision"]))
            outcome = msgspec.convert({name: line[name] for name in Outcome.__dataclass_fields__}, Outcome)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is not one that a session wrote: {error!r}") from error
        if subject is not None:
            session.add(subject, session.wanted(subject, plan.shapes), outcome)
    if not session.limits:
        raise ValueError(f"no round of {plan.model} in it")
    return session


class Log:
    """Lines of a session as they come, to a file and in short to the terminal."""

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path, model

    def __call__(self, **line: object) -> None:
        made = {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "model": self._model, **line}
        with self._path.open("a") as file:
            file.write(json.dumps(made) + "\n")
        figures = line.get("figures")
        if isinstance(figures, dict):
            rates = [f"{name} {next(iter(one.values())):.4g}" for name, one in figures.items()]
            said = "; ".join([*rates, *([str(line["reason"])] if line["reason"] else [])])
            print(f"  round {line['round']} {line['subject']} {line['precision']}: {said}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
