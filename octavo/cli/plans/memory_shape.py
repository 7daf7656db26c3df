"""`octavo plan memory` for any shape: what a model takes in every format, on a device, and in training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli import output
from octavo.cli.plans import memory_training, models, spread_flags
from octavo.config import KNOBS
from octavo.errors import ConfigError
from octavo.units import format_bytes, format_count, parse_bytes

if TYPE_CHECKING:
    from octavo.arch.shape import Shape
    from octavo.planner.inference import InferenceMemory, Serving
    from octavo.planner.parallel import Parallel

USED = ("device", "memory_limit", "max_num_seqs", "max_num_batched_tokens", "block_size", "model")
"""Settings of the engine that mean something here too."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "any shape",
        "--device takes the name of an accelerator, such as h100, for the same tables with room for KV",
    )
    spread_flags.add_storage(group)
    spread_flags.add_ranks(group)
    group.add_argument("--context", metavar="COUNT", help="length of the sequences that are counted [4096]")
    group.add_argument(
        "--utilization", type=float, metavar="SHARE", help="of the device's memory that may be taken [0.9]"
    )
    group.add_argument("--list", action="store_true", help="name the models that need no network")
    memory_training.add_flags(parser)


def is_asked_for(args: argparse.Namespace) -> bool:
    """Whether a flag of any shape is there, an accelerator is named, or a model that only the list knows."""
    from octavo.arch import known
    from octavo.planner.hardware import is_device

    given = [args.weights, args.kv, args.context, args.utilization]
    given += [getattr(args, f"{name}_parallel") for name in spread_flags.RANKS]
    device = args.knob_device or ""
    model = args.model if args.model is not None else args.knob_model
    return (
        args.list
        or any(value is not None for value in given)
        or memory_training.is_asked_for(args)
        or is_device(device)
        or device.endswith(".json")
        or (model is not None and "/" not in model and known.find(model) is not None)
    )


def run(args: argparse.Namespace) -> int:
    if args.list:
        return _list(args)
    _refuse_settings(args)
    name, shape = models.find(args.model if args.model is not None else args.knob_model)
    found = {"model": name, **_parameters(shape)}
    if memory_training.is_asked_for(args):
        found["training"] = memory_training.plan(args, shape)
    else:
        found |= _serving(args, shape)
    if args.json:
        output.print_json(found)
    else:
        _print(found, shape)
    return 0


def _list(args: argparse.Namespace) -> int:
    from octavo.arch import known

    names = {name: known.hub_id(name) for name in known.names()}
    if args.json:
        output.print_json(names)
    else:
        output.print_table(["name", "hub id"], list(names.items()))
    return 0


def _refuse_settings(args: argparse.Namespace) -> None:
    """Settings that only an engine has a use for are not dropped in silence."""
    for knob in KNOBS:
        if knob.name not in USED and getattr(args, f"knob_{knob.name}", None) is not None:
            raise ConfigError(
                f"{knob.flag} is a setting of this engine; a plan of any shape has no use for it"
            )


def _parameters(shape: Shape) -> dict[str, Any]:
    return {
        "family": shape.family,
        "parameters": shape.num_parameters(),
        "active_parameters": shape.num_active_parameters(),
        "matmul_parameters": shape.num_matmul_parameters(),
        "checkpoint_parameters": shape.num_checkpoint_parameters(),
        "parameters_by_part": shape.num_parameters_by_part(),
        "stored": shape.stored,
        "notes": list(shape.notes),
    }


