"""Rehearse a deployment: the real scheduler and router under a virtual clock.

    octavo simulate llama-3.1-8b --device h100-sxm --max-model-len 8192 \\
        --rate 5 --requests 2000 --prompt-tokens lognormal:1150:1.2 --output-tokens 20-400
    octavo simulate llama-3.1-8b --device h100-sxm --trace azure.csv --replicas 8 \\
        --slo-ttft 500ms --slo-tpot 30ms --html run.html
    octavo simulate --timing measured.json --concurrency 64    with the limits of what was measured
    octavo simulate ... --baseline static          how it was done before

Steps take what the roofline of a model on a device says, or what a timing file says; see docs/simulator.md.
Arrivals: --rate (open), --concurrency (closed), --sessions (they think between turns), or --trace FILE: Azure's CSV,
Mooncake's JSON lines, BurstGPT's CSV, or arrival_s,prompt_tokens,output_tokens with, if wanted, prefix, client,
priority and cancel_after_s. The same flags and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli import deployments, output, settings, workloads
from octavo.errors import ConfigError
from octavo.units import format_seconds, parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.core.limits import Limits
    from octavo.sim.report import Slo
    from octavo.sim.search import Candidate, Found
    from octavo.sim.world import Outcome


KNOBS = (
    *("replicas", "lockstep", "device", "weights", "kv-layout", "tp", "decode-replicas"),
    *("max-num-seqs", "max-num-batched-tokens", "max-num-mixed-tokens", "max-chunk-tokens", "routing"),
)
"""Flags that a search may vary."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="config.json, directory, known name or hub id; for --device"
    )
    workloads.add_flags(parser)
    deployments.add_flags(parser)
    group = parser.add_argument_group("objective")
    for name, text in (("ttft", "first token"), ("tpot", "each further one"), ("e2e", "whole answer")):
        group.add_argument(
            f"--slo-{name}", metavar="TIME", help=f"an answer is good whose {text} takes no longer"
        )
    group.add_argument(
        "--slo-share", type=float, default=0.99, metavar="SHARE", help="of answers that must be good [0.99]"
    )
    group.add_argument(
        "--search",
        action="append",
        metavar="KNOB=VALUE,...",
        help=f"find the cheapest of all these that meets the objective; knobs: {', '.join(KNOBS)}",
    )
    group = parser.add_argument_group("results")
    group.add_argument(
        "--html", metavar="FILE", help="a page with charts; needs nothing else to be looked at"
    )
    group.add_argument("--trace-out", metavar="FILE", help="a trace for ui.perfetto.dev")
    group.add_argument("--requests-out", metavar="FILE", help="a JSON line for each request")
    group.add_argument("--exact", action="store_true", help="play every step; the result is the same")
    output.add_json(parser)
    settings.add_flags(parser, ("model", "kv", "scheduler"), also=("routing",))


def run(args: argparse.Namespace) -> int:
    from octavo.sim.report import Slo, summary
    from octavo.sim.world import simulate

    seconds = {
        name: parse_seconds(text)
        for name in ("ttft", "tpot", "e2e")
        if (text := getattr(args, f"slo_{name}"))
    }
    slo = Slo(**{f"{name}_s": value for name, value in seconds.items()}, quantile=args.slo_share)
    if args.search:
        return _search(args, slo)
    rank = deployments.rank_of(args)
    shown = argparse.Namespace(**vars(args) | {"model": None})  # it is no checkpoint that is to be loaded
    read = settings.read(shown)
    deployment = deployments.deployment(args, read, rank)
    outcome = simulate(deployment, workloads.workload(args, read.engine.model.seed))
    price = args.price if args.price is not None or rank is None else rank.usd_per_hour
    document = summary(outcome, slo, price)
    document["timing"] = {"source": deployment.timing.source}
    document["limits"] = _limits_json(deployment.limits)
    measured = deployments.measured_limits(args, read, rank)
    document["measured_limits"] = {"file": args.timing, "names": sorted(measured)} if measured else None
    document["lockstep"] = deployment.lockstep
    _write_files(args, outcome, document)
    if args.json:
        output.print_json(document)
    else:
        _print(document)
    return 0


