"""Measure: latency of a few requests, throughput of many, a server under load, or this machine's own limits.

    octavo bench latency MODEL --prompt-tokens 128 --output-tokens 128
    octavo bench throughput MODEL --requests 32
    octavo bench serve --url http://127.0.0.1:8000 --rate 4 --requests 200 --slo-ttft 500ms --slo-tpot 50ms
    octavo bench machine

Prompts are random token ids from a fixed seed, answers are greedy and of forced length. Figures are medians over
the repeats, with the interquartile range.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from octavo.cli import load, output, settings
from octavo.cli.generate import ENGINE
from octavo.cli.models import check_early
from octavo.cli.progress import Progress
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.units import format_bytes, format_rate, format_seconds, parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.engine.measure import Latency, Spread, Throughput


SERVE_ONLY = ("url", "api_key", "rate", "concurrency", "slo_ttft", "slo_tpot")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["latency", "throughput", "serve", "machine"])
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, hub id, bundled name, or config.json"
    )
    group = parser.add_argument_group("workload")
    group.add_argument(
        "--prompt-tokens", metavar="COUNT", help="or LOW-HIGH for throughput and serve [default 128; 64-512]"
    )
    group.add_argument(
        "--output-tokens", metavar="COUNT", help="or LOW-HIGH for throughput and serve [default 128; 32-128]"
    )
    group.add_argument(
        "--batch-size", type=int, metavar="COUNT", help="latency: requests sent together [default 1]"
    )
    group.add_argument(
        "--requests",
        type=int,
        metavar="COUNT",
        help="throughput: requests sent at once [default 32]; serve: requests in all [default 100]",
    )
    group.add_argument("--repeats", type=int, metavar="COUNT", help="how often to measure [default 5]")
    group = parser.add_argument_group("serve")
    group.add_argument("--url", help="address of the server")
    group.add_argument("--api-key", metavar="KEY", help="the key it asks for")
    group.add_argument(
        "--rate", type=float, metavar="PER_S", help="requests sent per second, at random times"
    )
    group.add_argument(
        "--concurrency", type=int, metavar="COUNT", help="or so many at a time, one after another"
    )
    group.add_argument(
        "--slo-ttft", metavar="TIME", help="an answer is good whose first token comes within that"
    )
    group.add_argument(
        "--slo-tpot", metavar="TIME", help="and whose others take no longer than that on average"
    )
    output.add_json(parser)
    settings.add_flags(parser, ENGINE)


def run(args: argparse.Namespace) -> int:
    if args.what == "serve":
        return _serve(args)
    _refuse(args, *SERVE_ONLY)
    config = settings.read(args).engine
    if args.what != "machine":
        check_early(config.model.model)
    run_it: Callable[[argparse.Namespace, EngineConfig], int]
    run_it = {"latency": _latency, "throughput": _throughput, "machine": _machine}[args.what]
    return run_it(args, config)


def _latency(args: argparse.Namespace, config: EngineConfig) -> int:
    _refuse(args, "requests")
    prompt_tokens = _count("--prompt-tokens", args.prompt_tokens, 128)
    output_tokens = _count("--output-tokens", args.output_tokens, 128)
    from octavo.engine.llm import LLM
    from octavo.engine.measure import run_latency

    repeats = 5 if args.repeats is None else args.repeats
    with LLM.from_config(config) as llm, Progress("repeats", repeats) as bar:
        measured = run_latency(
            llm,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            batch_size=1 if args.batch_size is None else args.batch_size,
            repeats=repeats,
            on_repeat=lambda _: bar.advance(),
        )
    if args.json:
        output.print_json(asdict(measured))
    else:
        _print_latency(measured)
    return 0


def _throughput(args: argparse.Namespace, config: EngineConfig) -> int:
    _refuse(args, "batch_size")
    prompt_tokens = _range("--prompt-tokens", args.prompt_tokens, (64, 512))
    output_tokens = _range("--output-tokens", args.output_tokens, (32, 128))
    from octavo.engine.llm import LLM
    from octavo.engine.measure import run_throughput

    repeats = 5 if args.repeats is None else args.repeats
    with LLM.from_config(config) as llm, Progress("repeats", repeats) as bar:
        measured = run_throughput(
            llm,
            num_requests=32 if args.requests is None else args.requests,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            repeats=repeats,
            on_repeat=lambda _: bar.advance(),
        )
    if args.json:
        output.print_json(asdict(measured))
    else:
        _print_throughput(measured)
    return 0


def _serve(args: argparse.Namespace) -> int:
    _refuse(args, "batch_size", "repeats")
    if args.url is None:
        raise ConfigError("bench serve needs --url, the address of a server; `octavo serve` starts one")
    if (args.rate is None) == (args.concurrency is None):
        raise ConfigError("bench serve needs either --rate or --concurrency")
    if min(one for one in (args.rate, args.concurrency) if one is not None) <= 0:
        raise ConfigError("--rate and --concurrency must be above 0")
    low, high = _range("--prompt-tokens", args.prompt_tokens, (64, 512))
    least, most = _range("--output-tokens", args.output_tokens, (32, 128))
    count = 100 if args.requests is None else args.requests
    slo = load.Slo(_time("--slo-ttft", args.slo_ttft), _time("--slo-tpot", args.slo_tpot))
    key = args.api_key or next(iter(settings.read(args).server.api_key), None)
    target = load.Target.of(args.url, args.model, key)
    rng = random.Random(args.knob_seed or 0)
    pool = asyncio.run(load.token_pool(target))
    times = load.poisson(rng, count, args.rate) if args.rate else [0.0] * count
    asks = [
        load.Ask(at_s, rng.choices(pool, k=rng.randint(low, high)), rng.randint(least, most))
        for at_s in times
    ]
    if args.rate:
        found = load.summary(asyncio.run(load.run_open(target, asks)), slo)
    else:
        found = load.summary(asyncio.run(load.run_closed(target, asks, args.concurrency)), slo)
    rates = {"goodput_per_s": found.goodput_per_s, "output_tokens_per_s": found.tokens_per_s}
    if args.json:
        output.print_json(asdict(found) | rates)
    else:
        _print_serve(found)
    return 0


def _print_serve(found: load.Summary) -> None:
    failed = ", ".join(f"{count} {code}" for code, count in sorted(found.codes.items())) or "none"
    print(f"{found.num_requests} requests in {format_seconds(found.wall_s)}; failed: {failed}")
    rate = format_rate(found.tokens_per_s, "tok")
    print(f"{found.num_good} good ones, {found.goodput_per_s:.2f}/s; {rate} of output")
    names = {"ttft": "first token", "tpot": "each token after", "itl": "between arrivals", "e2e": "all"}
    rows = [
        (names[name], *(format_seconds(value) if value == value else "-" for value in parts.values()))
        for name, parts in found.percentiles_s.items()
    ]
    output.print_table(["time", "p50", "p90", "p99"], rows, right=[1, 2, 3])


def _machine(args: argparse.Namespace, config: EngineConfig) -> int:
    _refuse(args, "model", "prompt_tokens", "output_tokens", "batch_size", "requests", "repeats")
    from octavo.engine.measure import measure_machine

    found = measure_machine(config.runtime.num_threads)
    if args.json:
        output.print_json(asdict(found))
        return 0
    caches = ", ".join(f"L{c.level} {c.kind} {format_bytes(c.size_bytes)}" for c in found.cpu.caches)
    int8 = "not measured" if found.int8_op_per_s is None else format_rate(found.int8_op_per_s, "OP")
    rows = [
        ("processor", found.cpu.model),
        ("cores", f"{found.num_cores} usable, {found.num_threads} measured"),
        ("caches", caches or "unknown"),
        ("memory", format_bytes(found.total_memory_bytes)),
        ("read", format_rate(found.read_bytes_per_s, "B")),
        ("float32", format_rate(found.fp32_flop_per_s, "FLOP")),
        ("bfloat16", format_rate(found.bf16_flop_per_s, "FLOP")),
        ("int8", int8),
    ]
    output.print_table(["limit", "measured"], rows)
    for note in found.notes:
        print(note)
    return 0


def _print_latency(found: Latency) -> None:
    print(
        f"{found.batch_size} x {found.num_prompt_tokens} prompt tokens -> {found.num_output_tokens} tokens each,"
        f" {len(found.total_s.values)} repeats"
    )
    rows = [("first token", *_seconds(found.ttft_s))]
    if found.tpot_s is not None:
        rows.append(("each token after", *_seconds(found.tpot_s)))
    rows.append(("all", *_seconds(found.total_s)))
    output.print_table(["time", "median", "IQR"], rows, right=[1, 2])
    print(_peak(found.peak_bytes, found.is_peak_of_run))


def _print_throughput(found: Throughput) -> None:
    print(
        f"{found.num_requests} requests, {found.num_prompt_tokens} prompt and {found.num_output_tokens} output"
        f" tokens, {len(found.wall_s.values)} repeats"
    )
    rows = [
        ("output", *_rates(found.output_tokens_per_s)),
        ("prompt and output", *_rates(found.total_tokens_per_s)),
        ("all requests", *_seconds(found.wall_s)),
    ]
    output.print_table(["figure", "median", "IQR"], rows, right=[1, 2])
    print(_peak(found.peak_bytes, found.is_peak_of_run))


def _seconds(spread: Spread) -> tuple[str, str]:
    return format_seconds(spread.median), format_seconds(spread.iqr)


def _rates(spread: Spread) -> tuple[str, str]:
    return format_rate(spread.median, "tok"), format_rate(spread.iqr, "tok")


def _peak(num_bytes: int, is_of_run: bool) -> str:
    return f"peak memory {format_bytes(num_bytes)}" + ("" if is_of_run else ", of the whole process so far")


def _refuse(args: argparse.Namespace, *names: str) -> None:
    """Raises ConfigError for a flag the chosen measurement has no use for."""
    for name in names:
        if getattr(args, name) is not None:
            raise ConfigError(
                f"bench {args.what} has no use for {'--' if name != 'model' else ''}{name.replace('_', '-')}"
            )


def _time(flag: str, text: str | None) -> float:
    try:
        return math.inf if text is None else parse_seconds(text)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _count(flag: str, text: str | None, default: int) -> int:
    try:
        return default if text is None else parse_count(text)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _range(flag: str, text: str | None, default: tuple[int, int]) -> tuple[int, int]:
    if text is None:
        return default
    low, dash, high = text.partition("-")
    return _count(flag, low, 0), _count(flag, high if dash else low, 0)
