"""Measure what steps take on this machine with this model, for the simulator.

    octavo calibrate MODEL --output timing.json          drives the engine for about a minute
    octavo calibrate MODEL --output timing.json --front  and a server on loopback, for the time before the engine
    octavo calibrate --recording FILE --output timing.json
    octavo simulate --timing timing.json ...

Three kinds of time model are fitted: linear, blend, table (docs/simulator.md). Each is judged by steps it was not
fitted to, and the best one is kept. Let nothing else run meanwhile: what disturbs the engine is measured with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from octavo.cli import output, settings
from octavo.cli.generate import ENGINE
from octavo.cli.models import check_early
from octavo.cli.progress import Progress
from octavo.errors import ConfigError, LoadError
from octavo.units import format_seconds, parse_seconds

if TYPE_CHECKING:
    from octavo.core.limits import Limits
    from octavo.sim.fitting import Chosen
    from octavo.sim.recorded import Rehearsal
    from octavo.sim.timing import Host, Timing, Work

TRAIL_BYTES = 1 << 28
"""Room for some hundred thousand steps; what is not written to takes no memory."""
DEFAULT_BUDGET_S = 60.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What goes into the file.

    origin  of what was measured, and on what; no date, so that equal things have equal fingerprints
    """

    chosen: Chosen
    host: Host
    limits: Limits
    origin: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        text = json.dumps(self.origin, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def timing(self) -> Timing:
        from octavo.sim.timing import Timing

        return Timing(
            model=self.chosen.model,
            host=self.host,
            source=f"octavo calibrate, {self.origin['model']}, {self.fingerprint}",
        )

    def document(self) -> dict[str, Any]:
        from octavo.sim.calibrate import limits_json, timing_json

        return timing_json(self.timing()) | {
            "measured": self.origin
            | {
                "fingerprint": self.fingerprint,
                "limits": limits_json(self.limits),
                "num_steps": self.chosen.num_steps,
                "because": self.chosen.because,
                "errors": {kind: asdict(error) for kind, error in self.chosen.errors.items()},
            }
        }


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, hub id, bundled name, or config.json"
    )
    parser.add_argument("--output", metavar="FILE.json", help="where the timing file goes [not written]")
    parser.add_argument("--recording", metavar="FILE", help="steps of a saved recording, instead of new ones")
    parser.add_argument(
        "--engine", type=int, metavar="NUMBER", help="which of the recording's engines [the only one]"
    )
    parser.add_argument("--budget", metavar="TIME", help="for driving the engine [60s]")
    parser.add_argument(
        "--front", action="store_true", help="also measure a server on loopback: before and after the engine"
    )
    output.add_json(parser)
    settings.add_flags(parser, ENGINE)


def run(args: argparse.Namespace) -> int:
    if args.recording is not None:
        if args.model is not None or args.front or args.budget is not None:
            raise ConfigError("--recording says it all; leave out MODEL, --front and --budget")
        made = from_recording(Path(args.recording), args.engine)
    else:
        if args.engine is not None:
            raise ConfigError("--engine chooses one of a recording's; say --recording FILE")
        made = _driven(args)
    document = made.document()
    if args.output:
        try:
            Path(args.output).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {args.output}: {error.strerror}") from error
    if args.json:
        output.print_json(document)
    else:
        _print(made, args.output)
    return 0


def _driven(args: argparse.Namespace) -> Calibration:
    """Steps of an engine in this process, the first ones left out."""
    budget_s = DEFAULT_BUDGET_S if args.budget is None else parse_seconds(args.budget)
    if not 1 <= budget_s <= 3600:
        raise ConfigError(f"--budget must be from 1s to 1h, got {format_seconds(budget_s)}")
    config = settings.read(args).engine
    check_early(config.model.model)
    from octavo.engine.build import build
    from octavo.engine.calibrating import drive, trials
    from octavo.engine.cpu import read_cpu
    from octavo.obs import ring
    from octavo.obs.replay import read

    built = build(config, trail=bytearray(TRAIL_BYTES))
    resolved = built.plan.resolved
    try:
        with Progress("trials", None) as bar:
            num_rounds = drive(
                built.engine,
                built.plan.arch.vocab_size,
                trials(resolved.limits),
                budget_s=budget_s,
                on_trial=bar.advance,
            )
    finally:
        built.engine.close()
    cpu = read_cpu()
    played = played_again(read(ring.records(built.trail)))
    origin = _origin(
        model=built.plan.location.name,
        weights=built.model.fingerprint.hex()[:16],
        precision=resolved.quantization or resolved.dtype,
        device=resolved.device,
        kernels=resolved.isa or "reference",
        batch_invariant=config.runtime.batch_invariant,
        num_threads=resolved.num_threads,
        machine=f"{cpu.model}, {cpu.instruction_sets[-1] if cpu.instruction_sets else cpu.architecture}",
    )
    made = _calibration(played, resolved.limits, origin | {"num_rounds": num_rounds})
    if args.front:
        from octavo.cli.fronting import front_times

        front_s, reply_s = front_times(args)
        made = replace(made, host=replace(made.host, front_s=front_s, reply_s=reply_s))
    return made


