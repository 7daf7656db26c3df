"""Rehearse a deployment: the real scheduler and router under a virtual clock.

    octavo simulate --timing h100.json --num-kv-blocks 27000 --max-model-len 8192 \\
        --rate 5 --requests 2000 --prompt-tokens lognormal:1150:1.2 --output-tokens 20-400
    octavo simulate MODEL --memory-limit 80GB --timing h100.json --trace azure.csv --replicas 8 \\
        --slo-ttft 500ms --slo-tpot 30ms --html run.html
    octavo simulate ... --baseline static          how it was done before

A timing file holds what a step costs, {"model": {"kind": "linear", "overhead_s": ...}}; see docs/simulator.md.
Arrivals: --rate (open), --concurrency (closed), --sessions (they think between turns), or --trace FILE: Azure's CSV,
Mooncake's JSON lines, BurstGPT's CSV, or arrival_s,prompt_tokens,output_tokens with, if wanted, prefix, client,
priority and cancel_after_s. The same flags and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli import output, settings
from octavo.errors import ConfigError
from octavo.units import format_seconds, parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.core.limits import Limits
    from octavo.sim.lengths import Lengths
    from octavo.sim.timing import Timing
    from octavo.sim.workload import Mix, Workload
    from octavo.sim.world import Deployment, Outcome

DEFAULT_REQUESTS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="whose shape sizes the KV pool with --memory-limit"
    )
    _configure_workload(parser)
    group = parser.add_argument_group("deployment")
    group.add_argument("--timing", metavar="FILE.json", help="what a step takes on the device")
    group.add_argument("--replicas", type=int, default=1, metavar="COUNT", help="engines, each with a device")
    group.add_argument(
        "--baseline", metavar="NAME", help="static, dynamic or contiguous, instead of Octavo's scheduler"
    )
    group.add_argument(
        "--price", type=float, metavar="USD", help="of one replica for an hour, for the cost of tokens"
    )
    group = parser.add_argument_group("objective")
    for name, text in (("ttft", "first token"), ("tpot", "each further one"), ("e2e", "whole answer")):
        group.add_argument(
            f"--slo-{name}", metavar="TIME", help=f"an answer is good whose {text} takes no longer"
        )
    group.add_argument(
        "--slo-share", type=float, default=0.99, metavar="SHARE", help="of answers that must be good [0.99]"
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


def _configure_workload(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    from octavo.sim.report import Slo, summary
    from octavo.sim.world import simulate

    seconds = {
        name: parse_seconds(text)
        for name in ("ttft", "tpot", "e2e")
        if (text := getattr(args, f"slo_{name}"))
    }
    slo = Slo(**{f"{name}_s": value for name, value in seconds.items()}, quantile=args.slo_share)
    read = settings.read(args)
    deployment = _deployment(args, read)
    outcome = simulate(deployment, _workload(args, read.engine.model.seed))
    document = summary(outcome, slo, args.price)
    document["timing"] = {"source": deployment.timing.source}
    document["limits"] = _limits_json(deployment.limits)
    _write_files(args, outcome, document)
    if args.json:
        output.print_json(document)
    else:
        _print(document)
    return 0


def _deployment(args: argparse.Namespace, read: settings.Settings) -> Deployment:
    from octavo.core.scheduler import Scheduler
    from octavo.sim.baselines import BASELINES
    from octavo.sim.world import Deployment

    if args.baseline is not None and args.baseline not in BASELINES:
        raise ConfigError(f"baseline must be one of {', '.join(BASELINES)}, got {args.baseline!r}")
    timing = _timing(args)
    return Deployment(
        limits=_limits(args, read),
        timing=timing,
        num_replicas=args.replicas,
        routing=read.server.routing,
        decider=BASELINES[args.baseline] if args.baseline else Scheduler,
        is_exact=args.exact,
    )


def _timing(args: argparse.Namespace) -> Timing:
    from octavo.sim.calibrate import read_timing

    if args.timing is None:
        raise ConfigError("--timing FILE.json says what a step takes; see docs/simulator.md")
    return read_timing(args.timing)


def _limits(args: argparse.Namespace, read: settings.Settings) -> Limits:
    """The scheduler's bounds: of a model in a memory, as `octavo serve` would resolve them, or as given."""
    from octavo.core.limits import Limits

    engine = read.engine
    if args.model is not None:
        from octavo.cli.plans.memory import look_ahead

        if engine.kv.memory_limit is None and engine.kv.num_kv_blocks is None:
            raise ConfigError("--memory-limit says how much memory the device has, such as 80GB")
        _, resolved = look_ahead(engine)
        return resolved.limits
    from octavo.engine.resolve import BATCHED_TOKENS, BLOCK_TOKENS, MIXED_PART

    blocks, longest = engine.kv.num_kv_blocks, engine.model.max_model_len
    if blocks is None or longest is None:
        raise ConfigError("without a MODEL, --num-kv-blocks and --max-model-len say how much memory there is")
    scheduler = engine.scheduler
    batched = scheduler.max_num_batched_tokens or max(BATCHED_TOKENS["cuda"], scheduler.max_num_seqs)
    return Limits(
        num_blocks=blocks,
        block_tokens=engine.kv.block_size or BLOCK_TOKENS,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=batched,
        max_model_len=longest,
        enable_prefix_caching=engine.kv.enable_prefix_caching,
        max_chunk_tokens=scheduler.max_chunk_tokens,
        max_num_mixed_tokens=scheduler.max_num_mixed_tokens or max(batched // MIXED_PART, 1),
    )


def _workload(args: argparse.Namespace, seed: int) -> Workload:
    from octavo.sim.lengths import Constant, Gamma, Poisson
    from octavo.sim.traces import Replay, read_trace
    from octavo.sim.workload import Closed, Maker, Open, Sessions

    chosen = [name for name in ("concurrency", "sessions", "trace") if getattr(args, name) is not None]
    if len(chosen) > 1 or (args.rate is not None and chosen and chosen != ["sessions"]):
        raise ConfigError("choose one of --rate, --concurrency, --sessions (with --rate) and --trace")
    if args.trace is not None:
        return Replay(read_trace(args.trace), speed=args.speed, num_requests=args.requests)
    maker = Maker(_mix(args), seed)
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
        number, tokens, share = _parts("--prefixes", args.prefixes, ":", 3, "4:1000:0.8")
        prefixes = Prefixes(
            number=parse_count(number), tokens=parse_count(tokens), share=_number("--prefixes", share)
        )
    if args.cancel:
        share, after = _parts("--cancel", args.cancel, ":", 2, "0.05:3s")
        leaving = Leaving(share=_number("--cancel", share), after_s=parse_seconds(after))
    priorities = [(name, weight) for name, weight in _weights("--priorities", args.priorities)]
    for name, _ in priorities:
        if not name.lstrip("-").isdigit():
            raise ConfigError(f"--priorities: a level is a whole number, got {name!r}")
    return Mix(
        prompt=_lengths(args.prompt_tokens or "512", 0),
        output=_lengths(args.output_tokens or "128", 1),
        prefixes=prefixes,
        leaving=leaving,
        clients=tuple(_weights("--clients", args.clients)),
        priorities=tuple((int(name), weight) for name, weight in priorities),
    )


def _lengths(text: str, column: int) -> Lengths:
    """A distribution, or what a trace has: its prompts in column 0, its outputs in column 1."""
    from octavo.sim.lengths import Empirical, parse_lengths
    from octavo.sim.traces import read_lengths

    if Path(text).is_file():
        return Empirical(read_lengths(text)[column])
    return parse_lengths(text)


def _weights(flag: str, text: str | None) -> list[tuple[str, float]]:
    found = []
    for part in text.split(",") if text else ():
        name, weight = _parts(flag, part, "=", 2, "a=3,b=1")
        found.append((name, _number(flag, weight)))
    return found


def _parts(flag: str, text: str, by: str, count: int, example: str) -> list[str]:
    parts = text.split(by)
    if len(parts) != count:
        raise ConfigError(f"{flag} should look like {example}, got {text!r}")
    return parts


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{flag}: {text!r} should be a number of at least 0")
    return value


def _limits_json(limits: Limits) -> dict[str, Any]:
    names = ("num_blocks", "block_tokens", "max_num_seqs", "max_num_batched_tokens", "max_num_mixed_tokens")
    return {name: getattr(limits, name) for name in (*names, "max_chunk_tokens", "max_model_len")}


def _write_files(args: argparse.Namespace, outcome: Outcome, document: dict[str, Any]) -> None:
    from dataclasses import asdict

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
