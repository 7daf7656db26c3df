"""A transformer block operation by operation: shapes, parameters, FLOPs, bytes, intensity, and what bounds each.

octavo plan block MODEL --tokens 2048                    a prompt of 2048 tokens
octavo plan block MODEL --batch 32 --context 4096        a decode step of 32 sequences
octavo plan block MODEL --device h100 --weights fp8      seconds at the speed of light

Every different kind of layer is shown once. Bytes are those of a kernel for each operation that keeps nothing on the
chip for the next one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.plans import spread_flags
from octavo.errors import ConfigError
from octavo.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from octavo.planner.block import Op
    from octavo.planner.hardware import Device


def configure(parser: argparse.ArgumentParser) -> None:
    spread_flags.add_model(parser)
    parser.add_argument("--tokens", metavar="COUNT", help="of one prompt [2048]")
    parser.add_argument("--batch", metavar="COUNT", help="sequences that decode one token each, instead")
    parser.add_argument("--context", metavar="COUNT", help="positions that each of them sees [4096]")
    parser.add_argument("--layer", type=int, metavar="INDEX", help="that layer only")
    parser.add_argument("--device", metavar="NAME", default="h100", help="whose roofline to go by [h100]")
    spread_flags.add_storage(parser)
    spread_flags.add_ranks(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from octavo.cli.plans import models
    from octavo.cli.plans.flops import describe
    from octavo.planner.block import block_ops
    from octavo.planner.hardware import device

    name, shape = models.find(args.model)
    gpu, form = device(args.device), spread_flags.weights(args, shape)
    layout, spread = spread_flags.layout(args), spread_flags.parallel(args)
    slices, said = _slices(args)
    precision = gpu.computes_in(form.compute)
    groups = shape.groups()
    if args.layer is not None:
        if not 0 <= args.layer < shape.num_layers:
            raise ConfigError(f"--layer must be from 0 to {shape.num_layers - 1}, got {args.layer}")
        groups = ((shape.layers[args.layer], 1),)
    blocks = [
        {
            "layers": count,
            "kind": describe(layer),
            "ops": [_op(op, gpu, precision) for op in block_ops(shape, layer, slices, form, layout, spread)],
        }
        for layer, count in groups
    ]
    found = {
        "model": name,
        "step": said,
        "device": gpu.name,
        "weights": form.name,
        "kv": layout.name,
        "precision": precision,
        "blocks": blocks,
    }
    if args.json:
        output.print_json(found)
    else:
        _print(found)
    return 0


def _slices(args: argparse.Namespace) -> tuple[list[tuple[int, int, int]], str]:
    if args.batch is None:
        tokens = spread_flags.count("--tokens", args.tokens, 2048)
        if args.context is not None:
            raise ConfigError("--context goes with --batch: a prompt of --tokens sees itself")
        return [(0, tokens, 1)], f"a prompt of {tokens} tokens"
    if args.tokens is not None:
        raise ConfigError(
            "--tokens is the length of one prompt, --batch sequences that decode; leave one out"
        )
    batch = spread_flags.count("--batch", args.batch, 1)
    context = spread_flags.count("--context", args.context, 4096)
    return [(context - 1, 1, 1)] * batch, f"a decode step of {batch} sequences at {context} positions"


def _op(op: Op, gpu: Device, precision: str) -> dict[str, Any]:
    return {
        "name": op.name,
        "part": op.part,
        "shape": op.shape,
        "parameters": op.num_parameters,
        "flop": op.flop,
        "weight_bytes": op.weight_bytes,
        "activation_bytes": op.activation_bytes,
        "kv_bytes": op.kv_bytes,
        "intensity": op.intensity,
        "bound": op.bound(gpu, precision),
        "floor_s": op.seconds(gpu, precision),
    }


def _print(found: dict[str, Any]) -> None:
    print(
        f"{found['model']}, {found['step']}, on {found['device']}: weights {found['weights']}, KV {found['kv']}, "
        f"products at {found['precision']}"
    )
    for block in found["blocks"]:
        print(f"\n{block['layers']} layer{'s' * (block['layers'] > 1)} of {block['kind']}\n")
        _print_ops(block["ops"])


def _print_ops(ops: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            op["name"],
            op["shape"],
            format_count(op["parameters"]) if op["parameters"] else "",
            f"{format_count(op['flop'])}FLOP" if op["flop"] else "",
            *(
                format_bytes(op[name]) if op[name] else ""
                for name in ("weight_bytes", "activation_bytes", "kv_bytes")
            ),
            f"{op['intensity']:.1f}" if op["flop"] else "",
            op["bound"],
            format_seconds(op["floor_s"]),
        )
        for op in ops
    ]
    total = [sum(op[name] for op in ops) for name in ("parameters", "flop", "floor_s")]
    moved = sum(op[name] for op in ops for name in ("weight_bytes", "activation_bytes", "kv_bytes"))
    sums = [format_bytes(sum(op[n] for op in ops)) for n in ("weight_bytes", "activation_bytes", "kv_bytes")]
    intensity = f"{total[1] / moved:.1f}" if moved else ""
    rows.append(
        (
            *("layer", "", format_count(total[0]), f"{format_count(total[1])}FLOP", *sums),
            *(intensity, "", format_seconds(total[2])),
        )
    )
    columns = [
        "operation",
        "shape",
        "parameters",
        "FLOPs",
        "weights",
        "activations",
        "KV",
        "FLOP/B",
        "bound",
        "not below",
    ]
    output.print_table(columns, rows, right=[2, 3, 4, 5, 6, 7, 9])