def _origin(**known: Any) -> dict[str, Any]:
    import octavo

    return known | {"engine": octavo.__version__}


def from_recording(path: Path, number: int | None = None) -> Calibration:
    """Steps of one engine of a recording, and the front's times where requests are in it that it answered.

    Raises LoadError for what is no recording or lacks its beginning, ConfigError for an engine it has not.
    """
    from octavo.obs import recording
    from octavo.obs.flight import Served
    from octavo.sim.hosts import front_of, marks_of

    read = recording.read(path)
    engines = {one.number: one for one in read.engines if one.opened is not None}
    if number is None and len(engines) > 1:
        raise ConfigError(f"the recording has engines {sorted(engines)}: say which with --engine")
    chosen = next(iter(engines.values()), None) if number is None else engines.get(number)
    if chosen is None or chosen.opened is None:
        raise ConfigError(f"the recording has engines {sorted(engines)}, not {number}")
    played = played_again(chosen.entries)
    shown = read.saved.settings
    origin = _origin(
        model=read.saved.model,
        recorded_by=read.saved.version,
        settings={
            name: shown[name]
            for name in ("dtype", "quantization", "num_threads", "device", "batch_invariant")
            if name in shown
        },
    )
    made = _calibration(played, chosen.opened.limits, origin)
    marks = marks_of(one for one in read.front if isinstance(one, Served))
    if not any(mark.request_id in played.submitted for mark in marks):
        return made
    front_s, reply_s = front_of(played, marks)
    return replace(made, host=replace(made.host, front_s=front_s, reply_s=reply_s))


def played_again(entries: Sequence[Any]) -> Rehearsal:
    """Raises LoadError for a recording without its beginning."""
    from octavo.sim.recorded import Rehearsal

    played = Rehearsal(entries)
    played.run()
    if not played.ran:
        raise LoadError("the recording holds no step that was carried out")
    return played


def _calibration(played: Rehearsal, limits: Limits, origin: dict[str, Any]) -> Calibration:
    from octavo.sim.fitting import choose
    from octavo.sim.hosts import host_of

    return Calibration(choose(medians(played.measured)), host_of(played), limits, origin)


def medians(measured: Sequence[tuple[Work, float]]) -> list[tuple[Work, float]]:
    """Steps alike as one, in the order in which they came first."""
    found: dict[Work, list[float]] = {}
    for work, took_s in measured:
        found.setdefault(work, []).append(took_s)
    return [(work, median(several)) for work, several in found.items()]


def _print(made: Calibration, path: str | None) -> None:
    chosen = made.chosen
    rows = [
        (
            kind,
            f"{error.median:.2%}",
            f"{error.p90:.2%}",
            f"{error.bias:+.2%}",
            "taken" if kind == chosen.kind else "",
        )
        for kind, error in chosen.errors.items()
    ]
    print(f"{chosen.num_steps} different steps; errors on those a model was not fitted to:")
    output.print_table(("kind", "median", "p90", "all together", ""), rows, right=[1, 2, 3])
    host = made.host
    names = (
        ("between steps", host.turn_s),
        ("more, when not planned ahead", host.plan_s),
        ("before the engine", host.front_s),
        ("from a token's step to its client", host.reply_s),
    )
    output.print_table(("host", ""), [(name, format_seconds(value)) for name, value in names], right=[1])
    print(f"fingerprint {made.fingerprint}: " + ", ".join(str(value) for value in made.origin.values()))
    if path is not None:
        print(
            f"octavo simulate --timing {path} --rate ...    with the limits of the engine that was measured"
        )
