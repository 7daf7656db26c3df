"""S1 beside the peers: how do engines serve over HTTP while requests arrive at 0.5 to 1.2 of Octavo's capacity?

Capacity is measured first, for each precision: the requests per second of Octavo's own server in a closed loop with
as many under way as it has seats. Then each server is started, one at a time, and sent the same token ids at the same
times after the start of a window, whatever becomes of those before; the next window begins when all answers have ended.
The load shares the cores with the server, as it does for every one of them. A server that fails, or is not done in
its time, is not asked again, and the record says why.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benches import record as records
from benches.harness import OtherLoad
from benches.peers import served_report
from benches.peers.process import Outcome, Plan, nameless, wait_for_quiet
from benches.peers.rounds import Log, Session, rounds
from benches.peers.servers import Server, served, serving, task
from benches.peers.subjects import OURS, PEERS, PRECISIONS, SUBJECTS, Subject
from benches.peers.windows import (
    RATES,
    Figures,
    Terms,
    Unserved,
    Window,
    capacity,
    figures,
    refuse,
    windows,
)
from benches.serving import trace
from benches.serving.workloads import CONFIGS, shape_names
from octavo.arch import Arch
from octavo.cli import load
from octavo.cli.load import Slo
from octavo.engine.limits import MachineLimits, measure_machine
from octavo.errors import OctavoError


@dataclass(kw_only=True)
class Asking:
    """Asks subjects, one at a time.

    capacities  requests per second by precision, as they become known; why not, where one is not
    """

    plan: Plan
    terms: Terms
    num_capacity_requests: int
    timeout_s: float
    patience_s: float
    logs: Path
    capacities: dict[str, float | str] = field(default_factory=dict)

    def __call__(self, subject: Subject, asked: Sequence[Window], number: int) -> Outcome:
        per_s = self.capacity(subject.precision)
        if isinstance(per_s, str):
            return Outcome(reason=f"capacity is not known: octavo: {per_s}")
        missing = subject.missing(self.plan.model)
        if missing is not None:
            return Outcome(reason=missing)
        wait_for_quiet(self.patience_s)
        others, outcome = OtherLoad(), Outcome()
        try:
            made = task(subject, self.plan, self.terms)
            with serving(subject, made, self.timeout_s, self._output(subject)) as server:
                _warm(server, self.terms)
                for window in asked:
                    outcome.figures[window.id] = measured(server, self.terms, window, per_s, number)
        except (Unserved, OSError) as error:
            outcome.reason = nameless(str(error))
        outcome.other_cores = others.cores()
        return outcome

    def capacity(self, precision: str) -> float | str:
        """Requests per second of Octavo in a closed loop, or why they are not known."""
        if precision not in self.capacities:
            self.capacities[precision] = self._capacity(precision)
            print(f"  capacity {precision}: {self.capacities[precision]} requests/s", file=sys.stderr)
        return self.capacities[precision]

    def _capacity(self, precision: str) -> float | str:
        (ours,) = (one for one in SUBJECTS if (one.name, one.precision) == (OURS, precision))
        missing = ours.missing(self.plan.model)
        if missing is not None:
            return missing
        wait_for_quiet(self.patience_s)
        try:
            made = task(ours, self.plan, self.terms)
            with serving(ours, made, self.timeout_s, self._output(ours)) as server:
                _warm(server, self.terms)
                asks = self.terms.crowd("capacity", self.num_capacity_requests, server.more)
                return capacity(server.ask(load.run_closed(server.target, asks, self.terms.seats)))
        except (Unserved, OSError) as error:
            return nameless(str(error))

    def _output(self, subject: Subject) -> Path:
        return self.logs / f"served-{self.plan.model}-{subject.name}-{subject.precision}.log"


def measured(server: Server, terms: Terms, window: Window, capacity_per_s: float, number: int) -> Figures:
    """One window. Raises Unserved when its answers are none to be timed."""
    asks = terms.asks(window, capacity_per_s, number, server.more)
    server.forget_peak()
    outcomes = server.ask(load.run_open(server.target, asks))
    refuse(outcomes)
    return {
        **figures(outcomes, terms),
        "peak_bytes": float(server.peak_bytes()),
        "ready_s": server.ready_s,
    }


def _warm(server: Server, terms: Terms) -> None:
    refuse(server.ask(load.run_closed(server.target, terms.warmup(server.more), terms.seats)), allowed=())


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    arch = Arch.from_file(CONFIGS / f"{args.model}.json")
    try:
        subjects, asked = served(args.precisions.split(","), args.only), windows(args.rates)
        terms = Terms(
            lengths=trace.lengths(args.longest_prompt, args.longest_output),
            vocab_size=arch.vocab_size,
            window_s=args.window_s,
            seats=args.seats,
            slo=Slo(ttft_s=args.slo_ttft_s, tpot_s=args.slo_tpot_s),
        )
    except (OctavoError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    # An exit ends the server that runs; the default for this signal would leave it behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    asking = Asking(
        plan=Plan(model=args.model, arch=arch, shapes=[], num_threads=args.threads),
        terms=terms,
        num_capacity_requests=max(args.capacity_requests, 1),
        timeout_s=args.timeout_s,
        patience_s=args.patience_s,
        logs=args.log.parent / "logs",
    )
    session = _measure(args, asking, subjects, asked)
    command = records.command("benches.peers.served", words)
    made = served_report.records_of(session, asking.plan, terms, _known(asking), subjects, asked, command)
    for one in made:
        path = None if args.no_record else records.write(one, args.results)
        records.show(one, path)
    print("\n".join([served_report.table(made), *served_report.unanswered(session, subjects, asked)]))
    return 0 if made else 1


def _measure(
    args: argparse.Namespace, asking: Asking, subjects: Sequence[Subject], asked: Sequence[Window]
) -> Session:
    """All rounds. What servers print goes to one file per subject beside the log."""
    asking.logs.mkdir(parents=True, exist_ok=True)

    def limits() -> MachineLimits:
        wait_for_quiet(args.patience_s)
        return measure_machine(args.threads)

    return rounds(subjects, asked, args.rounds, asking, limits, Log(args.log, args.model))


def _known(asking: Asking) -> Mapping[str, float]:
    return {name: per_s for name, per_s in asking.capacities.items() if isinstance(per_s, float)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.peers.served", description=__doc__)
    add = parser.add_argument
    add("--model", default="qwen3-0.6b", choices=shape_names())
    rates = ",".join(f"{rate:g}" for rate in RATES)
    add("--rates", default=rates, help="parts of capacity, comma separated (default %(default)s)")
    add("--precisions", default=",".join(PRECISIONS), help="comma separated (default %(default)s)")
    add("--rounds", type=int, default=1, help="default %(default)s")
    add("--only", default="", help="regular expression found in 'NAME PRECISION' of a subject")
    add("--window-s", type=float, default=20.0, help="requests arrive for so long (default %(default)s)")
    add("--seats", type=int, default=8, help="requests computed at once (default %(default)s)")
    add("--longest-prompt", type=int, default=512, help="prompts are cut to it (default %(default)s)")
    add("--longest-output", type=int, default=64, help="answers are cut to it (default %(default)s)")
    add("--capacity-requests", type=int, default=32, help="of the closed loop (default %(default)s)")
    add("--slo-ttft-s", type=float, default=2.0, help="a good answer's first token (default %(default)s)")
    add("--slo-tpot-s", type=float, default=0.15, help="and mean of those after (default %(default)s)")
    add("--timeout-s", type=float, default=900.0, help="of one server (default %(default)s)")
    add("--patience-s", type=float, default=60.0, help="wait this long for quiet (default %(default)s)")
    add("--threads", type=int, default=2, help="default %(default)s")
    add("--log", type=Path, default=PEERS / "served.jsonl", help="lines are appended to it")
    add("--results", type=Path, default=records.RESULTS, help="folder of the records")
    add("--no-record", action="store_true", help="print only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