def _serving(args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    from octavo.planner.formats import useful_formats
    from octavo.planner.inference import rank_weight_bytes
    from octavo.planner.kv_layouts import LAYOUTS, kv_cost

    spread = spread_flags.parallel(args)
    form, layout = spread_flags.weights(args, shape), spread_flags.layout(args)
    forms = useful_formats(shape.tensors()) if args.weights is None else {form.name: form}
    layouts = LAYOUTS if args.kv is None else {layout.name: layout}
    context = spread_flags.count("--context", args.context, 4096)
    stages: tuple[int | None, ...] = tuple(range(spread.pipeline)) if spread.pipeline > 1 else (None,)
    found: dict[str, Any] = {
        "ranks": {name: getattr(spread, name) for name in spread_flags.RANKS},
        "context": context,
        "weights": {
            name: {
                "bytes": max(rank_weight_bytes(shape, form, spread, stage) for stage in stages),
                "bits_per_weight": form.bits_per_element(),
                "source": form.source,
            }
            for name, form in forms.items()
        },
        "kv": {
            name: {
                "token_bytes": cost.token_bytes,
                "sequence_bytes": cost.sequence_bytes(context),
                "state_bytes": cost.state_bytes,
                "source": layout.source,
            }
            for name, layout in layouts.items()
            for cost in (kv_cost(shape, layout, spread),)
        },
    }
    memory_bytes, device = _memory(args)
    if memory_bytes is not None:
        found["plan"] = _plan(args, shape, spread, memory_bytes, device, context)
    return found


def _memory(args: argparse.Namespace) -> tuple[int | None, str | None]:
    """Bytes of a device by name or limit. Raises ConfigError for a device that only an engine could ask."""
    from octavo.planner.hardware import device

    if args.knob_memory_limit is not None:
        return parse_bytes(args.knob_memory_limit), None
    if args.knob_device in (None, "auto", "cpu"):
        return None, None
    one = device(args.knob_device)
    return one.limit_bytes, one.name


def _plan(
    args: argparse.Namespace,
    shape: Shape,
    spread: Parallel,
    memory_bytes: int,
    device: str | None,
    context: int,
) -> dict[str, Any]:
    from octavo.planner.formats import useful_formats, weight_format
    from octavo.planner.inference import plan_inference
    from octavo.planner.kv_layouts import LAYOUTS

    serving = _settings(args, limited=args.knob_memory_limit is not None)
    form, layout = spread_flags.weights(args, shape), spread_flags.layout(args)

    def planned(form_name: str, layout_name: str) -> InferenceMemory:
        return plan_inference(
            shape,
            memory_bytes,
            weight_format(form_name),
            LAYOUTS[layout_name],
            parallel=spread,
            serving=serving,
        )

    chosen = planned(form.name, layout.name)
    return {
        "device": device,
        "memory_bytes": memory_bytes,
        "limit_bytes": chosen.limit_bytes,
        "weights": form.name,
        "kv": layout.name,
        "stage": chosen.stage,
        "rows": [{"what": what, "bytes": size, "remark": remark} for what, size, remark in chosen.rows()],
        "pool_bytes": chosen.pool_bytes,
        "pool_tokens": chosen.pool_tokens,
        "sequences": chosen.num_sequences(context),
        "alternatives": [
            {"weights": one, "kv": other, "sequences": planned(one, other).num_sequences(context)}
            for one in useful_formats(shape.tensors())
            for other in LAYOUTS
        ],
    }


def _settings(args: argparse.Namespace, *, limited: bool) -> Serving:
    """Raises ConfigError. A limit in bytes is taken whole."""
    from octavo.planner.inference import Serving

    base = Serving()
    share = 1.0 if limited else base.utilization
    return Serving(
        max_tokens=spread_flags.count(
            "--max-num-batched-tokens", args.knob_max_num_batched_tokens, base.max_tokens
        ),
        max_seqs=spread_flags.count("--max-num-seqs", args.knob_max_num_seqs, base.max_seqs),
        block_tokens=spread_flags.count("--block-size", args.knob_block_size, base.block_tokens),
        utilization=share if args.utilization is None else args.utilization,
    )


def _print(found: dict[str, Any], shape: Shape) -> None:
    total = found["parameters"]
    print(f"{found['model']}: {total:,} parameters", end="")
    if found["active_parameters"] != total:
        print(f", {found['active_parameters']:,} of them active per token", end="")
    if found["checkpoint_parameters"] != total:
        print(f"; its checkpoint holds {found['checkpoint_parameters']:,}", end="")
    print("\n")
    rows = [
        (part, format_count(count), f"{100 * count / total:.1f} %")
        for part, count in found["parameters_by_part"].items()
    ]
    output.print_table(["part", "weights", "share"], rows, right=[1, 2])
    for note in found["notes"]:
        print(f"\n{note}")
    print()
    if "training" in found:
        memory_training.show(found["training"])
    elif "plan" in found:
        _print_plan(found["plan"], found["context"], _of_ranks(found["ranks"]))
    else:
        _print_formats(found, _of_ranks(found["ranks"]), len([one for one in shape.layers if one.states]))


def _of_ranks(ranks: dict[str, int]) -> str:
    spread = ", ".join(f"{name} {count}" for name, count in ranks.items() if count > 1)
    return f"of one rank ({spread})" if spread else "in all"


def _print_formats(found: dict[str, Any], ranks: str, num_states: int) -> None:
    rows = [
        (name, format_bytes(one["bytes"]), f"{one['bits_per_weight']:.2f}", one["source"])
        for name, one in found["weights"].items()
    ]
    output.print_table(["weights as", ranks, "bits", "source"], rows, right=[1, 2])
    print()
    context = found["context"]
    rows = [
        (name, f"{one['token_bytes']:,} B", format_bytes(one["sequence_bytes"]), one["source"])
        for name, one in found["kv"].items()
    ]
    output.print_table(["KV as", "a token", f"{context} tokens", "source"], rows, right=[1, 2])
    if num_states:
        states = next(iter(found["kv"].values()))["state_bytes"]
        print(f"\n{num_states} layers keep a state instead: {format_bytes(states)} a sequence, however long")
    print("\nembedding, head, router, norms and biases stay in bfloat16 in every format below 16 bits")


def _print_plan(plan: dict[str, Any], context: int, ranks: str) -> None:
    where = plan["device"] or "a limit in bytes"
    print(f"{where}, weights {plan['weights']}, KV {plan['kv']}, {ranks}\n")
    rows = [(one["what"], format_bytes(one["bytes"]), one["remark"]) for one in plan["rows"]]
    output.print_table(["what", "bytes", ""], rows, right=[1])
    if plan["pool_bytes"] <= 0:
        print(f"\nit does not fit: {format_bytes(-plan['pool_bytes'])} too much before any KV")
    else:
        tokens = f"{plan['pool_tokens']:,} tokens, " if plan["pool_tokens"] else ""
        print(f"\nroom for {tokens}{plan['sequences']:,} sequences of {context}")
    print(f"\nsequences of {context} that fit, by how weights and KV are stored\n")
    layouts = list(dict.fromkeys(one["kv"] for one in plan["alternatives"]))
    fits: dict[str, list[str]] = {}
    for one in plan["alternatives"]:
        fits.setdefault(one["weights"], []).append(f"{one['sequences']:,}")
    alike: dict[tuple[str, ...], list[str]] = {}
    for form, row in fits.items():
        alike.setdefault(tuple(row), []).append(form)
    table = [(", ".join(forms), *row) for row, forms in alike.items()]
    output.print_table(["weights", *layouts], table, right=range(1, len(layouts) + 1))
