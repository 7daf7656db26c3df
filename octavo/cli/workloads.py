"""The workload of a simulation as flags: who comes when, and with what."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.units import parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.sim.lengths import Lengths
    from octavo.sim.workload import Mix, Workload

DEFAULT_REQUESTS = 1000


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--rate", type=float, metavar="PER_S", help="requests sent per second, whatever comes back"
    )
    group.add_argument(
        "--cv", type=float, metavar="CV", help="variation of the gaps: 0 even, 1 Poisson, more bursty"
    )
    group.add_argument(
        "--concurrency", type=int, metavar="COUNT", help="or so many clients, one request at a time each"
    )
    group.add_argument(
        "--sessions", type=int, metavar="COUNT", help="or so many conversations, begun at --rate"
    )
    group.add_argument("--trace", metavar="FILE", help="or the requests of a file")
    group.add_argument(
        "--client-rates",
        metavar="FILE[::MODEL]",
        help="or clients by their measured rates, as ServeGen has them",
    )
    group.add_argument(
        "--speed", type=float, default=1.0, metavar="TIMES", help="play a trace so many times as fast"
    )
    group.add_argument(
        "--requests", type=int, metavar="COUNT", help=f"in all [{DEFAULT_REQUESTS}, or the whole trace]"
    )
    group.add_argument("--duration", metavar="TIME", help="send for so long, instead of a number of requests")
    group.add_argument(
        "--prompt-tokens", metavar="LENGTHS", help="512, 100-900, lognormal:MEAN:CV, or FILE of a trace [512]"
    )
    group.add_argument("--output-tokens", metavar="LENGTHS", help="the same for answers [128]")
    group.add_argument("--turns", metavar="LENGTHS", default="1-8", help="of a session [1-8]")
    group.add_argument(
        "--think", metavar="TIME", default="10s", help="mean pause of a session, or of a client [10s, 0]"
    )
    group.add_argument("--prefixes", metavar="N:TOKENS:SHARE", help="shared beginnings, such as 4:1000:0.8")
    group.add_argument("--cancel", metavar="SHARE:TIME", help="clients that leave, such as 0.05:3s")
    group.add_argument("--clients", metavar="NAME=WEIGHT,...", help="tenants that share the load")
    group.add_argument("--priorities", metavar="LEVEL=WEIGHT,...", help="of requests; smaller goes first")


def workload(args: argparse.Namespace, seed: int) -> Workload:
    from octavo.sim.clients import Clients, read_client_rates
    from octavo.sim.lengths import Constant, Gamma, Poisson
    from octavo.sim.traces import Replay, read_trace
    from octavo.sim.workload import Closed, Maker, Open, Sessions

    chosen = [
        name
        for name in ("concurrency", "sessions", "trace", "client_rates")
        if getattr(args, name) is not None
    ]
    if len(chosen) > 1 or (args.rate is not None and chosen and chosen != ["sessions"]):
        raise ConfigError(
            "choose one of --rate, --concurrency, --sessions (with --rate), --trace and --client-rates"
        )
    if args.trace is not None:
        return Replay(read_trace(args.trace), speed=args.speed, num_requests=args.requests)
    maker = Maker(_mix(args), seed)
    if args.client_rates is not None:
        path, _, model = args.client_rates.partition("::")
        duration_s = parse_seconds(args.duration) if args.duration else None
        return Clients(read_client_rates(path, model or None), maker, seed, duration_s)
    if args.concurrency is not None:
        think_s = parse_seconds(args.think) if args.think != "10s" else 0.0
        count = args.requests or DEFAULT_REQUESTS
        return Closed(concurrency=args.concurrency, num_requests=count, maker=maker, think_s=think_s)
    if args.rate is None:
        raise ConfigError("say what comes: --rate, --concurrency, --sessions or --trace")
    gaps = (
        Poisson(args.rate)
        if args.cv is None
        else Gamma(args.rate, args.cv)
        if args.cv
        else Constant(args.rate)
    )
    if args.sessions is not None:
        return Sessions(
            gaps=gaps,
            maker=maker,
            num_sessions=args.sessions,
            turns=_lengths(args.turns, 0),
            think_s=parse_seconds(args.think),
        )
    duration_s = parse_seconds(args.duration) if args.duration else None
    count = args.requests if args.requests or duration_s else DEFAULT_REQUESTS
    return Open(gaps=gaps, maker=maker, num_requests=count, duration_s=duration_s)


def _mix(args: argparse.Namespace) -> Mix:
    from octavo.sim.workload import Leaving, Mix, Prefixes

    prefixes = leaving = None
    if args.prefixes:
        kinds, tokens, share = parts("--prefixes", args.prefixes, ":", 3, "4:1000:0.8")
        prefixes = Prefixes(
            number=parse_count(kinds), tokens=parse_count(tokens), share=number("--prefixes", share)
        )
    if args.cancel:
        share, after = parts("--cancel", args.cancel, ":", 2, "0.05:3s")
        leaving = Leaving(share=number("--cancel", share), after_s=parse_seconds(after))
    priorities = [(name, weight) for name, weight in weights("--priorities", args.priorities)]
    for name, _ in priorities:
        if not name.lstrip("-").isdigit():
            raise ConfigError(f"--priorities: a level is a whole number, got {name!r}")
    return Mix(
        prompt=_lengths(args.prompt_tokens or "512", 0),
        output=_lengths(args.output_tokens or "128", 1),
        prefixes=prefixes,
        leaving=leaving,
        clients=tuple(weights("--clients", args.clients)),
        priorities=tuple((int(name), weight) for name, weight in priorities),
    )


def _lengths(text: str, column: int) -> Lengths:
    """A distribution, or what a trace has: its prompts in column 0, its outputs in column 1."""
    from octavo.sim.lengths import Empirical, parse_lengths
    from octavo.sim.traces import read_lengths

    if Path(text).is_file():
        return Empirical(read_lengths(text)[column])
    return parse_lengths(text)


def weights(flag: str, text: str | None) -> list[tuple[str, float]]:
    found = []
    for part in text.split(",") if text else ():
        name, weight = parts(flag, part, "=", 2, "a=3,b=1")
        found.append((name, number(flag, weight)))
    return found


def parts(flag: str, text: str, by: str, count: int, example: str) -> list[str]:
    parts = text.split(by)
    if len(parts) != count:
        raise ConfigError(f"{flag} should look like {example}, got {text!r}")
    return parts


def number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{flag}: {text!r} should be a number of at least 0")
    return value