def _search(args: argparse.Namespace, slo: Slo) -> int:
    """Build a deployment for each choice of values, as if its flags had been typed."""
    from octavo.sim.search import Built, Choice, found_json, search

    space: dict[str, list[str]] = {}
    for text in args.search:
        knob, values = workloads.parts("--search", text, "=", 2, "replicas=1,2,4")
        if knob not in KNOBS:
            raise ConfigError(f"--search knows {', '.join(KNOBS)}, not {knob!r}")
        space[knob] = [value for value in values.split(",") if value]
    seed = settings.read(argparse.Namespace(**vars(args) | {"model": None})).engine.model.seed

    def build(choice: Choice) -> Built:
        typed = argparse.Namespace(**vars(args))
        for knob, value in choice.items():
            name = knob.replace("-", "_")
            if hasattr(typed, f"knob_{name}"):
                setattr(typed, f"knob_{name}", value)
            else:
                is_count = knob in ("replicas", "lockstep", "tp", "decode-replicas")
                setattr(typed, name, parse_count(value) if is_count else value)
        rank = deployments.rank_of(typed)
        read = settings.read(argparse.Namespace(**vars(typed) | {"model": None}))
        deployment = deployments.deployment(typed, read, rank)
        replicas = deployment.num_replicas + (deployment.split.num_decode if deployment.split else 0)
        price = typed.price if typed.price is not None or rank is None else rank.usd_per_hour
        devices = 1 if rank is None else rank.parallel.num_ranks
        return Built(deployment, replicas * (devices if price is None else price))

    found = search(space, build, workloads.workload(args, seed), slo)
    if args.json:
        output.print_json(found_json(found))
    else:
        _print_found(found)
    return 0


def _print_found(found: Found) -> None:
    def row(one: Candidate) -> tuple[str, ...]:
        choice = " ".join(f"{knob}={value}" for knob, value in one.choice.items())
        if one.ruled_out is not None:
            return choice, f"{one.usd_per_hour:.2f}", "", "", "", one.ruled_out
        spreads = [one.document[name] for name in ("ttft_s", "tpot_s")]
        p99 = [format_seconds(spread["p99"]) if spread else "" for spread in spreads]
        return choice, f"{one.usd_per_hour:.2f}", f"{one.share:.2%}", *p99, "met" if one.is_met else "missed"

    columns = ("choice", "per hour", "good", "ttft p99", "tpot p99", "")
    listed = sorted(found.candidates, key=lambda one: (one.usd_per_hour, str(one.choice)))
    output.print_table(columns, [row(one) for one in listed], right=range(1, 5))
    for title, ones in (("no other is better in all of these", found.front), *found.sensitivity.items()):
        print(f"\n{title}:")
        output.print_table(columns, [row(one) for one in ones], right=range(1, 5))
    if found.best is not None:
        choice = " ".join(f"--{knob} {value}" for knob, value in found.best.choice.items())
        print(f"\ncheapest that meets the objective: {choice}")
        return
    print(f"\nnothing meets the objective; what binds is {found.binding}")
    if found.relaxation is not None:
        name, value, choices = found.relaxation
        choice = " ".join(f"--{knob} {chosen}" for knob, chosen in choices.items())
        print(
            f"least that would have to give: {name.removesuffix('_s')} of {format_seconds(value)}, met by {choice}"
        )


def _limits_json(limits: Limits) -> dict[str, Any]:
    from octavo.sim.calibrate import LIMITS

    return {name: getattr(limits, name) for name in LIMITS}


def _write_files(args: argparse.Namespace, outcome: Outcome, document: dict[str, Any]) -> None:
    from octavo.sim.page import page
    from octavo.sim.perfetto import trace_events
    from octavo.sim.report import lines

    if args.html:
        _write(args.html, page(outcome, document, "Octavo simulation"))
    if args.trace_out:
        _write(args.trace_out, json.dumps(trace_events(outcome)))
    if args.requests_out:
        _write(args.requests_out, "".join(json.dumps(asdict(line)) + "\n" for line in lines(outcome)))


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _print(document: dict[str, Any]) -> None:
    from octavo.sim.page import facts_of

    columns = ("mean", "p50", "p90", "p95", "p99", "max")
    rows = [
        (name, *(format_seconds(spread[column]) for column in columns))
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")
        if (spread := document[name]) is not None
    ]
    output.print_table(
        ("", *columns), [(row[0].removesuffix("_s"), *row[1:]) for row in rows], right=range(1, 7)
    )
    print()
    output.print_table(("", ""), facts_of(document))
    measured = document["measured_limits"]
    if measured is not None:
        limits = document["limits"]
        told = ", ".join(f"{name} {limits[name]}" for name in measured["names"])
        print(f"\nas measured, from {measured['file']}: {told}")
