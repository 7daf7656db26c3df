"""A deployment to be simulated as flags: on which hardware, how many, and what happens to them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from octavo.cli import settings
from octavo.cli.workloads import number, parts
from octavo.errors import ConfigError
from octavo.units import parse_bytes, parse_count, parse_seconds

if TYPE_CHECKING:
    from octavo.core.limits import Limits
    from octavo.sim.roofline import Rank
    from octavo.sim.timing import Timing
    from octavo.sim.world import Deployment, Operation, Split


def add_flags(parser: argparse.ArgumentParser) -> None:
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
        "--lockstep",
        type=int,
        default=1,
        metavar="COUNT",
        help="so many replicas take each step together, as with experts spread over all of them [1]",
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


def deployment(args: argparse.Namespace, read: settings.Settings, rank: Rank | None) -> Deployment:
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
        lockstep=args.lockstep,
        decider=BASELINES[args.baseline] if args.baseline else Scheduler,
        split=_split(args, rank),
        operations=tuple(_operations(args)),
        is_exact=args.exact,
    )


def rank_of(args: argparse.Namespace) -> Rank | None:
    """The hardware of one replica and the model on it; None where a timing file and a pool say it all."""
    from octavo.arch import known
    from octavo.arch.shape import Shape
    from octavo.cli.plans.models import config_file
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


MEASURED = {
    "num_blocks": "num_kv_blocks",
    "block_tokens": "block_size",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_mixed_tokens": "max_num_mixed_tokens",
    "max_chunk_tokens": "max_chunk_tokens",
    "max_model_len": "max_model_len",
    "enable_prefix_caching": "enable_prefix_caching",
}
"""Limits that a timing file has, and the settings that go before them."""


def measured_limits(args: argparse.Namespace, read: settings.Settings, rank: Rank | None) -> dict[str, int]:
    """Limits that are those of the engine whose steps the timing file has, because nobody said otherwise."""
    from octavo.sim.calibrate import read_limits

    if args.timing is None or rank is not None:
        return {}
    found = read_limits(args.timing)
    return {name: value for name, value in found.items() if read.origins[MEASURED[name]].kind == "default"}


def _limits(args: argparse.Namespace, read: settings.Settings, rank: Rank | None) -> Limits:
    """The scheduler's bounds, and as many blocks as are given or as the device has room for."""
    from octavo.core.limits import Limits
    from octavo.engine.resolve import BATCHED_TOKENS, BLOCK_TOKENS, MIXED_PART
    from octavo.sim.roofline import pool_limits

    engine, scheduler = read.engine, read.engine.scheduler
    measured = measured_limits(args, read, rank)
    blocks = measured.get("num_blocks", engine.kv.num_kv_blocks)
    longest = measured.get("max_model_len", engine.model.max_model_len)
    if rank is None and (blocks is None or longest is None):
        raise ConfigError(
            "without a MODEL, --num-kv-blocks and --max-model-len say how much memory there is, where the timing file"
            " does not"
        )
    seqs = measured.get("max_num_seqs", scheduler.max_num_seqs)
    batched = measured.get("max_num_batched_tokens", scheduler.max_num_batched_tokens)
    batched = batched or max(BATCHED_TOKENS["cuda"], seqs)
    mixed = measured.get("max_num_mixed_tokens", scheduler.max_num_mixed_tokens)
    limits = Limits(
        num_blocks=blocks or 2,  # until the device has been asked
        block_tokens=measured.get("block_tokens", engine.kv.block_size) or BLOCK_TOKENS,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        max_model_len=longest or (rank.shape.max_positions if rank is not None else 2),
        enable_prefix_caching=bool(measured.get("enable_prefix_caching", engine.kv.enable_prefix_caching)),
        max_chunk_tokens=measured.get("max_chunk_tokens", scheduler.max_chunk_tokens),
        max_num_mixed_tokens=mixed or max(batched // MIXED_PART, 1),
    )
    return limits if blocks is not None or rank is None else pool_limits(rank, limits, args.utilization)


def _split(args: argparse.Namespace, rank: Rank | None) -> Split | None:
    from octavo.planner.kv_layouts import kv_cost
    from octavo.sim.world import Split

    if args.decode_replicas is None:
        return None
    rate, latency = parts("--transfer", args.transfer or "25GB:1ms", ":", 2, "25GB:1ms")
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
            text.split(":")[:3] if text.count(":") in (1, 2) else parts("--fail", text, ":", 2, "60s:0")
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
        least, most = parts("--autoscale", between, "-", 2, example)
        yield Autoscale(
            per_replica_per_s=number("--autoscale", rate),
            least=parse_count(least),
            most=parse_count(most),
            start_s=parse_seconds(lag[0]) if lag else 60.0,
        )
