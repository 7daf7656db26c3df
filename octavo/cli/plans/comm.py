"""Bytes that one rank sends, and seconds on links, for every way to spread a model.

octavo plan comm MODEL --ranks 8 --tokens 4096
octavo plan comm MODEL --ranks 8 --device h100 --batch 64     and why tensor parallelism stays inside a node

A rank's forward pass over --tokens tokens (of its own, for experts). Training sends as much again in its backward pass.
Times are latency of each operation plus bytes over the share of the link that large transfers reach; `--json` says for
each link whether both were measured on it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.plans import spread_flags
from octavo.errors import ConfigError
from octavo.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from octavo.arch.shape import Shape
    from octavo.planner.comm import Traffic
    from octavo.planner.links import Link

USUAL = ("nvlink4", "pcie5", "infiniband-ndr", "ethernet-100g")


def configure(parser: argparse.ArgumentParser) -> None:
    spread_flags.add_model(parser)
    parser.add_argument("--ranks", metavar="COUNT", help="that the model is spread over [8]")
    parser.add_argument("--tokens", metavar="COUNT", help="in the step [4096]")
    parser.add_argument("--microbatches", metavar="COUNT", help="in flight in a pipeline [8]")
    parser.add_argument("--link", action="append", metavar="NAME", help="may be given more than once")
    parser.add_argument("--device", metavar="NAME", help="takes its links, and times its weights beside them")
    parser.add_argument("--batch", metavar="COUNT", help="sequences in a decode step, with --device [64]")
    spread_flags.add_storage(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from octavo.cli.plans import models
    from octavo.planner import comm
    from octavo.planner.hardware import device

    name, shape = models.find(args.model)
    ranks = spread_flags.count("--ranks", args.ranks, 8)
    tokens = spread_flags.count("--tokens", args.tokens, 4096)
    gpu = device(args.device) if args.device is not None else None
    links = _links(args, gpu)
    found: dict[str, Any] = {
        "model": name,
        "ranks": ranks,
        "tokens": tokens,
        "bubble": comm.bubble(ranks, spread_flags.count("--microbatches", args.microbatches, 8)),
        "links": [_link(one) for one in links],
        "traffic": [_traffic(one, links) for one in _spreads(args, shape, tokens, ranks)],
    }
    if gpu is not None:
        found["decode"] = _decode(args, shape, ranks, links)
    if args.json:
        output.print_json(found)
    else:
        _print(found)
    return 0


def _links(args: argparse.Namespace, gpu: Any) -> list[Link]:
    from octavo.planner.links import link

    names = args.link or (
        USUAL if gpu is None else list(dict.fromkeys((gpu.node_link, *USUAL[1:], gpu.network_link)))
    )
    return [link(one) for one in names]


def _link(one: Link) -> dict[str, Any]:
    return {
        "name": one.name,
        "label": one.label,
        "bytes_per_s": one.bytes_per_s,
        "share": one.share,
        "latency_s": one.latency_s,
        "is_measured": one.is_measured,
        "source": one.source,
    }


def _spreads(args: argparse.Namespace, shape: Shape, tokens: int, ranks: int) -> list[Traffic]:
    """Every spread that the model allows; experts only where there are some."""
    from octavo.planner import comm

    found = []
    for name, spread in comm.SPREADS.items():
        if name == "expert" and not any(layer.experts for layer in shape.layers):
            continue
        try:
            found.append(spread(shape, tokens, ranks))
        except ConfigError:
            continue  # no keys and values by head to share out
    found.append(comm.vocabulary(shape, tokens, 1, ranks))
    found.append(comm.data_parallel(shape.num_parameters(), ranks))
    found.append(comm.data_parallel(shape.num_parameters(), ranks, stage=3))
    found.append(comm.hand_over(shape, tokens, spread_flags.layout(args)))
    return found


def _traffic(one: Traffic, links: list[Link]) -> dict[str, Any]:
    return {
        "what": one.what,
        "formula": one.formula,
        "sent_bytes": one.sent_bytes,
        "operations": one.operations,
        "seconds": {link.name: one.seconds(link) for link in links},
    }


def _decode(args: argparse.Namespace, shape: Shape, ranks: int, links: list[Link]) -> dict[str, Any]:
    """A step's sums beside the time its weights and products take at least."""
    from octavo.planner import comm
    from octavo.planner.hardware import device
    from octavo.planner.parallel import Parallel
    from octavo.planner.roofline import floor_seconds
    from octavo.planner.step_work import StepCounter

    gpu, form = device(args.device), spread_flags.weights(args, shape)
    batch = spread_flags.count("--batch", args.batch, 64)
    counter = StepCounter(shape, weights=form, kv=spread_flags.layout(args), parallel=Parallel(tensor=ranks))
    work = counter.work([(1023, 1, 1)] * batch)
    sums = comm.tensor_parallel(shape, batch, ranks)
    return {
        "device": gpu.name,
        "weights": form.name,
        "batch": batch,
        "context": 1024,
        "compute_s": floor_seconds(work, gpu, precision=gpu.computes_in(form.compute)),
        "sent_bytes": sums.sent_bytes,
        "operations": sums.operations,
        "seconds": {link.name: sums.seconds(link) for link in links},
    }


def _print(found: dict[str, Any]) -> None:
    names = [one["name"] for one in found["links"]]
    print(f"{found['model']} over {found['ranks']} ranks, {found['tokens']} tokens: what one rank sends\n")
    rows = [
        (
            one["what"],
            format_bytes(one["sent_bytes"]),
            one["operations"],
            *(format_seconds(one["seconds"][name]) for name in names),
            one["formula"],
        )
        for one in found["traffic"]
    ]
    columns = ["spread", "sends", "operations", *names, "formula"]
    output.print_table(columns, rows, right=range(1, 3 + len(names)))
    print(f"\na pipeline of {found['ranks']} stages waits {100 * found['bubble']:.0f} % of the time")
    if "decode" in found:
        _print_decode(found["decode"], found["ranks"], names)


def _print_decode(found: dict[str, Any], ranks: int, names: list[str]) -> None:
    compute = found["compute_s"]
    print(
        f"\nA decode step of {found['batch']} sequences at {found['context']} positions, tensor parallel {ranks} on "
        f"{found['device']}, weights {found['weights']}: no less than {format_seconds(compute)} for memory and "
        f"arithmetic. Its {found['operations']} sums take"
    )
    rows = [
        (
            name,
            format_seconds(found["seconds"][name]),
            f"{100 * found['seconds'][name] / compute:.0f} % of that",
        )
        for name in names
    ]
    output.print_table(["on", "", ""], rows, right=[1, 2])
