"""Rehearse a deployment: the real scheduler and router under a virtual clock.

    octavo simulate llama-3.1-8b --device h100-sxm --max-model-len 8192 \\
        --rate 5 --requests 2000 --prompt-tokens lognormal:1150:1.2 --output-tokens 20-400
    octavo simulate llama-3.1-8b --device h100-sxm --trace azure.csv --replicas 8 \\
        --slo-ttft 500ms --slo-tpot 30ms --html run.html
    octavo simulate --timing measured.json --num-kv-blocks 27000 --max-model-len 8192 --concurrency 64
    octavo simulate ... --baseline static          how it was done before

Steps take what the roofline of a model on a device says, or what a timing file says; see docs/simulator.md.
Arrivals: --rate (open), --concurrency (closed), --sessions (they think between turns), or --trace FILE: Azure's CSV,
Mooncake's JSON lines, BurstGPT's CSV, or arrival_s,prompt_tokens,output_tokens with, if wanted, prefix, client,
priority and cancel_after_s. The same flags and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli import output, settings, workloads
from octavo.errors import ConfigError
from octavo.units import format_seconds, parse_bytes, parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.core.limits import Limits
    from octavo.sim.roofline import Rank
    from octavo.sim.timing import Timing
    from octavo.sim.world import Deployment, Operation, Outcome, Split


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="config.json, directory, known name or hub id; for --device"
    )
    workloads.add_flags(parser)
    group = parser.add_argument_group("deployment")
    group.add_argument("--device", metavar="NAME", help="of each rank, such as h100-sxm; see octavo plan")
    group.add_argument("--weights", default="bf16", metavar="FORMAT", help="how weights are stored [bf16]")
    group.add_argument("--kv-layout", default="bf16", metavar="FORMAT", help="how keys and values are [bf16]")
    group.add_argument("--tp", type=int, default=1, metavar="COUNT", help="devices that share each layer [1]")
    group.add_argument(
        "--utilization", type=float, default=0.9, help="share of the device's memory to take [0.9]"
    )
    group.add_argument("--timing", metavar="FILE.json", help="measured step times, instead of the roofline's")
    group.add_argument(
        "--front", metavar="TIME", help="from a client's sending until the engine hears of it [0]"
    )
    group.add_argument(
        "--replicas", type=int, default=1, metavar="COUNT", help="engines, each with its devices"
    )
    group.add_argument(
        "--baseline", metavar="NAME", help="static, dynamic or contiguous, instead of Octavo's scheduler"
    )
    group.add_argument(
        "--decode-replicas", type=int, metavar="COUNT", help="others that answer what these prefill"
    )
    group.add_argument(
        "--transfer", metavar="BYTES:TIME", help="rate per second and latency between the two [25GB:1ms]"
    )
    group.add_argument("--kv-bytes", type=int, metavar="BYTES", help="of a token in all layers [the model's]")
    group.add_argument(
        "--fail", metavar="AT:REPLICA[:BACK]", action="append", help="lose a replica, such as 60s:0:30s"
    )
    group.add_argument(
        "--autoscale", metavar="LEAST-MOST:RATE[:LAG]", help="by arrivals per replica, such as 1-8:4:60s"
    )
    group.add_argument(
        "--price",
        type=float,
        metavar="USD",
        help="of one replica for an hour [the device table's, an assumption]",
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


def run(args: argparse.Namespace) -> int:
    from octavo.sim.report import Slo, summary
    from octavo.sim.world import simulate

    seconds = {
        name: parse_seconds(text)
        for name in ("ttft", "tpot", "e2e")
        if (text := getattr(args, f"slo_{name}"))
    }
    slo = Slo(**{f"{name}_s": value for name, value in seconds.items()}, quantile=args.slo_share)
    rank = _rank(args)
    shown = argparse.Namespace(**vars(args) | {"model": None})  # it is no checkpoint that is to be loaded
    read = settings.read(shown)
    deployment = _deployment(args, read, rank)
    outcome = simulate(deployment, workloads.workload(args, read.engine.model.seed))
    price = args.price if args.price is not None or rank is None else rank.usd_per_hour
    document = summary(outcome, slo, price)
    document["timing"] = {"source": deployment.timing.source}
    document["limits"] = _limits_json(deployment.limits)
    _write_files(args, outcome, document)
    if args.json:
        output.print_json(document)
    else:
        _print(document)
    return 0


def _deployment(args: argparse.Namespace, read: settings.Settings, rank: Rank | None) -> Deployment:
    from octavo.core.scheduler import Scheduler
    from octavo.sim.baselines import BASELINES
    from octavo.sim.world import Deployment

    if args.baseline is not None and args.baseline not in BASELINES:
        raise ConfigError(f"baseline must be one of {', '.join(BASELINES)}, got {args.baseline!r}")
    timing = _timing(args, rank)
    return Deployment(
        limits=_limits(args, read, rank),
        timing=timing,
        num_replicas=args.replicas,
        routing=read.server.routing,
        decider=BASELINES[args.baseline] if args.baseline else Scheduler,
        split=_split(args, rank),
        operations=tuple(_operations(args)),
        is_exact=args.exact,
    )


def _rank(args: argparse.Namespace) -> Rank | None:
    """The hardware of one replica and the model on it; None where a timing file and a pool say it all."""
    from octavo.arch import known
    from octavo.arch.shape import Shape
    from octavo.cli.plans.memory import config_file
    from octavo.planner.formats import weight_format
    from octavo.planner.hardware import device
    from octavo.planner.kv_layouts import kv_layout
    from octavo.planner.parallel import Parallel
    from octavo.sim.roofline import Rank

    if (args.model is None) != (args.device is None):
        lacking = "a MODEL" if args.model is None else "--device NAME"
        raise ConfigError(f"a model and a device go together: {lacking} is missing")
    if args.model is None:
        return None
    name = known.find(args.model)
    return Rank(
        shape=Shape.from_file(config_file(args.model)) if name is None else known.shape(name),
        device=device(args.device),
        weights=weight_format(args.weights),
        kv=kv_layout(args.kv_layout),
        parallel=Parallel(tensor=args.tp),
    )


def _timing(args: argparse.Namespace, rank: Rank | None) -> Timing:
    from octavo.sim.calibrate import read_timing
    from octavo.sim.roofline import roofline
    from octavo.sim.timing import Host

    if args.timing is not None:
        timing = read_timing(args.timing)
    elif rank is not None:
        timing = roofline(rank)
    else:
        raise ConfigError("a MODEL with --device NAME, or --timing FILE.json, says what a step takes")
    if args.front is None:
        return timing
    return replace(timing, host=replace(timing.host or Host(), front_s=parse_seconds(args.front)))


def _limits(args: argparse.Namespace, read: settings.Settings, rank: Rank | None) -> Limits:
    """The scheduler's bounds, and as many blocks as are given or as the device has room for."""
    from octavo.core.limits import Limits
    from octavo.engine.resolve import BATCHED_TOKENS, BLOCK_TOKENS, MIXED_PART
    from octavo.sim.roofline import pool_limits

    engine, scheduler = read.engine, read.engine.scheduler
    blocks, longest = engine.kv.num_kv_blocks, engine.model.max_model_len
    if rank is None and (blocks is None or longest is None):
        raise ConfigError("without a MODEL, --num-kv-blocks and --max-model-len say how much memory there is")
    batched = scheduler.max_num_batched_tokens or max(BATCHED_TOKENS["cuda"], scheduler.max_num_seqs)
    limits = Limits(
        num_blocks=blocks or 2,  # until the device has been asked
        block_tokens=engine.kv.block_size or BLOCK_TOKENS,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=batched,
        max_model_len=longest or (rank.shape.max_positions if rank is not None else 2),
        enable_prefix_caching=engine.kv.enable_prefix_caching,
        max_chunk_tokens=scheduler.max_chunk_tokens,
        max_num_mixed_tokens=scheduler.max_num_mixed_tokens or max(batched // MIXED_PART, 1),
    )
    return limits if blocks is not None or rank is None else pool_limits(rank, limits, args.utilization)


def _split(args: argparse.Namespace, rank: Rank | None) -> Split | None:
    from octavo.planner.kv_layouts import kv_cost
    from octavo.sim.world import Split

    if args.decode_replicas is None:
        return None
    rate, latency = workloads.parts("--transfer", args.transfer or "25GB:1ms", ":", 2, "25GB:1ms")
    token_bytes = args.kv_bytes
    if token_bytes is None:
        if rank is None:
            raise ConfigError("without a MODEL, --kv-bytes says what a token's keys and values take")
        token_bytes = kv_cost(rank.shape, rank.kv).token_bytes
    return Split(
        num_decode=args.decode_replicas,
        kv_bytes_per_token=int(token_bytes),
        bytes_per_s=float(parse_bytes(rate)),
        latency_s=parse_seconds(latency),
    )


def _operations(args: argparse.Namespace) -> Iterator[Operation]:
    from octavo.sim.operations import Autoscale, Failure

    for text in args.fail or ():
        at, replica, *back = (
            text.split(":")[:3]
            if text.count(":") in (1, 2)
            else workloads.parts("--fail", text, ":", 2, "60s:0")
        )
        yield Failure(
            at_s=parse_seconds(at),
            replica=parse_count(replica),
            back_after_s=parse_seconds(back[0]) if back else None,
        )
    if args.autoscale:
        example = "1-8:4:60s"
        if args.autoscale.count(":") not in (1, 2) or "-" not in args.autoscale:
            raise ConfigError(f"--autoscale should look like {example}, got {args.autoscale!r}")
        between, rate, *lag = args.autoscale.split(":")
        least, most = workloads.parts("--autoscale", between, "-", 2, example)
        yield Autoscale(
            per_replica_per_s=workloads.number("--autoscale", rate),
            least=parse_count(least),
            most=parse_count(most),
            start_s=parse_seconds(lag[0]) if lag else 60.0,
        )


def _limits_json(limits: Limits) -> dict[str, Any]:
    names = ("num_blocks", "block_tokens", "max_num_seqs", "max_num_batched_tokens", "max_num_mixed_tokens")
    return {name: getattr(limits, name) for name in (*names, "max_chunk_tokens", "max_model_len")}


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
